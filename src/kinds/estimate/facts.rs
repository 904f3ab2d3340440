//! What is known of an artifact before it is there.

use std::sync::{Arc, OnceLock};

use minijinja::value::Serde;
use serde_json::{Value, json};

use super::{Amount, LETTERS_PER_TOKEN};
use crate::endpoint::Price;
use crate::kinds::template::Template;
use crate::lm::config::dtype_named;
use crate::lm::{Config, Files, Tokenizer};
use crate::pipeline::dataset::Row;

/// What stands for a principle that is not written yet.
const PRINCIPLE: &str =
    "A response should do what this principle asks for, as well as it can and in a sentence or two.";

/// What is known of an artifact before it is there. What is `None` is not known, or not what it has.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Rows.
    pub rows: Option<Amount>,
    /// Some of its rows, or of the queries behind them.
    pub some: Arc<Vec<Row>>,
    /// The model.
    pub model: Option<Arc<ModelFacts>>,
    /// That it is an endpoint.
    pub endpoint: Option<Asked>,
    /// Constitutions, or those behind its rows.
    pub principles: Option<Principles>,
    /// Responses to each constitution of a row.
    pub responses_each: u64,
    /// Tokens of a prompt that stands in its rows.
    pub prompt: Option<Amount>,
    /// Tokens of a response in its rows.
    pub response: Option<Amount>,
    /// Bytes of a row.
    pub row_bytes: u64,
    /// Why nothing more is known.
    pub unknown: Option<String>,
}

impl Facts {
    /// Nothing, and why.
    pub fn unknown(why: impl Into<String>) -> Self {
        Self { unknown: Some(why.into()), ..Self::default() }
    }

    /// Whether nothing is known, and no reason told.
    pub fn are_none(&self) -> bool {
        let Self { rows, model, endpoint, principles, unknown, .. } = self;
        rows.is_none() && model.is_none() && endpoint.is_none() && principles.is_none() && unknown.is_none()
    }

    /// Of rows of a dataset.
    pub fn of_rows(rows: Amount, some: Vec<Row>) -> Self {
        let bytes = some.iter().map(|row| json!(row).to_string().len() as u64 + 1).sum::<u64>();
        let row_bytes = bytes.div_ceil((some.len() as u64).max(1));
        Self { rows: Some(rows), some: Arc::new(some), row_bytes, ..Self::default() }
    }

    /// Of a model with such files.
    pub fn of_model(files: &Files) -> Self {
        match Config::load(files) {
            Ok(config) => Self::of_form(config, files.clone()),
            Err(error) => Self::unknown(error.to_string()),
        }
    }

    /// Of a model of which no more than `config.json` is known.
    pub fn of_config(config: Value) -> Self {
        match Config::of_json(config) {
            Ok(config) => Self::of_form(config, Files::new()),
            Err(error) => Self::unknown(error.to_string()),
        }
    }

    /// The same, held in the type that the pipeline says, if it says one.
    #[must_use]
    pub fn of_dtype(self, dtype: Option<&str>) -> Self {
        let (Some(dtype), Some(model)) = (dtype.and_then(dtype_named), &self.model) else { return self };
        Self::of_form(Config { dtype, ..model.config.clone() }, model.files.clone())
    }

    pub(super) fn of_form(config: Config, files: Files) -> Self {
        let model = ModelFacts { config, files, is_bound: false, tokenizer: OnceLock::new() };
        Self { model: Some(Arc::new(model)), ..Self::default() }
    }

    /// Of a model that has this form at most: its vocabulary may turn out smaller.
    pub(super) fn of_bound(config: Config) -> Self {
        let model = ModelFacts { config, files: Files::new(), is_bound: true, tokenizer: OnceLock::new() };
        Self { model: Some(Arc::new(model)), ..Self::default() }
    }

    /// Parameters of the model; 0 of what is none, or of which nothing is known.
    pub fn parameters(&self) -> u64 {
        self.model.as_ref().map_or(0, |model| model.config.parameters())
    }

    /// Of an endpoint.
    pub fn of_endpoint(price: Option<Price>) -> Self {
        Self { endpoint: Some(Asked { price }), ..Self::default() }
    }

    /// The same with only a part of the rows.
    #[must_use]
    pub fn sliced(mut self, skip: u64, take: Option<u64>) -> Self {
        self.rows = self.rows.map(|rows| rows.sliced(skip, take));
        self
    }

    /// What a node that ran said of its rows counts more than what was thought before.
    #[must_use]
    pub fn corrected(mut self, metrics: &serde_json::Map<String, Value>) -> Self {
        if let Some(rows) = metrics.get("rows").and_then(Value::as_u64) {
            self.rows = self.rows.map(|_| Amount::exactly(rows));
        }
        if let Some(length) = metrics.get("mean_length").and_then(Value::as_f64) {
            self.response = self.response.map(|_| Amount::about(length.ceil() as u64));
        }
        self
    }

    /// The model's form.
    pub(super) fn config(&self) -> Option<&Config> {
        self.model.as_ref().map(|model| &model.config)
    }

    /// About how many tokens a text has for the model.
    pub(super) fn tokens(&self, text: &str) -> u64 {
        let counted = self.model.as_ref().and_then(|model| model.tokens(text));
        counted.unwrap_or_else(|| (text.chars().count() as u64).div_ceil(LETTERS_PER_TOKEN))
    }

    /// About how many tokens a template gives, filled in for some rows and a constitution, if there is one. `None` where no
    /// row is at hand, or none fits.
    pub(super) fn prompt_tokens(
        &self,
        template: &str,
        rows: &[Row],
        principles: Option<&Principles>,
    ) -> Option<Amount> {
        let template = Template::parse(template).ok()?;
        let (mut tokens, mut prompts) = (0, 0);
        for row in rows {
            let own = minijinja::context! {
                constitution => principles.map(Principles::text),
                principles => principles.map(|one| minijinja::Value::from(Serde(one.list()))),
            };
            let fields = minijinja::Value::from(Serde(row));
            let Ok(text) = template.render(&minijinja::context! { ..own, ..fields }) else { continue };
            tokens += self.tokens(&text);
            prompts += 1;
        }
        (prompts > 0).then(|| Amount::about(tokens.div_ceil(prompts)))
    }
}

/// An endpoint, as far as calls to it go.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// What tokens cost, if that is said.
    pub(super) price: Option<Price>,
}

/// A model: its form, and its tokenizer once that is wanted.
#[derive(Debug)]
pub struct ModelFacts {
    pub(super) config: Config,
    files: Files,
    /// Whether it may turn out smaller.
    pub(super) is_bound: bool,
    tokenizer: OnceLock<Option<Tokenizer>>,
}

impl ModelFacts {
    fn tokens(&self, text: &str) -> Option<u64> {
        if self.files.is_empty() {
            return None;
        }
        let tokenizer = self.tokenizer.get_or_init(|| Tokenizer::load(&self.files).ok()).as_ref()?;
        Some(tokenizer.prompt(text).ok()?.len() as u64)
    }
}

/// How constitutions are.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Principles {
    /// Constitutions of a query.
    pub per_query: u64,
    /// Texts of as many principles as a constitution has.
    pub texts: Vec<String>,
    /// Principles that constitutions are made of.
    pub all: u64,
}

impl Principles {
    /// Of constitutions with so many principles each, out of texts that there are; others are stood for.
    pub fn new(per_query: u64, each: usize, mut texts: Vec<String>) -> Self {
        let all = texts.len().max(each) as u64;
        texts.truncate(each);
        texts.resize(each, PRINCIPLE.to_owned());
        Self { per_query, texts, all }
    }

    /// The text of a constitution.
    pub(super) fn text(&self) -> String {
        let lines = self.texts.iter().enumerate().map(|(at, text)| format!("{}. {text}", at + 1));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// As prompts see them.
    fn list(&self) -> Vec<Value> {
        let one = |text| json!({"name": "principle", "polarity": "definition", "text": text});
        self.texts.iter().map(one).collect()
    }
}
