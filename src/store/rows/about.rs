//! What a space is and how often it was of use, for people and for eviction.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::Digest;
use crate::fs;
use crate::store::record::read_json;

/// The file that says what a space is.
pub(super) const ABOUT: &str = "space.json";
/// The file that counts uses.
pub(super) const USES: &str = "uses";
/// Uses are summed up in one line once they take so many bytes.
const MOST_USES: u64 = 1 << 14;

/// What a space's rows are results of: all that decides them but for the row's own part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// `sample`, `logprobs`, `kl` or `speak`.
    pub what: String,
    /// The models, by content: the one that computes first.
    pub models: Vec<Digest>,
    /// What the user set that decides results, such as the sampling fields.
    pub fields: Value,
    /// The class of device; none of what is not computed here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Whether rows may have cost money: answers of an endpoint.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paid: bool,
    /// The model's name, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

/// How often rows were looked up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uses {
    /// Rows that were looked up.
    pub asked: u64,
    /// Those of them that were known.
    pub reused: u64,
    /// How often the space was used, 1 in a line of one use.
    #[serde(default)]
    pub times: u64,
    /// The latest use, RFC 3339.
    #[serde(default)]
    pub at: String,
    /// The node that used it latest.
    #[serde(default)]
    pub node: String,
}

impl About {
    /// Writes it down in a space's directory, if that was not done.
    pub(super) fn write(&self, directory: &Path) -> std::io::Result<()> {
        let path = directory.join(ABOUT);
        if path.exists() {
            return Ok(());
        }
        fs::write_atomic(&path, &serde_json::to_vec_pretty(self)?)
    }

    /// What a space's directory says; none of a space of an older version.
    pub(super) fn read(directory: &Path) -> Option<Self> {
        read_json(&directory.join(ABOUT)).ok().flatten()
    }
}

impl Uses {
    /// Adds a use to a space's count.
    pub(super) fn tell(&self, directory: &Path, node: &str) -> std::io::Result<()> {
        let path = directory.join(USES);
        let one = Self { times: 1, at: fs::now().to_string(), node: node.to_owned(), ..self.clone() };
        let mut line = serde_json::to_vec(&one)?;
        line.push(b'\n');
        if crate::store::gc::size(&path) > MOST_USES {
            let mut all = serde_json::to_vec(&Self::read(directory))?;
            all.push(b'\n');
            all.extend_from_slice(&line);
            return fs::write_atomic(&path, &all);
        }
        fs::append_unsynced(&path, &line)
    }

    /// The sum of all uses of a space; lines that cannot be read count for nothing.
    pub(super) fn read(directory: &Path) -> Self {
        let text = fs_err::read_to_string(directory.join(USES)).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Self>(line).ok());
        lines.fold(Self::default(), |sum, one| {
            let later = one.at >= sum.at;
            Self {
                asked: sum.asked + one.asked,
                reused: sum.reused + one.reused,
                times: sum.times + one.times,
                at: if later { one.at } else { sum.at },
                node: if later { one.node } else { sum.node },
            }
        })
    }
}
