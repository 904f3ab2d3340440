//! Which files of a repository hold the rows of a dataset that are asked for.
//!
//! Where nobody names the files, they are found by what people call them: the directory is the configuration (`data/` and
//! the top are none), and the split is the file's name (`train.jsonl`), what stands before the number of a shard
//! (`train-00000-of-00004.parquet`), or the directory of numbered shards (`train/0000.parquet`, as the hub converts).

use std::collections::{BTreeMap, BTreeSet};

/// Formats that rows are read from, in the order of preference where a split is there in several.
const FORMATS: [&str; 5] = ["parquet", "jsonl", "json", "csv", "txt"];
/// Splits as people call them; the first of each is the usual name.
const SPLITS: [&[&str]; 3] =
    [&["train", "training"], &["validation", "valid", "val", "dev"], &["test", "testing", "eval", "evaluation"]];
/// The split where none is named.
const DEFAULT: &str = "train";

/// The rows of a dataset that are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    /// The split; `train` without it.
    pub split: Option<String>,
    /// The configuration; the only one, or the one that has no name, without it.
    pub config: Option<String>,
    /// The files, as names or patterns with `*`; found by split and configuration without them.
    pub files: Vec<String>,
}

/// Why a repository has not what is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lack {
    /// It has no file of rows at all.
    Rows,
    /// No file is called so, or none has rows.
    File(String),
    /// Which configuration is meant is open; it has these.
    Config(BTreeSet<String>),
    /// It has no such split, but these.
    Split(BTreeSet<String>),
    /// A part of the rows is not there: this file of so many.
    Shard(String, usize),
}

/// A file of rows, as its name tells.
struct File<'a> {
    name: &'a str,
    config: String,
    split: String,
    /// Index into [`FORMATS`].
    format: usize,
}

fn format(name: &str) -> Option<(usize, &str)> {
    let plain = name.strip_suffix(".gz").unwrap_or(name);
    let (stem, extension) = plain.rsplit_once('.')?;
    Some((FORMATS.iter().position(|format| *format == extension)?, stem))
}

/// `train-00000-of-00004`, perhaps with a digest behind it: the part before, the number, and of how many.
fn shard(stem: &str) -> Option<(&str, usize, usize)> {
    let (before, of) = stem.rsplit_once("-of-")?;
    let of = of.split('-').next()?;
    let (name, number) = before.rsplit_once('-')?;
    Some((name, number.parse().ok()?, of.parse().ok()?))
}

impl<'a> File<'a> {
    fn of(name: &'a str) -> Option<Self> {
        let (format, path) = format(name)?;
        let mut folders: Vec<&str> = path.split('/').collect();
        let stem = folders.pop().filter(|stem| !stem.starts_with('.'))?;
        let numbered = stem.bytes().all(|byte| byte.is_ascii_digit());
        let split = match shard(stem) {
            Some(("data" | "part", ..)) if !folders.is_empty() => folders.pop()?,
            Some((split, ..)) => split,
            None if numbered && !folders.is_empty() => folders.pop()?,
            None => stem,
        };
        let split = split.strip_prefix("partial-").unwrap_or(split);
        let config = folders.iter().filter(|folder| **folder != "data").copied().collect::<Vec<_>>().join("/");
        Some(Self { name, config, split: split.to_owned(), format })
    }

    /// Whether it is of a split, by any of the names that people give it.
    fn is(&self, split: &str) -> bool {
        self.split == split || SPLITS.iter().any(|names| names[0] == split && names.contains(&self.split.as_str()))
    }

    fn has_usual_split(&self) -> bool {
        SPLITS.iter().any(|names| names.contains(&self.split.as_str())) || shard(self.stem()).is_some()
    }

    fn stem(&self) -> &str {
        format(self.name).map_or("", |(_, path)| path.rsplit('/').next().unwrap_or(path))
    }
}

/// Chooses files, in the order of their rows.
pub(super) fn choose(names: &[&str], part: &Part) -> Result<Vec<String>, Lack> {
    if !part.files.is_empty() {
        return named(names, &part.files);
    }
    let files: Vec<File<'_>> = names.iter().filter_map(|name| File::of(name)).collect();
    if files.is_empty() {
        return Err(Lack::Rows);
    }
    let mut configs: BTreeMap<&str, Vec<&File<'_>>> = BTreeMap::new();
    for file in &files {
        configs.entry(&file.config).or_default().push(file);
    }
    let known = || configs.keys().filter(|name| !name.is_empty()).map(|name| (*name).to_owned()).collect();
    let files = match &part.config {
        Some(config) => configs.get(config.as_str()).or(configs.get("").filter(|_| config == "default")),
        None if configs.len() == 1 => configs.values().next(),
        None => configs.get("").or(configs.get("default")),
    };
    let files = files.ok_or_else(|| Lack::Config(known()))?;
    let split = part.split.as_deref().unwrap_or(DEFAULT);
    let mut chosen: Vec<&File<'_>> = files.iter().copied().filter(|file| file.is(split)).collect();
    // A repository of a file or two with names of their own is all one split.
    if chosen.is_empty() && split == DEFAULT && !files.iter().any(|file| file.has_usual_split()) {
        chosen.clone_from(files);
    }
    let Some(format) = chosen.iter().map(|file| file.format).min() else {
        return Err(Lack::Split(files.iter().map(|file| file.split.clone()).collect()));
    };
    chosen.retain(|file| file.format == format);
    chosen.sort_by_key(|file| file.name);
    let shards: Vec<usize> = chosen.iter().filter_map(|file| Some(shard(file.stem())?.1)).collect();
    if let Some((_, _, of)) = chosen.first().and_then(|file| shard(file.stem()))
        && let Some(absent) = (0..of).find(|number| !shards.contains(number))
    {
        return Err(Lack::Shard(format!("{split}, number {absent}"), of));
    }
    Ok(chosen.into_iter().map(|file| file.name.to_owned()).collect())
}

/// The files of these names and patterns, in the order in which they are named.
fn named(names: &[&str], wanted: &[String]) -> Result<Vec<String>, Lack> {
    let mut chosen: Vec<String> = Vec::new();
    for pattern in wanted {
        let mut found: Vec<&str> = names.iter().copied().filter(|name| matches(pattern, name)).collect();
        found.retain(|name| format(name).is_some());
        if found.is_empty() {
            return Err(Lack::File(pattern.clone()));
        }
        found.sort_unstable();
        for name in found {
            if !chosen.iter().any(|known| known == name) {
                chosen.push(name.to_owned());
            }
        }
    }
    Ok(chosen)
}

/// Whether a name fits a pattern, in which `*` is anything within a directory and `**` anything at all.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return pattern == name };
    let Some(rest) = name.strip_prefix(before) else { return false };
    let (after, deep) = match after.strip_prefix('*') {
        Some(after) => (after.strip_prefix('/').unwrap_or(after), true),
        None => (after, false),
    };
    let ends = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
    ends.take_while(|end| deep || !rest[..*end].contains('/')).any(|end| matches(after, &rest[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str], split: &str, config: &str) -> Result<Vec<String>, Lack> {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        choose(names, &Part { split: some(split), config: some(config), files: Vec::new() })
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn usual_layouts_are_known() {
        let shards = [
            "data/train-00001-of-00002.parquet",
            "data/train-00000-of-00002.parquet",
            "data/test-00000-of-00001.parquet",
        ];
        assert_eq!(
            chosen(&shards, "", "").expect("a split"),
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]
        );
        assert_eq!(chosen(&shards, "test", "default").expect("a split"), ["data/test-00000-of-00001.parquet"]);
        assert_eq!(chosen(&shards, "dev", ""), Err(Lack::Split(set(&["test", "train"]))));
        assert_eq!(chosen(&shards[..1], "", ""), Err(Lack::Shard("train, number 0".to_owned(), 2)));
        let rlhf =
            ["README.md", "harmless-base/train.jsonl.gz", "harmless-base/test.jsonl.gz", "helpful-base/train.jsonl.gz"];
        assert_eq!(chosen(&rlhf, "test", "harmless-base").expect("a split"), ["harmless-base/test.jsonl.gz"]);
        assert_eq!(chosen(&rlhf, "train", ""), Err(Lack::Config(set(&["harmless-base", "helpful-base"]))));
        assert_eq!(chosen(&rlhf, "train", "helpful"), Err(Lack::Config(set(&["harmless-base", "helpful-base"]))));
        let converted = [
            "comparisons/train/0000.parquet",
            "comparisons/train/0001.parquet",
            "comparisons/validation/0000.parquet",
            "axis/test/0000.parquet",
        ];
        assert_eq!(chosen(&converted, "", "comparisons").expect("a split").len(), 2);
        assert_eq!(
            chosen(&converted, "validation", "comparisons").expect("a split"),
            ["comparisons/validation/0000.parquet"]
        );
        assert_eq!(chosen(&["default/partial-train/0000.parquet"], "", "").expect("a split").len(), 1);
        assert_eq!(chosen(&["dev.csv", "train.csv"], "validation", "").expect("a split"), ["dev.csv"]);
        assert_eq!(chosen(&["train.json", "train.parquet", "x.py"], "", "").expect("a split"), ["train.parquet"]);
        assert_eq!(chosen(&["en/train-00000-of-00001-0a1b2c3d4e5f6071.parquet"], "", "en").expect("a split").len(), 1);
        assert_eq!(
            chosen(&["prompts.jsonl", "more.jsonl"], "", "").expect("all rows"),
            ["more.jsonl", "prompts.jsonl"]
        );
        assert_eq!(chosen(&["prompts.jsonl"], "test", ""), Err(Lack::Split(set(&["prompts"]))));
        assert_eq!(chosen(&["README.md", "script.py"], "", ""), Err(Lack::Rows));
    }

    #[test]
    fn named_files_come_in_their_order() {
        let names = ["a/one.jsonl", "a/two.jsonl", "b/one.jsonl.gz", "a/note.md", "a/b/deep.csv"];
        let chosen = |patterns: &[&str]| {
            let files = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
            choose(&names, &Part { files, ..Part::default() })
        };
        assert_eq!(
            chosen(&["b/one.jsonl.gz", "a/*.jsonl"]).expect("files"),
            ["b/one.jsonl.gz", "a/one.jsonl", "a/two.jsonl"]
        );
        assert_eq!(chosen(&["**/one.*"]).expect("files"), ["a/one.jsonl", "b/one.jsonl.gz"]);
        assert_eq!(chosen(&["a/*"]).expect("files").len(), 2);
        assert_eq!(chosen(&["a/**"]).expect("files").len(), 3);
        assert_eq!(chosen(&["a/one.jsonl", "c/*"]), Err(Lack::File("c/*".to_owned())));
        assert_eq!(chosen(&["a/note.md"]), Err(Lack::File("a/note.md".to_owned())));
    }
}
