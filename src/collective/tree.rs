//! The order in which parts are added: a tree over them that is the same whoever computes which.
//!
//! n parts are leaves of a binary tree. A branch is the sum of the two branches below it, the left one first; one that has
//! nothing to its right goes up as it is. A rank that has a run of leaves adds what is complete within it, and what is left
//! is a few branches; put together in order they make the same tree. So a sum has the same bits on any number of ranks.

use std::ops::Range;

/// A branch: leaves `index * 2^level` and on, `2^level` of them or as many as there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Branch {
    level: u32,
    index: usize,
}

impl Branch {
    /// A leaf.
    pub fn leaf(index: usize) -> Self {
        Self { level: 0, index }
    }

    /// Bytes that [`Branch::bytes`] gives.
    pub(super) const SIZE: usize = 12;

    pub(super) fn bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..4].copy_from_slice(&self.level.to_le_bytes());
        bytes[4..].copy_from_slice(&(self.index as u64).to_le_bytes());
        bytes
    }

    pub(super) fn of_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let level = u32::from_le_bytes(std::array::from_fn(|at| bytes[at]));
        let index = u64::from_le_bytes(std::array::from_fn(|at| bytes[4 + at]));
        Self { level, index: index as usize }
    }
}

/// Branches in their order, of which those are added that have come to be complete.
#[derive(Debug)]
pub struct Stack<T> {
    leaves: usize,
    held: Vec<(Branch, T)>,
}

impl<T> Stack<T> {
    /// Of a tree of so many leaves.
    pub fn new(leaves: usize) -> Self {
        Self { leaves, held: Vec::new() }
    }

    /// Puts what is right of all before; `add` adds its second to its first.
    pub fn push<E>(
        &mut self,
        branch: Branch,
        value: T,
        mut add: impl FnMut(&mut T, T) -> Result<(), E>,
    ) -> Result<(), E> {
        self.held.push((branch, value));
        while let Some((last, _)) = self.held.last_mut() {
            let width = 1usize << last.level;
            if last.index.is_multiple_of(2) {
                // With nothing to its right it goes up; the root is as wide as the tree.
                let alone = (last.index + 1).saturating_mul(width) >= self.leaves;
                if !alone || width >= self.leaves {
                    break;
                }
                *last = Branch { level: last.level + 1, index: last.index / 2 };
                continue;
            }
            let (right, left) = (*last, Branch { level: last.level, index: last.index - 1 });
            if self.held.len() < 2 || self.held[self.held.len() - 2].0 != left {
                break;
            }
            if let (Some((_, value)), Some((branch, sum))) = (self.held.pop(), self.held.last_mut()) {
                *branch = Branch { level: right.level + 1, index: right.index / 2 };
                add(sum, value)?;
            }
        }
        Ok(())
    }

    /// What there is of branches, in their order.
    pub fn into_branches(self) -> Vec<(Branch, T)> {
        self.held
    }

    /// The sum of all leaves, if all were put.
    pub fn into_root(mut self) -> Option<T> {
        let (branch, root) = self.held.pop()?;
        (self.held.is_empty() && branch.index == 0 && 1usize << branch.level >= self.leaves).then_some(root)
    }
}

/// Shares parts out to so many ranks: runs of parts that cost about the same. A rank may have none.
pub fn shares(costs: &[u64], ranks: usize) -> Vec<Range<usize>> {
    let total = costs.iter().sum::<u64>().max(1);
    let mut shares = vec![0..0; ranks];
    let (mut before, mut at) = (0, 0);
    for (rank, share) in shares.iter_mut().enumerate() {
        let start = at;
        // A part is the rank's in whose share its middle lies.
        while at < costs.len()
            && (rank + 1 == ranks
                || (2 * before + costs[at]) as u128 * ranks as u128 <= 2 * (rank as u128 + 1) * u128::from(total))
        {
            before += costs[at];
            at += 1;
        }
        *share = start..at;
    }
    shares
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// What was added to what, in words.
    fn add(sum: &mut String, value: String) -> Result<(), Infallible> {
        *sum = format!("({sum}+{value})");
        Ok(())
    }

    fn alone(leaves: usize) -> String {
        let mut stack = Stack::new(leaves);
        for leaf in 0..leaves {
            let Ok(()) = stack.push(Branch::leaf(leaf), leaf.to_string(), add);
        }
        stack.into_root().expect("all were put")
    }

    #[test]
    fn sums_have_one_form_however_the_leaves_are_shared() {
        assert_eq!(alone(1), "0");
        assert_eq!(alone(3), "((0+1)+2)");
        assert_eq!(alone(6), "(((0+1)+(2+3))+(4+5))");
        for leaves in 1..=17 {
            for ranks in 1..=leaves + 1 {
                let mut whole = Stack::new(leaves);
                for share in shares(&vec![1; leaves], ranks) {
                    let mut own = Stack::new(leaves);
                    for leaf in share {
                        let Ok(()) = own.push(Branch::leaf(leaf), leaf.to_string(), add);
                    }
                    for (branch, value) in own.into_branches() {
                        let branch = Branch::of_bytes(&branch.bytes());
                        let Ok(()) = whole.push(branch, value, add);
                    }
                }
                assert_eq!(whole.into_root().expect("all were put"), alone(leaves), "{leaves} leaves, {ranks} ranks");
            }
        }
    }

    #[test]
    fn what_is_not_whole_is_no_sum() {
        let mut stack = Stack::new(4);
        for leaf in [0, 1, 3] {
            let Ok(()) = stack.push(Branch::leaf(leaf), leaf.to_string(), add);
        }
        assert!(stack.into_root().is_none());
        assert!(Stack::<String>::new(2).into_root().is_none());
    }

    #[test]
    fn shares_follow_the_costs_and_lose_nothing() {
        assert_eq!(shares(&[1; 8], 2), [0..4, 4..8]);
        assert_eq!(shares(&[1; 8], 3), [0..3, 3..5, 5..8]);
        assert_eq!(shares(&[1, 1, 1, 9], 2), [0..3, 3..4]);
        assert_eq!(shares(&[9, 1, 1, 1], 2), [0..1, 1..4]);
        assert_eq!(shares(&[5], 3), [0..0, 0..1, 1..1]);
        assert_eq!(shares(&[0, 0], 2), [0..2, 2..2]);
        assert_eq!(shares(&[], 2), [0..0, 0..0]);
        for ranks in 1..6 {
            let costs: Vec<u64> = (0..16).map(|at| 100 + at * at).collect();
            let of: Vec<u64> = shares(&costs, ranks).into_iter().map(|share| costs[share].iter().sum()).collect();
            let (most, all) = (of.iter().max().copied().unwrap_or(0), costs.iter().sum::<u64>());
            assert!(most * ranks as u64 <= all + ranks as u64 * 325, "{of:?}");
        }
    }
}
