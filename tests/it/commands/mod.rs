//! Every command of the documents is run, in the order in which a reader would type them, and what is shown of an answer
//! is what is said. `page` says how a document tells what is to become of its blocks.

mod page;
mod says;
mod spans;
pub(crate) mod world;

use std::sync::Mutex;

use super::docs::{documents, root};
use page::{Block, Page};
use world::World;

/// All pages that have commands, but for those made from the code.
fn pages() -> Vec<Page> {
    documents().iter().map(|path| Page::read(root(), path)).collect()
}

/// Runs a block. Errs with what is wrong.
fn run(world: &World, block: &Block) -> Result<(), String> {
    let mut text = block.text.clone();
    for (what, command) in block.notes("instead of") {
        let said = world.run(command, None);
        if said.code != Some(0) || said.text.trim().is_empty() {
            return Err(format!("{what} is unknown: `{command}` says {said:?}"));
        }
        text = text.replace(what, said.text.trim());
    }
    if let Some(name) = block.note("file").or_else(|| block.note("append")) {
        let path = world.path(name);
        fs_err::create_dir_all(path.parent().expect("it is in the project")).expect("a directory");
        if block.note("append").is_some() {
            text = format!("{}\n{text}", fs_err::read_to_string(&path).expect("a file of the page's world"));
        }
        fs_err::write(path, text).expect("writes");
        return Ok(());
    }
    for (_, command) in block.notes("first") {
        let said = world.run(command, None);
        if said.code != Some(0) {
            return Err(format!("`{command}` ended with {:?}:\n{}", said.code, said.text));
        }
    }
    let until = block.note("until");
    let expected = block.note("exits").map_or(0, |code| code.parse().expect("an exit code"));
    let check = |commands: &str, shown: Option<&str>| {
        let said = world.run(commands, until);
        let interrupted = until.is_some_and(|until| said.text.contains(until));
        if said.code != Some(expected) && !interrupted {
            return Err(format!("`{commands}` ended with {:?}, not {expected}:\n{}", said.code, said.text));
        }
        match shown.and_then(|shown| says::difference(shown, &said.text)) {
            Some(line) => Err(format!("`{commands}` does not say `{line}` there, but:\n{}", said.text)),
            None => Ok(()),
        }
    };
    if block.language != "console" {
        return check(&text, None);
    }
    says::dialogue(&text).iter().try_for_each(|(command, answer)| {
        check(command, Some(answer.as_str()).filter(|answer| !answer.trim().is_empty()))
    })
}

/// Runs the pages of these worlds, two at a time.
fn run_pages(wanted: impl Fn(&str) -> bool + Sync) {
    let pages = pages();
    let waiting = Mutex::new(pages.iter().filter(|page| page.world.as_deref().is_some_and(&wanted)));
    let faults = Mutex::new(Vec::new());
    let work = || {
        loop {
            let Some(page) = waiting.lock().expect("nobody panics").next() else { return };
            let world = World::new(page.world.as_deref().unwrap_or_default());
            let blocks = page.blocks.iter().filter(|block| block.is_commands() || block.is_file());
            for block in blocks.filter(|block| block.note("not run").is_none()) {
                if let Err(fault) = run(&world, block) {
                    let place = format!("{}:{}", page.path.display(), block.line);
                    faults.lock().expect("nobody panics").push(format!("{place}: {fault}"));
                    // What follows rests on it.
                    break;
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(work);
        }
    });
    let faults = faults.into_inner().expect("nobody panics");
    assert!(faults.is_empty(), "{}", faults.join("\n\n"));
}

#[test]
fn commands_of_the_documents_do_what_they_say() {
    run_pages(|world| world != "quickstart");
}

#[test]
#[ignore = "slow: what the documents do with the quickstart"]
fn commands_of_the_documents_that_need_the_quickstart_do_what_they_say() {
    run_pages(|world| world == "quickstart");
}

#[test]
fn every_block_of_commands_is_run_or_says_why_not() {
    let mut faults = Vec::new();
    let (mut run, mut not_run) = (0, Vec::new());
    for page in pages() {
        for block in page.blocks.iter().filter(|block| block.is_commands()) {
            let place = format!("{}:{}", page.path.display(), block.line);
            match (block.note("not run"), &page.world) {
                (Some(reason), _) if reason.split_whitespace().count() >= 3 => {
                    not_run.push(format!("{place}: {reason}"));
                }
                (Some(reason), _) => faults.push(format!("{place}: `{reason}` is no reason")),
                (None, Some(_)) => run += 1,
                (None, None) => {
                    faults.push(format!("{place}: the page says in no world (`<!-- in: … -->`) where it is run"));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(not_run.len() * 4 <= run, "{run} blocks are run, and these are not:\n{}", not_run.join("\n"));
}
