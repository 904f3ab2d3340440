//! The judge that needs no model: declarative checks on the text, for principles that a program can check.

use std::collections::HashMap;

use indexmap::IndexMap;
use minijinja::Value as Context;
use regex::{Regex, RegexBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::kinds::NodeError;
use crate::kinds::contrast::{Constitution, Polarity};
use crate::kinds::template::{self, Template};
use crate::pipeline::Problem;

/// `rules = { … }`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// How a response shows that it follows a principle, by the principle's name.
    pub principles: IndexMap<String, Sides>,
    /// What any response must be like.
    #[serde(default)]
    pub well_formed: Option<Check>,
}

/// The checks of a principle.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sides {
    /// Holds if the response follows the definition.
    pub definition: Check,
    /// Holds if the response follows the antithesis.
    pub antithesis: Check,
}

/// A check on a text: every part that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Check {
    /// Words or phrases of which at least one is there.
    pub contains_any: Option<Vec<String>>,
    /// Words or phrases of which none is there.
    pub contains_none: Vec<String>,
    /// Words or phrases of which one is at the start.
    pub starts_with_any: Option<Vec<String>>,
    /// Words or phrases of which one is at the end.
    pub ends_with_any: Option<Vec<String>>,
    /// At least so many words.
    pub min_words: Option<usize>,
    /// At most so many words.
    pub max_words: Option<usize>,
    /// At least so many sentences.
    pub min_sentences: Option<usize>,
    /// At most so many sentences.
    pub max_sentences: Option<usize>,
    /// A regular expression for the whole text; a template over the query's fields.
    pub matches: Option<String>,
}

/// How a response did under a constitution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// Principles followed.
    pub followed: usize,
    /// Principles in the constitution.
    pub principles: usize,
    /// Whether the response is well formed.
    pub well_formed: bool,
    /// Of each principle of the constitution, in its order, whether it is followed.
    #[serde(skip)]
    pub follows: Vec<bool>,
}

impl Mark {
    /// Share of principles followed, less 1 if the response is not well formed.
    pub fn value(&self) -> f64 {
        let share = if self.principles == 0 { 0.0 } else { self.followed as f64 / self.principles as f64 };
        share - f64::from(u8::from(!self.well_formed))
    }

    /// 1 if this mark is higher than the other, 0 if it is lower, ½ if they are equal.
    pub fn against(&self, other: &Self) -> f64 {
        match self.value().total_cmp(&other.value()) {
            std::cmp::Ordering::Greater => 1.0,
            std::cmp::Ordering::Equal => 0.5,
            std::cmp::Ordering::Less => 0.0,
        }
    }
}

impl Rules {
    /// Problems of the checks, under the field `path`.
    pub fn validate(&self, path: &str) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (name, sides) in &self.principles {
            sides.definition.validate(&format!("{path}.principles.{name}.definition"), &mut problems);
            sides.antithesis.validate(&format!("{path}.principles.{name}.antithesis"), &mut problems);
        }
        if let Some(check) = &self.well_formed {
            check.validate(&format!("{path}.well_formed"), &mut problems);
        }
        problems
    }
}

impl Check {
    fn validate(&self, path: &str, problems: &mut Vec<Problem>) {
        if *self == Self::default() {
            problems.push(Problem {
                path: path.to_owned(),
                what: "a check that checks nothing".to_owned(),
                help: "give at least one key, such as `max_words`".to_owned(),
            });
        }
        if let Some(pattern) = &self.matches {
            template::check(problems, &format!("{path}.matches"), pattern);
            if !pattern.contains("{{")
                && !pattern.contains("{%")
                && let Err(error) = whole(pattern)
            {
                problems.push(Problem {
                    path: format!("{path}.matches"),
                    what: format!(
                        "not a regular expression: {}",
                        error.to_string().lines().last().unwrap_or_default().trim()
                    ),
                    help: "the syntax is that of the Rust crate regex".to_owned(),
                });
            }
        }
    }
}

fn whole(pattern: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(&format!("^(?:{pattern})$")).case_insensitive(true).dot_matches_new_line(true).build()
}

/// Rules ready to judge; keeps compiled patterns.
#[derive(Debug)]
pub struct RuleJudge<'a> {
    rules: &'a Rules,
    templates: HashMap<&'a str, Template>,
    patterns: HashMap<String, Regex>,
}

impl<'a> RuleJudge<'a> {
    /// Gets ready.
    pub fn new(rules: &'a Rules) -> Result<Self, NodeError> {
        let checks = rules
            .principles
            .values()
            .flat_map(|sides| [&sides.definition, &sides.antithesis])
            .chain(&rules.well_formed);
        let mut templates = HashMap::new();
        for pattern in checks.filter_map(|check| check.matches.as_deref()) {
            templates.insert(pattern, template::parse("rules", pattern)?);
        }
        Ok(Self { rules, templates, patterns: HashMap::new() })
    }

    /// Marks a response to a query (`id`, `fields`) under a constitution.
    pub fn mark(
        &mut self,
        id: &str,
        fields: &Context,
        constitution: &Constitution,
        response: &str,
    ) -> Result<Mark, NodeError> {
        let text = Text::of(response);
        let rules = self.rules;
        let mut follows = Vec::with_capacity(constitution.principles.len());
        for stance in &constitution.principles {
            let sides = rules.principles.get(&stance.name).ok_or_else(|| {
                NodeError::with_help(
                    format!("the rules say nothing about the principle `{}`", stance.name),
                    format!(
                        "add `rules.principles.{} = {{ definition = {{ … }}, antithesis = {{ … }} }}`",
                        stance.name
                    ),
                )
            })?;
            let check = match stance.polarity {
                Polarity::Definition => &sides.definition,
                Polarity::Antithesis => &sides.antithesis,
            };
            follows.push(self.holds(id, fields, check, &text)?);
        }
        let well_formed = match &rules.well_formed {
            Some(check) => self.holds(id, fields, check, &text)?,
            None => true,
        };
        let followed = follows.iter().filter(|follows| **follows).count();
        Ok(Mark { followed, principles: follows.len(), well_formed, follows })
    }

    fn holds(&mut self, id: &str, fields: &Context, check: &Check, text: &Text) -> Result<bool, NodeError> {
        let in_range = |count: usize, min: Option<usize>, max: Option<usize>| {
            min.is_none_or(|min| count >= min) && max.is_none_or(|max| count <= max)
        };
        let plain =
            check.contains_any.as_ref().is_none_or(|phrases| phrases.iter().any(|phrase| text.contains(phrase)))
                && !check.contains_none.iter().any(|phrase| text.contains(phrase))
                && check
                    .starts_with_any
                    .as_ref()
                    .is_none_or(|phrases| phrases.iter().any(|phrase| text.words.starts_with(&words(phrase))))
                && check
                    .ends_with_any
                    .as_ref()
                    .is_none_or(|phrases| phrases.iter().any(|phrase| text.words.ends_with(&words(phrase))))
                && in_range(text.count, check.min_words, check.max_words)
                && in_range(text.sentences, check.min_sentences, check.max_sentences);
        match &check.matches {
            Some(pattern) if plain => self.matches(id, fields, pattern, &text.raw),
            _ => Ok(plain),
        }
    }

    fn matches(&mut self, id: &str, fields: &Context, pattern: &str, text: &str) -> Result<bool, NodeError> {
        let template = self
            .templates
            .get(pattern)
            .ok_or_else(|| NodeError::failed("a pattern that was not there at the start"))?;
        let filled = template.render_row("matches", id, fields)?;
        if let Some(regex) = self.patterns.get(&filled) {
            return Ok(regex.is_match(text));
        }
        let regex = whole(&filled).map_err(|error| {
            NodeError::with_help(
                format!("`matches` is not a regular expression for row `{id}`: {error}"),
                "the syntax is that of the Rust crate regex",
            )
        })?;
        let matched = regex.is_match(text);
        self.patterns.insert(filled, regex);
        Ok(matched)
    }
}

/// A text as the checks see it.
struct Text {
    raw: String,
    /// Lowercase words and punctuation marks, each on its own.
    words: Vec<String>,
    /// Words without punctuation marks.
    count: usize,
    sentences: usize,
}

impl Text {
    fn of(text: &str) -> Self {
        let words = words(text);
        let is_word = |word: &&String| word.chars().any(char::is_alphanumeric);
        let count = words.iter().filter(is_word).count();
        let ends = |word: &String| matches!(word.as_str(), "." | "!" | "?" | "…");
        let mut sentences = words.windows(2).filter(|pair| ends(&pair[0]) && !ends(&pair[1])).count();
        sentences += usize::from(!words.is_empty());
        Self { raw: text.trim().to_owned(), words, count, sentences }
    }

    fn contains(&self, phrase: &str) -> bool {
        let phrase = words(phrase);
        !phrase.is_empty() && self.words.windows(phrase.len()).any(|window| window == phrase)
    }
}

/// Lowercase words and punctuation marks; apostrophes and hyphens stay inside words.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut open = false;
    for letter in text.chars() {
        let inside = letter.is_alphanumeric() || (open && matches!(letter, '\'' | '’' | '-' | '_'));
        if letter.is_whitespace() {
            open = false;
        } else if inside {
            match words.last_mut() {
                Some(word) if open => word.extend(letter.to_lowercase()),
                _ => words.push(letter.to_lowercase().collect()),
            }
            open = true;
        } else {
            words.push(letter.to_string());
            open = false;
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::contrast::{Format, Stance};
    use minijinja::context;

    fn constitution(polarity: Polarity) -> Constitution {
        Constitution::new(Format::Plain, vec![Stance { name: "brief".to_owned(), polarity, text: "be so".to_owned() }])
    }

    fn rules() -> Rules {
        serde_json::from_str(
            r#"{"principles": {"brief": {"definition": {"max_sentences": 1, "contains_none": ["red cap"]}, "antithesis": {"min_sentences": 2}}},
                "well_formed": {"matches": "the {{ noun }} is (fast|slow) \\.( really \\.)?"}}"#,
        )
        .expect("reads")
    }

    #[test]
    fn marks_follow_polarity_and_form() {
        let rules = rules();
        assert!(rules.validate("rules").is_empty());
        let mut judge = RuleJudge::new(&rules).expect("parses");
        let fields = context! { noun => "car" };
        let mut mark = |polarity, text| judge.mark("1", &fields, &constitution(polarity), text).expect("judges");
        let short = mark(Polarity::Definition, "the car is fast .");
        assert_eq!(short, Mark { followed: 1, principles: 1, well_formed: true, follows: vec![true] });
        let long = mark(Polarity::Definition, "the car is slow . really .");
        assert_eq!((long.followed, long.well_formed), (0, true));
        assert_eq!(mark(Polarity::Antithesis, "the car is slow . really .").followed, 1);
        let wrong = mark(Polarity::Definition, "the boat is fast .");
        assert!(!wrong.well_formed);
        assert_eq!((short.against(&long), short.against(&short), wrong.against(&long)), (1.0, 0.5, 0.5));
    }

    #[test]
    fn phrases_are_whole_words_without_case() {
        let text = Text::of("Well, I don't know the RED cap. Do you?");
        assert!(text.contains("red cap") && !text.contains("ed cap") && text.contains("don't"));
        assert_eq!((text.count, text.sentences), (9, 2));
        assert_eq!(Text::of("no end").sentences, 1);
        assert_eq!(Text::of("what?! no ...").sentences, 2);
        assert_eq!(Text::of("").sentences, 0);
    }

    #[test]
    fn broken_checks_are_problems_at_their_place() {
        let broken = r#"{"principles": {"brief": {"definition": {}, "antithesis": {"matches": "("}}}}"#;
        let rules: Rules = serde_json::from_str(broken).expect("reads");
        let paths: Vec<_> = rules.validate("rules").into_iter().map(|problem| problem.path).collect();
        assert_eq!(paths, ["rules.principles.brief.definition", "rules.principles.brief.antithesis.matches"]);
    }

    #[test]
    fn a_principle_without_rule_is_an_error() {
        let rules = Rules::default();
        let mut judge = RuleJudge::new(&rules).expect("nothing to parse");
        let error =
            judge.mark("1", &context! {}, &constitution(Polarity::Definition), "x").expect_err("unknown").to_string();
        assert!(error.contains("`brief`"), "{error}");
    }
}
