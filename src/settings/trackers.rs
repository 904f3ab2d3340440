//! The keys `tensorboard` and `mlflow`: where it is told how runs go, besides in the cache.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use super::section::{Section, shown};
use super::url;
use crate::diag::Diagnostic;

/// That runs write event files for TensorBoard, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorboardSettings {
    /// As written; `tensorboard/` in the cache without it.
    pub directory: Option<PathBuf>,
}

/// The MLflow server that runs are told to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MlflowSettings {
    /// Its address, without a slash at the end; it holds no secret.
    pub url: String,
    /// The experiment that runs belong to; the pipeline's name without it.
    pub experiment: Option<String>,
    /// For how long it may keep an answer back, and a run at its end.
    pub timeout: Duration,
}

/// How long an MLflow server is waited for by default.
const TIMEOUT: u64 = 10;

/// Takes `tensorboard = …`; `Ok(None)` if it is off.
pub(super) fn tensorboard(
    (file, text): (&str, &str),
    at: &Range<usize>,
    value: &DeValue<'_>,
) -> Result<Option<TensorboardSettings>, Diagnostic> {
    match value {
        DeValue::Boolean(on) => Ok(on.then_some(TensorboardSettings { directory: None })),
        DeValue::String(directory) if !directory.trim().is_empty() => {
            Ok(Some(TensorboardSettings { directory: Some(PathBuf::from(directory.as_ref())) }))
        }
        _ => {
            let fault = Diagnostic::error("settings::value", "`tensorboard` is true, false or the path of a directory");
            let fault = fault.label(&shown(file, text, None), at.clone(), "");
            Err(fault.help("write `tensorboard = true`: then event files are in `tensorboard/` of the cache"))
        }
    }
}

/// Takes the keys of `mlflow`. `None` if it says nothing that can be used; then the section has faults.
pub(super) fn mlflow(section: &mut Section<'_>) -> Option<MlflowSettings> {
    let allow_http = section.flag("allow_http").unwrap_or(false);
    let url = section.required("url", "name the server: `url = \"http://localhost:5000\"`");
    let url = url.and_then(|(text, at)| match url::check_server(&text, allow_http) {
        Ok(()) => Some(text.trim_end_matches('/').to_owned()),
        Err(fault) => {
            section.refuse(&at, url::may_hold_secret(&text), fault);
            None
        }
    });
    let experiment = section.text("experiment").map(|(text, _)| text);
    let timeout = Duration::from_secs(section.number("timeout", 1..=3600).unwrap_or(TIMEOUT));
    Some(MlflowSettings { url: url?, experiment, timeout })
}
