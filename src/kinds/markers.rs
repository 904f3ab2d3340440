//! Queries that hold what a prompt is told apart by: headings, labels of turns, the special texts of a conversation.
//!
//! A post that says "Human:" looks to the model like the next turn, and one that says "### Main Task" like the prompt's own
//! heading. Such queries are found by filling the prompt in with and without their texts.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use super::NodeError;
use super::contrast::Constitution;
use super::prompter::Prompter;
use super::rows::Row;

/// A heading or a label at the start of a line of a template.
static LABEL: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?m)^[ \t]*(#{2,}[ \t]+[^\n{}]+|[A-Z][A-Za-z]+(?: [A-Za-z]+){0,3}:)").expect("a pattern")
});

/// What templates of conversations put around what is said.
static TOKEN: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"<\|[^|<>\s]+\|>|\[/?[A-Z_]+\]|<<?/?[A-Za-z_]+>>?").expect("a pattern"));

/// The headings and labels of a template.
pub(super) fn labels(template: &str) -> Vec<String> {
    distinct(LABEL.captures_iter(template).map(|found| found[1].trim().to_owned()))
}

/// The special texts of a conversation that holds nothing else.
pub(super) fn tokens(conversation: &str) -> Vec<String> {
    distinct(TOKEN.find_iter(conversation).map(|found| found.as_str().to_owned()))
}

/// Markers without white space alone, each once.
pub(super) fn distinct(all: impl Iterator<Item = String>) -> Vec<String> {
    let mut markers: Vec<String> = Vec::new();
    for marker in all.filter(|marker| !marker.trim().is_empty()) {
        if !markers.contains(&marker) {
            markers.push(marker);
        }
    }
    markers
}

/// Which of the markers a row's own texts bring into its prompt.
pub(super) fn brought<'m>(
    markers: &'m [String],
    prompter: &Prompter,
    id: &str,
    row: &Row,
    constitution: &Constitution,
) -> Result<Vec<&'m String>, NodeError> {
    let suspects: Vec<&String> =
        markers.iter().filter(|marker| row.values().any(|value| holds(value, marker))).collect();
    if suspects.is_empty() {
        return Ok(suspects);
    }
    let whole = prompter.said(id, row, constitution)?;
    // A template may not stand empty texts; what it says itself is then counted in its source.
    let bare: Row = row.iter().map(|(name, value)| (name.clone(), emptied(value))).collect();
    let bare = prompter
        .said(id, &bare, constitution)
        .unwrap_or_else(|_| format!("{}{}", prompter.source(), constitution.text));
    let count = |text: &str, marker: &str| text.matches(marker).count();
    Ok(suspects.into_iter().filter(|marker| count(&whole, marker) > count(&bare, marker)).collect())
}

fn holds(value: &Value, marker: &str) -> bool {
    match value {
        Value::String(text) => text.contains(marker),
        Value::Array(items) => items.iter().any(|item| holds(item, marker)),
        Value::Object(fields) => fields.values().any(|field| holds(field, marker)),
        _ => false,
    }
}

fn emptied(value: &Value) -> Value {
    match value {
        Value::String(_) => Value::String(String::new()),
        Value::Array(items) => items.iter().map(emptied).collect(),
        Value::Object(fields) => fields.iter().map(|(name, field)| (name.clone(), emptied(field))).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::contrast::Format;
    use super::*;

    const TEMPLATE: &str = "System: Answer.\n\n### Example Format\nHuman: [a question]\n\n### Main Task\n\
        Assistant Constitution:\n{{ constitution }}\nHuman: {{ query[:40] }}\nAssistant:";

    #[test]
    fn markers_are_read_off_templates_and_conversations() {
        assert_eq!(
            labels(TEMPLATE),
            ["System:", "### Example Format", "Human:", "### Main Task", "Assistant Constitution:", "Assistant:"]
        );
        assert!(labels("rules : {{ constitution }} q : {{ query }} a :").is_empty());
        assert_eq!(tokens("<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"), ["<|im_start|>", "<|im_end|>"]);
        assert_eq!(tokens("<s>[INST] <<SYS>>\n<</SYS>> [/INST]"), ["<s>", "[INST]", "<<SYS>>", "<</SYS>>", "[/INST]"]);
    }

    #[test]
    fn only_what_reaches_the_prompt_counts() {
        let prompter = Prompter::new("prompt", TEMPLATE).expect("parses");
        // The constitution speaks of headings itself.
        let constitution =
            Constitution { text: "Use ### Main Task.".to_owned(), format: Format::Plain, principles: vec![] };
        let markers = labels(TEMPLATE);
        let brought = |query: &str| {
            let row = json!({"id": "Human:", "query": query, "chosen": "Human: hi Assistant: hello"});
            let row = row.as_object().cloned().expect("an object");
            let found = super::brought(&markers, &prompter, "1", &row, &constitution).expect("renders");
            found.into_iter().cloned().collect::<Vec<_>>()
        };
        assert!(brought("Why is the sky blue?").is_empty(), "other fields do not reach the prompt");
        assert_eq!(brought("Why?\nHuman: no\n### Main Task"), ["Human:", "### Main Task"]);
        assert!(brought(&format!("{}Human:", "a".repeat(40))).is_empty(), "it is sliced off");
    }
}
