//! What a plan will come to, as people read it.

use serde_json::{Value, json};

use super::figures::{bytes, count, plural, seconds, some};
use super::table::Table;
use crate::diag::Diagnostic;
use crate::exec::{self, Estimates, Likely, Likeness, Past};
use crate::fs;
use crate::kinds::estimate::{Amount, Estimate, Footprint, How, Place};
use crate::pipeline::Pipeline;
use crate::store::Store;

/// Reasons that are listed; of more the number is told.
const REASONS: usize = 3;

/// Memory of an earlier attempt that is worth a line.
const WORTH_TELLING: u64 = 100 << 20;

/// All nodes together.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    read: Option<Amount>,
    written: Option<Amount>,
    trained: Option<Amount>,
    steps: Option<Amount>,
    judge: Option<Amount>,
    writer: Option<Amount>,
    endpoint: Option<Amount>,
    cost: Option<f64>,
    disk: Option<Amount>,
    scratch: u64,
    download: Option<u64>,
    /// What earlier attempts make likely of all calls.
    likely_calls: Option<Likely>,
    /// The most memory that an earlier attempt held, and of which node.
    peak: Option<(u64, usize)>,
    /// What all nodes take one after another, of how many that is known, and from how many attempts.
    time: Option<Likely>,
    timed: usize,
    attempts: usize,
    stale: usize,
    free: Option<u64>,
    /// The node that needs most of each place, and what.
    memory: Vec<(Place, usize, Footprint)>,
    /// Reasons why something is not known, each with its nodes.
    unknown: Vec<(String, Vec<usize>)>,
}

impl Totals {
    pub(crate) fn of(estimates: &Estimates, store: &Store) -> Self {
        let nodes = || estimates.nodes.values();
        let sum = |part: fn(&Estimate) -> Option<Amount>| {
            let parts: Vec<Amount> = nodes().filter_map(part).collect();
            (!parts.is_empty()).then(|| parts.into_iter().sum())
        };
        let mut totals = Self {
            read: sum(|one| one.tokens_read),
            written: sum(|one| one.tokens_written),
            trained: sum(|one| one.tokens_trained),
            steps: sum(|one| one.steps),
            judge: sum(|one| one.judge_calls),
            writer: sum(|one| one.writer_calls),
            endpoint: sum(|one| one.endpoint_calls),
            cost: nodes().filter_map(|one| one.cost).reduce(|a, b| a + b),
            disk: sum(|one| one.disk),
            scratch: nodes().filter_map(|one| one.scratch).map(|one| one.number).max().unwrap_or(0),
            download: estimates.download,
            time: exec::sum_of_likely(estimates.past.values().map(|past| past.seconds)),
            timed: estimates.past.len(),
            likely_calls: exec::sum_of_likely(estimates.past.values().filter_map(|past| past.calls)),
            peak: estimates
                .past
                .iter()
                .filter_map(|(node, past)| Some((past.peak.filter(|peak| *peak >= WORTH_TELLING)?, *node)))
                .max(),
            attempts: estimates.past.values().map(|past| past.attempts).sum(),
            stale: estimates.nodes.len(),
            free: fs::free(store.root()),
            ..Self::default()
        };
        for (node, estimate) in &estimates.nodes {
            if let (Some(memory), Some(place)) = (estimate.memory, estimate.place) {
                match totals.memory.iter_mut().find(|(known, ..)| *known == place) {
                    Some(most) if most.2.total() < memory.total() => *most = (place, *node, memory),
                    Some(_) => {}
                    None => totals.memory.push((place, *node, memory)),
                }
            }
            if let Some(why) = &estimate.unknown {
                match totals.unknown.iter_mut().find(|(known, _)| known == why) {
                    Some((_, nodes)) => nodes.push(*node),
                    None => totals.unknown.push((why.clone(), vec![*node])),
                }
            }
        }
        totals
    }

    /// Lines under a plan; none where there is nothing to tell.
    pub(crate) fn text(&self, pipeline: &Pipeline) -> String {
        let mut lines: Vec<(&str, String)> = Vec::new();
        let mut line = |name, parts: Vec<Option<String>>, between: &str| {
            let parts: Vec<String> = parts.into_iter().flatten().collect();
            if !parts.is_empty() {
                lines.push((name, parts.join(between)));
            }
        };
        let figure = |amount: Option<Amount>, what: &str| {
            amount.filter(|amount| amount.number > 0).map(|amount| format!("{}{what}", shown(amount)))
        };
        let steps = self.steps.map(|steps| format!(" in {}", stepped(steps))).unwrap_or_default();
        let trained = figure(self.trained, &format!(" trained on{steps}"));
        line("tokens", vec![figure(self.read, " read"), figure(self.written, " written"), trained], ", ");
        let memory = |(place, node, memory): &(Place, usize, Footprint)| {
            let name = &pipeline.nodes[*node].name;
            Some(format!("about {} on the {}, by {name} ({})", bytes(memory.total()), on(*place), parts(memory)))
        };
        let held = self.peak.map(|(peak, node)| {
            format!("{} in an earlier attempt at most, by {}", bytes(peak), pipeline.nodes[node].name)
        });
        line("memory", self.memory.iter().map(memory).chain([held]).collect(), "; ");
        let disk = self.disk.filter(|disk| disk.number > 0);
        let disk = disk.map(|disk| format!("{}{} in the cache", disk.how, bytes(disk.number)));
        let scratch = (self.scratch > 0).then(|| format!("about {} more while it trains", bytes(self.scratch)));
        let download = match self.download {
            Some(0) => None,
            Some(size) => Some(format!("{} to download", bytes(size))),
            None => Some("more to download".to_owned()),
        };
        let wanted = disk.is_some() || download.is_some();
        let free = self.free.filter(|_| wanted).map(|free| format!("{} are free", bytes(free)));
        line("disk", vec![disk, scratch, download, free], ", ");
        let cost = self.cost.map(|cost| format!("at most {cost:.2} by their prices"));
        let calls = vec![
            figure(self.judge, " to a judge"),
            figure(self.writer, " to a writer"),
            figure(self.endpoint, " to endpoints"),
            self.likely_calls.map(|Likely { low, middle, high }| {
                let [low, middle, high] = [low, middle, high].map(|number| count(number.round() as u64));
                format!("≈ {middle} ({low} to {high}) by earlier attempts")
            }),
            cost,
        ];
        line("calls", calls, ", ");
        if let Some(time) = self.time {
            let of = if self.timed < self.stale {
                format!(" for {} of them", count(self.timed as u64))
            } else {
                String::new()
            };
            let told = format!(
                "{}{of}, one after another; from {}",
                likely(time),
                plural(self.attempts as u64, "earlier attempt")
            );
            lines.push(("time", told));
        }
        for (why, nodes) in self.unknown.iter().take(REASONS) {
            let names: Vec<&str> = nodes.iter().map(|node| pipeline.nodes[*node].name.as_str()).collect();
            lines.push(("not known", format!("{}: {why}", some(&names, ", ", REASONS))));
        }
        if self.unknown.len() > REASONS {
            lines.push(("", format!("and {} more reasons; `--estimate` lists them", self.unknown.len() - REASONS)));
        }
        let mut text = String::new();
        for (name, line) in lines {
            text.push_str(&format!("  {name:<9}  {line}\n"));
        }
        text
    }

    pub(crate) fn json(&self, pipeline: &Pipeline) -> Value {
        let memory = |(place, node, memory): &(Place, usize, Footprint)| json!({"place": on(*place), "node": pipeline.nodes[*node].name, "bytes": memory.total(), "parts": memory});
        json!({"tokens_read": self.read, "tokens_written": self.written, "tokens_trained": self.trained, "steps": self.steps,
            "judge_calls": self.judge, "writer_calls": self.writer, "endpoint_calls": self.endpoint, "cost": self.cost,
            "memory": self.memory.iter().map(memory).collect::<Vec<_>>(), "disk": self.disk, "scratch": self.scratch,
            "time": self.time, "download": self.download, "free": self.free})
    }

    /// That the disk will not do, if it looks so.
    pub(crate) fn warning(&self, store: &Store) -> Option<Diagnostic> {
        let needed = self.disk?.number.saturating_add(self.scratch);
        let free = self.free?;
        (needed > free).then(|| {
            let what = format!("the run needs about {} of disk, and {} are free", bytes(needed), bytes(free));
            Diagnostic::warning("cli::disk", what)
                .note(format!("in `{}`", store.root().display()))
                .help("make room with `sami cache gc`, or name a cache on a larger disk with `--cache`")
        })
    }
}

/// Seconds, and where they lie in nine of ten cases.
fn likely(Likely { low, middle, high }: Likely) -> String {
    format!("≈ {} ({} to {})", seconds(middle), seconds(low), seconds(high))
}

/// What earlier attempts it is from.
fn from(past: &Past) -> String {
    let attempts = plural(past.attempts as u64, "attempt");
    match past.likeness {
        Likeness::Node => format!("its {attempts} here"),
        Likeness::Kind => format!("{attempts} of its kind and size here"),
        Likeness::Elsewhere => format!("{attempts} like it elsewhere"),
    }
}

fn on(place: Place) -> &'static str {
    match place {
        Place::Cpu => "CPU",
        Place::Gpu => "GPU",
    }
}

fn stepped(steps: Amount) -> String {
    format!("{}{}", steps.how, plural(steps.number, "step"))
}

/// The largest parts of what is held.
fn parts(memory: &Footprint) -> String {
    let Footprint { weights, reference, gradients, moments, activations, cache } = *memory;
    let mut parts = vec![
        ("weights", weights),
        ("a reference", reference),
        ("gradients", gradients),
        ("moments", moments),
        ("passes", activations),
        ("keys and values", cache),
    ];
    parts.retain(|(_, size)| *size * 20 > memory.total());
    parts.iter().map(|(name, size)| format!("{name} {}", bytes(*size))).collect::<Vec<_>>().join(", ")
}

/// A number as sure as it is: `1,234`, `at most 1,200`, `about 1.2 million`.
fn shown(amount: Amount) -> String {
    format!("{}{}", amount.how, number(amount))
}

fn number(Amount { number, how }: Amount) -> String {
    let scaled = |size: u64, name: &str| {
        let scaled = number as f64 / size as f64;
        if scaled < 99.95 { format!("{scaled:.1} {name}") } else { format!("{scaled:.0} {name}") }
    };
    match number {
        1_000_000_000.. => scaled(1_000_000_000, "billion"),
        1_000_000.. => scaled(1_000_000, "million"),
        100.. if how == How::About => {
            // Two digits are as many as there is reason to believe in.
            let unit = 10_u64.pow(number.ilog10() - 1);
            count((number + unit / 2) / unit * unit)
        }
        _ => count(number),
    }
}

/// A line for each node of which something is known.
pub(crate) fn table(pipeline: &Pipeline, estimates: &Estimates) -> String {
    let headers = [
        "node",
        "rows",
        "read",
        "written",
        "steps",
        "trained",
        "memory",
        "disk",
        "calls",
        "cost",
        "takes",
        "from",
        "not known",
    ];
    let mut table = Table::new(headers, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    let short = |amount: Option<Amount>, show: fn(Amount) -> String| {
        let sign = |how| match how {
            How::Exactly => "",
            How::AtMost => "≤ ",
            How::About => "~ ",
        };
        amount.map(|amount| format!("{}{}", sign(amount.how), show(amount))).unwrap_or_default()
    };
    let sized = |amount: Amount| bytes(amount.number);
    for (node, one) in &estimates.nodes {
        let past = estimates.past.get(node);
        let calls = one.judge_calls.into_iter().chain(one.writer_calls).reduce(|a, b| a + b).or(one.endpoint_calls);
        let cells = [
            pipeline.nodes[*node].name.clone(),
            short(one.rows, number),
            short(one.tokens_read, number),
            short(one.tokens_written, number),
            short(one.steps, number),
            short(one.tokens_trained, number),
            one.memory.map(|memory| format!("~ {}", bytes(memory.total()))).unwrap_or_default(),
            short(one.disk, sized),
            short(calls, number),
            one.cost.map(|cost| format!("≤ {cost:.2}")).unwrap_or_default(),
            past.map(|past| likely(past.seconds)).unwrap_or_default(),
            past.map(from).unwrap_or_default(),
            one.unknown.clone().unwrap_or_default(),
        ];
        if cells[1..].iter().any(|cell| !cell.is_empty()) {
            table.row(cells);
        }
    }
    if table.is_empty() { String::new() } else { table.text() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_say_how_sure_they_are() {
        let all = [
            Amount::exactly(1234),
            Amount::at_most(384_000),
            Amount::about(1_234_567),
            Amount::about(4321),
            Amount::about(95),
            Amount::about(250_000_000),
            Amount::at_most(2_500_000_000),
        ];
        assert_eq!(
            all.map(shown),
            [
                "1,234",
                "at most 384,000",
                "about 1.2 million",
                "about 4,300",
                "about 95",
                "about 250 million",
                "at most 2.5 billion"
            ]
        );
    }
}
