//! `sami check`: every error of a pipeline file at once, data included.

use serde_json::json;

use super::figures::plural;
use super::{CommandResult, Context, DONE, PipelineArgs, USAGE, context, render};
use crate::diag::{Diagnostic, Severity};
use crate::exec;
use crate::graph;
use crate::pipeline::check::DataCheck;
use crate::pipeline::{self, Pipeline};

/// Reports every error of a pipeline: its text, its graph, its data and its models.
pub(crate) fn run(context: &Context, args: &PipelineArgs) -> CommandResult {
    let (pipeline, mut findings) = pipeline::examine(&args.pipeline, &args.set, context.kinds());
    let mut data = DataCheck::default();
    if let Some(pipeline) = &pipeline {
        findings.extend(graph::build(pipeline).err().unwrap_or_default());
        data = pipeline::check::data(pipeline);
        findings.append(&mut data.findings);
        let keys = exec::absent_keys(pipeline, 0..pipeline.nodes.len());
        findings.extend(keys.into_iter().map(Diagnostic::as_warning));
    }
    let sound = findings.iter().all(|finding| finding.severity == Severity::Warning);
    if context.json() {
        let findings: Vec<_> = findings.iter().map(render::as_json).collect();
        let rows = data.rows.iter().collect::<std::collections::BTreeMap<_, _>>();
        let nodes = pipeline.as_ref().map_or(0, |pipeline| pipeline.nodes.len());
        context::print_json(&json!({"ok": sound, "findings": findings, "nodes": nodes, "rows": rows}))?;
    } else {
        context::complain(&findings);
        if let (true, Some(pipeline)) = (sound, &pipeline) {
            context::print(&summary(pipeline, &data))?;
        }
    }
    // The process ends now: freeing ten thousand nodes takes as long as typing them.
    std::mem::forget(pipeline);
    Ok(if sound { DONE } else { USAGE })
}

fn summary(pipeline: &Pipeline, data: &DataCheck) -> String {
    let plural = |count: usize, noun: &str| plural(count as u64, noun);
    let mut parts = vec![plural(pipeline.nodes.len(), "node")];
    if !pipeline.datasets.is_empty() {
        let rows = data.rows.values().sum();
        parts.push(format!("{} ({})", plural(pipeline.datasets.len(), "dataset"), plural(rows, "row")));
    }
    if !pipeline.models.is_empty() {
        parts.push(format!("{} from outside", plural(pipeline.models.len(), "model")));
    }
    format!("{}: no errors; {}\n", pipeline.source.path, parts.join(", "))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::Rng;
    use proptest::test_runner::{RngAlgorithm, TestRng};

    use super::*;
    use crate::kinds;

    /// What is typed into a pipeline file when it goes wrong.
    const PIECES: &[&str] = &[
        "\"",
        "'''",
        "[",
        "]",
        "[[",
        "{",
        "}",
        "${",
        "{{",
        "}}",
        "{%",
        "%}",
        "=",
        ".",
        ",",
        "\n",
        "#",
        "\\",
        "\u{0}",
        "é",
        "\u{feff}",
        "\u{202e}",
        "-1",
        "0",
        "1e999",
        "99999999999",
        "nan",
        "true",
        "iteration",
        "@prev",
        "@0",
        "@99999",
        "[lr=1]",
        "matrix = { lr = [] }\n",
        "loop",
        "nodes",
        "policy",
        "take = 0",
        "times = 1000000000",
        "x.json",
    ];

    /// Whatever is in a pipeline file, it gives a pipeline or findings, and those can be drawn.
    #[test]
    fn torn_and_arbitrary_files_give_findings_that_can_be_drawn() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut sound: Vec<Vec<u8>> = crate::fs::list(&root.join("pipelines"))
            .unwrap()
            .iter()
            .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
            .map(|path| fs_err::read(path).unwrap())
            .collect();
        let readme = fs_err::read_to_string(root.join("README.md")).unwrap();
        sound.push(readme.split("```toml").nth(1).unwrap().split("```").next().unwrap().as_bytes().to_vec());
        sound.push(Vec::new());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.toml");
        let mut random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let mut below = |bound: usize| (random.next_u64() % bound.max(1) as u64) as usize;
        let (mut found, mut built) = (0, 0);
        for round in 0..600 {
            let mut text = sound[round % sound.len()].clone();
            for _ in 0..=below(4) {
                let at = below(text.len());
                let end = text.len().min(at + below(20));
                let piece = text[at..end].to_vec();
                match below(5) {
                    0 => drop(text.drain(at..end)),
                    1 => drop(text.splice(at..at, piece)),
                    2 => drop(text.splice(at..end, PIECES[below(PIECES.len())].bytes())),
                    3 => text.truncate(if below(10) == 0 { at } else { text.len() }),
                    _ => drop(text.splice(at..at, (0..below(6)).map(|_| below(256) as u8).collect::<Vec<_>>())),
                }
            }
            fs_err::write(&path, &text).unwrap();
            let set = String::from_utf8_lossy(&text[..text.len().min(below(9))]).into_owned();
            let sets = if below(3) == 0 { vec![set] } else { Vec::new() };
            let (pipeline, mut findings) = pipeline::examine(&path, &sets, &kinds::specs());
            match pipeline.as_ref().map(graph::build) {
                Some(Ok(_)) => built += 1,
                Some(Err(faults)) => findings.extend(faults),
                None => assert!(!findings.is_empty()),
            }
            found += findings.len();
            let drawn = render::render(&findings);
            assert_eq!(drawn.is_empty(), findings.is_empty());
            assert!(!drawn.contains(['\u{0}', '\u{202e}']), "{drawn}");
            for finding in &findings {
                assert_eq!(render::as_json(finding)["id"], finding.id);
            }
        }
        assert!(found > 300 && built > 50, "{found} findings, {built} graphs");
    }
}
