//! `{ file = "path" }`: a value that lives in a file of its own. Text files become strings; `.json` and `.toml` files
//! become what they hold. Paths start from the pipeline file's directory.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::Value;

use super::document;
use super::findings::Findings;
use super::tree::{Entry, Tree, TreeValue};
use crate::diag::Diagnostic;
use crate::fs::{Aspect, Watch};
use crate::{fs, secret};

/// A file larger than this is data, not a value.
const MOST_BYTES: u64 = 16 << 20;

/// Reads included files, each once.
#[derive(Debug)]
pub(super) struct Includer {
    directory: PathBuf,
    read: std::collections::HashMap<String, Result<String, String>>,
    watched: Vec<Option<Watch>>,
}

impl Includer {
    /// Paths start from `directory`.
    pub(super) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), read: std::collections::HashMap::new(), watched: Vec::new() }
    }

    /// The files that were read, as they were before that.
    pub(super) fn watched(self) -> Vec<Option<Watch>> {
        self.watched
    }

    /// Replaces every `{ file = "path" }` in a tree by what the file holds; what fails is reported and becomes a hole.
    pub(super) fn include(&mut self, tree: &mut Tree, findings: &mut Findings) {
        let included = match &tree.value {
            TreeValue::Table(table) if table.len() == 1 => {
                table.get("file").and_then(|entry| entry.value.text()).map(str::to_owned)
            }
            _ => None,
        };
        if let Some(path) = included {
            tree.value = match self.value(&path, tree) {
                Ok(value) => value,
                Err(what) => {
                    let place = tree.place("file");
                    findings.add(
                        Diagnostic::error("pipeline::file", format!("the file `{path}` cannot be used"))
                            .label(&Arc::clone(&findings.source), place, what)
                            .help(format!("paths start from the pipeline's directory, `{}`", self.directory.display())),
                    );
                    TreeValue::Hole
                }
            };
            return;
        }
        match &mut tree.value {
            TreeValue::Array(items) => items.iter_mut().for_each(|item| self.include(item, findings)),
            TreeValue::Table(table) => {
                table.values_mut().for_each(|entry| self.include(&mut entry.value, findings));
            }
            _ => {}
        }
    }

    fn value(&mut self, path: &str, tree: &Tree) -> Result<TreeValue, String> {
        let (directory, watched) = (&self.directory, &mut self.watched);
        let first = || {
            let path = directory.join(path);
            watched.push(Watch::of(&path, Aspect::Content).unwrap_or_default());
            read(&path)
        };
        let text = self.read.entry(path.to_owned()).or_insert_with(first).clone()?;
        let extension = Path::new(path).extension().and_then(|extension| extension.to_str());
        match extension {
            Some("json") => {
                let not = |error: serde_json::Error| format!("not JSON: {error}");
                let included = if text.trim_start().starts_with('{') {
                    // In the order of the file, which a JSON value does not keep.
                    in_order(serde_json::from_str(&text).map_err(not)?, tree)
                } else {
                    Tree::of_json(serde_json::from_str(&text).map_err(not)?, &tree.span).map(|tree| tree.value)
                };
                included.map_err(|what| format!("it holds {what}"))
            }
            Some("toml") => {
                let included = document::parse_included(&text)?;
                let entries = included.table().into_iter().flatten();
                let entries = entries.map(|(key, entry)| (key.clone(), entry.value.to_json())).collect();
                in_order(entries, tree).map_err(str::to_owned)
            }
            _ => Ok(TreeValue::String(text)),
        }
    }
}

/// A table with entries in this order, all of them at the place of `tree`.
fn in_order(entries: IndexMap<String, Value>, tree: &Tree) -> Result<TreeValue, &'static str> {
    let entry = |(key, value): (String, Value)| {
        Ok((key, Entry { key_span: tree.span.clone(), value: Tree::of_json(value, &tree.span)? }))
    };
    entries.into_iter().map(entry).collect::<Result<_, _>>().map(TreeValue::Table)
}

fn read(path: &Path) -> Result<String, String> {
    let bytes = fs::read(path, MOST_BYTES).map_err(|error| match error.kind() {
        ErrorKind::NotFound => "there is no such file".to_owned(),
        ErrorKind::FileTooLarge => format!("it is larger than {} MiB", MOST_BYTES >> 20),
        _ => error.to_string(),
    })?;
    let text = String::from_utf8(bytes)
        .map_err(|error| format!("it is not UTF-8 (byte {})", error.utf8_error().valid_up_to()))?;
    match secret::found_in(&text) {
        Some((variable, _)) => {
            Err(format!("the value of `{variable}` stands in it: it would get into keys and records"))
        }
        None => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diag::Source;

    #[test]
    fn files_become_values_and_missing_ones_are_errors() {
        let folder = tempfile::tempdir().expect("a folder");
        fs_err::write(folder.path().join("a.jinja"), "Q: ${x} {{ query }}\n").expect("writes");
        fs_err::write(folder.path().join("b.json"), r#"{"k": [1]}"#).expect("writes");
        fs_err::write(folder.path().join("c.toml"), "k = 2.5\n").expect("writes");
        let text = r#"a = { file = "a.jinja" }
b = [{ file = "b.json" }]
c = { file = "c.toml" }
d = { file = "gone.txt" }
e = { file = "a.jinja", other = 1 }"#;
        let source = Arc::new(Source::new("x.toml", text));
        let mut tree = document::parse(&source).expect("TOML");
        let mut findings = Findings::new(&source);
        Includer::new(folder.path()).include(&mut tree, &mut findings);
        let json = tree.to_json();
        assert_eq!(json["a"], "Q: ${x} {{ query }}\n");
        assert_eq!(json["b"][0]["k"][0], 1);
        assert_eq!(json["c"]["k"], 2.5);
        assert_eq!(json["e"]["other"], 1);
        let found = findings.into_list();
        assert_eq!(found.len(), 1);
        assert_eq!(&text[found[0].labels[0].span.clone()], "\"gone.txt\"");
    }
}
