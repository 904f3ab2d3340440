//! The trainer on tiny random models: to the same bits after any interruption, the same gradient however it is cut, and
//! the loss where it should go.

use super::super::adapter::LoraSettings;
use super::super::logprobs::response_logprobs;
use super::super::loss::preference::Directions;
use super::super::loss::{Contrast, LengthNorm, Sides};
use super::super::optimizer::{OptimizerName, OptimizerSettings};
use super::super::random::Stream;
use super::super::schedule::{Schedule, ScheduleName};
use super::gather::sum;
use super::*;

mod dpo;
mod kl;
mod light;
mod ranks;

const BOS: u32 = 1;

pub(in crate::lm) fn config() -> Config {
    Config {
        vocab_size: 24,
        hidden_size: 16,
        intermediate_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 8,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        max_position_embeddings: 64,
        tie_word_embeddings: true,
        bos_token_id: Some(BOS),
        eos_token_ids: vec![2],
        pad_token_id: Some(0),
        ..Config::default()
    }
}

pub(super) fn sami() -> Objective {
    Objective::Sami { sides: Sides::Both, length_norm: LengthNorm::Mean }
}

pub(super) fn settings(objective: Objective) -> TrainSettings {
    TrainSettings {
        objective,
        batch: 3,
        steps: 4,
        optimizer: OptimizerSettings::new(OptimizerName::AdamW, 1e-2),
        schedule: Schedule { name: ScheduleName::Cosine, warmup: 2, floor: 0.1, ..Schedule::default() },
        clip: 1.0,
        kl_weight: 0.0,
        kl_over: KlOver::Cells,
        kl_budget: None,
        seed: 5,
        probe_every: None,
        micro_batch: None,
        compute: Compute::F32,
        lora: None,
        responses_each: 1,
        accumulation: Accumulation::default(),
        weights: Weights::default(),
        activation_checkpointing: Some(false),
    }
}

/// Queries with `count` prompts and responses of random tokens and lengths.
fn queries(queries: usize, count: usize) -> Vec<Example> {
    several(queries, count, 1)
}

/// The same with so many responses to each prompt.
fn several(queries: usize, count: usize, each: usize) -> Vec<Example> {
    let mut stream = Stream::new(11, "queries");
    let mut text = |least: usize| -> Vec<u32> {
        let length = least + stream.below(5);
        (0..length).map(|_| 3 + stream.below(21) as u32).collect()
    };
    (0..queries)
        .map(|query| {
            let prompts: Vec<_> = (0..count).map(|_| [vec![BOS], text(2)].concat()).collect();
            let responses: Vec<_> = (0..count * each).map(|_| text(1)).collect();
            let sequences = prompts.iter().flat_map(|prompt| {
                let joined = |response: &Vec<u32>| [&prompt[..], response].concat();
                responses.iter().map(move |response| Sequence { ids: joined(response), prompt: prompt.len() })
            });
            Example { id: format!("query-{query}"), sequences: sequences.collect() }
        })
        .collect()
}

fn texts(count: usize) -> Vec<Example> {
    queries(count, 2)
        .into_iter()
        .map(|mut example| {
            example.sequences.truncate(1);
            example
        })
        .collect()
}

fn weights() -> BTreeMap<String, Tensor> {
    Model::random(config(), 7, &Device::Cpu).expect("makes").weights().clone()
}

fn trainer(settings: &TrainSettings, examples: &[Example]) -> Trainer {
    Trainer::of_weights(config(), weights(), None, examples.to_vec(), settings.clone()).expect("gets ready")
}

fn run(mut trainer: Trainer) -> Trainer {
    while !trainer.done() {
        trainer.step().expect("steps");
    }
    trainer
}

/// The bytes of the model that a trainer saves.
fn saved(trainer: &Trainer) -> Vec<u8> {
    let directory = tempfile::tempdir().expect("a directory");
    trainer.save(directory.path()).expect("saves");
    fs_err::read(directory.path().join("model.safetensors")).expect("there")
}

fn gradient(trainer: &Trainer, indices: &[usize], keep: Keep) -> (f64, BTreeMap<String, Vec<f32>>) {
    let noisy = trainer.model().noisy(9);
    let policy =
        if trainer.model().adapters().values().any(|one| one.dropout > 0.0) { &noisy } else { trainer.model() };
    let examples: Vec<&Example> = indices.iter().map(|index| &trainer.examples[*index]).collect();
    let totals = Totals::of(examples.iter().copied(), trainer.settings.form());
    let work = Work { policy, indices, examples: &examples, totals, keep };
    let gathered = trainer.passes(&work, 0..examples.len()).expect("gathers").expect("is finite");
    let flat = |gradient: &Tensor| gradient.flatten_all()?.to_dtype(DType::F32)?.to_vec1();
    let flat = |gradient: &Tensor| flat(gradient).unwrap_or_else(|error: candle_core::Error| panic!("{error}"));
    let gradients = gathered.gradients.finish(&trainer.policy.parameters).expect("all there");
    let by_name = gradients.iter().map(|(name, gradient)| (name.clone(), flat(gradient)));
    (gathered.objective, by_name.collect())
}

#[test]
fn interrupted_at_any_step_it_ends_in_the_same_bits() {
    let eight = OptimizerSettings { state_bits: 8, ..OptimizerSettings::new(OptimizerName::AdamW, 1e-3) };
    let rmsprop = OptimizerSettings { weight_decay: 0.1, ..OptimizerSettings::new(OptimizerName::RmsProp, 1e-3) };
    // Wide enough for moments of eight bits.
    let wide = Config { hidden_size: 64, intermediate_size: 96, head_dim: 32, ..config() };
    let lora = LoraSettings { rank: 4, dropout: 0.2, ..LoraSettings::default() };
    let plain = LoraSettings { rank: 4, ..LoraSettings::default() };
    let preferences = dpo::dpo(Directions::Both);
    for (config, settings, examples) in [
        (config(), TrainSettings { lora: Some(lora), probe_every: Some(3), ..settings(sami()) }, queries(5, 2)),
        (config(), TrainSettings { kl_weight: 0.1, kl_budget: Some(1e9), ..settings(sami()) }, queries(5, 2)),
        (config(), TrainSettings { optimizer: rmsprop, ..settings(Objective::Likelihood) }, texts(5)),
        (wide, TrainSettings { optimizer: eight, ..settings(sami()) }, queries(5, 2)),
        (config(), TrainSettings { weights: Weights::Bf16, ..settings(preferences) }, queries(5, 2)),
        (config(), TrainSettings { lora: Some(plain), kl_weight: 0.1, ..settings(preferences) }, queries(5, 3)),
    ] {
        let weights = Model::random(config.clone(), 7, &Device::Cpu).expect("makes").weights().clone();
        let trainer = |settings: &TrainSettings, examples: &[Example]| {
            Trainer::of_weights(config.clone(), weights.clone(), None, examples.to_vec(), settings.clone())
                .expect("gets ready")
        };
        let straight = run(trainer(&settings, &examples));
        let wanted = saved(&straight);
        assert_ne!(wanted, saved(&trainer(&settings, &examples)), "training changes the weights");
        for stop in 0..=settings.steps {
            let directory = tempfile::tempdir().expect("a directory");
            let mut first = trainer(&settings, &examples);
            for _ in 0..stop {
                first.step().expect("steps");
            }
            first.checkpoint(directory.path()).expect("writes");
            // Whatever is done after the checkpoint is lost and done again.
            if !first.done() {
                first.step().expect("steps");
            }
            drop(first);
            let mut second = trainer(&settings, &examples);
            assert!(second.resume(directory.path()).expect("reads"));
            assert_eq!(second.step_count(), stop);
            let second = run(second);
            assert_eq!(second.records(), straight.records());
            assert!(saved(&second) == wanted, "stopped after step {stop}");
        }
    }
}

#[test]
fn torn_and_foreign_checkpoints_are_ignored() {
    let (settings, examples) = (settings(sami()), queries(4, 2));
    let directory = tempfile::tempdir().expect("a directory");
    let mut first = trainer(&settings, &examples);
    assert!(!first.resume(directory.path()).expect("there is none"));
    first.step().expect("steps");
    first.checkpoint(directory.path()).expect("writes");

    let mut more_examples = examples.clone();
    more_examples[0].sequences[0].ids.push(5);
    let mut other_weights = weights();
    let norm = other_weights.get_mut("model.norm.weight").expect("there");
    *norm = (&*norm * 2.0).expect("computes");
    let reference = Model::frozen(config(), weights()).expect("fits");
    let foreign = [
        trainer(&TrainSettings { seed: 6, ..settings.clone() }, &examples),
        trainer(&TrainSettings { steps: 9, ..settings.clone() }, &examples),
        trainer(&settings, &more_examples),
        Trainer::of_weights(config(), other_weights, None, examples.clone(), settings.clone()).expect("gets ready"),
        Trainer::of_weights(config(), weights(), Some(reference), examples.clone(), settings.clone())
            .expect("gets ready"),
    ];
    for mut other in foreign {
        let before = saved(&other);
        assert!(!other.resume(directory.path()).expect("reads"), "{:?}", other.settings);
        assert!(other.step_count() == 0 && saved(&other) == before);
    }
    assert!(trainer(&settings, &examples).resume(directory.path()).expect("reads"));

    let path = directory.path().join("checkpoint.safetensors");
    let whole = fs_err::read(&path).expect("there");
    fs_err::write(&path, &whole[..whole.len() / 3]).expect("writes");
    assert!(!trainer(&settings, &examples).resume(directory.path()).expect("reads"), "torn");
}

#[test]
fn passes_add_up_to_one_large_batch() {
    let kl = |over| TrainSettings { kl_weight: 0.5, kl_over: over, ..settings(sami()) };
    let lora = Some(LoraSettings { rank: 4, dropout: 0.3, ..LoraSettings::default() });
    let preferences = settings(dpo::dpo(Directions::Both));
    let twice = TrainSettings { responses_each: 2, ..settings(sami()) };
    for (settings, examples) in [
        (settings(sami()), queries(5, 3)),
        (TrainSettings { kl_weight: 0.5, ..preferences }, queries(5, 3)),
        (twice, several(5, 2, 2)),
        (TrainSettings { lora, ..settings(sami()) }, queries(5, 2)),
        (kl(KlOver::Cells), queries(5, 2)),
        (kl(KlOver::Diagonal), queries(5, 2)),
        (settings(Objective::Likelihood), texts(5)),
    ] {
        let reference = || Some(Model::random(config(), 8, &Device::Cpu).expect("makes"));
        let cut = |micro_batch| {
            let reference = if settings.kl_weight > 0.0 { reference() } else { None };
            let settings = TrainSettings { micro_batch, ..settings.clone() };
            let mut trainer =
                Trainer::of_weights(config(), weights(), reference, examples.clone(), settings).expect("gets ready");
            while !trainer.prepare().expect("computes") {}
            gradient(&trainer, &[0, 1, 2, 3, 4], Keep::Everything)
        };
        let (loss, whole) = cut(None);
        assert!(whole.values().flatten().any(|number| number.abs() > 1e-3));
        // Several examples to a pass, one, and part of one.
        for micro_batch in [8, 4, 3, 1] {
            let (cut_loss, cut) = cut(Some(micro_batch));
            assert!((loss - cut_loss).abs() < 1e-6, "{loss} is not {cut_loss}");
            for (name, numbers) in &whole {
                let apart = numbers.iter().zip(&cut[name]).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max);
                assert!(apart < 1e-5, "{micro_batch} to a pass: `{name}` is {apart} apart");
            }
        }
    }
}

#[test]
fn gradient_is_that_of_finite_differences() {
    let examples = queries(2, 2);
    let settings = TrainSettings { kl_weight: 0.3, ..settings(sami()) };
    let loss = |weights: BTreeMap<String, Tensor>| {
        let reference = Model::random(config(), 8, &Device::Cpu).expect("makes");
        let settings = TrainSettings { batch: 2, ..settings.clone() };
        let mut trainer =
            Trainer::of_weights(config(), weights, Some(reference), examples.clone(), settings).expect("gets ready");
        let (_, gradient) = gradient(&trainer, &[0, 1], Keep::Everything);
        (trainer.step().expect("steps").loss, gradient)
    };
    let (_, gradient) = loss(weights());
    for (name, gradient) in gradient {
        // Along the gradient itself the slope is its norm; f32 leaves about three digits of it.
        let norm = gradient.iter().map(|number| number * number).sum::<f32>().sqrt();
        assert!(norm > 1e-6, "`{name}` has no gradient");
        let moved = |by: f32| {
            let mut weights = weights();
            let weight = weights.get_mut(&name).expect("there");
            let direction: Vec<f32> = gradient.iter().map(|number| by * number / norm).collect();
            let direction = Tensor::from_vec(direction, weight.shape(), &Device::Cpu).expect("fits");
            *weight = (&*weight + direction).expect("computes");
            loss(weights).0
        };
        let slope = (moved(2e-3) - moved(-2e-3)) / 4e-3;
        let off = (slope / f64::from(norm) - 1.0).abs();
        assert!(off < 1e-2, "`{name}`: slope {slope}, norm {norm}");
    }
}

#[test]
fn threads_change_no_bit() {
    let settings = TrainSettings { kl_weight: 0.1, kl_budget: Some(1e9), ..settings(sami()) };
    let wanted: Vec<_> = [1, 2, 5]
        .map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            pool.install(|| {
                let trainer = run(trainer(&settings, &queries(5, 2)));
                (saved(&trainer), trainer.records)
            })
        })
        .into();
    assert!(wanted[0] == wanted[1] && wanted[1] == wanted[2]);
}

#[test]
fn likelihood_is_that_of_the_model_and_falls() {
    let examples = texts(6);
    let settings = TrainSettings { batch: 6, steps: 60, ..settings(Objective::Likelihood) };
    let mut trainer = trainer(&settings, &examples);
    let sequences: Vec<_> = examples.iter().map(|example| example.sequences[0].clone()).collect();
    let logprobs = response_logprobs(trainer.model(), &sequences).expect("scores").concat();
    let wanted = -sum(&logprobs) / logprobs.len() as f64;
    let record = trainer.step().expect("steps");
    assert!((record.loss - wanted).abs() < 1e-6, "{} is not {wanted}", record.loss);
    assert_eq!(record.tokens as usize, sequences.iter().map(|one| one.ids.len()).sum::<usize>());
    assert!((record.mean_length - logprobs.len() as f64 / 6.0).abs() < 1e-12);
    assert_eq!((record.bound, record.kl, record.probe_kl), (None, None, None));
    let last = run(trainer).records.last().expect("there").loss;
    assert!(last < 0.3 * wanted, "from {wanted} to {last}");
}

#[test]
fn learning_rate_follows_the_schedule_and_the_gradient_is_clipped() {
    let clipped = TrainSettings {
        optimizer: OptimizerSettings::new(OptimizerName::RmsProp, 1e-2),
        clip: 1e-3,
        ..settings(sami())
    };
    let mut trainer = trainer(&clipped, &queries(4, 2));
    let record = trainer.step().expect("steps");
    assert!(record.gradient_norm > 1e-3, "the norm is that before clipping");
    // The squares of the clipped gradient add up to the square of its norm, 1e-6, and RMSprop keeps 1% of them.
    let state = trainer.optimizer.state().expect("reads");
    let squares = |(_, second): &(String, Numbers<'_>)| match second {
        Numbers::F32(second) => sum(second),
        Numbers::U8(_) => panic!("eight bits were not asked for"),
    };
    let squares: f64 = state.iter().map(squares).sum();
    assert!((squares / 1e-8 - 1.0).abs() < 5e-3, "{squares}");
    let rates: Vec<f64> = run(trainer).records.iter().map(|record| record.learning_rate).collect();
    let wanted: Vec<f64> = (0..4).map(|step| 1e-2 * clipped.schedule.factor(step, 4)).collect();
    assert_eq!(rates, wanted);
}

#[test]
fn loss_that_is_not_finite_is_an_error_and_leaves_the_weights_alone() {
    let mut examples = texts(4);
    for example in &mut examples {
        example.sequences[0].ids.iter_mut().for_each(|id| *id = (*id).min(22));
    }
    examples[2].sequences[0].ids[1] = 23;
    let mut broken = weights();
    let embedding = &broken["model.embed_tokens.weight"];
    let mut numbers: Vec<f32> = embedding.flatten_all().and_then(|flat| flat.to_vec1()).expect("f32");
    numbers[23 * 16] = f32::NAN;
    let embedding = Tensor::from_vec(numbers, embedding.shape(), &Device::Cpu).expect("fits");
    // The head is apart, or one NaN in it would reach every example.
    let config = Config { tie_word_embeddings: false, ..config() };
    broken.insert("lm_head.weight".to_owned(), embedding.zeros_like().expect("zeros"));
    broken.insert("model.embed_tokens.weight".to_owned(), embedding);
    let settings = TrainSettings { batch: 1, ..settings(Objective::Likelihood) };
    let mut trainer = Trainer::of_weights(config, broken, None, examples, settings).expect("gets ready");
    let error = loop {
        let before = saved(&trainer);
        match trainer.step() {
            Ok(_) => assert!(trainer.step_count() < 4, "the broken example never came up"),
            Err(error) => {
                assert!(saved(&trainer) == before, "the weights moved");
                break error;
            }
        }
    };
    let LmError::NotFinite { step, examples, .. } = &error else { panic!("{error}") };
    assert_eq!((*step, &examples[..]), (trainer.step_count() + 1, &["query-2".to_owned()][..]));
    assert!(error.to_string().contains("query-2"), "{error}");
}

/// Two constitutions that want opposite words; each query is a word of its own, and the last ones are held out.
#[test]
fn opposite_constitutions_are_told_apart_on_held_out_queries() {
    let mut stream = Stream::new(3, "toy");
    let mut queries = |words: std::ops::Range<u32>, each: usize| -> Vec<Example> {
        let mut examples = Vec::new();
        for (word, turn) in words.flat_map(|word| (0..each).map(move |turn| (word, turn))) {
            // Constitution 3 wants words of 5–7, constitution 4 those of 8–10.
            let mut response = |from: u32| -> Vec<u32> {
                let length = 2 + stream.below(3);
                (0..length).map(|_| from + stream.below(3) as u32).collect()
            };
            let responses = [response(5), response(8)];
            let sequences = [3, 4].into_iter().flat_map(|constitution| {
                let prompt = [BOS, constitution, word];
                responses.iter().map(move |response| Sequence { ids: [&prompt[..], response].concat(), prompt: 3 })
            });
            examples.push(Example { id: format!("{word}-{turn}"), sequences: sequences.collect() });
        }
        examples
    };
    let (seen, held_out) = (queries(11..20, 4), queries(20..24, 4));
    let judge = |model: &Model| {
        let figures: Vec<Contrast> = held_out
            .iter()
            .map(|example| {
                let logprobs = response_logprobs(model, &example.sequences).expect("scores");
                let sums: Vec<f64> = logprobs.iter().map(|logprobs| sum(logprobs)).collect();
                let means: Vec<f64> = logprobs.iter().map(|logprobs| sum(logprobs) / logprobs.len() as f64).collect();
                Contrast::new(&means, &sums).expect("sound")
            })
            .collect();
        Contrast::mean(&figures).expect("some")
    };
    let settings = TrainSettings {
        batch: 12,
        steps: 60,
        schedule: Schedule { warmup: 5, ..Schedule::default() },
        ..settings(sami())
    };
    let trainer = trainer(&settings, &seen);
    let before = judge(trainer.model());
    let trainer = run(trainer);
    let after = judge(trainer.model());
    let (first, last) = (&trainer.records()[0], trainer.records().last().expect("there"));
    let ceiling = 2f64.ln();
    assert!((first.loss - ceiling).abs() < 0.1, "it starts near ln 2: {first:?}");
    assert!(last.loss < 0.2 && last.accuracy_row == Some(1.0) && last.accuracy_column == Some(1.0), "{last:?}");
    assert!(last.logprob_diagonal > last.logprob_off_diagonal, "{last:?}");
    assert!(before.bound < 0.1 && after.bound > 0.9 * ceiling && after.bound <= ceiling, "{before:?} {after:?}");
    assert_eq!((after.accuracy_row, after.accuracy_column), (1.0, 1.0), "{after:?}");
    assert!(f64::midpoint(after.loss_row, after.loss_column) < 0.5 * ceiling, "{after:?}");
}

#[test]
fn records_are_lines_that_read_back() {
    let records = run(trainer(&settings(sami()), &queries(3, 2))).records;
    for record in records {
        let line = serde_json::to_string(&record).expect("writes");
        assert!(line.starts_with(r#"{"step":"#) && line.contains(r#""bound":"#) && !line.contains("kl"), "{line}");
        assert_eq!(serde_json::from_str::<StepRecord>(&line).expect("reads"), record);
    }
}

#[test]
fn model_on_disk_is_trained_and_saved_and_loads_again() {
    let (directory, made) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let files = |directory: &Path| -> Files {
        let names = ["config.json", "generation_config.json", "model.safetensors"];
        names.map(|name| (name.to_owned(), directory.join(name))).into()
    };
    Model::random(config(), 7, &Device::Cpu).and_then(|model| model.save(directory.path())).expect("saves");
    let (settings, examples) = (settings(sami()), queries(3, 2));
    let files_of_base = files(directory.path());
    let mut trained =
        Trainer::new(&files_of_base, Some(&files_of_base), examples.clone(), settings.clone(), &Device::Cpu)
            .expect("gets ready");
    assert!(trained.step().expect("steps").kl.is_some(), "a reference that is given is measured against");
    trained.save(made.path()).expect("saves");
    let loaded = Model::load(&files(made.path()), &Device::Cpu).expect("loads");
    let logprobs = |model| response_logprobs(model, &examples[0].sequences).expect("scores");
    assert_eq!(logprobs(&loaded), logprobs(trained.model()));
    assert_ne!(logprobs(&loaded), logprobs(trained.reference.as_ref().expect("given")));

    let other = Model::random(Config { vocab_size: 25, ..config() }, 7, &Device::Cpu).expect("makes");
    let error = Trainer::of_weights(config(), weights(), Some(other), examples, settings).expect_err("other words");
    assert!(error.to_string().contains("24 and 25"), "{error}");
}
