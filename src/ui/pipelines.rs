//! The pipelines of a site: which there are, and what a plan says of one now.

use std::path::PathBuf;

use super::{Problem, Site};
use crate::diag::Severity;
use crate::exec::{self, Plan, PlanOptions};
use crate::fs;
use crate::graph;
use crate::inspect::dag::Dag;
use crate::inspect::story::Story;
use crate::pipeline::{self, Pipeline};
use crate::store::{Index, RunRecord, Store};

/// Runs, the latest ones, among which those that go on are looked for: these may not be in the index yet, and live pages
/// follow them.
pub(super) const LATEST: usize = 8;

/// A pipeline that a page can be about. A request names one of these; no file is read because a request names it.
#[derive(Debug)]
pub(super) struct Known {
    /// Its name, or for want of one the file named on the command line.
    pub(super) name: String,
    /// The file as it was typed.
    pub(super) file: String,
    /// The file, if it is there.
    pub(super) path: Option<PathBuf>,
    /// Its latest run.
    pub(super) latest: Option<RunRecord>,
}

/// A pipeline as it is now.
#[derive(Debug)]
pub(super) struct Planned {
    /// The pipeline, if its file is there and sound.
    pub(super) pipeline: Option<Pipeline>,
    /// What would run, if that can be told.
    pub(super) plan: Option<Plan>,
    /// Why either is not.
    pub(super) problem: Option<Problem>,
    /// Params that the latest run had otherwise than the file, each as `NAME=VALUE`.
    pub(super) differs: Vec<String>,
    /// Whether those were used.
    pub(super) as_run: bool,
    /// The graph, with the states of its nodes.
    pub(super) dag: Dag,
    /// What the latest run told, if it goes on.
    pub(super) story: Option<Story>,
}

impl Site {
    /// All pipelines: those that have run, and those named on the command line.
    pub(super) fn known(&self, store: &Store, index: &Index) -> Result<Vec<Known>, Problem> {
        let mut names = index.pipeline_names();
        let mut latest: Vec<RunRecord> = Vec::new();
        for run in store.run_ids()?.iter().rev().take(LATEST) {
            latest.extend(store.run(run)?);
        }
        names.extend(latest.iter().map(|run| run.pipeline.clone()));
        names.sort();
        names.dedup();
        let mut known = Vec::new();
        for name in names {
            let recent = latest.iter().find(|run| run.pipeline == name).cloned();
            let indexed = || index.runs_of(&name, 1).first().and_then(|run| store.run(run).ok().flatten());
            let run = recent.or_else(indexed);
            let file = run.as_ref().map(|run| run.file.clone()).unwrap_or_default();
            known.push(Known { path: self.resolve(&file), name, file, latest: run });
        }
        for path in self.pipelines() {
            let whole = fs_err::canonicalize(path).unwrap_or_else(|_| path.clone());
            let is_known = |known: &Known| {
                known.path.as_ref().and_then(|path| fs_err::canonicalize(path).ok()).as_ref() == Some(&whole)
            };
            if !known.iter().any(is_known) {
                let file = path.display().to_string();
                known.push(Known { name: file.clone(), file, path: Some(path.clone()), latest: None });
            }
        }
        Ok(known)
    }

    /// The pipeline of a name.
    pub(super) fn known_as(&self, store: &Store, index: &Index, name: &str) -> Result<Known, Problem> {
        let known = self.known(store, index)?;
        let found = known.into_iter().find(|known| known.name == name);
        found.ok_or_else(|| Problem::absent(format!("no pipeline `{name}` has run in this cache")))
    }

    /// A file that was typed where a run began: here, or in the directory that the cache is in.
    fn resolve(&self, file: &str) -> Option<PathBuf> {
        if file.is_empty() {
            return None;
        }
        let beside = self.root().parent().map(|project| project.join(file));
        [Some(PathBuf::from(file)), beside].into_iter().flatten().find(|path| path.is_file())
    }

    /// Plans a pipeline: with the params of its file, or with those of its latest run where `as_run` asks for it or that run
    /// goes on. What cannot be read or planned is told; the graph is then that of the latest run.
    pub(super) fn planned(
        &self,
        store: &Store,
        index: &mut Index,
        known: &Known,
        as_run: bool,
    ) -> Result<Planned, Problem> {
        let story = match &known.latest {
            Some(run) if run.finished.is_none() => Some(Story::of(store, &run.run)?).filter(|story| story.goes_on),
            _ => None,
        };
        let as_run = as_run || story.is_some();
        let mut planned = Planned {
            pipeline: None,
            plan: None,
            problem: None,
            differs: Vec::new(),
            as_run,
            dag: Dag::default(),
            story,
        };
        match self.load(known, &[]) {
            Ok(pipeline) => {
                planned.differs = differing(&pipeline, known.latest.as_ref());
                let pipeline = if as_run && !planned.differs.is_empty() {
                    self.load(known, &planned.differs).unwrap_or(pipeline)
                } else {
                    pipeline
                };
                match plan(&pipeline, store, index) {
                    Ok(plan) => planned.plan = Some(plan),
                    Err(problem) => planned.problem = Some(problem),
                }
                planned.dag = Dag::of_plan(&pipeline, planned.plan.as_ref());
                planned.pipeline = Some(pipeline);
            }
            Err(problem) => {
                planned.problem = Some(problem);
                if let Some(run) = &known.latest {
                    planned.dag = Dag::of_run(store, run)?;
                }
            }
        }
        if let Some(story) = &planned.story {
            planned.dag.hear(story);
        }
        Ok(planned)
    }

    fn load(&self, known: &Known, sets: &[String]) -> Result<Pipeline, Problem> {
        let Some(path) = &known.path else {
            let help = "start `sami ui` where the pipeline was run, or name its file: `sami ui FILE`";
            return Err(Problem::new(404, format!("the pipeline file `{}` is not here", known.file), help));
        };
        let (pipeline, findings) = pipeline::examine(path, sets, self.kinds());
        match pipeline {
            Some(pipeline) if findings.iter().all(|finding| finding.severity == Severity::Warning) => Ok(pipeline),
            _ => Err(findings.into()),
        }
    }
}

fn plan(pipeline: &Pipeline, store: &Store, index: &mut Index) -> Result<Plan, Problem> {
    let graph = graph::build(pipeline)?;
    Ok(exec::plan(pipeline, &graph, store, index, &PlanOptions::default())?)
}

/// Params that a run had otherwise than the file gives them, as `--set` takes them.
fn differing(pipeline: &Pipeline, run: Option<&RunRecord>) -> Vec<String> {
    let params = run.into_iter().flat_map(|run| &run.params);
    let differs = params.filter(|(name, value)| pipeline.params.get(*name).is_some_and(|own| own != *value));
    differs.map(|(name, value)| format!("{name}={value}")).collect()
}

/// The end of a file of text: at most so many bytes up to `end`, from the beginning of a line on, and where that is. What is
/// no text is shown as well as it can be.
pub(super) fn tail(path: &std::path::Path, end: Option<u64>, most: u64) -> Result<(String, u64, u64), Problem> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = fs::open(path)?;
    let size = file.metadata()?.len();
    let end = end.unwrap_or(size).min(size);
    let start = end.saturating_sub(most);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(end - start).read_to_end(&mut bytes)?;
    // Of a line of which the beginning is cut off, nothing: unless there is no other.
    let cut = if start == 0 { 0 } else { bytes.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1) };
    let text = String::from_utf8_lossy(&bytes[cut..]);
    let plain = |letter: char| if letter.is_control() && !"\n\t".contains(letter) { ' ' } else { letter };
    Ok((crate::secret::redact(&text.chars().map(plain).collect::<String>()).into_owned(), start + cut as u64, size))
}
