//! Kinds without work, for tests of this layer and the graph.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{ArtifactType, Input, InputField, KindSpec, Pipeline, Problem, Spec, tree};
use crate::diag::Diagnostic;

const ANY: &[ArtifactType] =
    &[ArtifactType::Dataset, ArtifactType::Responses, ArtifactType::Scores, ArtifactType::Model, ArtifactType::Files];

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    model: Input,
    queries: Input,
    prompt: String,
    #[serde(default)]
    temperature: f64,
    #[serde(default)]
    tokens: u32,
    #[serde(default)]
    mode: Mode,
    #[serde(default)]
    seed: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    #[default]
    Greedy,
    TopP(f64),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Train {
    model: Input,
    examples: Input,
    optimizer: Optimizer,
    #[serde(default)]
    steps: u32,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Optimizer {
    name: String,
    lr: f64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    #[serde(default)]
    inputs: indexmap::IndexMap<String, Input>,
    #[serde(default)]
    note: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Init {
    layers: u32,
    corpus: Input,
}

fn input(path: &str, input: &Input, accepts: &'static [ArtifactType]) -> InputField {
    InputField { path: path.to_owned(), input: input.clone(), accepts }
}

impl Spec for Answer {
    fn inputs(&self) -> Vec<InputField> {
        vec![
            input("model", &self.model, &[ArtifactType::Model]),
            input("queries", &self.queries, &[ArtifactType::Dataset]),
        ]
    }
    fn output(&self) -> ArtifactType {
        ArtifactType::Responses
    }
    fn fields(&self) -> Value {
        json!(self)
    }
    fn validate(&self) -> Vec<Problem> {
        let problem = Problem {
            path: "temperature".to_owned(),
            what: "the temperature is below 0".to_owned(),
            help: "give 0 or more".to_owned(),
        };
        if self.temperature < 0.0 { vec![problem] } else { Vec::new() }
    }
}

impl Spec for Train {
    fn inputs(&self) -> Vec<InputField> {
        vec![
            input("model", &self.model, &[ArtifactType::Model]),
            input("examples", &self.examples, &[ArtifactType::Responses]),
        ]
    }
    fn output(&self) -> ArtifactType {
        ArtifactType::Model
    }
    fn fields(&self) -> Value {
        json!(self)
    }
}

impl Spec for Step {
    fn inputs(&self) -> Vec<InputField> {
        self.inputs.iter().map(|(name, from)| input(&format!("inputs.{name}"), from, ANY)).collect()
    }
    fn output(&self) -> ArtifactType {
        ArtifactType::Files
    }
    fn fields(&self) -> Value {
        json!(self)
    }
}

impl Spec for Init {
    fn inputs(&self) -> Vec<InputField> {
        vec![input("corpus", &self.corpus, &[ArtifactType::Dataset])]
    }
    fn output(&self) -> ArtifactType {
        ArtifactType::Model
    }
    fn fields(&self) -> Value {
        json!(self)
    }
}

macro_rules! kind {
    ($name:literal, $type:ty, $public:literal) => {
        KindSpec {
            name: $name,
            version: 1,
            doc: "",
            parse: |tree| Ok(Arc::new(tree::from_tree::<$type>(tree)?)),
            public: $public,
        }
    };
}

static KINDS: [KindSpec; 4] =
    [kind!("answer", Answer, true), kind!("train", Train, true), kind!("step", Step, true), kind!("init", Init, false)];

/// Kinds `answer` (model, queries → responses), `train` (model, examples → model), `step` (anything → files) and `init`.
pub(crate) fn kinds() -> Vec<&'static KindSpec> {
    KINDS.iter().collect()
}

/// Loads a pipeline from text, in a directory of its own with the given files.
pub(crate) fn examine(text: &str, sets: &[&str], files: &[(&str, &str)]) -> (Option<Pipeline>, Vec<Diagnostic>) {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        fs_err::write(folder.path().join(name), text).expect("writes");
    }
    let path = folder.path().join("test.toml");
    fs_err::write(&path, text).expect("writes");
    let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
    super::examine(Path::new(&path), &sets, &kinds())
}

/// Loads a pipeline that is sound.
pub(crate) fn load(text: &str) -> Pipeline {
    let (pipeline, findings) = examine(text, &[], &[]);
    assert!(findings.is_empty(), "{findings:#?}");
    pipeline.expect("it was read")
}

/// What is wrong with a text: id, the text under the caret, and all help.
pub(crate) fn faults(text: &str) -> Vec<(&'static str, String, String)> {
    let (_, findings) = examine(text, &[], &[]);
    findings.iter().map(summary).collect()
}

/// A finding in short: id, the text under the caret, and all help.
pub(crate) fn summary(finding: &Diagnostic) -> (&'static str, String, String) {
    let under =
        finding.labels.first().map_or_else(String::new, |label| label.source.text[label.span.clone()].to_owned());
    (finding.id, under, finding.help.join(" / "))
}
