//! NVIDIA's driver and CUDA's libraries: opened while the program runs, so that it starts where there are none.
//!
//! Nothing here needs the `cuda` feature, makes a context on a GPU or takes of its memory.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use serde::Serialize;

use crate::env;

/// What NVIDIA's driver says about this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Driver {
    /// Its version, such as `580.95.05`, if it tells.
    pub version: Option<String>,
    /// The newest CUDA that it serves, such as `13.0`.
    pub cuda: String,
    /// The GPUs that this process may use.
    pub gpus: Vec<Gpu>,
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// `cuda:N`.
    pub device: String,
    /// What its maker calls it.
    pub name: String,
    /// Compute capability, such as `9.0`.
    pub capability: String,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of it that no process has taken, if the driver tells.
    pub free: Option<u64>,
}

/// A library of CUDA's and where it was found: a directory, or `the loader's path`; `None` if it was not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Library {
    /// File name.
    pub name: String,
    /// Where it was found.
    pub found: Option<String>,
}

/// The oldest CUDA that the driver must serve: this program's kernels are compiled by it.
pub const OLDEST_CUDA: i32 = 13_000;

/// Directories that the loader may not know; the empty one leaves the search to it.
const DIRECTORIES: [&str; 5] = [
    "",
    "/usr/local/cuda/lib64",
    "/usr/local/cuda/targets/x86_64-linux/lib",
    "/usr/local/nvidia/lib64",
    "/opt/cuda/lib64",
];

/// What candle calls. The first is the driver; cuBLAS needs cuBLASLt, and finds it once it is open.
const NAMES: [&str; 4] = ["libcuda.so.1", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10"];

/// What ranks on GPUs add up gradients with, where it is there.
pub(super) const NCCL: &str = "libnccl.so.2";

/// An open library; it stays open until the process ends.
#[derive(Clone, Copy)]
pub(super) struct Open(*mut c_void);

impl Open {
    pub(super) fn path(path: &str) -> Option<Self> {
        let path = CString::new(path).ok()?;
        #[expect(unsafe_code, reason = "libraries are opened while the program runs")]
        // SAFETY: the path ends with NUL. The libraries are NVIDIA's; their initialisers run as a linked program's would.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_LAZY | libc::RTLD_GLOBAL) };
        (!handle.is_null()).then_some(Self(handle))
    }

    /// Opens a library, and says from where.
    pub(super) fn find(name: &str) -> Option<(Self, String)> {
        let given = env::CUDA_LIBS.get().unwrap_or_default();
        let given = given.split(':').filter(|directory| !directory.is_empty());
        given.chain(DIRECTORIES).find_map(|directory| match directory {
            "" => Some((Self::path(name)?, "the loader's path".to_owned())),
            _ => Some((Self::path(&format!("{directory}/{name}"))?, directory.to_owned())),
        })
    }

    /// The address of a function, to be made a pointer of its type.
    pub(super) fn function(self, name: &CStr) -> Option<*mut c_void> {
        #[expect(unsafe_code, reason = "functions of a library that is opened while the program runs")]
        // SAFETY: the handle is open and the name ends with NUL.
        let address = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        (!address.is_null()).then_some(address)
    }
}

/// Calls a function of a library by name with arguments of the types given; `None` if the library has none.
macro_rules! call {
    ($library:expr, $name:literal, ($($kind:ty),*), $($argument:expr),*) => {
        $library.function($name).map(|address| {
            #[expect(unsafe_code, reason = "functions of a library that is opened while the program runs")]
            // SAFETY: the types are those of the function's declaration in `cuda.h` or `nvml.h`, whose functions of this
            // name keep them; pointers are to live variables of the sizes that are passed along.
            unsafe {
                let function: extern "C" fn($($kind),*) -> c_int = std::mem::transmute(address);
                function($($argument),*)
            }
        })
    };
}

/// Text that a C function left in a buffer.
fn text(buffer: &[c_char]) -> String {
    let bytes: Vec<u8> = buffer.iter().take_while(|byte| **byte != 0).map(|byte| *byte as u8).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Opens what candle will call, so that it then finds all of it under its plain names; once a process.
pub fn libraries() -> &'static [Library] {
    static FOUND: OnceLock<Vec<Library>> = OnceLock::new();
    FOUND.get_or_init(|| NAMES.map(find).into())
}

/// Where NCCL is, which nothing needs but ranks on GPUs.
pub fn nccl() -> Library {
    find(NCCL)
}

fn find(name: &str) -> Library {
    Library { name: name.to_owned(), found: Open::find(name).map(|(_, place)| place) }
}

/// Asks the driver. Errs with the reason if there is none, or no GPU that it lets this process use.
pub fn probe() -> Result<Driver, String> {
    let (cuda, _) = Open::find(NAMES[0]).ok_or("there is no NVIDIA driver: `libcuda.so.1` is not found")?;
    let said = |what: &str, code: Option<c_int>| match code {
        Some(0) => Ok(()),
        Some(code) => Err(format!("the driver says {}", error(cuda, code))),
        None => Err(format!("the driver has no `{what}`")),
    };
    said("cuInit", call!(cuda, c"cuInit", (c_uint), 0))?;
    let mut version = 0;
    said("cuDriverGetVersion", call!(cuda, c"cuDriverGetVersion", (*mut c_int), &raw mut version))?;
    let mut count = 0;
    said("cuDeviceGetCount", call!(cuda, c"cuDeviceGetCount", (*mut c_int), &raw mut count))?;
    let management = Management::open();
    let gpus = (0..count).map(|ordinal| gpu(cuda, management.as_ref(), ordinal)).collect::<Result<_, _>>();
    Ok(Driver {
        version: management.as_ref().and_then(Management::version),
        cuda: format!("{}.{}", version / 1000, version % 1000 / 10),
        gpus: gpus.map_err(|code| format!("the driver says {}", error(cuda, code)))?,
    })
}

/// The name of an error code.
fn error(cuda: Open, code: c_int) -> String {
    let mut name: *const c_char = std::ptr::null();
    call!(cuda, c"cuGetErrorName", (c_int, *mut *const c_char), code, &raw mut name);
    if name.is_null() {
        return format!("error {code}");
    }
    #[expect(unsafe_code, reason = "the driver's own text")]
    // SAFETY: the driver gives a text that ends with NUL and is never freed.
    let name = unsafe { CStr::from_ptr(name) };
    name.to_string_lossy().into_owned()
}

fn gpu(cuda: Open, management: Option<&Management>, ordinal: c_int) -> Result<Gpu, c_int> {
    let check = |code: Option<c_int>| match code {
        Some(0) | None => Ok(()),
        Some(code) => Err(code),
    };
    let (mut handle, mut memory, mut name, mut bus) = (0, 0usize, [0; 256], [0; 64]);
    check(call!(cuda, c"cuDeviceGet", (*mut c_int, c_int), &raw mut handle, ordinal))?;
    check(call!(cuda, c"cuDeviceTotalMem_v2", (*mut usize, c_int), &raw mut memory, handle))?;
    let place = name.as_mut_ptr();
    check(call!(cuda, c"cuDeviceGetName", (*mut c_char, c_int, c_int), place, 255, handle))?;
    let place = bus.as_mut_ptr();
    check(call!(cuda, c"cuDeviceGetPCIBusId", (*mut c_char, c_int, c_int), place, 63, handle))?;
    let attribute = |which: c_int| {
        let mut value = 0;
        check(call!(cuda, c"cuDeviceGetAttribute", (*mut c_int, c_int, c_int), &raw mut value, which, handle))?;
        Ok::<_, c_int>(value)
    };
    // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
    let (major, minor) = (attribute(75)?, attribute(76)?);
    Ok(Gpu {
        device: format!("cuda:{ordinal}"),
        name: text(&name),
        capability: format!("{major}.{minor}"),
        memory: memory as u64,
        free: management.and_then(|management| management.free(&bus)),
    })
}

/// NVIDIA's management library, which knows how much memory is taken without taking any.
struct Management(Open);

impl Management {
    fn open() -> Option<Self> {
        let (library, _) = Open::find("libnvidia-ml.so.1")?;
        (call!(library, c"nvmlInit_v2", (),) == Some(0)).then_some(Self(library))
    }

    fn version(&self) -> Option<String> {
        let mut buffer = [0; 96];
        let place = buffer.as_mut_ptr();
        let code = call!(self.0, c"nvmlSystemGetDriverVersion", (*mut c_char, c_uint), place, 95);
        (code == Some(0)).then(|| text(&buffer))
    }

    /// Bytes that are free on the GPU at a bus address.
    fn free(&self, bus: &[c_char; 64]) -> Option<u64> {
        let mut handle: *mut c_void = std::ptr::null_mut();
        let (address, place) = (bus.as_ptr(), &raw mut handle);
        let code =
            call!(self.0, c"nvmlDeviceGetHandleByPciBusId_v2", (*const c_char, *mut *mut c_void), address, place);
        if code != Some(0) {
            return None;
        }
        // Total, free, used.
        let mut memory = [0u64; 3];
        let place = memory.as_mut_ptr();
        let code = call!(self.0, c"nvmlDeviceGetMemoryInfo", (*mut c_void, *mut u64), handle, place);
        (code == Some(0)).then_some(memory[1])
    }
}
