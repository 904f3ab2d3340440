//! `[params]` and `--set`.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::document;
use super::expr::{Evaluator, Scope};
use super::findings::{Findings, unknown};
use super::tree::{Table, Tree, TreeValue};
use crate::diag::{Diagnostic, Source};

/// Reads the params in the order of the file, each with those before it in scope; `--set` comes in place of what the
/// file says, before anything refers to it.
pub(super) fn read(
    mut table: Table,
    sets: &[String],
    evaluator: &mut Evaluator,
    findings: &mut Findings,
) -> (BTreeMap<String, Value>, Scope) {
    for set in sets {
        apply(set, &mut table, findings);
    }
    let mut values = BTreeMap::new();
    let mut scope = Scope::default();
    for (name, mut entry) in table {
        let source = Arc::clone(&findings.source);
        if !is_identifier(&name) || name == "iteration" {
            findings.add(
                Diagnostic::error("pipeline::bad-name", format!("`{name}` cannot be the name of a param"))
                    .label(&source, entry.key_span.clone(), "cannot be used in `${…}`")
                    .help("use letters, digits and `_`, not a digit first; `iteration` is the loop's"),
            );
            continue;
        }
        evaluator.evaluate(&mut entry.value, &scope, findings);
        scope = scope.with(&name, &entry.value);
        values.insert(name, entry.value.to_json());
    }
    (values, scope)
}

/// Whether expressions can use the name.
pub(super) fn is_identifier(name: &str) -> bool {
    let first = name.chars().next().is_some_and(|letter| letter.is_ascii_alphabetic() || letter == '_');
    first && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}

/// What is given for a param that is text: with or without quotes.
pub(super) fn plain_text(text: &str) -> String {
    match document::parse_value(text.trim()).map(|tree| tree.value) {
        Some(TreeValue::String(quoted)) => quoted,
        _ => text.to_owned(),
    }
}

fn apply(set: &str, table: &mut Table, findings: &mut Findings) {
    let shown = format!("--set {set}");
    let start = "--set ".len();
    let source = Arc::new(Source::new("command line", shown.as_str()));
    let Some((name, text)) = set.split_once('=') else {
        findings.add(
            Diagnostic::error("pipeline::bad-set", format!("`{shown}` gives no value"))
                .label(&source, start..shown.len(), "no `=` here")
                .help("write `--set NAME=VALUE`"),
        );
        return;
    };
    let name = name.trim();
    let Some(entry) = table.get(name) else {
        let finding = Diagnostic::error("pipeline::unknown-param", format!("the pipeline has no param `{name}`"))
            .label(&source, start..start + name.len(), "no such param");
        findings.add(unknown(finding, name, "param", table.keys().map(String::as_str)));
        return;
    };
    let given = document::parse_value(text.trim());
    // The file's value says what is wanted: a text stays text even if it reads as a number.
    let value = match (&entry.value.value, given.map(|tree| tree.value)) {
        (TreeValue::String(declared), _) if !declared.contains("${") => Ok(TreeValue::String(plain_text(text))),
        (TreeValue::Float(_), Some(TreeValue::Integer(number))) => Ok(TreeValue::Float(number as f64)),
        (TreeValue::String(_) | TreeValue::Hole, Some(value))
        | (TreeValue::Float(_), Some(value @ TreeValue::Float(_)))
        | (TreeValue::Integer(_), Some(value @ (TreeValue::Integer(_) | TreeValue::Float(_))))
        | (TreeValue::Boolean(_), Some(value @ TreeValue::Boolean(_)))
        | (TreeValue::Array(_), Some(value @ TreeValue::Array(_)))
        | (TreeValue::Table(_), Some(value @ TreeValue::Table(_))) => Ok(value),
        (TreeValue::String(_) | TreeValue::Hole, None) => Ok(TreeValue::String(text.to_owned())),
        (declared, _) => Err(match declared {
            TreeValue::Float(_) | TreeValue::Integer(_) => "a number",
            TreeValue::Boolean(_) => "true or false",
            TreeValue::Array(_) => "an array",
            _ => "a table",
        }),
    };
    match value {
        Ok(value) => {
            if let Some(entry) = table.get_mut(name) {
                // The place stays that of the declaration: that is where a wrong value is looked for.
                entry.value = Tree { span: entry.value.span.clone(), value };
            }
        }
        Err(wanted) => {
            let value_start = start + set.find('=').map_or(0, |at| at + 1);
            findings.add(
                Diagnostic::error("pipeline::set-type", format!("the param `{name}` cannot be set to `{text}`"))
                    .label(&source, value_start..shown.len().max(value_start), format!("expected {wanted}"))
                    .help(format!("give {wanted}, as in the pipeline file")),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn values(text: &str, sets: &[&str]) -> (BTreeMap<String, Value>, Vec<Diagnostic>) {
        let source = Arc::new(Source::new("x.toml", text));
        let tree = document::parse(&source).expect("TOML");
        let mut findings = Findings::new(&source);
        let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
        let table = tree.table().expect("a table").clone();
        let (values, _) = read(table, &sets, &mut Evaluator::new(), &mut findings);
        (values, findings.into_list())
    }

    #[test]
    fn params_refer_to_earlier_ones_and_are_overridden_by_type() {
        let text = "n = 2\nlr = 1e-3\nname = 'a'\ndouble = '${n * 2}'\nlist = [1]\n";
        let (found, errors) = values(text, &["n=5", "lr=1", "name=7", "list=[2, 3]"]);
        assert_eq!(errors, []);
        assert_eq!(json!(found), json!({"n": 5, "lr": 1.0, "name": "7", "double": 10, "list": [2, 3]}));
    }

    #[test]
    fn wrong_sets_are_named() {
        let text = "later = '${after}'\nafter = 1\nlr = 1e-3\n";
        let (_, errors) = values(text, &["lrr=2", "lr=fast", "after"]);
        let ids: Vec<_> = errors.iter().map(|error| error.id).collect();
        assert_eq!(
            ids,
            ["pipeline::unknown-param", "pipeline::set-type", "pipeline::bad-set", "pipeline::unknown-name"]
        );
        assert!(errors[0].help[0].contains("`lr`"));
    }
}
