//! `sami completions SHELL`, and the words that a shell's completion asks for: names of nodes, ids of runs and artifacts.
//!
//! The scripts ask the program itself (`SAMI_COMPLETE`), so they know what the cache knows. Whoever types is not to wait, and
//! not to be told of damage: what cannot be read at once gives no words.

use std::cell::OnceCell;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::{Arg, Command, CommandFactory, ValueEnum};
use clap_complete::CompleteEnv;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate, PathCompleter};
use clap_complete::env::Shells;

use super::{Cli, CommandResult, Context, DONE, Global, context, explain_error};
use crate::store::{Glimpse, Store};
use crate::{env, kinds, pipeline};

/// Words that are offered at most; more are no help.
const MOST: usize = 60;
/// Artifacts that are offered where nothing is typed yet: the newest.
const NEWEST: usize = 15;
/// A pipeline file larger than this is not read while people type.
const LARGEST: u64 = 1 << 20;

/// Shells that scripts are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// Bash, 4.4 or newer for the best
    Bash,
    /// Zsh
    Zsh,
    /// Fish
    Fish,
    /// Elvish
    Elvish,
    /// PowerShell
    Powershell,
}

/// Prints the script that has a shell ask for words.
pub(super) fn run(shell: Shell) -> CommandResult {
    let name = shell.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let builtins = Shells::builtins();
    if let Some(shell) = builtins.completer(&name) {
        context::write_out(|out| shell.write_registration(env::COMPLETE.name, "sami", "sami", "sami", &mut &mut *out))?;
    }
    Ok(DONE)
}

/// Answers a shell that asks for words, and ends the process then.
pub(super) fn answer() {
    if env::COMPLETE.get().is_none() {
        return;
    }
    CompleteEnv::with_factory(|| with_completers(Cli::command())).var(env::COMPLETE.name).complete();
}

/// What a value names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    /// A pipeline file.
    File,
    /// A node of the pipeline on the line or, without one, of the cache.
    Node,
    /// The name of a pipeline.
    Pipeline,
    /// A run.
    Run,
    /// An artifact, or a node that made one.
    Artifact,
    /// Any of those, or a node key.
    Anything,
    /// `NAME=` of a param of the pipeline on the line.
    Param,
    /// A node kind or a command.
    Topic,
    /// The id of an error.
    ErrorId,
}

/// What an argument names, by what commands call it.
fn names(command: &str, arg: &Arg) -> Option<Names> {
    // Words that clap knows all of, and options without a value.
    if !arg.get_possible_values().is_empty() || !arg.get_action().takes_values() {
        return None;
    }
    Some(match (command, arg.get_id().as_str()) {
        ("ls" | "help" | "explain", id) => match id {
            "pipeline" => Names::Pipeline,
            "node" => Names::Node,
            "topic" => Names::Topic,
            "id" => Names::ErrorId,
            _ => return None,
        },
        (_, "pipeline") => Names::File,
        (_, "node" | "nodes" | "targets" | "force") => Names::Node,
        (_, "run" | "runs") => Names::Run,
        (_, "id") => Names::Artifact,
        (_, "what" | "before" | "after") => Names::Anything,
        (_, "set") => Names::Param,
        _ => return None,
    })
}

/// The command line with a completer at each value that names something.
fn with_completers(command: Command) -> Command {
    let name = command.get_name().to_owned();
    let command = command.mut_args(|arg| match names(&name, &arg) {
        Some(Names::File) => arg.add(ArgValueCompleter::new(PathCompleter::any().filter(is_pipeline))),
        Some(names) => arg.add(ArgValueCompleter::new(move |typed: &OsStr| words(names, typed))),
        None => arg,
    });
    command.mut_subcommands(with_completers)
}

fn is_pipeline(path: &Path) -> bool {
    path.is_dir() || path.extension().is_some_and(|extension| extension == "toml")
}

/// The words that go on from what is typed.
fn words(names: Names, typed: &OsStr) -> Vec<CompletionCandidate> {
    let Some(typed) = typed.to_str() else { return Vec::new() };
    let line = Line::typed(std::env::args_os().skip_while(|word| word != "--").skip(1));
    words_on(&line, names, typed)
}

fn words_on(line: &Line, names: Names, typed: &str) -> Vec<CompletionCandidate> {
    let of = |names| words_on(line, names, typed);
    match names {
        Names::File => Vec::new(),
        Names::Topic => topics(typed),
        Names::ErrorId => beginning(explain_error::ids().map(|(id, about)| (id, about.to_owned())), typed),
        Names::Param => {
            let params = line.pipeline().map(|pipeline| pipeline.params).unwrap_or_default();
            beginning(params.into_iter().map(|(name, value)| (format!("{name}="), value.to_string())), typed)
        }
        Names::Node => match line.pipeline() {
            Some(pipeline) => {
                let nodes = pipeline.nodes.into_iter().map(|node| (node.name, node.kind.name.to_owned()));
                beginning(nodes, typed)
            }
            None => line.glimpse().map_or_else(Vec::new, |index| beginning(index.nodes(typed, MOST), typed)),
        },
        Names::Pipeline => {
            let all = line.glimpse().map_or_else(Vec::new, Glimpse::pipelines);
            beginning(all.into_iter().map(|name| (name, String::new())), typed)
        }
        Names::Run => line.runs(typed),
        Names::Artifact => of(Names::Node).into_iter().chain(line.artifacts(typed)).collect(),
        Names::Anything => {
            let named = of(Names::Node).into_iter().chain(of(Names::Run));
            named.chain(line.artifacts(typed)).chain(line.keys(typed)).collect()
        }
    }
}

/// Those of some words that begin as typed, each with a word about it.
fn beginning<W: AsRef<str>>(words: impl IntoIterator<Item = (W, String)>, typed: &str) -> Vec<CompletionCandidate> {
    let found = words.into_iter().filter(|(word, _)| word.as_ref().starts_with(typed)).take(MOST);
    found.map(|(word, about)| candidate(word.as_ref(), &about)).collect()
}

fn candidate(word: &str, about: &str) -> CompletionCandidate {
    // What a cache says of itself may hold anything.
    let plain = |text: &str| text.chars().filter(|letter| !letter.is_control()).take(80).collect::<String>();
    let about = Some(plain(about)).filter(|about| !about.is_empty());
    CompletionCandidate::new(OsString::from(plain(word))).help(about.map(Into::into))
}

fn topics(typed: &str) -> Vec<CompletionCandidate> {
    let command = Cli::command();
    let commands = command.get_subcommands().filter(|command| !command.is_hide_set());
    let about = |command: &Command| command.get_about().map(ToString::to_string).unwrap_or_default();
    let commands = commands.map(|command| (command.get_name().to_owned(), about(command)));
    let kinds = kinds::KINDS.iter().map(|kind| (kind.spec.name.to_owned(), "a node kind".to_owned()));
    beginning(commands.chain(kinds), typed)
}

/// The line that is being typed, as far as words depend on it.
#[derive(Debug, Default)]
struct Line {
    file: Option<PathBuf>,
    sets: Vec<String>,
    cache: Option<PathBuf>,
    /// The index of the cache, once it was asked for.
    glimpse: OnceCell<Option<Glimpse>>,
}

impl Line {
    fn typed(words: impl Iterator<Item = OsString>) -> Self {
        let mut line = Self::default();
        let mut words = words.filter_map(|word| word.into_string().ok()).peekable();
        while let Some(word) = words.next() {
            if let Some(directory) = word.strip_prefix("--cache=") {
                line.cache = Some(directory.into());
            } else if word == "--cache" {
                line.cache = words.peek().map(PathBuf::from);
            } else if word == "--set" {
                line.sets.extend(words.next_if(|set| set.contains('=')));
            } else if line.file.is_none() && Path::new(&word).extension().is_some_and(|extension| extension == "toml") {
                line.file = Some(word.into());
            }
        }
        line
    }

    /// The pipeline, as far as it is sound.
    fn pipeline(&self) -> Option<pipeline::Pipeline> {
        let file = self.file.as_ref()?;
        let metadata = fs_err::metadata(file).ok()?;
        if !metadata.is_file() || metadata.len() > LARGEST {
            return None;
        }
        pipeline::examine(file, &self.sets, &kinds::specs()).0
    }

    fn cache(&self) -> Option<PathBuf> {
        let context = Context::new(&Global { cache: self.cache.clone(), json: false, plain: false });
        context.cache_directory(self.file.as_deref()).ok()
    }

    fn glimpse(&self) -> Option<&Glimpse> {
        self.glimpse.get_or_init(|| Glimpse::open(&self.cache()?)).as_ref()
    }

    /// Runs, newest first: those that the index knows and, failing that, those that have a directory.
    fn runs(&self, typed: &str) -> Vec<CompletionCandidate> {
        let known = self.glimpse().map_or_else(Vec::new, |index| index.runs(typed, MOST));
        if !known.is_empty() {
            return beginning(known, typed);
        }
        let ids = self.cache().and_then(|cache| Store::open_existing(&cache).ok()?.run_ids().ok()).unwrap_or_default();
        beginning(ids.into_iter().rev().map(|id| (id, String::new())), typed)
    }

    fn artifacts(&self, typed: &str) -> Vec<CompletionCandidate> {
        let most = if typed.is_empty() { NEWEST } else { MOST };
        let found = self.glimpse().map_or_else(Vec::new, |index| index.artifacts(typed, most));
        let about = |kind: String, node: Option<String>| match node {
            Some(node) => format!("{kind} of {node}"),
            None => kind,
        };
        beginning(found.into_iter().map(|(id, kind, node)| (written(&id, typed), about(kind, node))), typed)
    }

    fn keys(&self, typed: &str) -> Vec<CompletionCandidate> {
        let found = self.glimpse().map_or_else(Vec::new, |index| index.keys(typed, MOST));
        beginning(found.into_iter().map(|(key, node)| (written(&key, typed), format!("key of {node}"))), typed)
    }
}

/// An id as people see it, or whole where more of it is typed.
fn written(id: &crate::digest::Digest, typed: &str) -> String {
    if typed.len() <= id.short().len() { id.short() } else { id.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        Line::typed(text.split_whitespace().map(OsString::from))
    }

    fn texts(found: &[CompletionCandidate]) -> Vec<String> {
        found.iter().map(|word| word.get_value().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn the_line_says_which_pipeline_and_which_cache() {
        let line = line("sami why --cache c p.toml --set lr=1 --set");
        assert_eq!(line.file.as_deref(), Some(Path::new("p.toml")));
        assert_eq!(line.cache.as_deref(), Some(Path::new("c")));
        assert_eq!(line.sets, ["lr=1"]);
    }

    #[test]
    fn what_names_a_thing_has_a_completer() {
        fn count(command: &Command, found: &mut Vec<(String, Names)>) {
            let own = command
                .get_arguments()
                .filter_map(|arg| Some((arg.get_id().as_str(), names(command.get_name(), arg)?)));
            found.extend(own.map(|(id, names)| (format!("{} {id}", command.get_name()), names)));
            command.get_subcommands().for_each(|command| count(command, found));
        }
        let mut found = Vec::new();
        count(&Cli::command(), &mut found);
        for (arg, names) in [
            ("why node", Names::Node),
            ("run targets", Names::Node),
            ("run set", Names::Param),
            ("show what", Names::Anything),
            ("logs run", Names::Run),
            ("cat id", Names::Artifact),
            ("ls pipeline", Names::Pipeline),
            ("check pipeline", Names::File),
            ("explain id", Names::ErrorId),
            ("help topic", Names::Topic),
        ] {
            assert!(found.contains(&(arg.to_owned(), names)), "{arg} among {found:?}");
        }
        with_completers(Cli::command()).debug_assert();
    }

    #[test]
    fn words_go_on_from_what_is_typed() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines/quickstart.toml");
        let line = line(&format!("sami why {file}"));
        assert_eq!(texts(&words_on(&line, Names::Node, "gen")), ["generate@1", "generate@2", "generate@3"]);
        assert!(texts(&words_on(&line, Names::Param, "kl")).contains(&"kl_weight=".to_owned()));
        assert!(texts(&words_on(&line, Names::Topic, "fine")).contains(&"finetune".to_owned()));
        assert!(texts(&words_on(&line, Names::ErrorId, "graph::c")).contains(&"graph::cycle".to_owned()));
    }

    #[test]
    fn what_cannot_be_read_gives_no_words() {
        let folder = tempfile::tempdir().expect("a directory");
        fs_err::write(folder.path().join("index.sqlite"), [7; 5000]).expect("writes");
        fs_err::write(folder.path().join("p.toml"), "[nodes.\u{0}").expect("writes");
        let line = line(&format!("sami show --cache {0} {0}/p.toml", folder.path().display()));
        for names in [Names::Node, Names::Run, Names::Artifact, Names::Anything, Names::Pipeline, Names::Param] {
            assert_eq!(texts(&words_on(&line, names, "")), Vec::<String>::new(), "{names:?}");
        }
        assert_eq!(candidate("a\u{1b}[2Jb", "c\nd").get_value(), "a[2Jb");
    }
}
