//! Kind `generate`: responses of a model to queries, one under each of the constitutions drawn for a query.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::check::{input, require, sampling};
use super::contrast::Part;
use super::keep::Keep;
use super::{Cx, NodeError, NodeKind, Outputs, template};
use crate::pipeline::{ArtifactType, Input, InputField, Problem, Spec};

/// The fields of kind `generate`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generate {
    pub(super) model: Input,
    pub(super) queries: Input,
    pub(super) constitutions: Input,
    pub(super) prompt: String,
    #[serde(default)]
    pub(super) combinations: Part,
    #[serde(default = "max_new_tokens")]
    pub(super) max_new_tokens: usize,
    #[serde(default)]
    pub(super) temperature: f64,
    #[serde(default)]
    pub(super) top_k: usize,
    #[serde(default = "one")]
    pub(super) top_p: f64,
    #[serde(default)]
    pub(super) stop: Vec<String>,
    #[serde(default)]
    pub(super) seed: u64,
    #[serde(default = "once")]
    pub(super) samples: u64,
    #[serde(default)]
    pub(super) cut: Vec<String>,
    #[serde(default)]
    pub(super) keep: Keep,
}

pub(super) fn max_new_tokens() -> usize {
    256
}

pub(super) fn one() -> f64 {
    1.0
}

fn once() -> u64 {
    1
}

impl Spec for Generate {
    fn inputs(&self) -> Vec<InputField> {
        vec![
            input("model", &self.model, &[ArtifactType::Model]),
            input("queries", &self.queries, &[ArtifactType::Dataset]),
            input("constitutions", &self.constitutions, &[ArtifactType::Constitutions]),
        ]
    }

    fn output(&self) -> ArtifactType {
        ArtifactType::Responses
    }

    fn fields(&self) -> Value {
        json!(self)
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        template::check(&mut problems, "prompt", &self.prompt);
        sampling(&mut problems, self.max_new_tokens, self.temperature, self.top_p, &self.stop);
        require(&mut problems, self.samples >= 1, "samples", "no samples", "give 1 or more");
        let varied = self.samples == 1 || self.temperature > 0.0;
        require(
            &mut problems,
            varied,
            "samples",
            "greedy samples would all be the same",
            "give `temperature` above 0 or `samples = 1`",
        );
        problems
    }
}

impl NodeKind for Generate {
    const NAME: &'static str = "generate";
    const VERSION: u32 = 1;
    const DOC: &'static str = r#"Responses of a model to queries: for each query one under each of the constitutions drawn for it.

Each response has its own random numbers, seeded by `seed`, the query's id and the constitution's place; batch size and
the other rows do not matter. Rows are memoised: a dataset that grew by 100 rows costs 100 rows.

| field | meaning | default |
|---|---|---|
| `model` | the model that answers | |
| `queries` | a dataset; its fields can be used in `prompt` | |
| `constitutions` | a `constitutions` node | |
| `prompt` | template: the query's fields, `constitution` (text), `principles` (list of `name`, `polarity`, `text`) | |
| `combinations` | constitutions are drawn from `"train"`, `"held-out"` or `"all"` combinations | `"train"` |
| `max_new_tokens` | tokens of a response at most | 256 |
| `temperature`, `top_k`, `top_p` | sampling; temperature 0 is greedy, `top_k` 0 and `top_p` 1 keep all tokens | 0, 0, 1 |
| `stop` | texts that end a response; not part of it | `[]` |
| `cut` | texts at which a finished response is cut off | `[]` |
| `samples` | rows made of each query, each with its own constitutions and random numbers | 1 |
| `seed` | seed of draws and samples | 0 |
| `keep` | what a query's responses must be like for its row to stay, see below | identical ones drop |

`keep`: `forbid` (texts that no response may contain), `ends_with` (a text, or a list of which one must end each response),
`distinct` (no two responses of a query alike, default true), `min_tokens`, `finished` (the model
ended each response by itself). What each dropped is counted in metrics `dropped.NAME`.

Makes `rows.jsonl`: `{id, …query fields, constitutions: [{text, format, principles}], responses: [{text, tokens, finish}]}`.
Responses are stripped of white space at both ends. Metrics: `rows`, `rows_reused`, `tokens`, `mean_length`, `dropped`, `dropped.*`.

```toml
[loop.nodes.generate]
kind = "generate"
model = "policy"
queries = { from = "queries", skip = "${100 * (iteration - 1)}", take = 100 }
constitutions = "constitutions"
prompt = "rules : {{ constitution }} q : {{ query }} a :"
max_new_tokens = 40
temperature = 1.0
```
"#;

    fn run(&self, cx: &mut Cx<'_>) -> Result<Outputs, NodeError> {
        let _ = cx;
        Err(NodeError::failed("kind `generate` is not built yet"))
    }
}
