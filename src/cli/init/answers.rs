//! What `init` is told.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::diag::Diagnostic;
use crate::hub::{Repo, RepoKind};
use crate::pipeline::dataset::{self, DatasetSpec, RowSource};

/// All that it is told.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answers {
    pub(super) name: String,
    pub(super) model: Model,
    pub(super) queries: Queries,
}

/// The model that training starts from.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Model {
    /// One that the pipeline makes and pretrains.
    Tiny,
    /// A directory or a GGUF file.
    Local { gguf: bool, path: PathBuf, chat: bool },
    /// A repository of the hub, by what follows `hf:`.
    Hub { repo: String, chat: bool },
}

/// Where queries come from.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Queries {
    /// A template.
    Made,
    /// A file, the field of its rows that is the query, and how many they are.
    File { path: PathBuf, field: String, rows: u64 },
    /// A repository of the hub, by what follows `hf:`.
    Hub { repo: String, field: String },
}

/// Fewer rows are no use to train on and be judged by.
const FEWEST: u64 = 10;
/// Fields that a query is likely to be in, likeliest first.
const LIKELY: [&str; 8] = ["query", "question", "prompt", "instruction", "input", "post", "text", "content"];

fn wrong(what: String, help: &str) -> Diagnostic {
    Diagnostic::error("cli::no-answer", what).help(help)
}

/// A name for a file and a pipeline.
pub(super) fn name(text: &str) -> Result<String, Diagnostic> {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '_' || letter == '-';
    if text.is_empty() || !text.chars().all(plain) || text.starts_with('-') {
        return Err(wrong(format!("`{}` cannot be a name", text.escape_debug()), "use letters, digits, `_` and `-`"));
    }
    Ok(text.to_owned())
}

impl Model {
    pub(super) fn parse(text: &str) -> Result<Self, Diagnostic> {
        if text == "tiny" {
            return Ok(Self::Tiny);
        }
        if let Some(repo) = text.strip_prefix("hf:") {
            match repo.parse::<Repo>() {
                Ok(found) if found.kind == RepoKind::Model => {}
                _ => return Err(wrong(format!("`{text}` names no model of the hub"), "write `hf:ORGANISATION/NAME`")),
            }
            return Ok(Self::Hub { repo: repo.to_owned(), chat: speaks(repo) });
        }
        let help = "give `tiny`, a directory in Hugging Face format, `hf:REPO` or `gguf:FILE`";
        let (gguf, path) = match text.strip_prefix("gguf:") {
            Some(file) => (true, PathBuf::from(file)),
            None => (false, PathBuf::from(text)),
        };
        let there = if gguf { path.is_file() } else { path.is_dir() };
        if !there {
            let what = if gguf { "file" } else { "directory" };
            return Err(wrong(format!("there is no {what} `{}`", path.display()), help));
        }
        let templated = path.join("chat_template.jinja").is_file() || has_template(&path.join("tokenizer_config.json"));
        Ok(Self::Local { gguf, chat: if gguf { speaks(text) } else { templated }, path })
    }

    /// Whether it was trained on conversations, as far as one can tell.
    pub(super) fn chat(&self) -> bool {
        match self {
            Self::Tiny => false,
            Self::Local { chat, .. } | Self::Hub { chat, .. } => *chat,
        }
    }
}

fn has_template(file: &Path) -> bool {
    crate::fs::read_text(file, 1 << 24).is_ok_and(|text| text.contains("\"chat_template\""))
}

/// Whether a model's name says that it was trained on conversations.
fn speaks(name: &str) -> bool {
    let name = name.to_lowercase();
    name.split(['-', '_', '.', '/']).any(|word| matches!(word, "instruct" | "chat" | "it"))
}

impl Queries {
    pub(super) fn parse(text: &str) -> Result<Self, Diagnostic> {
        if text == "made" {
            return Ok(Self::Made);
        }
        if let Some(repo) = text.strip_prefix("hf:") {
            return match repo.parse::<Repo>() {
                Ok(found) if found.kind == RepoKind::Dataset => {
                    Ok(Self::Hub { repo: repo.to_owned(), field: String::new() })
                }
                _ => {
                    Err(wrong(format!("`{text}` names no dataset of the hub"), "write `hf:datasets/ORGANISATION/NAME`"))
                }
            };
        }
        let path = PathBuf::from(text);
        if !path.is_file() {
            let help = "give `made`, a .jsonl, .json, .csv, .txt or .parquet file, or `hf:datasets/REPO`";
            return Err(wrong(format!("there is no file `{text}`"), help));
        }
        Ok(Self::File { path, field: String::new(), rows: 0 })
    }

    /// With the field that is the query: the one that is named, or the likeliest of the first row.
    pub(super) fn with_field(self, named: Option<&str>) -> Result<Self, Vec<Diagnostic>> {
        Ok(match self {
            Self::Made => Self::Made,
            Self::Hub { repo, .. } => Self::Hub { repo, field: named.unwrap_or("query").to_owned() },
            Self::File { path, .. } => {
                let (field, rows) = field(&path, named)?;
                if rows < FEWEST {
                    let what = format!("`{}` has {rows} rows", path.display());
                    return Err(vec![wrong(
                        what,
                        "give a file with ten rows or more: some are kept for the evaluation",
                    )]);
                }
                Self::File { path, field, rows }
            }
        })
    }
}

/// The field of a file's rows that is the query, and how many rows there are.
fn field(path: &Path, named: Option<&str>) -> Result<(String, u64), Vec<Diagnostic>> {
    let spec = DatasetSpec {
        name: "queries".to_owned(),
        source: RowSource::File(path.to_owned()),
        id: None,
        fields: Vec::new(),
        unique: true,
        shuffle: None,
        skip: 0,
        take: None,
        span: 0..0,
    };
    let files = dataset::files(&spec, Path::new(""));
    // Errors of rows are said whole.
    let rows = dataset::read(&spec, &files)?;
    let count = rows.len() as u64;
    let row = rows.into_iter().next().unwrap_or_default();
    // Templates reach fields whose names are plain.
    let plain = |key: &str| key.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_');
    let usable = |(key, value): &(&String, &Value)| *key != "id" && value.is_string() && plain(key);
    let texts: Vec<&String> = row.iter().filter(usable).map(|(key, _)| key).collect();
    if let Some(named) = named {
        if row.contains_key(named) && plain(named) {
            return Ok((named.to_owned(), count));
        }
        let known: Vec<String> = texts.iter().map(|key| format!("`{key}`")).collect();
        let help = format!("the fields that hold text are {}", known.join(", "));
        return Err(vec![wrong(format!("the rows of `{}` have no field `{named}`", path.display()), &help)]);
    }
    let likely =
        LIKELY.iter().find(|likely| texts.iter().any(|text| text == *likely)).map(|likely| (*likely).to_owned());
    likely.or_else(|| texts.first().map(|text| (*text).clone())).map(|field| (field, count)).ok_or_else(|| {
        let what = format!("no field of the rows of `{}` is text", path.display());
        vec![wrong(what, "name a file whose rows have a text that can be the query")]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_lead_nowhere_are_told() {
        let title = |fault: Diagnostic| (fault.id, fault.title);
        assert_eq!(title(name("a/b").expect_err("no name")), ("cli::no-answer", "`a/b` cannot be a name".to_owned()));
        assert!(title(Model::parse("no/such").expect_err("none")).1.contains("no directory"));
        assert!(title(Model::parse("hf:datasets/a/b").expect_err("no model")).1.contains("names no model"));
        assert!(title(Queries::parse("hf:org/model").expect_err("a model")).1.contains("names no dataset"));
        assert!(title(Queries::parse("x.jsonl").expect_err("none")).1.contains("no file"));
        assert!(Model::parse("hf:Qwen/Qwen2.5-0.5B-Instruct").expect("a name").chat());
        assert!(!Model::parse("hf:mistralai/Mistral-7B-v0.1").expect("a name").chat());
    }

    #[test]
    fn the_query_is_the_likeliest_text() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("r.jsonl");
        fs_err::write(&path, "{\"id\": 1, \"title\": \"t\", \"post\": \"p\", \"score\": 3}\n").expect("writes");
        assert_eq!(field(&path, None).expect("a text"), ("post".to_owned(), 1));
        assert_eq!(field(&path, Some("title")).expect("named").0, "title");
        let few = Queries::parse(path.to_str().expect("text")).expect("a file").with_field(None);
        assert!(few.expect_err("too few")[0].title.contains("has 1 rows"));
        assert!(field(&path, Some("body")).expect_err("none")[0].help[0].contains("`post`"));
        fs_err::write(&path, "{\"id\": 1, \"score\": 3}\n").expect("writes");
        assert_eq!(field(&path, None).expect_err("no text")[0].id, "cli::no-answer");
        fs_err::write(&path, "not json\n").expect("writes");
        assert!(field(&path, None).is_err());
    }
}
