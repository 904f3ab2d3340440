//! Artifacts, listed a page at a time.

use rusqlite::ToSql;

use super::Index;
use super::insert::{digest, made_since};
use crate::digest::Digest;

/// Artifacts beyond a page are counted so far; more are told as more than so many.
const COUNTED: u64 = 10_000;

/// What is to be listed. An empty one is all, newest first.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Of this type.
    pub kind: Option<String>,
    /// Made in a pipeline of this name, by the latest work that made it.
    pub pipeline: Option<String>,
    /// Made by a node of this name, by the latest work that made it.
    pub node: Option<String>,
    /// Made by a node whose name has this in it, whatever the case of ASCII letters.
    pub like: Option<String>,
    /// So many bytes or more.
    pub larger: Option<u64>,
    /// Fewer bytes.
    pub smaller: Option<u64>,
    /// Made in a run that began at this time or later.
    pub since: Option<jiff::Timestamp>,
    /// Made in a run that began before.
    pub before: Option<jiff::Timestamp>,
    /// In which order.
    pub order: Order,
    /// How many are left out at the beginning.
    pub skip: u64,
    /// How many are listed at most.
    pub last: u64,
}

/// An order of artifacts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Order {
    /// Newest first; what no node made last.
    #[default]
    Age,
    /// Largest first.
    Size,
}

/// An artifact in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its id.
    pub id: Digest,
    /// Its type.
    pub kind: String,
    /// Bytes of its files.
    pub size: u64,
    /// How many they are.
    pub files: u64,
    /// The latest work that made it, if any did.
    pub maker: Option<Maker>,
}

/// The work that made an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maker {
    /// The node key.
    pub key: Digest,
    /// Pipeline name.
    pub pipeline: String,
    /// Node name.
    pub node: String,
    /// The run.
    pub run: String,
    /// When it began, as RFC 3339.
    pub started: String,
}

/// A page of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lines {
    /// Its lines.
    pub lines: Vec<Line>,
    /// How many follow.
    pub more: u64,
    /// Whether it is that or more: a great many are not counted.
    pub more_than: bool,
}

impl Index {
    /// Names of pipelines that made something, in order.
    pub fn pipeline_names(&self) -> Vec<String> {
        self.collect("SELECT DISTINCT pipeline FROM nodes ORDER BY pipeline", [], |row| row.get(0))
    }

    /// Names of nodes that made something, in order.
    pub fn node_names(&self) -> Vec<String> {
        self.collect("SELECT DISTINCT node FROM nodes ORDER BY node", [], |row| row.get(0))
    }

    /// Types of the artifacts that there are, in order.
    pub fn types(&self) -> Vec<String> {
        self.collect("SELECT DISTINCT type FROM artifacts ORDER BY type", [], |row| row.get(0))
    }

    /// The latest runs of a pipeline, newest first.
    pub fn runs_of(&self, pipeline: &str, most: usize) -> Vec<String> {
        let query = "SELECT run FROM runs WHERE pipeline = ?1 ORDER BY run DESC LIMIT ?2";
        self.collect(query, rusqlite::params![pipeline, most as i64], |row| row.get(0))
    }

    /// The keys of the latest records that a node of a pipeline made, newest first.
    pub fn keys_of_node(&self, pipeline: &str, node: &str, most: usize) -> Vec<Digest> {
        // The plus keeps the planner from the index of pipelines: of all that is in one it would have to look at every record.
        let query = "SELECT key FROM nodes WHERE node = ?1 AND +pipeline = ?2 ORDER BY made DESC, key DESC LIMIT ?3";
        self.collect(query, rusqlite::params![node, pipeline, most as i64], |row| digest(row, 0))
    }

    /// A page of the artifacts that the index knows: [`Index::catch_up`] first.
    pub fn list(&self, wanted: &Wanted) -> Lines {
        let (tables, conditions, values, order) = wanted.query();
        let values: Vec<&dyn ToSql> = values.iter().map(AsRef::as_ref).collect();
        let page = format!(
            "SELECT a.id, a.type, a.size, a.files, n.pipeline, n.node, n.run, n.started, n.key
                FROM {tables} WHERE {conditions} ORDER BY {order} LIMIT {} OFFSET {}",
            i64::try_from(wanted.last).unwrap_or(i64::MAX),
            i64::try_from(wanted.skip).unwrap_or(i64::MAX),
        );
        let lines = self.collect(&page, &values[..], |row| {
            let maker = match row.get::<_, Option<String>>(4)? {
                Some(pipeline) => {
                    let (node, run, started) = (row.get(5)?, row.get(6)?, row.get(7)?);
                    Some(Maker { key: digest(row, 8)?, pipeline, node, run, started })
                }
                None => None,
            };
            let (size, files) = (row.get::<_, i64>(2)? as u64, row.get::<_, i64>(3)? as u64);
            Ok(Line { id: digest(row, 0)?, kind: row.get(1)?, size, files, maker })
        });
        let seen = wanted.skip.saturating_add(lines.len() as u64);
        let limit = i64::try_from(seen.saturating_add(COUNTED)).unwrap_or(i64::MAX);
        let count = format!("SELECT COUNT(*) FROM (SELECT 1 FROM {tables} WHERE {conditions} LIMIT {limit})");
        let more = if (lines.len() as u64) < wanted.last {
            0
        } else {
            let all = self.collect(&count, &values[..], |row| row.get::<_, i64>(0));
            all.first().map_or(0, |all| (*all as u64).saturating_sub(seen))
        };
        Lines { lines, more, more_than: more == COUNTED }
    }
}

impl Wanted {
    /// Tables, conditions with their values, and order.
    fn query(&self) -> (&'static str, String, Vec<Box<dyn ToSql>>, &'static str) {
        let mut conditions = Vec::new();
        let mut values: Vec<Box<dyn ToSql>> = Vec::new();
        let mut add = |condition: &str, value: Box<dyn ToSql>| {
            values.push(value);
            conditions.push(condition.replace('?', &format!("?{}", values.len())));
        };
        if let Some(kind) = &self.kind {
            add("a.type = ?", Box::new(kind.clone()));
        }
        // A plus keeps the planner from an index that is in another order than the one asked for.
        let (size_is, made_is) = match self.order {
            Order::Age => ("+a.size", "a.made"),
            Order::Size => ("a.size", "+a.made"),
        };
        if let Some(size) = self.larger {
            add(&format!("{size_is} >= ?"), Box::new(i64::try_from(size).unwrap_or(i64::MAX)));
        }
        if let Some(size) = self.smaller {
            add(&format!("{size_is} < ?"), Box::new(i64::try_from(size).unwrap_or(i64::MAX)));
        }
        if let Some(time) = self.since {
            add(&format!("{made_is} >= ?"), Box::new(made_since(time)));
        }
        if let Some(time) = self.before {
            add(&format!("{made_is} < ?"), Box::new(made_since(time)));
        }
        let by_node = self.pipeline.is_some() || self.node.is_some() || self.like.is_some();
        if let Some(pipeline) = &self.pipeline {
            add("n.pipeline = ?", Box::new(pipeline.clone()));
        }
        if let Some(node) = &self.node {
            add("n.node = ?", Box::new(node.clone()));
        }
        if let Some(part) = &self.like {
            add("instr(lower(n.node), ?) > 0", Box::new(part.to_ascii_lowercase()));
        }
        if conditions.is_empty() {
            conditions.push("1".to_owned());
        }
        // Joined in this order, whatever the planner thinks of it: the first has an index in the order asked for.
        let tables = match (by_node, self.order) {
            (true, Order::Age) => "nodes AS n CROSS JOIN artifacts AS a ON a.id = n.artifact AND a.maker = n.key",
            _ => "artifacts AS a LEFT JOIN nodes AS n ON n.key = a.maker",
        };
        let order = match (self.order, by_node) {
            (Order::Age, false) => "a.made DESC, a.id DESC",
            (Order::Age, true) => "n.made DESC, a.id DESC",
            (Order::Size, _) => "a.size DESC, a.id DESC",
        };
        (tables, conditions.join(" AND "), values, order)
    }
}
