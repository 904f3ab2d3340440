//! The kernels, emulated, beside plain operations.

use candle_core::{DType, Device};

use super::check::{apart, sizes, tolerance};
use super::emulation::with_kernels;
use super::{Kernel, WIDEST, left_out};

#[test]
fn kernels_compute_what_plain_operations_do() {
    with_kernels(|| {
        // One row; numbers one by one, and several at once; more columns than threads; more rows than blocks.
        let all = [(1, 2), (3, 10), (5, 64), (2, 250), (9, 320), (2, 2056), (700, 34), (300, 256)];
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            for kernel in Kernel::ALL {
                for size in sizes(kernel, &all) {
                    let apart = apart(kernel, &Device::Cpu, dtype, size).expect("computes");
                    assert!(apart <= tolerance(dtype), "{} of {size:?} in {dtype:?}: {apart}", kernel.name());
                }
            }
        }
    });
}

#[test]
fn the_widest_rows_fit_their_block() {
    with_kernels(|| {
        for kernel in [Kernel::Norm, Kernel::NormBack] {
            let apart = apart(kernel, &Device::Cpu, DType::F32, (3, WIDEST)).expect("computes");
            assert!(apart <= tolerance(DType::F32), "{}: {apart}", kernel.name());
        }
    });
}

#[test]
fn settings_leave_out_kernels_by_name() {
    for (setting, name, out) in [
        ("", "turn", false),
        ("off", "turn", true),
        ("unchecked", "turn", false),
        ("-rms_norm,-turn", "turn", true),
        ("unchecked,-rms_norm", "rms_norm", true),
        ("-rms_norm", "rms_norm_back", false),
    ] {
        assert_eq!(left_out(setting, name), out, "{setting} {name}");
    }
}
