//! The pipeline that `init` writes.

use std::path::Path;

use super::answers::{Answers, Model, Queries};

/// A text as TOML has it.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// A path as it is from the directory of the pipeline file: within the project from there, else from the root.
fn from_there(path: &Path, pipeline: &Path) -> String {
    let whole = fs_err::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let project = pipeline.parent().and_then(|directory| fs_err::canonicalize(directory).ok());
    let project = project.as_deref().and_then(Path::parent);
    match project.and_then(|project| whole.strip_prefix(project).ok()) {
        Some(within) => Path::new("..").join(within).display().to_string(),
        None => whole.display().to_string(),
    }
}

/// Iterations of what is written.
const ITERATIONS: u64 = 3;

/// Rows for the evaluation, and rows for each iteration.
fn rows(answers: &Answers) -> (u64, u64) {
    let (held_out, queries) = if answers.model == Model::Tiny { (120, 160) } else { (64, 128) };
    match answers.queries {
        Queries::File { rows, .. } if rows < held_out + ITERATIONS * queries => {
            let held_out = (rows / 5).clamp(1, held_out);
            (held_out, ((rows - held_out) / ITERATIONS).clamp(1, queries))
        }
        _ => (held_out, queries),
    }
}

/// Text that cannot end the comment that it stands in.
fn on_a_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// The text of the pipeline at a path.
pub(super) fn pipeline(answers: &Answers, path: &Path) -> String {
    let tiny = answers.model == Model::Tiny;
    let mut text = String::from(include_str!("head.toml"));
    let (held_out, queries) = rows(answers);
    text.push_str(&format!("held_out = {held_out:<31}# queries that training never sees, for the evaluation\n"));
    let model_words = match &answers.model {
        Model::Tiny => {
            text.push_str(include_str!("tiny_params.toml"));
            text.push_str(include_str!("tiny.toml"));
            "a small model of its own".to_owned()
        }
        Model::Local { gguf, path: file, .. } => {
            text.push_str(include_str!("model.toml"));
            let file = from_there(file, path);
            text = text.replace("@source@", &quoted(&if *gguf { format!("gguf:{file}") } else { file.clone() }));
            format!("the model {file}")
        }
        Model::Hub { repo, .. } => {
            text.push_str(include_str!("model.toml"));
            text = text.replace("@source@", &quoted(&format!("hf:{repo}")));
            format!("the model hf:{repo}")
        }
    };
    let queries_words = match &answers.queries {
        Queries::Made => {
            text.push_str(include_str!("made.toml"));
            "of a template".to_owned()
        }
        Queries::File { path: file, field, .. } => put_source(&mut text, &from_there(file, path), field),
        Queries::Hub { repo, field } => put_source(&mut text, &format!("hf:{repo}"), field),
    };
    text.push_str(include_str!("method.toml"));
    let chat = answers.model.chat();
    let (prompt, chat_line, chat_all) = match (tiny, chat) {
        (true, _) => ("rules : {{ constitution }} q : {{ query }} a :", "", ""),
        (_, true) => (
            "{{ query }}\n\nFollow these rules: {{ constitution }}",
            "\nchat = true                               # the prompt goes through the model's chat template",
            "\nchat = [\"base\", \"sami\"]",
        ),
        _ => (
            "Answer the question and follow the rules.\n\nRules: {{ constitution }}\n\nQuestion: {{ query }}\n\nAnswer:",
            "\n# chat = true                             # for a model that was trained on conversations",
            "",
        ),
    };
    let lora =
        if tiny { "" } else { "\nlora = { rank = 16, alpha = 32.0 }        # small adapters instead of all weights" };
    let of = |small: &'static str, large: &'static str| if tiny { small } else { large };
    let path = path.strip_prefix(".").unwrap_or(path).display().to_string();
    for (place, value) in [
        ("@name@", answers.name.as_str()),
        ("@path@", &path),
        ("@model_words@", &on_a_line(&model_words)),
        ("@queries_words@", &on_a_line(&queries_words)),
        ("@iterations@", &ITERATIONS.to_string()),
        ("@queries@", &queries.to_string()),
        ("@steps@", of("15", "16")),
        ("@lr@", of("2e-4", "5e-5")),
        ("@prompt@", &quoted(prompt)),
        ("@chat@", chat_line),
        ("@chat_all@", chat_all),
        ("@tokens@", of("32", "200")),
        ("@batch@", of("16", "8")),
        ("@lora@", lora),
        ("@few@", of("12", "40")),
        ("@many@", of("14", "80")),
        ("@brief@", of("be brief .", "Be brief: a sentence or two.")),
        ("@detailed@", of("be detailed .", "Be detailed: a paragraph or more.")),
        ("@asks@", of("end with a question .", "End with a question to the reader.")),
        ("@silent@", of("ask nothing .", "Do not ask the reader anything.")),
    ] {
        text = text.replace(place, value);
    }
    text
}

fn put_source(text: &mut String, source: &str, field: &str) -> String {
    text.push_str(include_str!("file.toml"));
    let template = format!("{{{{ {field} }}}}");
    *text = text.replace("@data@", &quoted(source)).replace("@field@", &quoted(&template));
    format!("from {source}")
}
