//! The log on standard error, and what a bug says.

use std::io::{self, Write};

use tracing_subscriber::EnvFilter;

use super::context::Failure;
use super::{Command, live, terminal};
use crate::diag::Diagnostic;
use crate::{env, pipeline, secret};

/// Libraries that speak to servers say no more than this, whatever `SAMI_LOG` asks for.
const QUIET: [&str; 7] =
    ["ureq=info", "ureq_proto=info", "rustls=info", "reqwest=info", "hyper=info", "hyper_util=info", "h2=info"];

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
    // They would write down requests byte by byte, keys among them, where no search finds these.
    let filter = QUIET.iter().filter_map(|quiet| quiet.parse().ok()).fold(filter, EnvFilter::add_directive);
    let coloured =
        !worker && !terminal::is_plain() && anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never;
    let log = tracing_subscriber::fmt()
        .with_writer(|| Redacted(live::Stderr))
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

/// Writes without secrets. The log is written an event at a time, so that none is cut in two.
struct Redacted<W>(W);

impl<W: Write> Write for Redacted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.0.write_all(secret::redact(text).as_bytes())?,
            Err(_) => self.0.write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Makes a panic say that it is a bug, and where; but for one over a damaged file, which is told as such.
pub(super) fn report_bugs() {
    std::panic::set_hook(Box::new(|panic| {
        if std::thread::current().name() == Some(pipeline::dataset::PARQUET_THREAD) {
            return;
        }
        let text = format!(
            "{panic}\nThis is a bug in sami {}. Please report it with the lines above and the command that led to it. \
             What is in the cache is whole: a rerun goes on from there.",
            env!("CARGO_PKG_VERSION")
        );
        let _ = writeln!(io::stderr(), "{}", secret::redact(&text));
    }));
}
