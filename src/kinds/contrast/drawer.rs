//! Which constitutions a query gets: a pure function of the principles, the seed, the query's id and the part.

use std::collections::HashSet;

use super::{Constitution, Constitutions, Contrast, Part, Polarity, Size, Stance};
use crate::digest::Hasher;
use crate::kinds::draw::Draw;

/// Combinations are counted and held out exactly up to this many, by hash beyond.
const COUNTED: usize = 20_000;

/// Draws that are tried before giving up on a part that has almost no combinations.
const TRIES: usize = 10_000;

/// A choice of principles (sorted indices) and which of them are flipped (bit i for the i-th of the choice).
type Combination = (Vec<usize>, u64);

/// Draws constitutions.
#[derive(Debug)]
pub struct Drawer<'a> {
    of: &'a Constitutions,
    /// Principles that a part draws from, as sorted indices.
    pools: Pools,
    /// Those that are flipped in every constitution but the first.
    must_flip: Vec<usize>,
    counts: Option<Counts>,
}

#[derive(Debug)]
struct Pools {
    train: Vec<usize>,
    held_out: Vec<usize>,
    all: Vec<usize>,
}

/// The combinations, where they are few enough to be counted.
#[derive(Debug)]
struct Counts {
    all: usize,
    held_out: usize,
    /// With a share of combinations held out: which.
    which: HashSet<Combination>,
}

/// What keeps constitutions from being drawn: (field, what, help).
type Fault = (&'static str, String, String);

impl Constitutions {
    /// Gets ready to draw.
    pub fn drawer(&self) -> Result<Drawer<'_>, Fault> {
        let pools = Pools::of(self)?;
        let must_flip = self.indices("must_flip", &self.must_flip)?;
        if !must_flip.is_empty() && self.contrast != Contrast::PositiveVsAntithesis {
            let what = "principles can be made to flip only against a constitution that is all positive".to_owned();
            return Err(("must_flip", what, "give `contrast = \"positive-vs-antithesis\"`".to_owned()));
        }
        for pool in pools.drawn() {
            self.fits(pool, &must_flip)?;
        }
        let counts = self.count(&pools, &must_flip)?;
        Ok(Drawer { of: self, pools, must_flip, counts })
    }

    /// The places of principles named in a field, sorted.
    fn indices(&self, field: &'static str, names: &[String]) -> Result<Vec<usize>, Fault> {
        let mut indices = Vec::with_capacity(names.len());
        for name in names {
            let Some(index) = self.principles.get_index_of(name) else {
                let known: Vec<_> = self.principles.keys().map(|name| format!("`{name}`")).collect();
                let help = format!("name some of {}", known.join(", "));
                return Err((field, format!("there is no principle `{name}`"), help));
            };
            indices.push(index);
        }
        indices.sort_unstable();
        indices.dedup();
        Ok(indices)
    }

    /// Errs if the constitutions of a query cannot be drawn from a pool.
    fn fits(&self, pool: &[usize], must_flip: &[usize]) -> Result<(), Fault> {
        let Size { min, max } = self.size;
        let forced = pool.iter().filter(|index| must_flip.contains(index)).count();
        if max > pool.len() {
            let what = format!("a constitution of {max} principles cannot be drawn from {}", pool.len());
            let help = format!(
                "give `principles_per_constitution` of at most {}: with principles held out, training draws from the \
                 others only, and the evaluation from those that are held out",
                pool.len()
            );
            return Err(("principles_per_constitution", what, help));
        }
        if max > 63 {
            let what = "more than 63 principles in a constitution".to_owned();
            return Err(("principles_per_constitution", what, "give fewer".to_owned()));
        }
        if forced > min {
            let what = format!("{forced} principles must flip, and a constitution may have no more than {min}");
            return Err(("must_flip", what, "name fewer, or raise `principles_per_constitution`".to_owned()));
        }
        // Without principles that must flip, the first constitution is one of the polarities.
        let polarities = (1u64 << (min - forced)) + u64::from(forced > 0);
        if polarities < self.per_query as u64 {
            let what = format!(
                "{min} principles have {polarities} polarities, fewer than the {} constitutions of a query",
                self.per_query
            );
            let help = "lower `per_query` or put more principles into a constitution".to_owned();
            return Err(("per_query", what, help));
        }
        Ok(())
    }

    /// Counts the combinations and holds out as many as are asked for, if they are few enough.
    fn count(&self, pools: &Pools, must_flip: &[usize]) -> Result<Option<Counts>, Fault> {
        if !self.hold_out.principles.is_empty() {
            let count = |pool: &[usize]| self.enumerate(pool, must_flip).map(|all| all.len());
            let both = count(&pools.train).zip(count(&pools.held_out));
            return Ok(both.map(|(train, held_out)| Counts { all: train + held_out, held_out, which: HashSet::new() }));
        }
        let Some(mut all) = self.enumerate(&pools.all, must_flip) else { return Ok(None) };
        let share = self.hold_out.share;
        if share > 0.0 && all.len() < 2 {
            let what = "there is only one combination of principles, none can be held out".to_owned();
            let help = "put fewer principles into a constitution with `principles_per_constitution`".to_owned();
            return Err(("hold_out", what, help));
        }
        let count = all.len();
        all.sort_by_key(|combination| self.rank(combination));
        let held_out = if share > 0.0 { ((count as f64 * share).round() as usize).clamp(1, count - 1) } else { 0 };
        all.truncate(held_out);
        Ok(Some(Counts { all: count, held_out, which: all.into_iter().collect() }))
    }

    /// All combinations of a pool in canonical form, if they are few enough to count.
    fn enumerate(&self, pool: &[usize], must_flip: &[usize]) -> Option<Vec<Combination>> {
        let mut all = HashSet::new();
        let mut ordered = Vec::new();
        let mut choices: Vec<Vec<usize>> = vec![Vec::new()];
        for index in pool {
            let grown: Vec<Vec<usize>> = choices
                .iter()
                .filter(|choice| choice.len() < self.size.max)
                .map(|choice| choice.iter().copied().chain([*index]).collect())
                .collect();
            choices.extend(grown);
            if choices.len() > COUNTED {
                return None;
            }
        }
        let forced: Vec<usize> = pool.iter().copied().filter(|index| must_flip.contains(index)).collect();
        let whole =
            |choice: &Vec<usize>| choice.len() >= self.size.min && forced.iter().all(|index| choice.contains(index));
        for choice in choices.into_iter().filter(whole) {
            if choice.len() > 14 {
                return None;
            }
            let always = flipped(&choice, must_flip);
            for flips in 0..1u64 << choice.len() {
                let combination = self.canonical(&choice, flips);
                if self.contrast == Contrast::PositiveVsAntithesis && self.per_query == 2 && flips == 0
                    || flips & always != always
                {
                    continue;
                }
                if all.insert(combination.clone()) {
                    ordered.push(combination);
                    if ordered.len() > COUNTED {
                        return None;
                    }
                }
            }
        }
        Some(ordered)
    }

    /// What counts as one combination: see the kind's page.
    fn canonical(&self, choice: &[usize], flips: u64) -> Combination {
        let mask = (1u64 << choice.len()) - 1;
        let flips = match (self.per_query, self.contrast) {
            (2, Contrast::PositiveVsAntithesis) => flips,
            (2, _) => flips.min(!flips & mask),
            _ => 0,
        };
        (choice.to_vec(), flips)
    }

    fn rank(&self, (choice, flips): &Combination) -> u64 {
        let mut hasher = Hasher::new();
        hasher.text("hold-out").number(self.seed).number(*flips).number(choice.len() as u64);
        for index in choice {
            hasher.number(*index as u64);
        }
        hasher.seed()
    }
}

impl Pools {
    fn of(constitutions: &Constitutions) -> Result<Self, Fault> {
        let all: Vec<usize> = (0..constitutions.principles.len()).collect();
        let held_out = constitutions.indices("hold_out", &constitutions.hold_out.principles)?;
        let train: Vec<usize> = all.iter().copied().filter(|index| !held_out.contains(index)).collect();
        if train.is_empty() && !all.is_empty() {
            let what = "all principles are held out, and training has none".to_owned();
            return Err(("hold_out", what, "hold out fewer".to_owned()));
        }
        Ok(Self { train, held_out, all })
    }

    /// The pools that constitutions are drawn from: one, unless principles are held out.
    fn drawn(&self) -> Vec<&[usize]> {
        if self.held_out.is_empty() { vec![&self.all] } else { vec![&self.train, &self.held_out] }
    }
}

/// The bits of those of a choice that must flip.
fn flipped(choice: &[usize], must_flip: &[usize]) -> u64 {
    let bit = |(bit, index): (usize, &usize)| u64::from(must_flip.contains(index)) << bit;
    choice.iter().enumerate().map(bit).sum()
}

impl Drawer<'_> {
    /// Number of combinations and of those held out, where they can be counted.
    pub fn combinations(&self) -> Option<(usize, usize)> {
        self.counts.as_ref().map(|counts| (counts.all, counts.held_out))
    }

    fn is_held_out(&self, combination: &Combination) -> bool {
        match &self.counts {
            Some(counts) => counts.which.contains(combination),
            None => (self.of.rank(combination) as f64) < self.of.hold_out.share * 2f64.powi(64),
        }
    }

    fn fits(&self, choice: &[usize], flips: u64, part: Part) -> bool {
        if part == Part::All || !self.of.hold_out.principles.is_empty() {
            return true;
        }
        self.is_held_out(&self.of.canonical(choice, flips)) == (part == Part::HeldOut)
    }

    /// The principles that a part draws from; all, unless principles are held out.
    fn pool(&self, part: Part) -> &[usize] {
        match part {
            _ if self.of.hold_out.principles.is_empty() => &self.pools.all,
            Part::All => &self.pools.all,
            Part::Train => &self.pools.train,
            Part::HeldOut => &self.pools.held_out,
        }
    }

    /// The constitutions of a query; `None` if the part has no combination (nothing held out).
    pub fn draw(&self, query: &str, seed: u64, part: Part) -> Option<Vec<Constitution>> {
        let of = self.of;
        let mut hasher = Hasher::new();
        hasher.text("constitutions").number(of.seed).number(seed).text(query);
        let mut draw = Draw::new(hasher.seed());
        for _ in 0..TRIES {
            let size = of.size.min + draw.below(of.size.max - of.size.min + 1);
            let mut choice = self.pool(part).to_vec();
            draw.shuffle(&mut choice);
            choice.sort_by_key(|index| !self.must_flip.contains(index));
            choice.truncate(size);
            choice.sort_unstable();
            if let Some(all) = self.polarities(&choice, part, &mut draw) {
                return Some(all.into_iter().map(|flips| self.constitution(&choice, flips, &mut draw)).collect());
            }
        }
        None
    }

    /// `per_query` distinct polarities of a choice of principles, or `None` if the first try leaves the part.
    fn polarities(&self, choice: &[usize], part: Part, draw: &mut Draw) -> Option<Vec<u64>> {
        let all = self.of.per_query;
        let mask = (1u64 << choice.len()) - 1;
        let always = flipped(choice, &self.must_flip);
        let mut flips: Vec<u64> = Vec::with_capacity(all);
        if self.of.contrast == Contrast::PositiveVsAntithesis {
            flips.push(0);
        }
        for _ in 0..100 * all {
            if flips.len() >= all {
                break;
            }
            let next = draw.bits() & mask | always;
            if flips.contains(&next) || !self.fits(choice, next, part) {
                continue;
            }
            flips.push(next);
            if self.of.contrast == Contrast::Complement && flips.len() < all {
                flips.push(!next & mask);
            }
        }
        (flips.len() == all).then_some(flips)
    }

    fn constitution(&self, choice: &[usize], flips: u64, draw: &mut Draw) -> Constitution {
        let mut principles: Vec<Stance> = choice
            .iter()
            .enumerate()
            .filter_map(|(bit, index)| self.of.principles.get_index(*index).map(|found| (bit, found)))
            .map(|(bit, (name, principle))| {
                let (polarity, text) = if flips >> bit & 1 == 0 {
                    (Polarity::Definition, &principle.definition)
                } else {
                    (Polarity::Antithesis, &principle.antithesis)
                };
                Stance { name: name.clone(), polarity, text: text.clone() }
            })
            .collect();
        draw.shuffle(&mut principles);
        Constitution::new(self.of.format, principles)
    }
}
