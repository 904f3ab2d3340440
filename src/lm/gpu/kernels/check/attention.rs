//! Attention and what picks tokens, beside plain operations.

use candle_core::{DType, Device, Result, Tensor};

use super::super::super::attention::{Heads, Row};
use super::super::super::gathered::Gathered;
use super::super::{self as kernels, NONE, Slots, Tiles};
use super::Inputs;

/// What kernels are given, and what they should give.
type Pairs = Vec<(Tensor, Tensor)>;

/// A shape of attention: heads, a window, and tokens of prefixes, each with those of the rows that follow it.
type Shape = (Heads, Option<usize>, &'static [(usize, &'static [usize])]);

const fn heads(queries: usize, keys: usize, width: usize) -> Heads {
    Heads { queries, keys, width }
}

/// Odd lengths, rows longer than tiles and of one token, windows, shared prefixes, heads that share keys, and widths of both
/// kernels and between.
const SHAPES: [Shape; 6] = [
    (heads(4, 2, 64), None, &[(0, &[70])]),
    (heads(4, 4, 16), Some(7), &[(9, &[3, 1, 20]), (0, &[33]), (0, &[1])]),
    (heads(7, 1, 40), None, &[(37, &[5, 64, 13]), (0, &[20])]),
    (heads(6, 2, 64), Some(30), &[(100, &[5, 64, 70])]),
    (heads(2, 1, 128), None, &[(65, &[30, 10]), (0, &[129])]),
    (heads(2, 2, 96), Some(50), &[(65, &[30, 10]), (0, &[129])]),
];

/// The rows of a shape, and tokens in all.
fn rows(groups: &[(usize, &[usize])]) -> (Vec<Row>, usize) {
    let (mut rows, mut tokens) = (Vec::new(), 0);
    for (prefix, branches) in groups {
        let prefix = tokens..tokens + prefix;
        tokens = prefix.end;
        if !prefix.is_empty() {
            rows.push(Row { queries: prefix.clone(), prefix: 0..0 });
        }
        for branch in *branches {
            rows.push(Row { queries: tokens..tokens + branch, prefix: prefix.clone() });
            tokens += branch;
        }
    }
    (rows, tokens)
}

/// Queries whose scores have some spread, but are not of one key alone.
fn queries(inputs: &mut Inputs<'_>, shape: &[usize; 3]) -> Result<(Tensor, Tensor)> {
    let (there, _) = inputs.next(shape)?;
    let there = (there * (2.0 / (shape[2] as f64).sqrt()))?;
    let here = there.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    Ok((there, here))
}

/// Attention over packed tokens, and the way back if that is wanted.
pub(super) fn attention(inputs: &mut Inputs<'_>, back: bool) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (heads, window, groups) in &SHAPES {
        let (rows, tokens) = rows(groups);
        let Some(tiles) = Tiles::new(&rows, *heads, inputs.dtype, inputs.device)? else {
            candle_core::bail!("no kernel for heads of {}", heads.width)
        };
        let of_heads = |heads: usize, width: usize| [tokens, heads, width];
        let (query, query_here) = queries(inputs, &of_heads(heads.queries, heads.width))?;
        let (key, key_here) = inputs.next(&of_heads(heads.keys, heads.width))?;
        let (value, value_here) = inputs.next(&of_heads(heads.keys, heads.width))?;
        let plain = Gathered::new(rows, *heads, &[*window], DType::F32, &Device::Cpu)?;
        let (mixed, sums) = kernels::attention(&tiles, [&query, &key, &value], *window)?;
        let here = [&query_here, &key_here, &value_here];
        let mixed_here = plain.forward(here, *window)?;
        if !back {
            pairs.push((mixed, mixed_here));
            continue;
        }
        let (gradient, gradient_here) = inputs.next(&[tokens, heads.queries * heads.width])?;
        let given = (&mixed, &sums);
        let there = kernels::attention_back(&tiles, [&query, &key, &value], given, &gradient, *window)?;
        pairs.extend(there.into_iter().zip(plain.backward(here, &mixed_here, &gradient_here, *window)?));
    }
    Ok(pairs)
}

/// Slots: heads, a window, their capacity, and tokens in each.
type Full = (Heads, Option<usize>, usize, &'static [usize]);

/// As [`SHAPES`]; with few rows, keys are shared out to several blocks.
const SLOTS: [Full; 8] = [
    (heads(4, 4, 64), None, 128, &[0, 5, 100, 33]),
    (heads(4, 2, 16), Some(20), 128, &[0, 5, 127, 33]),
    (heads(6, 2, 40), None, 320, &[1, 64, 319]),
    (heads(7, 1, 64), None, 64, &[63, 2]),
    (heads(12, 1, 64), None, 512, &[63, 400]),
    (heads(2, 2, 128), Some(50), 320, &[300, 90]),
    (heads(2, 1, 96), None, 320, &[300, 90]),
    (heads(8, 1, 128), None, 320, &[300, 0]),
];

/// Attention of one new token of each row.
pub(super) fn decode(inputs: &mut Inputs<'_>) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (heads, window, capacity, lengths) in &SLOTS {
        let Heads { queries, keys: kv_heads, width } = *heads;
        let rows = lengths.len();
        let (query, query_here) = self::queries(inputs, &[rows, queries, width])?;
        let (key, key_here) = inputs.next(&[rows, kv_heads, width])?;
        let (value, value_here) = inputs.next(&[rows, kv_heads, width])?;
        // One slot is not in use.
        let slots = [rows + 1, kv_heads, *capacity, width];
        let (keys, keys_here) = inputs.next(&slots)?;
        let (values, values_here) = inputs.next(&slots)?;
        let of_rows: Vec<u32> = lengths.iter().map(|length| *length as u32).collect();
        let of_rows = Tensor::new(of_rows, inputs.device)?;
        let there = Slots { keys: &keys, values: &values, lengths: &of_rows };
        let mixed = kernels::decode([&query, &key, &value], there, *window)?;
        let mut mixed_here = Vec::with_capacity(rows);
        for (row, length) in lengths.iter().enumerate() {
            for (cache, new) in [(&keys_here, &key_here), (&values_here, &value_here)] {
                let new = new.narrow(0, row, 1)?.unsqueeze(2)?.contiguous()?;
                cache.narrow(0, row, 1)?.slice_set(&new, 2, *length)?;
            }
            let first = (length + 1).saturating_sub(window.unwrap_or(usize::MAX));
            let seen = |cache: &Tensor| cache.get(row)?.narrow(1, first, length + 1 - first)?.contiguous();
            let query = query_here.get(row)?.reshape((kv_heads, queries / kv_heads, width))?;
            let scores = query.matmul(&seen(&keys_here)?.t()?)?;
            let weights = super::super::super::ops::softmax(&scores)?;
            mixed_here.push(weights.matmul(&seen(&values_here)?)?.reshape((1, queries * width))?);
        }
        pairs.extend([(mixed, Tensor::cat(&mixed_here, 0)?), (keys, keys_here), (values, values_here)]);
    }
    Ok(pairs)
}

/// The next tokens: the likeliest of several, chosen ones under random numbers, and none from rows that are broken.
/// There is no nearly with tokens: errs if one is another.
pub(super) fn pick(inputs: &mut Inputs<'_>) -> Result<Pairs> {
    const INVERSE: f32 = 1.25;
    for count in [61usize, 512, 1000] {
        let rows = 6;
        let (_, logits) = inputs.next(&[rows, count])?;
        let mut logits: Vec<Vec<f32>> = logits.to_vec2()?;
        // Of equal ones the first; and rows with what is no number, with infinity, and with nothing that can be.
        logits[1][count / 2] = 9.0;
        logits[1][count - 1] = 9.0;
        logits[3][count - 2] = f32::NAN;
        logits[4][7] = f32::INFINITY;
        logits[5].fill(f32::NEG_INFINITY);
        let there = Tensor::new(logits.concat(), &Device::Cpu)?.reshape((rows, count))?;
        let there = there.to_dtype(inputs.dtype)?.to_device(inputs.device)?;
        let order: Vec<u32> = vec![2, 0, 1, 1, 5, 4, 3, 0];
        let mut numbers = vec![0f64; order.len()];
        let (mut likeliest, mut chosen) = (Vec::new(), Vec::new());
        for (place, row) in order.iter().enumerate() {
            let row = &logits[*row as usize];
            let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            if row.iter().any(|logit| logit.is_nan()) || !top.is_finite() {
                likeliest.push(NONE);
                chosen.push(NONE);
                continue;
            }
            likeliest.push(row.iter().position(|logit| *logit == top).unwrap_or(0) as u32);
            let weights: Vec<f64> = row.iter().map(|logit| f64::from((logit - top) * INVERSE).exp()).collect();
            // The middle of what a token has.
            let token = (place * 37 + 11) % count;
            let before: f64 = weights[..token].iter().sum();
            numbers[place] = (before + weights[token] / 2.0) / weights.iter().sum::<f64>();
            chosen.push(token as u32);
        }
        let rows = Tensor::new(order, inputs.device)?;
        let numbers = Tensor::new(numbers, inputs.device)?;
        for (inverse, expected) in [(0.0, likeliest), (INVERSE, chosen)] {
            let tokens = rows.zeros_like()?;
            kernels::pick(&there, &rows, &numbers, inverse, &tokens)?;
            let found = tokens.to_vec1::<u32>()?;
            if found != expected {
                candle_core::bail!("it picks {found:?}, not {expected:?}");
            }
        }
    }
    Ok(Pairs::new())
}
