//! Why a node has to run.

use std::fmt;

use crate::graph::key::Change;

/// Changes shown in a line.
const LISTED: usize = 3;

/// Why a node has to run.
#[derive(Debug, Clone, PartialEq)]
pub enum Reason {
    /// It never had an artifact.
    New,
    /// It had one, but the record of that is gone.
    Forgotten,
    /// Its key differs from the one that it had when it last had an artifact; how.
    Changed(Vec<Change>),
    /// A file of the artifact is not there; which.
    Missing(String),
    /// A file of the artifact is not what it was; which.
    Damaged(String),
    /// The user wants it.
    Forced,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::New => f.write_str("never ran"),
            Self::Forgotten => f.write_str("its record is gone"),
            Self::Missing(file) => write!(f, "{file} is missing from its artifact"),
            Self::Damaged(file) => write!(f, "{file} of its artifact is damaged"),
            Self::Forced => f.write_str("forced"),
            Self::Changed(changes) => {
                for (at, change) in changes.iter().take(LISTED).enumerate() {
                    write!(f, "{}{change}", if at == 0 { "" } else { "; " })?;
                }
                match changes.len().saturating_sub(LISTED) {
                    0 => Ok(()),
                    more => write!(f, "; … {more} more"),
                }
            }
        }
    }
}
