use serde_json::json;

use super::*;

fn load(json: &Value) -> Result<Config, LmError> {
    load_with(json, None)
}

fn load_with(json: &Value, generation: Option<&Value>) -> Result<Config, LmError> {
    let directory = tempfile::tempdir().unwrap();
    let mut files = Files::new();
    for (name, json) in [("config.json", Some(json)), ("generation_config.json", generation)] {
        if let Some(json) = json {
            let path = directory.path().join(name.len().to_string());
            fs_err::write(&path, json.to_string()).unwrap();
            files.insert(name.to_owned(), path);
        }
    }
    Config::load(&files)
}

fn llama() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "eos_token_id": 2,
    })
}

fn with(field: &str, value: Value) -> Value {
    let mut json = llama();
    json[field] = value;
    json
}

#[test]
fn what_is_missing_is_as_in_transformers() {
    let config = load(&llama()).unwrap();
    assert_eq!((config.num_key_value_heads, config.head_dim, config.rms_norm_eps), (4, 16, 1e-6));
    assert_eq!((config.rope_theta, config.max_position_embeddings), (1e4, 2048));
    assert_eq!((config.tie_word_embeddings, config.sliding_window, config.bos_token_id), (false, None, None));
    let mistral = json!({"model_type": "mistral", "num_attention_heads": 8});
    let mut json = llama();
    json.as_object_mut().unwrap().extend(mistral.as_object().unwrap().clone());
    let config = load(&json).unwrap();
    assert_eq!((config.num_key_value_heads, config.sliding_window), (8, Some(4096)));
    json["sliding_window"] = Value::Null;
    assert_eq!(load(&json).unwrap().sliding_window, None);
    let newer = with("rope_parameters", json!({"rope_theta": 5e5, "rope_type": "default"}));
    assert_eq!(load(&newer).unwrap().rope_theta, 5e5);
    assert_eq!(load(&with("pad_token_id", json!(-1))).unwrap().pad_token_id, None);
}

#[test]
fn end_tokens_come_from_both_files() {
    let config = load_with(&llama(), Some(&json!({"eos_token_id": [7, 2, 9]}))).unwrap();
    assert_eq!(config.eos_token_ids, [2, 7, 9]);
    assert_eq!(config.generation_json()["eos_token_id"], json!([2, 7, 9]));
}

#[test]
fn what_is_written_is_read_again() {
    for mut json in [llama(), with("tie_word_embeddings", json!(true)), with("head_dim", json!(10))] {
        for model_type in ["llama", "mistral"] {
            json["model_type"] = json!(model_type);
            json["num_key_value_heads"] = json!(2);
            let config = load(&json).unwrap();
            assert_eq!(load(&config.to_json()).unwrap(), config);
        }
    }
}

#[test]
fn what_is_not_supported_is_said() {
    let error = |field: &str, value: Value| load(&with(field, value)).unwrap_err().to_string();
    let gpt2 = error("model_type", json!("gpt2"));
    assert_eq!(
        gpt2,
        "`config.json`: the architecture `gpt2` is not supported; supported are llama, mistral, mixtral, qwen2, qwen3, qwen3_moe"
    );
    assert!(error("hidden_act", json!("gelu")).contains("the activation \"gelu\" is not supported"));
    assert!(error("quantization_config", json!({})).contains("quantised"));
    let scaled = error("rope_scaling", json!({"rope_type": "yarn", "factor": 8.0}));
    assert_eq!(
        scaled,
        "`config.json`: `rope_scaling` of type \"yarn\" is not supported; supported are `default`, `linear` and `llama3`"
    );
    let mut nameless = llama();
    nameless.as_object_mut().unwrap().remove("model_type");
    assert_eq!(load(&nameless).unwrap_err().to_string(), "`config.json`: `model_type` is missing");
    nameless["architectures"] = json!(["LlamaForCausalLM"]);
    assert_eq!(load(&nameless).unwrap().model_type, Family::Llama);
}

#[test]
fn values_that_cannot_be_are_errors() {
    let error = |field: &str, value: Value| load(&with(field, value)).unwrap_err().to_string();
    for field in ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"] {
        for value in [json!(0), json!(-3), json!(1e30), json!(u64::MAX), json!(1.5), json!("many"), json!([1])] {
            let error = error(field, value.clone());
            assert!(error.contains(&format!("`{field}` is {value}, not a whole number")), "{error}");
        }
        assert!(error(field, Value::Null).contains(&format!("`{field}` is missing")));
    }
    assert!(error("num_key_value_heads", json!(3)).contains("does not divide the 4 heads"));
    assert!(error("head_dim", json!(7)).contains("`head_dim` is 7, which is odd"));
    assert!(error("head_dim", json!(1 << 23)).contains("`head_dim`"));
    assert!(error("rms_norm_eps", json!(-1.0)).contains("not a number above 0"));
    assert!(error("rope_theta", json!("x")).contains("`rope_theta`"));
    assert!(error("eos_token_id", json!(32000)).contains("there is a token 32000"));
    assert!(error("eos_token_id", json!([1, "x"])).contains("`eos_token_id` is \"x\", not a token"));
    assert!(error("tie_word_embeddings", json!(3)).contains("not true or false"));
    assert!(error("num_attention_heads", json!(128)).contains("`head_dim` is 0"), "narrower than its heads");
}

#[test]
fn a_file_that_is_no_configuration_is_an_error() {
    assert_eq!(Config::load(&Files::new()).unwrap_err().to_string(), "the model has no `config.json`");
    assert_eq!(load(&json!([])).unwrap_err().to_string(), "`config.json` cannot be read: it is no JSON object");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x");
    fs_err::write(&path, b"{\"a\": \xff").unwrap();
    let files = Files::from([("config.json".to_owned(), path)]);
    assert!(matches!(Config::load(&files), Err(LmError::Malformed { .. })));
}

#[test]
fn a_model_too_large_for_memory_is_an_error() {
    let large = json!({
        "model_type": "llama", "vocab_size": 1 << 24, "hidden_size": 1 << 24, "intermediate_size": 1 << 24,
        "num_hidden_layers": 4096, "num_attention_heads": 4096,
    });
    let config = load(&large).unwrap();
    assert!(config.parameters() > 1 << 60);
    let error = super::super::Model::random(config, 0, &candle_core::Device::Cpu).unwrap_err();
    assert!(error.to_string().contains("do not fit the memory"), "{error}");
}
