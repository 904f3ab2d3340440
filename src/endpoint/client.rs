//! One call: what is sent, what comes back, and which failures are worth another try.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use ureq::Agent;
use ureq::http::HeaderMap;

use super::pace::Pace;
use super::{Calling, Endpoint, EndpointError, Key, Payer, tokens_of};

/// What is said to a model, in one turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// A system message before it.
    pub system: Option<String>,
    /// What the user says.
    pub user: String,
    /// Seed of the server's random numbers, should it heed it.
    pub seed: u64,
}

/// How answers are sampled.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Settings {
    /// Tokens of an answer at most.
    pub max_new_tokens: usize,
    /// 0 is greedy.
    pub temperature: f64,
    /// Share of the probability that is sampled from; 1 is all.
    pub top_p: f64,
    /// Texts that end an answer.
    pub stop: Vec<String>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Its text; empty if the model said nothing.
    pub text: String,
    /// Why it ended, in the server's word: `stop`, `length`, `content_filter`.
    pub finish: String,
    /// Tokens of the prompt as the server counts them, or estimated.
    pub prompt_tokens: u64,
    /// Tokens of the answer as the server counts them (thoughts that are not shown included), or estimated.
    pub completion_tokens: u64,
}

/// Why a call gave no answer.
#[derive(Debug)]
pub enum Fault {
    /// It may do so another time.
    Again {
        /// What happened.
        what: String,
        /// How long the server wants to be left alone.
        after: Option<Duration>,
        /// Whether a server answered at all.
        reached: bool,
    },
    /// It was not made: what it may cost is more than is left.
    Unpaid,
    /// It never will.
    Never(EndpointError),
}

/// Answers are texts; what is larger is something else.
const LARGEST_BODY: u64 = 16 << 20;
/// Letters of what a server says that are shown.
const SHOWN: usize = 300;
/// Longest time to wait for a connection.
const CONNECT: Duration = Duration::from_secs(15);

/// Makes calls to one endpoint. Cheap to clone; clones share connections and limits by the minute.
#[derive(Debug, Clone)]
pub struct Client {
    agent: Agent,
    endpoint: Endpoint,
    url: String,
    max_tokens_field: String,
    key: Option<Key>,
    pace: Arc<Mutex<Pace>>,
    payer: Option<Payer>,
}

#[derive(Deserialize)]
struct Body {
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    content: Option<Content>,
    #[serde(default)]
    refusal: Option<String>,
}

/// Some servers give an answer in parts.
#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Whole(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    text: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: Option<u64>,
    #[serde(default)]
    completion_tokens: Option<u64>,
}

impl Conversation {
    /// About how many tokens it has.
    pub fn tokens(&self) -> u64 {
        tokens_of(&self.user) + self.system.as_deref().map_or(0, tokens_of)
    }
}

impl Client {
    /// Makes calls in this manner, with this key.
    pub fn new(endpoint: &Endpoint, calling: &Calling, key: Option<Key>) -> Self {
        let limit = Duration::try_from_secs_f64(calling.timeout).unwrap_or(Duration::from_secs(3600));
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT.min(limit)))
            .timeout_global(Some(limit))
            .max_idle_connections_per_host(calling.concurrency.max(1))
            .user_agent(concat!("sami/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        let url = format!("{}/chat/completions", endpoint.base_url);
        let pace = Arc::new(Mutex::new(Pace::new(calling, Instant::now())));
        Self {
            agent,
            endpoint: endpoint.clone(),
            url,
            max_tokens_field: calling.max_tokens_field.clone(),
            key,
            pace,
            payer: None,
        }
    }

    /// The same, its calls being paid for.
    #[must_use]
    pub fn paid_by(self, payer: Payer) -> Self {
        Self { payer: Some(payer), ..self }
    }

    /// The model's name at the server.
    pub fn model(&self) -> &str {
        &self.endpoint.model
    }

    /// The address that is called.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What says when calls may be made.
    pub(super) fn pace<T>(&self, with: impl FnOnce(&mut Pace) -> T) -> T {
        with(&mut self.pace.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The body of a request.
    fn body(&self, said: &Conversation, settings: &Settings) -> Value {
        let mut messages = Vec::with_capacity(2);
        if let Some(system) = &said.system {
            messages.push(json!({"role": "system", "content": system}));
        }
        messages.push(json!({"role": "user", "content": said.user}));
        // Servers keep seeds in signed numbers of 32 or 64 bits.
        let seed = (said.seed ^ said.seed >> 32) & 0x7fff_ffff;
        let mut body = Map::from_iter([
            ("model".to_owned(), json!(self.endpoint.model)),
            ("messages".to_owned(), json!(messages)),
            (self.max_tokens_field.clone(), json!(settings.max_new_tokens)),
            ("temperature".to_owned(), json!(settings.temperature)),
            ("top_p".to_owned(), json!(settings.top_p)),
            ("seed".to_owned(), json!(seed)),
        ]);
        if !settings.stop.is_empty() {
            body.insert("stop".to_owned(), json!(settings.stop));
        }
        for field in &self.endpoint.omit {
            body.remove(field);
        }
        body.extend(self.endpoint.extra.clone());
        Value::Object(body)
    }

    /// Makes one call.
    pub fn call(&self, said: &Conversation, settings: &Settings) -> Result<Reply, Fault> {
        let pay = |payer: &Payer| payer.pay(said, settings.max_new_tokens).ok_or(Fault::Unpaid);
        let paid = self.payer.as_ref().map(pay).transpose()?.unwrap_or(0.0);
        let settle = |reply: Option<&Reply>| self.payer.iter().for_each(|payer| payer.settle(paid, reply));
        let body = self.body(said, settings).to_string();
        let mut request = self.agent.post(&self.url).header("content-type", "application/json");
        if let Some(Key(key)) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let again = |what: String, reached| Fault::Again { what: self.shown(&what), after: None, reached };
        let mut response = request.send(body.as_bytes()).map_err(|error| again(error.to_string(), false))?;
        let (status, after) = (response.status(), retry_after(response.headers()));
        let location = response.headers().get("location").and_then(|to| to.to_str().ok()).map(str::to_owned);
        let bytes = response.body_mut().with_config().limit(LARGEST_BODY).read_to_vec();
        if !status.is_success() {
            settle(None);
            // What is wrong is said by the status; the text may be cut.
            let text = String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned();
            let said = self.shown(&location.map_or_else(|| message(&text), |to| format!("it leads to {to}")));
            let said = if said.is_empty() { said } else { format!(": {said}") };
            return Err(if worth_another(status.as_u16(), &text) {
                Fault::Again { what: format!("it answered {status}{said}"), after, reached: true }
            } else {
                let (model, url) = (self.endpoint.model.clone(), self.url.clone());
                Fault::Never(EndpointError::Refused { model, status: status.as_u16(), said, url })
            });
        }
        let bytes = bytes.map_err(|error| again(format!("its answer broke off: {error}"), true))?;
        let reply = reply(&bytes, said).map_err(|what| {
            let text: String = String::from_utf8_lossy(&bytes).chars().take(SHOWN).collect();
            again(format!("its answer is none of a chat completion ({what}): {text}"), true)
        })?;
        settle(Some(&reply));
        Ok(reply)
    }

    /// What someone else said, cut to what is worth showing, and without the key.
    fn shown(&self, text: &str) -> String {
        let text = self.key.as_ref().map_or_else(|| text.to_owned(), |key| key.hidden_in(text));
        text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(SHOWN).collect()
    }
}

/// Whether a status may be another one soon. An account without money is told by 429, too, and stays so.
fn worth_another(status: u16, text: &str) -> bool {
    match status {
        429 => !text.contains("insufficient_quota"),
        408 | 409 | 425 => true,
        status => status >= 500 && status != 501,
    }
}

/// What an error's body says.
fn message(text: &str) -> String {
    let value: Value = serde_json::from_str(text).unwrap_or_default();
    let error = &value["error"];
    let said = [&error["message"], error, &value["message"], &value["detail"]].into_iter().find_map(Value::as_str);
    said.unwrap_or(text).to_owned()
}

/// How long a server wants to be left alone: seconds, or until a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| Some(headers.get(name)?.to_str().ok()?.trim().to_owned());
    if let Some(milliseconds) = text("retry-after-ms").and_then(|text| text.parse::<f64>().ok()) {
        return Duration::try_from_secs_f64(milliseconds / 1e3).ok();
    }
    let text = text("retry-after")?;
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let until = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(&text).ok()?;
    Duration::try_from(until.duration_since(crate::fs::now())).ok()
}

/// Reads a chat completion. Errs with what it lacks.
fn reply(bytes: &[u8], said: &Conversation) -> Result<Reply, String> {
    let body: Body = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let choice = body.choices.into_iter().next().ok_or("no choices")?;
    let finish = choice.finish_reason.unwrap_or_else(|| "stop".to_owned());
    let text = choice.message.content.map(|content| match content {
        Content::Whole(text) => text,
        Content::Parts(parts) => parts.into_iter().filter_map(|part| part.text).collect(),
    });
    let text = text.or(choice.message.refusal);
    // A model that was cut off in its thoughts, or that a filter silenced, has said nothing.
    let silent = ["length", "content_filter"].contains(&finish.as_str());
    let text = text.or_else(|| silent.then(String::new)).ok_or("no content")?;
    let usage = body.usage.unwrap_or(Usage { prompt_tokens: None, completion_tokens: None });
    Ok(Reply {
        prompt_tokens: usage.prompt_tokens.unwrap_or_else(|| said.tokens()),
        completion_tokens: usage.completion_tokens.unwrap_or_else(|| tokens_of(&text)),
        text,
        finish,
    })
}
