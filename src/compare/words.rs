//! Two texts beside each other: which words, or which lines, went and came.

use similar::{Algorithm, DiffOp, capture_diff_slices};

/// Pieces that are held against each other at most; of longer texts what is between the first and the last difference
/// counts as replaced, so that no text takes long.
const MOST: usize = 20_000;

/// A part of two texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// In both.
    Same(&'a str),
    /// In the old one only.
    Old(&'a str),
    /// In the new one only.
    New(&'a str),
}

/// Two texts word by word. The pieces that are not new make the old text, those that are not old the new one.
pub fn words<'a>(old: &'a str, new: &'a str) -> Vec<Piece<'a>> {
    pieces(old, new, &split_words(old), &split_words(new))
}

/// Two texts line by line, each piece with the ends of its lines.
pub fn lines<'a>(old: &'a str, new: &'a str) -> Vec<Piece<'a>> {
    let split = |text: &'a str| text.split_inclusive('\n').collect::<Vec<_>>();
    pieces(old, new, &split(old), &split(new))
}

/// Words, and what is between them: letters and digits together, and numbers whole; blanks together; each other sign by itself.
fn split_words(text: &str) -> Vec<&str> {
    let digit = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_digit);
    let in_number = |at: usize| at > 0 && digit(text.as_bytes().get(at - 1)) && digit(text.as_bytes().get(at + 1));
    let class = |at: usize, letter: char| match letter {
        '.' if in_number(at) => 0,
        letter if letter.is_alphanumeric() || letter == '_' => 0,
        letter if letter.is_whitespace() => 1,
        _ => 2,
    };
    let mut words = Vec::new();
    let mut start = 0;
    let mut last = None;
    for (at, letter) in text.char_indices() {
        let class = class(at, letter);
        if at > start && (last != Some(class) || class == 2) {
            words.push(&text[start..at]);
            start = at;
        }
        last = Some(class);
    }
    if start < text.len() {
        words.push(&text[start..]);
    }
    words
}

fn pieces<'a>(old_text: &'a str, new_text: &'a str, old: &[&'a str], new: &[&'a str]) -> Vec<Piece<'a>> {
    let shared = old.iter().zip(new).take_while(|(old, new)| old == new).count();
    let (old_rest, new_rest) = (&old[shared..], &new[shared..]);
    let ending = old_rest.iter().rev().zip(new_rest.iter().rev()).take_while(|(old, new)| old == new).count();
    let (old_part, new_part) = (&old_rest[..old_rest.len() - ending], &new_rest[..new_rest.len() - ending]);
    let ops = if old_part.len().max(new_part.len()) > MOST {
        vec![DiffOp::Replace { old_index: 0, old_len: old_part.len(), new_index: 0, new_len: new_part.len() }]
    } else {
        capture_diff_slices(Algorithm::Myers, old_part, new_part)
    };
    let mut found = Found { old: (old_text, 0), new: (new_text, 0), pieces: Vec::new() };
    let length = |words: &[&str]| words.iter().map(|word| word.len()).sum::<usize>();
    found.keep(length(&old[..shared]));
    for op in ops {
        match op {
            DiffOp::Equal { old_index, len, .. } => found.keep(length(&old_part[old_index..old_index + len])),
            DiffOp::Delete { old_index, old_len, .. } => {
                found.drop_old(length(&old_part[old_index..old_index + old_len]));
            }
            DiffOp::Insert { new_index, new_len, .. } => {
                found.add_new(length(&new_part[new_index..new_index + new_len]));
            }
            DiffOp::Replace { old_index, old_len, new_index, new_len } => {
                found.drop_old(length(&old_part[old_index..old_index + old_len]));
                found.add_new(length(&new_part[new_index..new_index + new_len]));
            }
        }
    }
    found.keep(length(&old_rest[old_part.len()..]));
    found.pieces
}

/// The pieces so far, and how far they go in each text.
struct Found<'a> {
    old: (&'a str, usize),
    new: (&'a str, usize),
    pieces: Vec<Piece<'a>>,
}

impl Found<'_> {
    fn keep(&mut self, bytes: usize) {
        if bytes > 0 {
            let (text, at) = self.old;
            self.pieces.push(Piece::Same(&text[at..at + bytes]));
            self.old.1 += bytes;
            self.new.1 += bytes;
        }
    }

    fn drop_old(&mut self, bytes: usize) {
        if bytes > 0 {
            let (text, at) = self.old;
            self.pieces.push(Piece::Old(&text[at..at + bytes]));
            self.old.1 += bytes;
        }
    }

    fn add_new(&mut self, bytes: usize) {
        if bytes > 0 {
            let (text, at) = self.new;
            self.pieces.push(Piece::New(&text[at..at + bytes]));
            self.new.1 += bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_that_went_and_came_are_told() {
        let pieces = words("the quick brown fox .", "the slow brown fox !");
        assert_eq!(
            pieces,
            [
                Piece::Same("the "),
                Piece::Old("quick"),
                Piece::New("slow"),
                Piece::Same(" brown fox "),
                Piece::Old("."),
                Piece::New("!")
            ]
        );
        assert_eq!(lines("a\nb\nc", "a\nc"), [Piece::Same("a\n"), Piece::Old("b\n"), Piece::Same("c")]);
        assert_eq!(words("", ""), []);
        assert_eq!(words("0.25.", "0.75."), [Piece::Old("0.25"), Piece::New("0.75"), Piece::Same(".")]);
        assert_eq!(words("wörd", "wörds"), [Piece::Old("wörd"), Piece::New("wörds")]);
    }

    #[test]
    fn a_long_text_is_replaced_between_its_differences() {
        let (old, new) = ("a ".repeat(MOST), "b ".repeat(MOST));
        let (old, new) = (format!("same {old}end"), format!("same {new}end"));
        let pieces = words(&old, &new);
        assert_eq!((pieces.len(), pieces[0], pieces[3]), (4, Piece::Same("same "), Piece::Same(" end")));
    }

    proptest! {
        #[test]
        fn pieces_make_both_texts(old in "[ab .ü\n]{0,40}", new in "[ab .ü\n]{0,40}") {
            for pieces in [words(&old, &new), lines(&old, &new)] {
                let text = |keep: fn(&Piece<'_>) -> bool| -> String {
                    pieces.iter().filter(|piece| keep(piece)).map(|piece| match piece {
                        Piece::Same(text) | Piece::Old(text) | Piece::New(text) => *text,
                    }).collect()
                };
                prop_assert_eq!(text(|piece| !matches!(piece, Piece::New(_))), old.as_str());
                prop_assert_eq!(text(|piece| !matches!(piece, Piece::Old(_))), new.as_str());
            }
        }
    }
}
