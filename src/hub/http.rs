//! Requests to the hub: who gets the token, where redirects lead, what is tried again.

use std::fmt;
use std::time::Duration;

use serde::de::DeserializeOwned;
use ureq::http::{HeaderMap, Response, StatusCode, Uri};
use ureq::{Agent, Body};

use super::{HubError, Repo};

/// How often a request is made at most before it counts as failed.
pub(super) const TRIES: u32 = 5;
/// Redirects that are followed.
const REDIRECTS: u32 = 10;
/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A connection that gives nothing for so long is given up; what it gave stays.
const STALLED: Duration = Duration::from_secs(30);
/// Listings and error messages are small; what is larger is something else.
const LARGEST_LISTING: u64 = 64 << 20;

/// A secret that lets its bearer read models. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The token in a text, white space around it taken off; `None` if that leaves nothing that can be one.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())).then(|| Self(text.to_owned()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Makes requests.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<Token>,
    pause: Duration,
}

/// Why a request is to be made again, after how long at least.
pub(super) struct Again {
    pub(super) what: String,
    pub(super) after: Option<Duration>,
}

/// What comes of asking for a file's content.
pub(super) enum Content {
    /// It comes.
    Comes(Box<Response<Body>>),
    /// It may come another time.
    Again(Again),
}

enum Failure {
    Again(Again),
    Hub(HubError),
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        Self::Hub(error)
    }
}

/// The pauses between tries.
pub(super) struct Patience {
    pause: Duration,
    left: u32,
}

impl Patience {
    /// Waits for the next try; errs with `what` if there is none left.
    pub(super) fn wait(&mut self, what: String, at_least: Option<Duration>) -> Result<(), HubError> {
        if self.left <= 1 {
            return Err(HubError::Network { what });
        }
        self.left -= 1;
        tracing::info!("{what}; trying again");
        std::thread::sleep(self.pause.max(at_least.unwrap_or_default()).min(LONGEST_PAUSE));
        self.pause *= 2;
        Ok(())
    }
}

/// What the hub says of a file before it is downloaded.
#[derive(Debug)]
pub(super) struct FileInfo {
    /// The name of its content: a digest.
    pub(super) etag: String,
    pub(super) size: Option<u64>,
}

/// Method, and how redirects are treated.
#[derive(Clone, Copy, PartialEq)]
enum Method {
    Get,
    /// A redirect to a file's content is the answer.
    Head,
}

impl Client {
    pub(super) fn new(endpoint: String, token: Option<Token>, pause: Duration) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(STALLED))
            .timeout_per_read(Some(STALLED))
            .user_agent(concat!("sami/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Self { agent, endpoint, token, pause }
    }

    pub(super) fn patience(&self, tries: u32) -> Patience {
        Patience { pause: self.pause, left: tries }
    }

    /// Asks for JSON.
    pub(super) fn json<T: DeserializeOwned>(&self, repo: &Repo, path: &str, tries: u32) -> Result<T, HubError> {
        self.retried(tries, || {
            let mut response = self.send(repo, Method::Get, path, 0)?;
            let text = response.body_mut().with_config().limit(LARGEST_LISTING).read_to_vec().map_err(transport)?;
            serde_json::from_slice(&text)
                .map_err(|error| Failure::Hub(HubError::Malformed { what: format!("`{path}`: {error}") }))
        })
    }

    /// Asks what a file is called by content, and how large it is.
    pub(super) fn head(&self, repo: &Repo, path: &str) -> Result<FileInfo, HubError> {
        self.retried(TRIES, || {
            let response = self.send(repo, Method::Head, path, 0)?;
            let headers = response.headers();
            let etag = header(headers, "x-linked-etag").or_else(|| header(headers, "etag"));
            let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned());
            let plain = |etag: &String| {
                !etag.is_empty() && etag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            };
            let etag = etag
                .filter(plain)
                .ok_or_else(|| HubError::Malformed { what: format!("`{path}` has no usable etag") })?;
            let linked = header(headers, "x-linked-size");
            // The length of a redirect's own text says nothing.
            let length = header(headers, "content-length").filter(|_| response.status() == StatusCode::OK);
            Ok(FileInfo { etag, size: linked.or(length).and_then(|size| size.parse().ok()) })
        })
    }

    /// Asks for a file's content from byte `from` on, once.
    pub(super) fn content(&self, repo: &Repo, path: &str, from: u64) -> Result<Content, HubError> {
        match self.send(repo, Method::Get, path, from) {
            Ok(response) => Ok(Content::Comes(Box::new(response))),
            Err(Failure::Again(again)) => Ok(Content::Again(again)),
            Err(Failure::Hub(error)) => Err(error),
        }
    }

    fn retried<T>(&self, tries: u32, mut request: impl FnMut() -> Result<T, Failure>) -> Result<T, HubError> {
        let mut patience = self.patience(tries);
        loop {
            match request() {
                Ok(answer) => return Ok(answer),
                Err(Failure::Hub(error)) => return Err(error),
                Err(Failure::Again(Again { what, after })) => patience.wait(what, after)?,
            }
        }
    }

    /// One request, redirects followed. The token goes to the endpoint's host only.
    fn send(&self, repo: &Repo, method: Method, path: &str, from: u64) -> Result<Response<Body>, Failure> {
        let malformed = |what: String| Failure::Hub(HubError::Malformed { what });
        let own: Uri = self.endpoint.parse().map_err(|_| HubError::Endpoint { endpoint: self.endpoint.clone() })?;
        let mut at: Uri = format!("{}{path}", self.endpoint)
            .parse()
            .map_err(|error| malformed(format!("`{path}` is no address: {error}")))?;
        for _ in 0..REDIRECTS {
            let trusted = at.authority() == own.authority() && at.scheme() == own.scheme();
            let mut request = match method {
                Method::Get => self.agent.get(&at),
                Method::Head => self.agent.head(&at),
            };
            // Lengths are those of the file, not of something packed.
            request = request.header("accept-encoding", "identity");
            if from > 0 {
                request = request.header("range", format!("bytes={from}-"));
            }
            if let Some(Token(token)) = self.token.as_ref().filter(|_| trusted) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(transport)?;
            let status = response.status();
            if !status.is_redirection() || status == StatusCode::NOT_MODIFIED {
                return self.checked(repo, path, response);
            }
            let named = response.headers().contains_key("x-linked-etag");
            if method == Method::Head && named {
                return Ok(response);
            }
            let location = header(response.headers(), "location")
                .ok_or_else(|| malformed(format!("`{path}` leads nowhere")))?
                .to_owned();
            let next = absolute(&at, &location).ok_or_else(|| malformed(format!("`{path}` leads to no address")))?;
            if at.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(malformed(format!(
                    "`{path}` leads from https to {}",
                    next.scheme_str().unwrap_or("nowhere")
                )));
            }
            at = next;
        }
        Err(malformed(format!("`{path}` is redirected more than {REDIRECTS} times")))
    }

    fn checked(&self, repo: &Repo, path: &str, mut response: Response<Body>) -> Result<Response<Body>, Failure> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let code = header(response.headers(), "x-error-code").unwrap_or_default().to_owned();
        let said = header(response.headers(), "x-error-message").unwrap_or_default().to_owned();
        if status.is_server_error() || [408, 429].contains(&status.as_u16()) {
            let after = header(response.headers(), "retry-after").and_then(|text| text.trim().parse().ok());
            let what = format!("`{path}` is answered with {status}");
            return Err(Failure::Again(Again { what, after: after.map(Duration::from_secs) }));
        }
        let said = if said.is_empty() {
            let text = response.body_mut().with_config().limit(1 << 16).read_to_string().unwrap_or_default();
            let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            value["error"].as_str().unwrap_or_default().chars().take(300).collect()
        } else {
            said
        };
        let (repo, token) = (repo.clone(), self.token.is_some());
        let gated = code == "GatedRepo" || said.contains("restricted") || said.contains("gated");
        Err(Failure::Hub(match status.as_u16() {
            _ if code == "RevisionNotFound" => HubError::NoRevision { repo },
            401 | 403 if gated => HubError::Gated { repo, token },
            // The hub does not tell strangers whether a repository is private or not there.
            401 if !token || code == "RepoNotFound" => HubError::NoRepo { repo, token },
            404 if code == "EntryNotFound" => {
                HubError::Status { status: 404, path: path.to_owned(), what: ": there is no such file".to_owned() }
            }
            404 if said.contains("Invalid rev") => HubError::NoRevision { repo },
            404 => HubError::NoRepo { repo, token },
            401 | 403 => {
                let what = if said.is_empty() { format!("it answers {status}") } else { said };
                HubError::Denied { repo, what }
            }
            status => {
                let what = if said.is_empty() { said } else { format!(": {said}") };
                HubError::Status { status, path: path.to_owned(), what }
            }
        }))
    }
}

fn transport(error: ureq::Error) -> Failure {
    Failure::Again(Again { what: error.to_string(), after: None })
}

pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Where a redirect leads that was met at `at`.
fn absolute(at: &Uri, location: &str) -> Option<Uri> {
    if location.starts_with("http://") || location.starts_with("https://") {
        return location.parse().ok();
    }
    let (scheme, authority) = (at.scheme_str()?, at.authority()?);
    if let Some(rest) = location.strip_prefix("//") {
        return format!("{scheme}://{rest}").parse().ok();
    }
    if location.starts_with('/') {
        return format!("{scheme}://{authority}{location}").parse().ok();
    }
    let folder = at.path().rsplit_once('/').map_or("", |(folder, _)| folder);
    format!("{scheme}://{authority}{folder}/{location}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_browsers_would_go() {
        let at: Uri = "https://hub.example/a/b?x=1".parse().expect("an address");
        for (location, to) in [
            ("https://cdn.example/f?sig=1", "https://cdn.example/f?sig=1"),
            ("/c/d", "https://hub.example/c/d"),
            ("//cdn.example/f", "https://cdn.example/f"),
            ("d", "https://hub.example/a/d"),
        ] {
            assert_eq!(absolute(&at, location).expect("an address").to_string(), to);
        }
    }

    #[test]
    fn a_token_is_never_printed() {
        let token = Token::new(" hf_secret\n").expect("a token");
        let client = Client::new("https://hub.example".to_owned(), Some(token), Duration::ZERO);
        assert!(!format!("{client:?}").contains("secret"), "{client:?}");
        assert_eq!(Token::new(" \n"), None);
        assert_eq!(Token::new("a\nb"), None, "it would be two headers");
    }
}
