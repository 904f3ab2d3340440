//! The writer of principles: a model is asked for the texts that are missing, and asked again where its answer cannot be used.

use indexmap::IndexMap;
use minijinja::value::Serde;
use minijinja::{Value as Context, context};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::contrast::Principle;
use super::policy::Work;
use super::principles::Draft;
use super::provenance::{Attempt, Provenance, Source, Sources};
use super::speaker::{Say, SpeakSettings, Speaker};
use super::{Cx, InputArtifact, NodeError, alike, template};
use crate::digest::Hasher;
use crate::endpoint::{self, Endpoint};
use crate::lm::Finish;

mod reply;

/// Characters of an answer that are shown where it could not be used.
const SHOWN: usize = 600;

/// What the writer is asked without a prompt of the user's.
pub(super) const PROMPT: &str = r#"We are writing a constitution: a list of principles for the responses of a language model{% if task %} that is to {{ task }}{% endif %}.
{%- if given %}

These principles are written already:
{% for one in given %}
- {{ one.name }}: {{ one.definition }} Its opposite: {{ one.antithesis }}
{%- endfor %}
{%- endif %}

Please write {{ "the principle" if asked | length == 1 else "the principles" }} {{ asked | map(attribute="name") | join(", ") }}. For each of them give two texts of one or two sentences:
- "definition": what a response is like that follows the principle. It should be clear enough to align a model far more capable than you by it.
- "antithesis": what a response is like that does the opposite. It stands in another constitution, for contrast: say plainly what such responses do, in the same style and at about the same length, and warn of nothing.

Both texts are about responses in general, not about a particular one, and each can be understood without the other. Leave texts as they are that are filled in below.

Answer with one JSON object of exactly this form, every "…" replaced, and with nothing else:
{{ form }}
"#;

/// How principles are written.
#[derive(Debug)]
pub(super) struct Writer<'k> {
    /// What the principles are for.
    pub(super) task: Option<&'k str>,
    /// Template of what the writer is told.
    pub(super) prompt: &'k str,
    /// Template of a system message.
    pub(super) system: Option<&'k str>,
    /// Questions at most.
    pub(super) attempts: usize,
    /// How answers are sampled.
    pub(super) settings: SpeakSettings,
    /// Seed of the answers.
    pub(super) seed: u64,
}

/// A principle as the writer's prompt sees it.
#[derive(Debug, Serialize)]
struct Seen<'a> {
    name: &'a str,
    definition: &'a str,
    antithesis: &'a str,
}

impl Draft {
    /// Whether both texts are there.
    pub(super) fn is_whole(&self) -> bool {
        self.definition.is_some() && self.written_antithesis().is_some()
    }

    fn seen<'a>(&'a self, name: &'a str) -> Seen<'a> {
        let text = |text: Option<&'a str>| text.unwrap_or_default();
        Seen { name, definition: text(self.definition.as_deref()), antithesis: text(self.written_antithesis()) }
    }

    /// The principle, its texts empty where they are missing.
    pub(super) fn principle(&self) -> Principle {
        let seen = self.seen("");
        Principle { definition: seen.definition.to_owned(), antithesis: seen.antithesis.to_owned() }
    }
}

/// The drafts that lack a text.
fn lacking(drafts: &IndexMap<String, Draft>) -> IndexMap<String, Draft> {
    let lacks = drafts.iter().filter(|(_, draft)| !draft.is_whole());
    lacks.map(|(name, draft)| (name.clone(), draft.clone())).collect()
}

/// The JSON object that is asked for, as it should look.
fn form(asked: &IndexMap<String, Draft>) -> String {
    let text = |given: &str| if given.is_empty() { "…".to_owned() } else { given.to_owned() };
    let line = |(name, draft): (&String, &Draft)| {
        let seen = draft.seen(name);
        let (definition, antithesis) = (json!(text(seen.definition)), json!(text(seen.antithesis)));
        format!("  {}: {{\"definition\": {definition}, \"antithesis\": {antithesis}}}", json!(name))
    };
    format!("{{\n{}\n}}", asked.iter().map(line).collect::<Vec<_>>().join(",\n"))
}

/// The beginning of a text, with a mark where it goes on.
fn excerpt(text: &str) -> String {
    let text = text.trim();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{} […]", &text[..end]),
        None => text.to_owned(),
    }
}

/// All principles in their order, who wrote what, and metrics.
type Written = (IndexMap<String, Principle>, Provenance, Map<String, Value>);

impl Writer<'_> {
    /// What stands in the templates `prompt` and `system`.
    fn context(&self, drafts: &IndexMap<String, Draft>, form: &str) -> Context {
        let seen = |whole: bool| -> Vec<Seen<'_>> {
            drafts.iter().filter(|(_, draft)| draft.is_whole() == whole).map(|(name, draft)| draft.seen(name)).collect()
        };
        context! {
            task => self.task.unwrap_or_default(),
            given => Context::from(Serde(seen(true))),
            asked => Context::from(Serde(seen(false))),
            form => form,
        }
    }

    /// Lets the model of the input `writer` write what is missing.
    pub(super) fn write(&self, cx: &mut Cx<'_>, drafts: &IndexMap<String, Draft>) -> Result<Written, NodeError> {
        let asked = lacking(drafts);
        let form = form(&asked);
        let context = self.context(drafts, &form);
        let first =
            template::parse("writer_prompt", self.prompt)?.render_row("writer_prompt", "principles", &context)?;
        let system = self.system.map(|system| template::parse("writer_system", system)).transpose()?;
        let system = system.map(|system| system.render_row("writer_system", "principles", &context)).transpose()?;
        let (writer, model) = (cx.input("writer")?.id.to_string(), name(cx.input("writer")?)?);
        let mut speaker = Speaker::open(cx, "writer")?;
        let mut work = Work::new(cx, "questions", self.attempts);
        let mut attempts: Vec<Attempt> = Vec::new();
        let (mut user, mut reused, mut tokens) = (first.clone(), 0, 0);
        loop {
            let attempt = attempts.len() + 1;
            let seed = Hasher::new().text("writer").number(self.seed).number(attempt as u64).seed();
            let say =
                Say { row: format!("principles, try {attempt}"), system: system.clone(), user: user.clone(), seed };
            let answers = work.speak(&mut speaker, &self.settings, std::slice::from_ref(&say))?;
            let answer = answers.values.into_iter().next();
            let answer = answer.ok_or_else(|| NodeError::failed("the writer was not asked"))?;
            reused += usize::from(answers.reused.first() == Some(&true));
            tokens += answer.tokens;
            let read = reply::read(&answer.text, &asked).and_then(|written| whole(drafts, &written));
            let said = Hasher::new().text(system.as_deref().unwrap_or_default()).text(&user).finish().to_string();
            let fault = read.as_ref().err().map(|fault| match answer.finish {
                Finish::Length => {
                    format!("{fault} (it ended after {} tokens, the most that are allowed)", answer.tokens)
                }
                _ => fault.clone(),
            });
            let reply = answer.text;
            attempts.push(Attempt { attempt, seed, prompt: said, reply: reply.clone(), fault: fault.clone() });
            match (read, fault) {
                (Ok(principles), _) => {
                    let provenance = Provenance { writer, model, attempts, principles: sources(drafts) };
                    let mut metrics = speaker.metrics("");
                    metrics.extend([
                        ("written".to_owned(), json!(asked.len())),
                        ("tries".to_owned(), json!(attempt)),
                        ("rows_asked".to_owned(), json!(attempt)),
                        ("rows_reused".to_owned(), json!(reused)),
                        ("tokens".to_owned(), json!(tokens)),
                    ]);
                    return Ok((principles, provenance, metrics));
                }
                (Err(_), fault) => {
                    let fault = fault.unwrap_or_default();
                    tracing::warn!(
                        "the writer's answer {attempt} cannot be used: {fault}. It was:\n{}",
                        excerpt(&reply)
                    );
                    if attempt >= self.attempts {
                        return Err(gave_up(attempt, &fault, &reply));
                    }
                    user = format!(
                        "{first}\n\nYou have answered this before:\n\n{}\n\nThat answer cannot be used: {fault}. Answer again, with \
                         one JSON object of exactly this form, every \"…\" replaced, and with nothing else:\n{form}",
                        excerpt(&reply)
                    );
                }
            }
        }
    }
}

/// The name of a model at its endpoint; `None` of one with weights.
fn name(input: &InputArtifact) -> Result<Option<String>, NodeError> {
    let Some(file) = input.files.get(endpoint::FILE) else { return Ok(None) };
    let endpoint: Result<Endpoint, _> = serde_json::from_slice(&fs_err::read(file)?);
    let endpoint =
        endpoint.map_err(|error| NodeError::failed(format!("{} is no endpoint: {error}", file.display())))?;
    Ok(Some(endpoint.model))
}

/// All principles, those that were written beside those that were given; errs if two are one.
fn whole(
    drafts: &IndexMap<String, Draft>,
    written: &IndexMap<String, Principle>,
) -> Result<IndexMap<String, Principle>, String> {
    let all: IndexMap<String, Principle> = drafts
        .iter()
        .map(|(name, draft)| (name.clone(), written.get(name).cloned().unwrap_or_else(|| draft.principle())))
        .collect();
    match alike::alike(&all).iter().find(|alike| alike.is_double()) {
        Some(double) => Err(double.to_string()),
        None => Ok(all),
    }
}

fn sources(drafts: &IndexMap<String, Draft>) -> IndexMap<String, Sources> {
    let source = |given: bool| if given { Source::Given } else { Source::Written };
    let of = |draft: &Draft| Sources {
        definition: source(draft.definition.is_some()),
        antithesis: source(draft.written_antithesis().is_some()),
    };
    drafts.iter().map(|(name, draft)| (name.clone(), of(draft))).collect()
}

fn gave_up(tries: usize, fault: &str, reply: &str) -> NodeError {
    let tries = if tries == 1 { "one try".to_owned() } else { format!("{tries} tries") };
    NodeError::with_help(
        format!(
            "the writer gave no principles that can be used in {tries}; of the last answer: {fault}. It was:\n{}",
            excerpt(reply)
        ),
        "give another model as `writer`, change `writer_prompt`, raise `writer_attempts` or `writer_max_new_tokens`, or write \
         the principles out: name = { definition = \"…\", antithesis = \"…\" }",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drafts() -> IndexMap<String, Draft> {
        let draft = |definition: Option<&str>, antithesis: Option<&str>| Draft {
            definition: definition.map(str::to_owned),
            antithesis: antithesis.map(str::to_owned),
            ..Draft::default()
        };
        [
            ("concise".to_owned(), draft(None, None)),
            ("kind".to_owned(), draft(Some("Be \"kind\"."), Some("Be mean."))),
            ("full".to_owned(), draft(Some("Say it all."), None)),
        ]
        .into()
    }

    #[test]
    fn the_prompt_names_what_is_missing_and_shows_what_is_there() {
        let settings = SpeakSettings { max_new_tokens: 9, temperature: 0.0, top_p: 1.0, stop: Vec::new() };
        let writer =
            Writer { task: Some("sum up a post"), prompt: PROMPT, system: None, attempts: 3, settings, seed: 0 };
        let drafts = drafts();
        let asked = lacking(&drafts);
        let form = form(&asked);
        assert_eq!(
            form,
            "{\n  \"concise\": {\"definition\": \"…\", \"antithesis\": \"…\"},\n  \
             \"full\": {\"definition\": \"Say it all.\", \"antithesis\": \"…\"}\n}"
        );
        let context = writer.context(&drafts, &form);
        let text = template::parse("writer_prompt", PROMPT).expect("parses").render(&context).expect("renders");
        assert!(text.contains("that is to sum up a post.\n\nThese principles are written already:"), "{text}");
        assert!(
            text.contains("- kind: Be \"kind\". Its opposite: Be mean.\n\nPlease write the principles concise, full."),
            "{text}"
        );
        assert!(text.ends_with(&form), "{text}");
        let alone: IndexMap<String, Draft> = asked.into_iter().take(1).collect();
        let writer = Writer { task: None, ..writer };
        let context = writer.context(&alone, "{}");
        let text = template::parse("writer_prompt", PROMPT).expect("parses").render(&context).expect("renders");
        assert!(text.contains("of a language model.\n\nPlease write the principle concise."), "{text}");
    }

    #[test]
    fn whose_each_text_is_stands_beside_it() {
        let drafts = drafts();
        let sources = sources(&drafts);
        assert_eq!(sources["kind"], Sources { definition: Source::Given, antithesis: Source::Given });
        assert_eq!(sources["full"], Sources { definition: Source::Given, antithesis: Source::Written });
        let principle =
            |definition: &str| Principle { definition: definition.to_owned(), antithesis: "No.".to_owned() };
        let written = [("concise".to_owned(), principle("Be brief.")), ("full".to_owned(), principle("Say it all."))];
        let all = whole(&drafts, &written.clone().into()).expect("no two are one");
        assert_eq!(all.keys().collect::<Vec<_>>(), ["concise", "kind", "full"]);
        let twice = [("concise".to_owned(), principle("Be \"kind\"!")), written[1].clone()];
        assert!(
            whole(&drafts, &twice.into()).expect_err("two are one").contains("`concise` and the definition of `kind`")
        );
    }

    #[test]
    fn long_answers_are_shown_in_part() {
        assert_eq!(excerpt(" short "), "short");
        let long = "ü".repeat(SHOWN + 1);
        assert!(excerpt(&long).ends_with(" […]") && excerpt(&long).chars().count() == SHOWN + 4);
    }
}
