//! Which texts say the same: principles that are one in two names, and responses that hardly differ.

use std::collections::BTreeSet;

use indexmap::IndexMap;

use super::contrast::Principle;

/// Two principles share so many of their words at least to be told of: the share of the words of either that both have.
/// Lists that are in use (twenty principles for summaries, thirty personas) stay at 0.5 and below.
pub(super) const SIMILAR: f64 = 0.6;

/// Two texts of two principles that are alike.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Alike {
    /// Whose they are, and which.
    pub(super) one: (String, &'static str),
    /// The same of the other.
    pub(super) other: (String, &'static str),
    /// The share of their words that both have; 1 if they are equal but for case and punctuation.
    pub(super) share: f64,
}

impl Alike {
    /// Whether it is one principle in two names.
    pub(super) fn is_double(&self) -> bool {
        self.share >= 1.0 && self.one.1 == "definition" && self.other.1 == "definition"
    }
}

impl std::fmt::Display for Alike {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ((one, its), (other, of_other)) = (&self.one, &self.other);
        write!(f, "the {its} of `{one}` and the {of_other} of `{other}` ")?;
        if self.share >= 1.0 {
            return f.write_str("say the same");
        }
        write!(f, "share {:.0}% of their words", 100.0 * self.share)
    }
}

/// The words of a text: letters and digits, lower case.
pub(super) fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
}

/// Whether two texts are equal but for case, punctuation and white space.
pub(super) fn same(one: &str, other: &str) -> bool {
    let (words, others) = (words(one), words(other));
    // Of texts without words, such as emojis, every sign counts.
    if words.is_empty() && others.is_empty() { one.trim() == other.trim() } else { words == others }
}

/// The share of the words of two texts that both have (Jaccard's index of their sets of words).
pub(super) fn shared(one: &str, other: &str) -> f64 {
    if same(one, other) {
        return 1.0;
    }
    let (one, other): (BTreeSet<_>, BTreeSet<_>) =
        (words(one).into_iter().collect(), words(other).into_iter().collect());
    let both = one.intersection(&other).count();
    // Words in another order are not the same.
    (both as f64 / one.union(&other).count().max(1) as f64).min(0.99)
}

/// The share of words in which two texts differ: insertions, deletions and substitutions over the longer one's length.
pub(super) fn distance(one: &str, other: &str) -> f64 {
    let (one, other): (Vec<&str>, Vec<&str>) = (one.split_whitespace().collect(), other.split_whitespace().collect());
    let edits = strsim::generic_levenshtein(&one, &other);
    edits as f64 / one.len().max(other.len()).max(1) as f64
}

/// The pairs of principles that are alike, in order, each by what is most alike: two definitions, two antitheses, or one
/// of each.
pub(super) fn alike(principles: &IndexMap<String, Principle>) -> Vec<Alike> {
    let mut found = Vec::new();
    for (at, (one, its)) in principles.iter().enumerate() {
        for (other, of_other) in principles.iter().skip(at + 1) {
            let mut most: Option<Alike> = None;
            for (its_name, its_text, other_name, other_text) in [
                ("definition", &its.definition, "definition", &of_other.definition),
                ("antithesis", &its.antithesis, "antithesis", &of_other.antithesis),
                ("definition", &its.definition, "antithesis", &of_other.antithesis),
                ("antithesis", &its.antithesis, "definition", &of_other.definition),
            ] {
                let share = shared(its_text, other_text);
                if share >= most.as_ref().map_or(SIMILAR, |most| most.share.next_up()) {
                    let (one, other) = ((one.clone(), its_name), (other.clone(), other_name));
                    most = Some(Alike { one, other, share });
                }
            }
            found.extend(most);
        }
    }
    found
}

/// As [`alike`]; each pair is told of in the log.
pub(super) fn told(principles: &IndexMap<String, Principle>) -> Vec<Alike> {
    let found = alike(principles);
    for pair in &found {
        tracing::warn!("{pair}");
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_the_same_but_for_case_and_punctuation() {
        assert!(same("Be brief.", " be  BRIEF"));
        assert!(!same("Be brief.", "brief be"));
        assert!(same("🙂", "🙂 ") && !same("🙂", "🙃"));
        assert_eq!(shared("Be brief.", "brief be"), 0.99);
        assert_eq!(shared("be brief", "be formal"), 1.0 / 3.0);
        assert_eq!(shared("🙂", "🙃"), 0.0);
    }

    #[test]
    fn distance_counts_words() {
        assert_eq!(distance("a b c d", "a b c d"), 0.0);
        assert_eq!(distance("a b c d", "a x c d"), 0.25);
        assert_eq!(distance("a b", "a b c d"), 0.5);
        assert_eq!((distance("", ""), distance("", "a")), (0.0, 1.0));
    }

    #[test]
    fn principles_that_are_alike_are_named() {
        let principle = |definition: &str, antithesis: &str| Principle {
            definition: definition.to_owned(),
            antithesis: antithesis.to_owned(),
        };
        let principles: IndexMap<String, Principle> = [
            ("brief".to_owned(), principle("Be brief.", "Ramble on and on.")),
            ("short".to_owned(), principle("be BRIEF", "Say all there is.")),
            ("pirate".to_owned(), principle("Talk like a pirate.", "Use plain English, please.")),
            ("bard".to_owned(), principle("Talk like the bard.", "Use plain English.")),
            ("wordy".to_owned(), principle("Ramble on and on!", "Stop early.")),
        ]
        .into();
        let told: Vec<String> = alike(&principles).iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "the definition of `brief` and the definition of `short` say the same",
                "the antithesis of `brief` and the definition of `wordy` say the same",
                "the antithesis of `pirate` and the antithesis of `bard` share 75% of their words",
            ]
        );
    }
}
