//! What a judge says, and what it comes to.

use serde::Serialize;

/// What begins the line of a verdict in words.
const MARK: &str = "verdict:";

/// A comparison as it was decided.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(in crate::kinds) struct Verdict {
    /// What the candidate won: 1, 0, or what lies between.
    pub(in crate::kinds) win: f64,
    /// What the judge said, response by response shown first; nothing where the responses are identical and it was not asked.
    pub(in crate::kinds) rulings: Vec<Ruling>,
}

/// What the judge said of one order.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(in crate::kinds) struct Ruling {
    /// Whether the candidate's response was shown first.
    pub(in crate::kinds) first: bool,
    /// What the candidate won; half where the judge gave no usable verdict.
    pub(in crate::kinds) win: f64,
    /// The judge's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::kinds) says: Option<String>,
    /// Without words: how much likelier the label of the candidate's response was than the other, in nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::kinds) nats: Option<f64>,
    /// Whether the judge gave a usable verdict.
    pub(in crate::kinds) parsed: bool,
}

impl Verdict {
    /// Of identical responses, which no judge is asked about.
    pub(in crate::kinds) fn identical() -> Self {
        Self { win: 0.5, rulings: Vec::new() }
    }

    /// Of all orders that were judged. Words count alike; log-probabilities are added up, so that a judge that likes one place
    /// or one label is corrected for exactly that.
    pub(in crate::kinds) fn of(rulings: Vec<Ruling>) -> Self {
        let nats: Option<Vec<f64>> = rulings.iter().map(|ruling| ruling.nats).collect();
        let win = match nats {
            Some(nats) => won(nats.iter().sum()),
            None => rulings.iter().map(|ruling| ruling.win).sum::<f64>() / rulings.len().max(1) as f64,
        };
        Self { win, rulings }
    }

    /// Whether the orders were judged and came to different results.
    pub(in crate::kinds) fn is_split(&self) -> bool {
        self.rulings.windows(2).any(|pair| pair[0].win != pair[1].win)
    }
}

impl Ruling {
    /// By the log-probabilities of the two labels, that of the response shown first at first.
    pub(in crate::kinds) fn of_labels(first: bool, nats: [f64; 2]) -> Self {
        let ahead = if first { nats[0] - nats[1] } else { nats[1] - nats[0] };
        Self { first, win: won(ahead), says: None, nats: Some(ahead), parsed: true }
    }

    /// By what the judge said.
    pub(in crate::kinds) fn of_words(first: bool, says: &str, labels: &[String; 2]) -> Self {
        let side = side(says, labels);
        let win = match side {
            Some(0) => f64::from(u8::from(first)),
            Some(_) => f64::from(u8::from(!first)),
            None => 0.5,
        };
        Self { first, win, says: Some(says.to_owned()), nats: None, parsed: side.is_some() }
    }
}

/// What is wrong with two labels, if something is.
pub(in crate::kinds) fn check(labels: &[String; 2]) -> Option<String> {
    if let Some(label) = labels.iter().find(|label| !label.contains(char::is_alphanumeric) || label.contains('\n')) {
        return Some(format!("{label:?} is no label: it has neither letter nor number, or several lines"));
    }
    (bare(&labels[0]) == bare(&labels[1])).then(|| "the two labels are the same".to_owned())
}

fn won(ahead: f64) -> f64 {
    match ahead {
        ahead if ahead > 0.0 => 1.0,
        ahead if ahead < 0.0 => 0.0,
        _ => 0.5,
    }
}

/// Which of two labels a verdict names. The verdict stands in the last line that begins with `Verdict:`, or, if nothing
/// comes after that, in the line below it; without such a line the last line must be nothing but a label. It names one if it
/// holds exactly one of the labels, as a whole word in their spelling. Everything else names none.
fn side(says: &str, labels: &[String; 2]) -> Option<usize> {
    let lines: Vec<&str> = says.lines().map(bare).filter(|line| !line.is_empty()).collect();
    let marked =
        lines.iter().rposition(|line| line.get(..MARK.len()).is_some_and(|start| start.eq_ignore_ascii_case(MARK)));
    let alone = |line: Option<&&str>| labels.iter().position(|label| line.is_some_and(|line| *line == bare(label)));
    let Some(at) = marked else { return alone(lines.last()) };
    let verdict = bare(&lines[at][MARK.len()..]);
    if verdict.is_empty() {
        return alone(lines.get(at + 1));
    }
    // The longer label first: it may hold the shorter one.
    let (long, short) = if labels[0].len() >= labels[1].len() { (0, 1) } else { (1, 0) };
    let (holds_long, rest) = without(verdict, &labels[long]);
    let (holds_short, _) = without(&rest, &labels[short]);
    match (holds_long, holds_short) {
        (true, false) => Some(long),
        (false, true) => Some(short),
        _ => None,
    }
}

/// A line without white space and the marks of emphasis and quotation around it.
fn bare(line: &str) -> &str {
    line.trim_matches(|letter: char| letter.is_whitespace() || "*_`\"'#>.[](){}<".contains(letter))
}

/// Whether a text holds a label as a whole word, and the text without it.
fn without(text: &str, label: &str) -> (bool, String) {
    let label = bare(label);
    let ends_word = |letter: Option<char>, own: Option<char>| {
        !(letter.is_some_and(char::is_alphanumeric) && own.is_some_and(char::is_alphanumeric))
    };
    let whole = |at: usize| {
        ends_word(text[..at].chars().next_back(), label.chars().next())
            && ends_word(text[at + label.len()..].chars().next(), label.chars().next_back())
    };
    let found: Vec<usize> = text.match_indices(label).map(|(at, _)| at).filter(|at| whole(*at)).collect();
    let mut rest = String::with_capacity(text.len());
    let mut from = 0;
    for at in &found {
        rest.push_str(&text[from..*at]);
        rest.push('\0');
        from = at + label.len();
    }
    rest.push_str(&text[from..]);
    (!found.is_empty(), rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(says: &str) -> Option<usize> {
        side(says, &["A".to_owned(), "B".to_owned()])
    }

    #[test]
    fn a_verdict_names_exactly_one_label() {
        for (says, expected) in [
            ("Both are good. A is brief.\nVerdict: B", Some(1)),
            ("**Verdict: A**", Some(0)),
            ("verdict: \"A\".", Some(0)),
            ("Verdict: Response B", Some(1)),
            ("Verdict: [[A]]\n", Some(0)),
            ("Verdict: A\nOn second thought.\nVerdict: B", Some(1)),
            ("Verdict:\nB\n", Some(1)),
            ("A is longer.\n\nA", Some(0)),
            ("> Verdict: B, which a clear reader would prefer", Some(1)),
            ("Verdict: Both", None),
            ("Verdict: A and B", None),
            ("Verdict: neither", None),
            ("Verdict: a", None),
            ("Verdict: AB", None),
            ("Verdict:", None),
            ("Verdict:\nI would say A", None),
            ("I would say A", None),
            ("A\nbecause it is brief", None),
            ("", None),
            ("\n \n", None),
            ("Verdict: ÄA", None),
        ] {
            assert_eq!(of(says), expected, "{says:?}");
        }
    }

    #[test]
    fn one_label_may_hold_the_other() {
        let labels = ["response".to_owned(), "response two".to_owned()];
        assert_eq!(side("Verdict: response two", &labels), Some(1));
        assert_eq!(side("Verdict: response", &labels), Some(0));
        assert_eq!(side("Verdict: response or response two", &labels), None);
        let labels = ["[[1]]".to_owned(), "[[2]]".to_owned()];
        assert_eq!((side("Verdict: [[2]]", &labels), side("[[1]]", &labels)), (Some(1), Some(0)));
    }

    #[test]
    fn both_orders_are_put_together() {
        let labels = ["A".to_owned(), "B".to_owned()];
        let words = |first, says: &str| Ruling::of_words(first, says, &labels);
        let of = |one: &str, other: &str| Verdict::of(vec![words(true, one), words(false, other)]);
        assert_eq!((of("A", "B").win, of("A", "B").is_split()), (1.0, false));
        assert_eq!((of("A", "A").win, of("A", "A").is_split()), (0.5, true));
        assert_eq!((of("B", "A").win, of("Both", "B").win), (0.0, 0.75));
        assert!(!words(true, "Both").parsed);
        // The judge likes the first place by 1 nat; the candidate is better by ½.
        let verdict = Verdict::of(vec![Ruling::of_labels(true, [-1.0, -2.5]), Ruling::of_labels(false, [-1.0, -1.5])]);
        assert_eq!((verdict.win, verdict.is_split()), (1.0, true));
        assert_eq!(Ruling::of_labels(false, [-1.0, -1.5]).nats, Some(-0.5));
        assert_eq!(Verdict::of(vec![Ruling::of_labels(true, [-1.0, -1.0])]).win, 0.5);
    }
}
