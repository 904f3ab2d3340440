//! The language model against others: candle-transformers on random weights, and real pretrained models.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, mistral};
use sami::env;
use sami::lm::{self, Config, Files, Model, Prompt, SamplingSettings, Tokenizer};

fn config(model_type: &str, kv_heads: usize, tie: bool, window: Option<usize>) -> Config {
    Config {
        model_type: model_type.to_owned(),
        vocab_size: 97,
        hidden_size: 48,
        intermediate_size: 80,
        num_hidden_layers: 3,
        num_attention_heads: 6,
        num_key_value_heads: kv_heads,
        head_dim: 8,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        max_position_embeddings: 64,
        tie_word_embeddings: tie,
        sliding_window: window,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        pad_token_id: None,
    }
}

/// Random weights with norms that are not all 1, so that a norm in the wrong place shows.
fn weights(config: &Config, seed: u64) -> BTreeMap<String, Tensor> {
    let model = Model::random(config.clone(), seed, &Device::Cpu).expect("a valid configuration");
    let mut weights = model.weights().clone();
    for (index, (name, tensor)) in weights.iter_mut().enumerate() {
        if name.contains("norm") {
            let values = (0..tensor.elem_count()).map(|at| 0.7 + 0.6 * ((at * 7 + index * 3) % 11) as f32 / 10.0);
            *tensor = Tensor::from_iter(values, &Device::Cpu).expect("a tensor");
        } else {
            // Larger than at the start of training, so that attention is not nearly uniform.
            *tensor = (&*tensor * 2.0).expect("a tensor");
        }
    }
    weights
}

fn ids(length: usize, seed: usize) -> Vec<u32> {
    (0..length).map(|at| ((at * at * 31 + at * 17 + seed * 53 + 5) % 97) as u32).collect()
}

fn builder(weights: &BTreeMap<String, Tensor>) -> VarBuilder<'static> {
    let weights: HashMap<String, Tensor> =
        weights.iter().map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
    VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu)
}

/// The largest difference between our logits after each prefix and theirs.
fn largest_difference(model: &Model, mut theirs: impl FnMut(&Tensor) -> Tensor) -> f32 {
    let mut largest = 0f32;
    for length in [1, 2, 7, 20, 33] {
        let ids = ids(length, length);
        let ours = model.next_logits(&[&ids]).expect("a short prompt").remove(0);
        let input = Tensor::new(ids.as_slice(), &Device::Cpu).and_then(|ids| ids.unsqueeze(0)).expect("a tensor");
        let theirs = theirs(&input).flatten_all().and_then(|logits| logits.to_vec1::<f32>()).expect("logits");
        assert_eq!(ours.len(), theirs.len());
        assert!(theirs.iter().any(|logit| logit.abs() > 0.5), "logits of nothing: {theirs:?}");
        largest = ours.iter().zip(&theirs).fold(largest, |most, (a, b)| most.max((a - b).abs()));
    }
    largest
}

#[test]
fn logits_equal_those_of_candle_transformers_llama() {
    for (kv_heads, tie) in [(6, true), (2, false), (1, true)] {
        let config = config("llama", kv_heads, tie, None);
        let weights = weights(&config, 3);
        let model = Model::frozen(config.clone(), weights.clone()).expect("a model");
        let theirs = llama::Config {
            hidden_size: 48,
            intermediate_size: 80,
            vocab_size: 97,
            num_hidden_layers: 3,
            num_attention_heads: 6,
            num_key_value_heads: kv_heads,
            use_flash_attn: false,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            bos_token_id: None,
            eos_token_id: None,
            rope_scaling: None,
            max_position_embeddings: 64,
            tie_word_embeddings: tie,
        };
        let decoder = llama::Llama::load(builder(&weights), &theirs).expect("a model");
        let difference = largest_difference(&model, |ids| {
            let mut cache = llama::Cache::new(false, DType::F32, &theirs, &Device::Cpu).expect("a cache");
            decoder.forward(ids, 0, &mut cache).expect("logits")
        });
        assert!(difference < 1e-4, "{kv_heads} key/value heads, tied {tie}: {difference}");
    }
}

#[test]
fn logits_equal_those_of_candle_transformers_mistral() {
    for window in [None, Some(5), Some(12)] {
        let config = config("mistral", 2, false, window);
        let weights = weights(&config, 4);
        let model = Model::frozen(config.clone(), weights.clone()).expect("a model");
        let theirs = mistral::Config {
            vocab_size: 97,
            hidden_size: 48,
            intermediate_size: 80,
            num_hidden_layers: 3,
            num_attention_heads: 6,
            head_dim: Some(8),
            num_key_value_heads: 2,
            hidden_act: candle_nn::Activation::Silu,
            max_position_embeddings: 64,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            // A window of w means w tokens in `transformers` and w + 1 here.
            sliding_window: window.map(|window| window - 1),
            use_flash_attn: false,
        };
        let mut decoder = mistral::Model::new(&theirs, builder(&weights)).expect("a model");
        let difference = largest_difference(&model, |ids| {
            decoder.clear_kv_cache();
            decoder.forward(ids, 0).expect("logits")
        });
        assert!(difference < 1e-4, "window {window:?}: {difference}");
    }
}

fn data(path: &str) -> Option<PathBuf> {
    let root = env::TEST_DATA
        .get()
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"), PathBuf::from);
    let found = root.join(path);
    if !found.exists() {
        // A test's own words for who runs it with `--nocapture`.
        #[expect(clippy::print_stderr, reason = "a skipped test says so")]
        {
            eprintln!("skipped: there is no {} ({} names another directory)", found.display(), env::TEST_DATA.name);
        }
        return None;
    }
    Some(found)
}

fn files(directory: &Path) -> Files {
    let entries = fs_err::read_dir(directory).expect("a directory");
    let path = |entry: std::io::Result<fs_err::DirEntry>| entry.expect("an entry").path();
    let name = |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
    entries.map(path).filter(|path| path.is_file()).map(|path| (name(&path), path)).collect()
}

#[test]
fn a_real_model_tells_a_story() {
    let Some(directory) = data("models/stories260K") else { return };
    let files = files(&directory);
    let model = Model::load(&files, &Device::Cpu).expect("a model");
    let tokenizer = Tokenizer::load(&files).expect("a tokenizer");
    let prompt = Prompt { ids: tokenizer.prompt("").expect("a prompt"), seed: 0 };
    assert_eq!(prompt.ids, [1]);
    let responses =
        lm::sampling::sample(&model, &tokenizer, &[prompt], &SamplingSettings::greedy(60)).expect("a response");
    // The text that karpathy/llama2.c's `run` gives for this checkpoint at temperature 0.
    let story = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.";
    assert!(responses[0].text.starts_with(story), "{:?}", responses[0]);
}
