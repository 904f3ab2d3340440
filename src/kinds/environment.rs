//! The environment of a `command`: a short list that is always passed on, what the node sets, and what it names.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

use crate::digest::{Digest, Hasher};
use crate::env;
use crate::pipeline::Problem;
use crate::secret::Secrets;

/// Field `env`: `["NAME", …]`, or `{ NAME = "value", OTHER = true }`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Environment(BTreeMap<String, Variable>);

/// A variable of a program.
#[derive(Debug, Clone, PartialEq)]
enum Variable {
    /// Set to this text, after places were filled in.
    Set(String),
    /// As it is in the environment of `sami`, where it has a value of this digest, or is not set.
    Passed(Option<Digest>),
}

impl Variable {
    /// A variable that is passed on, with the digest that stands for its value in the key: names go in, so that equal
    /// values of two variables do not show.
    fn passed(name: &str) -> Self {
        Self::Passed(env::value(name).map(|value| {
            let bytes = value.into_encoded_bytes();
            let mut hasher = Hasher::new();
            hasher.text("environment").text(name).digest(&Digest::of(&bytes));
            hasher.finish()
        }))
    }
}

impl Environment {
    /// All variables of the program: `ours` say where its files are, and give way to what the node sets.
    pub(super) fn of_program(
        &self,
        ours: BTreeMap<String, String>,
        fill: impl Fn(&String) -> String,
    ) -> BTreeMap<OsString, OsString> {
        let pass = |name: &str| Some((OsString::from(name), env::value(name)?));
        let mut all: BTreeMap<OsString, OsString> = env::PASSED_ON.iter().filter_map(|name| pass(name)).collect();
        all.extend(ours.into_iter().map(|(name, value)| (name.into(), value.into())));
        for (name, variable) in &self.0 {
            match variable {
                Variable::Set(value) => _ = all.insert(name.into(), fill(value).into()),
                Variable::Passed(_) => all.extend(pass(name)),
            }
        }
        all
    }

    /// The values of those that are passed on because the node names them: what the program prints must not show them.
    pub(super) fn secrets(&self) -> Secrets {
        let named = self.0.iter().filter(|(_, variable)| matches!(variable, Variable::Passed(_)));
        let values: Vec<_> =
            named.filter_map(|(name, _)| Some((name, env::value(name)?.into_encoded_bytes()))).collect();
        Secrets::of(values.iter().map(|(name, value)| (name.as_str(), value.as_slice())))
    }

    /// Whether it names variables to pass on.
    pub(super) fn passes_on(&self) -> bool {
        self.0.values().any(|variable| matches!(variable, Variable::Passed(_)))
    }

    /// What is wrong with the names.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let wrong = self.0.iter().filter(|(name, variable)| match variable {
            Variable::Set(_) => name.is_empty() || name.contains(['=', '\0']),
            Variable::Passed(_) => !env::is_name(name),
        });
        let problem = |(name, _): (&String, _)| Problem {
            path: format!("env.{name}"),
            what: format!("`{}` is no name of a variable", name.escape_debug()),
            help: "`env` lists names of variables to pass on, or sets some: `env = { NAME = \"value\" }`".to_owned(),
        };
        wrong.map(problem).collect()
    }
}

impl Serialize for Environment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, variable)| {
            let value = match variable {
                Variable::Set(text) => Value::String(text.clone()),
                Variable::Passed(digest) => json!({ "passed": digest }),
            };
            (name, value)
        }))
    }
}

impl<'de> Deserialize<'de> for Environment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = Environment;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("names of variables to pass on, or { NAME = \"value\", OTHER = true }")
            }

            /// Only a value that did not fit and was told of is a text.
            fn visit_str<E: Error>(self, text: &str) -> Result<Environment, E> {
                match text {
                    "" => Ok(Environment::default()),
                    _ => Err(E::invalid_type(serde::de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Environment, A::Error> {
                let mut variables = BTreeMap::new();
                while let Some(name) = items.next_element::<String>()? {
                    let variable = Variable::passed(&name);
                    variables.insert(name, variable);
                }
                Ok(Environment(variables))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Environment, A::Error> {
                let mut variables = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    let variable = match map.next_value::<Written>()? {
                        Written::Text(text) => Variable::Set(text),
                        Written::Pass => Variable::passed(&name),
                    };
                    variables.insert(name, variable);
                }
                Ok(Environment(variables))
            }
        }
        deserializer.deserialize_any(Names)
    }
}

impl JsonSchema for Environment {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Environment".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["array", "object"],
            "items": { "type": "string" },
            "additionalProperties": { "type": ["string", "boolean"], "not": { "const": false } },
        })
    }
}

/// What stands after a name: a text, `true`, or what a job has in the place of that.
enum Written {
    Text(String),
    Pass,
}

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Value;
        impl<'de> Visitor<'de> for Value {
            type Value = Written;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, or true to pass the variable on")
            }

            fn visit_str<E>(self, text: &str) -> Result<Written, E> {
                Ok(Written::Text(text.to_owned()))
            }

            fn visit_bool<E: Error>(self, pass: bool) -> Result<Written, E> {
                if pass { Ok(Written::Pass) } else { Err(E::invalid_type(serde::de::Unexpected::Bool(false), &self)) }
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Written, A::Error> {
                match map.next_entry::<String, Option<Digest>>()? {
                    Some((word, _)) if word == "passed" => Ok(Written::Pass),
                    _ => Err(A::Error::invalid_type(serde::de::Unexpected::Map, &self)),
                }
            }
        }
        deserializer.deserialize_any(Value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value) -> Result<Environment, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn values_that_are_passed_on_are_in_the_key_by_their_digest_alone() {
        let home = env::value("HOME").map(|value| value.to_string_lossy().into_owned()).unwrap_or_default();
        let named = read(json!(["HOME", "SAMI_TEST_NOT_SET"])).unwrap();
        let fields = json!(named);
        assert!(fields["HOME"]["passed"].as_str().is_some_and(|digest| digest.len() == 64), "{fields}");
        assert_eq!(fields["SAMI_TEST_NOT_SET"], json!({ "passed": null }));
        assert!(home.is_empty() || !fields.to_string().contains(&home));
        assert_eq!(read(fields).unwrap(), named);
        assert_eq!(read(json!({ "HOME": true, "SAMI_TEST_NOT_SET": true })).unwrap(), named);
    }

    #[test]
    fn what_is_set_stands_in_the_key_as_it_always_did() {
        let fields = json!({ "A": "1", "B": "{output}" });
        let set = read(fields.clone()).unwrap();
        assert_eq!(json!(set), fields);
        assert_eq!(json!(Environment::default()), json!({}));
        let all = set
            .of_program(BTreeMap::from([("A".to_owned(), "ours".to_owned())]), |text| text.replace("{output}", "/out"));
        assert_eq!((all[&OsString::from("A")].to_str(), all[&OsString::from("B")].to_str()), (Some("1"), Some("/out")));
        assert!(all.contains_key(&OsString::from("PATH")));
        assert!(
            all.keys()
                .all(|name| ["A", "B"].iter().any(|own| name == own)
                    || env::PASSED_ON.iter().any(|passed| name == passed))
        );
        assert!(set.secrets().is_empty());
    }

    #[test]
    fn the_page_of_the_kind_lists_what_is_always_passed_on() {
        use crate::kinds::NodeKind;
        for name in env::PASSED_ON {
            assert!(crate::kinds::command::Command::DOC.contains(&format!("`{name}`")), "{name}");
        }
    }

    #[test]
    fn what_is_no_environment_is_told() {
        assert!(read(json!({ "A": false })).unwrap_err().contains("true to pass the variable on"));
        assert!(read(json!({ "A": 1 })).unwrap_err().contains("a string, or true"));
        assert!(read(json!("A")).unwrap_err().contains("names of variables"));
        assert!(read(json!({ "A": { "digest": null } })).is_err());
        assert_eq!(read(json!(["A B", "OK"])).unwrap().problems()[0].what, "`A B` is no name of a variable");
        assert_eq!(read(json!({ "A=B": "x" })).unwrap().problems().len(), 1);
    }
}
