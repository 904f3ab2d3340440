//! Prompt templates: minijinja over a query's fields, the constitution and its principles.

use minijinja::{Environment, UndefinedBehavior, Value as Context};

use super::NodeError;
use crate::depth;
use crate::pipeline::Problem;

/// Steps of a template that does not end.
const STEPS: u64 = 10_000_000;

/// A template that is known to parse. A variable that is absent is an error, not an empty text; one newline at the end,
/// as editors leave it, is not part of the template.
#[derive(Debug)]
pub struct Template {
    environment: Environment<'static>,
}

impl Template {
    /// Parses a template; the error says where in the template the trouble is.
    pub fn parse(text: &str) -> Result<Self, String> {
        depth::of_template(text)?;
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        // A prompt takes a few hundred; one that takes so many does not end.
        environment.set_fuel(Some(STEPS));
        environment.add_template_owned("template", text.to_owned()).map_err(|error| describe(&error))?;
        Ok(Self { environment })
    }

    /// Fills the template in.
    pub fn render(&self, context: &Context) -> Result<String, String> {
        let template = self.environment.get_template("template").map_err(|error| describe(&error))?;
        template.render(context).map_err(|error| describe(&error))
    }

    /// As [`Self::render`], with an error that names the field and the row.
    pub fn render_row(&self, field: &str, row: &str, context: &Context) -> Result<String, NodeError> {
        self.render(context).map_err(|what| {
            NodeError::with_help(
                format!("the template `{field}` cannot be filled in for row `{row}`: {what}"),
                "use only fields that every row has, or `{{ name | default('') }}`",
            )
        })
    }
}

/// Parses a field that was checked by [`check`] before.
pub fn parse(field: &str, text: &str) -> Result<Template, NodeError> {
    Template::parse(text).map_err(|what| NodeError::failed(format!("the template `{field}` does not parse: {what}")))
}

/// Adds a problem if a template does not parse.
pub fn check(problems: &mut Vec<Problem>, path: &str, text: &str) {
    if let Err(what) = Template::parse(text) {
        problems.push(Problem {
            path: path.to_owned(),
            what: format!("the template does not parse: {what}"),
            help: "templates are minijinja: `{{ field }}`, `{% for … %}`, `{% if … %}`".to_owned(),
        });
    }
}

fn describe(error: &minijinja::Error) -> String {
    let kind = error.kind().to_string();
    let what = error.detail().map_or_else(|| kind.clone(), |detail| format!("{kind}: {detail}"));
    match error.line() {
        Some(line) => format!("{what} (line {line} of the template)"),
        None => what,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::context;

    #[test]
    fn fills_in_and_names_what_is_missing() {
        let template = Template::parse("rules : {{ constitution }}\nq : {{ query }}\n").expect("parses");
        let text = template.render(&context! { constitution => "be brief", query => "why" }).expect("renders");
        assert_eq!(text, "rules : be brief\nq : why");
        let error = template.render_row("prompt", "7", &context! { query => "why" }).expect_err("strict").to_string();
        assert!(error.contains("`prompt`") && error.contains("row `7`") && error.contains("undefined"), "{error}");
    }

    #[test]
    fn a_broken_template_is_a_problem_at_its_field() {
        let mut problems = Vec::new();
        check(&mut problems, "prompt", "{{ query");
        assert_eq!(problems[0].path, "prompt");
        assert!(problems[0].what.contains("line 1"), "{:?}", problems[0]);
    }
}
