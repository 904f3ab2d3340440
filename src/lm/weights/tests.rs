use std::path::PathBuf;

use super::*;
use crate::lm::Model;

fn config() -> Config {
    Config {
        vocab_size: 10,
        hidden_size: 8,
        intermediate_size: 12,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 4,
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        max_position_embeddings: 16,
        tie_word_embeddings: false,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        pad_token_id: None,
        ..Config::default()
    }
}

/// A saved model in a directory of its own, its weights under a name that says nothing.
fn saved() -> (tempfile::TempDir, PathBuf, BTreeMap<String, Tensor>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("3f9c");
    let weights = Model::random(config(), 1, &Device::Cpu).unwrap().weights().clone();
    save(&path, &weights).unwrap();
    (directory, path, weights)
}

fn single(path: &Path) -> Files {
    Files::from([(SINGLE.to_owned(), path.to_owned())])
}

fn numbers(tensors: &BTreeMap<String, Tensor>) -> Vec<Vec<f32>> {
    tensors.values().map(|tensor| tensor.flatten_all().unwrap().to_vec1().unwrap()).collect()
}

/// Cuts a file into its header and the rest, and puts it together with another header.
fn with_header(path: &Path, change: impl FnOnce(&mut Value)) -> Files {
    let bytes = fs_err::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    change(&mut header);
    let header = header.to_string();
    let changed = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes[8 + length..]].concat();
    let path = path.with_extension("changed");
    fs_err::write(&path, changed).unwrap();
    single(&path)
}

fn error(files: &Files) -> String {
    load(files, &config(), &Device::Cpu).unwrap_err().to_string()
}

#[test]
fn what_is_saved_is_loaded_and_has_the_same_bytes() {
    let (directory, path, weights) = saved();
    let loaded = load(&single(&path), &config(), &Device::Cpu).unwrap();
    assert_eq!(numbers(&loaded), numbers(&weights));
    let again = directory.path().join("again");
    save(&again, &loaded).unwrap();
    assert_eq!(fs_err::read(&again).unwrap(), fs_err::read(&path).unwrap());
    // The reference implementation reads it.
    let bytes = fs_err::read(&path).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(theirs.len(), weights.len());
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
}

#[test]
fn shards_and_narrow_types_are_loaded() {
    let (directory, _, weights) = saved();
    let mut map = BTreeMap::new();
    let mut files = Files::new();
    for (index, dtype) in [DType::BF16, DType::F16, DType::F64].into_iter().enumerate() {
        let name = format!("model-{index}.safetensors");
        let part = weights.iter().skip(index).step_by(3);
        let tensors: Vec<(&String, Tensor)> =
            part.map(|(name, tensor)| (name, tensor.to_dtype(dtype).unwrap())).collect();
        map.extend(tensors.iter().map(|(tensor, _)| ((*tensor).clone(), name.clone())));
        let path = directory.path().join(format!("blob{index}"));
        safetensors::serialize_to_file(tensors, None, &path).unwrap();
        files.insert(name, path);
    }
    let index = directory.path().join("index");
    fs_err::write(&index, json!({"weight_map": map}).to_string()).unwrap();
    files.insert(INDEX.to_owned(), index.clone());
    let loaded = load(&files, &config(), &Device::Cpu).unwrap();
    for (name, tensor) in &weights {
        let difference =
            (tensor - &loaded[name]).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(difference < 4e-3, "{name}: {difference}");
    }
    let shard = files.remove("model-1.safetensors").unwrap();
    assert_eq!(error(&files), "the model has no `model-1.safetensors`");
    fs_err::write(&shard, b"").unwrap();
    files.insert("model-1.safetensors".to_owned(), shard);
    assert_eq!(error(&files), "the weights `model-1.safetensors` are damaged: the file has 0 bytes");
    map.remove("model.embed_tokens.weight");
    fs_err::write(&index, json!({"weight_map": map}).to_string()).unwrap();
    assert_eq!(error(&files), "the weights have no tensor `model.embed_tokens.weight`");
    fs_err::write(&index, "[]").unwrap();
    assert!(error(&files).starts_with("`model.safetensors.index.json` cannot be read"));
}

#[test]
fn a_file_cut_short_anywhere_is_an_error() {
    let (_directory, path, _) = saved();
    let bytes = fs_err::read(&path).unwrap();
    let cut = path.with_extension("cut");
    for length in (0..bytes.len()).step_by(97).chain([7, 8, 9, bytes.len() - 1]) {
        fs_err::write(&cut, &bytes[..length]).unwrap();
        let error = error(&single(&cut));
        assert!(error.starts_with("the weights `model.safetensors` are damaged"), "{length}: {error}");
    }
}

#[test]
fn a_header_that_lies_is_an_error() {
    let (_directory, path, _) = saved();
    let name = "model.norm.weight";
    let lie = |field: &str, value: Value| error(&with_header(&path, |header| header[name][field] = value));
    assert!(lie("data_offsets", json!([0, 1_000_000_000])).contains("cut short, or its header lies"));
    assert!(lie("data_offsets", json!([64, 32])).contains("header lies"));
    assert!(lie("data_offsets", json!([0, 31])).contains("should have 32 bytes, the header gives it 31"));
    assert!(lie("data_offsets", json!([-1, 31])).contains("is not readable"));
    assert!(lie("data_offsets", json!([0, u64::MAX])).contains("header lies"));
    assert!(lie("shape", json!([4, 2])).contains("is [4, 2], `config.json` asks for [8]"));
    assert!(lie("shape", json!([u64::MAX])).contains("asks for [8]"));
    assert!(lie("dtype", json!("F16")).contains("should have 16 bytes"));
    assert!(lie("dtype", json!("I32")).contains("is of type I32"));
    assert!(lie("dtype", json!(7)).contains("is not readable"));
    let missing = with_header(&path, |header| drop(header.as_object_mut().unwrap().remove(name)));
    assert_eq!(error(&missing), format!("the weights have no tensor `{name}`"));
    let mut bytes = fs_err::read(&path).unwrap();
    bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs_err::write(&path, &bytes).unwrap();
    assert!(error(&single(&path)).contains("the header should have 18446744073709551615 bytes"));
    bytes[..8].copy_from_slice(&20u64.to_le_bytes());
    fs_err::write(&path, &bytes).unwrap();
    assert!(error(&single(&path)).contains("the header is not readable"));
}

#[test]
fn weights_that_are_not_there_are_an_error() {
    assert_eq!(error(&Files::new()), "the model has no `model.safetensors`");
    let pickled = Files::from([("pytorch_model.bin".to_owned(), PathBuf::from("nowhere"))]);
    assert!(error(&pickled).contains("`pytorch_model.bin` are in PyTorch's own format"));
    let gone = single(Path::new("/nowhere/at/all"));
    assert!(error(&gone).contains("/nowhere/at/all"));
}

#[test]
fn numbers_that_are_none_are_an_error() {
    let (_directory, path, mut weights) = saved();
    for (value, what) in
        [(f32::NAN, "NaN"), (f32::INFINITY, "infinite numbers"), (f32::NEG_INFINITY, "infinite numbers")]
    {
        for (at, name) in [(0, "model.norm.weight"), (95, "model.layers.0.mlp.up_proj.weight")] {
            let whole = weights[name].clone();
            let mut numbers: Vec<f32> = whole.flatten_all().unwrap().to_vec1().unwrap();
            numbers[at] = value;
            weights.insert(name.to_owned(), Tensor::from_vec(numbers, whole.shape(), &Device::Cpu).unwrap());
            save(&path, &weights).unwrap();
            assert_eq!(error(&single(&path)), format!("the tensor `{name}` has {what}"));
            weights.insert(name.to_owned(), whole);
        }
    }
}

#[test]
fn weights_of_layers_that_are_not_there_are_an_error() {
    let (_directory, path, weights) = saved();
    let with = |name: &str| {
        let mut more = weights.clone();
        more.insert(name.to_owned(), Tensor::zeros(8, DType::F32, &Device::Cpu).unwrap());
        save(&path, &more).unwrap();
        load(&single(&path), &config(), &Device::Cpu).map_err(|error| error.to_string())
    };
    for name in ["model.layers.0.self_attn.q_proj.bias", "model.layers.1.input_layernorm.weight"] {
        let error = with(name).unwrap_err();
        assert!(error.starts_with(&format!("the weights have a tensor `{name}`, which a llama model")), "{error}");
    }
    // Old checkpoints have these; they hold nothing that `config.json` does not say.
    assert!(with("model.layers.0.self_attn.rotary_emb.inv_freq").is_ok());
}
