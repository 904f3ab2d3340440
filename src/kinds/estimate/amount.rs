//! A number, and how sure it is.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, Mul};

use serde::Serialize;

/// How sure a number is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// It is so many.
    Exactly,
    /// No more than so many.
    AtMost,
    /// So many, roughly.
    About,
}

/// A number, and how sure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// The number.
    pub number: u64,
    /// How sure it is.
    pub how: How,
}

impl Amount {
    /// So many.
    pub fn exactly(number: u64) -> Self {
        Self { number, how: How::Exactly }
    }

    /// No more than so many.
    pub fn at_most(number: u64) -> Self {
        Self { number, how: How::AtMost }
    }

    /// So many, roughly.
    pub fn about(number: u64) -> Self {
        Self { number, how: How::About }
    }

    /// The part of so many rows that is taken.
    #[must_use]
    pub fn sliced(self, skip: u64, take: Option<u64>) -> Self {
        Self { number: self.number.saturating_sub(skip).min(take.unwrap_or(u64::MAX)), ..self }
    }
}

impl Add for Amount {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { number: self.number.saturating_add(other.number), how: self.how.max(other.how) }
    }
}

impl Mul for Amount {
    type Output = Self;

    fn mul(self, other: Self) -> Self {
        Self { number: self.number.saturating_mul(other.number), how: self.how.max(other.how) }
    }
}

impl Mul<u64> for Amount {
    type Output = Self;

    fn mul(self, times: u64) -> Self {
        self * Self::exactly(times)
    }
}

impl Sum for Amount {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::exactly(0), Add::add)
    }
}

impl fmt::Display for How {
    /// What stands before the number, with a space after it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exactly => "",
            Self::AtMost => "at most ",
            Self::About => "about ",
        })
    }
}
