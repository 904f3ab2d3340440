//! Compiles the CUDA kernels of `src/lm/gpu/kernels` to PTX, where the feature `cuda` is on; else there is nothing to do.

use std::path::{Path, PathBuf};
use std::process::Command;

const KERNELS: &str = "src/lm/gpu/kernels";
/// What each file is compiled for.
const NUMBERS: [(&str, &str); 3] = [("bf16", "__nv_bfloat16"), ("f16", "__half"), ("f32", "float")];

#[expect(clippy::disallowed_methods, reason = "the environment of a build is not the program's")]
fn variable(name: &str) -> Option<String> {
    tell(&format!("cargo::rerun-if-env-changed={name}"));
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn tell(line: &str) {
    println!("{line}");
}

/// The compute capability to build for, such as `90`: what candle's kernels are built for.
fn capability() -> String {
    let asked = || {
        let output = Command::new("nvidia-smi").args(["--query-gpu=compute_cap", "--format=csv,noheader"]).output();
        String::from_utf8(output.ok()?.stdout).ok()?.lines().next().map(str::to_owned)
    };
    let told = variable("CUDA_COMPUTE_CAP").or_else(asked).unwrap_or_default();
    let digits: String = told.chars().filter(char::is_ascii_digit).collect();
    assert!(digits.len() >= 2, "CUDA_COMPUTE_CAP must say what GPU to build for, such as 90: `{told}`");
    digits
}

fn nvcc() -> PathBuf {
    let of_home = |home: String| Path::new(&home).join("bin/nvcc");
    variable("NVCC").map(PathBuf::from).or_else(|| variable("CUDA_HOME").map(of_home)).unwrap_or_else(|| "nvcc".into())
}

fn main() {
    tell("cargo::rerun-if-changed=build.rs");
    if variable("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    tell(&format!("cargo::rerun-if-changed={KERNELS}"));
    let (nvcc, architecture) = (nvcc(), format!("compute_{}", capability()));
    let out = PathBuf::from(variable("OUT_DIR").expect("cargo sets it"));
    let mut running = Vec::new();
    for entry in std::fs::read_dir(KERNELS).expect("the kernels' directory") {
        let path = entry.expect("a file").path();
        if path.extension().is_none_or(|extension| extension != "cu") {
            continue;
        }
        let file = path.file_stem().and_then(|name| name.to_str()).expect("a name");
        for (name, number) in NUMBERS {
            let ptx = out.join(format!("{file}_{name}.ptx"));
            let child = Command::new(&nvcc)
                .args(["-ptx", "-O3", "-std=c++17", "-arch", &architecture, &format!("-DNumber={number}"), "-o"])
                .arg(&ptx)
                .arg(&path)
                .spawn();
            let child = child.unwrap_or_else(|error| panic!("{} cannot be run: {error}", nvcc.display()));
            running.push((ptx, child));
        }
        // A file's three at a time.
        for (ptx, mut child) in running.drain(..) {
            let ended = child.wait().expect("it was started");
            assert!(ended.success(), "{} could not be made", ptx.display());
        }
    }
}
