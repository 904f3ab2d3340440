//! What candidates are asked.

use crate::kinds::evaluate::Evaluate;
use crate::kinds::policy::{Ask, response_seed};
use crate::kinds::prompter::Prompter;
use crate::kinds::query::Query;
use crate::kinds::speaker::Say;
use crate::kinds::{Cx, NodeError};

/// What a candidate with weights is asked.
pub(super) struct Questions {
    pub(super) asks: Vec<Ask>,
    /// What each response is made to begin with.
    pub(super) prefixes: Vec<String>,
    /// Whether they are put in the form of a conversation.
    pub(super) in_chat: bool,
    /// The training prompt under each constitution.
    pub(super) prompts: Vec<String>,
}

/// What a candidate is asked: the same as all others, or the same in its own form of conversation.
pub(super) fn of_model(kind: &Evaluate, cx: &Cx<'_>, name: &str, queries: &[Query]) -> Result<Questions, NodeError> {
    let in_chat = kind.chat.iter().any(|chat| chat == name);
    let (prompter, score_prompter) = if in_chat {
        let (field, text) = said(kind);
        let input = cx.input(&format!("candidates.{name}"))?;
        (Prompter::new(field, text)?.in_chat(input, kind.system.as_deref())?, None)
    } else {
        let score_prompter = kind.score_prompt.as_ref().map(|text| Prompter::new("score_prompt", text)).transpose()?;
        (Prompter::new("prompt", &kind.prompt)?.beginning(kind.prefix.as_deref())?, score_prompter)
    };
    let (mut asks, mut prefixes, mut prompts) = (Vec::new(), Vec::new(), Vec::new());
    for query in queries {
        for (place, constitution) in query.constitutions.iter().enumerate() {
            let asked = prompter.fill(&query.id, &query.row, constitution)?;
            prompts.push(match &score_prompter {
                Some(prompter) => prompter.fill(&query.id, &query.row, constitution)?,
                None => asked.clone(),
            });
            let seed = response_seed(kind.seed, &query.id, place);
            let prefix = prompter.prefix(&query.id, &query.row, constitution)?;
            let continues = !prefix.is_empty();
            asks.push(Ask { row: query.id.clone(), prompt: asked + &prefix, seed, continues });
            prefixes.push(prefix);
        }
    }
    Ok(Questions { asks, prefixes, in_chat, prompts })
}

/// What a candidate is asked that is called over HTTP: what the user says, after a system message if there is one; under the
/// compared constitutions only, because each call costs.
pub(super) fn of_endpoint(kind: &Evaluate, queries: &[Query], compared: usize) -> Result<Vec<Say>, NodeError> {
    let (field, text) = said(kind);
    let prompter = Prompter::new(field, text)?;
    let system = kind.system.as_ref().map(|text| Prompter::new("system", text)).transpose()?;
    let mut says = Vec::new();
    for query in queries {
        for (place, constitution) in query.constitutions.iter().enumerate().take(compared) {
            let fill = |prompter: &Prompter| prompter.fill(&query.id, &query.row, constitution);
            says.push(Say {
                row: query.id.clone(),
                system: system.as_ref().map(fill).transpose()?,
                user: fill(&prompter)?,
                seed: response_seed(kind.seed, &query.id, place),
            });
        }
    }
    Ok(says)
}

/// The template of what a user says in a conversation, with its field.
fn said(kind: &Evaluate) -> (&'static str, &str) {
    kind.chat_prompt.as_ref().map_or(("prompt", kind.prompt.as_str()), |text| ("chat_prompt", text.as_str()))
}
