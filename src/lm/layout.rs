//! Where the tokens of a batch lie: one after the other, without padding, a prompt that several sequences share only once.

use std::collections::HashMap;
use std::ops::Range;

use crate::lm::Sequence;

/// Shorter prompts are not shared: what is saved would not pay for tying their sequences together.
const WORTH_SHARING: usize = 4;

/// Sequences that begin with the same tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    /// The tokens they share; may be empty.
    pub(super) prefix: Range<usize>,
    /// What follows them; each sees the prefix and itself.
    pub(super) branches: Vec<Range<usize>>,
}

impl Group {
    /// All its tokens.
    pub(super) fn tokens(&self) -> Range<usize> {
        self.prefix.start..self.branches.last().map_or(self.prefix.end, |branch| branch.end)
    }
}

/// The tokens of a batch, and what is asked about them.
#[derive(Debug, Default)]
pub(super) struct Layout {
    /// (N)
    pub(super) ids: Vec<u32>,
    /// Their places in their sequences: (N)
    pub(super) positions: Vec<u32>,
    /// They lie one after the other and cover all tokens.
    pub(super) groups: Vec<Group>,
    /// The tokens after which something is predicted, in ascending order: (M)
    pub(super) chosen: Vec<usize>,
    /// What is predicted there: a token, and the place of its log-probability in the result. Chosen token by chosen token.
    pub(super) predictions: Vec<Vec<(usize, u32)>>,
    /// Predictions in all.
    pub(super) outputs: usize,
}

impl Layout {
    /// Lays out sequences; their response tokens are predicted, in their order.
    pub(super) fn new(sequences: &[Sequence]) -> Self {
        let mut layout = Self::default();
        // What is predicted after which token.
        let mut predicted: Vec<(usize, usize, u32)> = Vec::new();
        let mut first = Vec::with_capacity(sequences.len());
        for sequence in sequences {
            first.push(layout.outputs);
            layout.outputs += sequence.ids.len() - sequence.prompt;
        }
        for members in by_prompt(sequences) {
            let shared = members.len() > 1;
            let prompt = sequences[members[0]].prompt;
            let prefix =
                if shared { layout.push(&sequences[members[0]].ids[..prompt], 0) } else { layout.push(&[], 0) };
            let mut branches = Vec::with_capacity(members.len());
            for member in members {
                let Sequence { ids, .. } = &sequences[member];
                // The last token predicts nothing.
                let from = if shared { prompt } else { 0 };
                let branch = layout.push(&ids[from..(ids.len() - 1).max(from)], from);
                for (offset, token) in ids[prompt..].iter().enumerate() {
                    let at = prompt + offset - 1;
                    let token_at = if at < from { prefix.start + at } else { branch.start + at - from };
                    predicted.push((token_at, first[member] + offset, *token));
                }
                branches.push(branch);
            }
            layout.groups.push(Group { prefix, branches });
        }
        predicted.sort_unstable();
        for (token_at, output, token) in predicted {
            if layout.chosen.last() != Some(&token_at) {
                layout.chosen.push(token_at);
                layout.predictions.push(Vec::new());
            }
            layout.predictions.last_mut().expect("it was just put there").push((output, token));
        }
        layout
    }

    /// Adds tokens at the places from `position` on.
    pub(super) fn push(&mut self, ids: &[u32], position: usize) -> Range<usize> {
        let start = self.ids.len();
        self.ids.extend(ids);
        self.positions.extend((position as u32..).take(ids.len()));
        start..self.ids.len()
    }
}

/// Sequences that share their tokens up to the response, by index; those that predict nothing are left out.
fn by_prompt(sequences: &[Sequence]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut known: HashMap<&[u32], usize> = HashMap::new();
    for (index, Sequence { ids, prompt }) in sequences.iter().enumerate() {
        if ids.len() == *prompt {
            continue;
        }
        if *prompt < WORTH_SHARING {
            groups.push(vec![index]);
            continue;
        }
        match known.get(&ids[..*prompt]) {
            Some(group) => groups[*group].push(index),
            None => {
                known.insert(&ids[..*prompt], groups.len());
                groups.push(vec![index]);
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(ids: &[u32], prompt: usize) -> Sequence {
        Sequence { ids: ids.to_vec(), prompt }
    }

    #[test]
    fn shared_prompts_lie_once() {
        let layout = Layout::new(&[
            sequence(&[1, 2, 3, 4, 5, 6], 4),
            sequence(&[9, 8], 1),
            sequence(&[1, 2, 3, 4, 7], 4),
            sequence(&[1, 2, 3, 4], 4),
        ]);
        assert_eq!(layout.ids, [1, 2, 3, 4, 5, 9]);
        assert_eq!(layout.positions, [0, 1, 2, 3, 4, 0]);
        let alone = 5..6;
        assert_eq!(
            layout.groups,
            [Group { prefix: 0..4, branches: vec![4..5, 5..5] }, Group { prefix: 5..5, branches: vec![alone] }]
        );
        assert_eq!(layout.chosen, [3, 4, 5]);
        assert_eq!(layout.predictions, [vec![(0, 5), (3, 7)], vec![(1, 6)], vec![(2, 8)]]);
        assert_eq!(layout.outputs, 4);
    }
}
