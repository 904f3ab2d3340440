//! Attention over packed tokens: by a kernel of our own where it computes, else gathered.
//!
//! A row is a prefix that sequences share, or what follows it, or a sequence by itself. Its queries are its own tokens, its
//! keys those of the prefix and its own, and a query sees the keys up to itself.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};

use super::gathered::Gathered;
use super::kernels::{self, Kernel, Tiles};
use crate::lm::Config;
use crate::lm::layout::Layout;

/// The sizes of attention.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    /// H.
    pub(super) queries: usize,
    /// K.
    pub(super) keys: usize,
    /// E.
    pub(super) width: usize,
}

impl Heads {
    pub(super) fn of(config: &Config) -> Self {
        Self { queries: config.num_attention_heads, keys: config.num_key_value_heads, width: config.head_dim }
    }
}

/// Rows of queries and keys, as tokens.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) queries: Range<usize>,
    /// The prefix, whose tokens come before the queries; may be empty.
    pub(super) prefix: Range<usize>,
}

impl Row {
    pub(super) fn keys(&self) -> usize {
        self.prefix.len() + self.queries.len()
    }

    /// The tokens that are keys.
    pub(super) fn tokens(&self) -> impl Iterator<Item = usize> {
        self.prefix.clone().chain(self.queries.clone())
    }
}

/// The rows of a layout; every token is a query of one.
fn rows(layout: &Layout) -> Vec<Row> {
    let mut rows = Vec::new();
    for group in &layout.groups {
        if !group.prefix.is_empty() {
            rows.push(Row { queries: group.prefix.clone(), prefix: 0..0 });
        }
        let branches = group.branches.iter().filter(|branch| !branch.is_empty());
        rows.extend(branches.map(|branch| Row { queries: branch.clone(), prefix: group.prefix.clone() }));
    }
    rows
}

/// Where the queries and keys of all tokens of a pass are.
#[derive(Debug)]
pub(super) enum Attention {
    Tiles(Tiles),
    Gathered(Gathered),
}

/// What [`Attention::forward`] gives.
pub(super) struct Mixed {
    /// (N, H·E)
    pub(super) mixed: Tensor,
    /// What the kernel's way back needs beside it.
    sums: Option<Tensor>,
}

impl Attention {
    /// `windows` are those of the model's layers.
    pub(super) fn new(
        layout: &Layout,
        heads: Heads,
        windows: &[Option<usize>],
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let rows = rows(layout);
        if [Kernel::Attention, Kernel::AttentionBack].iter().all(|kernel| kernel.computes(device, dtype))
            && let Some(tiles) = Tiles::new(&rows, heads, dtype, device)?
        {
            return Ok(Self::Tiles(tiles));
        }
        Ok(Self::Gathered(Gathered::new(rows, heads, windows, dtype, device)?))
    }

    /// What each token takes from those that it sees: queries (N, H, E), scaled, keys and values (N, K, E) to (N, H·E).
    pub(super) fn forward(&self, inputs: [&Tensor; 3], window: Option<usize>) -> Result<Mixed> {
        match self {
            Self::Tiles(tiles) => {
                let (mixed, sums) = kernels::attention(tiles, inputs, window)?;
                Ok(Mixed { mixed, sums: Some(sums) })
            }
            Self::Gathered(gathered) => Ok(Mixed { mixed: gathered.forward(inputs, window)?, sums: None }),
        }
    }

    /// The gradients to queries, keys and values, from what [`Attention::forward`] was given and gave, and the gradient to
    /// that (N, H·E).
    pub(super) fn backward(
        &self,
        inputs: [&Tensor; 3],
        mixed: &Mixed,
        gradient: &Tensor,
        window: Option<usize>,
    ) -> Result<[Tensor; 3]> {
        match (self, &mixed.sums) {
            (Self::Tiles(tiles), Some(sums)) => {
                kernels::attention_back(tiles, inputs, (&mixed.mixed, sums), gradient, window)
            }
            (Self::Gathered(gathered), _) => gathered.backward(inputs, &mixed.mixed, gradient, window),
            (Self::Tiles(_), None) => candle_core::bail!("the result is of another attention"),
        }
    }
}
