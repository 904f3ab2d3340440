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

/// A configuration of another family, with fields of its own.
fn family(family: Family, fields: &Value) -> Value {
    let mut json = llama();
    json["model_type"] = json!(family.model_type());
    json.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    json
}

/// Fields without which a family has no form.
fn needed(family: Family) -> Value {
    match family {
        Family::Llama | Family::Mistral => json!({"num_key_value_heads": 2}),
        Family::Mixtral => json!({"num_key_value_heads": 2, "num_local_experts": 4}),
        Family::Qwen2 | Family::Qwen3 => {
            json!({"num_key_value_heads": 2, "use_sliding_window": true, "max_window_layers": 1})
        }
        Family::Qwen3Moe => json!({"num_key_value_heads": 2, "moe_intermediate_size": 24}),
    }
}

#[test]
fn what_is_written_is_read_again() {
    for of in Family::ALL {
        let mut json = family(of, &needed(of));
        let config = load(&json).unwrap();
        assert_eq!(config.model_type, of);
        assert_eq!(load(&config.to_json()).unwrap(), config);
        let known = |name: &str| LINEAR_NAMES.iter().any(|known| name.ends_with(&format!(".{known}")));
        assert!(config.linears().iter().all(|(name, _)| known(name)), "{:?}", config.linears());
        for (field, value) in [
            ("tie_word_embeddings", json!(true)),
            ("head_dim", json!(10)),
            ("rope_scaling", json!({"type": "linear", "factor": 2.5})),
            ("sliding_window", json!(null)),
            ("rope_scaling", llama3()),
        ] {
            json[field] = value;
            let config = load(&json).unwrap();
            assert_eq!(load(&config.to_json()).unwrap(), config);
            assert!(config.tensors().iter().all(|(_, shape)| shape.iter().all(|size| *size > 0)));
        }
        // The first of `architectures` says it, too.
        json["architectures"] = json!([of.architecture()]);
        json.as_object_mut().unwrap().remove("model_type");
        assert_eq!(load(&json).unwrap().model_type, of);
    }
}

#[test]
fn families_have_their_own_defaults() {
    let load = |of: Family, fields: Value| load(&family(of, &fields)).unwrap();
    let mixtral = load(Family::Mixtral, json!({"num_attention_heads": 8}));
    assert_eq!((mixtral.rope_theta, mixtral.rms_norm_eps, mixtral.sliding_window), (1e6, 1e-5, None));
    let experts = Experts { num_local_experts: 8, num_experts_per_tok: 2, norm_topk_prob: true };
    assert_eq!((mixtral.experts, mixtral.num_key_value_heads), (Some(experts), 8));
    let null_heads = load(Family::Mixtral, json!({"num_key_value_heads": null}));
    assert_eq!(null_heads.num_key_value_heads, 4);
    let qwen3 = load(Family::Qwen3, json!({"num_key_value_heads": 1}));
    assert_eq!((qwen3.head_dim, qwen3.sliding_window), (128, None), "its window is not asked for");
    let moe = load(
        Family::Qwen3Moe,
        json!({"moe_intermediate_size": 24, "num_experts": 16, "num_experts_per_tok": 3, "norm_topk_prob": true}),
    );
    assert_eq!(moe.intermediate_size, 24);
    let experts = Experts { num_local_experts: 16, num_experts_per_tok: 3, norm_topk_prob: true };
    assert_eq!(moe.experts, Some(experts));
}

#[test]
fn single_layers_have_a_window() {
    let windows = |fields: Value| {
        let mut all = json!({"use_sliding_window": true, "sliding_window": 6, "num_key_value_heads": 2});
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let config = load(&family(Family::Qwen2, &all))?;
        Ok::<_, LmError>((0..2).map(|layer| config.window(layer)).collect::<Vec<_>>())
    };
    assert_eq!(windows(json!({"max_window_layers": 1})).unwrap(), [None, Some(6)]);
    assert_eq!(windows(json!({"max_window_layers": 0})).unwrap(), [Some(6); 2]);
    assert_eq!(windows(json!({})).unwrap(), [None; 2], "the first 28 layers see all");
    let types = json!({"layer_types": ["sliding_attention", "full_attention"], "max_window_layers": 0});
    assert_eq!(windows(types).unwrap(), [Some(6), None]);
    assert_eq!(windows(json!({"use_sliding_window": false, "max_window_layers": 0})).unwrap(), [None; 2]);
    let error = |types: Value| windows(json!({"layer_types": types})).unwrap_err().to_string();
    assert!(error(json!(["full_attention"])).contains("`layer_types` is no list of 2 names"));
    assert!(error(json!(["full_attention", "chunked_attention"])).contains("has \"chunked_attention\"; supported are"));
}

fn llama3() -> Value {
    json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    })
}

#[test]
fn rotary_positions_have_two_spellings() {
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let old = load(&with("rope_scaling", llama3())).unwrap();
    assert_eq!((old.rope_theta, old.rope_scaling), (1e4, Some(scaling)));
    let mut parameters = llama3();
    parameters["rope_theta"] = json!(5e5);
    let new = load(&with("rope_parameters", parameters)).unwrap();
    assert_eq!((new.rope_theta, new.rope_scaling), (5e5, Some(scaling)));
    let linear = load(&with("rope_scaling", json!({"type": "linear", "factor": 4}))).unwrap();
    assert_eq!(linear.rope_scaling, Some(RopeScaling::Linear { factor: 4.0 }));
    for plain in [json!({"type": "default"}), json!({}), Value::Null] {
        assert_eq!(load(&with("rope_scaling", plain)).unwrap().rope_scaling, None);
    }
    let mut lengthless = llama3();
    lengthless.as_object_mut().unwrap().remove("original_max_position_embeddings");
    let Some(RopeScaling::Llama3 { original_max_position_embeddings, .. }) =
        load(&with("rope_scaling", lengthless)).unwrap().rope_scaling
    else {
        panic!("it is Llama 3's");
    };
    assert_eq!(original_max_position_embeddings, 2048, "the longest sequence");
}

#[test]
fn frequencies_are_those_of_llama_3() {
    // What `transformers` computes for Llama 3.1 8B: fast ones, some between fast and slow, and the slowest.
    let config = Config { rope_theta: 5e5, ..load(&with("rope_scaling", llama3())).unwrap() };
    let config = Config { head_dim: 128, ..config };
    for (pair, wanted) in [(0, 1.0), (28, 3.211_446e-3), (32, 5.248_46e-4), (34, 1.785_077_9e-4), (63, 3.068_926e-7)] {
        let found = f64::from(config.frequency(pair));
        assert!((found - wanted).abs() < 1e-6 * wanted, "pair {pair}: {found}, not {wanted}");
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
    for other in ["gpt_neox", "gemma2", "phi3", "MambaForCausalLM"] {
        assert!(
            error("model_type", json!(other)).contains(&format!("`{other}` is not supported; supported are llama"))
        );
    }
    assert!(error("partial_rotary_factor", json!(0.5)).contains("`partial_rotary_factor` is not supported"));
    let nested = error("rope_parameters", json!({"full_attention": {"rope_type": "default"}}));
    assert!(nested.contains("`rope_parameters` for single kinds of layers is not supported"), "{nested}");
    let bias = load(&family(Family::Mistral, &json!({"attention_bias": true, "num_key_value_heads": 2})));
    assert!(bias.unwrap_err().to_string().contains("`attention_bias` is not supported"));
    let dense = json!({"moe_intermediate_size": 8, "mlp_only_layers": [0]});
    let dense = load(&family(Family::Qwen3Moe, &dense)).unwrap_err().to_string();
    assert!(dense.contains("layers without experts among others is not supported"), "{dense}");
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
    let scaling = |value: Value| error("rope_scaling", value);
    assert!(scaling(json!({"type": "linear"})).contains("`rope_scaling` has no `factor`"));
    assert!(scaling(json!({"type": "linear", "factor": "x"})).contains("has `factor` = \"x\", not a number above 0"));
    assert!(scaling(json!({"type": "linear", "factor": 0.5})).contains("which is less than 1"));
    assert!(scaling(json!("linear")).contains("is \"linear\", not a table"));
    let mut crossed = llama3();
    crossed["low_freq_factor"] = json!(4.0);
    assert!(scaling(crossed).contains("the second is the larger"));
    let experts = load(&family(Family::Mixtral, &json!({"num_key_value_heads": 2, "num_experts_per_tok": 9})));
    assert!(experts.unwrap_err().to_string().contains("`num_experts_per_tok` is 9 of 8 experts"));
    let many = json!({"num_key_value_heads": 2, "num_local_experts": 1024, "num_hidden_layers": 4096});
    let many = load(&family(Family::Mixtral, &many)).unwrap_err().to_string();
    assert!(many.contains("`num_local_experts` makes 4194304 in all layers"), "{many}");
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

#[test]
fn a_pipelines_type_wins() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, json: Value| {
        let path = folder.path().join(name);
        fs_err::write(&path, json.to_string()).unwrap();
        (name.to_owned(), path)
    };
    let own = Files::from([write("config.json", with("torch_dtype", json!("float16")))]);
    assert_eq!(Config::load(&own).unwrap().dtype, DType::F16);
    let both = [own, Files::from([write("sami.json", json!({"dtype": "bf16"}))])].into_iter().flatten().collect();
    assert_eq!(Config::load(&both).unwrap().dtype, DType::BF16);
    assert_eq!(Config::of_json(llama()).unwrap(), load(&llama()).unwrap());
}
