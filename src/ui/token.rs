//! The secret in the address that is printed: who has it may read the cache.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::diag::Diagnostic;
use crate::fs;

/// Bytes of chance in a token.
const BYTES: usize = 20;
/// Letters of the shortest token that a file may hold, and of the longest.
const LETTERS: std::ops::RangeInclusive<usize> = 32..=256;

/// A token of hex digits.
#[derive(Clone)]
pub(super) struct Token(String);

impl Token {
    /// A fresh one, of the system's randomness.
    pub(super) fn new() -> std::io::Result<Self> {
        let mut bytes = [0; BYTES];
        getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
        let mut text = String::with_capacity(2 * BYTES);
        for byte in bytes {
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
        }
        Ok(Self(text))
    }

    /// That of a file, which is made if it is not there: pages that are open go on where the server is started again.
    ///
    /// Errs if others may read the file, or it holds no token.
    pub(super) fn of_file(path: &Path) -> Result<Self, Diagnostic> {
        let fault = |what: &str| Diagnostic::error("ui::token", format!("the token file `{}` {what}", path.display()));
        let unread = |error: io::Error| fault("cannot be used").note(error.to_string());
        let Some(file) = fs::absent_is_none(fs::open(path)).map_err(unread)? else {
            let token = Self::new().map_err(unread)?;
            return token.keep(path).map(|()| token).map_err(unread);
        };
        if file.metadata().map_err(unread)?.permissions().mode() & 0o077 != 0 {
            let help = format!("`chmod 600 {}`: who reads it can read the cache", path.display());
            return Err(fault("can be read by others").help(help));
        }
        let text = fs::read_text(path, 1 << 16).map_err(unread)?;
        let token = text.trim();
        if !LETTERS.contains(&token.len()) || !token.bytes().all(|letter| letter.is_ascii_alphanumeric()) {
            return Err(fault("holds no token")
                .help("remove it, and a new one is made; a token is 32 letters and digits or more"));
        }
        Ok(Self(token.to_owned()))
    }

    /// Makes the file, for its owner alone.
    fn keep(&self, path: &Path) -> io::Result<()> {
        use fs_err::os::unix::fs::OpenOptionsExt;
        let mut file = fs_err::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        writeln!(file, "{}", self.0)
    }

    /// As text.
    pub(super) fn text(&self) -> &str {
        &self.0
    }

    /// Whether a text is the token. Takes as long whatever is wrong with it.
    pub(super) fn is(&self, text: &str) -> bool {
        let pairs = self.0.bytes().zip(text.bytes());
        text.len() == self.0.len() && pairs.fold(0, |differs, (one, other)| differs | (one ^ other)) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_only_itself() {
        let (one, other) = (Token::new().unwrap(), Token::new().unwrap());
        assert!(one.is(one.text()) && !one.is(other.text()));
        assert!(!one.is("") && !one.is(&one.text()[1..]) && !one.is(&format!("{}0", one.text())));
        assert_eq!(one.text().len(), 2 * BYTES);
    }

    #[test]
    fn a_file_keeps_a_token_for_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let made = Token::of_file(&path).unwrap();
        assert!(Token::of_file(&path).unwrap().is(made.text()));
        fs_err::write(&path, "0123456789abcdef").unwrap();
        assert_eq!(Token::of_file(&path).map(|_| ()).unwrap_err().id, "ui::token");
        fs_err::write(&path, format!("{}\n", "a".repeat(32))).unwrap();
        assert!(Token::of_file(&path).is_ok());
        fs_err::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        assert!(Token::of_file(&path).map(|_| ()).unwrap_err().help[0].contains("chmod 600"));
        assert!(Token::of_file(&folder.path().join("none/token")).is_err());
    }
}
