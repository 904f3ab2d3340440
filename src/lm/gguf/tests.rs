use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use candle_transformers::models::{quantized_llama, quantized_qwen2, quantized_qwen3};

use super::*;
use crate::lm::{Experts, Family, Model, RopeScaling, Tokenizer};

fn form(family: Family) -> Config {
    Config {
        model_type: family,
        vocab_size: 40,
        hidden_size: 32,
        intermediate_size: 64,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        rms_norm_eps: 1e-5,
        rope_theta: 5e4,
        max_position_embeddings: 128,
        bos_token_id: Some(1),
        eos_token_ids: vec![2, 3],
        ..Config::default()
    }
}

/// The reverse of [`turn_back`].
fn turn(tensor: &Tensor, heads: usize) -> Tensor {
    let dims = tensor.dims().to_vec();
    let split = tensor.reshape((heads, 2, dims[0] / heads / 2, ())).expect("heads of even width");
    split.transpose(1, 2).and_then(|t| t.contiguous()).and_then(|t| t.reshape(dims)).expect("the same numbers")
}

/// Writes a model as llama.cpp's converter does; matrices as `dtype`.
fn write(path: &Path, architecture: &str, model: &Model, dtype: GgmlDType, more: &[(&str, Value)]) {
    let config = model.config();
    let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
    let mut stacks: BTreeMap<String, Vec<Tensor>> = BTreeMap::new();
    for (name, tensor) in model.weights() {
        let own = Name::of(name).expect("every tensor has a name there");
        let tensor = match own.heads {
            Some(Heads::Query) if architecture == "llama" => turn(tensor, config.num_attention_heads),
            Some(Heads::Key) if architecture == "llama" => turn(tensor, config.num_key_value_heads),
            _ => tensor.clone(),
        };
        match own.expert {
            None => _ = tensors.insert(own.text, tensor),
            Some(_) => stacks.entry(own.stack).or_default().push(tensor),
        }
    }
    tensors.extend(stacks.into_iter().map(|(name, parts)| (name, Tensor::stack(&parts, 0).expect("they are alike"))));
    let quantised: Vec<(String, QTensor)> = tensors
        .into_iter()
        .map(|(name, tensor)| {
            let dtype = if tensor.rank() < 2 { GgmlDType::F32 } else { dtype };
            (name, QTensor::quantize(&tensor, dtype).expect("quantises"))
        })
        .collect();
    let own = |name: &str| format!("{architecture}.{name}");
    let number = |number: usize| Value::U32(number as u32);
    let mut metadata: Vec<(String, Value)> = vec![
        ("general.architecture".to_owned(), Value::String(architecture.to_owned())),
        (own("embedding_length"), number(config.hidden_size)),
        (own("block_count"), number(config.num_hidden_layers)),
        (own("feed_forward_length"), number(config.intermediate_size)),
        (own("attention.head_count"), number(config.num_attention_heads)),
        (own("attention.head_count_kv"), number(config.num_key_value_heads)),
        (own("attention.key_length"), number(config.head_dim)),
        (own("rope.dimension_count"), number(config.head_dim)),
        (own("context_length"), number(config.max_position_embeddings)),
        (own("attention.layer_norm_rms_epsilon"), Value::F32(config.rms_norm_eps as f32)),
        (own("rope.freq_base"), Value::F32(config.rope_theta as f32)),
        ("tokenizer.ggml.bos_token_id".to_owned(), Value::U32(1)),
        ("tokenizer.ggml.eos_token_id".to_owned(), Value::U32(2)),
        ("tokenizer.ggml.eot_token_id".to_owned(), Value::U32(3)),
    ];
    metadata.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(name, value)| (name.as_str(), value)).collect();
    let tensors: Vec<(&str, &QTensor)> = quantised.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut File::create(path).expect("a file"), &metadata, &tensors).expect("writes");
}

fn load(path: &Path) -> Result<Model, LmError> {
    Model::load(&Files::from([(FILE.to_owned(), path.to_owned())]), &Device::Cpu)
}

/// The largest difference of the logits after a prompt from those of an independent implementation.
fn difference(
    model: &Model,
    oracle: impl FnOnce(Content, &mut File, &Tensor) -> candle_core::Result<Tensor>,
    path: &Path,
) -> f32 {
    let ids = [1_u32, 7, 23, 39, 5, 5, 12, 30, 2, 18];
    let own = &model.next_logits(&[&ids]).expect("computes")[0];
    let mut file = File::open(path).expect("a file");
    let content = Content::read(&mut file).expect("a GGUF file");
    let ids = Tensor::new(&ids, &Device::Cpu).and_then(|ids| ids.unsqueeze(0)).expect("a row");
    let other =
        oracle(content, &mut file, &ids).and_then(|logits| logits.flatten_all()?.to_vec1::<f32>()).expect("computes");
    own.iter().zip(&other[other.len() - own.len()..]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn families_give_the_logits_of_candles_own() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("m.gguf");
    for (architecture, family) in [("llama", Family::Llama), ("qwen2", Family::Qwen2), ("qwen3", Family::Qwen3)] {
        let written = Model::random(form(family), 3, &Device::Cpu).expect("a model");
        // candle would compute Qwen 3 in half precision otherwise.
        write(&path, architecture, &written, GgmlDType::F32, &[("general.dtype", Value::U32(0))]);
        let model = load(&path).expect("loads");
        assert_eq!(model.config(), written.config());
        for (name, tensor) in written.weights() {
            let values =
                |tensor: &Tensor| tensor.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).expect("numbers");
            assert_eq!(values(&model.weights()[name]), values(tensor), "{name}");
        }
        let off = difference(
            &model,
            |content, file, ids| match family {
                Family::Llama => quantized_llama::ModelWeights::from_gguf(content, file, &Device::Cpu)?.forward(ids, 0),
                Family::Qwen2 => quantized_qwen2::ModelWeights::from_gguf(content, file, &Device::Cpu)?.forward(ids, 0),
                _ => quantized_qwen3::ModelWeights::from_gguf(content, file, &Device::Cpu)?.forward(ids, 0),
            },
            &path,
        );
        assert!(off < 1e-4, "{architecture}: {off}");
    }
}

#[test]
fn experts_come_apart() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("m.gguf");
    let experts = Some(Experts { num_local_experts: 3, num_experts_per_tok: 2, norm_topk_prob: true });
    let written = Model::random(Config { experts, ..form(Family::Mixtral) }, 3, &Device::Cpu).expect("a model");
    let more = [("llama.expert_count", Value::U32(3)), ("llama.expert_used_count", Value::U32(2))];
    write(&path, "llama", &written, GgmlDType::F32, &more);
    let model = load(&path).expect("loads");
    assert_eq!(model.config(), written.config());
    let ids: &[u32] = &[1, 7, 23, 39];
    assert_eq!(model.next_logits(&[ids]).expect("computes"), written.next_logits(&[ids]).expect("computes"));
}

#[test]
fn eight_bits_a_weight_are_close() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("m.gguf");
    let written = Model::random(form(Family::Llama), 3, &Device::Cpu).expect("a model");
    write(&path, "llama", &written, GgmlDType::Q8_0, &[]);
    let (model, ids): (Model, &[u32]) = (load(&path).expect("loads"), &[1, 7, 23, 39]);
    let [own, exact] = [&model, &written].map(|model| model.next_logits(&[ids]).expect("computes").remove(0));
    let off = own.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let scale = exact.iter().map(|logit| logit.abs()).fold(0.0, f32::max);
    assert!(off > 0.0 && off < 0.05 * scale, "{off} of {scale}");
}

#[test]
fn scaled_positions_are_those_of_llama_3_or_refused() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("m.gguf");
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let config = Config { rope_scaling: Some(scaling), head_dim: 32, ..form(Family::Llama) };
    let plain = Config { rope_scaling: None, ..config.clone() };
    let factors: Vec<f32> = (0..16).map(|pair| plain.frequency(pair) / config.frequency(pair)).collect();
    let found = llama3_scaling(&factors, config.rope_theta).expect("is Llama 3's");
    assert_eq!(found["factor"], 8.0);
    let error = llama3_scaling(&[1.0, 2.0, 3.0, 4.0], config.rope_theta).expect_err("is not").to_string();
    assert!(error.contains("another way"), "{error}");
    let written = Model::random(form(Family::Llama), 3, &Device::Cpu).expect("a model");
    let linear = [
        ("llama.rope.scaling.type", Value::String("linear".to_owned())),
        ("llama.rope.scaling.factor", Value::F32(4.0)),
    ];
    write(&path, "llama", &written, GgmlDType::F32, &linear);
    assert_eq!(load(&path).expect("loads").config().rope_scaling, Some(RopeScaling::Linear { factor: 4.0 }));
    write(&path, "llama", &written, GgmlDType::F32, &[("llama.rope.scaling.type", Value::String("yarn".to_owned()))]);
    assert!(load(&path).expect_err("is refused").to_string().contains("yarn"));
}

#[test]
fn what_cannot_be_used_says_why() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("m.gguf");
    let written = Model::random(form(Family::Llama), 3, &Device::Cpu).expect("a model");
    write(&path, "phi3", &written, GgmlDType::F32, &[]);
    assert!(load(&path).expect_err("is refused").to_string().contains("`phi3`"));
    write(&path, "qwen3", &written, GgmlDType::F32, &[]);
    assert!(matches!(load(&path), Err(LmError::MissingTensor { name }) if name.ends_with("q_norm.weight")));
    write(&path, "llama", &written, GgmlDType::F32, &[("llama.feed_forward_length", Value::U32(63))]);
    assert!(matches!(load(&path), Err(LmError::TensorForm { .. })));
    write(&path, "llama", &written, GgmlDType::F32, &[]);
    let tokenizer = Tokenizer::load(&Files::from([(FILE.to_owned(), path.clone())]));
    assert!(tokenizer.expect_err("there is none").to_string().contains("name a `tokenizer.json`"));
    let whole = fs_err::read(&path).expect("bytes");
    for cut in [0, 3, 40, whole.len() / 4, whole.len() - 10] {
        fs_err::write(&path, &whole[..cut]).expect("writes");
        assert!(load(&path).is_err(), "{cut} bytes");
    }
    // A tensor of no numbers, which lies nowhere.
    fs_err::write(&path, include_bytes!("../../../tests/fuzz/corpus/gguf/empty-tensor.gguf")).expect("writes");
    assert!(load(&path).expect_err("is refused").to_string().contains("it has no numbers"));
}

/// A vocabulary of 256 bytes and some merged pairs, as GPT-2's files have it.
fn byte_level(pre: &str) -> Vec<(&'static str, Value)> {
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;
    let texts = |texts: &[&str]| Value::Array(texts.iter().map(|text| Value::String((*text).to_owned())).collect());
    let mut tokens: Vec<String> = ["<pad>", "<bos>", "<eos>", "<|im_end|>"].map(str::to_owned).to_vec();
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    tokens.extend(alphabet.iter().map(char::to_string));
    tokens.extend(["th", "the", "Ġthe", "12"].map(str::to_owned));
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let kinds = (0..tokens.len()).map(|id| Value::I32(if id < 4 { 3 } else { 1 })).collect();
    vec![
        ("tokenizer.ggml.model", Value::String("gpt2".to_owned())),
        ("tokenizer.ggml.pre", Value::String(pre.to_owned())),
        ("tokenizer.ggml.tokens", texts(&tokens)),
        ("tokenizer.ggml.merges", texts(&["t h", "th e", "Ġ the", "1 2"])),
        ("tokenizer.ggml.token_type", Value::Array(kinds)),
        ("tokenizer.chat_template", Value::String("{{ bos_token }}{{ messages[0].content }}<|im_end|>".to_owned())),
    ]
}

#[test]
fn byte_pairs_are_read_with_their_special_tokens() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("m.gguf");
    let config = Config { vocab_size: 264, ..form(Family::Qwen2) };
    let written = Model::random(config, 3, &Device::Cpu).expect("a model");
    for (pre, bos) in [("llama-bpe", Some(1)), ("qwen2", None), ("gpt-2", None)] {
        write(&path, "qwen2", &written, GgmlDType::F32, &byte_level(pre));
        let files = Files::from([(FILE.to_owned(), path.clone())]);
        let tokenizer = Tokenizer::load(&files).expect("loads");
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (bos, &[2, 3][..]), "{pre}");
        assert_eq!(tokenizer.vocab_size(), 264);
        let text = "the the 1212<|im_end|>é\n\n x";
        let ids = tokenizer.prompt(text).expect("encodes");
        let start = usize::from(bos.is_some());
        assert_eq!(ids[start..start + 2], [261, 262], "{pre}");
        assert!(ids.contains(&3), "{pre}: a special token is one token");
        assert_eq!(tokenizer.decode(&ids).expect("decodes"), text.replace("<|im_end|>", ""), "{pre}");
        let digits = ids.iter().filter(|id| **id == 263).count();
        // Qwen cuts between all digits, so that no pair of them is merged.
        assert_eq!(
            digits,
            match pre {
                "qwen2" => 0,
                "llama-bpe" => 1,
                _ => 2,
            },
            "{pre}"
        );
        let chat = crate::lm::ChatTemplate::load(&files).expect("a template");
        let said = chat.render(&[crate::lm::Message { role: "user", content: "the".to_owned() }]).expect("renders");
        assert_eq!(said, "<bos>the<|im_end|>");
        assert_eq!(tokenizer.prompt(&said).expect("encodes"), [1, 261, 3], "the first token comes once");
    }
    write(&path, "qwen2", &written, GgmlDType::F32, &byte_level("tekken"));
    let error = Tokenizer::load(&Files::from([(FILE.to_owned(), path)])).expect_err("is refused").to_string();
    assert!(error.contains("`tekken`") && error.contains("tokenizer.json"), "{error}");
}
