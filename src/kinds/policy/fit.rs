//! Prompts that are longer than the model's positions.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Pair;
use crate::kinds::NodeError;
use crate::lm::{Model, Sequence, Tokenizer};

/// What happens to a prompt that is longer than the model's positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(in crate::kinds) enum TooLong {
    /// An error that names the row.
    #[default]
    Error,
    /// Its first tokens are left out, but for the one that begins every text.
    Cut,
}

impl TooLong {
    /// Whether it is the default, which stands in no key.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
    pub(in crate::kinds) fn is_error(&self) -> bool {
        *self == Self::Error
    }
}

/// What sequences must fit, and what happens if they do not.
pub(super) struct Fit<'a> {
    pub(super) model: &'a Model,
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) too_long: TooLong,
}

impl Fit<'_> {
    /// The tokens of a prompt that leaves a position for a new token at least. Cut, it leaves as many as are wanted, or half
    /// of all.
    pub(super) fn prompt(&self, row: &str, prompt: &str, new_tokens: usize) -> Result<Vec<u32>, NodeError> {
        let mut ids = self.tokenizer.prompt(prompt)?;
        let positions = self.model.config().max_position_embeddings;
        if ids.len() >= positions {
            self.allow(row, prompt, ids.len() + 1)?;
            let most = positions - new_tokens.min(positions / 2).max(1);
            let excess = ids.len() - most.max(1);
            self.cut(&mut ids, excess);
        }
        Ok(ids)
    }

    /// The tokens of a prompt and its response. A response is never cut.
    pub(super) fn sequence(&self, pair: &Pair) -> Result<Sequence, NodeError> {
        let Pair { row, prompt, response, join, eos } = pair;
        let mut sequence = self.tokenizer.joined(prompt, response, *join, *eos)?;
        let (tokens, positions) = (sequence.ids.len(), self.model.config().max_position_embeddings);
        if tokens > positions {
            self.allow(row, prompt, tokens)?;
            let excess = tokens - positions;
            if excess >= sequence.prompt {
                let own = tokens - sequence.prompt;
                return Err(NodeError::with_help(
                    format!("row `{row}` has a response of {own} tokens, and the model has {positions} positions"),
                    "lower `max_new_tokens` where the responses are made",
                ));
            }
            self.cut(&mut sequence.ids, excess);
            sequence.prompt -= excess;
        }
        Ok(sequence)
    }

    /// Leaves out so many tokens at the start; that which begins every text stays if another one can go.
    fn cut(&self, ids: &mut Vec<u32>, excess: usize) {
        let begins = ids.first().is_some_and(|first| Some(*first) == self.tokenizer.bos());
        let start = usize::from(begins && ids.len() > excess + 1);
        ids.drain(start..start + excess);
    }

    /// Errs, naming the row, if prompts may not be cut: before anything is computed.
    fn allow(&self, row: &str, prompt: &str, needed: usize) -> Result<(), NodeError> {
        if self.too_long == TooLong::Cut {
            return Ok(());
        }
        let positions = self.model.config().max_position_embeddings;
        let begin: String = prompt.chars().take(60).collect();
        Err(NodeError::with_help(
            format!(
                "row `{row}`: the prompt that begins with {begin:?} needs {needed} positions, and the model has \
                 {positions}"
            ),
            "shorten the prompt's template or what is filled in, as in `{{ text[:2000] }}`, give a model with more \
             positions, or leave the prompt's beginning out with `too_long = \"cut\"`",
        ))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::lm::{Config, Join, TokenizerKind};

    #[test]
    fn only_what_does_not_fit_is_cut_and_only_if_it_may_be() {
        let words: Vec<String> = (0..40).map(|n| format!("w{n}")).collect();
        let tokenizer = Tokenizer::train(TokenizerKind::Word, [words.join(" ").as_str()], 100).expect("trains");
        let config = Config {
            vocab_size: 64,
            hidden_size: 8,
            intermediate_size: 8,
            num_hidden_layers: 1,
            num_attention_heads: 1,
            num_key_value_heads: 1,
            head_dim: 8,
            max_position_embeddings: 20,
            ..Config::default()
        };
        let model = Model::random(config, 1, &Device::Cpu).expect("makes");
        let fit = |too_long| Fit { model: &model, tokenizer: &tokenizer, too_long };
        let prompt = |length: usize| words[..length].join(" ");
        let whole = tokenizer.prompt(&prompt(30)).expect("tokens");
        let begins = usize::from(whole.len() > 30);
        for (new_tokens, kept) in [(4, 16), (1, 19), (300, 10)] {
            let ids = fit(TooLong::Cut).prompt("r", &prompt(30), new_tokens).expect("is cut");
            assert_eq!(ids.len(), kept);
            assert_eq!((&ids[..begins], &ids[begins..]), (&whole[..begins], &whole[whole.len() - kept + begins..]));
        }
        let fits = tokenizer.prompt(&prompt(15)).expect("tokens");
        assert_eq!(fit(TooLong::Cut).prompt("r", &prompt(15), 10).expect("fits"), fits);
        let error = fit(TooLong::Error).prompt("r7", &prompt(30), 4).expect_err("too long").to_string();
        assert!(error.contains("row `r7`") && error.contains("20"), "{error}");

        let whole = tokenizer.sequence(&prompt(30), " w1 w2 w3", false).expect("tokens");
        let pair = |row: &str, prompt: String, response: &str| {
            let (row, response) = (row.to_owned(), response.to_owned());
            Pair { row, prompt, response, join: Join::Space, eos: false }
        };
        let cut = fit(TooLong::Cut).sequence(&pair("r", prompt(30), " w1 w2 w3")).expect("is cut");
        assert_eq!((cut.ids.len(), cut.ids.len() - cut.prompt), (20, 3));
        assert_eq!(cut.ids[cut.prompt..], whole.ids[whole.prompt..], "the response stays whole");
        let long = format!(" {}", prompt(25));
        let error = fit(TooLong::Cut).sequence(&pair("r8", "w1".to_owned(), &long)).expect_err("too long").to_string();
        assert!(error.contains("row `r8` has a response of 25 tokens"), "{error}");
    }
}
