//! `[models.NAME]` with `source = "openai:MODEL"`: a model that is spoken to over HTTP.

use std::ops::Range;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::findings::Findings;
use super::source::ModelDeclaration;
use super::tree::{Tree, from_tree};
use super::{ModelSource, Origin};
use crate::diag::Diagnostic;
use crate::endpoint::{Calling, Endpoint, OMITTABLE, OPENAI, OWN_FIELDS, Price, base_url};
use crate::env;

/// Keys that only endpoints have.
pub(super) const KEYS: &[&str] = &[
    "base_url",
    "api_key_env",
    "requests_per_minute",
    "tokens_per_minute",
    "concurrency",
    "timeout",
    "retries",
    "price",
    "extra",
    "omit",
    "max_tokens_field",
];
/// More calls at once than this are a slip of the pen.
const MOST_AT_ONCE: usize = 256;
/// The longest that a call may take: a day.
const LONGEST: f64 = 86_400.0;
const MOST_RETRIES: u32 = 1000;

#[derive(Deserialize, Default, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct EndpointTable {
    /// `openai:MODEL`: a model behind an HTTP endpoint of OpenAI's form.
    source: String,
    /// What `/chat/completions` is put after; OpenAI's own without it.
    base_url: Option<String>,
    /// Name of the environment variable with the key; never the key itself.
    api_key_env: Option<String>,
    /// Calls a minute at most, by each node for itself.
    requests_per_minute: Option<u32>,
    /// Tokens a minute at most, of prompts and answers together, by each node for itself.
    tokens_per_minute: Option<u64>,
    /// Calls at once; 4 without it.
    concurrency: Option<usize>,
    /// Seconds for one call; 120 without it.
    timeout: Option<f64>,
    /// How often a call that failed is made again; 8 without it.
    retries: Option<u32>,
    /// What a million tokens cost, for estimates and the metric `cost`.
    price: Option<Price>,
    /// Further fields of each request's body, such as `{ top_k = 1 }`.
    extra: Map<String, Value>,
    /// Which of `temperature`, `top_p`, `stop` and `seed` are left out of each request's body.
    omit: Vec<String>,
    /// What the body's field for the most tokens is called; `max_tokens` without it.
    max_tokens_field: Option<String>,
}

/// The name of the model at its server, if the table is one of an endpoint.
pub(super) fn named(tree: &Tree) -> Option<String> {
    let source = tree.table()?.get("source")?.value.text()?;
    source.strip_prefix("openai:").map(|name| name.trim().to_owned())
}

/// Reports keys of endpoints in the table of a model that is none, and takes them out.
pub(super) fn strays(what: &str, tree: &mut Tree, findings: &mut Findings) {
    let source = Arc::clone(&findings.source);
    let Some(table) = tree.table_mut() else { return };
    for key in KEYS {
        if let Some(entry) = table.shift_remove(key) {
            findings.add(
                Diagnostic::error("pipeline::not-an-endpoint", format!("{what} has `{key}` and is no endpoint"))
                    .label(&source, entry.key_span, "only for `openai:` sources")
                    .help(format!("remove `{key}`, or write `source = \"openai:MODEL\"`")),
            );
        }
    }
}

/// Reads the table of an endpoint; what is wrong is reported.
pub(super) fn model(
    name: &str,
    model: String,
    key_span: &Range<usize>,
    mut tree: Tree,
    findings: &mut Findings,
) -> Option<ModelDeclaration> {
    let source = Arc::clone(&findings.source);
    let what = format!("endpoint `{name}`");
    let places = tree.clone();
    let (table, _) = findings.fit(&what, &mut tree, from_tree::<EndpointTable>);
    let table = table?;
    let mut sound = true;
    let plain = |field: &str| field.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let variable = match (&table.api_key_env, &table.base_url) {
        (Some(variable), _) => Some(variable.clone()),
        (None, None) => Some(env::OPENAI_API_KEY.name.to_owned()),
        (None, Some(_)) => None,
    };
    let mut require = |holds: bool, path: &str, wrong: &str, help: &str| {
        if !holds {
            sound = false;
            findings.add(
                Diagnostic::error("pipeline::endpoint", format!("{what}: {wrong}"))
                    .label(&source, places.place(path), "")
                    .help(help),
            );
        }
    };
    require(!model.is_empty(), "source", "`openai:` without a name", "write `openai:MODEL`");
    let address = base_url(table.base_url.as_deref().unwrap_or(OPENAI));
    if let Err((wrong, help)) = &address {
        require(false, "base_url", &format!("`base_url` cannot be used: {wrong}"), help);
    }
    for field in OWN_FIELDS.iter().filter(|field| table.extra.contains_key(**field)) {
        let help = match *field {
            "n" | "stream" => "remove it: one answer is asked for at a time, and whole",
            "model" => "write `source = \"openai:MODEL\"`",
            _ => "remove it: the nodes that speak to the model have fields for it",
        };
        require(false, &format!("extra.{field}"), &format!("`extra` has `{field}`, which is made by sami"), help);
    }
    for field in table.omit.iter().filter(|field| !OMITTABLE.contains(&field.as_str())) {
        let wrong = format!("`{field}` cannot be left out");
        require(false, "omit", &wrong, "name some of `temperature`, `top_p`, `stop` and `seed`");
    }
    let defaults = Calling::default();
    let calling = Calling {
        api_key_env: variable,
        requests_per_minute: table.requests_per_minute,
        tokens_per_minute: table.tokens_per_minute,
        concurrency: table.concurrency.unwrap_or(defaults.concurrency),
        timeout: table.timeout.unwrap_or(defaults.timeout),
        retries: table.retries.unwrap_or(defaults.retries),
        price: table.price,
        max_tokens_field: table.max_tokens_field.unwrap_or(defaults.max_tokens_field),
    };
    let at_once = (1..=MOST_AT_ONCE).contains(&calling.concurrency);
    require(at_once, "concurrency", "calls at once must be 1 to 256", "4 is the default");
    let seconds = calling.timeout > 0.0 && calling.timeout <= LONGEST;
    require(seconds, "timeout", "a call may take some seconds, up to a day", "120 is the default");
    require(calling.retries <= MOST_RETRIES, "retries", "more than 1000 tries", "8 is the default");
    let help = "leave it out to call without such a limit";
    require(calling.requests_per_minute != Some(0), "requests_per_minute", "no calls at all", help);
    require(calling.tokens_per_minute != Some(0), "tokens_per_minute", "no tokens at all", help);
    for (field, price) in calling.price.iter().flat_map(|price| [("input", price.input), ("output", price.output)]) {
        let path = format!("price.{field}");
        require(price.is_finite() && price >= 0.0, &path, "a price is 0 or more", "give it per million tokens");
    }
    let named = !calling.max_tokens_field.is_empty() && plain(&calling.max_tokens_field);
    let help = "`max_tokens` is the default; some models want `max_completion_tokens`";
    require(named, "max_tokens_field", "`max_tokens_field` is no name of a field", help);
    if let Some(variable) = &calling.api_key_env
        && (variable.is_empty() || !plain(variable) || variable.as_bytes()[0].is_ascii_digit())
    {
        // The line may hold the key itself: it is not shown.
        sound = false;
        findings.add(
            Diagnostic::error("pipeline::endpoint", format!("{what}: `api_key_env` is no name of a variable"))
                .label(&source, key_span.clone(), "of this model")
                .help("put the key into an environment variable and write that variable's name, as `OPENAI_API_KEY`"),
        );
    }
    let base_url = address.ok().filter(|_| sound)?;
    let endpoint = Endpoint { model, base_url, extra: table.extra, omit: table.omit };
    let origin = Origin::Endpoint { endpoint, calling };
    Some(ModelDeclaration::Source(Box::new(ModelSource { origin, dtype: None, span: places.place("source") })))
}
