//! The log on standard error, and what a bug says.

use std::io::{self, Write};

use tracing_subscriber::EnvFilter;

use super::Command;
use super::context::Failure;
use crate::diag::Diagnostic;
use crate::{env, pipeline};

/// Starts the log: what `SAMI_LOG` asks for, or else warnings; in a worker, whose standard error is its attempt's log,
/// more than that, with times.
pub(super) fn start(command: &Command) -> Result<(), Failure> {
    let worker = matches!(command, Command::Worker { .. });
    let asked = env::LOG.get();
    let filter = asked.as_deref().unwrap_or(if worker { "info" } else { "warn" });
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        Diagnostic::error("cli::log-filter", format!("`{}={filter}` is no filter for the log", env::LOG.name))
            .note(error.to_string())
            .help(format!("write a level or `target=level`, such as `{}=debug`", env::LOG.name))
    })?;
    let coloured = anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never;
    let log = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_env_filter(filter)
        .with_ansi(coloured)
        // It would be said on standard error, and panic: on a full disk a worker's log cannot be written.
        .log_internal_errors(false);
    if worker {
        log.with_target(false).init();
    } else {
        log.without_time().with_target(false).init();
    }
    Ok(())
}

/// Makes a panic say that it is a bug, and where; but for one over a damaged file, which is told as such.
pub(super) fn report_bugs() {
    std::panic::set_hook(Box::new(|panic| {
        if std::thread::current().name() == Some(pipeline::dataset::PARQUET_THREAD) {
            return;
        }
        let _ = writeln!(
            io::stderr(),
            "{panic}\nThis is a bug in sami {}. Please report it with the lines above and the command that led to it. \
             What is in the cache is whole: a rerun goes on from there.",
            env!("CARGO_PKG_VERSION")
        );
    }));
}
