//! Model directories that are not what they should be, over the real binary: the error names the file, nothing panics,
//! nothing is recorded, and with the right file back the same command ends well.

use sami::cli::{DONE, FAILED, USAGE};

use super::bad_input::{no_bug, told};
use super::sandbox::Sandbox;

/// Answers of the model `base`, which `MODEL` says where to get.
pub(crate) const PIPELINE: &str = r#"
[models.base]
MODEL
[datasets.questions]
make = { rows = 4, seed = 1, template = '{"query": "q {{ row }}", "text": "rules : be brief . q {{ row }} a : yes no"}' }
[nodes.constitutions]
kind = "constitutions"
principles.brief = { definition = "be brief .", antithesis = "be long ." }
[nodes.generate]
kind = "generate"
model = "base"
queries = "questions"
constitutions = "constitutions"
prompt = "rules : {{ constitution }} {{ query }} a :"
max_new_tokens = 12
temperature = 1.0
"#;
const INIT: &str = "init = { hidden_size = 16, layers = 1, heads = 2, max_positions = 64, seed = 1, tokenizer = { from = \"questions\" } }";

/// A project with a model of its own making in `model/`.
fn project() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("make.toml", &PIPELINE.replace("MODEL", INIT));
    sandbox.write("use.toml", &PIPELINE.replace("MODEL", "source = \"model\""));
    sandbox.sami(&["run", "make.toml", "models.base"]).exits(DONE.into());
    sandbox.sami(&["cache", "checkout", "models.base", "model"]).exits(DONE.into());
    sandbox
}

/// The weights with a header of its own before the tensors' bytes.
fn with_header(weights: &[u8], change: impl Fn(&str) -> String) -> Vec<u8> {
    let length = u64::from_le_bytes(weights[..8].try_into().expect("eight bytes")) as usize;
    let header = change(std::str::from_utf8(&weights[8..8 + length]).expect("JSON"));
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &weights[8 + length..]].concat()
}

#[test]
fn weights_that_are_cut_short_or_lie() {
    let sandbox = project();
    let path = sandbox.path("model/model.safetensors");
    let whole = fs_err::read(&path).expect("weights");
    let begin_further = |header: &str| header.replacen("\"data_offsets\":[0,", "\"data_offsets\":[64,", 1);
    let broken = [
        ("empty", Vec::new()),
        ("a few bytes", whole[..5].to_vec()),
        ("cut within the header", whole[..40].to_vec()),
        ("cut within the tensors", whole[..whole.len() - 100].to_vec()),
        ("a header of 2^64 bytes", [&[255; 8][..], &whole[8..]].concat()),
        ("a header that is no JSON", with_header(&whole, |header| header.replacen('{', "[", 1))),
        ("offsets beyond the end", with_header(&whole, |header| header.replacen("[0,", "[0,9", 1))),
        ("overlapping tensors", with_header(&whole, begin_further)),
        ("another shape", with_header(&whole, |header| header.replacen("\"shape\":[", "\"shape\":[2,", 1))),
        ("another type", with_header(&whole, |header| header.replacen("\"F32\"", "\"F128\"", 1))),
        ("a tensor of another name", with_header(&whole, |header| header.replacen("\"model.", "\"medol.", 1))),
        ("random bytes", (0..4000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()),
    ];
    for (what, bytes) in broken {
        assert_ne!(bytes, whole, "{what} is what it was");
        fs_err::write(&path, &bytes).expect("writes");
        let output = sandbox.sami(&["run", "use.toml"]).exits(FAILED.into());
        no_bug(&output);
        let stderr = &output.stderr;
        let says = ["model.safetensors", "tensor `model.embed_tokens.weight`"];
        assert!(stderr.contains("node `generate` failed: "), "{what}: {stderr}");
        assert!(says.iter().any(|says| stderr.contains(says)), "{what}: {stderr}");
    }
    fs_err::write(&path, &whole).expect("writes");
    assert_eq!(sandbox.sami(&["run", "use.toml", "--json"]).exits(DONE.into()).done().names("ran"), ["generate"]);
}

#[test]
fn configs_and_tokenizers_that_do_not_fit() {
    let sandbox = project();
    for (file, from, to, says) in [
        ("config.json", "\"hidden_size\": 16", "\"hidden_size\": 17", "`config.json` asks for [17, 17]"),
        ("config.json", "\"num_attention_heads\": 2", "\"num_attention_heads\": 0", "num_attention_heads"),
        ("config.json", "\"model_type\": \"llama\"", "\"model_type\": \"mamba\"", "mamba"),
        ("config.json", "\"vocab_size\": ", "\"vocab_size\": 1", "embed"),
        ("tokenizer.json", "{", "[", "tokenizer.json"),
    ] {
        let path = sandbox.path("model").join(file);
        let whole = fs_err::read_to_string(&path).expect("text");
        let changed = whole.replacen(from, to, 1);
        assert_ne!(changed, whole, "{file} has no {from}: {whole}");
        fs_err::write(&path, &changed).expect("writes");
        let output = sandbox.sami(&["run", "use.toml"]).exits(FAILED.into());
        no_bug(&output);
        assert!(output.stderr.contains("failed") && output.stderr.contains(says), "{to}: {}", output.stderr);
        fs_err::write(&path, &whole).expect("writes");
    }
    let path = sandbox.path("model/config.json");
    let whole = fs_err::read_to_string(&path).expect("text");
    fs_err::write(&path, &whole[1..]).expect("writes");
    let output = sandbox.sami(&["run", "use.toml"]).exits(USAGE.into());
    told(&output, "pipeline::model-directory", "use.toml:3:10", &["its config.json is not JSON"]);
    fs_err::remove_file(sandbox.path("model/tokenizer.json")).expect("removes");
    fs_err::write(&path, &whole).expect("writes");
    let output = sandbox.sami(&["run", "use.toml"]).exits(USAGE.into());
    told(&output, "pipeline::model-directory", "use.toml:3:10", &["it has no tokenizer.json"]);
    fs_err::write(sandbox.path("model/tokenizer.model"), "SentencePiece").expect("writes");
    let output = sandbox.sami(&["check", "use.toml"]).exits(USAGE.into());
    told(&output, "pipeline::model-directory", "use.toml:3:10", &["AutoTokenizer.from_pretrained"]);
}

#[test]
fn weights_whose_parts_are_not_all_there() {
    let sandbox = project();
    let [whole, part, index] =
        ["model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
            .map(|name| sandbox.path("model").join(name));
    fs_err::rename(&whole, &part).expect("renames");
    let text = r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    fs_err::write(&index, text).expect("writes");
    for command in ["check", "run"] {
        let output = sandbox.sami(&[command, "use.toml"]).exits(USAGE.into());
        let says = ["it has no model-00002-of-00002.safetensors", "which its index names"];
        told(&output, "pipeline::model-directory", "use.toml:3:10", &says);
    }
    fs_err::rename(&part, sandbox.path("model/pytorch_model.bin")).expect("renames");
    fs_err::remove_file(&index).expect("removes");
    let output = sandbox.sami(&["check", "use.toml"]).exits(USAGE.into());
    told(&output, "pipeline::model-directory", "use.toml:3:10", &["no *.safetensors", "safe_serialization=True"]);
}
