//! Prompts: templates filled in with queries and constitutions, and put into a model's own form of conversation if wanted.

use minijinja::value::Serde;
use minijinja::{Value as Context, context};

use super::check::require;
use super::contrast::Constitution;
use super::policy::{Ask, response_seed};
use super::query::Query;
use super::rows::Row;
use super::template::{self, Template};
use super::{InputArtifact, NodeError, markers, query};
use crate::lm::{ChatTemplate, LmError, Message};
use crate::pipeline::Problem;

/// Fills a prompt in.
#[derive(Debug)]
pub(super) struct Prompter {
    field: &'static str,
    source: String,
    template: Template,
    /// Text that the model is made to begin with.
    prefix: Option<Template>,
    chat: Option<Chat>,
}

/// The form of a conversation.
#[derive(Debug)]
struct Chat {
    template: ChatTemplate,
    system: Option<Template>,
}

/// What a model is asked.
#[derive(Debug)]
pub(super) struct Asked {
    /// Prompts, prefixes included.
    pub(super) asks: Vec<Ask>,
    /// What each response begins with.
    pub(super) prefixes: Vec<String>,
}

impl Prompter {
    /// Of the template in a field, which was checked before.
    pub(super) fn new(field: &'static str, text: &str) -> Result<Self, NodeError> {
        Ok(Self { field, source: text.to_owned(), template: template::parse(field, text)?, prefix: None, chat: None })
    }

    /// The model is made to begin with this, a template.
    pub(super) fn beginning(self, prefix: Option<&str>) -> Result<Self, NodeError> {
        let prefix = prefix.map(|text| template::parse("prefix", text)).transpose()?;
        Ok(Self { prefix, ..self })
    }

    /// The template's text.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// Prompts become what a user says to this model, after a system message if there is one.
    pub(super) fn in_chat(self, model: &InputArtifact, system: Option<&str>) -> Result<Self, NodeError> {
        let system = system.map(|text| template::parse("system", text)).transpose()?;
        Ok(Self { chat: Some(Chat { template: ChatTemplate::load(&model.files)?, system }), ..self })
    }

    /// What a user says for a query's row under a constitution: templates see the row's fields, `constitution` (text) and
    /// `principles` (list).
    pub(super) fn said(&self, id: &str, row: &Row, constitution: &Constitution) -> Result<String, NodeError> {
        self.template.render_row(self.field, id, &seen(row, constitution))
    }

    /// What the model is made to begin with; it belongs to the response.
    pub(super) fn prefix(&self, id: &str, row: &Row, constitution: &Constitution) -> Result<String, NodeError> {
        match &self.prefix {
            Some(prefix) => prefix.render_row("prefix", id, &seen(row, constitution)),
            None => Ok(String::new()),
        }
    }

    /// A prompt for a query's row under a constitution, without the prefix.
    pub(super) fn fill(&self, id: &str, row: &Row, constitution: &Constitution) -> Result<String, NodeError> {
        let prompt = self.said(id, row, constitution)?;
        let Some(chat) = &self.chat else { return Ok(prompt) };
        let system = match &chat.system {
            Some(system) => Some(system.render_row("system", id, &seen(row, constitution))?),
            None => None,
        };
        chat.conversation(system, prompt).map_err(|error| {
            let what = format!("the prompt of row `{id}` cannot be put into the form of a conversation: {error}");
            NodeError::with_help(what, "some templates know no system message: put it into `prompt`")
        })
    }

    /// What the model is asked for each query under each of its constitutions, in this order, `each` times; the prefix is at
    /// the prompt's end.
    pub(super) fn ask(&self, queries: &[Query], seed: u64, each: usize) -> Result<Asked, NodeError> {
        let mut asked = Asked { asks: Vec::new(), prefixes: Vec::new() };
        for Query { id, row, constitutions } in queries {
            for (place, constitution) in constitutions.iter().enumerate() {
                let prefix = self.prefix(id, row, constitution)?;
                let prompt = self.fill(id, row, constitution)? + &prefix;
                for turn in 0..each {
                    // The first of each is what it would be alone.
                    let seed = response_seed(seed, id, place + turn * constitutions.len());
                    asked.asks.push(Ask { row: id.clone(), prompt: prompt.clone(), seed });
                    asked.prefixes.push(prefix.clone());
                }
            }
        }
        Ok(asked)
    }

    /// What tells the parts of a prompt apart: headings and labels, and the special texts of a conversation.
    pub(super) fn markers(&self) -> Vec<String> {
        let own = markers::labels(&self.source);
        let frame = self.chat.as_ref().and_then(|chat| chat.conversation(None, String::new()).ok());
        markers::distinct(own.into_iter().chain(markers::tokens(&frame.unwrap_or_default())))
    }
}

impl Chat {
    fn conversation(&self, system: Option<String>, user: String) -> Result<String, LmError> {
        let mut messages: Vec<Message> =
            system.into_iter().map(|content| Message { role: "system", content }).collect();
        messages.push(Message { role: "user", content: user });
        self.template.render(&messages)
    }
}

fn seen(row: &Row, constitution: &Constitution) -> Context {
    let own = context! {
        constitution => &constitution.text,
        principles => Context::from(Serde(&constitution.principles)),
    };
    context! { ..own, ..query::fields(row) }
}

/// Adds a problem if `system` is given where nothing is a conversation, or does not parse.
pub(super) fn check_system(problems: &mut Vec<Problem>, system: Option<&str>, chat: bool) {
    let Some(text) = system else { return };
    template::check(problems, "system", text);
    if !chat {
        problems.push(Problem {
            path: "system".to_owned(),
            what: "`system` without `chat`".to_owned(),
            help: "give `chat`, or put the text into `prompt`".to_owned(),
        });
    }
}

/// Adds a problem if the text that a response begins with does not parse, or the one that it follows is empty.
pub(super) fn check_shape(problems: &mut Vec<Problem>, prefix: Option<&str>, after: Option<&str>) {
    if let Some(prefix) = prefix {
        template::check(problems, "prefix", prefix);
    }
    let what = "every response would follow an empty text at its very start";
    require(
        problems,
        after != Some(""),
        "after",
        what,
        "give the text that comes before the response, or leave it away",
    );
}
