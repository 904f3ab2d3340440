//! A lineage as a tree. What is in several places is drawn once, with what is below it, and only named elsewhere.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::super::figures::{bytes, count, cut, plural, some};
use super::super::outcomes;
use super::super::rows;
use super::super::screen::Screen;
use crate::inspect::lineage::{Item, Lineage, Rows, Way, stances};
use crate::store::Store;

/// Lines of a row that are shown.
const LINES: usize = 8;
/// Metrics of a line.
const METRICS: usize = 3;
/// Runs that are named.
const RUNS: usize = 6;
/// Levels that a line is indented by at most; further ones are counted.
const LEVELS: usize = 12;

/// Draws it.
pub(super) fn text(lineage: &Lineage, store: &Store, screen: Screen) -> String {
    let mut drawn = vec![false; lineage.items.len()];
    let mut page = String::new();
    for root in 0..lineage.roots {
        draw(lineage, store, root, screen, &mut drawn, &mut page);
    }
    let mut parts = vec![plural(lineage.items.len() as u64, "artifact")];
    let nodes: BTreeSet<_> =
        lineage.items.iter().filter_map(|item| item.made.as_ref()).map(|made| (&made.pipeline, &made.node)).collect();
    parts.push(plural(nodes.len() as u64, "node"));
    let more = if lineage.cut { "; more further away: raise `--depth`" } else { "" };
    page.push('\n');
    page.push_str(&screen.fit(&format!("{}{more}", parts.join(" of "))));
    page.push('\n');
    let runs: BTreeSet<&str> = lineage.items.iter().filter_map(|item| Some(item.made.as_ref()?.run.as_str())).collect();
    if lineage.way == Way::Down && !runs.is_empty() {
        let runs: Vec<&str> = runs.into_iter().rev().collect();
        page.push_str(&screen.fit(&format!(
            "made in {}: {}",
            plural(runs.len() as u64, "run"),
            some(&runs, ", ", RUNS)
        )));
        page.push('\n');
    }
    page
}

/// An item that is to be drawn: through which input, and for each level above whether more follows there.
struct Open {
    item: usize,
    field: String,
    above: Vec<bool>,
    level: usize,
}

fn draw(lineage: &Lineage, store: &Store, root: usize, screen: Screen, drawn: &mut [bool], page: &mut String) {
    let mut open = vec![Open { item: root, field: String::new(), above: Vec::new(), level: 0 }];
    while let Some(Open { item: at, field, above, level }) = open.pop() {
        let item = &lineage.items[at];
        let (mut lead, mut below) = (String::new(), String::new());
        if level > LEVELS {
            lead.push_str(&format!("┆{level} "));
            below.push_str(&" ".repeat(lead.chars().count()));
        }
        let last = above.len().saturating_sub(1);
        for (place, more) in above.iter().enumerate() {
            lead.push_str(match (place == last, more) {
                (true, true) => "├─ ",
                (true, false) => "└─ ",
                (false, true) => "│  ",
                (false, false) => "   ",
            });
            below.push_str(if *more { "│  " } else { "   " });
        }
        let again = std::mem::replace(&mut drawn[at], true);
        let mut line = format!("{lead}{}", head(item, &field));
        if again && !item.links.is_empty() {
            line.push_str("  (above)");
        }
        page.push_str(&screen.fit(&line));
        page.push('\n');
        if again {
            continue;
        }
        below.push_str(if item.links.is_empty() { "   " } else { "│  " });
        for line in row_lines(lineage, at, store) {
            page.push_str(&screen.fit(&format!("{below}{line}")));
            page.push('\n');
        }
        for (place, link) in item.links.iter().enumerate().rev() {
            let mut above = above.clone();
            if above.len() >= LEVELS {
                above.remove(0);
            }
            above.push(place + 1 < item.links.len());
            open.push(Open { item: link.item, field: link.field.clone(), above, level: level + 1 });
        }
    }
}

/// What an item is, on a line.
fn head(item: &Item, field: &str) -> String {
    let name = match (&item.made, &item.source) {
        (Some(made), _) => made.node.clone(),
        (None, Some(source)) => source.clone(),
        (None, None) => "from outside".to_owned(),
    };
    let mut line = if field.is_empty() { name } else { format!("{field} = {name}") };
    match (&item.kind, item.size) {
        (Some(kind), Some(size)) => line.push_str(&format!("  {kind} {}, {}", item.artifact.short(), bytes(size))),
        _ => line.push_str(&format!("  {}, not in the cache any more", item.artifact.short())),
    }
    if let Some(made) = &item.made {
        let told = match item.kind.as_deref() {
            Some("evaluation") => win_rates(&made.metrics),
            _ => outcomes::headline(&made.metrics),
        };
        if !told.is_empty() {
            line.push_str(&format!("  {}", some(&told, " · ", METRICS)));
        }
    }
    line
}

/// Win rates with their intervals; what else there is if there are none.
fn win_rates(metrics: &Map<String, Value>) -> Vec<String> {
    let rates = metrics.iter().filter(|(name, _)| name.starts_with("win_rate."));
    let told: Vec<String> =
        rates.map(|(name, rate)| format!("{name} {}", outcomes::with_interval(metrics, name, rate))).collect();
    if told.is_empty() { outcomes::headline(metrics) } else { told }
}

/// What is told of the rows that were followed to an item: of a row what it has beyond those that it was made of.
fn row_lines(lineage: &Lineage, at: usize, store: &Store) -> Vec<String> {
    let item = &lineage.items[at];
    let mut lines = Vec::new();
    if item.kind.as_deref() == Some("constitutions") && lineage.way == Way::Up {
        let rows = lineage.items.iter().filter(|user| user.links.iter().any(|link| link.item == at));
        let rows: Vec<&Rows> = rows.filter_map(|user| user.rows.as_ref()).collect();
        return principle_lines(item, &rows, store);
    }
    let Some(found) = &item.rows else { return lines };
    if found.found > 1 || lineage.way == Way::Down {
        lines.push(format!("{} of {}", count(found.found), plural(found.of, "row")));
    }
    if lineage.way == Way::Down && found.found > found.first.len() as u64 {
        return lines;
    }
    for row in &found.first {
        let mut own = row.clone();
        let made_of = item.links.iter().filter(|_| lineage.way == Way::Up);
        for other in made_of.filter_map(|link| lineage.items[link.item].rows.as_ref()).flat_map(|rows| &rows.first) {
            own.retain(|name, value| name == "id" || other.get(name) != Some(value));
        }
        let told = rows::lines(&Value::Object(own).to_string());
        let number = told.len();
        lines.extend(told.into_iter().take(LINES).map(|line| format!("row {line}").replacen("row   ", "      ", 1)));
        if number > LINES {
            lines.push(format!("      … {} more lines", number - LINES));
        }
    }
    lines
}

/// The principles that rows drew from constitutions, as these define them.
fn principle_lines(item: &Item, rows: &[&Rows], store: &Store) -> Vec<String> {
    let drawn: BTreeSet<(&str, &str)> = rows.iter().flat_map(|rows| &rows.first).flat_map(stances).collect();
    if drawn.is_empty() {
        return Vec::new();
    }
    let path = store.files(&item.artifact).ok().and_then(|files| files.get("constitutions.json").cloned());
    let read =
        path.and_then(|path| serde_json::from_slice::<Value>(&fs_err::read(path).ok()?).ok()).unwrap_or_default();
    let line = |(name, polarity): (&str, &str)| {
        let text = read["principles"][name][polarity].as_str().unwrap_or_default();
        format!("principle {name} ({polarity})  {}", cut(text, 80))
    };
    drawn.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::sample;
    use super::*;
    use crate::digest::Digest;
    use crate::inspect::lineage::{Follow, walk};
    use crate::store::Index;
    use serde_json::json;

    /// A chain of nodes that each take the two before them, too.
    fn chain(length: usize) -> (tempfile::TempDir, Store, Index, Vec<Digest>) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("cache")).unwrap();
        let mut index = Index::open(&store).unwrap();
        let mut made: Vec<Digest> = Vec::new();
        for at in 0..length {
            let artifact = sample::put(&store, "files", &[("out", at.to_string())]);
            let above: Vec<(String, Digest)> =
                (0..at).rev().take(3).map(|other| (format!("inputs.n{other}"), made[other])).collect();
            let inputs: Vec<(&str, Digest)> = above.iter().map(|(field, id)| (field.as_str(), *id)).collect();
            let fields = json!({"args": [at]});
            let record = sample::record(
                "20260101-000000-aaaa",
                &format!("n{at}"),
                "command",
                &inputs,
                fields,
                json!({}),
                artifact,
            );
            store.put_node(&record).unwrap();
            index.add_node(&record);
            made.push(artifact);
        }
        (folder, store, index, made)
    }

    #[test]
    fn what_is_in_several_places_is_drawn_once() {
        let (_folder, store, index, made) = chain(4);
        let shown = |at: usize, way: Way, depth: Option<usize>| {
            let lineage = walk(&store, &index, &made[at..=at], way, &Follow::Nothing, depth).unwrap();
            let text = text(&lineage, &store, Screen::plain(80));
            let id = regex::Regex::new("  files [0-9a-f]{12}, 1 B").unwrap();
            id.replace_all(&text, "").into_owned()
        };
        let up = "\
n3
├─ inputs.n0 = n0
├─ inputs.n1 = n1
│  └─ inputs.n0 = n0
└─ inputs.n2 = n2
   ├─ inputs.n0 = n0
   └─ inputs.n1 = n1  (above)

4 artifacts of 4 nodes
";
        assert_eq!(shown(3, Way::Up, None), up);
        let down = "\
n1
├─ inputs.n1 = n2
│  └─ inputs.n2 = n3
└─ inputs.n1 = n3

3 artifacts of 3 nodes
made in 1 run: 20260101-000000-aaaa
";
        assert_eq!(shown(1, Way::Down, None), down);
        assert!(shown(3, Way::Up, Some(1)).contains("more further away: raise `--depth`"));
        assert_eq!(shown(3, Way::Up, Some(0)), "n3\n\n1 artifact of 1 node; more further away: raise `--depth`\n");
    }

    #[test]
    fn long_chains_are_drawn_in_as_many_lines_as_they_have_inputs() {
        let length = 150;
        let (_folder, store, index, made) = chain(length);
        let lineage = walk(&store, &index, &made[length - 1..], Way::Up, &Follow::Nothing, None).unwrap();
        assert_eq!(lineage.items.len(), length);
        let text = text(&lineage, &store, Screen::plain(80));
        // A line for the root, for each input, and the two at the end.
        assert_eq!(text.lines().count(), 1 + (3 * length - 6) + 2);
        assert!(text.lines().all(|line| line.chars().count() <= 80));
    }
}
