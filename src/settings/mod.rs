//! `sami.toml` at the root of a project: what belongs to a machine or a lab and not to a pipeline.
//!
//! Nothing in it is part of any key. It is read strictly: an unknown key is an error that says where it stands and what
//! was meant. Secrets do not belong into it: credentials come from the environment, and a file that has one is refused
//! without showing it.
//!
//! Reading order: this file, `section` (a table whose keys are taken one by one), `remote` and `url` (the table
//! `[remote]`), `trackers` (the keys `tensorboard` and `mlflow`), `profiles` (the tables `[profiles.NAME]`).

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use crate::diag::{Diagnostic, Source, did_you_mean};

mod profiles;
mod remote;
mod section;
mod trackers;
mod url;

pub use profiles::{Executor, Hosts, OnInterrupt, Profile, Resources, Site, Templates};
pub use remote::{Push, RemoteSettings};
pub use section::{Form, TableForm};
pub use trackers::{MlflowSettings, TensorboardSettings};
pub use url::{Place, parse_url};

use section::Section;

/// A file larger than this is no `sami.toml`.
const MOST_BYTES: u64 = 1 << 20;
/// The tables and keys that there are.
const SECTIONS: [&str; 4] = ["mlflow", "profiles", "remote", "tensorboard"];
/// Those that are or may be tables.
const TABLES: [&str; 3] = ["mlflow", "profiles", "remote"];

/// The tables that there are, as what reads them asks for their keys.
pub fn forms() -> Vec<TableForm> {
    let form = |name: &str| {
        let mut section = Section::new("sami.toml", "", name, 0..0, DeTable::new());
        Settings::default().take(&mut section, name);
        section.form()
    };
    TABLES.into_iter().map(form).collect()
}

/// What `sami.toml` says. Without one, nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    /// Where artifacts are shared, if they are.
    pub remote: Option<RemoteSettings>,
    /// Where TensorBoard finds how runs go, if it is to.
    pub tensorboard: Option<TensorboardSettings>,
    /// The MLflow server that is told how runs go, if one is.
    pub mlflow: Option<MlflowSettings>,
    /// Where runs' attempts execute, by the name that `--profile` takes.
    pub profiles: Vec<Profile>,
}

impl Settings {
    /// Reads a file; one that is not there says nothing. Errs with all that is wrong in it.
    pub fn read(path: &Path) -> Result<Self, Vec<Diagnostic>> {
        let name = path.display().to_string();
        let unreadable = |why: String| {
            vec![
                Diagnostic::error("settings::unreadable", format!("`{name}` cannot be read"))
                    .note(why)
                    .help("make it a text file of TOML, or remove it"),
            ]
        };
        let mut bytes = Vec::new();
        let opened = fs_err::File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes));
        match opened {
            Ok(_) if bytes.len() as u64 > MOST_BYTES => {
                return Err(unreadable(format!("it is larger than {} MiB", MOST_BYTES >> 20)));
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(unreadable(error.to_string())),
        }
        let text = String::from_utf8(bytes).map_err(|_| unreadable("it is not UTF-8".to_owned()))?;
        Self::parse(&name, &text)
    }

    /// Reads the text of a file of this name.
    pub fn parse(name: &str, text: &str) -> Result<Self, Vec<Diagnostic>> {
        let (table, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            let source = Arc::new(Source::new(name, text));
            let fault = |error: &toml::de::Error| {
                let message = error.message().lines().collect::<Vec<_>>().join("; ");
                Diagnostic::error("settings::syntax", "the file is not TOML")
                    .label(&source, error.span().unwrap_or(0..0), message)
                    .help("write `key = value` lines under `[table]` headers; see toml.io")
            };
            return Err(errors.iter().map(fault).collect());
        }
        let mut settings = Self::default();
        let mut faults = Vec::new();
        for (key, value) in table.into_inner() {
            let (span, name_of) = (value.span(), key.get_ref().to_string());
            let value = value.into_inner();
            match (name_of.as_str(), value) {
                ("remote", DeValue::Table(table)) => {
                    let mut section = Section::new(name, text, "remote", span, table);
                    settings.take(&mut section, "remote");
                    faults.extend(section.finish());
                }
                ("profiles", DeValue::Table(table)) => {
                    for (name_of, value) in table {
                        let (span, at, name_of) = (value.span(), name_of.span(), name_of.into_inner().into_owned());
                        let DeValue::Table(table) = value.into_inner() else {
                            let source = section::shown(name, text, Some(&span));
                            let fault =
                                Diagnostic::error("settings::value", format!("the profile `{name_of}` is a table"));
                            let help = format!("write `[profiles.{name_of}]` and its keys below");
                            faults.push(fault.label(&source, at, "").help(help));
                            continue;
                        };
                        let mut section = Section::new(name, text, format!("profiles.{name_of}"), span, table);
                        settings.profiles.push(profiles::take(&name_of, &mut section));
                        faults.extend(section.finish());
                    }
                }
                ("tensorboard", value) => match trackers::tensorboard((name, text), &span, &value) {
                    Ok(found) => settings.tensorboard = found,
                    Err(fault) => faults.push(fault),
                },
                ("mlflow", value @ (DeValue::Table(_) | DeValue::String(_))) => {
                    let mut section = match value {
                        DeValue::Table(table) => Section::new(name, text, "mlflow", span, table),
                        url => Section::short(name, text, "mlflow", span, ("url", url)),
                    };
                    settings.take(&mut section, "mlflow");
                    faults.extend(section.finish());
                }
                ("mlflow", _) => faults.push(
                    Diagnostic::error("settings::value", "`mlflow` is the URL of a server, or a table")
                        .label(&section::shown(name, text, Some(&span)), key.span(), "")
                        .help("write `mlflow = \"http://localhost:5000\"`"),
                ),
                (section, _) if SECTIONS.contains(&section) => {
                    let what = format!("`{section}` is a table");
                    let source = section::shown(name, text, Some(&span));
                    faults.push(
                        Diagnostic::error("settings::value", what)
                            .label(&source, key.span(), "")
                            .help(format!("write `[{section}]` and its keys below, or `{section} = {{ … }}`")),
                    );
                }
                (unknown, _) => {
                    let what = format!("`sami.toml` has no key or table `{unknown}`");
                    // Whatever is in it is not shown: who knows what it was meant to be.
                    let source = section::shown(name, text, Some(&(key.span().end..text.len())));
                    let fault = Diagnostic::error("settings::unknown-key", what).label(&source, key.span(), "unknown");
                    faults.push(match did_you_mean(unknown, SECTIONS) {
                        Some(near) => fault.help(format!("one with a similar name exists: `{near}`")),
                        None => fault.help(format!("there are {}", SECTIONS.map(|s| format!("`{s}`")).join(", "))),
                    });
                }
            }
        }
        if faults.is_empty() { Ok(settings) } else { Err(faults) }
    }

    /// Reads a table of [`TABLES`].
    fn take(&mut self, section: &mut Section<'_>, name: &str) {
        match name {
            "mlflow" => self.mlflow = trackers::mlflow(section),
            "profiles" => self.profiles.push(profiles::take(name, section)),
            _ => self.remote = remote::take(section),
        }
    }
}

#[cfg(test)]
mod tests;
