//! Secrets, and texts without them: nothing that is shown or stored may hold the value of a variable that is named as
//! credentials are.
//!
//! Known are the variables of this process whose names look like it, and what was [added](add): the key of an endpoint,
//! a token that came from a file. [`redact`] stands where texts leave a process: its log, its messages, an attempt's
//! result; [`Redacting`] where bytes do that a program prints.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, PoisonError, RwLock};

use aho_corasick::{AhoCorasick, MatchKind};

use crate::env;

/// Shorter values are not taken for secrets: they would be found everywhere.
const SHORTEST: usize = 6;

/// Whether a variable's name says that it holds a secret, as `OPENAI_API_KEY`, `HF_TOKEN` and `AWS_SECRET_ACCESS_KEY` do.
pub fn is_named_so(name: &str) -> bool {
    const WORDS: &[&str] =
        &["TOKEN", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "CREDENTIALS", "APIKEY"];
    let name = name.to_ascii_uppercase();
    let words: Vec<&str> = name.split('_').collect();
    let last = words.last().copied().unwrap_or_default();
    if name == "GOOGLE_APPLICATION_CREDENTIALS" || matches!(last, "PATH" | "FILE" | "DIR") {
        return false;
    }
    let key_of = |pair: &[&str]| pair[1] == "KEY" && matches!(pair[0], "API" | "ACCESS" | "SECRET" | "PRIVATE");
    words.iter().any(|word| WORDS.contains(word)) || words.windows(2).any(key_of) || words.len() > 1 && last == "KEY"
}

/// What is not to be seen, and what stands in its place.
#[derive(Default, Clone)]
pub struct Secrets {
    values: Vec<Secret>,
    finder: Option<AhoCorasick>,
}

/// A value in one of its forms, and what holds it.
#[derive(Clone)]
struct Secret {
    form: Vec<u8>,
    name: String,
}

impl Secrets {
    /// Values with the names of what holds them; those that are too short to be secrets are passed over.
    pub fn of<'a>(named: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        let mut secrets = Self::default();
        for (name, value) in named {
            secrets.push(name, value);
        }
        secrets.build();
        secrets
    }

    fn push(&mut self, name: &str, value: &[u8]) {
        let value = value.trim_ascii();
        if value.len() < SHORTEST {
            return;
        }
        let mut forms = vec![value.to_vec()];
        if let Ok(text) = std::str::from_utf8(value) {
            // As it stands in JSON, and in a Rust debug print.
            let quoted = serde_json::to_string(text).unwrap_or_default();
            forms.push(quoted.trim_matches('"').as_bytes().to_vec());
            forms.push(in_url(text));
        }
        for form in forms {
            if !self.values.iter().any(|known| known.form == form) {
                self.values.push(Secret { form, name: name.to_owned() });
            }
        }
    }

    fn build(&mut self) {
        // The longest first: one may begin with another.
        let values = self.values.iter().map(|secret| &secret.form);
        self.finder = match self.values.is_empty() {
            true => None,
            false => AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(values).ok(),
        };
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The text with the name of each secret in the place of its value.
    pub fn redact<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.redact_bytes(text.as_bytes()) {
            Cow::Borrowed(_) => Cow::Borrowed(text),
            Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
        }
    }

    fn redact_bytes<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let Some(finder) = self.finder.as_ref().filter(|finder| finder.is_match(bytes)) else {
            return Cow::Borrowed(bytes);
        };
        let (mut redacted, mut from) = (Vec::with_capacity(bytes.len()), 0);
        for found in finder.find_iter(bytes) {
            redacted.extend_from_slice(&bytes[from..found.start()]);
            redacted.extend(format!("[value of {}]", self.values[found.pattern().as_usize()].name).bytes());
            from = found.end();
        }
        redacted.extend_from_slice(&bytes[from..]);
        Cow::Owned(redacted)
    }

    /// How many bytes at the end could be the beginning of a secret.
    fn begun(&self, bytes: &[u8]) -> usize {
        let begins = |Secret { form: value, .. }: &Secret| {
            (1..value.len().min(bytes.len() + 1)).rev().find(|length| bytes.ends_with(&value[..*length])).unwrap_or(0)
        };
        self.values.iter().map(begins).max().unwrap_or(0)
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.values.iter().map(|secret| &secret.name)).finish()
    }
}

/// As it stands in a URL.
fn in_url(text: &str) -> Vec<u8> {
    let mut url = Vec::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            url.push(byte);
        } else {
            url.extend(format!("%{byte:02X}").bytes());
        }
    }
    url
}

/// What this process knows; made at the first question.
static KNOWN: RwLock<Option<Arc<Secrets>>> = RwLock::new(None);

fn known() -> Arc<Secrets> {
    if let Some(known) = &*KNOWN.read().unwrap_or_else(PoisonError::into_inner) {
        return Arc::clone(known);
    }
    let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(known.get_or_insert_with(|| Arc::new(of_environment())))
}

fn of_environment() -> Secrets {
    let named =
        env::variables().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_encoded_bytes())));
    let named: Vec<(String, Vec<u8>)> = named.filter(|(name, _)| is_named_so(name)).collect();
    Secrets::of(named.iter().map(|(name, value)| (name.as_str(), value.as_slice())))
}

/// From now on this value is not to be seen; `name` stands in its place.
pub fn add(name: &str, value: &str) {
    // Under one lock: of two that add at once both are known after.
    let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
    let secrets = Arc::make_mut(known.get_or_insert_with(|| Arc::new(of_environment())));
    let before = secrets.values.len();
    secrets.push(name, value.as_bytes());
    if secrets.values.len() > before {
        secrets.build();
    }
}

/// The text with the name of each secret that this process knows in the place of its value.
pub fn redact(text: &str) -> Cow<'_, str> {
    known().redact(text)
}

/// The variable whose value stands in a text, if it is long enough that it cannot be there by chance, and where.
pub fn found_in(text: &str) -> Option<(String, usize)> {
    const BY_CHANCE: usize = 16;
    let known = known();
    let found = known.finder.as_ref()?.find_iter(text).find(|found| found.len() >= BY_CHANCE)?;
    Some((known.values[found.pattern().as_usize()].name.clone(), found.start()))
}

/// Writes on what it is given, without secrets. What could be the beginning of one waits for the bytes after it, or for
/// [`Redacting::finish`].
#[derive(Debug)]
pub struct Redacting<W> {
    to: W,
    secrets: Arc<Secrets>,
    held: Vec<u8>,
}

impl<W: Write> Redacting<W> {
    /// Hides `secrets`.
    pub fn new(to: W, secrets: Secrets) -> Self {
        Self { to, secrets: Arc::new(secrets), held: Vec::new() }
    }

    /// Hides what this process knows.
    pub fn known(to: W) -> Self {
        Self { to, secrets: known(), held: Vec::new() }
    }

    /// Writes what still waits: nothing comes after it.
    pub fn finish(mut self) -> io::Result<()> {
        let rest = std::mem::take(&mut self.held);
        self.to.write_all(&self.secrets.redact_bytes(&rest))?;
        self.to.flush()
    }
}

impl<W: Write> Write for Redacting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.held.extend_from_slice(bytes);
        let mut cut = self.held.len() - self.secrets.begun(&self.held);
        // A secret that ends with what another begins with is whole.
        let mut found = self.secrets.finder.iter().flat_map(|finder| finder.find_iter(&self.held));
        if let Some(across) = found.find(|found| found.start() < cut && cut < found.end()) {
            cut = across.end();
        }
        let rest = self.held.split_off(cut);
        let out = std::mem::replace(&mut self.held, rest);
        self.to.write_all(&self.secrets.redact_bytes(&out))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_secrets_are_known() {
        for name in [
            "OPENAI_API_KEY",
            "HF_TOKEN",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_ACCESS_KEY_ID",
            "AWS_SESSION_TOKEN",
            "db_password",
            "ACME_KEY",
            "GITHUB_TOKEN",
        ] {
            assert!(is_named_so(name), "{name}");
        }
        for name in [
            "PATH",
            "HF_TOKEN_PATH",
            "TOKENIZERS_PARALLELISM",
            "MAX_TOKENS",
            "KEY",
            "KEYBOARD",
            "AWS_REGION",
            "GOOGLE_APPLICATION_CREDENTIALS",
        ] {
            assert!(!is_named_so(name), "{name}");
        }
    }

    #[test]
    fn values_give_way_to_names_in_every_form() {
        let secrets = Secrets::of([("A", &b"s3cr\"et/+"[..]), ("B", b"s3cr\"et/+longer\n"), ("SHORT", b"abc")]);
        assert_eq!(secrets.redact("x s3cr\"et/+ y"), "x [value of A] y");
        assert_eq!(secrets.redact("x s3cr\"et/+longer y"), "x [value of B] y");
        assert_eq!(secrets.redact(r#"{"a": "s3cr\"et/+"}"#), r#"{"a": "[value of A]"}"#);
        assert_eq!(secrets.redact("?key=s3cr%22et%2F%2B&"), "?key=[value of A]&");
        assert!(matches!(secrets.redact("abc"), Cow::Borrowed("abc")));
    }

    #[test]
    fn what_is_added_is_hidden_and_found() {
        add("TEST_FILE", "a-token-that-no-other-test-has");
        assert_eq!(redact("say a-token-that-no-other-test-has!"), "say [value of TEST_FILE]!");
        assert_eq!(found_in("k = \"a-token-that-no-other-test-has\""), Some(("TEST_FILE".to_owned(), 5)));
        assert_eq!(found_in("nothing"), None);
    }

    #[test]
    fn a_stream_hides_what_comes_in_pieces() {
        let secrets = Secrets::of([("A", &b"secret-one"[..]), ("B", b"ones-own"), ("C", b"secret-one-two")]);
        let text = b"secret-secret-one, secret-on, ones-own secret-one-two secret-one-tw sec";
        for length in 1..text.len() {
            let mut out = Vec::new();
            let mut stream = Redacting::new(&mut out, secrets.clone());
            for piece in text.chunks(length) {
                stream.write_all(piece).unwrap();
            }
            stream.finish().unwrap();
            assert_eq!(
                String::from_utf8(out).unwrap(),
                "secret-[value of A], secret-on, [value of B] [value of C] [value of A]-tw sec",
                "{length}"
            );
        }
    }
}
