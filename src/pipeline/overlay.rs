//! `[when.PARAM.VALUE]`: what a pipeline has otherwise while a param has a value, laid over the document before anything
//! of it is read. Parts keep their places, so that what is wrong in an overlay is shown in the overlay.

use std::sync::Arc;

use super::findings::{Findings, unknown};
use super::include::Includer;
use super::params;
use super::tree::{Table, Tree, TreeValue};
use crate::diag::{Diagnostic, Source};

/// The tables that an overlay may have, besides `remove`.
pub(super) const KEYS: &[&str] = &["params", "models", "datasets", "nodes", "loop", "remove"];
/// The tables whose entries share one set of names.
const GROUPS: &[&[&str]] = &[&["models"], &["datasets"], &["nodes"], &["loop", "nodes"]];
/// What says where a dataset's rows come from.
const ROWS_FROM: &[&str] = &["source", "make", "split", "config", "data_files"];

/// Takes `when` out of a document and lays over it what the params ask for, in the order of the file: of two overlays
/// that say the same thing differently, the later one counts.
pub(super) fn lay(top: &mut Table, sets: &[String], includer: &mut Includer, findings: &mut Findings) {
    let Some(entry) = top.shift_remove("when") else { return };
    let Some(axes) = table(entry.value, "when", findings) else { return };
    let written = top.clone();
    let declared = params_of(&written);
    let selectors: Vec<String> = axes.keys().cloned().collect();
    for (param, entry) in axes {
        let Some(overlays) = table(entry.value, &format!("when.{param}"), findings) else { continue };
        let Some(value) = declared.and_then(|params| params.get(&param)) else {
            let known = declared.into_iter().flat_map(Table::keys).map(String::as_str);
            let finding = Diagnostic::error("pipeline::unknown-param", format!("the pipeline has no param `{param}`"))
                .label(&findings.source, entry.key_span, "`[when]` goes by the value of a param");
            findings.add(unknown(finding, &param, "param", known));
            continue;
        };
        let Some(chosen) = chosen(&param, &value.value, sets, &overlays, findings) else { continue };
        for (value, entry) in overlays {
            let name = format!("when.{param}.{value}");
            let parts = match entry.value.value {
                TreeValue::Array(parts) => parts,
                one => vec![Tree { value: one, ..entry.value }],
            };
            for mut part in parts {
                if is_file(&part) {
                    includer.include(&mut part, findings);
                }
                if matches!(part.value, TreeValue::Hole) {
                    continue;
                }
                let Some(overlay) = table(part, &name, findings) else { continue };
                if check(&overlay, &name, &selectors, declared, findings) && value == chosen {
                    put(top, &written, overlay, findings);
                }
            }
        }
    }
}

/// The entries of a table, or a finding.
fn table(tree: Tree, name: &str, findings: &mut Findings) -> Option<Table> {
    let what = tree.describe();
    if let TreeValue::Table(table) = tree.value {
        return Some(table);
    }
    findings.add(
        Diagnostic::error("pipeline::wrong-type", format!("`{name}` has the wrong type"))
            .label(&findings.source, tree.span, format!("expected a table, found {what}"))
            .help("write `[when.PARAM.VALUE.…]`, such as `[when.scale.tiny.params]`"),
    );
    None
}

fn params_of(top: &Table) -> Option<&Table> {
    top.get("params")?.value.table()
}

/// The value that a param has, which must be one of those that the file names.
fn chosen(param: &str, declared: &Tree, sets: &[String], overlays: &Table, findings: &mut Findings) -> Option<String> {
    let source = Arc::clone(&findings.source);
    let Some(default) = declared.text().filter(|text| !text.contains("${")) else {
        findings.add(
            Diagnostic::error("pipeline::when", format!("`[when.{param}]` goes by a param that is no plain text"))
                .label(&source, declared.span.clone(), format!("found {}", declared.describe()))
                .help(format!("give the param a name, such as `{param} = \"full\"`")),
        );
        return None;
    };
    let set = sets.iter().rev().find_map(|set| {
        let (name, text) = set.split_once('=')?;
        (name.trim() == param).then(|| (params::plain_text(text), set))
    });
    let (value, place) = match set {
        None => (default.to_owned(), None),
        Some((text, set)) => (text, Some(set)),
    };
    let mut known: Vec<&str> = vec![default];
    known.extend(overlays.keys().map(String::as_str).filter(|name| *name != default));
    if known.contains(&value.as_str()) {
        return Some(value);
    }
    let finding = Diagnostic::error("pipeline::unknown-value", format!("the param `{param}` cannot be `{value}`"));
    let finding = match place {
        None => finding.label(&source, declared.span.clone(), "there is no such value"),
        Some(set) => {
            let shown = format!("--set {set}");
            let start = shown.find('=').map_or(0, |at| at + 1);
            let end = shown.len();
            finding.label(&Arc::new(Source::new("command line", shown)), start..end, "there is no such value")
        }
    };
    let known: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
    findings.add(finding.help(format!("it can be {}", known.join(", "))));
    None
}

/// Whether the form of an overlay is sound, also of one that is not laid.
fn check(overlay: &Table, name: &str, selectors: &[String], declared: Option<&Table>, findings: &mut Findings) -> bool {
    let source = Arc::clone(&findings.source);
    let mut sound = true;
    for (key, entry) in overlay {
        if !KEYS.contains(&key.as_str()) {
            sound = false;
            let finding = Diagnostic::error("pipeline::unknown-key", format!("`[{name}]` has no key `{key}`")).label(
                &source,
                entry.key_span.clone(),
                "unknown key",
            );
            findings.add(unknown(finding, key, "key", KEYS.iter().copied()));
        } else if key != "remove" && entry.value.table().is_none() {
            sound = false;
            table(entry.value.clone(), &format!("{name}.{key}"), findings);
        }
    }
    for (param, entry) in params_of(overlay).into_iter().flatten() {
        if declared.is_none_or(|declared| !declared.contains_key(param)) {
            sound = false;
            let known = declared.into_iter().flat_map(Table::keys).map(String::as_str);
            let finding = Diagnostic::error("pipeline::unknown-param", format!("the pipeline has no param `{param}`"))
                .label(&source, entry.key_span.clone(), "no such param in `[params]`");
            findings.add(unknown(finding, param, "param", known));
        } else if selectors.contains(param) {
            sound = false;
            findings.add(
                Diagnostic::error("pipeline::when", format!("`[{name}]` changes the param `{param}`"))
                    .label(&source, entry.key_span.clone(), "`[when]` goes by this one itself")
                    .help("write out here what that value would bring"),
            );
        }
    }
    sound
}

fn put(top: &mut Table, written: &Table, mut overlay: Table, findings: &mut Findings) {
    if let Some(entry) = overlay.shift_remove("remove") {
        remove(top, written, &entry.value, findings);
    }
    for group in GROUPS {
        let names: Vec<String> = at(&overlay, group).into_iter().flat_map(Table::keys).cloned().collect();
        for name in names {
            let known = at(top, group).is_some_and(|table| table.contains_key(&name));
            for other in GROUPS.iter().filter(|other| !known && *other != group) {
                // A node in place of a model, say: the name now means that.
                at_mut(top, other).and_then(|table| table.shift_remove(&name));
            }
            let over = at_mut(&mut overlay, group).and_then(|table| table.get_mut(&name));
            let base = at_mut(top, group).and_then(|table| table.get_mut(&name));
            if let (Some(base), Some(over)) = (base, over) {
                supersede(&mut base.value, &over.value, group);
            }
        }
    }
    for (key, entry) in overlay {
        match top.get_mut(&key) {
            Some(base) => merge(&mut base.value, entry.value),
            None => _ = top.insert(key, entry),
        }
    }
}

fn at<'a>(top: &'a Table, path: &[&str]) -> Option<&'a Table> {
    let mut table = top;
    for key in path {
        table = table.get(key)?.value.table()?;
    }
    Some(table)
}

fn at_mut<'a>(top: &'a mut Table, path: &[&str]) -> Option<&'a mut Table> {
    let mut table = top;
    for key in path {
        table = table.get_mut(key)?.value.table_mut()?;
    }
    Some(table)
}

/// Takes out of a declaration what makes no sense beside what comes over it.
fn supersede(base: &mut Tree, over: &Tree, group: &[&str]) {
    let says = |key: &str| over.table().is_some_and(|table| table.contains_key(key));
    let Some(table) = base.table_mut() else { return };
    match group {
        // All of a model's keys are about where it comes from.
        ["models"] if says("source") || says("init") => table.retain(|key, _| key == "init" && says("init")),
        ["datasets"] if says("source") || says("make") => {
            table.retain(|key, _| !ROWS_FROM.contains(&key.as_str()) || (key == "make" && says("make")));
        }
        [.., "nodes"] => {
            let kind = |table: &Table| table.get("kind").map(|entry| entry.value.to_json());
            let of_another = over.table().and_then(kind).is_some_and(|kind_over| Some(kind_over) != kind(table));
            if of_another {
                table.clear();
            }
        }
        _ => {}
    }
}

/// Whether a value is that of a file.
fn is_file(tree: &Tree) -> bool {
    tree.table().is_some_and(|table| table.len() == 1 && table.contains_key("file"))
}

/// Lays a value over another: tables key by key, anything else instead of what was there.
fn merge(base: &mut Tree, over: Tree) {
    if is_file(base) || is_file(&over) {
        *base = over;
        return;
    }
    match (&mut base.value, over.value) {
        (TreeValue::Table(table), TreeValue::Table(over)) => {
            for (key, entry) in over {
                match table.get_mut(&key) {
                    Some(known) => merge(&mut known.value, entry.value),
                    None => _ = table.insert(key, entry),
                }
            }
        }
        (_, value) => *base = Tree { span: over.span, value },
    }
}

/// `remove = ["nodes.x.field", …]`.
fn remove(top: &mut Table, written: &Table, paths: &Tree, findings: &mut Findings) {
    let source = Arc::clone(&findings.source);
    let fault = |tree: &Tree, what: &str| {
        Diagnostic::error("pipeline::when", "`remove` names nothing that can be removed")
            .label(&source, tree.span.clone(), what)
            .help("name parts of the document by their paths: `remove = [\"nodes.NAME.FIELD\", \"models.NAME\"]`")
    };
    let TreeValue::Array(paths) = &paths.value else {
        findings.add(fault(paths, "expected a list of paths"));
        return;
    };
    for path in paths {
        let keys: Vec<&str> = path.text().unwrap_or_default().split('.').collect();
        let (last, before) = keys.split_last().unwrap_or((&"", &[]));
        if before.is_empty() || !at(written, before).is_some_and(|table| table.contains_key(last)) {
            findings.add(fault(path, "the document has no such part"));
        } else if let Some(table) = at_mut(top, before) {
            table.shift_remove(last);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::pipeline::toy::{examine, summary};
    use crate::pipeline::{Origin, Pipeline};
    use serde_json::{Value, json};

    const TEXT: &str = r#"
[params]
scale = "full"
depth = "one"
settings = "sound"
tokens = 100
lr = 1e-3
[models.base]
source = "hf:someone/large"
dtype = "bf16"
[models.helper]
source = "large"
[datasets.posts]
source = "posts.jsonl"
query = "POST {{ post }}"
[loop]
times = 3
carry.policy = { first = "base", next = "train" }
[loop.nodes.answer]
kind = "answer"
model = "policy"
queries = { from = "posts", skip = 10, take = 50 }
prompt = { file = "large.jinja" }
tokens = "${tokens}"
temperature = 0.5
[loop.nodes.train]
kind = "train"
model = "base"
examples = "answer"
optimizer = { name = "adamw", lr = "${lr}" }
[nodes.report]
kind = "step"
inputs = { a = "helper", b = "train" }

[when.settings.paper.params]
lr = 5e-7
tokens = 350
[when.settings.paper.loop.nodes.train.optimizer]
name = "rmsprop"

[when.scale.tiny]
remove = ["models.helper", "nodes.report.inputs.a", "loop.nodes.answer.temperature"]
[when.scale.tiny.params]
tokens = 5
[when.scale.tiny.models.blank]
init = { layers = 1, corpus = "posts" }
[when.scale.tiny.datasets.posts]
make = { rows = 9, template = "{}" }
[when.scale.tiny.nodes.base]
kind = "train"
model = "blank"
examples = "first"
optimizer = { name = "adamw", lr = 1 }
[when.scale.tiny.nodes.first]
kind = "answer"
model = "blank"
queries = "posts"
prompt = ""
[when.scale.tiny.loop]
times = 2
nodes.answer = { queries.take = 4, prompt = "short" }

[when.depth.two.models.blank]
init = { layers = 2 }
"#;

    fn load(sets: &[&str]) -> Pipeline {
        let (pipeline, findings) = examine(TEXT, sets, &[("large.jinja", "long")]);
        assert!(findings.is_empty(), "{findings:#?}");
        pipeline.expect("it was read")
    }

    fn fields(pipeline: &Pipeline, node: &str) -> Value {
        pipeline.nodes.iter().find(|other| other.name == node).expect("a node").spec.fields()
    }

    fn faults(from: &str, to: &str, sets: &[&str]) -> Vec<(&'static str, String, String)> {
        assert!(TEXT.contains(from), "{from}");
        let (_, findings) = examine(&TEXT.replacen(from, to, 1), sets, &[("large.jinja", "long")]);
        findings.iter().map(summary).collect()
    }

    #[test]
    fn without_its_value_an_overlay_is_not_there() {
        let pipeline = load(&[]);
        assert_eq!(pipeline.nodes.len(), 7);
        assert_eq!(fields(&pipeline, "answer@1")["tokens"], 100);
        assert_eq!(fields(&pipeline, "answer@1")["prompt"], "long");
        assert_eq!(fields(&pipeline, "train@1")["optimizer"], json!({"name": "adamw", "lr": 1e-3}));
    }

    #[test]
    fn tables_are_laid_over_key_by_key() {
        let pipeline = load(&["scale=tiny"]);
        let names: Vec<_> = pipeline.nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(
            names,
            ["models.blank", "answer@1", "train@1", "answer@2", "train@2", "report", "base", "first"],
            "a node in place of the model"
        );
        let answer = fields(&pipeline, "answer@1");
        assert_eq!(answer["queries"], json!({"from": "posts", "skip": 10, "take": 4}));
        assert_eq!(
            (&answer["prompt"], &answer["tokens"], &answer["temperature"]),
            (&json!("short"), &json!(5), &json!(0.0))
        );
        assert!(pipeline.models.is_empty(), "{:?}", pipeline.models);
        assert_eq!(pipeline.datasets["posts"].fields.len(), 1, "templates of the fields stay");
        assert_eq!(fields(&pipeline, "report")["inputs"], json!({"b": "train"}));
    }

    #[test]
    fn overlays_add_up_in_the_order_of_the_file_and_the_command_line_is_last() {
        let both = load(&["scale=tiny", "settings=paper", "depth=two"]);
        assert_eq!(fields(&both, "models.blank"), json!({"layers": 2, "corpus": "posts"}));
        assert_eq!(fields(&both, "answer@1")["tokens"], 5);
        assert_eq!(fields(&both, "train@1")["optimizer"], json!({"name": "rmsprop", "lr": 5e-7}));
        let set = load(&["settings=paper", "tokens=7", "scale = 'full'"]);
        assert_eq!(fields(&set, "answer@1")["tokens"], 7);
        assert_eq!(fields(&set, "train@1")["optimizer"]["lr"], 5e-7);
    }

    #[test]
    fn where_a_model_comes_from_is_said_once() {
        let text = TEXT.replace(
            "[when.scale.tiny.models.blank]",
            "[when.settings.paper.models.base]\nsource = \"dir\"\n[when.scale.tiny.models.blank]",
        );
        let (pipeline, findings) = examine(&text, &["settings=paper"], &[("large.jinja", "")]);
        assert!(findings.is_empty(), "{findings:#?}");
        let base = &pipeline.expect("it was read").models["base"];
        assert_eq!((&base.origin, &base.dtype), (&Origin::Directory("dir".into()), &None));
    }

    #[test]
    fn an_overlay_may_be_a_file_or_a_list() {
        let text = format!("{TEXT}[when.data]\nold = [{{ file = \"old.toml\" }}, {{ params = {{ lr = 3 }} }}]\n")
            .replacen("[params]", "[params]\ndata = \"new\"", 1);
        let old = "[params]\nlr = 2\ntokens = 8\n[loop.nodes.answer]\ntokens = \"${tokens * 2}\"\nmode = \"x\"\n";
        let files = [("large.jinja", ""), ("old.toml", old)];
        let (pipeline, findings) = examine(&text, &["data=old"], &files);
        let found: Vec<_> = findings.iter().map(summary).collect();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].0, found[0].1.as_str()), ("pipeline::unknown-word", "{ file = \"old.toml\" }"));
        let pipeline = pipeline.expect("it was read");
        assert_eq!((&pipeline.params["lr"], &pipeline.params["tokens"]), (&json!(3), &json!(8)));
        let (_, findings) = examine(&text, &[], &[("large.jinja", "")]);
        assert_eq!(findings.iter().map(summary).map(|found| found.0).collect::<Vec<_>>(), ["pipeline::file"]);
    }

    #[test]
    fn values_that_the_file_does_not_name_are_errors_that_list_them() {
        let found = faults("times = 3", "times = 3", &["scale=tniy"]);
        assert_eq!(found, [("pipeline::unknown-value", "tniy".to_owned(), "it can be `full`, `tiny`".to_owned())]);
        let found = faults("scale = \"full\"", "scale = \"${'full'}\"", &[]);
        assert_eq!((found[0].0, found[0].1.as_str()), ("pipeline::when", "\"${'full'}\""));
        assert_eq!(faults("scale = \"full\"\n", "", &[])[0].0, "pipeline::unknown-param");
    }

    #[test]
    fn faults_of_an_overlay_are_shown_in_it() {
        let tiny = &["scale=tiny"];
        let short = |found: Vec<(&'static str, String, String)>| -> Vec<(&'static str, String)> {
            found.into_iter().map(|(id, under, _)| (id, under)).collect()
        };
        let found = short(faults("tokens = 5", "tokesn = 5\nsettings = 'paper'", &[]));
        let wanted = [("pipeline::unknown-param", "tokesn".to_owned()), ("pipeline::when", "settings".to_owned())];
        assert_eq!(found, wanted, "in one that is not laid, too");
        let found = short(faults("queries.take = 4", "queries.tkae = 4", tiny));
        assert_eq!(found, [("pipeline::unknown-key", "tkae".to_owned())]);
        let found = short(faults("make = { rows = 9,", "make = { rows = 'x',", tiny));
        assert_eq!(found, [("pipeline::wrong-type", "'x'".to_owned())]);
        let found = short(faults("\"models.helper\"", "\"models.hepler\"", tiny));
        assert_eq!(found[0], ("pipeline::when", "\"models.hepler\"".to_owned()));
        let found = short(faults("[when.scale.tiny.loop]\ntimes", "[when.scale.tiny.lop]\ntimes", tiny));
        assert_eq!(found[0], ("pipeline::unknown-key", "lop".to_owned()));
        let found = short(faults(
            "[when.settings.paper.params]",
            "[when.settings.sound]\nparams = 3\n[when.settings.paper.params]",
            &[],
        ));
        assert_eq!(found, [("pipeline::wrong-type", "3".to_owned())]);
    }
}
