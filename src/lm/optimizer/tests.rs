use candle_core::{DType, Device};

use super::update::CHUNK;
use super::*;
use crate::lm::gpu::kernels::emulation::with_kernels;

fn parameters(values: &[f32]) -> BTreeMap<String, Var> {
    [("w".to_owned(), Var::from_slice(values, values.len(), &Device::Cpu).expect("fits"))].into()
}

fn gradients(values: &[f32]) -> BTreeMap<String, Tensor> {
    [("w".to_owned(), Tensor::from_slice(values, values.len(), &Device::Cpu).expect("fits"))].into()
}

fn values(parameters: &BTreeMap<String, Var>) -> Vec<f32> {
    parameters["w"].to_vec1().expect("f32")
}

/// Makes an optimiser of the kind used on devices, to hold the fused one against.
fn on_device(settings: OptimizerSettings, parameters: &BTreeMap<String, Var>) -> Optimizer {
    let mut optimizer = Optimizer::new(settings, parameters).expect("makes");
    for slot in &mut optimizer.slots {
        let has_first = optimizer.settings.name == OptimizerName::AdamW;
        slot.moments = Moments::on_device(has_first, &slot.parameter).expect("zeros");
    }
    optimizer
}

/// The values of one weight that starts at 1, after gradients of 0.5 and −0.25; fused and plain.
fn two_steps(settings: &OptimizerSettings, wanted: [f32; 2]) {
    for make in [|settings, of: &_| Optimizer::new(settings, of).expect("makes"), on_device] {
        let parameters = parameters(&[1.0]);
        let mut optimizer = make(settings.clone(), &parameters);
        for (gradient, wanted) in [0.5, -0.25].into_iter().zip(wanted) {
            optimizer.step(&gradients(&[gradient]), settings.lr, 1.0).expect("steps");
            let found = values(&parameters)[0];
            assert!((found - wanted).abs() < 2e-7, "{found} is not {wanted}");
        }
    }
}

/// By hand. Step 1: 1 · (1 − .1·.01) = .999; m = .05, v = .00025, corrected .5 and .25; .999 − .1 · .5/.5 = .899.
/// Step 2: .899 · .999 = .898101; m = .02, v = .00031225, corrected .1052632 and .1562031, whose root is .3952254;
/// .898101 − .1 · .1052632/.3952254 = .8714673. In `PyTorch`:
/// ```python
/// w = torch.nn.Parameter(torch.ones(1))
/// optimizer = torch.optim.AdamW([w], lr=0.1)   # weight_decay is 0.01 there
/// for gradient in (0.5, -0.25):
///     w.grad = torch.tensor([gradient]); optimizer.step(); print(w.item())
/// ```
#[test]
fn adamw_by_hand() {
    let settings = OptimizerSettings { weight_decay: 0.01, ..OptimizerSettings::new(OptimizerName::AdamW, 0.1) };
    two_steps(&settings, [0.899, 0.871_467_3]);
}

/// By hand. Step 1: v = .01 · .25 = .0025, root .05; 1 − .01 · .5/.05 = .9. Step 2: v = .99 · .0025 + .01 · .0625 =
/// .0031, root .0556776; .9 + .01 · .25/.0556776 = .9449013. The same `PyTorch` program with
/// `torch.optim.RMSprop([w], lr=0.01)`.
#[test]
fn rmsprop_by_hand() {
    two_steps(&OptimizerSettings::new(OptimizerName::RmsProp, 0.01), [0.9, 0.944_901_3]);
}

/// By hand. Step 1: gradient .5 + .1 · 1 = .6, v = .0036, root .06; 1 − .01 · .6/.06 = .9. Step 2: −.25 + .1 · .9 =
/// −.16, v = .99 · .0036 + .01 · .0256 = .00382, root .0618061; .9 + .01 · .16/.0618061 = .9258874.
#[test]
fn rmsprop_adds_its_weight_decay_to_the_gradient() {
    let settings = OptimizerSettings { weight_decay: 0.1, ..OptimizerSettings::new(OptimizerName::RmsProp, 0.01) };
    two_steps(&settings, [0.9, 0.925_887_4]);
}

fn wave(count: usize, phase: f32) -> Vec<f32> {
    (0..count).map(|index| (index as f32 * 0.37 + phase).sin() * 1e-2).collect()
}

fn run(
    name: OptimizerName,
    threads: usize,
    make: fn(OptimizerSettings, &BTreeMap<String, Var>) -> Optimizer,
) -> Vec<f32> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    pool.install(|| {
        let parameters = parameters(&wave(3 * CHUNK + 17, 0.5));
        let mut optimizer =
            make(OptimizerSettings { weight_decay: 0.01, ..OptimizerSettings::new(name, 1e-2) }, &parameters);
        for step in 0..3 {
            optimizer.step(&gradients(&wave(3 * CHUNK + 17, step as f32)), 1e-2, 0.7).expect("steps");
        }
        values(&parameters)
    })
}

#[test]
fn threads_change_no_bit_and_plain_agrees() {
    for name in [OptimizerName::AdamW, OptimizerName::RmsProp] {
        let make =
            |settings: OptimizerSettings, of: &BTreeMap<String, Var>| Optimizer::new(settings, of).expect("makes");
        let one = run(name, 1, make);
        assert!(one == run(name, 3, make), "{name:?} depends on the number of threads");
        let plain = run(name, 1, on_device);
        let worst = one.iter().zip(&plain).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-6, "{name:?}: fused and plain differ by {worst}");
    }
}

/// With what a GPU launches, where that can be emulated.
#[test]
fn kernels_update_parameters_and_their_copies() {
    for name in [OptimizerName::AdamW, OptimizerName::RmsProp] {
        let settings = OptimizerSettings { weight_decay: 0.01, ..OptimizerSettings::new(name, 1e-2) };
        let (ours, plain) = (parameters(&wave(1000, 0.5)), parameters(&wave(1000, 0.5)));
        let mut there = on_device(settings.clone(), &ours);
        let mut here = Optimizer::new(settings, &plain).expect("makes");
        let copy = ours["w"].as_detached_tensor().to_dtype(DType::BF16).expect("rounds");
        let copies = [("w".to_owned(), Var::from_tensor(&copy).expect("a variable"))].into();
        let emulated = with_kernels(|| {
            for step in 0..3 {
                let gradients = gradients(&wave(1000, step as f32));
                there.step_with(&gradients, 1e-2, 0.7, Some(&copies)).expect("steps");
                here.step(&gradients, 1e-2, 0.7).expect("steps");
            }
        });
        if emulated.is_none() {
            return;
        }
        let (ours_now, plain_now) = (values(&ours), values(&plain));
        assert_ne!(ours_now, wave(1000, 0.5), "{name:?} moves");
        let worst = ours_now.iter().zip(&plain_now).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-6, "{name:?}: kernel and plain differ by {worst}");
        let rounded = |of: Tensor| of.to_dtype(DType::BF16).and_then(|of| of.to_dtype(DType::F32)?.to_vec1::<f32>());
        let copies =
            [copies["w"].as_detached_tensor(), ours["w"].as_detached_tensor()].map(|of| rounded(of).expect("f32"));
        assert_eq!(copies[0], copies[1]);
    }
}

#[test]
fn detached_tensors_follow_the_updates() {
    let parameters = parameters(&[1.0, 2.0]);
    let view = parameters["w"].as_detached_tensor();
    let mut optimizer = Optimizer::new(OptimizerSettings::new(OptimizerName::AdamW, 0.5), &parameters).expect("makes");
    optimizer.step(&gradients(&[1.0, -1.0]), 0.5, 1.0).expect("steps");
    assert_eq!(view.to_vec1::<f32>().expect("f32"), values(&parameters));
    assert_ne!(values(&parameters), [1.0, 2.0]);
}

fn state(optimizer: &Optimizer) -> BTreeMap<String, Numbers<'static>> {
    let state = optimizer.state().expect("reads").into_iter();
    state.map(|(name, moment)| (name, moment.into_owned())).collect()
}

#[test]
fn state_goes_on_to_the_same_bits() {
    for name in [OptimizerName::AdamW, OptimizerName::RmsProp] {
        let settings = OptimizerSettings::new(name, 0.1);
        let straight = parameters(&[1.0, -2.0, 3.0]);
        let mut optimizer = Optimizer::new(settings.clone(), &straight).expect("makes");
        optimizer.step(&gradients(&[0.1, 0.2, -0.3]), 0.1, 1.0).expect("steps");
        let mut kept = state(&optimizer);
        let resumed = parameters(&values(&straight));
        for make in [|settings, of: &_| Optimizer::new(settings, of).expect("makes"), on_device] {
            let mut other = make(settings.clone(), &resumed);
            assert!(!other.restore(1, &mut BTreeMap::new()).expect("no fault"), "no state fits nothing");
            assert!(other.restore(1, &mut kept.clone()).expect("no fault"));
            assert_eq!((state(&other), other.steps()), (kept.clone(), 1));
        }
        let mut other = Optimizer::new(settings.clone(), &resumed).expect("makes");
        assert!(other.restore(1, &mut kept).expect("no fault"));
        for optimizer in [&mut optimizer, &mut other] {
            optimizer.step(&gradients(&[-0.4, 0.1, 0.2]), 0.1, 1.0).expect("steps");
        }
        assert_eq!(values(&straight), values(&resumed));
    }
}

/// Gradients of a weight in the middle of training: of all sizes, some nearly always 0, and noisy.
fn noisy(count: usize, step: u64) -> Vec<f32> {
    let mut noise = Stream::new(step, "gradient");
    let size = |at: usize| 10f32.powi(-2 - (at % 4) as i32);
    (0..count).map(|at| size(at) * (noise.normal() + (at as f32 * 0.61).sin())).collect()
}

#[test]
fn eight_bits_follow_thirty_two_and_go_on_to_the_same_bits() {
    for (name, threads) in [(OptimizerName::AdamW, [1, 3]), (OptimizerName::RmsProp, [2, 5])] {
        let settings = OptimizerSettings { state_bits: 8, weight_decay: 0.01, ..OptimizerSettings::new(name, 1e-3) };
        let count = 2 * CHUNK + 4099;
        let start = wave(count, 0.5);
        let train = |settings: &OptimizerSettings, threads, stop: Option<u64>| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            pool.install(|| {
                let parameters = parameters(&start);
                let mut optimizer = Optimizer::new(settings.clone(), &parameters).expect("makes");
                for step in 0..60 {
                    if stop == Some(step) {
                        let mut kept = state(&optimizer);
                        optimizer = Optimizer::new(settings.clone(), &parameters).expect("makes");
                        assert!(optimizer.restore(step, &mut kept).expect("no fault"));
                    }
                    optimizer.step(&gradients(&noisy(count, step)), 1e-3, 1.0).expect("steps");
                }
                let bytes: usize = state(&optimizer)
                    .values()
                    .map(|part| match part {
                        Numbers::F32(numbers) => 4 * numbers.len(),
                        Numbers::U8(numbers) => numbers.len(),
                    })
                    .sum();
                (values(&parameters), bytes)
            })
        };
        let (eight, bytes) = train(&settings, threads[0], None);
        assert!(eight == train(&settings, threads[1], None).0, "{name:?} depends on the number of threads");
        assert!(eight == train(&settings, threads[0], Some(23)).0, "{name:?} does not go on to the same bits");
        let (exact, all) = train(&OptimizerSettings { state_bits: 32, ..settings.clone() }, 1, None);
        assert!(bytes * 39 < all * 10, "{name:?}: {bytes} bytes of {all}");
        // How far the ends are apart, measured by how far training went.
        let distance =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
        let off = distance(&eight, &exact) / distance(&start, &exact);
        assert!(off < 0.08, "{name:?}: {off}");
    }
}

#[test]
fn small_tensors_keep_f32() {
    let settings = OptimizerSettings { state_bits: 8, ..OptimizerSettings::new(OptimizerName::AdamW, 0.1) };
    let optimizer = Optimizer::new(settings, &parameters(&[1.0; 100])).expect("makes");
    assert!(state(&optimizer).values().all(|part| matches!(part, Numbers::F32(_))));
}

#[test]
fn parameter_without_gradient_is_an_error_and_nothing_moves() {
    let parameters = parameters(&[1.0]);
    let mut optimizer = Optimizer::new(OptimizerSettings::new(OptimizerName::AdamW, 0.1), &parameters).expect("makes");
    let error = optimizer.step(&BTreeMap::new(), 0.1, 1.0).expect_err("no gradient");
    assert!(error.to_string().contains("`w`"), "{error}");
    assert_eq!((values(&parameters)[0], optimizer.steps), (1.0, 0));
}

#[test]
fn reads_what_a_pipeline_says() {
    let read: OptimizerSettings = serde_json::from_str(r#"{"name": "rmsprop", "lr": 5e-7}"#).expect("reads");
    assert_eq!(read, OptimizerSettings::new(OptimizerName::RmsProp, 5e-7));
    assert!(serde_json::from_str::<OptimizerSettings>(r#"{"lr": 1, "momentum": 0.9}"#).is_err());
}
