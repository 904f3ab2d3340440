//! `sami report`: a run in one HTML file.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::context::Failure;
use super::figures::bytes;
use super::find;
use super::{CommandResult, Context, DONE, FAILED, context};
use crate::diag::Diagnostic;
use crate::fs;
use crate::inspect::run::Account;
use crate::store::Store;
use crate::ui::report;

/// Arguments of `report`.
#[derive(Debug, Clone, Args)]
pub struct ReportArgs {
    /// Run id or the beginning of one (default: the latest run)
    pub run: Option<String>,
    /// File to write; `-` is standard output
    #[arg(short, long, value_name = "FILE", default_value = "report.html")]
    pub output: PathBuf,
    /// Queries to show with what the models said
    #[arg(long, value_name = "N", default_value_t = 6)]
    pub samples: usize,
}

/// Writes the report of a run.
pub(super) fn run(context: &Context, args: &ReportArgs) -> CommandResult {
    let store = Store::open_existing(&context.cache_directory(None)?)?;
    let account = Account::with(&store, find::run_or_latest(&store, args.run.as_deref())?)?;
    let run = &account.run;
    let page = report::draw(&store, &account, args.samples)?;
    if args.output == Path::new("-") {
        context::write_out(|stdout| stdout.write_all(page.as_bytes()))?;
        return Ok(DONE);
    }
    fs::write_atomic(&args.output, page.as_bytes()).map_err(|error| unwritten(&args.output, &error))?;
    if context.json() {
        context::print_json(&json!({"file": args.output, "run": run.run, "bytes": page.len()}))?;
    } else {
        let size = bytes(page.len() as u64);
        context::print(&format!("{}: run {} of {}, {size}\n", args.output.display(), run.run, run.pipeline))?;
    }
    Ok(DONE)
}

fn unwritten(file: &Path, error: &io::Error) -> Failure {
    let fault =
        Diagnostic::error("report::output", format!("the report cannot be written to `{}`: {error}", file.display()));
    Failure { code: FAILED, diagnostics: vec![fault.help("name a file in a directory that is there: `-o FILE`")] }
}
