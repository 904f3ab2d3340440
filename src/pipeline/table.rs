//! A table of TOML: keys and what they hold, in the order of the file.
//!
//! Most have a handful of keys, which are looked through one by one. One of many, as `[nodes]` can be, has a list of places
//! beside, by the hashes of the keys: an index for each of ten thousand small tables would take more time than all else of them.

use std::fmt;
use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::tree::Entry;

/// So many entries are looked through one by one.
const FEW: usize = 12;

/// The entries of a table, in the order of the file.
#[derive(Clone, Default)]
pub struct Table {
    entries: Vec<(String, Entry)>,
    index: Option<Box<Index>>,
}

/// Places of entries, by their keys.
#[derive(Clone, Default)]
struct Index {
    hasher: RandomState,
    places: HashTable<u32>,
}

impl Index {
    fn of(entries: &[(String, Entry)]) -> Self {
        let mut index = Self { hasher: RandomState::default(), places: HashTable::with_capacity(2 * entries.len()) };
        (0..entries.len()).for_each(|place| index.put(place, entries));
        index
    }

    fn put(&mut self, place: usize, entries: &[(String, Entry)]) {
        let hash = |place: &u32| self.hasher.hash_one(&entries[*place as usize].0);
        let place = place as u32;
        self.places.insert_unique(hash(&place), place, hash);
    }

    fn find(&self, key: &str, entries: &[(String, Entry)]) -> Option<usize> {
        let is_it = |place: &u32| entries[*place as usize].0 == key;
        self.places.find(self.hasher.hash_one(key), is_it).map(|place| *place as usize)
    }
}

impl Table {
    /// An empty one with room for some entries.
    pub fn with_capacity(entries: usize) -> Self {
        Self { entries: Vec::with_capacity(entries), index: None }
    }

    /// How many entries it has.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The place of a key.
    pub(super) fn place_of(&self, key: &str) -> Option<usize> {
        match &self.index {
            Some(index) => index.find(key, &self.entries),
            None => self.entries.iter().position(|(known, _)| known == key),
        }
    }

    /// The entry at a place that there is.
    pub(super) fn at_mut(&mut self, place: usize) -> &mut Entry {
        &mut self.entries[place].1
    }

    /// The key and the entry at a place.
    pub fn get_index(&self, place: usize) -> Option<&(String, Entry)> {
        self.entries.get(place)
    }

    /// The entry of a key.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.place_of(key).map(|place| &self.entries[place].1)
    }

    /// The entry of a key.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut Entry> {
        self.place_of(key).map(|place| &mut self.entries[place].1)
    }

    /// Whether it has a key.
    pub fn contains_key(&self, key: &str) -> bool {
        self.place_of(key).is_some()
    }

    /// Adds an entry at the end and returns its place; `None` if there is one of that key.
    pub(super) fn add(&mut self, key: &str, entry: Entry) -> Option<usize> {
        self.place_of(key).is_none().then(|| self.push(key.to_owned(), entry))
    }

    /// Sets the entry of a key: a new one stands at the end. Returns what the key had.
    pub fn insert(&mut self, key: String, entry: Entry) -> Option<Entry> {
        match self.place_of(&key) {
            Some(place) => Some(std::mem::replace(&mut self.entries[place].1, entry)),
            None => {
                self.push(key, entry);
                None
            }
        }
    }

    fn push(&mut self, key: String, entry: Entry) -> usize {
        let place = self.entries.len();
        self.entries.push((key, entry));
        match &mut self.index {
            Some(index) => index.put(place, &self.entries),
            None => self.find_places(),
        }
        place
    }

    /// Takes an entry out; those after it move up.
    pub fn shift_remove(&mut self, key: &str) -> Option<Entry> {
        let place = self.place_of(key)?;
        let (_, entry) = self.entries.remove(place);
        self.find_places();
        Some(entry)
    }

    /// Takes out the entries that `keep` says no to.
    pub fn retain(&mut self, mut keep: impl FnMut(&String, &mut Entry) -> bool) {
        self.entries.retain_mut(|(key, entry)| keep(key, entry));
        self.find_places();
    }

    /// Takes out all entries.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.find_places();
    }

    fn find_places(&mut self) {
        self.index = (self.entries.len() > FEW).then(|| Box::new(Index::of(&self.entries)));
    }

    /// Keys with their entries.
    pub fn iter(&self) -> std::slice::Iter<'_, (String, Entry)> {
        self.entries.iter()
    }

    /// The keys.
    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.entries.iter().map(|(key, _)| key)
    }

    /// The entries without their keys.
    pub fn values(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().map(|(_, entry)| entry)
    }

    /// The entries without their keys.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.entries.iter_mut().map(|(_, entry)| entry)
    }
}

/// By key, whatever the order.
impl PartialEq for Table {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().all(|(key, entry)| other.get(key) == Some(entry))
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.entries.iter().map(|(key, entry)| (key, entry))).finish()
    }
}

impl FromIterator<(String, Entry)> for Table {
    fn from_iter<I: IntoIterator<Item = (String, Entry)>>(entries: I) -> Self {
        let mut table = Self::default();
        entries.into_iter().for_each(|(key, entry)| _ = table.insert(key, entry));
        table
    }
}

impl IntoIterator for Table {
    type Item = (String, Entry);
    type IntoIter = std::vec::IntoIter<(String, Entry)>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.into_iter()
    }
}

impl<'a> IntoIterator for &'a Table {
    type Item = &'a (String, Entry);
    type IntoIter = std::slice::Iter<'a, (String, Entry)>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree::{Tree, TreeValue};
    use super::*;

    fn entry(number: i64) -> Entry {
        Entry { key_span: 0..0, value: Tree { span: 0..0, value: TreeValue::Integer(number) } }
    }

    #[test]
    fn entries_are_found_be_they_few_or_many() {
        for count in [0, 1, FEW, FEW + 1, 1000] {
            let mut table = Table::with_capacity(2);
            let key = |number: usize| format!("k{number}");
            for number in 0..count {
                assert_eq!(table.add(&key(number), entry(number as i64)), Some(number));
                assert_eq!(table.add(&key(number), entry(0)), None);
            }
            assert_eq!(table.insert("x".to_owned(), entry(-1)), None);
            assert_eq!(table.insert("x".to_owned(), entry(-2)), Some(entry(-1)));
            let mut backwards: Vec<_> = table.clone().into_iter().collect();
            backwards.reverse();
            assert_eq!(backwards.iter().cloned().collect::<Table>(), table);
            for number in (0..count).step_by(3) {
                assert_eq!(table.shift_remove(&key(number)), Some(entry(number as i64)));
            }
            table.retain(|key, _| key != "k1");
            for number in 0..count {
                let there = number % 3 > 0 && number != 1;
                assert_eq!(table.get(&key(number)), there.then(|| entry(number as i64)).as_ref(), "{number}");
            }
            assert!(table.keys().is_sorted_by_key(|key| key[1..].parse().unwrap_or(usize::MAX)));
            assert_eq!(table == backwards.into_iter().collect(), count == 0);
            table.clear();
            assert!(table.is_empty() && !table.contains_key("x"));
        }
    }
}
