//! Which sequences are scored together.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use crate::lm::Sequence;

/// Sequences in a batch at most, so that a kill loses little and progress moves.
const MOST_ROWS: usize = 64;
/// Tokens in a batch at most, shared prompts counted once.
const MOST_TOKENS: usize = 1 << 12;

/// The places of the first item of each value.
pub(super) fn first_of_each<'a, T: Eq + Hash + 'a>(items: impl Iterator<Item = (usize, &'a T)>) -> Vec<usize> {
    let mut seen = HashSet::new();
    items.filter(|(_, item)| seen.insert(*item)).map(|(at, _)| at).collect()
}

/// Splits sequences into batches. Those of one prompt stay together, so that the prompt is computed once; the longest come
/// first, so that what does not fit fails at once and not after hours.
pub(super) fn batches(sequences: &[Sequence], micro_batch: Option<usize>) -> Vec<Vec<usize>> {
    let most = micro_batch.unwrap_or(MOST_ROWS).max(1);
    let prompt = |at: usize| &sequences[at].ids[..sequences[at].prompt];
    let mut known: HashMap<&[u32], usize> = HashMap::new();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for at in 0..sequences.len() {
        let group = *known.entry(prompt(at)).or_insert(groups.len());
        match groups.get_mut(group) {
            Some(group) => group.push(at),
            None => groups.push(vec![at]),
        }
    }
    let tokens = |group: &[usize]| {
        let shared = sequences[group[0]].prompt;
        shared + group.iter().map(|at| sequences[*at].ids.len() - shared).sum::<usize>()
    };
    groups.sort_by_cached_key(|group| Reverse(tokens(group)));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut left = 0;
    for part in groups.iter().flat_map(|group| group.chunks(most)) {
        let needed = tokens(part);
        match batches.last_mut() {
            Some(batch) if batch.len() + part.len() <= most && (micro_batch.is_some() || needed <= left) => {
                batch.extend(part);
            }
            _ => {
                batches.push(part.to_vec());
                left = MOST_TOKENS;
            }
        }
        left = left.saturating_sub(needed);
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Responses of some tokens to prompts of some tokens.
    fn sequences(prompts: usize, responses: usize) -> Vec<Sequence> {
        let sequence = |at: usize| {
            let (prompt, response) = (at % prompts, at / prompts);
            let mut ids = vec![prompt as u32; 200];
            ids.extend(vec![response as u32; 50 + prompt % 7]);
            Sequence { ids, prompt: 200 }
        };
        (0..prompts * responses).map(sequence).collect()
    }

    #[test]
    fn batches_hold_every_row_once_and_a_prompts_rows_together() {
        let sequences = sequences(30, 3);
        for (micro_batch, most) in [(None, MOST_ROWS), (Some(4), 4), (Some(7), 7), (Some(1), 1)] {
            let batches = batches(&sequences, micro_batch);
            let mut all: Vec<usize> = batches.iter().flatten().copied().collect();
            all.sort_unstable();
            assert_eq!(all, (0..90).collect::<Vec<_>>());
            assert!(batches.iter().all(|batch| batch.len() <= most && !batch.is_empty()));
            assert_eq!(sequences[batches[0][0]].ids.len(), 256, "the longest come first");
            if most >= 3 {
                for batch in &batches {
                    assert!(batch.chunks(3).all(|part| part.iter().all(|at| at % 30 == part[0] % 30)), "{batch:?}");
                }
            }
        }
        // 350 to 368 tokens of each prompt and its responses.
        assert_eq!(batches(&sequences, None)[0].len(), 3 * 11);
    }

    #[test]
    fn what_does_not_fit_goes_alone() {
        let long = Sequence { ids: vec![1; 3 * MOST_TOKENS], prompt: 3 };
        assert_eq!(batches(&[long, Sequence { ids: vec![2; 3], prompt: 1 }], None), [vec![0], vec![1]]);
        assert!(batches(&[], None).is_empty());
    }
}
