use std::collections::BTreeSet;

use super::super::cpu::{Gradients, Keep, Scored};
use super::super::graph::Scores;
use super::super::logprobs::plain_scores;
use super::super::train::tests::config;
use super::super::{Model, Sequence};
use super::*;

fn settings(rank: usize, targets: &[&str]) -> LoraSettings {
    let targets = match targets {
        [] => Targets::default(),
        named => Targets::Named(named.iter().map(|name| (*name).to_owned()).collect()),
    };
    LoraSettings { rank, alpha: 12.0, dropout: 0.0, targets }
}

fn base() -> Model {
    Model::random(config(), 7, &Device::Cpu).expect("makes")
}

/// A model with adapters that change something, and their variables.
fn adapted(settings: &LoraSettings) -> (Model, BTreeMap<String, Var>) {
    let (adapters, variables) = fresh(settings, &config(), 3, &Device::Cpu).expect("makes");
    for (name, variable) in variables.iter().filter(|(name, _)| name.contains("lora_B")) {
        let mut stream = Stream::new(1, name);
        let values: Vec<f32> = (0..variable.elem_count()).map(|_| stream.normal() * 0.2).collect();
        variable.set(&Tensor::from_vec(values, variable.shape(), &Device::Cpu).expect("fits")).expect("sets");
    }
    (base().adapted(adapters).expect("fits"), variables)
}

fn sequences() -> Vec<Sequence> {
    let mut stream = Stream::new(2, "sequences");
    let mut ids = |count| -> Vec<u32> { (0..count).map(|_| stream.below(24) as u32).collect() };
    let shared = ids(10);
    let mut all: Vec<Sequence> =
        (0..3).map(|more| Sequence { ids: [shared.clone(), ids(2 + more)].concat(), prompt: 10 }).collect();
    all.push(Sequence { ids: ids(30), prompt: 3 });
    all
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().expect("flat").to_vec1().expect("f32")
}

fn largest(of: impl Iterator<Item = f32>) -> f32 {
    of.map(f32::abs).fold(0.0, f32::max)
}

#[test]
fn fresh_ones_change_nothing_and_have_the_usual_spread() {
    let (adapters, variables) = fresh(&settings(4, &[]), &config(), 3, &Device::Cpu).expect("makes");
    assert_eq!((adapters.len(), variables.len()), (14, 28), "seven linear layers each, no norm, no head");
    let of = |model: &Model| numbers(&plain_scores(model, None, &sequences()).expect("scores").0);
    assert_eq!(of(&base()), of(&base().adapted(adapters.clone()).expect("fits")));
    let a = &adapters["model.layers.1.mlp.gate_proj"];
    assert_eq!((a.a.dims(), a.b.dims(), a.scale), (&[4, 16][..], &[32, 4][..], 3.0));
    let numbers = numbers(&a.a);
    assert!(largest(numbers.iter().copied()) <= 0.25 && largest(numbers.iter().copied()) > 0.2);
    let (only, _) = fresh(&settings(2, &["q_proj", "v_proj"]), &config(), 3, &Device::Cpu).expect("makes");
    let last: BTreeSet<&str> = only.keys().filter_map(|name| name.rsplit('.').next()).collect();
    assert!(only.len() == 4 && last == ["q_proj", "v_proj"].into());
    let error = fresh(&settings(2, &["qkv"]), &config(), 3, &Device::Cpu).expect_err("none").to_string();
    assert!(error.contains("`qkv`") && error.contains("down_proj, gate_proj"), "{error}");
}

#[test]
fn passes_and_gradients_equal_the_plain_ones_and_the_frozen_weights_have_none() {
    for settings in [settings(4, &[]), settings(3, &["k_proj", "o_proj", "down_proj"])] {
        let (model, variables) = adapted(&settings);
        let (logprobs, _) = plain_scores(&model, None, &sequences()).expect("scores");
        let slopes: Vec<f32> = (0..logprobs.elem_count()).map(|at| (at as f32 * 1.3).sin()).collect();
        let loss = (&logprobs * Tensor::new(&slopes[..], &Device::Cpu).expect("fits")).expect("product");
        let plain = loss.sum_all().and_then(|loss| loss.backward()).expect("has a backward");

        let mut scored = Scored::new(&model, None, &sequences(), Keep::Inputs).expect("scores");
        let (ours, _) = scored.take();
        let off = largest(ours.iter().zip(numbers(&logprobs)).map(|(one, other)| one - other));
        assert!(off < 1e-4, "{off}");
        let unlike = plain_scores(&base(), None, &sequences()).expect("scores").0;
        assert!(largest(ours.iter().zip(numbers(&unlike)).map(|(one, other)| one - other)) > 0.05, "it does something");
        let mut gradients = Gradients::default();
        scored.backward(&slopes, &[], &mut gradients).expect("computes");
        for (name, variable) in &variables {
            let plain = numbers(plain.get(variable).expect("a gradient reaches it"));
            let ours = gradients.take(name).expect("a gradient reaches it");
            let norm = plain.iter().map(|x| x * x).sum::<f32>().sqrt();
            let off = ours.iter().zip(&plain).map(|(one, other)| (one - other).powi(2)).sum::<f32>().sqrt();
            assert!(norm > 1e-3 && off < 1e-4 * norm, "{name}: {off} of {norm}");
        }
        for name in model.weights().keys() {
            assert!(gradients.take(name).is_none(), "{name} is frozen");
        }
    }
}

#[test]
fn merged_files_and_files_beside_the_base_give_the_same_model() {
    let settings = settings(4, &["q_proj", "up_proj"]);
    let (model, _) = adapted(&settings);
    let directory = tempfile::tempdir().expect("a directory");
    let folder = directory.path().join(FOLDER);
    fs_err::create_dir(&folder).expect("makes");
    base().save(directory.path()).expect("saves");
    save(&folder, &settings, model.adapters(), "").expect("saves");
    let mut files: Files = ["config.json", "generation_config.json", "model.safetensors"]
        .map(|name| (name.to_owned(), directory.path().join(name)))
        .into();
    let scores = |model: &Model| numbers(&plain_scores(model, None, &sequences()).expect("scores").0);
    assert_eq!(scores(&Model::load(&files, &Device::Cpu).expect("loads")), scores(&base()));
    for name in [CONFIG, WEIGHTS] {
        files.insert(format!("{FOLDER}/{name}"), folder.join(name));
    }
    let loaded = Model::load(&files, &Device::Cpu).expect("loads");
    assert_eq!(scores(&loaded), scores(&model));
    let mut weights = base().weights().clone();
    merge(&mut weights, loaded.adapters()).expect("merges");
    let merged = scores(&Model::new(config(), weights).expect("fits"));
    let off = largest(merged.iter().zip(scores(&model)).map(|(one, other)| one - other));
    assert!(off < 1e-4, "{off}");

    let text = fs_err::read_to_string(folder.join(CONFIG)).expect("there");
    fs_err::write(folder.join(CONFIG), text.replace("\"use_dora\": false", "\"use_dora\": true")).expect("writes");
    let error = Model::load(&files, &Device::Cpu).expect_err("other kind").to_string();
    assert!(error.contains("adapter/adapter_config.json"), "{error}");
    fs_err::write(folder.join(CONFIG), text.replace("\"r\": 4", "\"r\": 5")).expect("writes");
    let error = Model::load(&files, &Device::Cpu).expect_err("other rank").to_string();
    assert!(error.contains("lora_A") && error.contains("[5, 16]"), "{error}");
}

#[test]
fn adapters_that_do_not_fit_are_refused() {
    let (mut adapters, _) = fresh(&settings(4, &["q_proj"]), &config(), 3, &Device::Cpu).expect("makes");
    let one = adapters.remove("model.layers.0.self_attn.q_proj").expect("there");
    let named = |name: &str| -> Adapters { [(name.to_owned(), one.clone())].into() };
    let error = base().adapted(named("model.layers.9.self_attn.q_proj")).expect_err("no such layer").to_string();
    assert!(error.contains("model.layers.9"), "{error}");
    let error = base().adapted(named("model.layers.0.mlp.down_proj")).expect_err("another shape").to_string();
    assert!(error.contains("[r, 32]"), "{error}");
}
