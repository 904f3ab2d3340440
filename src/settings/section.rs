//! A table of `sami.toml`: its keys are taken one by one, and what is left over is unknown.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use crate::diag::{Diagnostic, Source, did_you_mean};

/// What a key looks like that should not be in a file.
const SECRET: [&str; 7] = ["secret", "password", "passwd", "token", "credential", "access_key", "private"];

/// What the value of a key is.
#[derive(Debug, Clone, PartialEq)]
pub enum Form {
    /// A text that is not empty.
    Text,
    /// `true` or `false`.
    Flag,
    /// A whole number.
    Number(RangeInclusive<u64>),
    /// One of several words.
    Word(Vec<String>),
    /// A number that is not less than this one.
    Real(f64),
    /// A list of texts.
    Texts,
    /// A table whose keys the user chooses; each is a table of this kind.
    Tables(Box<TableForm>),
}

/// A table as its reader asks for it.
#[derive(Debug, Clone, PartialEq)]
pub struct TableForm {
    /// Its name.
    pub name: String,
    /// Its keys, in the order in which they are asked for.
    pub keys: Vec<(String, Form)>,
    /// Those that must be there.
    pub required: Vec<String>,
}

/// A table whose keys are taken one by one.
pub(super) struct Section<'a> {
    name: Cow<'a, str>,
    file: &'a str,
    text: &'a str,
    span: Range<usize>,
    entries: BTreeMap<String, (Range<usize>, Range<usize>, DeValue<'a>)>,
    known: Vec<&'static str>,
    forms: BTreeMap<&'static str, Form>,
    lacking: Vec<String>,
    faults: Vec<Diagnostic>,
}

/// Variables that the credentials for what a table names come from.
fn variables(table: &str) -> &'static str {
    if table == "mlflow" { MLFLOW } else { "`AWS_…`, `GOOGLE_…`" }
}

/// Those for an MLflow server.
pub(super) const MLFLOW: &str = "`MLFLOW_TRACKING_TOKEN`, or `MLFLOW_TRACKING_USERNAME` and `…_PASSWORD`";

/// The text of the file for an error to show, without what is in `secret`.
pub(super) fn shown(file: &str, text: &str, secret: Option<&Range<usize>>) -> Arc<Source> {
    let mut bytes = text.as_bytes().to_vec();
    if let Some(secret) = secret {
        let hidden = bytes.get_mut(secret.clone()).unwrap_or_default();
        hidden.iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b'*');
    }
    // A range of whole characters was replaced by whole characters.
    Arc::new(Source::new(file, String::from_utf8_lossy(&bytes)))
}

impl<'a> Section<'a> {
    pub(super) fn new(
        file: &'a str,
        text: &'a str,
        name: impl Into<Cow<'a, str>>,
        span: Range<usize>,
        table: DeTable<'a>,
    ) -> Self {
        let name = name.into();
        let entry = |(key, value): (toml::Spanned<std::borrow::Cow<'a, str>>, toml::Spanned<DeValue<'a>>)| {
            let (at, value_at) = (key.span(), value.span());
            (key.into_inner().into_owned(), (at, value_at, value.into_inner()))
        };
        let entries = table.into_iter().map(entry).collect();
        let (known, forms, lacking, faults) = (Vec::new(), BTreeMap::new(), Vec::new(), Vec::new());
        Self { name, file, text, span, entries, known, forms, lacking, faults }
    }

    /// What is written in place of a table: the value of one of its keys.
    pub(super) fn short(
        file: &'a str,
        text: &'a str,
        name: &'a str,
        span: Range<usize>,
        (key, value): (&str, DeValue<'a>),
    ) -> Self {
        let name = name.into();
        let entries = BTreeMap::from([(key.to_owned(), (span.clone(), span.clone(), value))]);
        let (known, forms, lacking, faults) = (Vec::new(), BTreeMap::new(), Vec::new(), Vec::new());
        Self { name, file, text, span, entries, known, forms, lacking, faults }
    }

    /// Says that the value of a key is wrong; its place is shown, and the value if it is no secret.
    pub(super) fn fault(&mut self, at: &Range<usize>, what: String, help: &str) {
        let source = shown(self.file, self.text, None);
        self.faults.push(Diagnostic::error("settings::value", what).label(&source, at.clone(), "").help(help));
    }

    /// Adds what is wrong in words of its own; `secret` is not shown.
    pub(super) fn refuse(&mut self, at: &Range<usize>, secret: bool, fault: Diagnostic) {
        let source = shown(self.file, self.text, secret.then_some(at));
        self.faults.push(fault.label(&source, at.clone(), ""));
    }

    /// What was asked for.
    pub(super) fn form(&self) -> TableForm {
        let keys = self.known.iter().map(|key| ((*key).to_owned(), self.forms[key].clone())).collect();
        TableForm { name: self.name.clone().into_owned(), keys, required: self.lacking.clone() }
    }

    fn take(&mut self, key: &'static str, form: Form) -> Option<(Range<usize>, DeValue<'a>)> {
        self.known.push(key);
        self.forms.insert(key, form);
        self.entries.remove(key).map(|(_, at, value)| (at, value))
    }

    /// A text that is not empty.
    pub(super) fn text(&mut self, key: &'static str) -> Option<(String, Range<usize>)> {
        self.text_of(key, Form::Text)
    }

    fn text_of(&mut self, key: &'static str, form: Form) -> Option<(String, Range<usize>)> {
        let (at, value) = self.take(key, form)?;
        match value {
            DeValue::String(text) if !text.trim().is_empty() => Some((text.into_owned(), at)),
            _ => {
                self.fault(&at, format!("`{key}` is text"), "put text between quotes");
                None
            }
        }
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, key: &'static str) -> Option<bool> {
        let (at, value) = self.take(key, Form::Flag)?;
        match value {
            DeValue::Boolean(flag) => Some(flag),
            _ => {
                self.fault(&at, format!("`{key}` is true or false"), "write it without quotes");
                None
            }
        }
    }

    /// A whole number in a range.
    pub(super) fn number(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let (at, value) = self.take(key, Form::Number(range.clone()))?;
        let number = match &value {
            DeValue::Integer(number) => u64::from_str_radix(&number.as_str().replace('_', ""), number.radix()).ok(),
            _ => None,
        };
        let number = number.filter(|number| range.contains(number));
        if number.is_none() {
            let what = format!("`{key}` is a whole number from {} to {}", range.start(), range.end());
            self.fault(&at, what, "give such a number, without quotes");
        }
        number
    }

    /// A number that is not less than `least`.
    pub(super) fn real(&mut self, key: &'static str, least: f64) -> Option<f64> {
        let (at, value) = self.take(key, Form::Real(least))?;
        let number = match &value {
            DeValue::Integer(number) => number.as_str().replace('_', "").parse::<f64>().ok(),
            DeValue::Float(number) => number.as_str().replace('_', "").parse::<f64>().ok(),
            _ => None,
        };
        let number = number.filter(|number| number.is_finite() && *number >= least);
        if number.is_none() {
            self.fault(&at, format!("`{key}` is a number of {least} or more"), "give such a number, without quotes");
        }
        number
    }

    /// A list of texts; one text is a list of one.
    pub(super) fn texts(&mut self, key: &'static str) -> Option<Vec<String>> {
        let (at, value) = self.take(key, Form::Texts)?;
        let list = match value {
            DeValue::String(text) => Some(vec![text.into_owned()]),
            DeValue::Array(items) => items
                .into_iter()
                .map(|item| match item.into_inner() {
                    DeValue::String(text) => Some(text.into_owned()),
                    _ => None,
                })
                .collect(),
            _ => None,
        };
        if list.is_none() {
            self.fault(&at, format!("`{key}` is a list of texts"), "write it as `[\"one\", \"two\"]`");
        }
        list
    }

    /// A text that `read` understands; errs with what is wrong, and how it is written.
    pub(super) fn read<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&str) -> Result<T, String>,
        help: &str,
    ) -> Option<T> {
        let (text, at) = self.text(key)?;
        match read(&text) {
            Ok(found) => Some(found),
            Err(what) => {
                self.fault(&at, format!("`{key}`: {what}"), help);
                None
            }
        }
    }

    /// A table of tables: `take` reads each. What is wrong in them is found with what is wrong here.
    pub(super) fn tables<T>(
        &mut self,
        key: &'static str,
        mut take: impl FnMut(&str, &mut Section<'a>) -> T,
    ) -> Vec<(String, T)> {
        let mut empty = Section::new(self.file, self.text, format!("{}.{key}.…", self.name), 0..0, DeTable::new());
        take("", &mut empty);
        let Some((at, value)) = self.take(key, Form::Tables(Box::new(empty.form()))) else { return Vec::new() };
        let DeValue::Table(table) = value else {
            let help = format!("write `[{}.{key}.NAME]` and its keys below", self.name);
            self.fault(&at, format!("`{key}` is a table of tables"), &help);
            return Vec::new();
        };
        let mut all = Vec::new();
        for (name, value) in table {
            let (name_at, span, name) = (name.span(), value.span(), name.into_inner().into_owned());
            let DeValue::Table(table) = value.into_inner() else {
                let help = format!("write `[{}.{key}.{name}]` and its keys below", self.name);
                self.fault(&name_at, format!("`{name}` is a table"), &help);
                continue;
            };
            let mut section = Section::new(self.file, self.text, format!("{}.{key}.{name}", self.name), span, table);
            all.push((name.clone(), take(&name, &mut section)));
            self.faults.extend(section.finish());
        }
        all
    }

    /// One of several words, by its number.
    pub(super) fn word(&mut self, key: &'static str, words: &[&str]) -> Option<usize> {
        let form = Form::Word(words.iter().map(|word| (*word).to_owned()).collect());
        let (text, at) = self.text_of(key, form)?;
        let found = words.iter().position(|word| *word == text);
        if found.is_none() {
            let list = words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(" or ");
            let help = match did_you_mean(&text, words.iter().copied()) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("write {list}"),
            };
            self.fault(&at, format!("`{key}` is {list}"), &help);
        }
        found
    }

    /// A text that must be there.
    pub(super) fn required(&mut self, key: &'static str, help: &str) -> Option<(String, Range<usize>)> {
        let is_there = self.has(key);
        let found = self.text(key);
        if !is_there {
            self.lacks(key, help);
        }
        found
    }

    /// Whether a key is there that was not taken yet.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Says that the table lacks a key.
    pub(super) fn lacks(&mut self, key: &str, help: &str) {
        self.lacking.push(key.to_owned());
        let source = shown(self.file, self.text, None);
        let what = format!("`[{}]` has no `{key}`", self.name);
        let end = self.text[self.span.start..].find('\n').map_or(self.text.len(), |line| self.span.start + line);
        let fault = Diagnostic::error("settings::missing-key", what);
        self.faults.push(fault.label(&source, self.span.start..self.span.end.min(end), "").help(help));
    }

    /// All that is wrong, with the keys that no one took.
    pub(super) fn finish(mut self) -> Vec<Diagnostic> {
        for (key, (at, value_at, _)) in std::mem::take(&mut self.entries) {
            // The line is shown, and what is on it may be a secret.
            let source = shown(self.file, self.text, Some(&value_at));
            let lower = key.to_lowercase();
            let fault = if SECRET.iter().any(|word| lower.contains(word)) {
                Diagnostic::error(
                    "settings::secret",
                    format!("`{key}` looks like a credential, which has no place here"),
                )
                .label(&source, at, "not shown")
                .help(format!("set it in the environment ({}) and remove it from the file", variables(&self.name)))
            } else {
                let fault = Diagnostic::error("settings::unknown-key", format!("`[{}]` has no key `{key}`", self.name))
                    .label(&source, at, "unknown key");
                match did_you_mean(&key, self.known.iter().copied()) {
                    Some(near) => fault.help(format!("a key with a similar name exists: `{near}`")),
                    None => {
                        let known: Vec<_> = self.known.iter().map(|key| format!("`{key}`")).collect();
                        fault.help(format!("its keys are {}", known.join(", ")))
                    }
                }
            };
            self.faults.push(fault);
        }
        self.faults.sort_by_key(|fault| fault.labels.first().map(|label| label.span.start));
        self.faults
    }
}
