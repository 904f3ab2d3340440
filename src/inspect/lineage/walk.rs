//! From artifact to artifact: up through what made each, or down through what took it.
//!
//! Approach: breadth first, so that each artifact is at its least depth; each is looked at once (once with rows that are
//! followed to it, and once without), so that the walk is linear in what it finds.

use std::collections::{HashMap, HashSet, VecDeque};

use serde::Serialize;
use serde_json::{Map, Value};

use super::follow::{Follow, Rows, is_rows};
use crate::digest::Digest;
use crate::store::{Index, NodeRecord, Store, StoreError};

/// Which way is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// To what something was made of.
    Up,
    /// To what was made of it.
    Down,
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Lineage {
    /// Which way was followed.
    pub way: Way,
    /// The first items are what was asked for.
    pub roots: usize,
    /// All of them, by their distance from the roots.
    pub items: Vec<Item>,
    /// Whether there is more further away than was asked for.
    pub cut: bool,
}

/// An artifact.
#[derive(Debug, Serialize)]
pub struct Item {
    /// Its id.
    pub artifact: Digest,
    /// Its type; absent if it is not in the cache any more.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Bytes; absent with the type.
    pub size: Option<u64>,
    /// What it is called that comes from outside, such as `dataset:posts`.
    pub source: Option<String>,
    /// The work that made it.
    pub made: Option<Made>,
    /// Rows that were followed to it.
    pub rows: Option<Rows>,
    /// What it was made of, or what was made of it.
    pub links: Vec<Link>,
    #[serde(skip)]
    depth: usize,
    #[serde(skip)]
    follow: Follow,
}

/// The work that made an artifact.
#[derive(Debug, Serialize)]
pub struct Made {
    /// Node name.
    pub node: String,
    /// Pipeline name.
    pub pipeline: String,
    /// Kind name.
    pub kind: String,
    /// The node key.
    pub key: Digest,
    /// The run.
    pub run: String,
    /// What it measured.
    pub metrics: Map<String, Value>,
    #[serde(skip)]
    fields: Value,
    #[serde(skip)]
    inputs: Vec<(String, Digest, Option<String>)>,
}

impl Made {
    fn of(record: NodeRecord) -> Self {
        let NodeRecord { node, pipeline, kind, key, run, metrics, inputs, mut preimage, mut sources, .. } = record;
        let inputs = inputs.into_iter().map(|(field, id)| {
            let source = sources.remove(&field);
            (field, id, source)
        });
        let inputs = inputs.collect();
        Self { node, pipeline, kind, key, run, metrics, fields: preimage["fields"].take(), inputs }
    }

    /// Whether the slice of an input that the work takes has a row at one of these places.
    fn takes(&self, field: &str, rows: &Rows) -> bool {
        let at = field.split('.').try_fold(&self.fields, |value, part| value.get(part));
        let number = |name: &str| at.and_then(|slice| slice.get(name)).and_then(Value::as_u64);
        let skip = number("skip").unwrap_or(0);
        let end = number("take").map_or(u64::MAX, |take| skip.saturating_add(take));
        rows.places.is_empty() || rows.places.iter().any(|place| (skip..end).contains(place))
    }
}

/// A step from one item to another.
#[derive(Debug, Serialize)]
pub struct Link {
    /// The input through which the one enters the other.
    pub field: String,
    /// The other item, by its place.
    pub item: usize,
}

struct Walker<'a> {
    store: &'a Store,
    index: &'a Index,
    items: Vec<Item>,
    known: HashMap<(Digest, Follow), usize>,
    open: VecDeque<usize>,
    /// Items at most.
    most: usize,
}

/// Walks from the roots; `depth` is how many steps away is looked.
pub fn walk(
    store: &Store,
    index: &Index,
    roots: &[Digest],
    way: Way,
    follow: &Follow,
    depth: Option<usize>,
) -> Result<Lineage, StoreError> {
    walk_some(store, index, roots, way, follow, depth, usize::MAX)
}

/// As [`walk`], and stops where there are so many items; more of them are as if they were further away.
pub fn walk_some(
    store: &Store,
    index: &Index,
    roots: &[Digest],
    way: Way,
    follow: &Follow,
    depth: Option<usize>,
    most: usize,
) -> Result<Lineage, StoreError> {
    let (known, open) = (HashMap::new(), VecDeque::new());
    let mut walker = Walker { store, index, items: Vec::new(), known, open, most };
    let mut cut = false;
    for id in roots {
        let made = walker.maker(id, None)?;
        let mut found = follow.rows_of(store, id)?;
        // A slice of a dataset that does not have the row is not asked for.
        if roots.len() > 1 && found.as_ref().is_some_and(Rows::is_empty) {
            continue;
        }
        found = found.filter(|rows| !rows.is_empty());
        walker.add(*id, made, None, found, follow.clone(), 0);
    }
    let roots = walker.items.len();
    while let Some(at) = walker.open.pop_front() {
        let next = match way {
            Way::Up => walker.inputs(at)?,
            Way::Down => walker.users(at)?,
        };
        if depth.is_some_and(|depth| walker.items[at].depth >= depth) {
            cut |= !next.is_empty();
            continue;
        }
        for Next { field, id, made, source, rows, follow } in next {
            if walker.items.len() >= most && !walker.known.contains_key(&(id, follow.clone())) {
                cut = true;
                continue;
            }
            let item = walker.add(id, made, source, rows, follow, walker.items[at].depth + 1);
            walker.items[at].links.push(Link { field, item });
        }
    }
    Ok(Lineage { way, roots, items: walker.items, cut })
}

/// An artifact that a step leads to.
struct Next {
    field: String,
    id: Digest,
    made: Option<Made>,
    source: Option<String>,
    rows: Option<Rows>,
    follow: Follow,
}

impl Walker<'_> {
    fn add(
        &mut self,
        artifact: Digest,
        made: Option<Made>,
        source: Option<String>,
        rows: Option<Rows>,
        follow: Follow,
        depth: usize,
    ) -> usize {
        if let Some(known) = self.known.get(&(artifact, follow.clone())) {
            let item = &mut self.items[*known];
            item.source = item.source.take().or(source);
            return *known;
        }
        let manifest = self.store.manifest(&artifact).ok();
        let (kind, size) =
            (manifest.as_ref().map(|manifest| manifest.kind.clone()), manifest.map(|found| found.size()));
        self.known.insert((artifact, follow.clone()), self.items.len());
        self.open.push_back(self.items.len());
        self.items.push(Item { artifact, kind, size, source, made, rows, links: Vec::new(), depth, follow });
        self.items.len() - 1
    }

    /// The work that made an artifact: that of a pipeline before others, and none that only handed it on.
    fn maker(&self, id: &Digest, pipeline: Option<&str>) -> Result<Option<Made>, StoreError> {
        let mut makers = self.index.makers(id);
        makers.sort_by_key(|maker| pipeline.is_some_and(|own| own != maker.pipeline));
        let mut handed_on = None;
        for maker in makers {
            match self.store.node(&maker.key)? {
                Some(record) if record.inputs.values().any(|input| input == id) => {
                    handed_on = handed_on.or(Some(record));
                }
                Some(record) => return Ok(Some(Made::of(record))),
                None => {}
            }
        }
        Ok(handed_on.map(Made::of))
    }

    /// What an item was made of.
    fn inputs(&mut self, at: usize) -> Result<Vec<Next>, StoreError> {
        let Some(made) = &mut self.items[at].made else { return Ok(Vec::new()) };
        let (inputs, pipeline) = (std::mem::take(&mut made.inputs), made.pipeline.clone());
        let follow = self.items[at].follow.clone();
        let mut next = Vec::new();
        for (field, id, source) in inputs {
            let made = self.maker(&id, Some(&pipeline))?;
            let through = follow.through(&field);
            let found = if is_rows(&field) { through.rows_of(self.store, &id)? } else { None };
            let found = found.filter(|rows| !rows.is_empty());
            // Where the row is lost, as in the weights of a model, the artifacts go on. Constitutions are those that it drew.
            let drawn = field == "constitutions" && self.items[at].rows.is_some();
            let follow = if found.is_some() || drawn { through } else { Follow::Nothing };
            next.push(Next { field, id, made, source, rows: found, follow });
        }
        // What the row was made of before what computed it.
        next.sort_by_key(|next| next.follow.is_nothing());
        Ok(next)
    }

    /// What was made of an item.
    fn users(&mut self, at: usize) -> Result<Vec<Next>, StoreError> {
        let item = &self.items[at];
        let (id, follow) = (item.artifact, item.follow.clone());
        let mut next = Vec::new();
        let mut seen = HashSet::new();
        for user in self.index.users(&id) {
            // One more than there is room for tells that there are more.
            if next.len() > self.most {
                break;
            }
            let Some(record) = self.store.node(&user.key)? else { continue };
            let (artifact, made) = (record.artifact, Made::of(record));
            if artifact == id || !seen.insert((user.field.clone(), artifact)) {
                continue;
            }
            let own = self.items[at].rows.as_ref();
            if own.is_some_and(|rows| is_rows(&user.field) && !made.takes(&user.field, rows)) {
                continue;
            }
            let (mut found, mut goes_on) = (None, Follow::Nothing);
            if !follow.is_nothing() && is_rows(&user.field) {
                match follow.rows_of(self.store, &artifact)? {
                    // It was dropped on the way, or is not in the part that was taken.
                    Some(rows) if rows.is_empty() => continue,
                    rows => found = rows,
                }
                if found.is_some() {
                    goes_on = follow.clone();
                }
            }
            next.push(Next {
                field: user.field,
                id: artifact,
                made: Some(made),
                source: None,
                rows: found,
                follow: goes_on,
            });
        }
        Ok(next)
    }
}
