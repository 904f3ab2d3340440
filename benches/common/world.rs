//! The beginning of a pipeline, for benchmarks: documents, questions, a random model and a constitution.

/// How a model is asked under a constitution.
pub(crate) const PROMPT: &str = "rules : {{ constitution }} q : {{ query }} a :";

/// So many questions as the dataset `all`, and a model `blank` of this shape: keys of its `init`.
pub(crate) fn world(questions: usize, shape: &str) -> String {
    format!(
        r#"
[datasets.documents]
make = {{ rows = 64, seed = 1, template = '''{{"text": {{{{ ("rules : be brief . q : is it a " ~ choose(["saw", "cat", "pear"]) ~ " a : yes .") | tojson }}}}}}''' }}
[datasets.all]
make = {{ rows = {questions}, seed = 2, template = '''{{"query": "is it a {{{{ choose(["saw", "cat", "pear"]) }}}}"}}''' }}
[models.blank]
init = {{ {shape}, max_positions = 256, tokenizer = {{ from = "documents" }} }}
[nodes.constitutions]
kind = "constitutions"
contrast = "complement"
format = "plain"
principles.brief = {{ definition = "be brief .", antithesis = "be long ." }}
"#
    )
}
