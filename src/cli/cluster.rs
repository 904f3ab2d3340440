//! `--profile`: where a run's attempts execute.

use std::path::PathBuf;

use super::context::Failure;
use crate::diag::{Diagnostic, did_you_mean};
use crate::exec::{Away, engine};
use crate::settings::{Profile, Settings};

/// What a profile of `sami.toml` means; `None` where attempts are processes of this machine.
/// `jobs`: how many attempts go on at once at most.
pub(super) fn away(settings: &Settings, profile: Option<&str>, jobs: Option<usize>) -> Result<Option<Away>, Failure> {
    let Some(name) = profile else { return Ok(None) };
    let profile =
        settings.profiles.iter().find(|profile| profile.name == name).ok_or_else(|| unknown(settings, name))?;
    let Some(engine) = engine::engine(profile) else { return Ok(None) };
    let mut profile = profile.clone();
    profile.jobs = profile.jobs.min(jobs.unwrap_or(usize::MAX)).max(1);
    let program = program(&profile)?;
    Ok(Some(Away { profile, engine, program }))
}

fn unknown(settings: &Settings, name: &str) -> Diagnostic {
    let fault = Diagnostic::error("cli::unknown-profile", format!("`sami.toml` has no profile `{name}`"));
    let names: Vec<&str> = settings.profiles.iter().map(|profile| profile.name.as_str()).collect();
    match did_you_mean(name, names.iter().copied()) {
        Some(near) => fault.help(format!("one with a similar name exists: `{near}`")),
        None if names.is_empty() => {
            fault.help(format!("write `[profiles.{name}]` with `executor = \"slurm\"` into it"))
        }
        None => fault
            .help(format!("there are {}", names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "))),
    }
}

/// The program that jobs start: as the profile names it, or the one that runs here, by its path.
fn program(profile: &Profile) -> Result<PathBuf, Failure> {
    if let Some(program) = &profile.program {
        return Ok(PathBuf::from(program));
    }
    let here = std::env::current_exe()?;
    if here.exists() {
        return Ok(here);
    }
    let fault = Diagnostic::error("cli::program-gone", "the program that runs here is not in its place any more");
    let fault = fault.note(here.display().to_string());
    Err(fault.help("start the run again with the one that is installed now, or name a `program` in the profile").into())
}
