//! Chat templates: a conversation as the text that a model was trained on.
//!
//! They are Jinja, written for `transformers` and Python; minijinja reads them, and what it lacks of Python stands in `python`.

use std::collections::BTreeMap;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value as Context, context};
use serde::Serialize;
use serde_json::Value;

use super::{Files, LmError, tokenizer};
use crate::{depth, fs};

mod python;

/// What one side said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: &'static str,
    /// The text.
    pub content: String,
}

/// A model's chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token`, `eos_token` and so on.
    tokens: BTreeMap<String, String>,
}

const FILE: &str = "chat_template.jinja";
/// A template is smaller by far.
const LARGEST: u64 = 16 << 20;
/// A template that takes this many steps does not end.
const STEPS: u64 = 10_000_000;
/// Where a template cannot do without the day, it gets this one: the same pipeline makes the same texts on every day.
const DAY: jiff::civil::Date = jiff::civil::date(2024, 7, 26);

impl ChatTemplate {
    /// Loads `chat_template.jinja`, or `chat_template` of `tokenizer_config.json` (the one called `default`, if there are several).
    ///
    /// Errs where the model has none.
    pub fn load(files: &Files) -> Result<Self, LmError> {
        let settings = tokenizer::settings(files)?;
        let text = match (files.get(FILE), settings.get("chat_template")) {
            (Some(path), _) => fs::read_text(path, LARGEST)?,
            (None, Some(Value::String(text))) => text.clone(),
            (None, Some(Value::Array(named))) => {
                let default = named.iter().find(|one| one["name"] == "default").or(named.first());
                let text = default.and_then(|one| one["template"].as_str());
                text.ok_or(LmError::NoChatTemplate)?.to_owned()
            }
            _ => return Err(LmError::NoChatTemplate),
        };
        let special = settings.as_object().into_iter().flatten().filter(|(name, _)| name.ends_with("_token"));
        let tokens = special.filter_map(|(name, value)| {
            let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
            Some((name.clone(), text.to_owned()))
        });
        Self::new(&text, tokens.collect())
    }

    /// A template and the tokens that it may name. Errs if it does not parse.
    pub fn new(text: &str, tokens: BTreeMap<String, String>) -> Result<Self, LmError> {
        depth::of_template(text).map_err(|what| LmError::ChatTemplate { what: format!("it {what}") })?;
        if depth::nests_namespaces(text) {
            return Err(LmError::ChatTemplate { what: "it keeps a namespace within a namespace".to_owned() });
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("the delimiters are the usual ones"));
        environment.set_fuel(Some(STEPS));
        environment.set_unknown_method_callback(python::method);
        environment.add_filter("tojson", python::to_json);
        environment.add_function("raise_exception", |what: String| -> Result<Context, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, what))
        });
        // Most ask whether there is a clock and have a day of their own if not.
        if text.contains("strftime_now") && !text.contains("strftime_now is defined") {
            environment.add_function("strftime_now", |format: String| DAY.strftime(&format).to_string());
        }
        environment.add_template_owned("chat", without_tracking(text)).map_err(|error| fault(&error))?;
        Ok(Self { environment, tokens })
    }

    /// The text of a conversation, up to where the model is to go on.
    ///
    /// It begins with the token that begins a text if the template says so; [`super::Tokenizer`] adds no second one. Errs
    /// where the template refuses the conversation.
    pub fn render(&self, messages: &[Message]) -> Result<String, LmError> {
        let template = self.environment.get_template("chat").map_err(|error| fault(&error))?;
        let own = context! { messages => Context::from(Serde(messages)), add_generation_prompt => true };
        template.render(context! { ..own, ..Context::from(Serde(&self.tokens)) }).map_err(|error| fault(&error))
    }
}

/// `{% generation %}` marks what the assistant says, for training elsewhere; here it is a block like any other.
fn without_tracking(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("{%") {
        let end = rest[at..].find("%}").map_or(rest.len(), |end| at + end);
        let tag = &rest[at..end];
        plain.push_str(&rest[..at]);
        match tag.trim_matches(|c: char| "{%-+ \n".contains(c)) {
            "generation" => plain.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => plain.push_str(&tag.replace("endgeneration", "endif")),
            _ => plain.push_str(tag),
        }
        rest = &rest[end..];
    }
    plain.push_str(rest);
    plain
}

fn fault(error: &minijinja::Error) -> LmError {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    let line = error.line().map_or_else(String::new, |line| format!(" (line {line})"));
    LmError::ChatTemplate { what: format!("{what}{line}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str) -> Result<String, String> {
        let tokens = BTreeMap::from([("eos_token".to_owned(), "</s>".to_owned())]);
        let template = ChatTemplate::new(template, tokens).map_err(|error| error.to_string())?;
        let say = |role, content: &str| Message { role, content: content.to_owned() };
        template.render(&[say("system", "be brief"), say("user", "why?")]).map_err(|error| error.to_string())
    }

    #[test]
    fn the_same_text_on_every_day() {
        assert_eq!(render("{{ strftime_now('%d %b %Y') }}").as_deref(), Ok("26 Jul 2024"));
        let asks = "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}a day{% endif %}";
        assert_eq!(render(asks).as_deref(), Ok("a day"));
    }

    #[test]
    fn faults_say_what_the_template_says_and_where() {
        let error =
            render("{{ messages[0]['content'] }}\n{{ raise_exception('no system role') }}").expect_err("it refuses");
        assert!(error.contains("no system role") && error.contains("line 2"), "{error}");
        assert!(render("{% for m in messages %}").expect_err("no end").contains("line 1"));
        assert!(
            render("{% for i in range(100000) %}{% for j in range(100000) %}{{ j }}{% endfor %}{% endfor %}").is_err()
        );
    }

    #[test]
    fn marks_of_what_the_assistant_says_are_passed_over() {
        assert_eq!(render("{%- generation -%} a {%- endgeneration -%} {{ eos_token }}").as_deref(), Ok("a</s>"));
        assert_eq!(
            without_tracking("{% generation %}x{% endgeneration %}{% set a = 1"),
            "{% if true %}x{% endif %}{% set a = 1"
        );
    }

    #[test]
    fn files_come_in_three_forms() {
        let folder = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs_err::write(&path, text).expect("writes");
            (name.to_owned(), path)
        };
        let load = |files: &Files| {
            let say = Message { role: "user", content: "hi".to_owned() };
            ChatTemplate::load(files).and_then(|template| template.render(&[say]))
        };
        let mut files: Files = [write("tokenizer_config.json", r#"{"bos_token": {"content": "<s>"}}"#)].into();
        assert!(matches!(load(&files), Err(LmError::NoChatTemplate)));
        write("tokenizer_config.json", r#"{"bos_token": {"content": "<s>"}, "chat_template": "{{ bos_token }}a"}"#);
        assert_eq!(load(&files).expect("renders"), "<s>a");
        let named = r#"{"chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]}"#;
        write("tokenizer_config.json", named);
        assert_eq!(load(&files).expect("renders"), "d");
        files.extend([write(FILE, "{{ messages[0].content }}!\n")]);
        assert_eq!(load(&files).expect("renders"), "hi!");
    }
}
