//! Kind `score`: the log-probability of every response of a query under every constitution of it.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::check::input;
use super::{Cx, NodeError, NodeKind, Outputs, template};
use crate::pipeline::{ArtifactType, Input, InputField, Problem, Spec};

/// The fields of kind `score`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Score {
    pub(super) model: Input,
    pub(super) responses: Input,
    pub(super) prompt: String,
    #[serde(default)]
    pub(super) reference: Option<Input>,
    #[serde(default)]
    pub(super) score_eos: bool,
    #[serde(default = "yes")]
    pub(super) shuffle_principles: bool,
    #[serde(default)]
    pub(super) seed: u64,
}

fn yes() -> bool {
    true
}

impl Spec for Score {
    fn inputs(&self) -> Vec<InputField> {
        let mut inputs = vec![
            input("model", &self.model, &[ArtifactType::Model]),
            input("responses", &self.responses, &[ArtifactType::Responses]),
        ];
        inputs.extend(self.reference.iter().map(|reference| input("reference", reference, &[ArtifactType::Model])));
        inputs
    }

    fn output(&self) -> ArtifactType {
        ArtifactType::Scores
    }

    fn fields(&self) -> Value {
        json!(self)
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        template::check(&mut problems, "prompt", &self.prompt);
        problems
    }
}

impl NodeKind for Score {
    const NAME: &'static str = "score";
    const VERSION: u32 = 1;
    const DOC: &'static str = r#"The log-probability of every response of a query under every constitution of it: the C×C matrix of SAMI.

| field | meaning | default |
|---|---|---|
| `model` | the model that scores | |
| `responses` | a `generate` node | |
| `prompt` | the *training* prompt, a template as in `generate`; kept in the rows, and what `finetune` trains on | |
| `reference` | a model; adds `kl` of `model` against it on the responses under their own constitutions | |
| `score_eos` | whether the end-of-sequence token is scored too | false |
| `shuffle_principles` | a new order of the principles in each constitution | true |
| `seed` | seed of that order | 0 |

Makes `rows.jsonl`: the row of the responses with `prompts` (a text per constitution), `logprobs` (C×C sums in nats, rows
are constitutions, columns are responses) and `lengths` (tokens of each response). Metrics: `bound` (InfoNCE lower bound on
the conditional mutual information from summed log-probs, nats), `bound_ceiling` (ln C), `gap` (the authors' mean log-ratio, without a ceiling),
`accuracy_row`, `accuracy_column`, `mean_length`, `kl` (with `reference`), `rows`, `rows_reused`, `tokens`.

```toml
[loop.nodes.score]
kind = "score"
model = "policy"
responses = "generate"
prompt = "rules : {{ constitution }} q : {{ query }} a :"
```
"#;

    fn run(&self, cx: &mut Cx<'_>) -> Result<Outputs, NodeError> {
        let _ = cx;
        Err(NodeError::failed("kind `score` is not built yet"))
    }
}
