//! `sami audit`: whether what the cache has comes out again.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::context::Failure;
use super::figures::count;
use super::find::{self, Found};
use super::table::Table;
use super::{CommandResult, Context, DONE, FAILED, PipelineArgs, context, run};
use crate::diag::Diagnostic;
use crate::exec::{self, AuditOptions, Audited, Verdict};
use crate::store::{Index, NodeRecord, Store};

/// Arguments of `audit`.
#[derive(Debug, Clone, Args)]
pub struct AuditArgs {
    /// Nodes to audit, by name, key or prefix (default: all nodes of the latest run)
    #[arg(value_name = "NODE")]
    pub nodes: Vec<String>,
    /// The run whose nodes are audited: its id or a prefix
    #[arg(long)]
    pub run: Option<String>,
    /// Rows to compute again of a kind whose rows are made one by one
    #[arg(long, value_name = "K", default_value_t = 10)]
    pub rows: usize,
    /// Compute all rows again
    #[arg(long, conflicts_with = "rows")]
    pub whole: bool,
    /// Which rows are sampled
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Compute, too, what may come out otherwise; that it does is no failure then
    #[arg(long)]
    pub any: bool,
    /// Run programs, too, as the `command` nodes of this pipeline say
    #[arg(long, value_name = "FILE")]
    pub pipeline: Option<PathBuf>,
    /// Override a param of that pipeline
    #[arg(long, value_name = "NAME=VALUE", requires = "pipeline")]
    pub set: Vec<String>,
    /// Device to compute on: `cpu` or `cuda:N`
    #[arg(long, default_value = "cpu")]
    pub device: String,
}

/// Computes nodes again and compares. What cannot be computed is told at the end; the others are audited all the same.
pub(crate) fn audit(context: &Context, args: &AuditArgs) -> CommandResult {
    let (store, index) = context.open_existing()?;
    let records = records(&store, &index, args)?;
    let commands = match &args.pipeline {
        Some(file) => {
            let (pipeline, _) = context.load(&PipelineArgs { pipeline: file.clone(), set: args.set.clone() })?;
            exec::commands(&pipeline)
        }
        None => Vec::new(),
    };
    let options = AuditOptions {
        commands,
        rows: (!args.whole).then_some(args.rows),
        seed: args.seed,
        any: args.any,
        device: args.device.clone(),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        program: run::program()?,
    };
    let (mut found, mut faults) = (Vec::new(), Vec::new());
    for record in &records {
        match exec::audit(&store, record, &options) {
            Ok(audited) => found.push(audited),
            Err(error) => faults.extend(error.diagnostics()),
        }
    }
    let differs = found.iter().any(|audited| audited.verdict == Verdict::Differs);
    if context.json() {
        let faults: Vec<&String> = faults.iter().map(|fault| &fault.title).collect();
        context::print_json(&json!({"ok": !differs && faults.is_empty(), "nodes": found, "faults": faults}))?;
    } else {
        context::print(&page(&found))?;
        context::complain(&faults);
    }
    Ok(if differs || !faults.is_empty() { FAILED } else { DONE })
}

/// The records of the nodes named; of those of a run, the latest if none is named.
fn records(store: &Store, index: &Index, args: &AuditArgs) -> Result<Vec<NodeRecord>, Failure> {
    let mut records: Vec<NodeRecord> = Vec::new();
    if args.nodes.is_empty() || args.run.is_some() {
        let run = match &args.run {
            Some(run) => find::run(store, run)?,
            None => find::latest_run(store, |_| true)?.ok_or_else(|| {
                Diagnostic::error("cli::nothing-to-audit", "there was no run yet").help("run a pipeline first")
            })?,
        };
        for node in &run.nodes {
            let named = args.nodes.is_empty() || args.nodes.contains(&node.name);
            if let (true, Some(key), Some(_)) = (named, node.key, node.artifact) {
                records.extend(store.node(&key)?);
            }
        }
        if records.is_empty() {
            let what = format!("run {} has no such node with an artifact", run.run);
            return Err(Diagnostic::error("cli::nothing-to-audit", what)
                .help(format!("`sami show {}` lists its nodes", run.run))
                .into());
        }
        return Ok(records);
    }
    for node in &args.nodes {
        match find::run_or_node(store, index, node)? {
            Found::Node(record) => records.push(*record),
            Found::Run(run) => {
                return Err(Diagnostic::error("cli::nothing-to-audit", format!("`{node}` is a run"))
                    .help(format!("`sami audit --run {}` audits its nodes", run.run))
                    .into());
            }
        }
    }
    Ok(records)
}

fn page(found: &[Audited]) -> String {
    let mut table = Table::new(["node", "kind", "promised", "checked", "same", "farthest apart", ""], &[3, 4]);
    for audited in found {
        let promised = audited.class.as_ref().map_or_else(|| "not known".to_owned(), ToString::to_string);
        let (checked, same) = match (audited.verdict, audited.rows) {
            (Verdict::Skipped, _) => (String::new(), String::new()),
            (_, Some(rows)) => (format!("{} rows", count(rows)), count(audited.same)),
            (_, None) => ("all".to_owned(), if audited.verdict == Verdict::Same { "all" } else { "" }.to_owned()),
        };
        let worst = if audited.verdict == Verdict::Skipped { String::new() } else { audited.worst.to_string() };
        let promised = if audited.verdict == Verdict::Skipped { String::new() } else { promised };
        let end = match audited.verdict {
            Verdict::Same => "same".to_owned(),
            Verdict::Differs => "DIFFERS".to_owned(),
            Verdict::Unpromised => "differs, as it may".to_owned(),
            Verdict::Skipped => format!("skipped: {}", audited.why.as_deref().unwrap_or_default()),
        };
        table.row([audited.node.clone(), audited.kind.clone(), promised, checked, same, worst, end]);
    }
    let mut text = if table.is_empty() { String::new() } else { table.text() };
    for audited in found.iter().filter(|audited| !audited.differences.is_empty()) {
        text.push_str(&format!("\n{}:\n", audited.node));
        audited.differences.iter().for_each(|difference| text.push_str(&format!("  {difference}\n")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::store::{Class, Reproduces, Worst};

    #[test]
    fn the_table_says_what_was_checked_and_what_differs() {
        let audited = |node: &str, verdict: Verdict, rows: Option<u64>, same: u64| Audited {
            node: node.into(),
            kind: "score".into(),
            key: Digest::of(b"key"),
            artifact: Digest::of(b"artifact"),
            class: Some(Class { reproduces: Reproduces::BitExact, on: "cpu".into() }),
            verdict,
            rows,
            same,
            worst: Worst::default(),
            differences: if verdict == Verdict::Differs { vec!["row `1` `x`: 1.0 -> 2.0".into()] } else { Vec::new() },
            why: (verdict == Verdict::Skipped).then(|| "not reproducible".into()),
        };
        let found = [
            audited("a", Verdict::Same, Some(10), 10),
            audited("b", Verdict::Differs, None, 0),
            audited("c", Verdict::Skipped, None, 0),
        ];
        assert_eq!(
            page(&found),
            "node  kind   promised          checked  same  farthest apart\n\
             a     score  bit-exact on cpu  10 rows    10  no difference   same\n\
             b     score  bit-exact on cpu      all        no difference   DIFFERS\n\
             c     score                                                   skipped: not reproducible\n\n\
             b:\n  row `1` `x`: 1.0 -> 2.0\n"
        );
    }
}
