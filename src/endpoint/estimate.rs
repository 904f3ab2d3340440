//! What calls will come to, before they are made.

use std::fmt;

use super::{Conversation, Price};

/// Letters of a token, roughly, where no tokenizer is at hand.
const LETTERS_PER_TOKEN: u64 = 4;

/// About how many tokens a text has.
pub fn tokens_of(text: &str) -> u64 {
    (text.chars().count() as u64).div_ceil(LETTERS_PER_TOKEN)
}

/// What calls will come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Calls.
    pub calls: u64,
    /// Tokens of all prompts, about.
    pub prompt_tokens: u64,
    /// Tokens of all answers, at most.
    pub completion_tokens: u64,
}

impl Estimate {
    /// Of these conversations.
    pub fn of(said: &[Conversation], max_new_tokens: usize) -> Self {
        let calls = said.len() as u64;
        let prompt_tokens = said.iter().map(Conversation::tokens).sum();
        Self { calls, prompt_tokens, completion_tokens: calls.saturating_mul(max_new_tokens as u64) }
    }

    /// What they cost at most.
    pub fn cost(&self, price: &Price) -> f64 {
        price.of(self.prompt_tokens, self.completion_tokens)
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { calls, prompt_tokens, completion_tokens } = self;
        write!(f, "{calls} calls, about {prompt_tokens} tokens of prompts, at most {completion_tokens} of answers")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_letters_are_a_token() {
        assert_eq!([tokens_of(""), tokens_of("a"), tokens_of("abcd"), tokens_of("äöüßx")], [0, 1, 1, 2]);
        let said = Conversation { system: Some("be brief".to_owned()), user: "why is it so?".to_owned(), seed: 0 };
        let known = Estimate::of(&[said.clone(), said], 100);
        assert_eq!(known, Estimate { calls: 2, prompt_tokens: 12, completion_tokens: 200 });
        assert!((known.cost(&Price { input: 1e6, output: 0.0 }) - 12.0).abs() < 1e-9);
    }
}
