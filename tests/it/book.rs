//! The book: every page is in its table of contents, every link leads somewhere, and `mdbook` builds it where it can be had.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use super::docs::{documents, files_under, root};
use super::sandbox::skipped;

/// The text outside of blocks of code.
pub(crate) fn prose(text: &str) -> String {
    let mut inside = false;
    let outside = |line: &&str| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        !inside && !fence
    };
    text.lines().filter(outside).flat_map(|line| [line, "\n"]).collect()
}

/// Where the links of a page lead. Text within backticks is no link.
fn links(text: &str) -> Vec<String> {
    let text: String = prose(text).split("\n\n").flat_map(|part| part.split('`').step_by(2).chain(["\n\n"])).collect();
    text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).map(ToOwned::to_owned).collect()
}

/// The anchors that headings get, on web pages and in books alike: small letters, digits, `-` and `_`, blanks as `-`.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let headings = prose(text);
    let headings =
        headings.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let anchor = |heading: &str| {
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        let anchor = kept.collect::<String>().to_lowercase().replace(' ', "-");
        let count = counts.entry(anchor.clone()).or_default();
        *count += 1;
        if *count == 1 { anchor } else { format!("{anchor}-{}", *count - 1) }
    };
    headings.map(anchor).collect()
}

/// A path without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut plain, component| {
        match component {
            Component::ParentDir => _ = plain.pop(),
            Component::CurDir => {}
            other => plain.push(other),
        }
        plain
    })
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut broken = Vec::new();
    let mut seen = 0;
    for document in documents().into_iter().chain([root().join("CHANGELOG.md")]) {
        let text = fs_err::read_to_string(&document).expect("a document");
        for link in links(&text) {
            if link.contains("://") {
                continue;
            }
            seen += 1;
            let (file, anchor) =
                link.split_once('#').map_or((link.as_str(), None), |(file, anchor)| (file, Some(anchor)));
            let target = match file {
                "" => document.clone(),
                file => document.parent().expect("a document has a directory").join(file),
            };
            let leads = match anchor {
                _ if !target.exists() => false,
                None => true,
                Some(anchor) => anchors(&fs_err::read_to_string(&target).expect("a document")).contains(anchor),
            };
            if !leads {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(seen > 100, "the scan found {seen} links only");
    assert!(broken.is_empty(), "links that lead nowhere: {broken:#?}");
}

#[test]
fn every_page_is_in_the_table_of_contents() {
    let docs = root().join("docs");
    let listed = links(&fs_err::read_to_string(docs.join("SUMMARY.md")).expect("a table of contents"));
    let listed: BTreeSet<PathBuf> = listed.iter().map(|page| docs.join(page)).collect();
    let there: BTreeSet<PathBuf> =
        files_under("docs", "md").into_iter().filter(|page| !page.ends_with("docs/SUMMARY.md")).collect();
    assert_eq!(listed, there, "docs/SUMMARY.md does not list the pages that there are");
}

/// `mdbook` where `.ci/run` puts it, else from the path.
fn mdbook() -> Option<Command> {
    let of_ci = root().join("target/ci-mdbook/bin/mdbook");
    let program = if of_ci.exists() { of_ci } else { PathBuf::from("mdbook") };
    Command::new(&program).arg("--version").output().ok().filter(|output| output.status.success())?;
    Some(Command::new(program))
}

/// What a page of the book asks for.
fn references(html: &str) -> Vec<String> {
    let after = |name: &'static str| html.split(name).skip(1).filter_map(|rest| rest.split('"').next());
    after(" href=\"").chain(after(" src=\"")).map(ToOwned::to_owned).collect()
}

#[test]
fn the_book_is_built_and_holds_together() {
    let Some(mut mdbook) = mdbook() else {
        return skipped("there is no `mdbook` here");
    };
    let folder = tempfile::tempdir().expect("a directory");
    let built = folder.path().join("book");
    let output =
        mdbook.arg("build").arg(root().join("docs")).arg("--dest-dir").arg(&built).output().expect("it starts");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && !said.contains("WARN") && !said.contains("ERROR"), "{said}");
    // The book stands beside `docs/`; what it links to outside of itself is a file of the project.
    let place = root().join("book");
    let mut broken = Vec::new();
    let pages = files_under(&built, "html");
    for path in &pages {
        let here = place.join(path.strip_prefix(&built).expect("it is in the book"));
        for reference in references(&fs_err::read_to_string(path).expect("a page")) {
            let file = reference.split(['#', '?']).next().unwrap_or_default();
            if file.is_empty() || file.contains(':') || path.ends_with("404.html") {
                continue;
            }
            let target = plain(&here.parent().expect("a directory").join(file));
            let there =
                target.strip_prefix(&place).map_or_else(|_| target.exists(), |inside| built.join(inside).exists());
            if !there {
                broken.push(format!("{}: {reference}", here.display()));
            }
        }
    }
    assert!(pages.len() > 25, "the book has {} pages only", pages.len());
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn anchors_and_links_are_found() {
    let text = "# A `b`: c_d\n## E\n## E\n```sh\n# no heading ](no.md)\n```\n[x](a.md#b), `](no.md)`, [y](#e-1)\n";
    assert_eq!(anchors(text).into_iter().collect::<Vec<_>>(), ["a-b-c_d", "e", "e-1"]);
    assert_eq!(links(text), ["a.md#b", "#e-1"]);
    assert_eq!(plain(Path::new("/a/./b/../c")), Path::new("/a/c"));
}
