//! `sami schema`: JSON Schemas for editors.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{CommandResult, DONE, context};
use crate::{fs, schema};

/// Arguments of `schema`.
#[derive(Debug, Clone, Args)]
pub struct SchemaArgs {
    /// Of which file
    #[arg(value_enum, default_value = "pipeline")]
    pub of: Of,
    /// Write it there instead of printing it
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Files that have a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Of {
    /// A pipeline
    Pipeline,
    /// `sami.toml`
    Project,
}

/// The text of a schema.
pub(super) fn text(of: Of) -> String {
    let schema = match of {
        Of::Pipeline => schema::pipeline(),
        Of::Project => schema::project(),
    };
    format!("{schema:#}\n")
}

/// Prints a schema, or writes it to a file.
pub(super) fn run(args: &SchemaArgs) -> CommandResult {
    let text = text(args.of);
    match &args.output {
        Some(path) => fs::write_atomic(path, text.as_bytes())?,
        // A document: it stays as it is, whoever reads.
        None => context::write_out(|stdout| stdout.write_all(text.as_bytes()))?,
    }
    Ok(DONE)
}
