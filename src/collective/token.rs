//! The secret that lets a rank in.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::TeamError;

/// Bytes of a token, of a nonce and of a signature.
pub(super) const SIZE: usize = 32;

/// The secret that the ranks of one team share. It never crosses the network: each side proves that it has it by signing
/// what the other drew.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Token([u8; SIZE]);

impl Token {
    /// One that no one can guess.
    pub fn draw() -> Result<Self, TeamError> {
        Ok(Self(nonce()?))
    }

    /// What whoever has the token says of some texts.
    pub(super) fn sign(&self, parts: &[&[u8]]) -> [u8; SIZE] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        *hasher.finalize().as_bytes()
    }

    /// Whether a signature is that of some texts. Takes the same time whatever differs.
    pub(super) fn accepts(&self, signature: &[u8; SIZE], parts: &[&[u8]]) -> bool {
        blake3::Hash::from_bytes(self.sign(parts)) == blake3::Hash::from_bytes(*signature)
    }
}

/// Bytes that no one has seen before.
pub(super) fn nonce() -> Result<[u8; SIZE], TeamError> {
    let mut bytes = [0; SIZE];
    getrandom::fill(&mut bytes)
        .map_err(|error| TeamError::Join { what: format!("the system gives no random bytes: {error}") })?;
    Ok(bytes)
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl From<Token> for String {
    fn from(token: Token) -> Self {
        blake3::Hash::from_bytes(token.0).to_hex().to_string()
    }
}

impl TryFrom<String> for Token {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let hash = blake3::Hash::from_hex(text).map_err(|_| "a token has 64 hexadecimal digits")?;
        Ok(Self(*hash.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_of_the_token_and_of_every_part() {
        let (one, other) = (Token::draw().expect("random"), Token::draw().expect("random"));
        let signature = one.sign(&[b"ab", b"c"]);
        assert!(one.accepts(&signature, &[b"ab", b"c"]));
        assert!(!one.accepts(&signature, &[b"a", b"bc"]));
        assert!(!other.accepts(&signature, &[b"ab", b"c"]));
    }

    #[test]
    fn a_token_is_written_and_read_but_not_shown() {
        let token = Token::draw().expect("random");
        let text = serde_json::to_string(&token).expect("writes");
        assert_eq!(text.len(), 66);
        assert_eq!(serde_json::from_str::<Token>(&text).expect("reads"), token);
        assert!(serde_json::from_str::<Token>("\"12\"").is_err());
        assert_eq!(format!("{token:?}"), "Token");
    }
}
