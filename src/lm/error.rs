//! What can go wrong in the language model, and how to mend it.

use std::io;

use crate::collective::TeamError;
use crate::diag::Diagnostic;

/// What can go wrong in the language model.
#[derive(Debug, thiserror::Error)]
pub enum LmError {
    /// The disk said no; the message names the path.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// candle said no: a bug, or a device that is out of memory.
    #[error("{0}")]
    Candle(candle_core::Error),
    /// A device that does not exist or that this build cannot use.
    #[error("the device `{name}` cannot be used: {what}")]
    Device {
        /// As given.
        name: String,
        /// Why not.
        what: String,
    },
    /// There is no memory for what is to be computed together; fewer rows may fit.
    #[error("the memory is full: {what}")]
    OutOfMemory {
        /// What could not be had.
        what: String,
    },
    /// Not even one row fits the memory.
    #[error("row {row} does not fit the memory, even by itself: {what}")]
    RowOutOfMemory {
        /// Index in the batch, from 0.
        row: usize,
        /// What could not be had.
        what: String,
    },
    /// A model directory lacks a file.
    #[error("the model has no `{name}`")]
    MissingFile {
        /// The file.
        name: String,
    },
    /// Weights that only Python may read: they can hold programs.
    #[error("the weights `{name}` are in PyTorch's own format, which can hold programs")]
    PickledWeights {
        /// The file.
        name: String,
    },
    /// A file of JSON that is none, or not of the right form.
    #[error("`{file}` cannot be read: {what}")]
    Malformed {
        /// The file.
        file: String,
        /// What is wrong with it.
        what: String,
    },
    /// A value in `config.json` that cannot be.
    #[error("`config.json`: `{field}` {what}")]
    Config {
        /// The field.
        field: &'static str,
        /// What is wrong with it, as the end of a sentence.
        what: String,
    },
    /// A model that the decoder is not made for.
    #[error("`config.json`: {what} is not supported; supported are {supported}")]
    Unsupported {
        /// What the model wants.
        what: String,
        /// What there is.
        supported: &'static str,
    },
    /// A file of weights that is damaged.
    #[error("the weights `{file}` are damaged: {what}")]
    Weights {
        /// The file.
        file: String,
        /// How one can tell.
        what: String,
    },
    /// A tensor that the configuration asks for.
    #[error("the weights have no tensor `{name}`")]
    MissingTensor {
        /// The tensor.
        name: String,
    },
    /// A tensor of another form than the configuration says.
    #[error("the tensor `{name}` is {found}, `config.json` asks for {expected}")]
    TensorForm {
        /// The tensor.
        name: String,
        /// What is there: shape or type.
        found: String,
        /// What should be.
        expected: String,
    },
    /// A tensor of a layer that the configuration does not have.
    #[error("the weights have a tensor `{name}`, which a {model_type} model of this `config.json` does not have")]
    StrayTensor {
        /// The tensor.
        name: String,
        /// What `config.json` says.
        model_type: &'static str,
    },
    /// A weight that is no number.
    #[error("the tensor `{name}` has {what}")]
    NotANumber {
        /// The tensor.
        name: String,
        /// `NaN` or `infinite numbers`.
        what: &'static str,
    },
    /// A tokenizer with more tokens than the embedding has rows.
    #[error("the tokenizer has the token {token} (`{text}`), the model has {vocab_size} tokens")]
    Vocabulary {
        /// The largest token.
        token: u32,
        /// What it stands for.
        text: String,
        /// `vocab_size` of `config.json`.
        vocab_size: usize,
    },
    /// A model without a tokenizer.
    #[error("the model has no `tokenizer.json`{}", if *.sentencepiece { ", only `tokenizer.model` (SentencePiece)" } else { "" })]
    NoTokenizer {
        /// Whether `tokenizer.model` is there.
        sentencepiece: bool,
    },
    /// A model without a chat template.
    #[error("the model has no chat template")]
    NoChatTemplate,
    /// A chat template that does not parse or refuses a conversation.
    #[error("the model's chat template: {what}")]
    ChatTemplate {
        /// What it says, and where.
        what: String,
    },
    /// A GGUF file that cannot be used.
    #[error("the GGUF file {what}")]
    Gguf {
        /// What is wrong, as the end of a sentence.
        what: String,
    },
    /// A tokenizer that cannot be loaded, trained or used.
    #[error("the tokenizer {what}")]
    Tokenizer {
        /// What is wrong, as the end of a sentence.
        what: String,
    },
    /// A sequence that does not fit the model.
    #[error("row {row} has {tokens} tokens, the model has {positions} positions")]
    TooLong {
        /// Index in the batch, from 0.
        row: usize,
        /// Its tokens.
        tokens: usize,
        /// `max_position_embeddings`.
        positions: usize,
    },
    /// A sequence that means nothing.
    #[error("row {row} {what}")]
    Sequence {
        /// Index in the batch, from 0.
        row: usize,
        /// What is wrong, as the end of a sentence.
        what: String,
    },
    /// A setting that means nothing.
    #[error("`{field}` {what}")]
    Setting {
        /// The setting.
        field: &'static str,
        /// What is wrong, as the end of a sentence.
        what: String,
    },
    /// Two models that must agree.
    #[error("the two models do not fit together: {what}")]
    Mismatch {
        /// In what they differ.
        what: String,
    },
    /// A matrix of log-probabilities that no contrast can be read off.
    #[error("the matrix of log-probabilities {what}")]
    Matrix {
        /// What is wrong, as the end of a sentence.
        what: String,
    },
    /// An example that cannot be trained on.
    #[error("the example `{id}` {what}")]
    Example {
        /// The example.
        id: String,
        /// What is wrong, as the end of a sentence.
        what: String,
    },
    /// A trainable tensor that no gradient reached: a bug.
    #[error("no gradient reached the tensor `{name}`")]
    NoGradient {
        /// The tensor.
        name: String,
    },
    /// Training went astray.
    #[error("{what} at step {step} is not finite; examples of the step: {}", .examples.join(", "))]
    NotFinite {
        /// `the loss` or `the gradient`.
        what: &'static str,
        /// The optimizer's step, from 1.
        step: u64,
        /// Ids of the step's examples.
        examples: Vec<String>,
    },
    /// Ranks that train together, and cannot.
    #[error(transparent)]
    Team(#[from] TeamError),
}

impl From<candle_core::Error> for LmError {
    /// What a GPU says in candle's words: that its memory is full, or that it is gone.
    fn from(error: candle_core::Error) -> Self {
        const FULL: [&str; 2] = ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED"];
        const GONE: [&str; 7] = [
            "CUDA_ERROR_DEVICE_UNAVAILABLE",
            "CUDA_ERROR_ECC_UNCORRECTABLE",
            "CUDA_ERROR_ILLEGAL_ADDRESS",
            "CUDA_ERROR_LAUNCH_FAILED",
            "CUDA_ERROR_NO_DEVICE",
            "CUDA_ERROR_SYSTEM_NOT_READY",
            "CUDA_ERROR_UNKNOWN",
        ];
        let text = error.to_string();
        let says = |word: &&&str| text.contains(**word);
        if let Some(word) = FULL.iter().find(says) {
            return Self::OutOfMemory { what: format!("the GPU says {word}") };
        }
        match GONE.iter().find(says) {
            Some(word) => Self::Device { name: "cuda".to_owned(), what: format!("it stopped with {word}") },
            None => Self::Candle(error),
        }
    }
}

impl LmError {
    /// As data that the command line draws.
    pub fn diagnostic(&self) -> Diagnostic {
        let diagnostic = |id| Diagnostic::error(id, self.to_string());
        match self {
            Self::Io(_) => diagnostic("lm::io"),
            Self::Candle(_) => diagnostic("lm::tensor"),
            Self::Device { .. } => diagnostic("lm::device").help("name `cpu`, or `cuda:0` on a machine that has one"),
            Self::OutOfMemory { .. } => diagnostic("lm::out-of-memory")
                .help("lower `run.micro_batch`, run fewer nodes at once with `-j`, or take a machine with more memory"),
            Self::RowOutOfMemory { .. } => diagnostic("lm::row-out-of-memory")
                .help("shorten or drop the row, run fewer nodes at once with `-j`, or take a machine with more memory"),
            Self::MissingFile { .. } => diagnostic("lm::missing-file")
                .help("name a directory with `config.json`, `tokenizer.json` and `model.safetensors`"),
            Self::PickledWeights { .. } => diagnostic("lm::pickled-weights")
                .help("save the model again in Python with `safe_serialization=True` and use that directory"),
            Self::Malformed { .. } => diagnostic("lm::malformed").help("fetch the file again"),
            Self::Config { .. } => diagnostic("lm::config"),
            Self::Unsupported { .. } => diagnostic("lm::unsupported"),
            Self::Weights { .. } => diagnostic("lm::weights").help("fetch the file again"),
            Self::MissingTensor { .. } => {
                diagnostic("lm::missing-tensor").help("check that weights and `config.json` are of the same model")
            }
            Self::TensorForm { .. } => {
                diagnostic("lm::tensor-form").help("check that weights and `config.json` are of the same model")
            }
            Self::StrayTensor { .. } => {
                diagnostic("lm::stray-tensor").help("check that weights and `config.json` are of the same model")
            }
            Self::NotANumber { .. } => {
                diagnostic("lm::not-a-number").help("the model went astray when it was trained, or its file is damaged")
            }
            Self::Vocabulary { .. } => diagnostic("lm::vocabulary").help(
                "check that tokenizer and weights are of the same model; in Python, \
                 `model.resize_token_embeddings(len(tokenizer))` makes room for added tokens",
            ),
            Self::NoTokenizer { sentencepiece: true } => diagnostic("lm::no-tokenizer")
                .help("convert it in Python: `AutoTokenizer.from_pretrained(DIR, use_fast=True).save_pretrained(DIR)`"),
            Self::NoTokenizer { .. } => {
                diagnostic("lm::no-tokenizer").help("put the model's `tokenizer.json` into its directory")
            }
            Self::NoChatTemplate => diagnostic("lm::no-chat-template").help(
                "give a model that was trained on conversations, or leave `chat` out and write the prompt as the model knows it",
            ),
            Self::ChatTemplate { .. } => diagnostic("lm::chat-template"),
            Self::Gguf { .. } => diagnostic("lm::gguf"),
            Self::Tokenizer { .. } => diagnostic("lm::tokenizer"),
            Self::TooLong { .. } => diagnostic("lm::too-long").help("shorten the prompt, or drop the row"),
            Self::Sequence { .. } => diagnostic("lm::sequence"),
            Self::Setting { .. } => diagnostic("lm::setting"),
            Self::Mismatch { .. } => diagnostic("lm::mismatch"),
            Self::Matrix { .. } => diagnostic("lm::matrix"),
            Self::Example { .. } => diagnostic("lm::example").help("drop the example, or mend it where it is made"),
            Self::NoGradient { .. } => diagnostic("lm::no-gradient"),
            Self::Team(TeamError::Lost { .. }) => diagnostic("lm::ranks").help(
                "if no one ended it, its machine ran out of memory or is gone; run it again: it goes on from its checkpoint",
            ),
            Self::Team(_) => diagnostic("lm::ranks"),
            Self::NotFinite { .. } => {
                diagnostic("lm::not-finite").help("lower the learning rate, or look at the examples")
            }
        }
    }
}
