//! What can go wrong between here and an endpoint.

use crate::diag::Diagnostic;

/// Why an endpoint gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// The variable with the key is not set, or holds what cannot be one.
    #[error("`{variable}` {}, which has the key of endpoint `{model}`", if *.set { "holds what cannot be a key" } else { "is not set" })]
    NoKey {
        /// The model's name.
        model: String,
        /// The environment variable.
        variable: String,
        /// Whether it is set.
        set: bool,
    },
    /// The server does not do what it was asked, and never will.
    #[error("the endpoint of `{model}` answered {status}{said}")]
    Refused {
        /// The model's name.
        model: String,
        /// The HTTP status.
        status: u16,
        /// What the server said: empty, or after a colon.
        said: String,
        /// Where it was asked.
        url: String,
    },
    /// Every try failed.
    #[error("the endpoint of `{model}` gave no answer in {tries} tries; the last one: {what}")]
    GaveUp {
        /// The model's name.
        model: String,
        /// How often it was asked.
        tries: u32,
        /// What the last try came to.
        what: String,
        /// Where it was asked.
        url: String,
    },
    /// A file is no endpoint's.
    #[error("`endpoint.json` cannot be read: {what}")]
    Malformed {
        /// What is wrong.
        what: String,
    },
}

impl EndpointError {
    /// As data that the command line draws.
    pub fn diagnostic(&self) -> Diagnostic {
        let title = self.to_string();
        match self {
            Self::NoKey { variable, .. } => Diagnostic::error("endpoint::no-key", title).help(format!(
                "set it: `export {variable}=…`; or name another variable with `api_key_env` of the model"
            )),
            Self::Refused { status, url, .. } => {
                Diagnostic::error("endpoint::refused", title).help(fix_of(*status, url))
            }
            Self::GaveUp { url, .. } => Diagnostic::error("endpoint::gave-up", title).help(format!(
                "see that {url} is up, and run it again: the answers that came are kept; `retries`, `timeout` and \
                 `requests_per_minute` of the model say how it is asked"
            )),
            Self::Malformed { .. } => Diagnostic::error("endpoint::malformed", title)
                .help("an endpoint's artifact is made by sami: `sami cache verify` finds what was damaged"),
        }
    }
}

/// What to do about a status that stays.
fn fix_of(status: u16, url: &str) -> String {
    match status {
        300..=399 => format!("{url} leads elsewhere: give the address that it leads to as `base_url`"),
        401 | 403 => {
            "see that the variable that `api_key_env` names holds a key for this server and this model".to_owned()
        }
        402 | 429 => "see to the account's balance and limits".to_owned(),
        404 => format!("see that `base_url` and the model's name are right: {url} was asked"),
        413 => "shorten the prompt".to_owned(),
        _ => "see what the server says; `extra`, `omit` and `max_tokens_field` of the model change what it is sent"
            .to_owned(),
    }
}
