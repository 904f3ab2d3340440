//! What is different in texts that stand beside each other.

use serde::Serialize;

use crate::compare::{Piece, words};

/// Letters of a text that are compared.
const LONGEST: usize = 6000;
/// Texts that each is held against.
const MOST: usize = 16;

/// A part of a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Part {
    /// The part.
    pub text: String,
    /// Whether it is not in all of the texts.
    pub differs: bool,
}

/// Cuts texts into parts: each word that another text does not have at that place differs. Texts are compared word by word, each
/// with the first, and the first with all others; of very long ones the beginning.
pub fn marks(texts: &[&str]) -> Vec<Vec<Part>> {
    let texts: Vec<&str> = texts.iter().map(|text| beginning(text)).collect();
    let Some((first, others)) = texts.split_first() else { return Vec::new() };
    let mut differs = vec![false; first.len()];
    let mut marked = Vec::with_capacity(texts.len());
    for (at, other) in others.iter().enumerate() {
        if at >= MOST {
            marked.push(vec![Part { text: (*other).to_owned(), differs: false }]);
            continue;
        }
        let (mut place, mut parts) = (0, Vec::new());
        for piece in words(first, other) {
            match piece {
                Piece::Same(text) => {
                    place += text.len();
                    push(&mut parts, text, false);
                }
                Piece::Old(text) => {
                    differs[place..place + text.len()].fill(true);
                    place += text.len();
                }
                Piece::New(text) => push(&mut parts, text, true),
            }
        }
        marked.push(parts);
    }
    let mut parts = Vec::new();
    let mut start = 0;
    for end in first.char_indices().map(|(at, _)| at).chain([first.len()]) {
        if end > start && (end == first.len() || differs[end] != differs[start]) {
            push(&mut parts, &first[start..end], differs[start]);
            start = end;
        }
    }
    marked.insert(0, parts);
    marked
}

fn push(parts: &mut Vec<Part>, text: &str, differs: bool) {
    // A blank alone is no difference that can be seen.
    let differs = differs && !text.trim().is_empty();
    match parts.last_mut() {
        Some(last) if last.differs == differs => last.text.push_str(text),
        _ => parts.push(Part { text: text.to_owned(), differs }),
    }
}

fn beginning(text: &str) -> &str {
    text.char_indices().nth(LONGEST).map_or(text, |(end, _)| &text[..end])
}
