//! An OpenAI-compatible endpoint on this machine: it answers as it is scripted to, call by call, and keeps what it was asked.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use super::http::{Request, serve};

/// A call as it came.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// Which call it is, from 0, over all that the server was asked.
    pub(crate) number: usize,
    pub(crate) path: String,
    /// Names in small letters.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Value,
}

/// What the server does with a call.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    /// Answers with this text.
    Say(String),
    /// Answers with this text after so long.
    Late(Duration, String),
    /// A status, a header line (or none) and a body.
    Status(u16, &'static str, String),
    /// A body of one's own with status 200.
    Body(String),
    /// The connection ends in the middle of a good answer.
    Half,
    /// The connection ends without an answer.
    Drop,
    /// No answer comes, and the connection stays.
    Hang,
}

/// Serves until the process ends.
#[derive(Debug)]
pub(crate) struct Server {
    calls: Arc<Mutex<Vec<Call>>>,
    pub(crate) base_url: String,
}

impl Call {
    /// What was said by a role, if it said anything.
    pub(crate) fn said(&self, role: &str) -> Option<&str> {
        let messages = self.body["messages"].as_array()?;
        messages.iter().find(|message| message["role"] == role)?["content"].as_str()
    }

    /// What the user said; empty if nothing.
    pub(crate) fn user(&self) -> &str {
        self.said("user").unwrap_or_default()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

impl Act {
    /// Answers with a text.
    pub(crate) fn say(text: impl Into<String>) -> Self {
        Self::Say(text.into())
    }

    /// A status with an error as OpenAI's are.
    pub(crate) fn error(status: u16, message: &str) -> Self {
        Self::Status(status, "", json!({"error": {"message": message, "type": "told_to"}}).to_string())
    }
}

impl Server {
    /// Acts by a script, which sees each call.
    pub(crate) fn start(script: impl Fn(&Call) -> Act + Send + Sync + 'static) -> Self {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let (script, kept) = (Arc::new(script), Arc::clone(&calls));
        let address = serve(move |stream| {
            answer(stream, &kept, &*script);
            None
        });
        Self { calls, base_url: format!("{address}/v1") }
    }

    /// The calls so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.lock().expect("no thread panicked").clone()
    }

    /// The table of a model of this name behind the server, `more` being further keys.
    pub(crate) fn model(&self, name: &str, more: &str) -> String {
        format!("[models.{name}]\nsource = \"openai:tiny\"\nbase_url = \"{}\"\n{more}\n", self.base_url)
    }
}

/// A good answer's body.
pub(crate) fn completion(text: &str) -> String {
    json!({
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "tiny",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": text.split_whitespace().count(), "total_tokens": 0},
    })
    .to_string()
}

fn answer(stream: &TcpStream, calls: &Mutex<Vec<Call>>, script: &(dyn Fn(&Call) -> Act + Send + Sync)) -> Option<()> {
    let Request { target: path, headers, body, .. } = Request::read(stream)?;
    let body = serde_json::from_slice(&body).ok()?;
    let call = {
        let mut calls = calls.lock().ok()?;
        let call = Call { number: calls.len(), path, headers, body };
        calls.push(call.clone());
        call
    };
    match script(&call) {
        Act::Say(text) => send(stream, 200, "", &completion(&text), usize::MAX),
        Act::Late(pause, text) => {
            std::thread::sleep(pause);
            send(stream, 200, "", &completion(&text), usize::MAX)
        }
        Act::Status(status, header, body) => send(stream, status, header, &body, usize::MAX),
        Act::Body(body) => send(stream, 200, "", &body, usize::MAX),
        Act::Half => send(stream, 200, "", &completion("half of it"), 60),
        Act::Drop => Some(()),
        Act::Hang => {
            std::thread::sleep(Duration::from_secs(3600));
            None
        }
    }
}

fn send(mut stream: &TcpStream, status: u16, header: &str, body: &str, cut: usize) -> Option<()> {
    let header = if header.is_empty() { String::new() } else { format!("{header}\r\n") };
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n{header}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(&body.as_bytes()[..cut.min(body.len())]).ok()?;
    stream.flush().ok()
}

/// Queries under two constitutions each, answered by `model`, the table of a model called `voice`. The table of `generate` is
/// last, so that more of its fields can follow.
pub(crate) fn questions(model: &str, rows: usize) -> String {
    format!(
        r#"{model}
[datasets.questions]
make = {{ rows = {rows}, seed = 2, template = '{{"query": "question {{{{ row }}}}"}}' }}
[nodes.constitutions]
kind = "constitutions"
contrast = "complement"
principles.brief = {{ definition = "be brief .", antithesis = "be long ." }}
[nodes.generate]
kind = "generate"
model = "voice"
queries = "questions"
constitutions = "constitutions"
prompt = "{{{{ constitution }}}} {{{{ query }}}}"
chat = true
max_new_tokens = 12
keep = {{ distinct = false }}
"#
    )
}
