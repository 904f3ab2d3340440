//! The cases: what is computed, on which model, and what was set out to be reached.

use serde_json::{Value, json};

/// A model's form; random weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    width: usize,
    inner: usize,
    layers: usize,
    heads: usize,
}

/// 15 M parameters.
pub(crate) const S: Shape = Shape { name: "S", width: 288, inner: 768, layers: 6, heads: 6 };
/// 110 M parameters.
pub(crate) const M: Shape = Shape { name: "M", width: 768, inner: 2048, layers: 12, heads: 12 };

const VOCABULARY: u64 = 32_000;

impl Shape {
    /// Its `config.json`.
    pub(crate) fn config(self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": VOCABULARY,
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "max_position_embeddings": 1024,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10_000.0,
            "tie_word_embeddings": true,
            "hidden_act": "silu",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "torch_dtype": "float32",
        })
    }
}

/// What is computed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Work {
    /// Log-probabilities of C responses under C prompts, for some queries: prompts of 200 tokens, responses of 60.
    Score { side: usize, queries: usize },
    /// One optimiser step on the same: SAMI's loss, both sides, AdamW.
    Sami { side: usize, queries: usize },
    /// The same for one query, each layer's intermediate results made again for the gradient; for the memory that it
    /// takes, and only by us.
    Checkpointed { side: usize },
    /// One optimiser step on texts, AdamW.
    Text { rows: usize, tokens: usize },
    /// 64 new tokens, the likeliest, after prompts of `own` tokens or some more, of which `shared` come before them for all.
    Sample { rows: usize, shared: usize, own: usize },
}

/// A line of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) shape: Shape,
    pub(crate) work: Work,
    /// Our rate over `PyTorch`'s, at least.
    pub(crate) speed: Option<f64>,
    /// Our peak of memory over `PyTorch`'s, at most.
    pub(crate) memory: Option<f64>,
}

const fn case(name: &'static str, shape: Shape, work: Work, speed: f64, memory: Option<f64>) -> Case {
    Case { name, shape, work, speed: Some(speed), memory }
}

const fn alone(name: &'static str, shape: Shape, work: Work) -> Case {
    Case { name, shape, work, speed: None, memory: None }
}

pub(crate) const CASES: &[Case] = &[
    case("score-s-2", S, Work::Score { side: 2, queries: 8 }, 2.5, Some(0.2)),
    case("score-s-4", S, Work::Score { side: 4, queries: 4 }, 3.5, Some(0.2)),
    case("score-m-2", M, Work::Score { side: 2, queries: 4 }, 1.7, Some(0.5)),
    case("sami-s-2", S, Work::Sami { side: 2, queries: 4 }, 2.0, Some(1.0 / 3.0)),
    case("sami-s-4", S, Work::Sami { side: 4, queries: 2 }, 3.0, Some(1.0 / 3.0)),
    case("sami-m-2", M, Work::Sami { side: 2, queries: 2 }, 1.7, Some(0.8)),
    alone("light-s-2", S, Work::Checkpointed { side: 2 }),
    alone("light-s-8", S, Work::Checkpointed { side: 8 }),
    case("text-s", S, Work::Text { rows: 4, tokens: 256 }, 1.2, None),
    case("text-m", M, Work::Text { rows: 4, tokens: 256 }, 1.05, None),
    case("sample-s-1", S, Work::Sample { rows: 1, shared: 0, own: 128 }, 2.5, None),
    case("sample-m-1", M, Work::Sample { rows: 1, shared: 0, own: 128 }, 1.5, None),
    case("sample-s-16", S, Work::Sample { rows: 16, shared: 0, own: 128 }, 1.5, None),
    case("sample-m-16", M, Work::Sample { rows: 16, shared: 0, own: 128 }, 1.4, None),
    case("sample-s-256", S, Work::Sample { rows: 256, shared: 200, own: 16 }, 3.0, None),
    case("sample-m-256", M, Work::Sample { rows: 256, shared: 200, own: 16 }, 2.0, None),
];

/// Learning rate of the training cases.
pub(crate) const LEARNING_RATE: f64 = 1e-4;
/// Tokens that the sampling cases sample.
pub(crate) const NEW_TOKENS: usize = 64;
/// Threads of everybody.
pub(crate) const THREADS: usize = 2;

/// Tokens from Knuth's generator.
struct Tokens(u64);

impl Tokens {
    fn take(&mut self, count: usize) -> Vec<u64> {
        let mut next = || {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // The first four are special.
            4 + (self.0 >> 33) % (VOCABULARY - 4)
        };
        (0..count).map(|_| next()).collect()
    }
}

impl Case {
    /// The shape in words.
    pub(crate) fn title(&self) -> String {
        match self.work {
            Work::Score { side, queries } => format!("score C = {side}, {queries} queries"),
            Work::Sami { side, queries } => format!("SAMI step C = {side}, {queries} queries"),
            Work::Checkpointed { side } => format!("SAMI step C = {side}, 1 query, checkpointed"),
            Work::Text { rows, tokens } => format!("LM step {rows} × {tokens}"),
            Work::Sample { rows, shared: 0, .. } => format!("sample {NEW_TOKENS}, batch {rows}"),
            Work::Sample { rows, shared, .. } => format!("sample {NEW_TOKENS}, {rows} after a shared {shared}"),
        }
    }

    /// What both sides are given: the work, with its tokens, on the model in a directory.
    pub(crate) fn work(&self, model: &std::path::Path) -> Value {
        let mut tokens = Tokens(12_345);
        let mut matrices = |side: usize, queries: usize| -> Vec<Vec<Value>> {
            let mut matrix = |_| {
                let prompts: Vec<Vec<u64>> = (0..side).map(|_| tokens.take(200)).collect();
                let responses: Vec<Vec<u64>> = (0..side).map(|_| tokens.take(60)).collect();
                let cells = prompts.iter().flat_map(|prompt| responses.iter().map(move |response| (prompt, response)));
                cells
                    .map(|(prompt, response)| json!({"ids": ([&prompt[..], response].concat()), "prompt": 200}))
                    .collect()
            };
            (0..queries).map(&mut matrix).collect()
        };
        let (kind, examples, prefix, prompts) = match self.work {
            Work::Score { side, queries } => ("score", matrices(side, queries), vec![], vec![]),
            Work::Sami { side, queries } => ("sami", matrices(side, queries), vec![], vec![]),
            Work::Checkpointed { side } => ("sami", matrices(side, 1), vec![], vec![]),
            Work::Text { rows, tokens: length } => {
                let rows = (0..rows).map(|_| vec![json!({"ids": tokens.take(length), "prompt": 1})]);
                ("text", rows.collect(), vec![], vec![])
            }
            Work::Sample { rows, shared, own } => {
                let prefix = tokens.take(shared);
                // Not all of a length, as prompts are.
                let prompts = (0..rows).map(|row| tokens.take(own + row % 9)).collect();
                ("sample", vec![], prefix, prompts)
            }
        };
        json!({
            "kind": kind,
            "checkpointed": matches!(self.work, Work::Checkpointed { .. }),
            "model": model,
            "threads": THREADS,
            "learning_rate": LEARNING_RATE,
            "new_tokens": NEW_TOKENS,
            "examples": examples,
            "prefix": prefix,
            "prompts": prompts,
        })
    }

    /// The settings of `PyTorch` that the best is searched among: one after the other, from each one's first value on.
    pub(crate) fn settings(&self) -> Vec<(&'static str, Vec<Value>)> {
        let attention = ("attention", vec![json!("sdpa"), json!("eager")]);
        let optimizer = ("optimizer", vec![json!("fused"), json!("foreach")]);
        match self.work {
            // How many sequences at once; 0: all.
            Work::Score { side, .. } => vec![("batch", vec![json!(side * side), json!(1), json!(0)]), attention],
            // How many queries in a pass; 0: all.
            Work::Sami { .. } => vec![("examples", vec![json!(1), json!(0)]), attention, optimizer],
            Work::Checkpointed { .. } => Vec::new(),
            Work::Text { .. } => vec![("examples", vec![json!(0), json!(1)]), attention, optimizer],
            Work::Sample { rows: 256, .. } => vec![
                ("prefix", vec![json!("copied"), json!("none")]),
                ("batch", vec![json!(64), json!(256), json!(16)]),
                attention,
            ],
            Work::Sample { .. } => vec![("batch", vec![json!(0)]), attention],
        }
    }
}
