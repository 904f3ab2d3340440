//! A bucket on this machine: enough of Amazon's and of Google's protocol for a remote cache, which counts what it is
//! asked, and fails when told to.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::http::{Request, serve};

/// How requests go wrong whose method is `method` (any, if empty) and whose path has `path` in it.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    pub(crate) what: Wrong,
    /// How many requests it meets.
    pub(crate) times: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Wrong {
    /// A status.
    Status(u16),
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// One bit of the body is another.
    Bit,
    /// Half of the object is all there is.
    Half,
    /// The range that is asked for is ignored.
    NoRange,
    /// The answer comes after so many milliseconds.
    Slow(u64),
    /// The connection ends before the answer, which was carried out.
    Lost,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) objects: BTreeMap<String, Vec<u8>>,
    uploads: BTreeMap<String, BTreeMap<u32, Vec<u8>>>,
    pub(crate) faults: Vec<Fault>,
    /// Methods and paths with their parameters.
    pub(crate) requests: Vec<String>,
    /// All headers that ever came, as text.
    pub(crate) headers: String,
    /// Whether the condition of a put is ignored, as some servers do.
    pub(crate) ignores_conditions: bool,
    /// The token that requests must bear; the machine itself hands it out, as machines of Google's do.
    pub(crate) token: Option<&'static str>,
    /// How many names a page of a list has; all, if zero.
    pub(crate) page: usize,
}

pub(crate) struct Server {
    state: Arc<Mutex<State>>,
    pub(crate) address: String,
}

impl Server {
    /// Serves until the process ends.
    pub(crate) fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let address = serve(move |stream| answer(stream, &shared));
        Self { state, address }
    }

    /// What `[remote]` says to use it.
    pub(crate) fn remote(&self) -> String {
        let address = &self.address;
        format!("url = \"s3://bucket/pre/fix\"\nendpoint = \"{address}\"\nallow_http = true\ntimeout = 2\n")
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panicked")
    }

    pub(crate) fn fail(&self, method: &'static str, path: &'static str, what: Wrong, times: usize) {
        self.state().faults.push(Fault { method, path, what, times });
    }

    /// The requests since the last time.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.state().requests)
    }
}

/// The parameters of a request.
fn parameter(query: &str, name: &str) -> Option<String> {
    query.split('&').find_map(|part| {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        (key == name).then(|| decoded(value))
    })
}

/// A text whose bytes may be written as `%2F`.
fn decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (code, rest) = part.split_at_checked(2).expect("two digits");
        bytes.push(u8::from_str_radix(code, 16).expect("hexadecimal digits"));
        bytes.extend(rest.as_bytes());
    }
    String::from_utf8(bytes).expect("names are texts")
}

/// Answers one request; `None` when the connection is over.
fn answer(stream: &TcpStream, state: &Mutex<State>) -> Option<()> {
    let Request { method, target, headers, body } = Request::read(stream)?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let path = &decoded(path);
    let mut shared = state.lock().ok()?;
    shared.requests.push(format!("{method} {target}"));
    let _ = write!(shared.headers, "{headers:?}");
    let fault = shared.faults.iter_mut().find(|fault| {
        fault.times > 0 && path.contains(fault.path) && (fault.method.is_empty() || fault.method == method)
    });
    let fault = fault.map(|fault| {
        fault.times -= 1;
        fault.what.clone()
    });
    if let Some(Wrong::Slow(milliseconds)) = fault {
        drop(shared);
        std::thread::sleep(Duration::from_millis(milliseconds));
        shared = state.lock().ok()?;
    }
    if let Some(Wrong::Status(status)) = fault {
        return send(stream, status, "", b"<Error><Code>Told</Code></Error>", &method, None);
    }
    if let Some(token) = shared.token {
        if path == "/computeMetadata/v1/instance/service-accounts/default/token" {
            let answer = format!("{{\"access_token\":\"{token}\",\"expires_in\":3600,\"token_type\":\"Bearer\"}}");
            return send(stream, 200, "content-type: application/json", answer.as_bytes(), &method, None);
        }
        if headers.get("authorization") != Some(&format!("Bearer {token}")) {
            return send(stream, 401, "", b"<Error><Code>AuthenticationRequired</Code></Error>", &method, None);
        }
    }
    let if_absent = headers.contains_key("if-none-match")
        || headers.get("x-goog-if-generation-match").is_some_and(|generation| generation == "0");
    let conditional = if_absent && !shared.ignores_conditions;
    let reply = carry_out(&mut shared, &method, path, query, body, conditional);
    drop(shared);
    let (status, header, mut body) = reply;
    match fault {
        Some(Wrong::Lost) => return None,
        Some(Wrong::Bit) => body.last_mut().into_iter().for_each(|byte| *byte ^= 1),
        Some(Wrong::Half) => body.truncate(body.len() / 2),
        _ => {}
    }
    let range = headers.get("range").and_then(|range| {
        let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some((from.parse::<usize>().ok()?, to.parse::<usize>().ok()))
    });
    let cut = if let Some(Wrong::Cut(at)) = fault { Some(at) } else { None };
    match range.filter(|_| status == 200 && method == "GET" && fault != Some(Wrong::NoRange)) {
        Some((from, _)) if from >= body.len() => send(stream, 416, "", b"", &method, None),
        Some((from, to)) => {
            let to = to.map_or(body.len(), |to| (to + 1).min(body.len()));
            let header = format!("{header}\r\ncontent-range: bytes {from}-{}/{}", to - 1, body.len());
            send(stream, 206, &header, &body[from..to], &method, cut)
        }
        None => send(stream, status, &header, &body, &method, cut),
    }
}

fn carry_out(
    state: &mut State,
    method: &str,
    path: &str,
    query: &str,
    body: Vec<u8>,
    conditional: bool,
) -> (u16, String, Vec<u8>) {
    let etag = |bytes: &[u8]| {
        let digest = sami::digest::Digest::of(bytes).short();
        format!("etag: \"{digest}\"\r\nx-goog-generation: 1\r\nlast-modified: Thu, 01 Jan 2026 00:00:00 GMT")
    };
    let nothing = |status: u16| (status, String::new(), Vec::new());
    let upload = parameter(query, "uploadId");
    match (method, upload) {
        ("GET", None) if parameter(query, "list-type").is_some() => {
            let prefix = parameter(query, "prefix").unwrap_or_default();
            let bucket = format!("{}/", path.trim_end_matches('/'));
            let after = parameter(query, "continuation-token").unwrap_or_default();
            let found = state.objects.iter().filter_map(|(name, bytes)| Some((name.strip_prefix(&bucket)?, bytes)));
            let mut found = found.filter(|(key, _)| key.starts_with(&prefix) && *key > after.as_str()).peekable();
            let mut xml = "<?xml version=\"1.0\"?><ListBucketResult>".to_owned();
            let page = if state.page == 0 { usize::MAX } else { state.page };
            let mut last = "";
            for (key, bytes) in found.by_ref().take(page) {
                last = key;
                let _ = write!(
                    xml,
                    "<Contents><Key>{key}</Key><Size>{}</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>x</ETag></Contents>",
                    bytes.len()
                );
            }
            let more = found.peek().is_some();
            let _ = write!(xml, "<IsTruncated>{more}</IsTruncated>");
            if more {
                let _ = write!(xml, "<NextContinuationToken>{last}</NextContinuationToken>");
            }
            xml.push_str("</ListBucketResult>");
            (200, String::new(), xml.into_bytes())
        }
        ("GET" | "HEAD", _) => match state.objects.get(path) {
            Some(bytes) => (200, etag(bytes), bytes.clone()),
            None => nothing(404),
        },
        ("PUT", Some(id)) => match state.uploads.get_mut(&id) {
            Some(parts) => {
                let header = etag(&body);
                parts.insert(parameter(query, "partNumber").and_then(|part| part.parse().ok()).unwrap_or(0), body);
                (200, header, Vec::new())
            }
            None => nothing(404),
        },
        ("PUT", None) if conditional && state.objects.contains_key(path) => nothing(412),
        ("PUT", None) => {
            let header = etag(&body);
            state.objects.insert(path.to_owned(), body);
            (200, header, Vec::new())
        }
        ("POST", None) if query.starts_with("uploads") => {
            let id = format!("u{}", state.uploads.len());
            state.uploads.insert(id.clone(), BTreeMap::new());
            let xml =
                format!("<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>");
            (200, String::new(), xml.into_bytes())
        }
        ("POST", None) if query.starts_with("delete") => {
            let text = String::from_utf8_lossy(&body).into_owned();
            let bucket = path.trim_end_matches('/');
            let mut xml = "<DeleteResult>".to_owned();
            for key in text.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next()) {
                state.objects.remove(&format!("{bucket}/{key}"));
                let _ = write!(xml, "<Deleted><Key>{key}</Key></Deleted>");
            }
            (200, String::new(), (xml + "</DeleteResult>").into_bytes())
        }
        ("POST", Some(id)) => match state.uploads.remove(&id) {
            Some(parts) => {
                state.objects.insert(path.to_owned(), parts.into_values().flatten().collect());
                let xml = "<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>";
                (200, String::new(), xml.as_bytes().to_vec())
            }
            None => nothing(404),
        },
        ("DELETE", Some(id)) => {
            state.uploads.remove(&id);
            nothing(204)
        }
        ("DELETE", None) => {
            state.objects.remove(path);
            nothing(204)
        }
        _ => nothing(405),
    }
}

fn send(
    mut stream: &TcpStream,
    status: u16,
    header: &str,
    body: &[u8],
    method: &str,
    cut: Option<usize>,
) -> Option<()> {
    let header = if header.is_empty() { String::new() } else { format!("{header}\r\n") };
    write!(stream, "HTTP/1.1 {status} x\r\n{header}content-length: {}\r\n\r\n", body.len()).ok()?;
    if method != "HEAD" {
        stream.write_all(&body[..cut.unwrap_or(body.len()).min(body.len())]).ok()?;
    }
    stream.flush().ok()?;
    cut.is_none().then_some(())
}
