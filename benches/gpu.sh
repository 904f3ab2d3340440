#!/usr/bin/env bash
# The language model on a GPU, in two parts, so that the machine with the GPU needs neither Rust nor nvcc:
#
#     benches/gpu.sh build               # anywhere: target/gpu/bench, a stripped binary
#     benches/gpu.sh try                 # anywhere, after that: the second part on a driver that does nothing
#     benches/gpu.sh run [SHAPE…]        # where the GPU is: numbers against the CPU's, rates, PyTorch beside it
#
# SHAPE: tiny, 1b, 7b (default: 1b 7b). Carry this directory and target/gpu. Weights are made on the spot.
# PYTHON names a Python with torch and transformers; without one its half is left out, and said to be.
# DEVICE and DTYPE choose others than cuda:0 and bf16, such as for a try on the CPU. SAMI_KERNELS=off leaves out our kernels.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

case ${1:-} in
build)
    eval "$("$python" benches/gpu/toolchain.py "${CUDA_DIR:-target/cuda-toolchain}")"
    cargo build --release --locked --features cuda --target-dir target/cuda --bench gpu
    mkdir -p target/gpu
    newest=$(ls -t target/cuda/x86_64-unknown-linux-gnu/release/deps/gpu-* | grep -v '\.d$' | head -n 1)
    strip -o target/gpu/bench "$newest"
    ls -l target/gpu/bench
    ;;
try)
    libraries=$(mktemp -d)
    trap 'rm -rf "$libraries"' EXIT
    for pair in driver:libcuda.so.1 cublas:libcublas.so.13 curand:libcurand.so.10; do
        cc -O1 -w -shared -fPIC "-Wl,-soname,${pair#*:}" -o "$libraries/${pair#*:}" "tests/fake_cuda/${pair%%:*}.c"
    done
    # What is read from that driver is zero: no kernel would be found right, and no number below means anything.
    SAMI_CUDA_LIBS=$libraries SAMI_KERNELS=${SAMI_KERNELS:-unchecked} "$0" run tiny
    ;;
run)
    shift
    [ $# -gt 0 ] || set -- 1b 7b
    device=${DEVICE:-cuda:0} dtype=${DTYPE:-bf16} kept=$(mktemp -d)
    trap 'rm -rf "$kept"' EXIT
    # PyTorch brings CUDA's libraries with it.
    here=$("$python" -c 'import nvidia.cu13 as cuda; print(list(cuda.__path__)[0] + "/lib")' 2>/dev/null || true)
    export SAMI_CUDA_LIBS=${SAMI_CUDA_LIBS:-$here}
    for shape in "$@"; do
        printf '\n== sami, %s\n' "$shape"
        "${BENCH:-target/gpu/bench}" --device "$device" --shape "$shape" --dtype "$dtype" --model "$kept"
        printf '\n== PyTorch, %s\n' "$shape"
        if ! "$python" -c 'import torch, transformers' 2>/dev/null; then
            echo "left out: $python has no torch and transformers"
        elif [ "${device%%:*}" = cuda ] && ! "$python" -c 'import torch; raise SystemExit(not torch.cuda.is_available())'; then
            echo "left out: PyTorch finds no GPU here"
        else
            "$python" benches/gpu/torch_side.py --device "${device%%:*}" --shape "$shape" --dtype "$dtype" --model "$kept"
        fi
    done
    ;;
*)
    sed -n '2,11s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
