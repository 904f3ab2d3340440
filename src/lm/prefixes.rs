//! What prompts begin with in common, so that it is read once and its keys and values are held once.
//!
//! Sorted prompts are a tree: neighbours share the most. The tree's inner nodes are runs of tokens, each after its parent's;
//! a prompt is a path of runs and a rest of its own, which holds its last token at least.

use std::cmp::Reverse;
use std::ops::Range;

/// Shorter runs are not worth keys and values of their own.
const SHORTEST: usize = 16;
/// Runs on the way to a prompt at most.
const DEEPEST: usize = 8;

/// Tokens that several prompts have at the same place, after the same tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    /// The run before it, which comes earlier in the list.
    pub(super) parent: Option<usize>,
    /// A prompt that has it.
    pub(super) prompt: usize,
    /// Where in the prompt.
    pub(super) places: Range<usize>,
    /// How many prompts have it.
    pub(super) prompts: usize,
}

/// Prompts in the order in which they are best read, and what they share.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Prefixes {
    /// The prompts: those that share a run one after the other, else the longest first, so that what does not fit shows
    /// soon.
    pub(super) order: Vec<usize>,
    /// Parents before their children.
    pub(super) runs: Vec<Run>,
    /// The last run of each prompt.
    pub(super) of: Vec<Option<usize>>,
}

/// Prompts, sorted, and how many tokens each shares with the one before.
struct Sorted<'a> {
    prompts: &'a [&'a [u32]],
    order: Vec<usize>,
    shared: Vec<usize>,
}

impl Prefixes {
    /// Finds what prompts share.
    pub(super) fn of(prompts: &[&[u32]]) -> Self {
        let mut order: Vec<usize> = (0..prompts.len()).collect();
        order.sort_by_key(|at| prompts[*at]);
        let shared =
            (0..order.len()).map(|at| if at == 0 { 0 } else { common(prompts[order[at - 1]], prompts[order[at]]) });
        let sorted = Sorted { prompts, shared: shared.collect(), order };
        let mut prefixes =
            Self { order: Vec::with_capacity(prompts.len()), runs: Vec::new(), of: vec![None; prompts.len()] };
        prefixes.add(&sorted, 0..prompts.len(), None, 0);
        prefixes
    }

    /// Adds sorted prompts that have the run `parent`, the `depth`th.
    fn add(&mut self, sorted: &Sorted<'_>, range: Range<usize>, parent: Option<usize>, depth: usize) {
        let begin = parent.map_or(0, |run| self.runs[run].places.end);
        let mut groups: Vec<Range<usize>> = Vec::new();
        for at in range {
            match groups.last_mut() {
                Some(group) if depth < DEEPEST && group.end == at && sorted.shared[at] >= begin + SHORTEST => {
                    group.end += 1;
                }
                _ => groups.push(at..at + 1),
            }
        }
        let length = |at: usize| sorted.prompts[sorted.order[at]].len();
        groups.sort_by_cached_key(|group| Reverse(group.clone().map(length).max()));
        for group in groups {
            let prompt = sorted.order[group.start];
            if group.len() == 1 {
                self.of[prompt] = parent;
                self.order.push(prompt);
                continue;
            }
            let end = sorted.shared[group.start + 1..group.end].iter().min().copied().unwrap_or(begin);
            self.runs.push(Run { parent, prompt, places: begin..end, prompts: group.len() });
            self.add(sorted, group, Some(self.runs.len() - 1), depth + 1);
        }
    }

    /// The runs of a prompt, first to last.
    pub(super) fn path(&self, prompt: usize) -> Vec<usize> {
        let mut path: Vec<usize> = std::iter::successors(self.of[prompt], |run| self.runs[*run].parent).collect();
        path.reverse();
        path
    }

    /// How many tokens of a prompt its runs have.
    pub(super) fn shared(&self, prompt: usize) -> usize {
        self.of[prompt].map_or(0, |run| self.runs[run].places.end)
    }
}

/// How many tokens two prompts share, and each has one more.
fn common(a: &[u32], b: &[u32]) -> usize {
    let most = a.len().min(b.len()).saturating_sub(1);
    a.iter().zip(b).take(most).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(parts: &[(u32, usize)]) -> Vec<u32> {
        parts.iter().flat_map(|(token, times)| vec![*token; *times]).collect()
    }

    fn of(prompts: &[Vec<u32>]) -> Prefixes {
        Prefixes::of(&prompts.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }

    #[test]
    fn what_prompts_share_is_a_tree() {
        let prompts = [
            prompt(&[(1, 20), (2, 20), (5, 3)]),
            prompt(&[(7, 60)]),
            prompt(&[(1, 20), (3, 40)]),
            prompt(&[(1, 20), (2, 20), (6, 9)]),
            prompt(&[(1, 20)]),
            prompt(&[(1, 15), (8, 2)]),
        ];
        let found = of(&prompts);
        assert_eq!(found.order, [2, 3, 0, 4, 1, 5]);
        let runs: Vec<_> = found.runs.iter().map(|run| (run.parent, run.places.clone(), run.prompts)).collect();
        assert_eq!(runs, [(None, 0..19, 4), (Some(0), 19..40, 2)]);
        assert_eq!((found.path(0), found.path(2), found.path(1)), (vec![0, 1], vec![0], vec![]));
        assert_eq!([0, 1, 2, 3, 4, 5].map(|at| found.shared(at)), [40, 0, 19, 40, 19, 0]);
        for (at, prompt) in prompts.iter().enumerate() {
            let shared: Vec<u32> = found
                .path(at)
                .iter()
                .flat_map(|run| {
                    let run = &found.runs[*run];
                    prompts[run.prompt][run.places.clone()].to_vec()
                })
                .collect();
            assert!(prompt.starts_with(&shared) && shared.len() < prompt.len(), "{at}");
        }
    }

    #[test]
    fn equal_prompts_share_all_but_their_last_token() {
        let found = of(&vec![prompt(&[(4, 30)]); 3]);
        assert_eq!((found.runs.len(), found.shared(2), found.order), (1, 29, vec![0, 1, 2]));
        let short = of(&vec![prompt(&[(4, 16)]); 3]);
        assert!(short.runs.is_empty(), "sixteen tokens share fifteen");
        assert_eq!(of(&[]), Prefixes::default());
    }

    #[test]
    fn ever_longer_prompts_make_no_endless_tree() {
        let prompts: Vec<Vec<u32>> = (0..40).map(|n| prompt(&[(1, 20 * (n + 1))])).collect();
        let found = of(&prompts);
        assert_eq!(found.runs.len(), DEEPEST);
        assert_eq!(found.path(39).len(), DEEPEST);
        let mut order = found.order.clone();
        order.sort_unstable();
        assert_eq!(order, (0..40).collect::<Vec<_>>());
    }
}
