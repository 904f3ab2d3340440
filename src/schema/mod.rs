//! JSON Schemas of the files that people write, made of the types that read them: what an editor completes and checks by.
//!
//! A kind's fields are those of its struct, a table's keys those of the struct behind it; what is written by hand here are
//! the levels between (`[loop]`, `[when]`) by the lists of keys that their readers use. TOML that the program takes is
//! never refused by a schema; a schema may let through what only the program can tell.
//!
//! Reading order: this file, `plain` (schemars' forms made few), `widen` (expressions and included files), `describe` (the
//! kinds' own pages as descriptions), `pipeline` and `project` (the two files).

use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator};
use serde_json::Value;

mod describe;
mod field;
mod pipeline;
mod plain;
mod project;
#[cfg(test)]
mod tests;
mod widen;

pub use describe::without_links;
pub use field::{Field, fields};
pub use pipeline::pipeline;
pub use project::project;

use crate::kinds::Entry;

/// What schemas are written in: what editors' TOML servers know.
const DRAFT: &str = "http://json-schema.org/draft-07/schema#";

fn generator() -> SchemaGenerator {
    let settings = SchemaSettings::draft07().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    settings.into_generator()
}

/// A schema in plain forms.
fn plain(schema: impl Into<Value>) -> Value {
    let mut value = schema.into();
    plain::simplify(&mut value);
    value
}

/// The fields of a kind, described by its page; neither expressions nor included files.
fn of_kind(entry: &Entry, generator: &mut SchemaGenerator) -> Value {
    let schema: Schema = (entry.schema)(generator);
    let mut schema = plain(schema);
    describe::fields(entry, &mut schema);
    schema
}
