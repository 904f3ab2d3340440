//! The table `[remote]`: where artifacts are shared.

use std::time::Duration;

use super::section::Section;
use super::url::{self, Place};
use crate::diag::Diagnostic;

/// Where artifacts are shared, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteSettings {
    /// As written; it holds no secret.
    pub url: String,
    /// What the URL means.
    pub place: Place,
    /// When a run sends what it made.
    pub push: Push,
    /// Whether a run takes from there what it would have to make.
    pub pull: bool,
    /// The address of a server that speaks S3, if it is not Amazon's.
    pub endpoint: Option<String>,
    /// The region of a bucket of S3.
    pub region: Option<String>,
    /// Whether the server may be spoken to without TLS.
    pub allow_http: bool,
    /// Whether requests go without credentials.
    pub anonymous: bool,
    /// Requests at once.
    pub concurrency: usize,
    /// For how long a run waits for answers about what is there before it goes on without.
    pub timeout: Duration,
}

/// When a run sends what it made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Push {
    /// Never by itself.
    #[default]
    Never,
    /// When it has ended, whatever succeeded.
    OnSuccess,
}

impl RemoteSettings {
    /// A remote at a place, all else as by default.
    pub fn at(url: &str, place: Place) -> Self {
        Self {
            url: url.to_owned(),
            place,
            push: Push::Never,
            pull: false,
            endpoint: None,
            region: None,
            allow_http: false,
            anonymous: false,
            concurrency: 16,
            timeout: Duration::from_secs(10),
        }
    }

    /// Whether nothing can be written there: not to a web server, and to Google's storage not without an account.
    pub fn is_read_only(&self) -> bool {
        match self.place {
            Place::Http(_) => true,
            Place::Gs { .. } => self.anonymous,
            Place::S3 { .. } | Place::Directory(_) => false,
        }
    }
}

/// Takes the table's keys. `None` if it says nothing that can be used; then the section has faults.
pub(super) fn take(section: &mut Section<'_>) -> Option<RemoteSettings> {
    let allow_http = section.flag("allow_http").unwrap_or(false);
    let help = "name the place: `url = \"s3://BUCKET/PREFIX\"`, `\"gs://…\"` or `\"file:///DIRECTORY\"`";
    let url = section.required("url", help);
    let url = url.and_then(|(text, at)| match url::parse_url(&text, allow_http) {
        Ok(place) => Some((RemoteSettings::at(&text, place), at)),
        Err(fault) => {
            section.refuse(&at, url::may_hold_secret(&text), fault);
            None
        }
    });
    let push = section.word("push", &["never", "on-success"]).map_or(Push::Never, |word| match word {
        1 => Push::OnSuccess,
        _ => Push::Never,
    });
    let pull = section.flag("pull").unwrap_or(false);
    let endpoint = section.text("endpoint").and_then(|(text, at)| match url::check_endpoint(&text, allow_http) {
        Ok(()) => Some((text, at)),
        Err(fault) => {
            section.refuse(&at, url::may_hold_secret(&text), fault);
            None
        }
    });
    let region = section.text("region").map(|(text, _)| text);
    let anonymous = section.flag("anonymous").unwrap_or(false);
    let concurrency = section.number("concurrency", 1..=256).unwrap_or(16) as usize;
    let timeout = Duration::from_secs(section.number("timeout", 1..=3600).unwrap_or(10));
    let (settings, at) = url?;
    if let (Some((_, at)), false) = (&endpoint, matches!(settings.place, Place::S3 { .. })) {
        section.fault(at, "`endpoint` is for `s3://` alone".to_owned(), "remove it");
    }
    let endpoint = endpoint.map(|(text, _)| text);
    let settings =
        RemoteSettings { push, pull, endpoint, region, allow_http, anonymous, concurrency, timeout, ..settings };
    if push == Push::OnSuccess && settings.is_read_only() {
        let what = "what is behind `https://`, or behind `gs://` with `anonymous`, can be read and not written";
        let fault = Diagnostic::error("settings::value", what)
            .help("write `push = \"never\"`, or name a place that can be written: `s3://`, `gs://`, `file:///`");
        section.refuse(&at, false, fault);
    }
    Some(settings)
}
