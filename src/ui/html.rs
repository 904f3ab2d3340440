//! Pages from templates. All that is put into one is escaped, but for pictures of `plot`, which are safe by construction.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use minijinja::value::{Kwargs, Serde};
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value};
use serde::Serialize;

use super::query::encode;
use crate::inspect::figures;
use crate::plot::escape;

/// Every template by name. A page's own template extends `layout.html`; what starts with `_` is a section that several share.
const TEMPLATES: &[(&str, &str)] = &[
    ("layout.html", include_str!("templates/layout.html")),
    ("_parts.html", include_str!("templates/_parts.html")),
    ("problem.html", include_str!("templates/problem.html")),
    ("_pipelines.html", include_str!("templates/_pipelines.html")),
    ("overview.html", include_str!("templates/overview.html")),
    ("_run.html", include_str!("templates/_run.html")),
    ("runs.html", include_str!("templates/runs.html")),
    ("run.html", include_str!("templates/run.html")),
    ("compare.html", include_str!("templates/compare.html")),
    ("report.html", include_str!("templates/report.html")),
    ("pipelines.html", include_str!("templates/pipelines.html")),
    ("pipeline.html", include_str!("templates/pipeline.html")),
    ("node.html", include_str!("templates/node.html")),
    ("artifacts.html", include_str!("templates/artifacts.html")),
    ("artifact.html", include_str!("templates/artifact.html")),
    ("_rows.html", include_str!("templates/_rows.html")),
    ("row.html", include_str!("templates/row.html")),
    ("text.html", include_str!("templates/text.html")),
    ("contrast.html", include_str!("templates/contrast.html")),
    ("contrasts.html", include_str!("templates/contrasts.html")),
    ("log.html", include_str!("templates/log.html")),
];

/// The style sheet of all pages, and of the report.
pub(super) const STYLE: &str = include_str!("templates/style.css");
/// What makes pages live.
pub(super) const SCRIPT: &str = include_str!("templates/script.js");

/// Which entry of the navigation a page belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Tab {
    /// What there is, what goes on.
    Overview,
    /// The pipelines' graphs and nodes.
    Pipeline,
    /// Runs, and runs beside each other.
    Runs,
    /// Artifacts.
    Artifacts,
    /// Log-prob matrices.
    Contrast,
}

/// A page before it is drawn: a template and what it is given.
#[derive(Debug)]
pub(super) struct Page {
    /// The heading of the browser's tab.
    pub(super) title: String,
    /// Where it is in the navigation.
    pub(super) tab: Tab,
    template: &'static str,
    data: BTreeMap<&'static str, Value>,
}

impl Page {
    /// A page of a template without anything in it yet.
    pub(super) fn new(tab: Tab, title: impl Into<String>, template: &'static str) -> Self {
        Self { title: title.into(), tab, template, data: BTreeMap::new() }
    }

    /// Gives the template a value under a name.
    pub(super) fn with(mut self, name: &'static str, value: &impl Serialize) -> Self {
        self.data.insert(name, Value::from(Serde(value)));
        self
    }

    /// Gives the template a picture of `plot` under a name; it is put in as it is.
    pub(super) fn picture(mut self, name: &'static str, svg: String) -> Self {
        self.data.insert(name, Value::from_safe_string(svg));
        self
    }

    /// Gives the template a value that was put together for it: pictures among names, say.
    pub(super) fn value(mut self, name: &'static str, value: Value) -> Self {
        self.data.insert(name, value);
        self
    }

    /// Gives the template several pictures under a name.
    pub(super) fn pictures(mut self, name: &'static str, svgs: Vec<String>) -> Self {
        self.data.insert(name, svgs.into_iter().map(Value::from_safe_string).collect());
        self
    }

    /// The page as HTML.
    pub(super) fn html(mut self) -> Result<String, minijinja::Error> {
        self.data.insert("title", Value::from(self.title));
        self.data.insert("tab", Value::from(Serde(self.tab)));
        render(self.template, &self.data)
    }
}

/// Draws a template.
pub(super) fn render(template: &str, data: &BTreeMap<&'static str, Value>) -> Result<String, minijinja::Error> {
    environment().get_template(template)?.render(data)
}

fn environment() -> &'static Environment<'static> {
    static ENVIRONMENT: OnceLock<Environment<'static>> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| {
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::Html);
        environment.set_formatter(|out, state, value| match value.as_str() {
            // Nor may text steer a terminal into which the page is copied, or hide what it says.
            Some(text) if !value.is_safe() => out.write_str(&escape(text)).map_err(minijinja::Error::from),
            _ => minijinja::escape_formatter(out, state, value),
        });
        environment.set_undefined_behavior(UndefinedBehavior::SemiStrict);
        for (name, source) in TEMPLATES {
            if let Err(error) = environment.add_template(name, source) {
                // A test draws every template; this is for the one who writes them.
                tracing::error!("template {name}: {error:#}");
            }
        }
        environment.add_filter("bytes", |number: u64| figures::bytes(number));
        environment.add_filter("count", |number: u64| figures::count(number));
        environment.add_filter("seconds", |number: f64| figures::seconds(number));
        environment.add_filter("clock", |time: &str| figures::clock(time));
        environment.add_filter("figure", |value: Serde<serde_json::Value>| figures::figure(&value.0));
        environment.add_filter("cut", |text: &str, width: usize| figures::cut(text, width.max(1)));
        environment.add_filter("fixed", |number: f64, digits: usize| fixed(number, digits.min(9)));
        environment.add_filter("brief", |id: &str| id.chars().take(12).collect::<String>());
        environment.add_filter("urlencode", |text: &str| {
            url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>()
        });
        environment.add_function("link", |path: &str, parts: Kwargs| link(path, &parts));
        environment
    })
}

/// An address within the site: a path, and names with values that are encoded; those without a value are left out.
fn link(path: &str, parts: &Kwargs) -> Result<Value, minijinja::Error> {
    let mut pairs = Vec::new();
    for name in parts.args() {
        let value: Value = parts.get(name)?;
        if !value.is_undefined() && !value.is_none() {
            pairs.push((name.to_owned(), value.to_string()));
        }
    }
    let query = encode(pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let address = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
    Ok(Value::from_safe_string(escape(&address)))
}

/// With so many digits after the point; what is rounded to nothing has no sign.
fn fixed(number: f64, digits: usize) -> String {
    let text = format!("{number:.digits$}");
    let is_zero = text.bytes().all(|byte| matches!(byte, b'-' | b'0' | b'.'));
    text.strip_prefix('-').filter(|_| is_zero).map_or(text.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_has_no_sign() {
        assert_eq!(
            [fixed(-0.001, 2), fixed(-0.01, 2), fixed(0.004, 2), fixed(-3.0, 0)],
            ["0.00", "-0.01", "0.00", "-3"]
        );
    }
}
