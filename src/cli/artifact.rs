//! `sami cache show`: an artifact in one screen.

use std::collections::BTreeMap;

use serde_json::json;

use super::figures::{bytes, count, plural};
use super::page::Page;
use super::{CommandResult, Context, DONE, context, find, rows};
use crate::inspect::artifact::{Known, know};
use crate::store::{Index, Preview, Store, StoreError, Use, preview};

/// Rows that are shown, if they are short.
const ROWS: usize = 5;
/// Lines for all rows.
const LINES: usize = 14;

/// Shows what an artifact is, what made it, from what, what uses it, its metrics and its first rows.
pub(super) fn show(context: &Context, store: &Store, index: &Index, what: &str) -> CommandResult {
    let known = know(store, index, find::artifact(store, index, what)?)?;
    let glance = preview(store, &known.id, ROWS)?;
    if context.json() {
        context::print_json(&json!({
            "artifact": known.id,
            "type": known.manifest.kind,
            "size": known.manifest.size(),
            "files": known.manifest.files,
            "paths": store.files(&known.id)?,
            "external": store.external(&known.id)?.map(|external| external.directory),
            "record": known.record,
            "made_by": known.makers,
            "used_by": known.users,
            "preview": glance,
        }))?;
    } else {
        context::print(&page(store, index, &known, &glance)?)?;
    }
    Ok(DONE)
}

fn page(store: &Store, index: &Index, known: &Known, glance: &Preview) -> Result<String, StoreError> {
    let mut page = Page::default();
    let size = bytes(known.manifest.size());
    let rows = glance.rows.map_or_else(String::new, |rows| format!(", {}", plural(rows, "row")));
    page.lines("artifact", [known.id.to_string(), format!("{}, {size}{rows}", known.manifest.kind)]);
    match &known.record {
        Some(record) => page.record(store, index, record, false),
        None => page.line("source", "read from outside the pipeline; no node made it"),
    }
    if let Some(external) = store.external(&known.id)? {
        page.line("left in", &external.directory.display().to_string());
    }
    uses("also by", known.makers.get(1..).unwrap_or_default(), &mut page);
    uses("used by", &known.users, &mut page);
    if known.users.is_empty() {
        page.line("used by", "nothing yet");
    }
    let files = known.manifest.files.iter();
    let files: Vec<_> = files.map(|(name, blob)| format!("{name} ({})", bytes(blob.size))).collect();
    page.list("files", &files);
    look(glance, &mut page);
    Ok(page.into_text())
}

fn uses(label: &str, uses: &[Use], page: &mut Page) {
    // A node that took it in several runs or under several keys is one user.
    let mut seen: BTreeMap<(&str, &str), &Use> = BTreeMap::new();
    for one in uses {
        seen.entry((&one.pipeline, &one.node)).or_insert(one);
    }
    let parts = seen.values().map(|one| match one.field.as_str() {
        "" => format!("{}/{}", one.pipeline, one.node),
        field => format!("{}/{} as {field}", one.pipeline, one.node),
    });
    let parts: Vec<String> = parts.collect();
    page.list(label, &parts);
}

fn look(glance: &Preview, page: &mut Page) {
    if !glance.config.is_empty() {
        let types = glance.dtypes.join(", ");
        let weights = format!("{} parameters in {} tensors, {types}", count(glance.parameters), glance.tensors);
        page.line("weights", &weights);
        let plain =
            glance.config.iter().filter(|(_, value)| !value.is_object() && !value.is_array() && !value.is_null());
        let parts: Vec<_> = plain.map(|(name, value)| format!("{name} {value}")).collect();
        page.flow("config", &parts, " · ");
        return;
    }
    let Some(rows) = glance.rows else { return page.lines("text", &glance.lines) };
    let mut shown: Vec<Vec<String>> = glance.lines.iter().map(|row| rows::lines(row)).collect();
    // As many whole rows as fit, one at least.
    while shown.len() > 1 && shown.iter().map(Vec::len).sum::<usize>() > LINES {
        shown.pop();
    }
    let more = rows.saturating_sub(shown.len() as u64);
    page.lines("rows", shown.concat());
    if more > 0 {
        page.line("", &format!("… {} in all", plural(rows, "row")));
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn an_artifact_fits_a_screen() {
        let (_folder, store, index) = sample::store();
        let page = |what: &str| {
            let id = find::artifact(&store, &index, what).unwrap();
            let known = know(&store, &index, id).unwrap();
            page(&store, &index, &known, &preview(&store, &id, ROWS).unwrap()).unwrap()
        };
        let shown = "\
artifact  912c4df25f5a8e1e9849384785b7c59754d3671f01e1e34fba91c247728af3ad
          responses, 231 B, 7 rows
node      generate@2  of pipeline toy, kind generate
key       985d2520a40517413e70637a048cfd29a54a272a95a87986396b4e7c8924d0b8
made      2026-01-02 00:00:01 in 1.25 s on here (cpu), sami 0.1.0
again     bit-exact on cpu
run       20260102-000000-bbbb attempt 1
inputs    model = b55d84d05365  model of train@1
recipe    temperature = 0.7
metrics   rows 7 · tokens 24,690
used by   toy/train@2 as examples
files     rows.jsonl (231 B)
rows      id 0 · iteration 2 · lr 1e-6
          id 1 · iteration 2 · lr 1e-6
          id 2 · iteration 2 · lr 1e-6
          id 3 · iteration 2 · lr 1e-6
          id 4 · iteration 2 · lr 1e-6
          … 7 rows in all
";
        assert_eq!(page("generate"), shown);
        assert_eq!(page("912c"), shown);
        assert_eq!(page("985d25"), shown);
        assert_eq!(page("toy/generate@2"), shown);
        let base = store.node(&index.latest_of("generate@1").unwrap()).unwrap().unwrap().inputs["model"];
        let page = page(&base.to_string());
        assert!(
            page.contains("\nsource    read from outside") && page.contains("\nconfig    hidden_size 2\n"),
            "{page}"
        );
    }
}
