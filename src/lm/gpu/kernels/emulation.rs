//! Kernels on the CPU: their sources, compiled by g++ against `tests/kernels/emulate.h`, and the launches that a GPU gets.

use std::cell::Cell;
use std::ffi::{CString, c_void};
use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, Tensor};

use super::launch::{Argument, Launch};

const NUMBERS: [(&str, &str); 3] = [("bf16", "__nv_bfloat16"), ("f16", "__half"), ("f32", "float")];

/// What `emulate.h` makes of a kernel.
type Emulated = extern "C" fn(*const u32, *const u32, u32, *const *mut c_void, u32);

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
}

/// Whether kernels compute on this thread.
pub(in crate::lm) fn is_on() -> bool {
    ON.get()
}

/// Does some work in which kernels compute on the CPU. `None`, with the reason printed, where there is no g++.
pub(in crate::lm) fn with_kernels<T>(work: impl FnOnce() -> T) -> Option<T> {
    struct Off;
    impl Drop for Off {
        fn drop(&mut self) {
            ON.set(false);
        }
    }
    library()?;
    ON.set(true);
    let _off = Off;
    Some(work())
}

/// All kernels for all types of numbers, with an entry for each.
fn source(directory: &Path) -> String {
    let mut text = "#include \"common.cuh\"\n#include \"attention.cuh\"\n".to_owned();
    for entry in fs_err::read_dir(directory).expect("the kernels' directory") {
        let path = entry.expect("a file").path();
        if path.extension().is_none_or(|extension| extension != "cu") {
            continue;
        }
        let file = path.file_stem().and_then(|name| name.to_str()).expect("a name");
        let source = fs_err::read_to_string(&path).expect("a kernel's source");
        for (space, number) in NUMBERS {
            let _ = writeln!(
                text,
                "#define Number {number}\n#define SPACE {space}_{file}\nnamespace {space}_{file} {{\n#include \"{file}.cu\"\n}}"
            );
            for line in source.lines().filter_map(|line| line.strip_prefix("KERNEL ")) {
                let name = line.split('(').next().expect("a name");
                let _ = writeln!(text, "EMULATE({space}_{file}, {name})");
            }
            text.push_str("#undef Number\n#undef SPACE\n");
        }
    }
    text
}

/// The compiled library's handle.
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn library() -> Option<usize> {
    static LIBRARY: OnceLock<Option<usize>> = OnceLock::new();
    *LIBRARY.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let kernels = root.join("src/lm/gpu/kernels");
        let place = tempfile::tempdir().expect("a directory");
        let (text, library) = (place.path().join("kernels.cpp"), place.path().join("kernels.so"));
        fs_err::write(&text, source(&kernels)).expect("is written");
        let compiled = Command::new("g++")
            // Fibers jump between stacks, which hardened jumps refuse.
            .args(["-std=c++17", "-O1", "-w", "-U_FORTIFY_SOURCE", "-fno-strict-aliasing", "-shared", "-fPIC", "-o"])
            .arg(&library)
            .arg(format!("-I{}", kernels.display()))
            .arg(format!("-I{}", root.join("tests/kernels").display()))
            .arg(&text)
            .output();
        let Ok(compiled) = compiled else {
            eprintln!("skipped: there is no g++");
            return None;
        };
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        let path = CString::new(library.to_str().expect("a path")).expect("no NUL");
        #[expect(unsafe_code, reason = "kernels that were just compiled")]
        // SAFETY: the path ends with NUL, and the library initialises nothing.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!handle.is_null(), "the library opens");
        Some(handle as usize)
    })
}

/// Where a tensor's numbers begin, to be written to.
struct Place(Cell<*mut c_void>);

impl InplaceOp1 for Place {
    fn name(&self) -> &'static str {
        "place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let start = layout.start_offset();
        self.0.set(match storage {
            CpuStorage::BF16(numbers) => numbers[start..].as_mut_ptr().cast(),
            CpuStorage::F16(numbers) => numbers[start..].as_mut_ptr().cast(),
            CpuStorage::F32(numbers) => numbers[start..].as_mut_ptr().cast(),
            CpuStorage::F64(numbers) => numbers[start..].as_mut_ptr().cast(),
            CpuStorage::U32(numbers) => numbers[start..].as_mut_ptr().cast(),
            CpuStorage::U8(numbers) => numbers[start..].as_mut_ptr().cast(),
            _ => candle_core::bail!("a tensor that no kernel writes"),
        });
        Ok(())
    }
}

fn read(tensor: &Tensor) -> Result<*mut c_void> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { candle_core::bail!("a tensor of another device") };
    let start = layout.start_offset();
    let place: *const c_void = match storage {
        CpuStorage::BF16(numbers) => numbers[start..].as_ptr().cast(),
        CpuStorage::F16(numbers) => numbers[start..].as_ptr().cast(),
        CpuStorage::F32(numbers) => numbers[start..].as_ptr().cast(),
        CpuStorage::F64(numbers) => numbers[start..].as_ptr().cast(),
        CpuStorage::U32(numbers) => numbers[start..].as_ptr().cast(),
        CpuStorage::U8(numbers) => numbers[start..].as_ptr().cast(),
        _ => candle_core::bail!("a tensor of {:?}", tensor.dtype()),
    };
    Ok(place.cast_mut())
}

pub(super) fn run(launch: &Launch<'_>) -> Result<()> {
    /// The emulation has one grid at a time.
    static ONE: Mutex<()> = Mutex::new(());
    let Some(library) = library() else { candle_core::bail!("there is no g++") };
    let space = NUMBERS.iter().map(|(space, _)| *space).find(|space| *space == launch.dtype.as_str());
    let name = format!("emulated_{}_{}_{}", space.unwrap_or("none"), launch.file, launch.name);
    let symbol = CString::new(name.as_str()).expect("no NUL");
    #[expect(unsafe_code, reason = "kernels that were just compiled")]
    // SAFETY: the handle is open and the name ends with NUL.
    let entry = unsafe { libc::dlsym(library as *mut c_void, symbol.as_ptr()) };
    if entry.is_null() {
        candle_core::bail!("no kernel `{name}`");
    }
    #[expect(unsafe_code, reason = "kernels that were just compiled")]
    // SAFETY: `EMULATE` gives every entry this type.
    let entry: Emulated = unsafe { std::mem::transmute(entry) };
    // Eight bytes each, of which the kernel reads what it declares.
    let words = launch.arguments.iter().map(|argument| {
        Ok(match argument {
            Argument::Read(tensor) => read(tensor)? as u64,
            Argument::Written(tensor) => {
                let place = Place(Cell::new(std::ptr::null_mut()));
                tensor.inplace_op1(&place)?;
                place.0.get() as u64
            }
            Argument::Nothing => 0,
            Argument::U32(number) => u64::from(*number),
            Argument::U64(number) => *number,
            Argument::F32(number) => u64::from(number.to_bits()),
        })
    });
    let mut words: Vec<u64> = words.collect::<Result<_>>()?;
    let pointers: Vec<*mut c_void> = words.iter_mut().map(|word| std::ptr::from_mut(word).cast()).collect();
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    entry(launch.grid.as_ptr(), launch.threads.as_ptr(), launch.shared, pointers.as_ptr(), pointers.len() as u32);
    Ok(())
}
