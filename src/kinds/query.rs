//! A query posed: the constitutions drawn for it.

use minijinja::Value as Context;
use minijinja::value::Serde;

use super::contrast::{Constitution, Constitutions, Part};
use super::policy::response_seed;
use super::rows::Row;
use super::{InputArtifact, NodeError, rows};

/// A query with its constitutions.
#[derive(Debug, Clone)]
pub(super) struct Query {
    /// The row's id; with several samples of a query, `ID#2` for the second.
    pub(super) id: String,
    /// The dataset's row, `id` included.
    pub(super) row: Row,
    /// What was drawn for it.
    pub(super) constitutions: Vec<Constitution>,
}

impl Query {
    /// Seeds of `each` responses under the constitution at a place; the first is what it would be alone.
    pub(super) fn seeds(&self, seed: u64, place: usize, each: usize) -> impl Iterator<Item = u64> {
        let size = self.constitutions.len();
        (0..each).map(move |turn| response_seed(seed, &self.id, place + turn * size))
    }
}

/// Draws constitutions for each row, `samples` times.
pub(super) fn pose(
    rows: &[Row],
    constitutions: &Constitutions,
    seed: u64,
    part: Part,
    samples: u64,
) -> Result<Vec<Query>, NodeError> {
    let drawer = constitutions.drawer().map_err(|(_, what, help)| NodeError::with_help(what, help))?;
    let mut queries = Vec::with_capacity(rows.len() * samples as usize);
    for row in rows {
        for sample in 1..=samples {
            let own = rows::id(row)?;
            let id = if sample == 1 { own.to_owned() } else { format!("{own}#{sample}") };
            let drawn = drawer.draw(&id, seed, part).ok_or_else(|| {
                NodeError::with_help(
                    "no combination of principles is in the part that is asked for",
                    "give `hold_out` above 0 in the `constitutions` node, or change `combinations`",
                )
            })?;
            queries.push(Query { id, row: row.clone(), constitutions: drawn });
        }
    }
    Ok(queries)
}

/// Reads `constitutions.json`.
pub(super) fn read_constitutions(input: &InputArtifact) -> Result<Constitutions, NodeError> {
    let path = input.file("constitutions.json")?;
    serde_json::from_str(&fs_err::read_to_string(path)?)
        .map_err(|error| NodeError::failed(format!("{} does not hold constitutions: {error}", path.display())))
}

/// A row's fields as a template sees them.
pub(super) fn fields(row: &Row) -> Context {
    Context::from(Serde(row))
}

#[cfg(test)]
mod tests {
    use super::super::contrast::{Contrast, Format, HoldOut, Principle, Size};
    use super::super::prompter::Prompter;
    use super::*;
    use serde_json::json;

    fn constitutions() -> Constitutions {
        let principle = |a: &str, b: &str| Principle { definition: a.to_owned(), antithesis: b.to_owned() };
        Constitutions {
            task: None,
            contrast: Contrast::Complement,
            per_query: 2,
            size: Size { min: 2, max: 2 },
            hold_out: HoldOut::default(),
            must_flip: Vec::new(),
            format: Format::Plain,
            seed: 0,
            principles: [
                ("brief".to_owned(), principle("be brief .", "be detailed .")),
                ("formal".to_owned(), principle("be formal .", "be casual .")),
            ]
            .into_iter()
            .collect(),
            provenance: None,
        }
    }

    #[test]
    fn each_sample_has_an_id_and_draws_of_its_own() {
        let rows: Vec<Row> = (0..20)
            .map(|n| json!({"id": n.to_string(), "query": "why"}).as_object().cloned().expect("an object"))
            .collect();
        let queries = pose(&rows, &constitutions(), 3, Part::All, 2).expect("poses");
        assert_eq!(queries.len(), 40);
        assert_eq!((queries[0].id.as_str(), queries[1].id.as_str()), ("0", "0#2"));
        assert!(queries.chunks(2).any(|pair| pair[0].constitutions != pair[1].constitutions));
        let fewer = pose(&rows[..5], &constitutions(), 3, Part::All, 2).expect("poses");
        assert!(fewer.iter().zip(&queries).all(|(few, many)| few.constitutions == many.constitutions));
        let error = pose(&rows, &constitutions(), 3, Part::HeldOut, 1).expect_err("nothing is held out").to_string();
        assert!(error.contains("no combination"), "{error}");
    }

    #[test]
    fn prompts_see_fields_constitution_and_principles() {
        let row = json!({"id": "7", "query": "why"}).as_object().cloned().expect("an object");
        let query = &pose(&[row], &constitutions(), 0, Part::All, 1).expect("poses")[0];
        let prompter = Prompter::new(
            "prompt",
            "{{ constitution }}|{% for p in principles %}{{ p.name }}={{ p.polarity }},{% endfor %}|{{ query }}",
        )
        .expect("parses");
        let text = prompter.fill(&query.id, &query.row, &query.constitutions[0]).expect("renders");
        assert!(text.starts_with(&query.constitutions[0].text) && text.ends_with("|why"), "{text}");
        assert!(text.contains("brief=") && text.contains("formal="), "{text}");
    }
}
