//! Experts: each token goes through those feed-forward layers that its router chose, token after token of one expert
//! together, so that each expert is one product.
//!
//! What an expert gives for a token does not depend on the other tokens, and a token's sum runs over its experts in their
//! order: results are the same to the bit in every batch.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::forward::{BLOCK, Context, Share, feed_forward, swiglu};
use super::linear::{Backwards, Forwards};
use super::matmul::Panels;
use super::packed::view;
use super::pool::{Buffer, Pool};
use super::simd;
use crate::lm::LmError;
use crate::lm::decoder::Dense;
use crate::lm::plain::largest;

/// A feed-forward layer's weights for the forward pass.
#[derive(Debug)]
pub(super) struct PackedDense {
    pub(super) gate_up: Forwards, // D to 2F
    pub(super) down: Forwards,    // F to D
}

impl PackedDense {
    pub(super) fn new(pool: &Arc<Pool>, dense: &Dense) -> Result<Self, LmError> {
        Ok(Self {
            gate_up: Forwards::new(pool, &[&dense.gate, &dense.up])?,
            down: Forwards::new(pool, &[&dense.down])?,
        })
    }
}

/// A layer's experts for the forward pass.
#[derive(Debug)]
pub(super) struct PackedExperts {
    pub(super) router: Panels, // (D, X)
    pub(super) experts: Vec<PackedDense>,
    pub(super) per_token: usize,
    pub(super) normalise: bool,
}

/// An expert, and some of its uses.
type Task = (usize, Range<usize>);

/// Which experts which tokens use. A use is one token's of one expert; uses lie expert by expert, those of one expert in
/// the order of their tokens.
pub(super) struct Routing {
    /// The router's weight of each expert for each token: (N, X).
    probabilities: Buffer,
    /// The token of each use: (N·k).
    tokens: Vec<usize>,
    /// The weight of each use: (N·k).
    weights: Vec<f32>,
    /// The sum of the probabilities that it was divided by: (N·k).
    divisors: Vec<f32>,
    /// Where the uses of each expert begin: (X + 1).
    starts: Vec<usize>,
    /// The uses of each token, in the order of their experts: (N, k).
    by_token: Vec<usize>,
}

impl Routing {
    /// Chooses for rows of the normalised residual stream: (N, D).
    pub(super) fn new(context: &Context, experts: &PackedExperts, normed: &[f32]) -> Self {
        let (width, all, k) = (context.width, experts.experts.len(), experts.per_token);
        let n = normed.len() / width;
        let mut probabilities = context.pool.take(n * all);
        let share = Share::of(n);
        let rows = share.rows(n);
        let blocks = normed.par_chunks(rows * width).zip(probabilities.par_chunks_mut(rows * all));
        blocks.for_each(|(normed, probabilities)| {
            share.multiply(&experts.router, normed, probabilities, false);
            probabilities.chunks_exact_mut(all).for_each(|row| simd::softmax(row, 1.0));
        });
        let mut chosen: Vec<usize> = Vec::with_capacity(n * k);
        for row in probabilities.chunks_exact(all) {
            let mut places = largest(row, k);
            places.sort_unstable();
            chosen.extend(places);
        }
        let mut starts = vec![0; all + 1];
        for expert in &chosen {
            starts[expert + 1] += 1;
        }
        for expert in 0..all {
            starts[expert + 1] += starts[expert];
        }
        let mut next = starts.clone();
        let mut routing = Self {
            probabilities,
            tokens: vec![0; n * k],
            weights: vec![0.0; n * k],
            divisors: vec![1.0; n * k],
            starts,
            by_token: Vec::with_capacity(n * k),
        };
        for (token, chosen) in chosen.chunks_exact(k).enumerate() {
            let row = &routing.probabilities[token * all..][..all];
            let total = if experts.normalise { chosen.iter().map(|expert| row[*expert]).sum() } else { 1.0 };
            for expert in chosen {
                let place = next[*expert];
                next[*expert] += 1;
                routing.tokens[place] = token;
                routing.weights[place] = row[*expert] / total;
                routing.divisors[place] = total;
                routing.by_token.push(place);
            }
        }
        routing
    }

    /// Uses of one expert, a few at a time.
    fn tasks(&self) -> Vec<Task> {
        let mut tasks = Vec::new();
        for (expert, ends) in self.starts.windows(2).enumerate() {
            let cut = |start: usize| (expert, start..(start + BLOCK).min(ends[1]));
            tasks.extend((ends[0]..ends[1]).step_by(BLOCK).map(cut));
        }
        tasks
    }

    /// The rows of the tokens of some uses.
    fn gather(&self, pool: &Arc<Pool>, rows: &[f32], width: usize, uses: Range<usize>) -> Buffer {
        super::forward::gather(pool, rows, width, &self.tokens[uses])
    }

    /// Adds the rows of each token's uses to the token's row, each times its factor: (N·k, D) to (N, D).
    fn add_up(&self, uses: &[f32], factors: Option<&[f32]>, width: usize, out: &mut [f32]) {
        let k = self.by_token.len() / (out.len() / width).max(1);
        let tokens = out.par_chunks_mut(BLOCK * width).zip(self.by_token.par_chunks(BLOCK * k));
        tokens.for_each(|(out, mine)| {
            for (out, mine) in out.chunks_exact_mut(width).zip(mine.chunks_exact(k)) {
                for place in mine {
                    let row = &uses[place * width..][..width];
                    match factors {
                        Some(factors) => simd::add_times(out, row, factors[*place]),
                        None => simd::add(out, row),
                    }
                }
            }
        });
    }
}

/// Cuts rows at the borders of tasks.
fn cut<'a>(tasks: &[Task], mut rows: &'a mut [f32], width: usize) -> Vec<&'a mut [f32]> {
    let mut parts = Vec::with_capacity(tasks.len());
    for (_, uses) in tasks {
        let (part, rest) = rows.split_at_mut(uses.len() * width);
        parts.push(part);
        rows = rest;
    }
    parts
}

/// Adds what the experts give for rows of the normalised residual stream `normed` (N, D) to `out` (N, D).
///
/// Gate and up go to `gate_up` (N·k, 2F), use by use, if they are kept.
pub(super) fn forward(
    context: &Context,
    experts: &PackedExperts,
    normed: &[f32],
    gate_up: Option<&mut [f32]>,
    out: &mut [f32],
) {
    let (pool, width, both) = (&context.pool, context.width, 2 * context.inner);
    let routing = Routing::new(context, experts, normed);
    let tasks = routing.tasks();
    let mut results = pool.take(routing.tokens.len() * width);
    let few = tasks.len() < rayon::current_num_threads();
    let share = if few { Share::Columns } else { Share::Rows(BLOCK) };
    let work = |(expert, uses): &Task, result: &mut [f32], gate_up: &mut [f32]| {
        let x = routing.gather(pool, normed, width, uses.clone());
        feed_forward(context, share, &experts.experts[*expert], &x, gate_up, result, false);
    };
    let parts = cut(&tasks, &mut results, width);
    let kept: Vec<Option<&mut [f32]>> = match gate_up {
        Some(gate_up) => cut(&tasks, gate_up, both).into_iter().map(Some).collect(),
        None => tasks.iter().map(|_| None).collect(),
    };
    let each = |((task, result), kept): ((&Task, &mut [f32]), Option<&mut [f32]>)| match kept {
        Some(kept) => work(task, result, kept),
        None => work(task, result, &mut pool.take(task.1.len() * both)),
    };
    if few {
        tasks.iter().zip(parts).zip(kept).for_each(each);
    } else {
        tasks.par_iter().zip(parts).zip(kept).for_each(each);
    }
    routing.add_up(&results, Some(&routing.weights), width, out);
}

/// What the gradient of a layer's experts is, but for the sums over tokens.
pub(super) struct Gradient {
    pub(super) routing: Routing,
    /// To the input, but for what goes through the router: (N, D).
    pub(super) to_normed: Buffer,
    /// To the router's logits: (N, X).
    pub(super) to_logits: Buffer,
    /// To the results of the experts, use by use: (N·k, D).
    pub(super) to_results: Buffer,
    /// silu(gate) · up: (N·k, F).
    pub(super) product: Buffer,
    /// To gate and up: (N·k, 2F).
    pub(super) to_gate_up: Buffer,
}

impl Gradient {
    /// From the gradient `dx` (N, D) to what the experts gave, with what the forward pass kept.
    pub(super) fn new(
        context: &Context,
        packed: &PackedExperts,
        experts: &[Dense],
        (normed, gate_up, dx): (&[f32], &[f32], &[f32]),
    ) -> Result<Self, LmError> {
        let (pool, width, inner) = (&context.pool, context.width, context.inner);
        let routing = Routing::new(context, packed, normed);
        let uses = routing.tokens.len();
        let mut to_results = pool.take(uses * width);
        let mut product = pool.take(uses * inner);
        let mut to_gate_up = pool.take(uses * 2 * inner);
        let mut to_inputs = pool.take(uses * width);
        let mut to_weights = vec![0.0; uses];
        // Expert by expert, so that the panels of only one are in memory.
        for (expert, dense) in experts.iter().enumerate() {
            let all = routing.uses(expert);
            if all.is_empty() {
                continue;
            }
            let down = Backwards::new(pool, &[&dense.down])?;
            let gate_up_back = Backwards::new(pool, &[&dense.gate, &dense.up])?;
            let down_bias = dense.down.bias.as_ref().map(view).transpose()?.map(|bias| bias.to_vec());
            let range = |width: usize| all.start * width..all.end * width;
            to_results[range(width)]
                .par_chunks_mut(BLOCK * width)
                .zip(product[range(inner)].par_chunks_mut(BLOCK * inner))
                .zip(to_gate_up[range(2 * inner)].par_chunks_mut(BLOCK * 2 * inner))
                .zip(to_inputs[range(width)].par_chunks_mut(BLOCK * width))
                .zip(to_weights[all.clone()].par_chunks_mut(BLOCK))
                .enumerate()
                .for_each(|(block, ((((to_results, product), to_gate_up), to_inputs), to_weights))| {
                    let first = all.start + block * BLOCK;
                    let mine = first..first + to_weights.len();
                    to_results.copy_from_slice(&routing.gather(pool, dx, width, mine.clone()));
                    // Not yet times the weight: so it also gives the gradient to the weight.
                    let saved = &gate_up[first * 2 * inner..][..mine.len() * 2 * inner];
                    down.apply(to_results, product, || swiglu(pool, saved, inner));
                    let mut unweighted = pool.take(inner);
                    let uses = mine.clone();
                    for (row, place) in mine.enumerate() {
                        let weight = routing.weights[place];
                        let saved = &gate_up[place * 2 * inner..][..2 * inner];
                        let (gate, up) = saved.split_at(inner);
                        let product = &mut product[row * inner..][..inner];
                        let to_both = &mut to_gate_up[row * 2 * inner..][..2 * inner];
                        let (to_gate, to_up) = to_both.split_at_mut(inner);
                        let to_result = &mut to_results[row * width..][..width];
                        unweighted.copy_from_slice(product);
                        simd::swiglu_backward(gate, up, product, to_gate, to_up);
                        to_weights[row] = simd::dot(product, &unweighted);
                        if let Some(bias) = &down_bias {
                            to_weights[row] += simd::dot(to_result, bias);
                        }
                        simd::scale(to_both, weight);
                        simd::scale(to_result, weight);
                    }
                    gate_up_back.apply(to_gate_up, to_inputs, || routing.gather(pool, normed, width, uses));
                });
        }
        let mut to_normed = pool.zeros(normed.len());
        routing.add_up(&to_inputs, None, width, &mut to_normed);
        let to_logits = routing.backward(pool, packed, &to_weights);
        Ok(Self { routing, to_normed, to_logits, to_results, product, to_gate_up })
    }
}

impl Routing {
    /// From the gradient to the weights of uses to that to the router's logits: (N, X).
    fn backward(&self, pool: &Arc<Pool>, experts: &PackedExperts, to_weights: &[f32]) -> Buffer {
        let (all, k) = (experts.experts.len(), experts.per_token);
        let mut to_logits = pool.zeros(self.probabilities.len());
        let expert_of = |place: usize| self.starts.partition_point(|start| *start <= place) - 1;
        let rows = to_logits.chunks_exact_mut(all).zip(self.probabilities.chunks_exact(all));
        for ((to, probabilities), uses) in rows.zip(self.by_token.chunks_exact(k)) {
            // The sum of the weights stays 1 where they are normalised.
            let along: f32 = if experts.normalise {
                uses.iter().map(|place| to_weights[*place] * self.weights[*place]).sum()
            } else {
                0.0
            };
            for place in uses {
                to[expert_of(*place)] = (to_weights[*place] - along) / self.divisors[*place];
            }
            let along = simd::dot(to, probabilities);
            simd::softmax_backward(probabilities, to, along, 1.0);
        }
        to_logits
    }

    /// The uses of one expert.
    pub(super) fn uses(&self, expert: usize) -> Range<usize> {
        self.starts[expert]..self.starts[expert + 1]
    }

    /// What an expert was applied to: (M, D).
    pub(super) fn inputs(&self, pool: &Arc<Pool>, normed: &[f32], width: usize, expert: usize) -> Buffer {
        self.gather(pool, normed, width, self.uses(expert))
    }
}
