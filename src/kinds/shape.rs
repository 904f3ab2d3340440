//! From what a model said to the response that is kept: the forced beginning put back, reasoning and what follows taken off.

use super::policy::Answer;
use crate::lm::Finish;

/// What becomes of an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape<'a> {
    /// The response is what follows the first of this text.
    pub(super) after: Option<&'a str>,
    /// Texts that end the response.
    pub(super) until: &'a [String],
    /// Texts at which a finished response is cut off.
    pub(super) cut: &'a [String],
}

/// A response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shaped {
    /// Without white space around it; empty if `after` is missing.
    pub(super) text: String,
    /// With what came before, if that was taken off.
    pub(super) raw: Option<String>,
    /// Why it ended.
    pub(super) finish: Finish,
    /// Whether the text that it should follow is there.
    pub(super) found: bool,
}

impl Shape<'_> {
    /// The response of an answer to a prompt that ended in `prefix`.
    pub(super) fn of(&self, prefix: &str, answer: &Answer) -> Shaped {
        let whole = format!("{prefix}{}", answer.text);
        let mut finish = answer.finish;
        let following = self.after.map(|after| whole.split_once(after).map(|(_, following)| following.trim_start()));
        let found = following != Some(None);
        let mut body = following.unwrap_or(Some(&whole)).unwrap_or_default();
        if !self.until.is_empty() {
            body = body.trim_start();
        }
        if let Some(end) = first(body, self.until) {
            body = &body[..end];
            finish = Finish::Stop;
        }
        let end = first(body, self.cut).unwrap_or(body.len());
        let text = body[..end].trim().to_owned();
        Shaped { text, raw: self.after.map(|_| whole), finish, found }
    }
}

/// Where the first of some texts is.
fn first(text: &str, of: &[String]) -> Option<usize> {
    of.iter().filter(|wanted| !wanted.is_empty()).filter_map(|wanted| text.find(wanted.as_str())).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shaped(after: Option<&str>, until: &[&str], cut: &[&str], prefix: &str, text: &str) -> Shaped {
        let (until, cut): (Vec<String>, Vec<String>) = (
            until.iter().map(|text| (*text).to_owned()).collect(),
            cut.iter().map(|text| (*text).to_owned()).collect(),
        );
        let answer = Answer { text: text.to_owned(), tokens: 9, finish: Finish::Length };
        Shape { after, until: &until, cut: &cut }.of(prefix, &answer)
    }

    #[test]
    fn a_forced_beginning_is_part_of_the_response() {
        let shaped = shaped(None, &[], &["Human:"], " The post", " is about a dog. Human: thanks");
        assert_eq!((shaped.text.as_str(), shaped.raw, shaped.found), ("The post is about a dog.", None, true));
        assert_eq!(shaped.finish, Finish::Length, "what is cut off later does not end a response");
    }

    #[test]
    fn reasoning_is_taken_off_and_kept_beside() {
        let said = " it be short.\nSummary:\n\nA dog. It ran.\n\nSummary: again";
        let shaped = self::shaped(Some("Summary:"), &["\n\n"], &[], "The constitution asks that", said);
        assert_eq!((shaped.text.as_str(), shaped.finish, shaped.found), ("A dog. It ran.", Finish::Stop, true));
        assert_eq!(shaped.raw.as_deref(), Some(format!("The constitution asks that{said}").as_str()));
        let none = self::shaped(Some("Summary:"), &["\n\n"], &[], "", "It should be short");
        assert_eq!((none.text.as_str(), none.found, none.finish), ("", false, Finish::Length));
        let empty = self::shaped(Some("Summary:"), &[], &[], "", "well. Summary: ");
        assert_eq!((empty.text.as_str(), empty.found), ("", true));
    }

    #[test]
    fn white_space_at_the_start_ends_nothing() {
        assert_eq!(shaped(None, &["\n\n"], &[], "", "\n\nA dog.\n\nMore").text, "A dog.");
        assert_eq!(shaped(None, &[], &["\n\n"], "", "\n\nA dog.").text, "", "what is cut is cut wherever it stands");
    }
}
