//! `${…}`: minijinja expressions over params, the loop's `iteration` and matrix variables.
//!
//! A string that is one expression takes the type of its value; in a longer text the value is put in as text. `$${`
//! stands for a plain `${`. Keys and the texts of included files are left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use minijinja::{Environment, UndefinedBehavior, Value};

use super::findings::{Findings, unknown};
use super::tree::{Tree, TreeValue};
use crate::depth;
use crate::diag::Diagnostic;

/// The names that expressions can use, and which of them were.
#[derive(Debug, Clone, Default)]
pub(super) struct Scope {
    values: Arc<BTreeMap<String, Value>>,
}

impl Scope {
    /// The scope with one more name.
    pub(super) fn with(&self, name: &str, value: &Tree) -> Self {
        let mut scope = self.clone();
        Arc::make_mut(&mut scope.values).insert(name.to_owned(), Value::from(minijinja::value::Serde(value.to_json())));
        scope
    }

    /// The scope with the number of an iteration.
    pub(super) fn in_iteration(&self, iteration: usize) -> Self {
        let mut scope = self.clone();
        Arc::make_mut(&mut scope.values).insert("iteration".to_owned(), Value::from(iteration));
        scope
    }
}

/// Evaluates expressions and notes which names they use.
#[derive(Debug)]
pub(super) struct Evaluator {
    environment: Environment<'static>,
    globals: BTreeSet<String>,
    /// Names used since this was last cleared.
    pub(super) used: BTreeSet<String>,
}

enum Piece<'a> {
    Text(String),
    Expression(&'a str),
}

impl Evaluator {
    /// A new one.
    pub(super) fn new() -> Self {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        // Enough for any arithmetic; a slip such as `range(10 ** 9) | list` ends in an error instead of the memory.
        environment.set_fuel(Some(100_000));
        let globals = environment.globals().map(|(name, _)| name.to_owned()).collect();
        Self { environment, globals, used: BTreeSet::new() }
    }

    /// Evaluates every expression in a tree. What fails is reported and becomes a hole. `None` as the scope means that
    /// the place allows none.
    pub(super) fn evaluate(&mut self, tree: &mut Tree, scope: &Scope, findings: &mut Findings) {
        match &mut tree.value {
            TreeValue::String(text) if text.as_bytes().contains(&b'$') && text.contains("${") => {
                let text = std::mem::take(text);
                tree.value = match self.evaluate_text(&text, &tree.span, scope) {
                    Ok(value) => value,
                    Err(fault) => {
                        findings.add(fault.diagnostic(&tree.span, scope, findings));
                        TreeValue::Hole
                    }
                };
            }
            TreeValue::Array(items) => items.iter_mut().for_each(|item| self.evaluate(item, scope, findings)),
            TreeValue::Table(table) => {
                table.values_mut().for_each(|entry| self.evaluate(&mut entry.value, scope, findings));
            }
            _ => {}
        }
    }

    fn evaluate_text(&mut self, text: &str, span: &Range<usize>, scope: &Scope) -> Result<TreeValue, Fault> {
        let pieces = split(text)?;
        if let [Piece::Expression(expression)] = pieces[..] {
            let fault = |what: &str| Fault::new(expression, format!("its value is {what}"));
            let value = self.value(expression, scope)?;
            let value = serde_json::to_value(&value).map_err(|error| fault(&error.to_string()))?;
            return Tree::of_json(value, span).map(|tree| tree.value).map_err(fault);
        }
        let mut filled = String::with_capacity(text.len());
        for piece in pieces {
            match piece {
                Piece::Text(text) => filled.push_str(&text),
                Piece::Expression(expression) => filled.push_str(&as_text(&self.value(expression, scope)?)),
            }
        }
        Ok(TreeValue::String(filled))
    }

    fn value(&mut self, expression: &str, scope: &Scope) -> Result<Value, Fault> {
        depth::of_expression(expression).map_err(|what| Fault::new(expression, format!("it {what}")))?;
        let compiled =
            self.environment.compile_expression(expression).map_err(|error| Fault::of(expression, &error))?;
        let mut names: Vec<String> = compiled.undeclared_variables(false).into_iter().collect();
        names.sort_unstable();
        for name in names {
            if !scope.values.contains_key(&name) && !self.globals.contains(&name) {
                return Err(Fault { name: Some(name), ..Fault::new(expression, String::new()) });
            }
            self.used.insert(name);
        }
        let context = Value::from(minijinja::value::Serde(&*scope.values));
        let value = compiled.eval(context).map_err(|error| Fault::of(expression, &error))?;
        if value.is_undefined() {
            return Err(Fault::new(expression, "it has no value".to_owned()));
        }
        Ok(value)
    }
}

/// A value within a text; 5e-7 stays 5e-7.
fn as_text(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(number) if value.is_number() && !value.is_integer() => format!("{number:?}"),
        _ => value.to_string(),
    }
}

struct Fault {
    expression: String,
    what: String,
    /// The name that is not known, if it is that.
    name: Option<String>,
}

impl Fault {
    fn new(expression: &str, what: String) -> Self {
        Self { expression: expression.to_owned(), what, name: None }
    }

    fn of(expression: &str, error: &minijinja::Error) -> Self {
        let kind = error.kind().to_string();
        Self::new(expression, error.detail().map_or_else(|| kind.clone(), |detail| format!("{kind}: {detail}")))
    }

    fn diagnostic(self, span: &Range<usize>, scope: &Scope, findings: &Findings) -> Diagnostic {
        // The expression itself, if the string is written without escapes; else the whole string.
        let raw = findings.source.text.get(span.clone()).unwrap_or_default();
        let needle = self.name.as_deref().unwrap_or(&self.expression);
        let inside = raw.find(&self.expression).map(|at| span.start + at..span.start + at + self.expression.len());
        let place = inside.map_or_else(
            || span.clone(),
            |inside| match find_word(&findings.source.text[inside.clone()], needle) {
                Some(at) => inside.start + at..inside.start + at + needle.len(),
                None => inside,
            },
        );
        let Some(name) = &self.name else {
            return Diagnostic::error(
                "pipeline::bad-expression",
                format!("the expression `{}` cannot be evaluated", self.expression.trim()),
            )
            .label(&findings.source, place, self.what)
            .help("expressions are minijinja: `lr * 2`, `seed + iteration`, `'a' if fast else 'b'`; `$${` is a plain `${`");
        };
        let finding = Diagnostic::error("pipeline::unknown-name", format!("`{name}` is not known in this expression"))
            .label(&findings.source, place, "not known here");
        match name.as_str() {
            "iteration" => finding.help("`iteration` has a value only inside `[loop]`"),
            _ => unknown(finding, name, "param", scope.values.keys().map(String::as_str))
                .help(format!("add `{name} = …` to `[params]`")),
        }
    }
}

/// Where a name stands as a whole word.
fn find_word(text: &str, word: &str) -> Option<usize> {
    let is_part = |letter: char| letter.is_alphanumeric() || letter == '_';
    text.match_indices(word)
        .map(|(at, _)| at)
        .find(|&at| !text[..at].ends_with(is_part) && !text[at + word.len()..].starts_with(is_part))
}

/// Cuts a text at its expressions.
fn split(text: &str) -> Result<Vec<Piece<'_>>, Fault> {
    let mut pieces = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            plain.push_str(&rest[..at - 1]);
            plain.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        plain.push_str(&rest[..at]);
        let Some(end) = end_of_expression(&rest[at + 2..]) else {
            return Err(Fault::new(&rest[at..], "`${` without its `}`".to_owned()));
        };
        if !plain.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut plain)));
        }
        pieces.push(Piece::Expression(&rest[at + 2..at + 2 + end]));
        rest = &rest[at + 2 + end + 1..];
    }
    plain.push_str(rest);
    if !plain.is_empty() || pieces.is_empty() {
        pieces.push(Piece::Text(plain));
    }
    Ok(pieces)
}

/// The byte of the `}` that ends an expression: braces nest, and quotes hide them.
fn end_of_expression(text: &str) -> Option<usize> {
    let (mut depth, mut quote, mut escaped) = (0, None, false);
    for (at, letter) in text.char_indices() {
        match (quote, letter) {
            _ if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(open), _) if letter == open => quote = None,
            (None, '"' | '\'') => quote = Some(letter),
            (None, '{') => depth += 1,
            (None, '}') if depth == 0 => return Some(at),
            (None, '}') => depth -= 1,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diag::Source;
    use crate::pipeline::document;
    use serde_json::{Value as Json, json};

    fn evaluate(text: &str) -> Result<Json, Diagnostic> {
        let source = Arc::new(Source::new("x.toml", format!("x = '''{text}'''")));
        let mut tree = document::parse(&source).expect("TOML");
        let mut findings = Findings::new(&source);
        let number = |value| Tree { span: 0..0, value };
        let scope = Scope::default()
            .with("lr", &number(TreeValue::Float(5e-7)))
            .with("n", &number(TreeValue::Integer(3)))
            .in_iteration(2);
        Evaluator::new().evaluate(&mut tree, &scope, &mut findings);
        match findings.into_list().pop() {
            Some(found) => Err(found),
            None => Ok(tree.to_json()["x"].clone()),
        }
    }

    #[test]
    fn one_expression_keeps_its_type_and_text_takes_it_in() {
        assert_eq!(evaluate("${lr}").ok(), Some(json!(5e-7)));
        assert_eq!(evaluate("${2 * iteration + n}").ok(), Some(json!(7)));
        assert_eq!(evaluate("${[n, {'a': '}'}]}").ok(), Some(json!([3, {"a": "}"}])));
        assert_eq!(evaluate("${n}-${iteration}-${lr}-${'x'}").ok(), Some(json!("3-2-5e-7-x")));
        assert_eq!(evaluate("$${HOME} {{ query }}").ok(), Some(json!("${HOME} {{ query }}")));
        assert_eq!(evaluate("${2500 * ((iteration - 1) % 2)}").ok(), Some(json!(2500)));
    }

    #[test]
    fn faults_have_their_place_and_fix() {
        let found = evaluate("a ${lrr + 1}").expect_err("no such param");
        assert_eq!(found.id, "pipeline::unknown-name");
        assert!(found.help[0].contains("`lr`"), "{found:?}");
        let label = &found.labels[0];
        assert_eq!(&label.source.text[label.span.clone()], "lrr");
        for bad in ["${1 +}", "${n", "${1 / 0}", "${none}", "${n.x}", "${range(99999999)|list}"] {
            assert_eq!(evaluate(bad).expect_err(bad).id, "pipeline::bad-expression", "{bad}");
        }
    }
}
