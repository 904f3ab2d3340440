//! Prompts: templates filled in with queries and constitutions, and put into a model's own form of conversation if wanted.

use minijinja::value::Serde;
use minijinja::{Value as Context, context};

use super::contrast::Constitution;
use super::rows::Row;
use super::template::{self, Template};
use super::{InputArtifact, NodeError, query};
use crate::lm::{ChatTemplate, Message};
use crate::pipeline::Problem;

/// Fills a prompt in.
#[derive(Debug)]
pub(super) struct Prompter {
    field: &'static str,
    template: Template,
    chat: Option<Chat>,
}

/// The form of a conversation.
#[derive(Debug)]
struct Chat {
    template: ChatTemplate,
    system: Option<Template>,
}

impl Prompter {
    /// Of the template in a field, which was checked before.
    pub(super) fn new(field: &'static str, text: &str) -> Result<Self, NodeError> {
        Ok(Self { field, template: template::parse(field, text)?, chat: None })
    }

    /// Prompts become what a user says to this model, after a system message if there is one.
    pub(super) fn in_chat(self, model: &InputArtifact, system: Option<&str>) -> Result<Self, NodeError> {
        let system = system.map(|text| template::parse("system", text)).transpose()?;
        Ok(Self { chat: Some(Chat { template: ChatTemplate::load(&model.files)?, system }), ..self })
    }

    /// A prompt for a query's row under a constitution: templates see the row's fields, `constitution` (text) and
    /// `principles` (list).
    pub(super) fn fill(&self, id: &str, row: &Row, constitution: &Constitution) -> Result<String, NodeError> {
        let own = context! {
            constitution => &constitution.text,
            principles => Context::from(Serde(&constitution.principles)),
        };
        let seen = context! { ..own, ..query::fields(row) };
        let prompt = self.template.render_row(self.field, id, &seen)?;
        let Some(chat) = &self.chat else { return Ok(prompt) };
        let mut messages = Vec::new();
        if let Some(system) = &chat.system {
            messages.push(Message { role: "system", content: system.render_row("system", id, &seen)? });
        }
        messages.push(Message { role: "user", content: prompt });
        chat.template.render(&messages).map_err(|error| {
            let what = format!("the prompt of row `{id}` cannot be put into the form of a conversation: {error}");
            NodeError::with_help(what, "some templates know no system message: put it into `prompt`")
        })
    }
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
