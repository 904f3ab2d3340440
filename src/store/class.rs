//! What may be expected of computing an artifact again, and what is told of one that counts as another.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// What comes out when a node computes once more what it computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reproduces", rename_all = "kebab-case")]
pub enum Reproduces {
    /// The same bytes.
    BitExact,
    /// The same but for numbers, which are as near as this.
    Within(Tolerance),
    /// Anything may.
    No {
        /// Why.
        because: String,
    },
}

/// The class of an artifact: what comes out again, and on which class of devices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Class {
    /// What comes out again.
    #[serde(flatten)]
    pub reproduces: Reproduces,
    /// `cpu`, or for example `cuda:sm_90`.
    pub on: String,
}

/// How far numbers may be apart and still count as the same: `absolute + relative × |earlier|`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Tolerance {
    /// In parts of the earlier number.
    pub relative: f64,
    /// In itself.
    pub absolute: f64,
}

impl Tolerance {
    /// Whether a number counts as the earlier one. What is not finite does only if it is the very same.
    pub fn holds(&self, earlier: f64, number: f64) -> bool {
        if earlier.to_bits() == number.to_bits() || earlier == number {
            return true;
        }
        let apart = (earlier - number).abs();
        apart.is_finite() && apart <= self.absolute + self.relative * earlier.abs()
    }

    /// Whether everything counts as the same here that does so there.
    pub fn covers(&self, other: &Self) -> bool {
        self.relative >= other.relative && self.absolute >= other.absolute
    }
}

/// An artifact that counts as an earlier one for what is below its node, by the node's `tolerance`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EqualToWithin {
    /// The earlier artifact, which is what nodes below take.
    pub artifact: Digest,
    /// The tolerance that the node declared.
    pub tolerance: Tolerance,
    /// How far the numbers that are farthest apart are.
    pub worst: Worst,
}

/// The numbers that are farthest apart.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Worst {
    /// The largest difference.
    pub absolute: f64,
    /// The largest difference in parts of the earlier number, of those that are not 0.
    pub relative: f64,
    /// Where the largest difference is; empty if there is none.
    pub at: String,
    /// Numbers that were compared.
    pub numbers: u64,
}

impl Worst {
    /// Takes two numbers into account.
    pub fn see(&mut self, earlier: f64, number: f64, at: impl FnOnce() -> String) {
        self.numbers += 1;
        let apart = (earlier - number).abs();
        if apart > self.absolute {
            self.absolute = apart;
            self.at = at();
        }
        if earlier != 0.0 && apart / earlier.abs() > self.relative {
            self.relative = apart / earlier.abs();
        }
    }
}

impl fmt::Display for Worst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.absolute == 0.0 {
            return f.write_str("no difference");
        }
        write!(f, "at most {:.2e} apart ({:.2e} in parts), at {}", self.absolute, self.relative, self.at)
    }
}

impl fmt::Display for Tolerance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.relative > 0.0, self.absolute > 0.0) {
            (true, true) => write!(f, "{:e} in parts and {:e}", self.relative, self.absolute),
            (true, false) => write!(f, "{:e} in parts", self.relative),
            _ => write!(f, "{:e}", self.absolute),
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reproduces {
            Reproduces::BitExact => write!(f, "bit-exact on {}", self.on),
            Reproduces::Within(tolerance) => write!(f, "within {tolerance} on {}", self.on),
            Reproduces::No { because } => write!(f, "not reproducible: {because}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_count_as_the_same_up_to_the_bound_and_no_farther() {
        let both = Tolerance { relative: 0.125, absolute: 0.5 };
        assert!(both.holds(8.0, 9.5) && both.holds(-8.0, -6.5) && !both.holds(8.0, 9.500_001));
        assert!(both.holds(0.0, 0.5) && !both.holds(0.0, -0.51));
        let none = Tolerance::default();
        assert!(none.holds(0.0, -0.0) && none.holds(1.5, 1.5) && !none.holds(1.5, 1.500_000_1));
        for odd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let wide = Tolerance { relative: 1e300, absolute: 1e300 };
            assert!(wide.holds(odd, odd) && !wide.holds(1.0, odd) && !wide.holds(odd, 1.0), "{odd}");
        }
        assert!(both.covers(&none) && !none.covers(&both));
        assert!(!both.covers(&Tolerance { relative: 0.0, absolute: 0.6 }));
    }

    #[test]
    fn classes_are_told_and_read_back() {
        let tolerance = Tolerance { relative: 0.01, absolute: 0.0 };
        let told = [
            (Reproduces::BitExact, "cpu", "bit-exact on cpu"),
            (Reproduces::Within(tolerance), "cuda:sm_90", "within 1e-2 in parts on cuda:sm_90"),
            (Reproduces::No { because: "a program".into() }, "cpu", "not reproducible: a program"),
        ];
        for (reproduces, on, text) in told {
            let class = Class { reproduces, on: on.to_owned() };
            assert_eq!(class.to_string(), text);
            let json = serde_json::to_string(&class).unwrap();
            assert_eq!(serde_json::from_str::<Class>(&json).unwrap(), class, "{json}");
        }
    }
}
