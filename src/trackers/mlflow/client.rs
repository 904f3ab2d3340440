//! Requests to an MLflow server, by its REST API of version 2.0.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use ureq::Agent;
use ureq::http::{Response, StatusCode};
use ureq::{Body, Error};

use crate::{env, secret};

/// What a server says is larger only if it is none.
const LARGEST_BODY: u64 = 64 << 20;
/// Letters of what it says that are shown.
const SHOWN: usize = 300;
/// Longest time to wait for a connection.
const CONNECT: Duration = Duration::from_secs(3);

/// Makes requests to one server.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    url: String,
    authorization: Option<Authorization>,
}

/// The header with the credentials; never shown.
struct Authorization(String);

impl std::fmt::Debug for Authorization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authorization")
    }
}

/// Why a request brought nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// It may bring something another time.
    Again(String),
    /// It never will: the status, MLflow's name for what is wrong, and what the server says.
    Never {
        /// The status of the answer.
        status: u16,
        /// Such as `RESOURCE_DOES_NOT_EXIST`; empty if it is not MLflow that answers.
        code: String,
        /// In its words, cut.
        said: String,
    },
}

impl Client {
    /// Credentials come from the environment: a token, or a user and a password.
    pub(super) fn new(url: &str, timeout: Duration) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // Credentials go nowhere else.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT.min(timeout)))
            .timeout_global(Some(timeout))
            .user_agent(concat!("sami/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        let basic = || {
            let (user, password) = (env::MLFLOW_TRACKING_USERNAME.get()?, env::MLFLOW_TRACKING_PASSWORD.get());
            let both = BASE64_STANDARD.encode(format!("{user}:{}", password.unwrap_or_default()));
            secret::add("MLFLOW_TRACKING_PASSWORD", &both);
            Some(format!("Basic {both}"))
        };
        let bearer = env::MLFLOW_TRACKING_TOKEN.get().map(|token| format!("Bearer {}", token.trim()));
        Self { agent, url: url.to_owned(), authorization: bearer.or_else(basic).map(Authorization) }
    }

    /// Asks, with parameters.
    pub(super) fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value, Fault> {
        let mut request = self.agent.get(format!("{}/api/2.0/mlflow/{path}", self.url));
        for (name, value) in parameters {
            request = request.query(name, value);
        }
        if let Some(Authorization(header)) = &self.authorization {
            request = request.header("authorization", header);
        }
        answer(request.call())
    }

    /// Tells.
    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Value, Fault> {
        let url = format!("{}/api/2.0/mlflow/{path}", self.url);
        let mut request = self.agent.post(url).header("content-type", "application/json");
        if let Some(Authorization(header)) = &self.authorization {
            request = request.header("authorization", header);
        }
        answer(request.send(body.to_string()))
    }
}

/// What an answer says.
fn answer(answered: Result<Response<Body>, Error>) -> Result<Value, Fault> {
    let mut response = match answered {
        Ok(response) => response,
        // A header that cannot be, or an address that leads nowhere, does not change.
        Err(error @ (Error::Http(_) | Error::BadUri(_))) => return Err(never(0, "", &error.to_string())),
        Err(error) => return Err(Fault::Again(shown(&error.to_string()))),
    };
    let status = response.status();
    let bytes = response.body_mut().with_config().limit(LARGEST_BODY).read_to_vec();
    if status.is_redirection() {
        let to = response.headers().get("location").and_then(|to| to.to_str().ok()).unwrap_or_default();
        return Err(never(status.as_u16(), "", &format!("it leads to {to}")));
    }
    let bytes = match bytes {
        Ok(bytes) => bytes,
        Err(_) if !status.is_success() => Vec::new(),
        Err(error) => return Err(Fault::Again(shown(&format!("its answer broke off: {error}")))),
    };
    let value: Option<Value> = serde_json::from_slice(&bytes).ok();
    if status.is_success() {
        // Some requests are answered by an empty object, none by anything else.
        return value
            .filter(Value::is_object)
            .ok_or_else(|| never(status.as_u16(), "", "what answers is no MLflow server"));
    }
    let text = |name: &str| value.as_ref().and_then(|value| value[name].as_str()).unwrap_or_default().to_owned();
    let said = match text("message") {
        said if said.is_empty() => String::from_utf8_lossy(&bytes).into_owned(),
        said => said,
    };
    match status {
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
            Err(Fault::Again(shown(&format!("it answered {status}: {said}"))))
        }
        status if status.is_server_error() => Err(Fault::Again(shown(&format!("it answered {status}: {said}")))),
        status => Err(never(status.as_u16(), &text("error_code"), &said)),
    }
}

fn never(status: u16, code: &str, said: &str) -> Fault {
    Fault::Never { status, code: code.to_owned(), said: shown(said) }
}

/// What someone else said, cut to what is worth showing, and without secrets.
fn shown(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    secret::redact(&text).trim_end_matches([':', ' ']).chars().take(SHOWN).collect()
}
