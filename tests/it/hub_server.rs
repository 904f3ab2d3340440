//! A hub on this machine, for one model and one dataset of the same name and files: it answers as the real one does, counts what it is asked, and fails when told to.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard};

use sami::hub::etag;

use super::http::{self, serve};

/// How one request goes wrong; those whose path has `path` in it.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) path: &'static str,
    pub(crate) what: Wrong,
    /// How many requests it meets.
    pub(crate) times: usize,
}

#[derive(Debug, Clone)]
pub(crate) enum Wrong {
    /// A status with a header.
    Status(u16, &'static str),
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// One bit of the body is another.
    Bit,
    /// The range that is asked for is ignored.
    NoRange,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
    /// Whether it came to the content server and not to the hub.
    pub(crate) content: bool,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    /// What the repository has.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// What the branch has on which the hub keeps a dataset as Parquet, if there is one.
    pub(crate) converted: BTreeMap<String, Vec<u8>>,
    /// The commit that `main` stands for.
    pub(crate) commit: String,
    /// Who does not have it may not read.
    pub(crate) token: Option<&'static str>,
    pub(crate) faults: Vec<Fault>,
    pub(crate) requests: Vec<Request>,
}

/// The hub and, at another address, the server that it sends to for large files.
#[derive(Debug)]
pub(crate) struct Server {
    state: Arc<Mutex<State>>,
    pub(crate) endpoint: String,
}

pub(crate) const REPO: &str = "acme/tiny";
const LARGE: usize = 1000;
/// The commit of the converted dataset.
pub(crate) const CONVERTED: &str = "cccccccccccccccccccccccccccccccccccccccc";

impl Server {
    /// Serves until the process ends.
    pub(crate) fn start(files: BTreeMap<String, Vec<u8>>) -> Self {
        let state = Arc::new(Mutex::new(State { files, commit: "a".repeat(40), ..State::default() }));
        let contents = listen(&state, None);
        let endpoint = listen(&state, Some(contents));
        Self { state, endpoint }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panicked")
    }

    pub(crate) fn fail(&self, path: &'static str, what: Wrong, times: usize) {
        self.state().faults.push(Fault { path, what, times });
    }

    /// The requests since the last time.
    pub(crate) fn take(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().requests)
    }
}

fn listen(state: &Arc<Mutex<State>>, contents: Option<String>) -> String {
    let state = Arc::clone(state);
    serve(move |stream| {
        answer(stream, &state, contents.as_deref());
        None
    })
}

fn answer(stream: &TcpStream, state: &Mutex<State>, contents: Option<&str>) -> Option<()> {
    let http::Request { method, target: path, headers, .. } = http::Request::read(stream)?;
    let mut state = state.lock().ok()?;
    let request = Request { method, path, headers, content: contents.is_none() };
    state.requests.push(request.clone());
    let fault = state.faults.iter_mut().find(|fault| request.path.contains(fault.path) && fault.times > 0);
    let fault = fault.map(|fault| {
        fault.times -= 1;
        fault.what.clone()
    });
    if let Some(Wrong::Status(status, header)) = fault {
        return send(stream, status, header, b"{\"error\":\"told to\"}", &request);
    }
    // The content server knows nothing of tokens, and must never see one.
    let allowed = contents.is_none()
        || state.token.is_none_or(|token| {
            request.headers.get("authorization").is_some_and(|sent| *sent == format!("Bearer {token}"))
        });
    if !allowed {
        return send(
            stream,
            401,
            "x-error-code: GatedRepo",
            b"{\"error\":\"Access to this model is restricted\"}",
            &request,
        );
    }
    let listed = ["models", "datasets"].into_iter().find_map(|kind| {
        let rest = request.path.strip_prefix(&format!("/api/{kind}/{REPO}/revision/"))?;
        Some((kind, rest.trim_end_matches("?blobs=true")))
    });
    let is_converted =
        |revision: &str| [CONVERTED, "refs%2Fconvert%2Fparquet"].contains(&revision) && !state.converted.is_empty();
    if let Some((kind, revision)) = listed {
        let converted = is_converted(revision) && kind == "datasets";
        if revision != "main" && revision != state.commit && !converted {
            return send(stream, 404, "x-error-code: RevisionNotFound", b"{}", &request);
        }
        let (files, commit) =
            if converted { (&state.converted, CONVERTED) } else { (&state.files, state.commit.as_str()) };
        let files = files.iter().map(|(name, bytes)| {
            let large = bytes.len() >= LARGE;
            let mut file = serde_json::json!({"rfilename": name, "size": bytes.len(), "blobId": etag(bytes, false)});
            if large {
                file["lfs"] = serde_json::json!({"sha256": etag(bytes, true), "size": bytes.len()});
            }
            file
        });
        let listing = serde_json::json!({"id": REPO, "sha": commit, "siblings": files.collect::<Vec<_>>()});
        return send(stream, 200, "", listing.to_string().as_bytes(), &request);
    }
    let path = request.path.strip_prefix("/datasets").unwrap_or(&request.path);
    let found = [(&state.files, state.commit.as_str()), (&state.converted, CONVERTED)]
        .into_iter()
        .find_map(|(files, commit)| files.get(path.strip_prefix(&format!("/{REPO}/resolve/{commit}/"))?));
    let Some(mut bytes) = found.cloned() else {
        return send(stream, 404, "x-error-code: RepoNotFound", b"{}", &request);
    };
    drop(state);
    let large = bytes.len() >= LARGE;
    let named = etag(&bytes, large);
    match contents {
        Some(contents) if large => {
            let header = format!(
                "location: {contents}{}\r\nx-linked-etag: \"{named}\"\r\nx-linked-size: {}\r\nx-repo-commit: {}",
                request.path,
                bytes.len(),
                "a".repeat(40)
            );
            return send(stream, 302, &header, b"Found. Redirecting", &request);
        }
        _ => {}
    }
    if let Some(Wrong::Bit) = fault {
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
    }
    let mut status = 200;
    let mut header = format!("etag: \"{named}\"");
    let from: Option<usize> =
        request.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    if let Some(from) = from.filter(|_| !matches!(fault, Some(Wrong::NoRange))) {
        status = 206;
        let _ = write!(header, "\r\ncontent-range: bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
        bytes.drain(..from);
    }
    let cut = match fault {
        Some(Wrong::Cut(at)) => at,
        _ => usize::MAX,
    };
    send_part(stream, status, &header, &bytes, cut, &request)
}

fn send(stream: &TcpStream, status: u16, header: &str, body: &[u8], request: &Request) -> Option<()> {
    send_part(stream, status, header, body, usize::MAX, request)
}

fn send_part(
    mut stream: &TcpStream,
    status: u16,
    header: &str,
    body: &[u8],
    cut: usize,
    request: &Request,
) -> Option<()> {
    let mut head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n", body.len());
    if !header.is_empty() {
        let _ = write!(head, "{header}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
    if request.method != "HEAD" {
        stream.write_all(&body[..cut.min(body.len())]).ok()?;
    }
    stream.flush().ok()
}
