//! `run --budget`: what a run may come to at most, as it is typed. What it has come to is in `ledger`.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use super::Past;
use crate::amount;
use crate::diag::{Diagnostic, did_you_mean};
use crate::kinds::estimate::{Estimate, Place};
use crate::pipeline::Pipeline;

/// Something that a run uses up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Item {
    /// Hours by the clock.
    Hours,
    /// Hours of attempts on GPUs, one for each GPU.
    GpuHours,
    /// Hours of attempts on the CPU, one for each of their threads.
    CpuHours,
    /// Requests to endpoints, tries again included.
    Calls,
    /// Those of them that ask a judge.
    JudgeCalls,
    /// By the prices of endpoints.
    Dollars,
    /// Tokens that models read, write and are trained on.
    Tokens,
    /// Bytes that artifacts add to the cache.
    Disk,
}

const ITEMS: [(&str, Item); 8] = [
    ("hours", Item::Hours),
    ("gpu-hours", Item::GpuHours),
    ("cpu-hours", Item::CpuHours),
    ("calls", Item::Calls),
    ("judge-calls", Item::JudgeCalls),
    ("dollars", Item::Dollars),
    ("tokens", Item::Tokens),
    ("disk", Item::Disk),
];

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(ITEMS.iter().find(|(_, item)| item == self).map_or("", |(name, _)| name))
    }
}

impl Item {
    /// An amount of it, as people read it.
    pub fn told(self, amount: f64) -> String {
        match self {
            Self::Hours | Self::GpuHours | Self::CpuHours => format!("{amount:.3}"),
            Self::Dollars => format!("{amount:.2}"),
            Self::Disk => amount::bytes(amount as u64),
            Self::Calls | Self::JudgeCalls | Self::Tokens => format!("{amount:.0}"),
        }
    }
}

/// Bounds of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Budget {
    pub(super) bounds: BTreeMap<Item, f64>,
}

impl Budget {
    /// From `gpu-hours=4, judge-calls=1000, disk=200GB`. Errs with what is wrong and how it is written.
    pub fn parse(text: &str) -> Result<Self, Diagnostic> {
        let mut bounds = BTreeMap::new();
        let wrong = |what: String| Diagnostic::error("exec::bad-budget", what);
        let form = "write it as `--budget 'gpu-hours=4, judge-calls=1000, disk=200GB'`";
        let names = || ITEMS.iter().map(|(name, _)| *name);
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let Some((name, amount)) = part.split_once('=').map(|(name, amount)| (name.trim(), amount.trim())) else {
                return Err(wrong(format!("`{part}` in the budget has no amount")).help(form));
            };
            let Some((_, item)) = ITEMS.iter().find(|(known, _)| *known == name) else {
                let fault = wrong(format!("there is nothing called `{name}` that a budget bounds"));
                let all = format!("there are {}", names().collect::<Vec<_>>().join(", "));
                return Err(fault.help(match did_you_mean(name, names()) {
                    Some(near) => format!("perhaps `{near}` is meant; {all}"),
                    None => all,
                }));
            };
            let number = amount_of(*item, amount).ok_or_else(|| {
                let help = match item {
                    Item::Disk => "give a size with its unit, such as `disk=200GB` or `disk=1.5TiB`",
                    Item::Calls | Item::JudgeCalls | Item::Tokens => "give a whole number, such as `judge-calls=1000`",
                    _ => "give a number from 0 on, such as `gpu-hours=4.5`",
                };
                wrong(format!("`{amount}` is no amount of {name}")).help(help)
            })?;
            if bounds.insert(*item, number).is_some() {
                return Err(wrong(format!("the budget has two amounts of {name}")).help("give one of them"));
            }
        }
        if bounds.is_empty() {
            return Err(wrong("the budget bounds nothing".to_owned()).help(form));
        }
        Ok(Self { bounds })
    }

    /// Whether it bounds nothing.
    pub fn is_none(&self) -> bool {
        self.bounds.is_empty()
    }
}

fn amount_of(item: Item, text: &str) -> Option<f64> {
    let text = text.replace('_', "");
    if item == Item::Disk {
        return amount::size(&text).ok().map(|bytes| bytes as f64);
    }
    let number: f64 = text.parse().ok()?;
    let whole = !matches!(item, Item::Calls | Item::JudgeCalls | Item::Tokens) || number.fract() == 0.0;
    (number.is_finite() && number >= 0.0 && whole).then_some(number)
}

/// What a node will come to, as far as that is estimated.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Needs {
    pub(super) amounts: BTreeMap<Item, f64>,
    /// Bytes of its device's memory.
    memory: Option<u64>,
    on_gpu: bool,
}

impl Needs {
    /// From an estimate, and what earlier attempts make likely, which counts more.
    pub fn of(estimate: &Estimate, past: Option<&Past>) -> Self {
        let mut amounts = BTreeMap::new();
        let mut need = |item, amount: Option<f64>| amounts.extend(amount.map(|amount| (item, amount)));
        let number = |amount: Option<crate::kinds::estimate::Amount>| amount.map(|amount| amount.number as f64);
        let hours = past.map(|past| past.seconds.middle / 3600.0);
        let on_gpu = estimate.place == Some(Place::Gpu);
        need(Item::Hours, hours);
        need(Item::GpuHours, hours.filter(|_| on_gpu));
        need(Item::CpuHours, hours.filter(|_| !on_gpu));
        need(
            Item::Calls,
            past.and_then(|past| past.calls).map(|calls| calls.middle).or(number(estimate.endpoint_calls)),
        );
        // A judge with weights here is asked, too, but not called.
        let (judge, calls) = (number(estimate.judge_calls), number(estimate.endpoint_calls));
        need(Item::JudgeCalls, judge.filter(|judge| calls.is_some_and(|calls| calls >= *judge)));
        need(Item::Dollars, estimate.cost);
        let tokens = [estimate.tokens_read, estimate.tokens_written, estimate.tokens_trained].map(number);
        need(Item::Tokens, tokens.into_iter().flatten().reduce(|one, other| one + other));
        need(Item::Disk, number(estimate.disk));
        // What attempts held counts more than what was reckoned; the next one may hold a little more.
        let held = past.and_then(|past| if on_gpu { past.gpu_peak } else { past.peak });
        let held = held.map(|bytes| bytes + bytes / 8);
        Self { amounts, memory: held.or(estimate.memory.map(|memory| memory.total())), on_gpu }
    }

    /// Bytes of a GPU's memory that it will take, as far as that is known.
    pub(super) fn gpu_memory(&self) -> Option<u64> {
        self.memory.filter(|_| self.on_gpu)
    }

    /// Bytes of the machine's memory that it will take, as far as that is known; none of one that is computed on a GPU.
    pub(super) fn host_memory(&self) -> Option<u64> {
        self.memory.filter(|_| !self.on_gpu)
    }

    /// Needs that are nothing but bytes of a GPU's memory.
    pub fn of_gpu_memory(bytes: u64) -> Self {
        Self { memory: Some(bytes), on_gpu: true, ..Self::default() }
    }

    /// Seconds of one worker, as far as that is known.
    pub(super) fn seconds(&self) -> Option<f64> {
        self.amounts.get(&Item::Hours).map(|hours| hours * 3600.0)
    }
}

/// Seconds that nodes will take, by name, as far as that is known.
pub(super) fn likely(pipeline: &Pipeline, needs: &HashMap<usize, Needs>) -> BTreeMap<String, f64> {
    needs.iter().filter_map(|(node, needs)| Some((pipeline.nodes[*node].name.clone(), needs.seconds()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(text: &str) -> Budget {
        Budget::parse(text).expect("a budget")
    }

    #[test]
    fn what_is_typed_wrong_is_told_with_its_fix() {
        assert_eq!(
            budget(" gpu-hours = 4,judge-calls=1_000 , disk=1.5 GiB,").bounds[&Item::Disk],
            1.5 * 1_073_741_824.0
        );
        let fault = |text: &str| {
            let fault = Budget::parse(text).expect_err("wrong");
            format!("{}; {}", fault.title, fault.help.join(" "))
        };
        assert_eq!(
            fault("gpu-ours=4"),
            "there is nothing called `gpu-ours` that a budget bounds; perhaps `gpu-hours` is meant; there are hours, gpu-hours, \
             cpu-hours, calls, judge-calls, dollars, tokens, disk"
        );
        for (text, told) in [
            ("hours", "`hours` in the budget has no amount"),
            ("hours=-1", "`-1` is no amount of hours"),
            ("hours=nan", "`nan` is no amount of hours"),
            ("calls=1.5", "`1.5` is no amount of calls"),
            ("disk=200", "`200` is no amount of disk"),
            ("hours=1,hours=2", "the budget has two amounts of hours"),
            (" , ", "the budget bounds nothing"),
        ] {
            assert!(fault(text).starts_with(told), "{}", fault(text));
        }
    }
}
