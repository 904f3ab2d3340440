//! What people type: clap types, dispatch, exit codes.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

mod archive;
mod artifact;
mod audit;
mod breakdown;
mod cache;
mod check;
mod checkout;
mod completions;
mod context;
mod dag;
mod diff;
mod doctor;
mod du;
mod estimate;
mod explain_error;
mod find;
mod forget;
mod fresh;
mod gc;
mod help;
mod init;
mod lineage;
mod live;
mod logs;
mod ls;
mod man;
mod memo;
mod metrics;
mod outcomes;
mod page;
mod pin;
mod plan;
mod plot;
mod progress;
mod push;
mod render;
mod report;
mod rows;
mod run;
mod runs;
mod schema;
mod screen;
mod selection;
mod sharing;
mod show;
mod table;
mod terminal;
mod trace;
mod track;
mod transfer;
mod ui;
mod verify;
mod watch;
mod why;
mod worker;

use crate::amount;
use crate::inspect::figures;

#[cfg(test)]
use crate::inspect::sample;
use context::{CommandResult, Context};

/// Declares language-model alignment pipelines and runs them as a DAG of cached steps
#[derive(Debug, Parser)]
#[command(name = "sami", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    /// Options that every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Exit code: done.
pub const DONE: u8 = 0;
/// Exit code: a node failed, or the disk was full, read-only or broken.
pub const FAILED: u8 = 1;
/// Exit code: what was typed, or the pipeline, is at fault; nothing was started.
pub const USAGE: u8 = 2;
/// Exit code: the cache is damaged, or of a newer format.
pub const DAMAGED: u8 = 3;
/// Exit code: the budget is used up, or a node would have passed it; what was done is kept.
pub const BUDGET: u8 = 4;
/// Exit code: interrupted; the next run goes on from there.
pub const INTERRUPTED: u8 = 130;

const EXIT_CODES: &str = "\
Exit codes:
    0  done
    1  a node failed, or the disk did
    2  the command line or the pipeline is at fault; nothing was started
    3  the cache is damaged, or of a newer format
    4  the budget is used up, or a node would have passed it; what was done is kept
  130  interrupted; the next run goes on from there";

/// Options that every command takes.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Cache directory (default: `cache/` beside the nearest `sami.toml` or `pipelines/`)
    #[arg(long, global = true, value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Tell all in lines of words, for screen readers: no columns, no pictures, no colours, nothing drawn anew
    #[arg(long, global = true)]
    pub plain: bool,
}

/// A pipeline file and its overrides.
#[derive(Debug, Clone, Args)]
pub struct PipelineArgs {
    /// Pipeline file
    pub pipeline: PathBuf,
    /// Override a param of the pipeline, such as `--set lr=1e-6`
    #[arg(long, value_name = "NAME=VALUE")]
    pub set: Vec<String>,
}

/// What to do.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum Command {
    /// Report every error of a pipeline file
    Check(PipelineArgs),
    /// Run what is stale
    Run(run::RunArgs),
    /// Watch a run that goes on, until it ends; exits as the run does
    Watch(watch::WatchArgs),
    /// Show what would run and why
    Plan(plan::PlanArgs),
    /// Show the state of each node in a line
    Status(plan::StatusArgs),
    /// Explain why a node is stale: the exact field or input, old and new
    Why {
        /// Pipeline and params.
        #[command(flatten)]
        pipeline: PipelineArgs,
        /// Node to explain
        node: String,
    },
    /// Draw the DAG
    Dag {
        /// Pipeline and params.
        #[command(flatten)]
        pipeline: PipelineArgs,
        /// Text layers, Graphviz DOT or SVG
        #[arg(long, value_enum, default_value = "text")]
        format: DagFormat,
    },
    /// List runs, newest first
    Runs {
        /// How many to list
        #[arg(long, default_value_t = 20)]
        last: usize,
    },
    /// Show a run with its nodes, or a node's latest result beside its earlier ones
    Show {
        /// Run id, node key, a prefix of one, or a node's name
        what: String,
    },
    /// Draw figures in the terminal: over the steps of a training, over iterations, or over the runs that a node had
    Plot(plot::PlotArgs),
    /// List the metrics of a run, as a table, CSV or JSON lines
    Metrics(metrics::MetricsArgs),
    /// Tell the trackers of `sami.toml` of a run that is over; what they have is not told again
    Track(track::TrackArgs),
    /// Compare two runs, or two artifacts of a type: what changed first, recipes, metrics, rows, weights
    Diff(DiffArgs),
    /// Follow an artifact up to its sources, or down to all that it touched
    Lineage(LineageArgs),
    /// Print the log of a node's latest attempt
    Logs {
        /// Node name
        node: String,
        /// Run id or prefix (default: the latest run that executed the node)
        #[arg(long)]
        run: Option<String>,
    },
    /// Compute again what the cache has, and compare
    Audit(audit::AuditArgs),
    /// Look into the artifact cache
    Cache {
        /// What to do.
        #[command(subcommand)]
        command: CacheCommand,
    },
    /// Send artifacts to the remote cache
    Push(push::PushArgs),
    /// Bring artifacts from the remote cache
    Pull(push::PullArgs),
    /// Show what the remote cache has and what its server can do
    Remote(push::SurveyArgs),
    /// Show the cache as a web page on this machine: runs, DAG, nodes, artifacts, live while a run goes on
    Ui(ui::UiArgs),
    /// Write a run into one HTML file: figures, samples, where it comes from, how to do it again
    Report(report::ReportArgs),
    /// Show what machine and program offer: devices, memory, libraries, and what `auto` would use
    Doctor,
    /// Describe a node kind and its fields, or a command
    Help {
        /// Node kind, a field of one such as `generate stop`, or command such as `run` or `cache gc` (default: list both)
        topic: Vec<String>,
    },
    /// Explain an error by its id: what it means, an example, what to do
    Explain {
        /// Id, as in brackets after `error` (default: list all)
        id: Option<String>,
    },
    /// Write a pipeline to start from; asks three questions, or takes flags
    Init(init::InitArgs),
    /// Print the JSON Schema of pipelines or of sami.toml, for editors
    Schema(schema::SchemaArgs),
    /// Print a shell's script for completion, of names and ids in the cache, too
    Completions {
        /// Shell
        #[arg(value_enum)]
        shell: completions::Shell,
    },
    /// Write man pages
    Man {
        /// Directory, made if absent, such as ~/.local/share/man/man1
        directory: PathBuf,
    },
    /// Execute one attempt (started by the scheduler)
    #[command(hide = true)]
    Worker {
        /// Job file (default: jobs come over the socket on standard input)
        job: Option<PathBuf>,
        /// Compute the job as this rank, not rank 0, which says over standard input where it is
        #[arg(long, requires = "job")]
        rank: Option<usize>,
    },
}

/// Arguments of `diff`.
#[derive(Debug, Clone, Args)]
pub struct DiffArgs {
    /// Run, artifact, node, or `NODE@RUN`; ids may be cut
    pub before: String,
    /// What it is compared with (without it: what BEFORE names is compared with what was before that)
    pub after: Option<String>,
    /// Rows of each kind of difference to show
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub rows: usize,
}

/// Arguments of `lineage`.
#[derive(Debug, Clone, Args)]
pub struct LineageArgs {
    /// Artifact, node, `NODE@RUN`, run, `dataset:NAME` or `model:NAME`; ids may be cut
    pub what: Option<String>,
    /// Follow it down, to all that was made of it
    #[arg(long)]
    pub down: bool,
    /// Follow the row of this id
    #[arg(long, value_name = "ID", conflicts_with = "principle")]
    pub row: Option<String>,
    /// Follow the rows that have this principle in a constitution, by its name or its number, down from all constitutions that have it
    #[arg(long, value_name = "NAME")]
    pub principle: Option<String>,
    /// Steps to follow at most
    #[arg(long, value_name = "N")]
    pub depth: Option<usize>,
}

/// How `dag` draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DagFormat {
    /// Layers of names
    Text,
    /// Graphviz
    Dot,
    /// A picture
    Svg,
}

/// How `cache checkout` puts files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Linking {
    /// A clone where the file system can, else a copy
    Auto,
    /// A clone: it shares blocks with the cache until it is written to
    Reflink,
    /// A second name of the cache's own file; who writes to it damages the cache
    Hard,
    /// A symbolic link into the cache
    Symlink,
    /// A copy
    Copy,
}

/// Arguments of `cache rows`.
#[derive(Debug, Clone, Args)]
pub struct RowsArgs {
    /// Space to show rows of: its id, or the beginning of it (default: list the spaces)
    pub space: Option<String>,
    /// How many of its rows to show, those kept last
    #[arg(long, default_value_t = 10)]
    pub last: usize,
    /// Only rows that hold this text, in what was asked (as far as that is kept) or in the result
    #[arg(long, value_name = "TEXT")]
    pub grep: Option<String>,
    /// Remove what was used least recently until the rest fits the limit
    #[arg(long, conflicts_with_all = ["space", "grep"])]
    pub evict: bool,
    /// The limit, such as `20GB` (default: `SAMI_ROWS_LIMIT`)
    #[arg(long, value_name = "SIZE", requires = "evict")]
    pub limit: Option<String>,
    /// Let this space go, too, though its rows may have cost money (repeatable)
    #[arg(long, value_name = "SPACE", requires = "evict")]
    pub paid: Vec<String>,
    /// Say what would be removed, remove nothing
    #[arg(long, requires = "evict")]
    pub dry_run: bool,
}

/// Commands on the cache.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// List artifacts, newest first
    Ls(ls::LsArgs),
    /// Show an artifact in one screen: what made it, from what, its metrics and first rows
    Show {
        /// Artifact id, prefix, or node name
        id: String,
    },
    /// Print a file of an artifact
    Cat {
        /// Artifact id, prefix, or node name
        id: String,
        /// File in the artifact (default: its main or its only file)
        file: Option<String>,
    },
    /// Look into the row memo: what is remembered of single rows
    Rows(RowsArgs),
    /// Show what takes how much room, or what forgetting something would free
    Du {
        /// Nodes, pipelines, or the beginnings of ids of runs, artifacts or keys (default: all)
        what: Vec<String>,
    },
    /// Forget results by name: their records go, with what nothing else needs
    Forget(forget::ForgetArgs),
    /// Verify every byte against its digest
    Verify(verify::VerifyArgs),
    /// Remove what nothing that is wanted needs
    Gc(gc::GcArgs),
    /// Have gc keep an artifact, and what its nodes took
    Pin {
        /// Artifact id, prefix, or node name
        id: String,
    },
    /// Undo `pin`
    Unpin {
        /// Artifact id, prefix, or node name
        id: String,
    },
    /// List what is pinned
    Pins,
    /// Write artifacts, node records and runs into one file
    Export(archive::ExportArgs),
    /// Take what is in such a file into the cache; it is checked whole before anything is taken
    Import(archive::ImportArgs),
    /// Make the index again from the files
    Rebuild,
    /// Put an artifact's files into a directory
    Checkout {
        /// Artifact id, prefix, or node name
        id: String,
        /// Directory, made if absent; must be empty
        dir: PathBuf,
        /// How: clones that share blocks with the cache, links to its files, or copies
        #[arg(long, value_enum, default_value = "auto")]
        link: Linking,
        /// Replace files of the same names in a directory that is not empty
        #[arg(long)]
        force: bool,
    },
}

pub use explain_error::{Explanation, all as explanations};

/// Draws findings as text, without colour.
#[doc(hidden)]
pub fn draw(findings: &[crate::diag::Diagnostic]) -> String {
    render::draw(findings, false)
}

/// Runs the command line and returns the process's exit code.
pub fn run() -> ExitCode {
    completions::answer();
    trace::report_bugs();
    let code = match Cli::try_parse().inspect(|cli| terminal::start(cli.global.plain)) {
        Ok(cli) => match trace::start(&cli.command).and_then(|()| dispatch(&cli)) {
            Ok(code) => code,
            Err(failure) => {
                context::complain(&failure.diagnostics);
                failure.code
            }
        },
        // Help and version are asked for, so they go to standard output and are no error.
        Err(told) => {
            let _ = told.print();
            u8::try_from(told.exit_code()).unwrap_or(USAGE)
        }
    };
    ExitCode::from(code)
}

fn dispatch(cli: &Cli) -> CommandResult {
    let context = &Context::new(&cli.global);
    match &cli.command {
        Command::Check(args) => check::run(context, args),
        Command::Run(args) => run::run(context, args),
        Command::Watch(args) => watch::run(context, args),
        Command::Plot(args) => plot::run(context, args),
        Command::Metrics(args) => metrics::run(context, args),
        Command::Plan(args) => plan::plan(context, args),
        Command::Status(args) => plan::status(context, args),
        Command::Why { pipeline, node } => why::why(context, pipeline, node),
        Command::Dag { pipeline, format } => dag::run(context, pipeline, *format),
        Command::Audit(args) => audit::audit(context, args),
        Command::Cache { command } => cache::run(context, command),
        Command::Runs { last } => runs::list(context, *last),
        Command::Show { what } => show::run(context, what),
        Command::Track(args) => track::run(context, args),
        Command::Diff(args) => diff::run(context, args),
        Command::Lineage(args) => lineage::run(context, args),
        Command::Logs { node, run } => logs::run(context, node, run.as_deref()),
        Command::Push(args) => push::push(context, args),
        Command::Pull(args) => push::pull(context, args),
        Command::Remote(args) => push::survey(context, args),
        Command::Ui(args) => ui::run(context, args),
        Command::Report(args) => report::run(context, args),
        Command::Doctor => doctor::run(context),
        Command::Help { topic } => help::run(context, topic),
        Command::Explain { id } => explain_error::run(context, id.as_deref()),
        Command::Init(args) => init::run(context, args),
        Command::Schema(args) => schema::run(args),
        Command::Completions { shell } => completions::run(*shell),
        Command::Man { directory } => man::run(directory),
        Command::Worker { job, rank } => worker::run(job.as_deref(), *rank),
    }
}
