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
    assert!(last.objective < 0.3 * first.objective && last.kl.is_some_and(|kl| kl > 0.01), "{first:?} {last:?}");
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
