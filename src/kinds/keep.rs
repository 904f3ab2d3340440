//! Which rows of responses stay: filters, and counts of what each dropped.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::alike;
use super::check::require;
use crate::pipeline::Problem;

/// What a query's responses must be like for its row to stay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Keep {
    /// Texts that no response may contain.
    pub forbid: Vec<String>,
    /// Texts that no response may start with.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub starts_with_none: Vec<String>,
    /// Texts of which one must end each response; any end will do without.
    pub ends_with: OneOrMany,
    /// More rules for the responses under the first constitution.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<Rules>,
    /// More rules for the responses under the other constitutions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub others: Option<Rules>,
    /// No two responses of a query to different constitutions are alike.
    pub distinct: bool,
    /// Share of words in which each two responses of a query to different constitutions differ at least.
    #[serde(skip_serializing_if = "is_nothing")]
    pub min_distance: f64,
    /// Tokens that each response has at least.
    pub min_tokens: usize,
    /// The model ended each response by itself or at a stop text.
    pub finished: bool,
    /// Texts that a query may not bring into its prompt.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub forbid_in_query: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_nothing(share: &f64) -> bool {
    *share == 0.0
}

/// Rules for some of the responses of a query.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// Texts that it may not contain.
    pub forbid: Vec<String>,
    /// Texts that it may not start with.
    pub starts_with_none: Vec<String>,
    /// Texts of which one must end it.
    pub ends_with: OneOrMany,
    /// Tokens that it has at least.
    pub min_tokens: usize,
}

impl Default for Keep {
    fn default() -> Self {
        Self {
            forbid: Vec::new(),
            starts_with_none: Vec::new(),
            ends_with: OneOrMany::default(),
            first: None,
            others: None,
            distinct: true,
            min_distance: 0.0,
            min_tokens: 1,
            finished: false,
            forbid_in_query: Vec::new(),
        }
    }
}

/// A text or a list of texts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct OneOrMany(pub Vec<String>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> serde::de::Visitor<'de> for TextVisitor {
            type Value = OneOrMany;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a text or a list of texts")
            }

            fn visit_str<E>(self, text: &str) -> Result<OneOrMany, E> {
                Ok(OneOrMany(vec![text.to_owned()]))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<OneOrMany, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = seq.next_element()? {
                    texts.push(text);
                }
                Ok(OneOrMany(texts))
            }
        }
        deserializer.deserialize_any(TextVisitor)
    }
}

impl JsonSchema for OneOrMany {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "OneOrMany".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "array"], "items": { "type": "string" } })
    }
}

/// A response as the filters see it.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// The place of its constitution among those of the query.
    pub place: usize,
    /// Its text.
    pub text: &'a str,
    /// Its number of tokens.
    pub tokens: usize,
    /// Whether the model ended it.
    pub finished: bool,
}

impl Rules {
    /// The first rule that one of the responses breaks.
    fn breaks(&self, responses: &[Candidate<'_>]) -> Option<&'static str> {
        let any = |fails: &dyn Fn(&Candidate<'_>) -> bool| responses.iter().any(fails);
        if any(&|response| response.text.is_empty() || response.tokens < self.min_tokens) {
            return Some("min_tokens");
        }
        if any(&|response| self.forbid.iter().any(|text| response.text.contains(text.as_str()))) {
            return Some("forbid");
        }
        if any(&|response| self.starts_with_none.iter().any(|text| response.text.starts_with(text.as_str()))) {
            return Some("starts_with_none");
        }
        let ends = &self.ends_with.0;
        if !ends.is_empty() && any(&|response| !ends.iter().any(|end| response.text.ends_with(end.as_str()))) {
            return Some("ends_with");
        }
        None
    }

    /// The rules that are on.
    fn on(&self) -> Vec<&'static str> {
        let on = [
            ("min_tokens", self.min_tokens > 0),
            ("forbid", !self.forbid.is_empty()),
            ("starts_with_none", !self.starts_with_none.is_empty()),
            ("ends_with", !self.ends_with.0.is_empty()),
        ];
        on.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect()
    }

    fn validate(&self, problems: &mut Vec<Problem>, path: &str) {
        for (field, texts) in [("forbid", &self.forbid), ("starts_with_none", &self.starts_with_none)] {
            not_empty(problems, &format!("{path}.{field}"), texts);
        }
    }
}

/// The pairs of responses to different constitutions.
fn pairs<'r, 'a>(responses: &'r [Candidate<'a>]) -> impl Iterator<Item = (&'r Candidate<'a>, &'r Candidate<'a>)> {
    responses.iter().enumerate().flat_map(|(at, one)| {
        responses[at + 1..].iter().filter(|other| other.place != one.place).map(move |other| (one, other))
    })
}

fn not_empty(problems: &mut Vec<Problem>, path: &str, texts: &[String]) {
    let holds = texts.iter().all(|text| !text.is_empty());
    require(
        problems,
        holds,
        path,
        "every text has the empty one in it, and all rows would drop",
        "remove the empty text",
    );
}

impl Keep {
    /// The rules for all responses of a query.
    fn all(&self) -> Rules {
        Rules {
            forbid: self.forbid.clone(),
            starts_with_none: self.starts_with_none.clone(),
            ends_with: self.ends_with.clone(),
            min_tokens: self.min_tokens,
        }
    }

    /// The name of the first filter that a query's responses fall to, `None` if they stay.
    pub fn drops(&self, responses: &[Candidate<'_>]) -> Option<String> {
        if let Some(rule) = self.all().breaks(responses) {
            return Some(rule.to_owned());
        }
        let (first, others) = responses.split_at(responses.iter().take_while(|response| response.place == 0).count());
        for (side, rules, responses) in [("first", &self.first, first), ("others", &self.others, others)] {
            if let Some(rule) = rules.as_ref().and_then(|rules| rules.breaks(responses)) {
                return Some(format!("{side}.{rule}"));
            }
        }
        if self.finished && responses.iter().any(|response| !response.finished) {
            return Some("finished".to_owned());
        }
        if self.distinct && pairs(responses).any(|(one, other)| one.text == other.text) {
            return Some("distinct".to_owned());
        }
        let near =
            |(one, other): (&Candidate<'_>, &Candidate<'_>)| alike::distance(one.text, other.text) < self.min_distance;
        (self.min_distance > 0.0 && pairs(responses).any(near)).then(|| "min_distance".to_owned())
    }

    /// A count of zero for each filter that is on, so that the metrics always have the same names.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let sides = [("first", &self.first), ("others", &self.others)].into_iter();
        let of_sides = sides.flat_map(|(side, rules)| {
            let rules = rules.iter().flat_map(Rules::on);
            rules.map(move |rule| (format!("{side}.{rule}"), true))
        });
        let on = [
            ("forbid_in_query", !self.forbid_in_query.is_empty()),
            ("min_tokens", true),
            ("forbid", !self.forbid.is_empty()),
            ("starts_with_none", !self.starts_with_none.is_empty()),
            ("ends_with", !self.ends_with.0.is_empty()),
            ("finished", self.finished),
            ("distinct", self.distinct),
            ("min_distance", self.min_distance > 0.0),
        ];
        let on = on.into_iter().map(|(name, on)| (name.to_owned(), on)).chain(of_sides);
        on.filter(|(_, on)| *on).map(|(name, _)| (name, 0)).collect()
    }

    /// What to do about the filter that dropped the most.
    pub fn advice(counts: &BTreeMap<String, u64>) -> &'static str {
        let most = counts.iter().max_by_key(|(_, count)| **count).map_or("", |(name, _)| name.as_str());
        match most.rsplit('.').next().unwrap_or_default() {
            "distinct" | "min_distance" => {
                "greedy responses that do not depend on the constitution all drop: sample with `temperature` above 0, give \
                 a model that follows constitutions at least a little, or set `keep.distinct = false`"
            }
            "finished" => "raise `max_new_tokens`, give `stop` texts, or set `keep.finished = false`",
            "min_tokens" => {
                "the model ends its responses at once, or all of their text is cut off: look at `prompt`, `stop`, `cut` and \
                 `until`, or lower `keep.min_tokens`"
            }
            "after" => {
                "the model does not write the text that its response should follow: ask for it in `prompt` or `prefix`, raise \
                 `max_new_tokens`, or change `after`"
            }
            "forbid_in_query" => {
                "shorten `keep.forbid_in_query`, or take the texts out of the queries in their template"
            }
            _ => "loosen this filter of `keep`, or ask for such responses in `prompt`",
        }
    }

    /// Adds what is wrong with the filters.
    pub fn validate(&self, problems: &mut Vec<Problem>) {
        self.all().validate(problems, "keep");
        for (side, rules) in [("keep.first", &self.first), ("keep.others", &self.others)] {
            if let Some(rules) = rules {
                rules.validate(problems, side);
            }
        }
        not_empty(problems, "keep.forbid_in_query", &self.forbid_in_query);
        require(
            problems,
            (0.0..=1.0).contains(&self.min_distance),
            "keep.min_distance",
            "`min_distance` is not in [0, 1]",
            "0.5 keeps rows whose responses differ in half of their words",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drops(keep: &Keep, texts: &[&str]) -> Option<String> {
        let responses: Vec<_> = texts
            .iter()
            .enumerate()
            .map(|(place, text)| Candidate {
                place,
                text,
                tokens: text.split_whitespace().count(),
                finished: text.ends_with('.'),
            })
            .collect();
        let of_one: Vec<_> = responses.iter().map(|response| Candidate { place: 0, ..*response }).collect();
        assert_ne!(keep.drops(&of_one).as_deref(), Some("distinct"), "responses to one constitution may be alike");
        let dropped = keep.drops(&responses);
        assert!(dropped.iter().all(|name| keep.counts().contains_key(name)), "{dropped:?} is not counted");
        dropped
    }

    fn keep(text: &str) -> Keep {
        serde_json::from_str(text).expect("reads")
    }

    #[test]
    fn identical_and_empty_responses_drop_by_default() {
        let keep = Keep::default();
        assert_eq!(drops(&keep, &["a.", "b."]), None);
        assert_eq!(drops(&keep, &["a.", "a."]).as_deref(), Some("distinct"));
        assert_eq!(drops(&keep, &["a.", ""]).as_deref(), Some("min_tokens"));
        assert_eq!(drops(&Keep { distinct: false, ..keep.clone() }, &["a.", "a."]), None);
        assert_eq!(drops(&Keep { min_tokens: 0, ..keep }, &["a.", ""]).as_deref(), Some("min_tokens"));
    }

    #[test]
    fn each_filter_is_named() {
        let keep = keep(
            r#"{"forbid": ["[insert"], "ends_with": ".", "finished": true, "min_tokens": 2,
            "starts_with_none": ["I'm sorry"], "min_distance": 0.5}"#,
        );
        assert!(keep.distinct);
        for (texts, name) in [
            (["a b.", "a [insert x]."], "forbid"),
            (["a b.", "a b"], "ends_with"),
            (["a b.", "c."], "min_tokens"),
            (["a b.", "I'm sorry, no."], "starts_with_none"),
            (["a b c.", "a b d."], "min_distance"),
        ] {
            assert_eq!(drops(&keep, &texts).as_deref(), Some(name));
        }
        assert_eq!(drops(&keep, &["a b.", "I say I'm sorry."]), None);
        assert_eq!(keep.counts().len(), 7);
    }

    #[test]
    fn rules_can_be_for_one_side_only() {
        let keep = keep(r#"{"first": {"ends_with": ".", "min_tokens": 2}, "others": {"forbid": ["!"]}}"#);
        assert_eq!(drops(&keep, &["a b.", "c d"]), None, "the end of the others does not matter");
        assert_eq!(drops(&keep, &["a b", "c d."]).as_deref(), Some("first.ends_with"));
        assert_eq!(drops(&keep, &["a.", "c d."]).as_deref(), Some("first.min_tokens"));
        assert_eq!(drops(&keep, &["a b!.", "c d!"]).as_deref(), Some("others.forbid"));
    }

    #[test]
    fn filters_that_would_drop_everything_are_problems() {
        let mut problems = Vec::new();
        keep(r#"{"forbid": [""], "first": {"starts_with_none": [""]}, "min_distance": 2}"#).validate(&mut problems);
        let paths: Vec<&str> = problems.iter().map(|problem| problem.path.as_str()).collect();
        assert_eq!(paths, ["keep.forbid", "keep.first.starts_with_none", "keep.min_distance"]);
        problems.clear();
        Keep::default().validate(&mut problems);
        assert!(problems.is_empty());
    }

    #[test]
    fn the_advice_is_about_what_dropped_the_most() {
        let counts = |name: &str| [("min_tokens".to_owned(), 1), (name.to_owned(), 3)].into();
        assert!(Keep::advice(&counts("first.ends_with")).contains("loosen this filter"));
        assert!(Keep::advice(&counts("finished")).contains("`max_new_tokens`"));
        assert!(Keep::advice(&counts("after")).contains("`after`"));
    }
}
