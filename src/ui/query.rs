//! What stands after the `?` of an address.

use std::collections::BTreeMap;
use std::str::FromStr;

use super::Problem;

/// Names and values; of a name that is there twice the last one counts, but for [`Query::all`].
#[derive(Debug, Clone, Default)]
pub(super) struct Query {
    last: BTreeMap<String, String>,
    all: Vec<(String, String)>,
}

impl Query {
    /// Takes a query apart; whatever it is, it is some query.
    pub(super) fn parse(text: &str) -> Self {
        let all: Vec<(String, String)> = url::form_urlencoded::parse(text.as_bytes()).into_owned().collect();
        Self { last: all.iter().cloned().collect(), all }
    }

    /// A value, if it is there and not empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.last.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// All values of a name that may be there more than once, those that are empty left out.
    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.all
            .iter()
            .filter(move |(known, value)| known == name && !value.is_empty())
            .map(|(_, value)| value.as_str())
    }

    /// A value that must be there.
    pub(super) fn need(&self, name: &str) -> Result<&str, Problem> {
        self.get(name).ok_or_else(|| Problem::request(format!("the address lacks `{name}=`")))
    }

    /// A number or the like; `default` if there is none.
    pub(super) fn number<T: FromStr>(&self, name: &str, default: T) -> Result<T, Problem> {
        let Some(text) = self.get(name) else { return Ok(default) };
        text.parse().map_err(|_| Problem::request(format!("`{name}={text}` is no number that fits there")))
    }

    /// The same with a value in place of another one, as the rest of an address.
    pub(super) fn with(&self, name: &str, value: &str) -> String {
        let others = self.all.iter().filter(|(other, _)| other != name);
        encode(others.map(|(name, value)| (name.as_str(), value.as_str())).chain([(name, value)]))
    }

    /// The same without a name, as the rest of an address.
    pub(super) fn without(&self, name: &str) -> String {
        let others = self.all.iter().filter(|(other, _)| other != name);
        encode(others.map(|(name, value)| (name.as_str(), value.as_str())))
    }
}

/// Names and values as the part of an address after `?`.
pub(super) fn encode<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_all_kinds_come_back() {
        let query = Query::parse(&encode([("node", "a@1[x=\"é&/..\"]"), ("empty", "")].into_iter()));
        assert_eq!((query.get("node"), query.get("empty"), query.get("other")), (Some("a@1[x=\"é&/..\"]"), None, None));
        assert_eq!(Query::parse(&query.with("node", "b")).get("node"), Some("b"));
        assert_eq!(Query::parse("page=3").number("page", 1).unwrap(), 3);
        assert!(Query::parse("page=-3").number("page", 1_u32).is_err() && query.need("other").is_err());
        assert_eq!(Query::parse("run=a&run=&x=1&run=b").all("run").collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(Query::parse("run=a&token=x&run=b").without("token"), "run=a&run=b");
        assert_eq!(Query::parse("a=%ff%fe&&==&%").get("a"), Some("\u{fffd}\u{fffd}"));
    }
}
