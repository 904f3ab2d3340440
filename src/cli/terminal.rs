//! What the terminals of this process can show, and what people asked of them.

use std::borrow::Cow;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::sync::OnceLock;

use crate::env;
use crate::plot::text::Letters;

/// Whether `--plain` was typed; of the whole process, as its standard output and error are.
static PLAIN: OnceLock<bool> = OnceLock::new();

/// Takes down what was typed, before anything is printed.
pub(super) fn start(plain: bool) {
    let _ = PLAIN.set(plain || env::PLAIN.get().is_some());
}

/// Whether all is to be told in lines of words, one after another: no columns, no pictures, no colours, nothing drawn anew.
pub(super) fn is_plain() -> bool {
    PLAIN.get().copied().unwrap_or(false)
}

/// Columns and rows of a terminal; none of what is no terminal or does not know.
pub(super) fn size(of: impl AsFd) -> Option<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(of).ok()?;
    (size.ws_col > 0).then(|| (usize::from(size.ws_col), usize::from(size.ws_row)))
}

/// Whether what stands on standard error can be drawn anew: on a terminal that moves its cursor, unless `--plain` was asked for.
pub(super) fn can_redraw() -> bool {
    let moves = env::TERM.get().is_some_and(|name| name != "dumb");
    moves && !is_plain() && io::stderr().is_terminal()
}

/// Whether this process may draw now: what is in the background is not to write over what people do.
pub(super) fn is_in_front() -> bool {
    let front = rustix::termios::tcgetpgrp(io::stderr());
    // Without a word on it (no controlling terminal) no one is in the way.
    front.map_or(true, |group| group == rustix::process::getpgrp())
}

/// What pictures are made of on terminals.
pub(super) fn letters() -> Letters {
    if is_plain() || charset(&[&env::LC_ALL, &env::LC_CTYPE, &env::LANG]) != Charset::Utf8 {
        return Letters::Ascii;
    }
    Letters::Unicode
}

/// What a locale says of the terminal's letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Charset {
    Utf8,
    /// `C` or `POSIX`: no more than ASCII is promised.
    Ascii,
    /// A set of letters of another name, which is not known here.
    Other,
}

fn charset(variables: &[&env::Variable]) -> Charset {
    // The first that is set decides. Where none is, terminals are what they are by now: UTF-8.
    variables.iter().find_map(|variable| variable.get()).map_or(Charset::Utf8, |locale| of_locale(&locale))
}

fn of_locale(locale: &str) -> Charset {
    let lower = locale.to_ascii_lowercase();
    match lower.split_once('.') {
        Some((_, set)) if set.starts_with("utf-8") || set.starts_with("utf8") => Charset::Utf8,
        None if lower == "c" || lower == "posix" => Charset::Ascii,
        _ => Charset::Other,
    }
}

/// A text for people: on a terminal without letters that are not in its set; with `--plain`, wherever it goes, with words for
/// those that only decorate. A document for programs does not come here: it goes out as it is.
pub(super) fn shown(text: &str, is_terminal: bool) -> Cow<'_, str> {
    if text.is_ascii() || !is_terminal {
        return if is_plain() { worded(text) } else { Cow::Borrowed(text) };
    }
    match charset(&[&env::LC_ALL, &env::LC_CTYPE, &env::LANG]) {
        Charset::Utf8 if is_plain() => worded(text),
        Charset::Utf8 => Cow::Borrowed(text),
        Charset::Ascii | Charset::Other => Cow::Owned(ascii(text)),
    }
}

/// A text in which signs that a voice would read out, or pass over, are words and commas.
fn worded(text: &str) -> Cow<'_, str> {
    if !text.contains(['·', '…', '→', '─']) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace(" · ", ", ").replace('·', ",").replace('…', "...").replace('→', "to").replace('─', "-"))
}

/// A text in ASCII: what stands for letters of ours, and `?` for others.
fn ascii(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            letter if letter.is_ascii() => plain.push(letter),
            '…' => plain.push_str("..."),
            '–' | '—' | '─' | '━' => plain.push('-'),
            '‘' | '’' => plain.push('\''),
            '“' | '”' => plain.push('"'),
            '→' => plain.push_str("->"),
            '×' => plain.push('x'),
            '├' | '└' | '┌' | '┐' | '┘' | '┤' | '┴' | '┬' | '┼' => plain.push('+'),
            '·' | '│' => plain.push('|'),
            '±' => plain.push_str("+-"),
            _ => plain.push('?'),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locale_says_what_letters_there_are() {
        for utf8 in ["en_US.UTF-8", "C.utf8", "de_DE.UTF-8@euro"] {
            assert_eq!(of_locale(utf8), Charset::Utf8, "{utf8}");
        }
        assert_eq!(["C", "POSIX"].map(of_locale), [Charset::Ascii; 2]);
        assert_eq!(["de_DE", "ja_JP.eucJP", "en_US.ISO-8859-1"].map(of_locale), [Charset::Other; 3]);
    }

    #[test]
    fn what_cannot_be_shown_is_written_otherwise() {
        assert_eq!(ascii("3 rows · loss 0.5 … é → ├─ x"), "3 rows | loss 0.5 ... ? -> +- x");
        assert_eq!(worded("3 rows · loss 0.5 · a…"), "3 rows, loss 0.5, a...");
    }
}
