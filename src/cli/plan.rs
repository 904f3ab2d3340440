//! `sami plan` and `status`.

use clap::Args;
use serde_json::json;

use super::estimate::{self, Totals};
use super::figures::{bytes, count, cut, plural, seconds};
use super::fresh::Question;
use super::screen::Screen;
use super::table::Table;
use super::{CommandResult, Context, DONE, PipelineArgs, context, doctor, run};
use crate::diag::Diagnostic;
use crate::exec::{self, Estimates, Plan, PlanOptions, State};
use crate::pipeline::Pipeline;
use crate::store::{Index, Store};

/// Arguments of `plan`.
#[derive(Debug, Clone, Args)]
pub struct PlanArgs {
    /// Pipeline and params.
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Nodes to look at, with all they need (default: all)
    #[arg(value_name = "TARGET")]
    pub targets: Vec<String>,
    /// Estimate node by node: rows, tokens, memory, disk, calls
    #[arg(long)]
    pub estimate: bool,
    /// Device to estimate for, of nodes that name none: cpu, cuda, or auto (as `run` takes it)
    #[arg(long, default_value = "auto")]
    pub device: String,
}

/// Arguments of `status`.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// Pipeline and params.
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Nodes to look at, with all they need (default: all)
    #[arg(value_name = "TARGET")]
    pub targets: Vec<String>,
}

/// Hits that `plan` lists; of more it tells the number.
const HITS: usize = 40;
/// Widest explanation on a line.
const WIDTH: usize = 120;

/// A state in a word (`hit`, `run`, `unknown`; empty for a node that was not asked for), and why.
pub(crate) fn describe(pipeline: &Pipeline, state: &State) -> (&'static str, String) {
    match state {
        State::Outside => ("", String::new()),
        State::Hit { .. } => ("hit", String::new()),
        State::Run { reason, .. } => ("run", reason.to_string()),
        State::Unknown { until, downloads } => {
            let names = until.iter().map(|node| pipeline.nodes[*node].name.clone());
            let models = downloads.iter().map(|(name, bytes)| format!("{name} is downloaded{}", size(*bytes)));
            ("unknown", format!("until {}", names.chain(models).collect::<Vec<_>>().join(", ")))
        }
    }
}

/// ` (14.5 GiB)`, if it is known.
pub(super) fn size(of: Option<u64>) -> String {
    of.map(|size| format!(" ({})", bytes(size))).unwrap_or_default()
}

/// What planning needs and gives.
pub(super) struct Planned {
    pub(super) question: Question,
    pub(super) pipeline: Pipeline,
    pub(super) store: Store,
    pub(super) index: Index,
    pub(super) plan: Plan,
}

impl Planned {
    /// The process ends now: to free ten thousand nodes one by one takes as long as to plan them.
    pub(super) fn leave(self) -> CommandResult {
        std::mem::forget((self.pipeline, self.plan));
        Ok(DONE)
    }
}

/// Plans, unless `question` has been answered.
pub(super) fn planned(
    context: &Context,
    mut question: Question,
    args: &PipelineArgs,
    targets: &[String],
) -> Result<Option<Planned>, context::Failure> {
    let root = context.cache_directory(Some(&args.pipeline))?;
    if !context.json() && question.answer(&root)? {
        return Ok(None);
    }
    let (pipeline, graph) = context.load(args)?;
    let store = Store::look(&root)?;
    let mut index = Index::open(&store)?;
    question.watch(&pipeline, &store);
    let options = PlanOptions { targets: targets.to_vec(), few: !targets.is_empty(), ..PlanOptions::default() };
    let plan = exec::plan(&pipeline, &graph, &store, &mut index, &options)?;
    let stale = plan.order.iter().copied().filter(|node| !matches!(plan.nodes[*node], State::Hit { .. }));
    context::complain(&exec::absent_keys(&pipeline, stale).into_iter().map(Diagnostic::as_warning).collect::<Vec<_>>());
    // As `Planned::leave`.
    std::mem::forget(graph);
    Ok(Some(Planned { question, pipeline, store, index, plan }))
}

/// Shows what would run and why.
pub(crate) fn plan(context: &Context, args: &PlanArgs) -> CommandResult {
    let word = format!("plan on {}, estimates {}", args.device, args.estimate);
    let question = Question::new(&word, &args.pipeline, &args.targets)?.on(Screen::of_stdout());
    let Some(planned) = planned(context, question, &args.pipeline, &args.targets)? else { return Ok(DONE) };
    let estimates = estimates(&planned, &args.device)?;
    if context.json() {
        print_as_json(&planned, Some(&estimates))?;
        return planned.leave();
    }
    let Planned { pipeline, plan, store, .. } = &planned;
    let [hits, runs, unknown] = ["hit", "run", "unknown"].map(|word| number(&planned, word));
    let mut table = Table::new(["state", "node", "why"], &[]);
    for node in &plan.order {
        let (word, why) = describe(pipeline, &plan.nodes[*node]);
        if word != "hit" || hits <= HITS {
            table.row([word.to_owned(), pipeline.nodes[*node].name.clone(), cut(&why, WIDTH)]);
        }
    }
    let mut text = table.text();
    if hits > HITS {
        text.push_str(&format!("{} hits are not listed; `sami status` lists all nodes\n", count(hits as u64)));
    }
    let parts = [(runs, "to run"), (unknown, "unknown until others have run"), (hits, "fresh")];
    let parts = parts.iter().filter(|(number, _)| *number > 0);
    let parts: Vec<String> = parts.map(|(number, word)| format!("{} {word}", count(*number as u64))).collect();
    text.push_str(&format!("{}: {}\n", plural(plan.order.len() as u64, "node"), parts.join(", ")));
    if args.estimate {
        let table = estimate::table(pipeline, &estimates);
        text.push_str(&format!("{}{table}", if table.is_empty() { "" } else { "\n" }));
    }
    let totals = Totals::of(&estimates, store);
    text.push_str(&totals.text(pipeline));
    context::print(&text)?;
    planned.question.remember(store, plan, &text);
    context::complain(totals.warning(store).as_slice());
    planned.leave()
}

/// What the nodes that are not fresh will come to.
fn estimates(planned: &Planned, device: &str) -> Result<Estimates, context::Failure> {
    let Planned { pipeline, plan, store, index, .. } = planned;
    let stale = plan.order.iter().any(|node| !matches!(plan.nodes[*node], State::Hit { .. }));
    let gpus = stale && device == "auto" && !doctor::gpus(&run::program()?).is_empty();
    Ok(exec::estimate(pipeline, store, index, plan, device, gpus)?)
}

/// Shows the state of each node in a line.
pub(crate) fn status(context: &Context, args: &StatusArgs) -> CommandResult {
    let question = Question::new("status", &args.pipeline, &args.targets)?.on(Screen::of_stdout());
    let Some(planned) = planned(context, question, &args.pipeline, &args.targets)? else { return Ok(DONE) };
    if context.json() {
        print_as_json(&planned, None)?;
        return planned.leave();
    }
    let Planned { pipeline, plan, index, .. } = &planned;
    let figures = index.figures();
    let mut table = Table::new(["node", "kind", "state", "took", "artifact", "why"], &[3]);
    for (node, state) in pipeline.nodes.iter().zip(&plan.nodes) {
        let (word, why) = describe(pipeline, state);
        let word = match word {
            "" => continue,
            "hit" => "fresh",
            "run" => "stale",
            other => other,
        };
        let (took, artifact) = match state {
            State::Hit { key, artifact } => (figures.get(key).map(|(took, _)| seconds(*took)), artifact.short()),
            _ => (None, String::new()),
        };
        table.row([
            node.name.clone(),
            node.kind.name.to_owned(),
            word.to_owned(),
            took.unwrap_or_default(),
            artifact,
            cut(&why, WIDTH),
        ]);
    }
    let text = table.text();
    context::print(&text)?;
    planned.question.remember(&planned.store, plan, &text);
    planned.leave()
}

/// How many nodes are in a state.
fn number(planned: &Planned, word: &str) -> usize {
    planned.plan.nodes.iter().filter(|state| describe(&planned.pipeline, state).0 == word).count()
}

fn print_as_json(planned: &Planned, estimates: Option<&Estimates>) -> Result<(), context::Failure> {
    let Planned { pipeline, plan, index, store, .. } = planned;
    let figures = index.figures();
    let mut nodes = Vec::new();
    for (at, (node, state)) in pipeline.nodes.iter().zip(&plan.nodes).enumerate() {
        let (word, why) = describe(pipeline, state);
        let (key, artifact) = match state {
            State::Outside => continue,
            State::Hit { key, artifact } => (Some(key), Some(artifact)),
            State::Run { key, .. } => (Some(key), None),
            State::Unknown { .. } => (None, None),
        };
        let (took, metrics) = artifact.and(key).and_then(|key| figures.get(key)).cloned().unwrap_or_default();
        let mut shown = json!({"name": node.name, "kind": node.kind.name, "state": word, "key": key, "artifact": artifact,
            "seconds": took, "metrics": metrics, "why": why});
        if let Some(estimate) = estimates.and_then(|estimates| estimates.nodes.get(&at)) {
            shown["estimate"] = json!(estimate);
            if let Some(past) = estimates.and_then(|estimates| estimates.past.get(&at)) {
                shown["estimate"]["past"] = json!(past);
            }
        }
        nodes.push(shown);
    }
    let [hits, runs, unknown] = ["hit", "run", "unknown"].map(|word| number(planned, word));
    let mut shown = json!({"pipeline": pipeline.name, "hits": hits, "run": runs, "unknown": unknown, "nodes": nodes});
    if let Some(estimates) = estimates {
        shown["estimate"] = Totals::of(estimates, store).json(pipeline);
    }
    context::print_json(&shown)
}
