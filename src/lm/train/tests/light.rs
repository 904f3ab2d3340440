//! Training with less memory.

use super::*;

#[test]
fn keeping_less_and_thinking_again_gives_the_same_bits() {
    let kl = TrainSettings { kl_weight: 0.5, ..settings(sami()) };
    for (settings, examples) in [(kl, queries(5, 3)), (settings(Objective::Likelihood), texts(5))] {
        let gradient = |keep| {
            let reference = Model::random(config(), 8, &Device::Cpu).expect("makes");
            let trainer = Trainer::of_weights(config(), weights(), Some(reference), examples.clone(), settings.clone());
            gradient(&trainer.expect("gets ready"), &[0, 1, 2, 3, 4], keep)
        };
        assert!(gradient(Keep::Everything) == gradient(Keep::Inputs));
        let run = |activation_checkpointing| {
            let settings = TrainSettings { activation_checkpointing, ..settings.clone() };
            saved(&run(trainer(&settings, &examples)))
        };
        let whole = run(Some(false));
        assert!(whole == run(Some(true)) && whole == run(None));
    }
}

#[test]
fn adapters_learn_and_the_weights_below_them_stay() {
    let examples = queries(6, 2);
    let lora = LoraSettings { rank: 4, alpha: 8.0, ..LoraSettings::default() };
    let settings = TrainSettings { lora: Some(lora), steps: 60, batch: 6, kl_weight: 0.01, ..settings(sami()) };
    let trainer = run(trainer(&settings, &examples));
    let (first, last) = (&trainer.records()[0], trainer.records().last().expect("there"));
    assert!(first.kl.is_some_and(|kl| kl.abs() < 1e-6), "adapters begin with nothing: {first:?}");
    assert!(last.objective < 0.5 * first.objective && last.kl.is_some_and(|kl| kl > 0.01), "{first:?} {last:?}");
    for (name, weight) in weights() {
        let now = trainer.model().weights()[&name].flatten_all().and_then(|flat| flat.to_vec1::<f32>());
        let before = weight.flatten_all().and_then(|flat| flat.to_vec1::<f32>());
        assert_eq!(now.expect("f32"), before.expect("f32"), "{name}");
    }
    // What is saved has the adapters in it.
    let directory = tempfile::tempdir().expect("a directory");
    trainer.save(directory.path()).expect("saves");
    let names = ["config.json", "model.safetensors"].map(|name| (name.to_owned(), directory.path().join(name)));
    let merged = Model::load(&names.into(), &Device::Cpu).expect("loads");
    let logprobs = |model| response_logprobs(model, &examples[0].sequences).expect("scores").concat();
    for (one, other) in logprobs(&merged).iter().zip(logprobs(trainer.model())) {
        assert!((one - other).abs() < 1e-4, "{one} {other}");
    }
}

#[test]
fn dropout_is_of_the_step_and_the_text_not_of_the_batch() {
    let examples = queries(5, 2);
    let of = |dropout, keep, threads| {
        let lora = LoraSettings { rank: 4, dropout, ..LoraSettings::default() };
        let settings = TrainSettings { lora: Some(lora), ..settings(sami()) };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| {
            let mut trainer = trainer(&settings, &examples);
            // B is 0 before the first step, and then dropout reaches nothing but the gradient to it.
            trainer.step().expect("steps");
            (gradient(&trainer, &[0, 1, 2, 3, 4], keep), run(trainer).records)
        })
    };
    let dropped = of(0.4, Keep::Everything, 1);
    assert!(dropped == of(0.4, Keep::Everything, 3) && dropped == of(0.4, Keep::Inputs, 2));
    let whole = of(0.0, Keep::Everything, 1);
    assert!(dropped.0.0 != whole.0.0 && dropped.1[2..] != whole.1[2..], "it does something");
}

#[test]
fn small_updates_are_not_lost_to_the_passes_bf16() {
    let examples = queries(6, 2);
    // An update far below what bf16 can tell of a weight.
    let small = OptimizerSettings::new(OptimizerName::AdamW, 1e-5);
    let constant = Schedule::default();
    let settings = TrainSettings { compute: Compute::Bf16, optimizer: small, schedule: constant, ..settings(sami()) };
    let trained = run(trainer(&settings, &examples));
    assert_eq!(trained.model().dtype(), candle_core::DType::BF16);
    let moved = |name: &str| {
        let numbers =
            |tensor: &Tensor| -> Vec<f32> { tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("f32") };
        let (now, before) = (numbers(trained.policy.parameters[name].as_tensor()), numbers(&weights()[name]));
        now.iter().zip(&before).map(|(now, before)| (now - before).abs()).fold(0.0, f32::max)
    };
    let name = "model.layers.0.mlp.up_proj.weight";
    assert!((3e-5..6e-5).contains(&moved(name)), "four steps of 1e-5 each: {}", moved(name));
    // What is saved is what was trained, not its rounding.
    let directory = tempfile::tempdir().expect("a directory");
    trained.save(directory.path()).expect("saves");
    let names = ["config.json", "model.safetensors"].map(|name| (name.to_owned(), directory.path().join(name)));
    let saved = Model::load(&names.into(), &Device::Cpu).expect("loads");
    for (name, parameter) in &trained.policy.parameters {
        let bits = |tensor: &Tensor| -> Vec<f32> { tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("f32") };
        assert_eq!(bits(&saved.weights()[name]), bits(parameter.as_tensor()), "{name}");
    }
}

#[test]
fn bf16_goes_the_way_of_f32_and_on_from_a_checkpoint() {
    let examples = queries(6, 2);
    let lora = || Some(LoraSettings { rank: 4, ..LoraSettings::default() });
    for lora in [None, lora()] {
        let of = |compute| TrainSettings { compute, lora: lora.clone(), steps: 12, kl_weight: 0.1, ..settings(sami()) };
        let losses = |trainer: &Trainer| trainer.records().iter().map(|record| record.loss).collect::<Vec<_>>();
        let rounded = run(trainer(&of(Compute::Bf16), &examples));
        let exact = run(trainer(&of(Compute::F32), &examples));
        for (one, other) in losses(&rounded).iter().zip(losses(&exact)) {
            assert!((one - other).abs() < 0.05, "{:?} {:?}", losses(&rounded), losses(&exact));
        }
        let directory = tempfile::tempdir().expect("a directory");
        let mut first = trainer(&of(Compute::Bf16), &examples);
        for _ in 0..5 {
            first.step().expect("steps");
        }
        first.checkpoint(directory.path()).expect("writes");
        let mut second = trainer(&of(Compute::Bf16), &examples);
        assert!(second.resume(directory.path()).expect("reads"));
        assert_eq!(losses(&run(second)), losses(&rounded));
    }
}
