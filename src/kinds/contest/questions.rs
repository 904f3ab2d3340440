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
    /// The training prompt under each constitution.
    pub(super) prompts: Vec<String>,
}

/// What a candidate is asked: the same as all others, or the same in its own form of conversation.
pub(super) fn of_model(kind: &Evaluate, cx: &Cx<'_>, name: &str, queries: &[Query]) -> Result<Questions, NodeError> {
    let (prompter, score_prompter) = if kind.chat.iter().any(|chat| chat == name) {
        let (field, text) = said(kind);
        let input = cx.input(&format!("candidates.{name}"))?;
        (Prompter::new(field, text)?.in_chat(input, kind.system.as_deref())?, None)
    } else {
        let score_prompter = kind.score_prompt.as_ref().map(|text| Prompter::new("score_prompt", text)).transpose()?;
        (Prompter::new("prompt", &kind.prompt)?, score_prompter)
    };
    let (mut asks, mut prompts) = (Vec::new(), Vec::new());
    for query in queries {
        for (place, constitution) in query.constitutions.iter().enumerate() {
            let asked = prompter.fill(&query.id, &query.row, constitution)?;
            prompts.push(match &score_prompter {
                Some(prompter) => prompter.fill(&query.id, &query.row, constitution)?,
                None => asked.clone(),
            });
            let seed = response_seed(kind.seed, &query.id, place);
            asks.push(Ask { row: query.id.clone(), prompt: asked, seed });
        }
    }
    Ok(Questions { asks, prompts })
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
