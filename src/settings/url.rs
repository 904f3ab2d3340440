//! URLs of places where artifacts are shared.

use std::path::PathBuf;

use ::url::{Host, Url};

use crate::diag::{Diagnostic, did_you_mean};

/// What a URL means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A directory, absolute; on a network file system, as a rule.
    Directory(PathBuf),
    /// A bucket of S3, or of a server that speaks it.
    S3 {
        /// The bucket.
        bucket: String,
        /// What names of objects begin with; no slash at either end, may be empty.
        prefix: String,
    },
    /// A bucket of Google Cloud Storage.
    Gs {
        /// The bucket.
        bucket: String,
        /// What names of objects begin with.
        prefix: String,
    },
    /// A web server, to be read alone; the whole URL.
    Http(String),
}

const SCHEMES: [&str; 4] = ["s3", "gs", "file", "https"];

/// Whether a text may have a secret in it: a user before `@`, or parameters. It is not to be shown then.
pub(super) fn may_hold_secret(text: &str) -> bool {
    text.contains(['@', '?', '#'])
}

/// What a URL means; `allow_http` lets `http://` be one. The error shows nothing of the URL.
pub fn parse_url(text: &str, allow_http: bool) -> Result<Place, Diagnostic> {
    let wrong = |what: &str| Diagnostic::error("settings::url", what.to_owned());
    let url = sound(text)?;
    let bucket = || url.host_str().filter(|host| !host.is_empty()).map(str::to_owned);
    let prefix = || percent_decoded(url.path()).trim_matches('/').to_owned();
    let no_bucket = || wrong("the URL names no bucket").help("write `s3://BUCKET/PREFIX` or `gs://BUCKET/PREFIX`");
    if url.port().is_some() && matches!(url.scheme(), "s3" | "gs") {
        return Err(wrong("a bucket has no port").help("name the server with `endpoint = \"https://HOST:PORT\"`"));
    }
    match url.scheme() {
        "s3" => Ok(Place::S3 { bucket: bucket().ok_or_else(no_bucket)?, prefix: prefix() }),
        "gs" => Ok(Place::Gs { bucket: bucket().ok_or_else(no_bucket)?, prefix: prefix() }),
        "file" => match url.to_file_path() {
            Ok(path) if path.parent().is_some() => Ok(Place::Directory(path)),
            _ => Err(wrong("`file:` names a directory by its absolute path").help("write `file:///DIRECTORY`")),
        },
        "https" => Ok(Place::Http(text.trim_end_matches('/').to_owned())),
        "http" if allow_http => Ok(Place::Http(text.trim_end_matches('/').to_owned())),
        "http" => Err(wrong("`http://` sends everything in clear")
            .help("write `https://`, or add `allow_http = true` if the network is your own")),
        other => {
            let fault = wrong(&format!("nothing is shared over `{other}:`"));
            Err(match did_you_mean(other, SCHEMES) {
                Some(near) => fault.help(format!("did you mean `{near}:`?")),
                None => fault.help("write `s3://`, `gs://`, `file:///` or `https://`"),
            })
        }
    }
}

/// Whether a text can be the address of a server that speaks S3.
pub(super) fn check_endpoint(text: &str, allow_http: bool) -> Result<(), Diagnostic> {
    let url = sound(text)?;
    let wrong = |what: &str| Err(Diagnostic::error("settings::url", what.to_owned()));
    match url.scheme() {
        _ if url.host_str().is_none_or(str::is_empty) => wrong("the endpoint names no host"),
        "https" => Ok(()),
        "http" if allow_http => Ok(()),
        "http" => wrong("`http://` sends everything in clear")
            .map_err(|fault| fault.help("write `https://`, or add `allow_http = true` if the network is your own")),
        _ => wrong("an endpoint is an address of the web").map_err(|fault| fault.help("write `https://HOST`")),
    }
}

/// Whether a text can be the address of a server that is told of runs. That of this machine needs no TLS.
pub(super) fn check_server(text: &str, allow_http: bool) -> Result<(), Diagnostic> {
    let help = "write `http://localhost:5000`, or `https://HOST`";
    let url = sound(text).map_err(|mut fault| {
        let is_secret = fault.id == "settings::secret";
        fault.help = vec![if is_secret {
            format!("leave it out; credentials come from the environment ({})", super::section::MLFLOW)
        } else {
            help.to_owned()
        }];
        fault
    })?;
    let wrong = |what: &str| Diagnostic::error("settings::url", what.to_owned());
    let is_here = match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    match url.scheme() {
        "http" | "https" if url.host_str().is_none_or(str::is_empty) => Err(wrong("the URL names no host").help(help)),
        "https" => Ok(()),
        "http" if is_here || allow_http => Ok(()),
        "http" => Err(wrong("`http://` sends everything in clear")
            .help("write `https://`, or `{ url = \"http://…\", allow_http = true }` if the network is your own")),
        other => Err(wrong(&format!("`{other}:` is no server that can be told of runs")).help(help)),
    }
}

/// A URL without user, password, parameters and fragment, and no name that leads out of where it is.
fn sound(text: &str) -> Result<Url, Diagnostic> {
    let wrong = |what: &str| Diagnostic::error("settings::url", what.to_owned());
    let authority = text.split_once("://").map_or("", |(_, rest)| rest.split('/').next().unwrap_or_default());
    if authority.contains('@') {
        return Err(Diagnostic::error(
            "settings::secret",
            "the URL has a user or a password in it, which is not shown",
        )
        .help("remove it, and set the credentials in the environment (`AWS_…`, `GOOGLE_…`)"));
    }
    let url = Url::parse(text).map_err(|error| {
        wrong(&format!("this is no URL: {error}")).help("write `s3://`, `gs://`, `file:///` or `https://` and a name")
    })?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err(Diagnostic::error("settings::secret", "the URL has parameters in it, which are not shown")
            .help("leave out what begins with `?` or `#`; credentials come from the environment"));
    }
    Ok(url)
}

/// A path with `%20` and the like as what they stand for.
fn percent_decoded(path: &str) -> String {
    let bytes = path.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = path.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        if let Some(byte) = code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            decoded.push(byte);
            at += 3;
        } else {
            decoded.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
