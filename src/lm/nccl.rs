//! NCCL, NVIDIA's operations of several GPUs together: opened while the program runs, as the driver is.
//!
//! Not through cudarc, which looks for names that NVIDIA's packages do not have (theirs is `libnccl.so.2`), and ends the process
//! where it finds none. Communicators do not block here: whoever waits for the others sees to it meanwhile that they are still
//! there, and gives up if one is not.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use super::driver::{NCCL, Open};
use crate::env;

/// Bytes of what ranks find each other by.
pub(super) const ID: usize = 128;
/// How long a communicator may take to be given up.
const END: Duration = Duration::from_secs(10);

/// `ncclSuccess` and `ncclInProgress`.
const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;
/// `ncclFloat32` and `ncclSum`.
const F32: c_int = 7;
const SUM: c_int = 0;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct UniqueId([u8; ID]);

/// `ncclConfig_t` as NCCL 2.14 has it; newer ones take defaults for what is not there.
#[repr(C)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    /// What NCCL 2.17 has here: undefined.
    cluster: c_int,
}

type Handle = *mut c_void;

/// Functions of the library by name, with the types of their declaration in `nccl.h`.
macro_rules! functions {
    ($($name:ident = $symbol:literal ($($kind:ty),*) -> $result:ty;)*) => {
        #[derive(Debug, Clone, Copy)]
        struct Functions {
            $($name: unsafe extern "C" fn($($kind),*) -> $result,)*
        }

        impl Functions {
            fn of(library: Open) -> Result<Self, String> {
                let address = |symbol: &CStr| {
                    let missing = || format!("`{NCCL}` has no `{}`: it is older than NCCL 2.14", symbol.to_string_lossy());
                    library.function(symbol).ok_or_else(missing)
                };
                $(
                    #[expect(unsafe_code, reason = "functions of a library that is opened while the program runs")]
                    // SAFETY: the type is that of the declaration in `nccl.h`, which functions of this name keep.
                    let $name = unsafe {
                        std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($kind),*) -> $result>(address($symbol)?)
                    };
                )*
                Ok(Self { $($name,)* })
            }
        }
    };
}

functions! {
    version = c"ncclGetVersion" (*mut c_int) -> c_int;
    unique_id = c"ncclGetUniqueId" (*mut UniqueId) -> c_int;
    begin = c"ncclCommInitRankConfig" (*mut Handle, c_int, UniqueId, c_int, *mut Config) -> c_int;
    state = c"ncclCommGetAsyncError" (Handle, *mut c_int) -> c_int;
    all_reduce = c"ncclAllReduce" (*const c_void, *mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> c_int;
    abort = c"ncclCommAbort" (Handle) -> c_int;
    name_of = c"ncclGetErrorString" (c_int) -> *const c_char;
    last_error = c"ncclGetLastError" (Handle) -> *const c_char;
}

/// The library.
#[derive(Debug, Clone, Copy)]
pub(super) struct Nccl {
    functions: Functions,
    version: c_int,
}

/// A communicator: this process's place among ranks on GPUs. It is given up when it is dropped, whatever is under way.
#[derive(Debug)]
pub(super) struct Communicator {
    nccl: Nccl,
    handle: usize,
}

impl Nccl {
    /// Opens it, unless the user wants it not to be used. Errs with the reason why it is not used.
    pub(super) fn wanted() -> Result<Self, String> {
        if let Some(setting) = env::RANKS_NCCL.get().filter(|setting| ["off", "0"].contains(&setting.as_str())) {
            return Err(format!("`{}` is `{setting}`", env::RANKS_NCCL.name));
        }
        let (library, _) = Open::find(NCCL)
            .ok_or_else(|| format!("`{NCCL}` is not found; name its directory in `{}`", env::CUDA_LIBS.name))?;
        Self::of(library)
    }

    /// The functions of an open library. Errs if it lacks one.
    pub(super) fn of(library: Open) -> Result<Self, String> {
        let mut nccl = Self { functions: Functions::of(library)?, version: 0 };
        #[expect(unsafe_code, reason = "a function of the library")]
        // SAFETY: it writes a number where one lives.
        let code = unsafe { (nccl.functions.version)(&raw mut nccl.version) };
        nccl.check(code)?;
        Ok(nccl)
    }

    /// Its version, such as 22809 for 2.28.9.
    pub(super) fn version(&self) -> i32 {
        self.version
    }

    /// What the ranks of a new communicator find each other by; drawn by one of them.
    pub(super) fn unique_id(&self) -> Result<Vec<u8>, String> {
        let mut id = UniqueId([0; ID]);
        #[expect(unsafe_code, reason = "a function of the library")]
        // SAFETY: it writes 128 bytes where so many live.
        let code = unsafe { (self.functions.unique_id)(&raw mut id) };
        self.check(code)?;
        Ok(id.0.to_vec())
    }

    /// Errs with what the library says if a code is one of failure.
    fn check(&self, code: c_int) -> Result<(), String> {
        if [SUCCESS, IN_PROGRESS].contains(&code) {
            return Ok(());
        }
        #[expect(unsafe_code, reason = "functions of the library")]
        // SAFETY: it takes any code, and no communicator; it gives texts that are never freed, or null.
        let texts = unsafe { [(self.functions.name_of)(code), (self.functions.last_error)(std::ptr::null_mut())] };
        let texts = texts.into_iter().filter(|text| !text.is_null()).map(|text| {
            #[expect(unsafe_code, reason = "the library's own text")]
            // SAFETY: it ends with NUL.
            let text = unsafe { CStr::from_ptr(text) };
            text.to_string_lossy().trim().to_owned()
        });
        let texts: Vec<String> = texts.filter(|text| !text.is_empty()).collect();
        Err(format!("NCCL says: {}", if texts.is_empty() { format!("error {code}") } else { texts.join("; ") }))
    }
}

impl Communicator {
    /// Begins to come together with the other ranks, on the GPU that is current on this thread. They have come when
    /// [`Communicator::is_ready`] says so.
    pub(super) fn begin(nccl: Nccl, ranks: usize, rank: usize, id: [u8; ID]) -> Result<Self, String> {
        let mut config =
            Config { size: size_of::<Config>(), magic: 0xcafe_beef, version: 21_400, blocking: 0, cluster: c_int::MIN };
        let mut handle: Handle = std::ptr::null_mut();
        let begin = nccl.functions.begin;
        #[expect(unsafe_code, reason = "a function of the library")]
        // SAFETY: it writes a pointer where one lives, and reads as much of the configuration as that says it has.
        let code = unsafe { begin(&raw mut handle, ranks as c_int, UniqueId(id), rank as c_int, &raw mut config) };
        // One that failed is there to be given up.
        let begun = (!handle.is_null()).then(|| Self { nccl, handle: handle as usize });
        nccl.check(code)?;
        begun.ok_or_else(|| "NCCL has made no communicator".to_owned())
    }

    /// Whether what was asked of it last is under way on the GPU. Errs if that, or anything on another rank, has failed.
    pub(super) fn is_ready(&self) -> Result<bool, String> {
        let mut state = SUCCESS;
        #[expect(unsafe_code, reason = "a function of the library")]
        // SAFETY: the communicator lives as long as `self`, and a number is written where one lives.
        let code = unsafe { (self.nccl.functions.state)(self.handle as Handle, &raw mut state) };
        self.nccl.check(code)?;
        self.nccl.check(state)?;
        Ok(state == SUCCESS)
    }

    /// Has numbers replaced by their sum over all ranks, in their turn on a stream. Every rank asks for the same ones in the
    /// same order, and for the next when [`Communicator::is_ready`].
    ///
    /// # Safety
    /// `count` f32 are at an address that the GPU can write to, until the stream has come past this.
    #[expect(unsafe_code, reason = "addresses are the caller's word")]
    pub(super) unsafe fn sum(&self, address: u64, count: usize, stream: *mut c_void) -> Result<(), String> {
        let (all_reduce, place) = (self.nccl.functions.all_reduce, address as *mut c_void);
        // SAFETY: the communicator lives as long as `self`; sums may be written over their summands.
        let code = unsafe { all_reduce(place, place, count, F32, SUM, self.handle as Handle, stream) };
        self.nccl.check(code)
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        let (abort, handle) = (self.nccl.functions.abort, self.handle);
        let (tell, ended) = channel();
        // A process whose rank is lost must come to its end, even if this does not.
        let ending = std::thread::Builder::new().name("nccl".to_owned()).spawn(move || {
            #[expect(unsafe_code, reason = "a function of the library")]
            // SAFETY: nobody else has the communicator any more.
            let code = unsafe { abort(handle as Handle) };
            // No one may wait any more.
            let _ = tell.send(code);
        });
        if ending.is_ok() && ended.recv_timeout(END) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("NCCL does not let go of its communicator");
        }
    }
}
