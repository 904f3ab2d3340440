//! Which rows of responses stay: filters, and counts of what each dropped.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a query's responses must be like for its row to stay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Keep {
    /// Texts that no response may contain.
    pub forbid: Vec<String>,
    /// Texts of which one must end each response; any end will do without.
    pub ends_with: OneOrMany,
    /// No two responses of a query to different constitutions are alike.
    pub distinct: bool,
    /// Tokens that each response has at least.
    pub min_tokens: usize,
    /// The model ended each response by itself or at a stop text.
    pub finished: bool,
}

impl Default for Keep {
    fn default() -> Self {
        Self { forbid: Vec::new(), ends_with: OneOrMany::default(), distinct: true, min_tokens: 1, finished: false }
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

impl Keep {
    /// The name of the first filter that a query's responses fall to, `None` if they stay.
    pub fn drops(&self, responses: &[Candidate<'_>]) -> Option<&'static str> {
        let any = |fails: &dyn Fn(&Candidate<'_>) -> bool| responses.iter().any(fails);
        if any(&|response| response.text.is_empty() || response.tokens < self.min_tokens) {
            return Some("min_tokens");
        }
        if any(&|response| self.forbid.iter().any(|text| response.text.contains(text.as_str()))) {
            return Some("forbid");
        }
        let ends = &self.ends_with.0;
        if !ends.is_empty() && any(&|response| !ends.iter().any(|end| response.text.ends_with(end.as_str()))) {
            return Some("ends_with");
        }
        if self.finished && any(&|response| !response.finished) {
            return Some("finished");
        }
        if self.distinct {
            if any(&|response| {
                responses.iter().any(|other| other.place != response.place && other.text == response.text)
            }) {
                return Some("distinct");
            }
        }
        None
    }

    /// A count of zero for each filter that is on, so that the metrics always have the same names.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        let on = [
            ("min_tokens", true),
            ("forbid", !self.forbid.is_empty()),
            ("ends_with", !self.ends_with.0.is_empty()),
            ("finished", self.finished),
            ("distinct", self.distinct),
        ];
        on.into_iter().filter(|(_, on)| *on).map(|(name, _)| (name, 0)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drops(keep: &Keep, texts: &[&str]) -> Option<&'static str> {
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
        let one = responses.iter().map(|response| Candidate { place: 0, ..*response }).collect::<Vec<_>>();
        assert_ne!(keep.drops(&one), Some("distinct"), "responses to one constitution may be alike");
        keep.drops(&responses)
    }

    #[test]
    fn identical_and_empty_responses_drop_by_default() {
        let keep = Keep::default();
        assert_eq!(drops(&keep, &["a.", "b."]), None);
        assert_eq!(drops(&keep, &["a.", "a."]), Some("distinct"));
        assert_eq!(drops(&keep, &["a.", ""]), Some("min_tokens"));
        assert_eq!(drops(&Keep { distinct: false, ..keep }, &["a.", "a."]), None);
    }

    #[test]
    fn each_filter_is_named() {
        let keep: Keep =
            serde_json::from_str(r#"{"forbid": ["[insert"], "ends_with": ".", "finished": true, "min_tokens": 2}"#)
                .expect("reads");
        assert!(keep.distinct);
        assert_eq!(drops(&keep, &["a b.", "a [insert x]."]), Some("forbid"));
        assert_eq!(drops(&keep, &["a b.", "a b"]), Some("ends_with"));
        assert_eq!(drops(&keep, &["a b.", "c."]), Some("min_tokens"));
        assert_eq!(keep.counts().len(), 5);
    }
}
