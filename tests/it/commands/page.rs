//! A page of the documents, taken apart into its blocks of code and what is said of each.
//!
//! What is said stands in comments above a block, which neither a book nor a web page shows:
//!
//! | comment | |
//! |---|---|
//! | `<!-- in: WORLD -->` | once in a page: where its commands are run, see [`super::world`] |
//! | `<!-- first: COMMAND -->` | is run before the block |
//! | `<!-- file: NAME -->` | the block is no command: it is written to this file |
//! | `<!-- append: NAME -->` | the block is no command: it is put behind what this file has |
//! | `<!-- instead of X: COMMAND -->` | what the command prints stands in X's place (an id that nobody knows beforehand) |
//! | `<!-- exits: CODE -->` | how the block ends, if not well |
//! | `<!-- until: TEXT -->` | the block does not end by itself: it is interrupted once it has said this |
//! | `<!-- not run: REASON -->` | the block is not run |

use std::path::{Path, PathBuf};

/// A page with its blocks, in order.
#[derive(Debug)]
pub(crate) struct Page {
    /// The file, from the project's root.
    pub(crate) path: PathBuf,
    /// `None`: nothing of it is run.
    pub(crate) world: Option<String>,
    pub(crate) blocks: Vec<Block>,
}

/// A fenced block.
#[derive(Debug)]
pub(crate) struct Block {
    /// Line of its fence, from 1.
    pub(crate) line: usize,
    /// What stands behind the fence.
    pub(crate) language: String,
    pub(crate) text: String,
    /// Name and value of the comments above it.
    notes: Vec<(String, String)>,
}

impl Block {
    /// The value of the first comment of this name.
    pub(crate) fn note(&self, name: &str) -> Option<&str> {
        self.notes.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// What stands behind a name in the names of comments, with their values: `instead of X` gives X.
    pub(crate) fn notes<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.notes.iter().filter_map(move |(name, value)| Some((name.strip_prefix(prefix)?.trim(), value.as_str())))
    }

    /// Does it go into a file?
    pub(crate) fn is_file(&self) -> bool {
        self.note("file").is_some() || self.note("append").is_some()
    }

    /// Is it something that a reader types?
    pub(crate) fn is_commands(&self) -> bool {
        ["sh", "console", "bash", "shell"].contains(&self.language.as_str())
    }
}

const NAMES: [&str; 7] = ["first", "file", "append", "instead of", "exits", "until", "not run"];

impl Page {
    /// Reads a page. Comments that are none of those above are left alone, unless they look like one.
    pub(crate) fn read(root: &Path, path: &Path) -> Self {
        let text = fs_err::read_to_string(path).expect("a page");
        let relative = path.strip_prefix(root).expect("it is in the project").to_owned();
        Self::parse(relative, &text)
    }

    fn parse(path: PathBuf, text: &str) -> Self {
        let mut page = Self { path, world: None, blocks: Vec::new() };
        let mut notes = Vec::new();
        let mut lines = text.lines().enumerate();
        while let Some((number, line)) = lines.next() {
            let trimmed = line.trim();
            if let Some(comment) = trimmed.strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->")) {
                let Some((name, value)) = comment.split_once(": ") else { continue };
                if name == "in" {
                    page.world = Some(value.to_owned());
                } else if NAMES.iter().any(|known| name.starts_with(known)) {
                    notes.push((name.to_owned(), value.to_owned()));
                }
            } else if let Some(language) = trimmed.strip_prefix("```") {
                let indent = line.len() - line.trim_start().len();
                let inside = lines.by_ref().map(|(_, line)| line).take_while(|line| line.trim() != "```");
                let cut = |line: &str| line.get(indent..).unwrap_or_default().to_owned();
                let text: String = inside.flat_map(|line| [cut(line), "\n".to_owned()]).collect();
                let notes = std::mem::take(&mut notes);
                page.blocks.push(Block { line: number + 1, language: language.to_owned(), text, notes });
            } else if !trimmed.is_empty() {
                let place = page.path.display();
                assert!(notes.is_empty(), "{place}:{}: no block follows {notes:?}", number + 1);
            }
        }
        page
    }
}

#[test]
fn a_page_is_taken_apart() {
    let text = "# A\n<!-- in: small -->\n\n<!-- file: a.toml -->\n```toml\n[a]\n\nb = 1\n```\n- x\n  <!-- exits: 2 -->\n  <!-- instead of ID: sami runs | head -n 1 -->\n  ```sh\n  sami show ID\n  ```\n<!-- a word: of its own -->\n";
    let page = Page::parse("a.md".into(), text);
    assert_eq!(page.world.as_deref(), Some("small"));
    let [file, command] = &page.blocks[..] else { panic!("{page:?}") };
    assert_eq!((file.language.as_str(), file.text.as_str(), file.line), ("toml", "[a]\n\nb = 1\n", 5));
    assert_eq!((file.note("file"), file.is_commands()), (Some("a.toml"), false));
    assert_eq!((command.note("exits"), command.text.as_str()), (Some("2"), "sami show ID\n"));
    assert_eq!(command.notes("instead of").collect::<Vec<_>>(), [("ID", "sami runs | head -n 1")]);
}
