//! Models behind an HTTP endpoint of OpenAI's form (`/chat/completions`), wherever it runs.
//!
//! Reading order: this file (what an endpoint is and how it is called), `client` (one call), `pace` (how many a minute),
//! `calls` (many calls: threads, tries, interrupts), `estimate` (what they will come to), `purse` (what may be spent on them).

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use ureq::http::Uri;

use crate::{env, secret};

mod calls;
mod client;
mod error;
mod estimate;
mod pace;
mod purse;

pub use calls::{End, Tally, ask_all};
pub use client::{Client, Conversation, Fault, Reply, Settings};
pub use error::EndpointError;
pub use estimate::{Estimate, tokens_of};
pub use purse::{Allowance, Payer, Purse, Spent};

/// The file of an endpoint's artifact: the JSON of [`Endpoint`].
pub const FILE: &str = "endpoint.json";
/// Where OpenAI's own models are.
pub const OPENAI: &str = "https://api.openai.com/v1";

/// Fields of a request's body that are made here, so that none may stand in `extra`.
pub const OWN_FIELDS: &[&str] = &[
    "model",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "stop",
    "seed",
    "n",
    "stream",
];
/// Fields of a request's body that can be left out for a server that refuses them.
pub const OMITTABLE: &[&str] = &["temperature", "top_p", "stop", "seed"];

/// What decides an endpoint's answers; the content of its artifact. No secret, no speed and no price.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// The model's name at the server.
    pub model: String,
    /// What `/chat/completions` is put after; no slash at its end.
    pub base_url: String,
    /// Further fields of each request's body.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub extra: Map<String, Value>,
    /// Fields that are left out of each request's body.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub omit: Vec<String>,
}

/// How an endpoint is called; decides no answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calling {
    /// Name of the environment variable with the key; without it no key is sent.
    pub api_key_env: Option<String>,
    /// Calls a minute at most.
    pub requests_per_minute: Option<u32>,
    /// Tokens a minute at most, of prompts and answers together.
    pub tokens_per_minute: Option<u64>,
    /// Calls at once.
    pub concurrency: usize,
    /// Seconds for one call, from the connection to the last byte.
    pub timeout: f64,
    /// How often a call that failed is made again.
    pub retries: u32,
    /// What tokens cost.
    pub price: Option<Price>,
    /// The body's field for the most tokens of an answer: `max_tokens`, or `max_completion_tokens`.
    pub max_tokens_field: String,
}

impl Default for Calling {
    fn default() -> Self {
        Self {
            api_key_env: None,
            requests_per_minute: None,
            tokens_per_minute: None,
            concurrency: 4,
            timeout: 120.0,
            retries: 8,
            price: None,
            max_tokens_field: "max_tokens".to_owned(),
        }
    }
}

/// Prices per million tokens, in whatever currency.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Of tokens of prompts.
    pub input: f64,
    /// Of tokens of answers.
    pub output: f64,
}

impl Price {
    /// What so many tokens of prompts and of answers cost.
    pub fn of(&self, prompt: u64, completion: u64) -> f64 {
        (self.input * prompt as f64 + self.output * completion as f64) / 1e6
    }
}

impl Calling {
    /// The key that calls carry, read from the environment now; `None` where the endpoint wants none.
    pub fn key(&self, endpoint: &Endpoint) -> Result<Option<Key>, EndpointError> {
        let Some(variable) = &self.api_key_env else { return Ok(None) };
        match env::named(variable).as_deref().map(Key::new) {
            Some(Some(key)) => {
                secret::add(variable, &key.0);
                Ok(Some(key))
            }
            found => Err(EndpointError::NoKey {
                model: endpoint.model.clone(),
                variable: variable.clone(),
                set: found.is_some(),
            }),
        }
    }
}

/// A secret that calls are paid with. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// The key in a text, white space around it taken off; `None` if that leaves nothing that can be one.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())).then(|| Self(text.to_owned()))
    }

    /// A text without the key, should someone have put it there.
    fn hidden_in(&self, text: &str) -> String {
        text.replace(&self.0, "…")
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// A base URL as it is kept. Errs with what is wrong with it and what to do.
pub fn base_url(text: &str) -> Result<String, (String, &'static str)> {
    const FORM: &str = "write it as `http://127.0.0.1:8080/v1`: what `/chat/completions` is put after";
    let text = text.trim();
    let Some(rest) = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")) else {
        return Err(("it does not begin with `http://` or `https://`".to_owned(), FORM));
    };
    if rest.is_empty() || rest.starts_with([':', '/']) {
        return Err(("it names no host".to_owned(), FORM));
    }
    let text = text.trim_end_matches('/');
    let uri: Uri = text.parse().map_err(|error| (format!("it is no URL: {error}"), FORM))?;
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        let help = "put the key into an environment variable and name that: `api_key_env = \"…\"`";
        return Err(("it has a name or a password in it, which would get into artifacts".to_owned(), help));
    }
    if uri.query().is_some() || text.contains('#') {
        return Err(("it goes on after its path".to_owned(), "leave out what follows `?` or `#`"));
    }
    if uri.path().ends_with("/chat/completions") {
        return Err(("`/chat/completions` is put after it".to_owned(), "leave `/chat/completions` out"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_never_printed() {
        let key = Key::new(" sk-secret\n").expect("a key");
        assert!(!format!("{key:?}").contains("secret"), "{key:?}");
        assert_eq!(key.hidden_in("no sk-secret here"), "no … here");
        assert_eq!(Key::new(" \n"), None);
        assert_eq!(Key::new("a\nb"), None, "it would be two headers");
    }

    #[test]
    fn base_urls_are_looked_at() {
        assert_eq!(base_url("http://127.0.0.1:8080/v1/").as_deref(), Ok("http://127.0.0.1:8080/v1"));
        assert_eq!(base_url(OPENAI).as_deref(), Ok(OPENAI));
        for (text, wrong) in [
            ("localhost:8080", "does not begin"),
            ("ftp://host/v1", "does not begin"),
            ("http://", "no host"),
            ("https://:80/v1", "no host"),
            ("not a url", "does not begin"),
            ("", "does not begin"),
            ("http://a b/v1", "no URL"),
            ("https://me:pw@host/v1", "password"),
            ("https://host/v1?key=1", "goes on"),
            ("https://host/v1#a", "goes on"),
            ("https://host/v1/chat/completions", "is put after"),
        ] {
            let (what, _) = base_url(text).expect_err(text);
            assert!(what.contains(wrong), "{text}: {what}");
        }
    }

    #[test]
    fn an_artifact_says_what_decides_answers_and_no_more() {
        let endpoint =
            Endpoint { model: "gpt".to_owned(), base_url: OPENAI.to_owned(), extra: Map::new(), omit: Vec::new() };
        let text = serde_json::to_string(&endpoint).expect("JSON");
        assert_eq!(text, r#"{"model":"gpt","base_url":"https://api.openai.com/v1"}"#);
        assert_eq!(serde_json::from_str::<Endpoint>(&text).expect("reads"), endpoint);
    }

    #[test]
    fn prices_are_per_million_tokens() {
        assert!((Price { input: 30.0, output: 60.0 }.of(500_000, 100_000) - 21.0).abs() < 1e-9);
    }
}
