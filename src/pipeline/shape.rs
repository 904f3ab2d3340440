//! The tables of a pipeline file as JSON Schema, made of the types that read them.

use schemars::{JsonSchema, SchemaGenerator};
use serde_json::Value;

use super::endpoint::EndpointTable;
use super::source::ModelTable;
use super::source::dataset::DatasetTable;
use super::{RunFields, Tolerance, declare, endpoint, overlay, source};

/// What the tables may hold, before expressions and included files.
#[derive(Debug)]
pub struct Shapes {
    /// `[models.NAME]` with a `source` that is no endpoint.
    pub model: Value,
    /// `[models.NAME]` with `source = "openai:…"`.
    pub endpoint: Value,
    /// The keys that only endpoints have.
    pub of_endpoints: &'static [&'static str],
    /// `[datasets.NAME]`, but for template fields.
    pub dataset: Value,
    /// The keys of a dataset that say which rows of a repository are meant.
    pub of_the_hub: &'static [&'static str],
    /// `run` of a node.
    pub run: Value,
    /// `tolerance` of a node.
    pub tolerance: Value,
    /// The keys of the file.
    pub top: &'static [&'static str],
    /// The keys of `[loop]`.
    pub turns: &'static [&'static str],
    /// The keys of `[when.PARAM.VALUE]`.
    pub when: &'static [&'static str],
    /// The most iterations of a loop.
    pub most_iterations: i64,
    /// The format that is read.
    pub schema: i64,
}

/// All of them.
pub fn shapes(generator: &mut SchemaGenerator) -> Shapes {
    Shapes {
        model: ModelTable::json_schema(generator).into(),
        endpoint: EndpointTable::json_schema(generator).into(),
        of_endpoints: endpoint::KEYS,
        dataset: DatasetTable::json_schema(generator).into(),
        of_the_hub: &source::dataset::OF_THE_HUB,
        run: RunFields::json_schema(generator).into(),
        tolerance: Tolerance::json_schema(generator).into(),
        top: declare::KEYS,
        turns: declare::LOOP_KEYS,
        when: overlay::KEYS,
        most_iterations: declare::MOST_ITERATIONS,
        schema: declare::SCHEMA,
    }
}
