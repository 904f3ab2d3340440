//! The short way of `run`, `status` and `plan`: where an earlier command found everything fresh and nothing that it looked
//! at has changed since, its answer is given again.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::context::Failure;
use super::progress::Report;
use super::run::RunArgs;
use super::screen::Screen;
use super::table::Table;
use super::{CommandResult, Context, DONE, PipelineArgs, context};
use crate::digest::{Digest, Hasher};
use crate::exec::{self, FreshRun, Plan, Summary};
use crate::fs::Watch;
use crate::pipeline::Pipeline;
use crate::store::{Fresh, Store};
use crate::{env, secret};

/// A question that may have been answered before.
#[derive(Debug)]
pub(super) struct Question {
    asked: Digest,
    /// What the answer will rest on; none, if it is not to be remembered.
    watched: Option<Vec<Watch>>,
}

impl Question {
    /// What a command is asked of a pipeline: `word` is the command and whatever else its answer depends on.
    pub(super) fn new(word: &str, args: &PipelineArgs, targets: &[String]) -> std::io::Result<Self> {
        let mut hasher = Hasher::new();
        hasher.text(env!("CARGO_PKG_VERSION")).text(word);
        // A pipeline in which the value of one of these stands is at fault.
        for name in secret_variables() {
            hasher.text(&name).text(&value(&name));
        }
        hasher.text(&std::path::absolute(&args.pipeline)?.to_string_lossy());
        // The file as typed may stand in the answer.
        hasher.text(&args.pipeline.to_string_lossy());
        for list in [&args.set, targets] {
            hasher.number(list.len() as u64);
            list.iter().for_each(|text| _ = hasher.text(text));
        }
        Ok(Self { asked: hasher.finish(), watched: None })
    }

    /// The same, of an answer that is drawn for a screen: what was drawn for another one is no answer.
    pub(super) fn on(mut self, screen: Screen) -> Self {
        let Screen { width, room, plain, coloured } = screen;
        let mut hasher = Hasher::new();
        hasher.text(&self.asked.to_string()).number(width as u64).text(&format!("{room:?} {plain} {coloured}"));
        self.asked = hasher.finish();
        self
    }

    /// The store at `root` and the answer, if there are both, with what is remembered of a run.
    fn recall(&self, root: &Path) -> Option<(Store, Fresh, Option<FreshRun>)> {
        let store = Store::open_existing(root).ok()?;
        let fresh = store.recall(&self.asked).ok()??;
        let head: Head = serde_json::from_slice(&fresh.head).ok()?;
        if environment(&head.variables) != head.environment {
            tracing::debug!("a remembered answer is void: the environment changed");
            return None;
        }
        tracing::debug!("nothing has changed since this was asked last: the answer is remembered");
        Some((store, fresh, head.run))
    }

    /// Prints the answer, if there is one: that of a command whose answer is a text.
    pub(super) fn answer(&self, root: &Path) -> Result<bool, Failure> {
        let Some((_store, mut fresh, _)) = self.recall(root) else { return Ok(false) };
        let mut text = Vec::new();
        if !fresh.copy_body(&mut text)? {
            return Ok(false);
        }
        context::print(&String::from_utf8_lossy(&text))?;
        Ok(true)
    }

    /// Takes down what loading has read and planning is going to read.
    pub(super) fn watch(&mut self, pipeline: &Pipeline, store: &Store) {
        self.watched = exec::watched(pipeline, store);
    }

    /// Remembers an answer that is a text.
    pub(super) fn remember(&self, store: &Store, plan: &Plan, text: &str) {
        self.keep(store, plan, None, text.as_bytes());
    }

    /// Remembers a run in which all was fresh.
    pub(super) fn remember_run(
        &self,
        store: &Store,
        pipeline: &Pipeline,
        plan: &Plan,
        summary: &Summary,
        table: Option<Table>,
    ) {
        let nodes = summary.nodes.len();
        // Laid out when it is told: terminals differ.
        let table = table.and_then(|table| serde_json::to_string(&table).ok());
        let run = FreshRun { pipeline: pipeline.name.clone(), params: pipeline.params.clone(), nodes, table };
        if let Ok(body) = exec::nodes_as_text(&summary.nodes) {
            self.keep(store, plan, Some(run), &body);
        }
    }

    fn keep(&self, store: &Store, plan: &Plan, run: Option<FreshRun>, body: &[u8]) {
        let Some(watched) = &self.watched else { return };
        let variables = env::asked();
        let head = Head { environment: environment(&variables), variables, run };
        let Ok(head) = serde_json::to_vec(&head) else { return };
        // It only saves time.
        if let Err(error) = exec::remember(store, &self.asked, watched, plan, &head, body) {
            tracing::debug!("the answer is not remembered: {error}");
        }
    }
}

/// What is remembered beside an answer.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    /// Variables that nodes asked for.
    variables: Vec<String>,
    /// What they were.
    environment: Digest,
    run: Option<FreshRun>,
}

/// What stands for the values of variables.
fn environment(variables: &[String]) -> Digest {
    let mut hasher = Hasher::new();
    for name in variables {
        hasher.text(name).text(&value(name));
    }
    hasher.finish()
}

fn value(name: &str) -> String {
    format!("{:?}", env::value(name))
}

/// Names of all variables that are named as secrets are, in order.
fn secret_variables() -> BTreeSet<String> {
    let names = env::variables().filter_map(|(name, _)| name.into_string().ok());
    names.filter(|name| secret::is_named_so(name)).collect()
}

/// Runs a pipeline of which it is remembered that all is fresh; `None` if it is not.
pub(super) fn run(context: &Context, args: &RunArgs, question: &Question, root: &Path) -> Option<CommandResult> {
    // As JSON, the last event has all nodes.
    if context.json() || !args.force.is_empty() {
        return None;
    }
    let (store, mut fresh, run) = question.recall(root)?;
    let run = run?;
    let mut report = Report::new(false);
    let file = args.pipeline.pipeline.display().to_string();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    match exec::run_fresh(&store, &mut fresh, &run, &file, threads, &mut |event| report.tell(event)) {
        Ok(Some(seconds)) => {
            let table = run.table.as_deref().and_then(|table| serde_json::from_str(table).ok());
            report.end_fresh(run.nodes, seconds, table.as_ref());
            Some(Ok(DONE))
        }
        Ok(None) => None,
        Err(error) => Some(Err(error.into())),
    }
}
