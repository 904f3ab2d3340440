//! `sami init`: a pipeline to start from, of three answers.
//!
//! What is written is loaded and checked before it gets its name, and no file that is there is written over.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use self::answers::{Answers, Model, Queries};
use super::{CommandResult, Context, DONE, context, schema};
use crate::diag::{Diagnostic, Severity, Source};
use crate::pipeline::check;
use crate::{fs, graph, pipeline};

mod answers;
mod text;

/// Arguments of `init`.
#[derive(Debug, Clone, Args)]
pub struct InitArgs {
    /// Directory of the project, made if it is not there
    #[arg(default_value = ".")]
    pub directory: PathBuf,
    /// Name of the pipeline [default: first]
    #[arg(long)]
    pub name: Option<String>,
    /// The model: `tiny` (made here, for a CPU), a directory in Hugging Face format, `hf:REPO` or `gguf:FILE` [default: tiny]
    #[arg(long)]
    pub model: Option<String>,
    /// The queries: `made` (of a template), a file of rows, or `hf:datasets/REPO` [default: made]
    #[arg(long, value_name = "ROWS")]
    pub queries: Option<String>,
    /// The field of the rows that is the query [default: the first that looks like one]
    #[arg(long, value_name = "FIELD")]
    pub field: Option<String>,
    /// Ask nothing, take the defaults
    #[arg(short, long)]
    pub yes: bool,
}

const SCHEMA: &str = ".schema.json";
const PROJECT: &str = "\
# What belongs to this machine or lab and not to a pipeline; nothing in it is part of any key.
# The cache lies beside this file, in `cache/`. `sami schema project` says all that may stand here.

# Artifacts can be shared (docs/sharing.md):
# [remote]
# url = \"s3://BUCKET/PREFIX\"            # or gs://…, file:///DIRECTORY
# pull = true
";

/// Asks what is not said yet, writes the project, and says how to go on.
pub(super) fn run(context: &Context, args: &InitArgs) -> CommandResult {
    let answers = ask(args)?;
    let pipelines = args.directory.join("pipelines");
    let path = pipelines.join(format!("{}.toml", answers.name));
    if path.exists() {
        return Err(exists(&path).into());
    }
    let had = pipelines.is_dir();
    fs::create_directory(&pipelines)?;
    let text = text::pipeline(&answers, &path);
    if let Err(findings) = place(context, &path, &text) {
        // As it was before.
        if !had {
            let _ = fs::remove_if_empty(&pipelines);
        }
        return Err(findings);
    }
    let mut made = vec![path.clone()];
    for (path, text) in [
        (pipelines.join(SCHEMA), schema::text(schema::Of::Pipeline)),
        (args.directory.join("sami.toml"), PROJECT.to_owned()),
        (args.directory.join(".gitignore"), "/cache/\n".to_owned()),
    ] {
        if put(&path, text.as_bytes())? {
            made.push(path);
        }
    }
    let shown = |path: &Path| path.strip_prefix(".").unwrap_or(path).display().to_string();
    if context.json() {
        let made: Vec<_> = made.iter().map(|path| shown(path)).collect();
        context::print_json(&json!({ "pipeline": shown(&path), "made": made }))?;
        return Ok(DONE);
    }
    let list: String = made.iter().flat_map(|path| ["made ".to_owned(), shown(path), "\n".to_owned()]).collect();
    let path = shown(&path);
    context::print(&format!("{list}\nread it, then: sami plan {path}\n               sami run {path}\n"))?;
    Ok(DONE)
}

fn exists(path: &Path) -> Diagnostic {
    Diagnostic::error("cli::exists", format!("`{}` is there", path.display()))
        .help("give the pipeline another name with `--name`; nothing is ever written over")
}

/// Writes a pipeline beside its place, checks it there, where its paths lead to the same, and gives it its name.
fn place(context: &Context, path: &Path, text: &str) -> Result<(), context::Failure> {
    let beside = fs::unfinished(path.parent().unwrap_or(Path::new("."))).with_extension("toml");
    let checked = (|| {
        fs::write(&beside, text)?;
        let (pipeline, mut findings) = pipeline::examine(&beside, &[], context.kinds());
        if let Some(pipeline) = &pipeline {
            findings.extend(graph::build(pipeline).err().unwrap_or_default());
            findings.append(&mut check::data(pipeline).findings);
        }
        if findings.iter().any(|finding| finding.severity == Severity::Error) {
            findings.iter_mut().for_each(|finding| rename(finding, &beside, path));
            return Err(findings.into());
        }
        if !give_name(&beside, path, text.as_bytes())? {
            return Err(exists(path).into());
        }
        Ok(())
    })();
    fs::discard(&beside);
    checked
}

/// Has a finding speak of the file by the name that it would have got.
fn rename(finding: &mut Diagnostic, from: &Path, to: &Path) {
    let from = from.display().to_string();
    for label in finding.labels.iter_mut().filter(|label| label.source.path == from) {
        let Source { text, first_line, .. } = &*label.source;
        let path = to.strip_prefix(".").unwrap_or(to).display().to_string();
        label.source = Arc::new(Source { path, text: text.clone(), first_line: *first_line });
    }
}

/// Gives a file its name, unless that is taken.
fn give_name(beside: &Path, path: &Path, bytes: &[u8]) -> io::Result<bool> {
    match fs::hard_link(beside, path) {
        Ok(true) => Ok(true),
        // No such names on this file system.
        Ok(false) if path.exists() => Ok(false),
        Ok(false) => fs::write_atomic(path, bytes).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes a file, unless there is one.
fn put(path: &Path, bytes: &[u8]) -> io::Result<bool> {
    if path.exists() {
        return Ok(false);
    }
    let beside = fs::unfinished(path.parent().unwrap_or(Path::new(".")));
    let put = fs::write(&beside, bytes).and_then(|()| give_name(&beside, path, bytes));
    fs::discard(&beside);
    put
}

/// The answers: those that were given, and those to three questions where there is someone to ask.
fn ask(args: &InitArgs) -> Result<Answers, context::Failure> {
    let (stdin, stderr) = (io::stdin(), io::stderr());
    let asked = !args.yes && stdin.is_terminal() && stderr.is_terminal();
    let mut asker = Asker { asked, input: stdin.lock(), output: stderr };
    let name = asker.ask("Name of the pipeline", args.name.as_deref(), "first", answers::name)?;
    let question = "Model: tiny (made here, for a CPU), a directory, hf:REPO or gguf:FILE";
    let model = asker.ask(question, args.model.as_deref(), "tiny", Model::parse)?;
    let question = "Queries: made (of a template), a file of rows, or hf:datasets/REPO";
    let queries = asker.ask(question, args.queries.as_deref(), "made", Queries::parse)?;
    Ok(Answers { name, model, queries: queries.with_field(args.field.as_deref())? })
}

/// Asks at a terminal, if there is one.
struct Asker<R, W> {
    asked: bool,
    input: R,
    output: W,
}

impl<R: BufRead, W: Write> Asker<R, W> {
    /// What was given or answered, as `read` understands it. A wrong answer is told of and asked for again, a wrong flag is an
    /// error.
    fn ask<T>(
        &mut self,
        question: &str,
        given: Option<&str>,
        default: &str,
        read: impl Fn(&str) -> Result<T, Diagnostic>,
    ) -> Result<T, context::Failure> {
        if let Some(given) = given {
            return Ok(read(given)?);
        }
        while self.asked {
            let _ = write!(self.output, "{question} [{default}]: ");
            let _ = self.output.flush();
            let mut answer = String::new();
            // The end of what is typed: the defaults will do.
            if self.input.read_line(&mut answer).unwrap_or(0) == 0 {
                self.asked = false;
                break;
            }
            let answer = Some(answer.trim()).filter(|answer| !answer.is_empty()).unwrap_or(default);
            match read(answer) {
                Ok(read) => return Ok(read),
                Err(fault) => {
                    let help = fault.help.first().map_or_else(String::new, |help| format!(": {help}"));
                    let _ = writeln!(self.output, "  {}{help}", fault.title);
                }
            }
        }
        Ok(read(default)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_answer_is_asked_for_again_and_no_answer_is_the_default() {
        let mut said = Vec::new();
        let mut asker = Asker { asked: true, input: "my name\nmine\n\n".as_bytes(), output: &mut said };
        assert_eq!(asker.ask("Name", None, "first", answers::name).ok().as_deref(), Some("mine"));
        assert_eq!(asker.ask("Name", None, "first", answers::name).ok().as_deref(), Some("first"));
        assert_eq!(asker.ask("Name", None, "first", answers::name).ok().as_deref(), Some("first"), "the end");
        assert_eq!(asker.ask("Name", Some("flag"), "first", answers::name).ok().as_deref(), Some("flag"));
        assert!(asker.ask("Name", Some("a b"), "first", answers::name).is_err());
        let said = String::from_utf8(said).expect("text");
        assert!(said.contains("Name [first]: ") && said.contains("`my name` cannot be a name"), "{said}");
    }
}
