//! `sami run`: the main path. Load, build, open, plan, run.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::context::Failure;
use super::estimate::Totals;
use super::fresh::{self, Question};
use super::outcomes::outcomes;
use super::progress::Report;
use super::sharing::Source;
use super::{BUDGET, CommandResult, Context, DONE, FAILED, INTERRUPTED, PipelineArgs};
use super::{attach, cluster, context, doctor, push, sharing};
use crate::diag::Diagnostic;
use crate::exec::budget::{Budget, Needs};
use crate::exec::{self, Elsewhere, Event, PlanOptions, RunOptions, State};
use crate::remote::RemoteError;
use crate::settings::{Push, RemoteSettings};
use crate::store::{Index, Store};
use crate::trackers::Trackers;

mod tracking;

/// Arguments of `run`.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
pub struct RunArgs {
    /// Pipeline and params.
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Nodes to bring up to date, with all they need (default: all)
    #[arg(value_name = "TARGET")]
    pub targets: Vec<String>,
    /// Run this node even if it is fresh (repeatable)
    #[arg(long, value_name = "NODE")]
    pub force: Vec<String>,
    /// Go on with what does not depend on a failed node
    #[arg(long)]
    pub keep_going: bool,
    /// Attempts at once (default: as many as the threads of the machine allow)
    #[arg(short, long, value_name = "N")]
    pub jobs: Option<usize>,
    /// Stop before the run comes to more than this, such as 'gpu-hours=4, judge-calls=1000': hours, gpu-hours, cpu-hours, calls, judge-calls, dollars, tokens, disk (with a unit)
    #[arg(long, value_name = "BOUNDS")]
    pub budget: Option<String>,
    /// Device for nodes that name none: cpu, cuda (any GPU), cuda:N, or auto (the GPUs shared out, the CPU if there are none)
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Have attempts executed as this profile of sami.toml says, such as on a cluster
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,
    /// Take from the remote cache what would have to run, whatever `pull` in sami.toml says
    #[arg(long)]
    pub pull: bool,
    /// Send what was made, and what it was made from, to the remote cache; that this fails is a failure then
    #[arg(long)]
    pub push: bool,
    /// Leave the remote cache alone, whatever sami.toml says
    #[arg(long, conflicts_with_all = ["pull", "push"])]
    pub no_remote: bool,
}

/// What the budget kept from being done that is listed.
const TOLD: usize = 12;

/// Brings nodes up to date.
pub(crate) fn run(context: &Context, args: &RunArgs) -> CommandResult {
    let budget = args.budget.as_deref().map(Budget::parse).transpose()?.unwrap_or_default();
    let root = context.cache_directory(Some(&args.pipeline.pipeline))?;
    let mut question = Question::new(&format!("run on {}", args.device), &args.pipeline, &args.targets)?;
    // What is wrong in the file is an error whatever is asked for.
    let settings = Context::settings(Some(&args.pipeline.pipeline))?;
    let away = cluster::away(&settings, args.profile.as_deref(), args.jobs)?;
    let (pull, push) = remotes(args, settings.remote.clone())?;
    // Fresh nodes are pushed, too, if the remote cache lacks them.
    if push.is_none()
        && let Some(done) = fresh::run(context, args, &question, &root)
    {
        return done;
    }
    let (pipeline, graph) = context.load(&args.pipeline)?;
    let store = Store::open(&root)?;
    let mut index = Index::open(&store)?;
    let wanted = PlanOptions {
        targets: args.targets.clone(),
        force: args.force.clone(),
        put_sources: true,
        ..PlanOptions::default()
    };
    let mut report = Report::new(context.json());
    question.watch(&pipeline, &store);
    let source = match pull {
        Some(settings) => Some(Arc::new(Source::new(settings, Store::open(store.root())?))),
        None => None,
    };
    let elsewhere = source.as_deref().map(|source| source as &dyn Elsewhere);
    exec::require_keys(&pipeline, &graph, &store, &mut index, &wanted, elsewhere)?;
    exec::fetch(&pipeline, &graph, &args.targets, &mut |event| report.tell(event))?;
    // What the plan finds, gc leaves alone: from the look on by this section, then by what the run names. Where nothing is
    // stale the section lasts to the end.
    let section = store.sharing()?;
    let mut plan = exec::plan(&pipeline, &graph, &store, &mut index, &wanted)?;
    plan.hold(&store)?;
    let is_stale = |plan: &exec::Plan| plan.order.iter().any(|node| !matches!(plan.nodes[*node], State::Hit { .. }));
    // To bring what is elsewhere may take long.
    let mut section = Some(section).filter(|_| source.is_none() || !is_stale(&plan));
    if let Some(source) = &source {
        exec::bring(&pipeline, &graph, &store, &mut index, &mut plan, &args.targets, &**source)?;
        source.report();
    }
    let program = program()?;
    let stale = is_stale(&plan);
    let gpus = if stale { doctor::gpus(&program) } else { Vec::new() };
    let mut options = RunOptions {
        file: args.pipeline.pipeline.display().to_string(),
        program,
        jobs: args.jobs,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        device: args.device.clone(),
        gpus,
        keep_going: args.keep_going,
        keep_weights: crate::env::KEEP_WEIGHTS.get().as_deref() != Some("off"),
        away,
        invocation: None,
        elsewhere: source.clone().map(|source| source as Arc<dyn Elsewhere>),
        budget,
        needs: HashMap::new(),
    };
    if stale {
        section = None;
        if let Some(away) = &options.away {
            let is_hit = |node: &usize| matches!(plan.nodes[*node], State::Hit { .. });
            let asked = away.asked(&pipeline, plan.order.iter().copied().filter(|node| !is_hit(node)));
            context::complain(&exec::engine::check(away, &store, &asked)?);
            options.invocation = Some(attach::invocation(args)?);
        }
        let estimates = exec::estimate(&pipeline, &store, &index, &plan, &options.device, !options.gpus.is_empty())?;
        context::complain(Totals::of(&estimates, &store).warning(&store).as_slice());
        let needs =
            estimates.nodes.iter().map(|(node, estimate)| (*node, Needs::of(estimate, estimates.past.get(node))));
        options.needs = needs.collect();
    }
    // A run in which nothing happens is not told of.
    let mut trackers = if stale { tracking::start(&settings, &pipeline, &store, args)? } else { None };
    let mut tell = |event: &Event| {
        report.tell(event);
        if let Some(trackers) = &mut trackers {
            report.complain(&trackers.tell(event));
        }
    };
    let summary = exec::run(&pipeline, &graph, &store, &mut index, &mut plan, &options, &mut tell);
    let (wrong, places) = trackers.map(Trackers::finish).unwrap_or_default();
    report.complain(&wrong);
    let summary = summary?;
    drop(section);
    report.end(&summary);
    report.shown_at(&places);
    if !stale && summary.ok() {
        question.remember_run(&store, &pipeline, &plan, &summary, outcomes(&summary.nodes));
    }
    if let Some(source) = &source {
        source.report();
    }
    let mut code = match (summary.interrupted, summary.ok()) {
        (true, _) => INTERRUPTED,
        (_, true) => DONE,
        _ if summary.count("failed") == 0 && !summary.budget.is_empty() => {
            context::complain(&[over(&summary.budget)]);
            BUDGET
        }
        (_, false) => FAILED,
    };
    if let Some(settings) = push.filter(|_| !summary.interrupted) {
        code = code.max(sharing::push(&settings, &store, &summary, args.push)?);
    }
    // The process ends now: to free ten thousand nodes one by one costs as much as to plan them.
    std::mem::forget((pipeline, graph, plan, summary));
    Ok(code)
}

/// The remote cache that is asked before nodes run, and the one that is given what they made.
fn remotes(
    args: &RunArgs,
    settings: Option<RemoteSettings>,
) -> Result<(Option<RemoteSettings>, Option<RemoteSettings>), Failure> {
    let settings = settings.filter(|_| !args.no_remote);
    if settings.is_none() && (args.pull || args.push) {
        return Err(push::unnamed().into());
    }
    if let Some(settings) = settings.as_ref().filter(|settings| args.push && settings.is_read_only()) {
        return Err(RemoteError::ReadOnly { url: settings.url.clone() }.into());
    }
    let pull = settings.clone().filter(|settings| settings.pull || args.pull);
    let push = settings.filter(|settings| settings.push == Push::OnSuccess || args.push);
    Ok((pull, push))
}

/// What the budget kept from being done.
fn over(told: &[String]) -> Diagnostic {
    let fault = Diagnostic::error("cli::over-budget", "the run stopped at its budget; what was done is kept");
    let fault = told.iter().take(TOLD).fold(fault, |fault, what| fault.note(what.clone()));
    let more = told.len().saturating_sub(TOLD);
    let fault = if more > 0 { fault.note(format!("{more} more")) } else { fault };
    fault.help("raise the budget, or run it again with another one: it goes on from there")
}

/// This program, even if its file was replaced since it was started: workers are to be of the same version.
pub(super) fn program() -> Result<PathBuf, Failure> {
    let running = PathBuf::from("/proc/self/exe");
    Ok(if running.exists() { running } else { std::env::current_exe()? })
}
