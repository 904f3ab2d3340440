//! What untrusted bytes go through, as functions that are fed anything and must neither panic, nor hang, nor fill the memory:
//! for `tests/fuzz`, and for the tests that do a short run of the same. No part of the program.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::diag::Diagnostic;
use crate::lm::{ChatTemplate, Config, Device, Files, Message, Tokenizer, weights};
use crate::pipeline::{self, Pipeline};
use crate::store::{self, External, Manifest, NodeRecord, RunRecord, Store};
use crate::{cli, fs, graph, kinds, pieces};

/// Takes any bytes.
pub type Target = fn(&[u8]);

/// The targets, by the names of their corpora.
pub const TARGETS: &[(&str, Target)] = &[
    ("pipeline", pipeline),
    ("expression", expression),
    ("manifest", manifest),
    ("weights", weights),
    ("tokenizer", tokenizer),
    ("config", config),
    ("template", template),
    ("rows", rows),
    ("gguf", gguf),
    ("archive", archive),
];

/// A directory of this thread's own, in memory where there is such a file system.
fn folder() -> &'static Path {
    thread_local! {
        static FOLDER: OnceLock<&'static Path> = const { OnceLock::new() };
    }
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    FOLDER.with(|folder| {
        *folder.get_or_init(|| {
            let memory = Path::new("/dev/shm");
            let above = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
            let name = format!("sami-fuzz-{}-{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
            let path = above.join(name);
            fs_err::create_dir_all(&path).expect("a temporary directory can be made");
            Box::leak(path.into_boxed_path())
        })
    })
}

/// Removes what this thread's calls left.
pub fn clean() {
    let _ = fs_err::remove_dir_all(folder());
}

fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(name);
    fs_err::create_dir_all(folder()).expect("it can be made");
    fs_err::write(&path, bytes).expect("it can be written");
    path
}

/// Draws what was found: places that are none would show.
fn draw(findings: &[Diagnostic]) {
    let text = cli::draw(findings);
    assert!(findings.is_empty() || !text.is_empty());
}

fn examine(text: &[u8]) -> Option<Pipeline> {
    let kinds = kinds::specs();
    let (pipeline, findings) = pipeline::examine(&file("p.toml", text), &[], &kinds);
    draw(&findings);
    if findings.is_empty()
        && let Some(pipeline) = &pipeline
    {
        match graph::build(pipeline) {
            Ok(graph) => assert_eq!(graph.order().len(), pipeline.nodes.len()),
            Err(findings) => draw(&findings),
        }
    }
    pipeline
}

/// A pipeline file.
pub fn pipeline(bytes: &[u8]) {
    examine(bytes);
}

/// An expression, or a text with some.
pub fn expression(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let text = if text.contains("${") { text.to_owned() } else { format!("${{{text}}}") };
    let value = toml::Value::String(text);
    examine(format!("[params]\nn = 2\nlr = 1e-3\nname = 'a'\nlist = [1, 'b']\nx = {value}\n").as_bytes());
}

/// A manifest, a record of a node or a run, or where files are.
pub fn manifest(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::parse(bytes) {
        for name in manifest.files.keys() {
            let inside = Path::new("/root/inside").join(name);
            assert!(inside.starts_with("/root/inside") && name.split('/').all(|part| part != ".."), "{name:?}");
        }
        let again = serde_json::to_vec(&manifest).expect("it can be written");
        assert_eq!(Manifest::parse(&again).expect("it can be read back"), manifest);
    }
    if let Ok(record) = serde_json::from_slice::<NodeRecord>(bytes) {
        serde_json::to_vec(&record).expect("it can be written");
    }
    if let Ok(record) = serde_json::from_slice::<RunRecord>(bytes) {
        serde_json::to_vec(&record).expect("it can be written");
    }
    let _ = serde_json::from_slice::<External>(bytes);
    if let Ok(mut pieces) = pieces::open(&file("x.parts", bytes)) {
        let _ = pieces.read_to_end(&mut Vec::new());
    }
}

const CONFIG: &str = r#"{"model_type": "llama", "vocab_size": 6, "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16, "tie_word_embeddings": true}"#;

/// A file of tensors, of a model whose form is known.
pub fn weights(bytes: &[u8]) {
    let files = Files::from([("model.safetensors".to_owned(), file("model.safetensors", bytes))]);
    let config = Config::of_json(serde_json::from_str(CONFIG).expect("JSON")).expect("a form");
    let _ = weights::load(&files, &config, &Device::Cpu);
    if let Some(cuts) = store::cuts(bytes) {
        assert_eq!(cuts.iter().sum::<u64>(), bytes.len() as u64);
    }
}

/// A `tokenizer.json`.
pub fn tokenizer(bytes: &[u8]) {
    let files = Files::from([("tokenizer.json".to_owned(), file("tokenizer.json", bytes))]);
    if let Ok(tokenizer) = Tokenizer::load(&files)
        && let Ok(ids) = tokenizer.prompt("the cat sat, Zoë \u{1F980}\n on 12 mats")
    {
        let _ = tokenizer.decode(&ids);
        let _ = tokenizer.sequence("a b", " c", true);
    }
}

/// A `config.json`.
pub fn config(bytes: &[u8]) {
    let files = Files::from([("config.json".to_owned(), file("config.json", bytes))]);
    if let Ok(config) = Config::load(&files) {
        let _ = config.check();
    }
}

/// A chat template.
pub fn template(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let tokens = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
    if let Ok(template) = ChatTemplate::new(text, tokens) {
        let message = |role, content: &str| Message { role, content: content.to_owned() };
        let messages = [message("system", "be brief"), message("user", "hello")];
        let _ = template.render(&messages);
    }
}

/// An archive that is imported, into a store that stays.
pub fn archive(bytes: &[u8]) {
    let file = file("a.tar", bytes);
    let store = Store::open(&folder().join("cache")).expect("it can be made");
    let imported = crate::archive::import(&store, &file, false, &mut |_, _| {});
    let left = fs::list(&store.root().join("tmp")).expect("it can be listed");
    assert!(left.is_empty(), "{imported:?} left {left:?}");
    if imported.is_ok_and(|imported| imported.objects + imported.artifacts + imported.nodes > 0) {
        assert!(store.verify(&mut |_, _| {}).expect("it can be read").is_whole());
    }
    let outside = fs::list(folder()).expect("it can be listed");
    assert!(outside.iter().all(|path| ["cache", "a.tar"].iter().any(|own| path.ends_with(own))), "{outside:?}");
}

/// A file of rows; its first byte says of which format.
pub fn rows(bytes: &[u8]) {
    const NAMES: [&str; 6] = ["r.jsonl", "r.json", "r.csv", "r.txt", "r.parquet", "r.jsonl.gz"];
    let Some((format, bytes)) = bytes.split_first() else { return };
    let name = NAMES[usize::from(*format) % NAMES.len()];
    file(name, bytes);
    if let Some(pipeline) = examine(format!("[datasets.rows]\nsource = \"{name}\"\n").as_bytes()) {
        draw(&pipeline::check::data(&pipeline).findings);
    }
}

/// A GGUF file.
pub fn gguf(bytes: &[u8]) {
    let files = Files::from([("model.gguf".to_owned(), file("model.gguf", bytes))]);
    let _ = Tokenizer::load(&files);
    // What it claims may be larger than what a test has room for.
    if let Ok(config) = Config::load(&files)
        && config.vocab_size.saturating_mul(config.hidden_size) < 1 << 16
        && config.num_hidden_layers < 4
    {
        let _ = weights::load(&files, &config, &Device::Cpu);
    }
}
