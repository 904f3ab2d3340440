//! A step in parts: its examples in runs that are shared out to ranks, and what each part brings, added in an order that
//! does not depend on how many ranks there are.
//!
//! On a CPU a step has [`PARTS`] parts (or as many as examples), whoever computes them, and their gradients are the leaves of
//! a tree ([`Branch`]): one rank or sixteen give the same bits. Without ranks a step's passes add
//! up in one place instead, so that it is equal to that within rounding only. On other devices, where rounding depends on
//! more than that, there are as many parts as ranks; the gradients stay on the devices ([`DeviceSum`]), or come through the
//! hosts.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{DType, Device, Tensor, Var};
use rayon::prelude::*;

use super::super::cpu::Keep;
use super::super::loss::Contrast;
use super::super::nccl::Nccl;
use super::super::{LmError, Model};
use super::batch::Size;
use super::device_sum::DeviceSum;
use super::gather::Gathered;
use super::objective::{Preferences, Totals};
use super::{Example, Trainer};
use crate::collective::{Branch, MOST_RANKS, Stack, Team, TeamError, shares};

/// Parts of a step on a CPU, at most.
pub(super) const PARTS: usize = MOST_RANKS;
/// Numbers that one task adds.
const CHUNK: usize = 1 << 15;

/// Whose steps are in parts.
#[derive(Debug)]
pub(super) struct Together {
    /// What adds up gradients where they are; `None`: they go through the hosts.
    device_sum: Option<DeviceSum>,
    /// How gradients come together, in words, where there is more than one way.
    way: Option<String>,
    /// `None`: this process computes all of them.
    team: Option<Team>,
}

/// What a step is of.
pub(super) struct Work<'a> {
    pub(super) policy: &'a Model,
    pub(super) indices: &'a [usize],
    pub(super) examples: &'a [&'a Example],
    pub(super) totals: Totals,
    pub(super) keep: Keep,
}

/// What a step's passes bring, and the gradient of its loss for each parameter.
pub(super) type Brought = (Gathered, BTreeMap<String, Tensor>);

impl Together {
    pub(super) fn new(team: Option<Team>) -> Self {
        Self { device_sum: None, way: None, team }
    }

    /// Has gradients added up on the ranks' devices by NCCL, if every rank has it and they come together; `device` is this
    /// rank's. Else they go through the hosts, and [`Together::way`] says why.
    pub(super) fn meet_on_devices(&mut self, nccl: Result<Nccl, String>, device: &Device) -> Result<(), LmError> {
        let Some(team) = &mut self.team else { return Ok(()) };
        let way = match DeviceSum::meet(team, nccl, device)? {
            Ok(sum) => {
                let way = format!("gradients are added up on the GPUs, by NCCL {}", sum.version());
                self.device_sum = Some(sum);
                way
            }
            Err(why) => format!("gradients go through the memory of the hosts, not by NCCL: {why}"),
        };
        if team.rank() == 0 {
            tracing::info!("{way}");
        }
        self.way = Some(way);
        Ok(())
    }

    /// How gradients come together, where there is more than one way.
    pub(super) fn way(&self) -> Option<&str> {
        self.way.as_deref()
    }

    pub(super) fn team(&mut self) -> Option<&mut Team> {
        self.team.as_mut()
    }

    /// Bytes that this rank has sent.
    pub(super) fn sent(&self) -> u64 {
        self.team.as_ref().map_or(0, Team::sent)
    }

    /// Number of this rank.
    pub(super) fn rank(&self) -> usize {
        self.team.as_ref().map_or(0, Team::rank)
    }

    fn ranks(&self) -> usize {
        self.team.as_ref().map_or(1, Team::ranks)
    }

    /// What rank 0 says: a number, which the others take instead of theirs.
    pub(super) fn number_of_first(&mut self, number: f64) -> Result<f64, LmError> {
        let Some(team) = &mut self.team else { return Ok(number) };
        let said = team.said_by_first(number.to_le_bytes().to_vec())?;
        Ok(f64::from_le_bytes(said.try_into().map_err(|_| out_of_step("what rank 0 says is no number"))?))
    }

    /// Sees to it that all ranks are about to do the same; `what` says what that is.
    pub(super) fn agree(&mut self, what: &str) -> Result<(), LmError> {
        let Some(team) = &mut self.team else { return Ok(()) };
        let all = team.gather(what.as_bytes().to_vec())?;
        let mine = all[team.rank()].clone();
        let Some(other) = all.iter().position(|theirs| *theirs != mine) else { return Ok(()) };
        let what = format!(
            "rank {other} is at [{}], rank {} at [{}]",
            String::from_utf8_lossy(&all[other]),
            team.rank(),
            String::from_utf8_lossy(&mine)
        );
        Err(TeamError::Mismatch { what }.into())
    }

    /// Parts from the other ranks, once all have come as far.
    pub(super) fn part(mut self) -> Result<(), LmError> {
        self.agree("the end")?;
        if let Some(team) = self.team {
            team.leave();
        }
        Ok(())
    }

    /// What the passes of a step bring, and the gradient of its loss for each parameter; `None` if the loss is not finite.
    pub(super) fn pass(&mut self, trainer: &Trainer, work: &Work<'_>) -> Result<Option<Brought>, LmError> {
        let parameters = &trainer.policy.parameters;
        let count = work.examples.len();
        let whole = self.device_sum.is_none() && trainer.policy.model.device().is_cpu();
        let parts = if whole { PARTS } else { self.ranks() }.min(count);
        let part = |part: usize| part * count / parts..(part + 1) * count / parts;
        let cost = |range: Range<usize>| -> u64 {
            let sequences = work.examples[range].iter().flat_map(|example| &example.sequences);
            Size::of(sequences).tokens as u64
        };
        let costs: Vec<u64> = (0..parts).map(|index| cost(part(index))).collect();
        let own = shares(&costs, self.ranks()).swap_remove(self.rank());
        if let (Some(sum), Some(team)) = (&self.device_sum, &mut self.team) {
            // There is one gradient on a device, and it is of all that this rank has.
            let own = (!own.is_empty()).then(|| part(own.start).start..part(own.end - 1).end);
            return pass_on_devices(sum, team, trainer, work, own);
        }
        let mut stack = Stack::new(parts);
        let mut told = Vec::new();
        for index in own {
            if let Some(team) = &mut self.team {
                team.check()?;
            }
            let range = part(index);
            let mut gathered = trainer.passes(work, range)?;
            told.extend(bytes(gathered.as_ref()));
            let Some(gathered) = &mut gathered else { continue };
            let gradients = std::mem::take(&mut gathered.gradients).finish(parameters)?;
            stack.push(Branch::leaf(index), flat(gradients)?, |sum, other| add(sum, other))?;
        }
        let told = match &mut self.team {
            Some(team) => team.gather(told)?.concat(),
            None => told,
        };
        let Some(gathered) = heard(&told)? else { return Ok(None) };
        let length = parameters.values().map(|parameter| parameter.elem_count()).sum();
        let sum = match &mut self.team {
            Some(team) => team.sum(parts, length, stack.into_branches())?,
            None => stack.into_root().ok_or_else(|| out_of_step("parts that make no whole"))?,
        };
        Ok(Some((gathered, shaped(&sum, parameters)?)))
    }
}

/// As [`Together::pass`], with gradients that are added up where they are; `own` are this rank's examples, if it has any.
fn pass_on_devices(
    sum: &DeviceSum,
    team: &mut Team,
    trainer: &Trainer,
    work: &Work<'_>,
    own: Option<Range<usize>>,
) -> Result<Option<Brought>, LmError> {
    let parameters = &trainer.policy.parameters;
    let (mut told, mut gradients) = (Vec::new(), BTreeMap::new());
    team.check()?;
    if let Some(own) = own {
        let gathered = trainer.passes(work, own)?;
        told = bytes(gathered.as_ref());
        if let Some(gathered) = gathered {
            gradients = gathered.gradients.finish(parameters)?;
        }
    }
    // Those whose loss is not finite have no gradient to add, so that no one may wait for it.
    let Some(gathered) = heard(&team.gather(told)?.concat())? else { return Ok(None) };
    Ok(Some((gathered, sum.of(team, parameters, gradients)?)))
}

/// All gradients as one line of numbers, in the order of their names.
fn flat(gradients: BTreeMap<String, Tensor>) -> Result<Vec<f32>, LmError> {
    let mut all = Vec::with_capacity(gradients.values().map(Tensor::elem_count).sum());
    for gradient in gradients.into_values() {
        all.extend(gradient.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok(all)
}

/// A tensor for each parameter from one line of numbers.
fn shaped(numbers: &[f32], parameters: &BTreeMap<String, Var>) -> Result<BTreeMap<String, Tensor>, LmError> {
    let mut gradients = BTreeMap::new();
    let mut rest = numbers;
    for (name, parameter) in parameters {
        let (own, after) = rest.split_at(parameter.elem_count());
        rest = after;
        gradients.insert(name.clone(), Tensor::from_slice(own, parameter.shape(), parameter.device())?);
    }
    Ok(gradients)
}

fn add(sum: &mut [f32], other: Vec<f32>) -> Result<(), LmError> {
    let chunks = sum.par_chunks_mut(CHUNK).zip(other.par_chunks(CHUNK));
    chunks.for_each(|(sum, other)| sum.iter_mut().zip(other).for_each(|(sum, other)| *sum += other));
    Ok(())
}

fn out_of_step(what: &str) -> LmError {
    TeamError::OutOfStep { what: what.to_owned() }.into()
}

/// Numbers that a part says besides those of its matrices.
const PLAIN: usize = 10;
/// Numbers that a matrix has.
const FIGURES: usize = 6;

/// What a part brought besides its gradient: how many matrices it has, sums, and the figures of each matrix. A part whose
/// loss is not finite has a NaN for its number of matrices.
fn bytes(gathered: Option<&Gathered>) -> Vec<u8> {
    let mut numbers = vec![f64::NAN; PLAIN];
    if let Some(gathered) = gathered {
        let Preferences { count, chosen, rejected, right } = gathered.preferences;
        numbers = vec![
            gathered.figures.len() as f64,
            gathered.objective,
            gathered.diagonal,
            gathered.off_diagonal,
            gathered.kl,
            gathered.kl_diagonal,
            count as f64,
            chosen,
            rejected,
            right,
        ];
        for figures in &gathered.figures {
            let Contrast { loss_row, loss_column, bound, gap, accuracy_row, accuracy_column } = *figures;
            numbers.extend([loss_row, loss_column, bound, gap, accuracy_row, accuracy_column]);
        }
    }
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// What all parts brought, added in their order; `None` if the loss of one is not finite.
fn heard(bytes: &[u8]) -> Result<Option<Gathered>, LmError> {
    let numbers: Vec<f64> = bytes.as_chunks().0.iter().map(|number| f64::from_le_bytes(*number)).collect();
    let mut gathered = Gathered::default();
    let mut rest = numbers.as_slice();
    let mut finite = true;
    while !rest.is_empty() {
        let Some((plain, after)) = rest.split_first_chunk::<PLAIN>() else {
            return Err(out_of_step("what a part says is cut short"));
        };
        let [matrices, objective, diagonal, off_diagonal, kl, kl_diagonal, count, chosen, rejected, right] = *plain;
        rest = after;
        if matrices.is_nan() {
            finite = false;
            continue;
        }
        gathered.objective += objective;
        gathered.diagonal += diagonal;
        gathered.off_diagonal += off_diagonal;
        gathered.kl += kl;
        gathered.kl_diagonal += kl_diagonal;
        gathered.preferences.add(Preferences { count: count as usize, chosen, rejected, right });
        for _ in 0..matrices as usize {
            let Some((figures, after)) = rest.split_first_chunk::<FIGURES>() else {
                return Err(out_of_step("what a part says is cut short"));
            };
            let [loss_row, loss_column, bound, gap, accuracy_row, accuracy_column] = *figures;
            rest = after;
            gathered.figures.push(Contrast { loss_row, loss_column, bound, gap, accuracy_row, accuracy_column });
        }
    }
    Ok(finite.then_some(gathered))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(bound: f64) -> Contrast {
        let [loss_row, loss_column, gap, accuracy_row, accuracy_column] = [1.0, 2.0, 3.0, 0.5, 0.25];
        Contrast { loss_row, loss_column, bound, gap, accuracy_row, accuracy_column }
    }

    #[test]
    fn what_parts_say_is_heard_to_the_bit() {
        let part = |number: f64| Gathered {
            objective: 0.1 * number,
            figures: vec![matrix(number / 3.0); number as usize],
            kl: 1e-300,
            preferences: Preferences { count: 3, right: 0.5, ..Preferences::default() },
            ..Gathered::default()
        };
        let told = [part(1.0), part(0.0), part(2.0)].iter().flat_map(|part| bytes(Some(part))).collect::<Vec<_>>();
        let all = heard(&told).expect("whole").expect("finite");
        assert_eq!(all.objective.to_bits(), (0.1 + 0.0 + 0.2f64).to_bits());
        assert_eq!(all.figures, [matrix(1.0 / 3.0), matrix(2.0 / 3.0), matrix(2.0 / 3.0)]);
        assert_eq!((all.preferences.count, all.preferences.right, all.kl), (9, 1.5, 3e-300));
        assert!(heard(&[told.clone(), bytes(None)].concat()).expect("whole").is_none(), "one is not finite");
        assert!(heard(&told[..told.len() - 8]).is_err(), "cut short");
        assert!(heard(&[]).expect("nothing").is_some());
    }
}
