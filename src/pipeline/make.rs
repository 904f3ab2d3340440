//! Row templates: minijinja over a row's fields, and the seeded templates that datasets are made of.

use std::sync::{Arc, Mutex, PoisonError};

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value};
use serde_json::{Map, Value as Json};

use super::random::Random;
use crate::depth;

/// A template that is known to parse. A field that is absent is an error, not an empty text.
#[derive(Debug)]
pub(super) struct Template {
    environment: Environment<'static>,
    random: Arc<Mutex<Random>>,
}

impl Template {
    /// Parses a template; the error says where in the template the trouble is.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        depth::of_template(text)?;
        let random = Arc::new(Mutex::new(Random::new(0, 0)));
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        // A slip such as nested loops over `range` ends in an error instead of hours.
        environment.set_fuel(Some(1_000_000));
        add_functions(&mut environment, &random);
        environment.add_template_owned("template", text.to_owned()).map_err(|error| describe(&error))?;
        Ok(Self { environment, random })
    }

    /// Fills the template in with a row's fields.
    pub(super) fn render(&self, row: &Map<String, Json>) -> Result<String, String> {
        self.render_value(Value::from(minijinja::value::Serde(row)))
    }

    /// Makes row number `row` of a dataset: the text must be a JSON object.
    pub(super) fn make(&self, seed: u64, row: u64) -> Result<Map<String, Json>, String> {
        *self.random.lock().unwrap_or_else(PoisonError::into_inner) = Random::new(seed, row);
        let text = self.render_value(minijinja::context! { row => row })?;
        match serde_json::from_str(&text) {
            Ok(Json::Object(row)) => Ok(row),
            Ok(_) => Err(format!("the template gave no object: {}", excerpt(&text))),
            Err(error) => Err(format!("the template gave no JSON ({error}): {}", excerpt(&text))),
        }
    }

    fn render_value(&self, context: Value) -> Result<String, String> {
        let template = self.environment.get_template("template").map_err(|error| describe(&error))?;
        template.render(context).map_err(|error| describe(&error))
    }
}

/// The beginning of a text, for messages.
pub(super) fn excerpt(text: &str) -> String {
    let text = text.trim();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn describe(error: &Error) -> String {
    let kind = error.kind().to_string();
    let what = error.detail().map_or_else(|| kind.clone(), |detail| format!("{kind}: {detail}"));
    match error.line() {
        Some(line) => format!("{what} (line {line} of the template)"),
        None => what,
    }
}

fn items(list: &Value, function: &str) -> Result<Vec<Value>, Error> {
    let fault = |what: &str| Error::new(ErrorKind::InvalidOperation, format!("`{function}` {what}"));
    if !matches!(list.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Err(fault("wants a list"));
    }
    let items: Vec<Value> = list.try_iter()?.collect();
    if items.is_empty() { Err(fault("wants a list that is not empty")) } else { Ok(items) }
}

fn add_functions(environment: &mut Environment<'static>, random: &Arc<Mutex<Random>>) {
    let with = |random: &Arc<Mutex<Random>>| {
        let random = Arc::clone(random);
        move |draw: &mut dyn FnMut(&mut Random)| draw(&mut random.lock().unwrap_or_else(PoisonError::into_inner))
    };
    let draw = with(random);
    environment.add_function("choose", move |list: Value| -> Result<Value, Error> {
        let items = items(&list, "choose")?;
        let mut at = 0;
        draw(&mut |random| at = random.below(items.len() as u64) as usize);
        Ok(items[at].clone())
    });
    let draw = with(random);
    environment.add_function("chance", move |probability: f64| {
        let mut unit = 0.0;
        draw(&mut |random| unit = random.unit());
        unit < probability
    });
    let draw = with(random);
    environment.add_function("sample", move |list: Value, n: usize| -> Result<Value, Error> {
        let mut items = items(&list, "sample")?;
        if n > items.len() {
            let what = format!("`sample` wants {n} of {} items", items.len());
            return Err(Error::new(ErrorKind::InvalidOperation, what));
        }
        draw(&mut |random| random.shuffle(&mut items));
        items.truncate(n);
        Ok(Value::from(items))
    });
    let draw = with(random);
    environment.add_function("shuffle", move |list: Value| -> Result<Value, Error> {
        let mut items = items(&list, "shuffle")?;
        draw(&mut |random| random.shuffle(&mut items));
        Ok(Value::from(items))
    });
    let draw = with(random);
    environment.add_function("between", move |low: i64, high: i64| -> Result<i64, Error> {
        let Some(span) = high.checked_sub(low).filter(|span| *span >= 0) else {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("`between` {low} and {high} there is nothing"),
            ));
        };
        let mut above = 0;
        draw(&mut |random| above = random.below(span as u64 + 1));
        Ok(low + above as i64)
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_depend_on_seed_and_number_only() {
        let text = r#"{% set n = between(1, 3) %}{"n": {{ n }}, "w": {{ choose(["a", "b"]) | tojson }},
            "s": {{ sample([1, 2, 3, 4], 2) | tojson }}, "o": {{ shuffle([1, 2]) | tojson }},
            "c": {{ chance(0.5) | tojson }}, "row": {{ row }}}"#;
        let template = Template::parse(text).expect("parses");
        let row = template.make(1, 5).expect("renders");
        assert_eq!(template.make(1, 6).expect("renders")["row"], 6);
        assert_eq!(template.make(1, 5).expect("renders"), row);
        let draws: std::collections::BTreeSet<String> =
            (0..50).map(|at| template.make(2, at).expect("renders")["s"].to_string()).collect();
        assert!(draws.len() > 8, "{draws:?}");
    }

    #[test]
    fn faults_say_what_and_where() {
        let make = |text: &str| Template::parse(text).and_then(|template| template.make(0, 0)).expect_err("at fault");
        assert!(make("{{ gone }}").contains("undefined"));
        assert!(make("[1]").contains("no object"));
        assert!(make("{").contains("no JSON"));
        assert!(make("\n{{ choose([]) }}").contains("not empty") && make("\n{{ choose([]) }}").contains("line 2"));
        assert!(make("{{ between(2, 1) }}").contains("nothing"));
        assert!(make("{{ sample([1], 2) }}").contains("2 of 1"));
    }
}
