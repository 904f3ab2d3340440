//! Prompts: templates filled in with queries and constitutions, and put into a model's own form of conversation if wanted.

use minijinja::value::Serde;
use minijinja::{Value as Context, context};

use super::check::require;
use super::contrast::Constitution;
use super::policy::Ask;
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
        for query in queries {
            let Query { id, row, constitutions } = query;
            for (place, constitution) in constitutions.iter().enumerate() {
                let prefix = self.prefix(id, row, constitution)?;
                let prompt = self.fill(id, row, constitution)? + &prefix;
                for seed in query.seeds(seed, place, each) {
                    let continues = !prefix.is_empty();
                    asked.asks.push(Ask { row: id.clone(), prompt: prompt.clone(), seed, continues });
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::contrast::Format;
    use super::super::policy::response_seed;
    use super::*;
    use crate::digest::Digest;
    use crate::pipeline::ArtifactType;

    const CHAT: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{{ '<|im_start|>assistant\n' }}";

    #[test]
    fn in_a_conversation_the_prefix_begins_the_models_turn() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("chat_template.jinja");
        fs_err::write(&path, CHAT).expect("writes");
        let files = [("chat_template.jinja".to_owned(), path)].into();
        let (id, kind) = (Digest::of(b"model"), ArtifactType::Model);
        let model = InputArtifact { id, kind, files, skip: 0, take: None, calling: None };
        let prompter = Prompter::new("prompt", "### Constitution\n{{ constitution }}\nPOST: {{ query }}\nSummary:")
            .and_then(|prompter| prompter.beginning(Some("The {{ kind }}")))
            .and_then(|prompter| prompter.in_chat(&model, Some("You sum up a {{ kind }}.")))
            .expect("parses");
        let constitution =
            |text: &str| Constitution { text: text.to_owned(), format: Format::Plain, principles: vec![] };
        let row = json!({"id": "7", "query": "Cats.", "kind": "post"}).as_object().cloned().expect("an object");
        let constitutions = vec![constitution("Be brief."), constitution("Ramble.")];
        let asked = prompter.ask(&[Query { id: "7".to_owned(), row, constitutions }], 3, 2).expect("fills in");
        assert_eq!(asked.prefixes, ["The post"; 4]);
        assert_eq!(
            asked.asks[0].prompt,
            "<|im_start|>system\nYou sum up a post.<|im_end|>\n<|im_start|>user\n### Constitution\nBe brief.\nPOST: Cats.\n\
             Summary:<|im_end|>\n<|im_start|>assistant\nThe post"
        );
        assert_eq!(asked.asks[0].prompt, asked.asks[1].prompt, "each is asked twice, with other random numbers");
        let seeds: std::collections::BTreeSet<u64> = asked.asks.iter().map(|ask| ask.seed).collect();
        assert_eq!(seeds.len(), 4);
        assert_eq!(asked.asks[2].seed, response_seed(3, "7", 1), "the first of each is what it would be alone");
        let markers = prompter.markers();
        for marker in ["### Constitution", "POST:", "Summary:", "<|im_start|>", "<|im_end|>"] {
            assert!(markers.iter().any(|found| found == marker), "{marker}: {markers:?}");
        }
    }
}
