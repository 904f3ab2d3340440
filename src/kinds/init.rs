//! Kind `init`, behind `[models.NAME] init = { … }`: a randomly initialised model with a tokenizer of its own.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::check::{input, require};
use super::estimate::{self, Estimate, Known};
use super::{Cx, NodeError, NodeKind, Outputs, Setting, command, rows};
use crate::lm::{ChatTemplate, Config, Experts, Family, Model, Tensor, Tokenizer, TokenizerKind};
use crate::pipeline::{ArtifactType, Input, InputField, Problem, Spec};
use crate::store::Reproduces;

/// `tokenizer = { … }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenizerFields {
    /// The dataset that it is trained on.
    pub from: Input,
    /// The field of its rows that holds text.
    #[serde(default = "text")]
    pub field: String,
    /// How text is cut.
    #[serde(default)]
    pub kind: TokenizerKind,
    /// Tokens at most.
    #[serde(default = "vocab_size")]
    pub vocab_size: usize,
}

fn text() -> String {
    "text".to_owned()
}

fn vocab_size() -> usize {
    4096
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_llama(family: &Family) -> bool {
    *family == Family::Llama
}

/// The fields of kind `init`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Init {
    #[serde(default, skip_serializing_if = "is_llama")]
    pub(super) architecture: Family,
    pub(super) hidden_size: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    #[serde(default)]
    pub(super) kv_heads: Option<usize>,
    #[serde(default)]
    pub(super) intermediate_size: Option<usize>,
    #[serde(default = "max_positions")]
    pub(super) max_positions: usize,
    #[serde(default = "rope_theta")]
    pub(super) rope_theta: f64,
    #[serde(default = "yes")]
    pub(super) tie_embeddings: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sliding_window: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) experts: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) experts_per_token: Option<usize>,
    pub(super) tokenizer: TokenizerFields,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) chat_template: Option<String>,
    #[serde(default)]
    pub(super) seed: u64,
}

fn max_positions() -> usize {
    512
}

fn rope_theta() -> f64 {
    10_000.0
}

fn yes() -> bool {
    true
}

impl Spec for Init {
    fn inputs(&self) -> Vec<InputField> {
        vec![input("tokenizer.from", &self.tokenizer.from, &[ArtifactType::Dataset])]
    }

    fn output(&self) -> ArtifactType {
        ArtifactType::Model
    }

    fn fields(&self) -> Value {
        json!(self)
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut want = |holds, path: &str, what: &str, help: &str| require(&mut problems, holds, path, what, help);
        want(self.layers >= 1, "layers", "a model without layers", "give 1 or more");
        let heads = self.heads.max(1);
        want(self.heads >= 1, "heads", "a model without attention heads", "give 1 or more");
        let even = self.hidden_size >= 2 * heads && self.hidden_size.is_multiple_of(2 * heads);
        want(
            even,
            "hidden_size",
            "the width cannot be split evenly over the heads",
            "make it an even multiple of `heads`, such as 32 × heads",
        );
        let kv_heads = self.kv_heads.unwrap_or(heads);
        want(
            kv_heads >= 1 && heads.is_multiple_of(kv_heads.max(1)),
            "kv_heads",
            "`heads` is no multiple of `kv_heads`",
            "leave it out, or give a divisor of `heads`",
        );
        want(
            self.intermediate_size != Some(0),
            "intermediate_size",
            "a feed-forward layer of width 0",
            "leave it out for 8/3 of the width",
        );
        want(
            self.max_positions >= 2,
            "max_positions",
            "fewer than two positions",
            "give the longest prompt and response together",
        );
        want(self.rope_theta > 0.0, "rope_theta", "`rope_theta` is not above 0", "10000 is usual");
        want(
            self.tokenizer.vocab_size >= 8,
            "tokenizer.vocab_size",
            "a vocabulary of fewer than 8 tokens",
            "give more",
        );
        let family = self.architecture;
        want(
            self.sliding_window.is_none_or(|window| window >= 1 && family != Family::Llama),
            "sliding_window",
            "a sliding window of 0, or of a Llama",
            "leave it out, or give `architecture = \"mistral\"` and 1 or more",
        );
        for (count, path) in [(self.experts, "experts"), (self.experts_per_token, "experts_per_token")] {
            want(
                count.is_none_or(|count| count >= 1 && family.has_experts()),
                path,
                "no experts, or experts of a family that has none",
                "leave it out, or give `architecture = \"mixtral\"` or `\"qwen3_moe\"` and 1 or more",
            );
        }
        let experts = self.experts();
        want(
            experts.is_none_or(|experts| experts.num_experts_per_tok <= experts.num_local_experts),
            "experts_per_token",
            "a token uses more experts than there are",
            "give as many as `experts`, or fewer",
        );
        if let Some(text) = &self.chat_template
            && let Err(error) = ChatTemplate::new(text, std::collections::BTreeMap::new())
        {
            want(
                false,
                "chat_template",
                &format!("the chat template does not parse: {error}"),
                "write Jinja, as in `transformers`",
            );
        }
        problems
    }
}

impl NodeKind for Init {
    const NAME: &'static str = "init";
    const VERSION: u32 = 1;
    const PUBLIC: bool = false;
    const DOC: &'static str = r#"A randomly initialised model with a tokenizer trained on a dataset: `[models.NAME] init = { … }`.

| field | meaning | default |
|---|---|---|
| `architecture` | `"llama"`, `"mistral"`, `"mixtral"`, `"qwen2"`, `"qwen3"` or `"qwen3_moe"` | `"llama"` |
| `hidden_size`, `layers`, `heads` | the shape | |
| `kv_heads` | key and value heads | `heads` |
| `intermediate_size` | width of the feed-forward layers | 8/3 of `hidden_size`, up to a multiple of 16 |
| `max_positions` | longest sequence | 512 |
| `rope_theta`, `tie_embeddings` | | 10000, true |
| `sliding_window` | how many tokens a token sees, not for `llama` | all |
| `experts`, `experts_per_token` | for `mixtral` and `qwen3_moe`: experts of a layer, and how many of them a token uses | 8, 2 |
| `tokenizer` | `{ from = "dataset", field = "text", kind = "word" \| "bpe", vocab_size = 4096 }` | |
| `chat_template` | how a conversation becomes text, in Jinja as in `transformers`; goes along with every model that is trained from this one | none |
| `seed` | seed of the weights | 0 |

```toml
[models.blank]
init = { hidden_size = 128, layers = 3, heads = 4, tokenizer = { from = "documents" } }
```
"#;

    fn estimate(&self, _: &Known<'_>) -> Estimate {
        estimate::init(self)
    }

    fn reproduces(&self, _given: &Setting<'_>) -> Reproduces {
        Reproduces::BitExact
    }

    fn run(&self, cx: &mut Cx<'_>) -> Result<Outputs, NodeError> {
        let rows = rows::read_input(cx.input("tokenizer.from")?)?;
        let field = &self.tokenizer.field;
        let texts = rows
            .iter()
            .map(|row| {
                row.get(field).and_then(Value::as_str).ok_or_else(|| {
                    NodeError::with_help(
                        format!("row `{}` has no text under `{field}`", rows::id(row).unwrap_or_default()),
                        "name the field that holds the text: `tokenizer = { from = \"…\", field = \"…\" }`",
                    )
                })
            })
            .collect::<Result<Vec<&str>, _>>()?;
        let tokenizer = Tokenizer::train(self.tokenizer.kind, texts, self.tokenizer.vocab_size)?;
        tokenizer.save(&cx.staging)?;
        let config = Config {
            bos_token_id: tokenizer.bos(),
            eos_token_ids: tokenizer.eos().to_vec(),
            pad_token_id: tokenizer.pad(),
            ..self.form(tokenizer.vocab_size())
        };
        let model = Model::random(config, self.seed, &crate::lm::device("cpu")?)?;
        model.save(&cx.staging)?;
        if let Some(template) = &self.chat_template {
            crate::fs::write(&cx.staging.join("chat_template.jinja"), template)?;
        }
        let metrics = [
            ("parameters".to_owned(), json!(model.weights().values().map(Tensor::elem_count).sum::<usize>())),
            ("vocabulary".to_owned(), json!(tokenizer.vocab_size())),
        ];
        Ok(Outputs { files: command::collect(&cx.staging)?, metrics: metrics.into_iter().collect() })
    }
}

impl Init {
    fn experts(&self) -> Option<Experts> {
        self.architecture.has_experts().then(|| Experts {
            num_local_experts: self.experts.unwrap_or(8),
            num_experts_per_tok: self.experts_per_token.unwrap_or(2),
            norm_topk_prob: true,
        })
    }

    /// The form with so many tokens, whatever they are.
    pub(super) fn form(&self, vocab_size: usize) -> Config {
        let eight_thirds = (self.hidden_size * 8 / 3).next_multiple_of(16);
        Config {
            model_type: self.architecture,
            sliding_window: self.sliding_window,
            experts: self.experts(),
            vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size.unwrap_or(eight_thirds),
            num_hidden_layers: self.layers,
            num_attention_heads: self.heads,
            num_key_value_heads: self.kv_heads.unwrap_or(self.heads),
            head_dim: self.hidden_size / self.heads,
            max_position_embeddings: self.max_positions,
            rope_theta: self.rope_theta,
            tie_word_embeddings: self.tie_embeddings,
            rms_norm_eps: 1e-5,
            ..Config::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::Files;

    fn init(more: &str) -> Init {
        let text = format!(
            r#"{{"hidden_size": 16, "layers": 2, "heads": 4, "kv_heads": 2, "tokenizer": {{"from": "texts"}}{more}}}"#
        );
        serde_json::from_str(&text).expect("reads")
    }

    #[test]
    fn every_family_can_be_made_and_is_read_back_as_it_was() {
        let tokenizer = Tokenizer::train(TokenizerKind::Word, ["a b c d"], 64).expect("trains");
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("config.json");
        for family in Family::ALL {
            let window = if family == Family::Llama { "" } else { r#", "sliding_window": 5"# };
            let experts = if family.has_experts() { r#", "experts": 3"# } else { "" };
            let init = init(&format!(r#", "architecture": "{}"{window}{experts}"#, family.model_type()));
            assert_eq!(init.validate(), []);
            let config = init.form(tokenizer.vocab_size());
            assert_eq!(config.model_type, family);
            fs_err::write(&path, config.to_json().to_string()).expect("writes");
            let files = Files::from([("config.json".to_owned(), path.clone())]);
            assert_eq!(Config::load(&files).expect("loads"), config);
        }
    }

    #[test]
    fn what_does_not_go_together_is_said() {
        let paths = |more: &str| -> Vec<String> { init(more).validate().into_iter().map(|found| found.path).collect() };
        assert_eq!(paths(r#", "sliding_window": 5, "experts": 2"#), ["sliding_window", "experts"]);
        let mixtral = r#", "architecture": "mixtral", "experts": 2, "experts_per_token": 3"#;
        assert_eq!(paths(mixtral), ["experts_per_token"]);
        assert_eq!(paths(r#", "chat_template": "{% for %}""#), ["chat_template"]);
    }
}
