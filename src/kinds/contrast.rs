//! Which constitutions a query gets: a pure function of the principles, the seed, the query's id and the part.

use std::collections::HashSet;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::draw::Draw;
use crate::digest::Hasher;

/// Combinations are counted and held out exactly up to this many, by hash beyond.
const COUNTED: usize = 20_000;

/// Draws that are tried before giving up on a part that has almost no combinations.
const TRIES: usize = 10_000;

/// A principle: what a response that follows it is like, and what one that goes against it is like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principle {
    /// The principle itself.
    pub definition: String,
    /// Its opposite.
    pub antithesis: String,
}

/// Which constitutions are held against each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Contrast {
    /// The first is all positive; each other has at least one antithesis.
    #[default]
    PositiveVsAntithesis,
    /// Pairs of which the second flips every principle of the first.
    Complement,
    /// Distinct polarities, all alike.
    Uniform,
}

/// How principles become a text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// `1. …`, a line each.
    #[default]
    Numbered,
    /// A line each.
    Lines,
    /// Joined by a space.
    Plain,
}

/// Principles in a constitution: a number, or `[min, max]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// At least.
    pub min: usize,
    /// At most.
    pub max: usize,
}

/// Which combinations training never sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct HoldOut {
    /// Their share of all combinations.
    pub share: f64,
}

/// The part of the combinations that constitutions are drawn from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Those not held out.
    #[default]
    Train,
    /// Those held out.
    HeldOut,
    /// All.
    All,
}

/// Whether a constitution wants a principle or its opposite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Polarity {
    /// The definition.
    Definition,
    /// The antithesis.
    Antithesis,
}

/// A principle in a constitution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stance {
    /// The principle's name.
    pub name: String,
    /// For or against it.
    pub polarity: Polarity,
    /// The wording.
    pub text: String,
}

/// A constitution drawn for a query.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constitution {
    /// The text as it goes into a prompt.
    pub text: String,
    /// How the text is made of the principles.
    pub format: Format,
    /// The principles in order.
    pub principles: Vec<Stance>,
}

impl Constitution {
    /// A constitution of these principles in this order.
    pub fn new(format: Format, principles: Vec<Stance>) -> Self {
        let parts = principles.iter().map(|stance| stance.text.trim());
        let text = match format {
            Format::Numbered => {
                parts.enumerate().map(|(i, part)| format!("{}. {part}", i + 1)).collect::<Vec<_>>().join("\n")
            }
            Format::Lines => parts.collect::<Vec<_>>().join("\n"),
            Format::Plain => parts.collect::<Vec<_>>().join(" "),
        };
        Self { text, format, principles }
    }

    /// The same principles in another order; a text that was not made of principles stays as it is.
    pub fn shuffled(&self, seed: u64) -> Self {
        if self.principles.is_empty() {
            return self.clone();
        }
        let mut principles = self.principles.clone();
        Draw::new(seed).shuffle(&mut principles);
        Self::new(self.format, principles)
    }
}

/// `constitutions.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Constitutions {
    /// What the principles are for.
    pub task: Option<String>,
    /// Which constitutions are held against each other.
    pub contrast: Contrast,
    /// Constitutions for a query.
    pub per_query: usize,
    /// Principles in a constitution.
    pub size: Size,
    /// What training never sees.
    pub hold_out: HoldOut,
    /// How principles become a text.
    pub format: Format,
    /// Seed of all draws.
    pub seed: u64,
    /// Principles by name.
    pub principles: IndexMap<String, Principle>,
}

/// A choice of principles (sorted indices) and which of them are flipped (bit i for the i-th of the choice).
type Combination = (Vec<usize>, u64);

/// Draws constitutions.
#[derive(Debug)]
pub struct Drawer<'a> {
    of: &'a Constitutions,
    /// The combinations held out, with the number of all; `None` where there are too many to count.
    counted: Option<(usize, HashSet<Combination>)>,
}

impl Constitutions {
    /// Gets ready to draw. An error is (field, what, help).
    pub fn drawer(&self) -> Result<Drawer<'_>, (&'static str, String, String)> {
        let Size { min, max } = self.size;
        let bits = self.per_query.next_power_of_two().trailing_zeros() as usize;
        if min < bits {
            let what = format!(
                "{min} principles have {} polarities, fewer than the {} constitutions of a query",
                1u64 << min,
                self.per_query
            );
            return Err(("per_query", what, "lower `per_query` or put more principles into a constitution".to_owned()));
        }
        if max > 63 {
            return Err((
                "principles_per_constitution",
                "more than 63 principles in a constitution".to_owned(),
                "give fewer".to_owned(),
            ));
        }
        let all = self.enumerate();
        if self.hold_out.share > 0.0 && all.as_ref().is_some_and(|all| all.len() < 2) {
            let what = "there is only one combination of principles, none can be held out".to_owned();
            return Err((
                "hold_out",
                what,
                "put fewer principles into a constitution with `principles_per_constitution`".to_owned(),
            ));
        }
        let counted = all.map(|mut all| {
            let count = all.len();
            all.sort_by_key(|combination| self.rank(combination));
            let held_out = if self.hold_out.share > 0.0 {
                ((count as f64 * self.hold_out.share).round() as usize).clamp(1, count - 1)
            } else {
                0
            };
            all.truncate(held_out);
            (count, all.into_iter().collect())
        });
        Ok(Drawer { of: self, counted })
    }

    /// All combinations in canonical form, if they are few enough to count.
    fn enumerate(&self) -> Option<Vec<Combination>> {
        let count = self.principles.len();
        let mut all = HashSet::new();
        let mut ordered = Vec::new();
        let mut choices: Vec<Vec<usize>> = vec![Vec::new()];
        for index in 0..count {
            let grown: Vec<Vec<usize>> = choices
                .iter()
                .filter(|choice| choice.len() < self.size.max)
                .map(|choice| choice.iter().copied().chain([index]).collect())
                .collect();
            choices.extend(grown);
            if choices.len() > COUNTED {
                return None;
            }
        }
        for choice in choices.into_iter().filter(|choice| choice.len() >= self.size.min) {
            if choice.len() > 14 {
                return None;
            }
            for flips in 0..1u64 << choice.len() {
                let combination = self.canonical(&choice, flips);
                if self.contrast == Contrast::PositiveVsAntithesis && self.per_query == 2 && flips == 0 {
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

impl Drawer<'_> {
    /// Number of combinations and of those held out, where they can be counted.
    pub fn combinations(&self) -> Option<(usize, usize)> {
        self.counted.as_ref().map(|(all, held_out)| (*all, held_out.len()))
    }

    fn is_held_out(&self, combination: &Combination) -> bool {
        match &self.counted {
            Some((_, held_out)) => held_out.contains(combination),
            None => (self.of.rank(combination) as f64) < self.of.hold_out.share * 2f64.powi(64),
        }
    }

    fn fits(&self, choice: &[usize], flips: u64, part: Part) -> bool {
        match part {
            Part::All => true,
            Part::Train => !self.is_held_out(&self.of.canonical(choice, flips)),
            Part::HeldOut => self.is_held_out(&self.of.canonical(choice, flips)),
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
            let mut choice: Vec<usize> = (0..of.principles.len()).collect();
            draw.shuffle(&mut choice);
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
        let mut flips: Vec<u64> = Vec::with_capacity(all);
        if self.of.contrast == Contrast::PositiveVsAntithesis {
            flips.push(0);
        }
        for _ in 0..100 * all {
            if flips.len() >= all {
                break;
            }
            let next = draw.bits() & mask;
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

impl Serialize for Size {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        [self.min, self.max].serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;
        impl<'de> serde::de::Visitor<'de> for SizeVisitor {
            type Value = Size;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number, or [min, max]")
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Size, E> {
                Ok(Size { min: number as usize, max: number as usize })
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Size, E> {
                let number = u64::try_from(number)
                    .map_err(|_| E::invalid_value(serde::de::Unexpected::Signed(number), &self))?;
                self.visit_u64(number)
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Size, A::Error> {
                let min = seq.next_element()?.ok_or_else(|| serde::de::Error::invalid_length(0, &self))?;
                let max = seq.next_element()?.ok_or_else(|| serde::de::Error::invalid_length(1, &self))?;
                if seq.next_element::<usize>()?.is_some() {
                    return Err(serde::de::Error::invalid_length(3, &self));
                }
                Ok(Size { min, max })
            }
        }
        deserializer.deserialize_any(SizeVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(contrast: Contrast, per_query: usize, principles: usize, size: Size, share: f64) -> Constitutions {
        let principles = (0..principles)
            .map(|n| {
                (format!("p{n}"), Principle { definition: format!("do {n}\nalways"), antithesis: format!("avoid {n}") })
            })
            .collect();
        Constitutions {
            task: None,
            contrast,
            per_query,
            size,
            hold_out: HoldOut { share },
            format: Format::Numbered,
            seed: 1,
            principles,
        }
    }

    fn stances(constitution: &Constitution) -> Vec<(String, Polarity)> {
        let mut all: Vec<_> =
            constitution.principles.iter().map(|stance| (stance.name.clone(), stance.polarity)).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    #[test]
    fn complement_flips_every_principle_and_draws_repeat() {
        let set = set(Contrast::Complement, 2, 4, Size { min: 2, max: 3 }, 0.0);
        let drawer = set.drawer().expect("sound");
        let mut first_order_differs = false;
        for query in 0..50 {
            let pair = drawer.draw(&query.to_string(), 0, Part::Train).expect("drawn");
            assert_eq!(pair, drawer.draw(&query.to_string(), 0, Part::Train).expect("drawn"));
            for (one, other) in stances(&pair[0]).iter().zip(stances(&pair[1])) {
                assert_eq!(one.0, other.0);
                assert_ne!(one.1, other.1);
            }
            first_order_differs |= pair[0].principles[0].name != pair[1].principles[0].name;
        }
        assert!(first_order_differs, "each constitution has its own order");
    }

    #[test]
    fn positive_comes_first_and_no_two_are_equal() {
        let set = set(Contrast::PositiveVsAntithesis, 4, 12, Size { min: 12, max: 12 }, 0.0);
        let drawer = set.drawer().expect("sound");
        let drawn = drawer.draw("q", 3, Part::Train).expect("drawn");
        assert!(drawn[0].principles.iter().all(|stance| stance.polarity == Polarity::Definition));
        let distinct: HashSet<_> = drawn.iter().map(|one| format!("{:?}", stances(one))).collect();
        assert_eq!(distinct.len(), 4);
        assert!(drawn[0].text.contains("12. do"), "{}", drawn[0].text);
        assert_eq!(super::super::principles::split_numbered(&drawn[0].text).len(), 12);
    }

    #[test]
    fn held_out_combinations_never_show_in_training() {
        for (contrast, per_query) in [
            (Contrast::Complement, 2),
            (Contrast::Uniform, 2),
            (Contrast::Uniform, 4),
            (Contrast::PositiveVsAntithesis, 2),
        ] {
            let set = set(contrast, per_query, 4, Size { min: 2, max: 3 }, 0.25);
            let drawer = set.drawer().expect("sound");
            let (all, held_out) = drawer.combinations().expect("few");
            assert_eq!(held_out, (all as f64 * 0.25).round() as usize);
            let seen = |part| -> HashSet<String> {
                (0..300)
                    .flat_map(|query| {
                        let drawn = drawer.draw(&query.to_string(), 0, part).expect("drawn");
                        let skip = usize::from(contrast == Contrast::PositiveVsAntithesis);
                        drawn.into_iter().skip(skip).map(|one| format!("{:?}", stances(&one))).collect::<Vec<_>>()
                    })
                    .collect()
            };
            let (train, test) = (seen(Part::Train), seen(Part::HeldOut));
            assert!(train.is_disjoint(&test) && !test.is_empty());
        }
    }

    #[test]
    fn nothing_held_out_gives_none_and_too_few_principles_an_error() {
        let plain = set(Contrast::Uniform, 2, 2, Size { min: 2, max: 2 }, 0.0);
        assert!(plain.drawer().expect("sound").draw("q", 0, Part::HeldOut).is_none());
        let (field, what, _) =
            set(Contrast::Uniform, 3, 1, Size { min: 1, max: 1 }, 0.0).drawer().expect_err("too few");
        assert_eq!(field, "per_query");
        assert!(what.contains("2 polarities"), "{what}");
    }

    #[test]
    fn size_reads_a_number_or_a_range() {
        let read = |text: &str| serde_json::from_str::<Size>(text).ok();
        assert_eq!(read("3"), Some(Size { min: 3, max: 3 }));
        assert_eq!(read("[2, 3]"), Some(Size { min: 2, max: 3 }));
        assert_eq!(read("[2]"), None);
        assert_eq!(read("-1"), None);
    }
}
