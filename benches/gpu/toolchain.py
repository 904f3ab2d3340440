#!/usr/bin/env python3
"""A CUDA 13.0 build tree (nvcc, ptxas, headers, the static runtime) from NVIDIA's Python wheels: no GPU, no root.

    eval "$(python3 benches/gpu/toolchain.py DIR)"

Unpacks the wheels under DIR once (about 100 MB to fetch, 270 MB on the disk) and prints the variables that `cargo build
--features cuda` needs. `--libs` also unpacks cuBLAS, cuRAND and NVRTC (0.9 GB), for a machine with a driver and nothing else.
"""

import argparse
import shlex
import stat
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# A driver loads the PTX of its own CUDA version and of older ones: 13.0 is what drivers from 580 on take.
VERSION = "13.0"
WHEELS = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
]
LIBRARIES = ["nvidia-cublas==13.1.0.3", "nvidia-curand==10.4.0.35", "nvidia-cuda-nvrtc==13.0.88"]
PREFIX = "nvidia/cu13/"
PLATFORMS = [f"manylinux{form}_x86_64" for form in ("_2_28", "_2_27", "_2_17", "2014", "_2_12", "2010")] + ["any"]
# What candle links by name. It opens these at run time, so the linker needs the names and nothing in them.
OPENED_AT_RUN_TIME = ["cuda", "cublas", "cublasLt", "curand", "nvrtc", "nccl", "cudnn"]


def unpack(wheel: str, root: Path, home: Path) -> None:
    """Fetches one wheel and unpacks its CUDA tree, unless that was done before."""
    done = root / ".unpacked" / wheel
    if done.exists():
        return
    with tempfile.TemporaryDirectory(dir=root) as directory:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version", "3.12", "--implementation", "py", "--abi", "none", "-d", directory, wheel]
        for platform in PLATFORMS:
            command += ["--platform", platform]
        subprocess.run(command, check=True, stdout=sys.stderr)
        (archive,) = Path(directory).glob("*.whl")
        with zipfile.ZipFile(archive) as wheel_file:
            entries = [entry for entry in wheel_file.infolist() if entry.filename.startswith(PREFIX) and not entry.is_dir()]
            if not entries:
                sys.exit(f"{archive.name} has nothing under {PREFIX}")
            for entry in entries:
                path = home / entry.filename[len(PREFIX) :]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(wheel_file.read(entry))
                # Wheels forget which files are programs.
                program = "bin" in path.relative_to(home).parts[:-1]
                path.chmod(stat.S_IRUSR | stat.S_IWUSR | (0o755 if program else 0o644))
    done.parent.mkdir(exist_ok=True)
    done.touch()
    print(f"unpacked {wheel}", file=sys.stderr)


def link(path: Path, target: str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def complete(home: Path) -> None:
    """Makes of the unpacked files what build scripts expect to find."""
    link(home / "lib64", "lib")
    # Where a build script asks for the shared runtime, the linker takes the static one: the program needs none to start.
    link(home / "lib" / "libcudart.a", "libcudart_static.a")
    for shared in (home / "lib").glob("libcudart.so*"):
        shared.unlink()
    stubs = home / "lib" / "stubs"
    stubs.mkdir(exist_ok=True)
    for library in OPENED_AT_RUN_TIME:
        (stubs / f"lib{library}.a").write_bytes(b"!<arch>\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--libs", action="store_true", help="also the libraries that a program opens when it runs")
    parser.add_argument("--capability", default="90", help="compute capability to build for (default: 90, H100 and H200)")
    arguments = parser.parse_args()
    root = arguments.directory.resolve()
    home = root / f"cuda-{VERSION}"
    home.mkdir(parents=True, exist_ok=True)
    for wheel in WHEELS + (LIBRARIES if arguments.libs else []):
        unpack(wheel, root, home)
    complete(home)
    version = subprocess.run([home / "bin" / "nvcc", "--version"], check=True, capture_output=True, text=True).stdout
    if f"release {VERSION}" not in version:
        sys.exit(f"nvcc is not of CUDA {VERSION}: {version}")
    variables = {
        "CUDA_HOME": home,
        "CUDA_PATH": home,
        "NVCC": home / "bin" / "nvcc",
        "CUDA_COMPUTE_CAP": arguments.capability,
        "CUDARC_CUDA_VERSION": "13000",
        # A quarter of the size of compiled kernels.
        "NVCC_APPEND_FLAGS": "--compress-mode=size",
        # Makes cudarc open the driver at run time. It must reach the crates, not their build scripts, which would refuse
        # the pair of that and candle's own choice: hence a named target.
        "CARGO_BUILD_TARGET": "x86_64-unknown-linux-gnu",
        "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS": '--cfg feature="dynamic-loading"',
    }
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(str(value))}")
    print(f"export PATH={shlex.quote(str(home / 'bin'))}:\"$PATH\"")


main()
