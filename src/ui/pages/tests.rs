//! Pages of caches as they are, and as they should not be.

use super::*;
use crate::fs;
use crate::inspect::sample;

fn site(store: &crate::store::Store) -> Site {
    Site::new(store.root().to_owned(), Vec::new(), crate::kinds::specs())
}

/// The text of a page, or its status.
fn ask(site: &Site, path: &str, query: &str) -> Result<String, u16> {
    let make = find(path).unwrap_or_else(|| panic!("no page at {path}"));
    let answer = make(site, &Query::parse(query)).and_then(Answer::into_text);
    answer.map(|(_, text)| text).map_err(|problem| problem.status)
}

#[test]
fn the_pages_of_a_cache_say_what_is_in_it() {
    let (_folder, store, index) = sample::store();
    let site = site(&store);
    let overview = ask(&site, "/", "").unwrap();
    assert!(overview.contains("20260102-000000-bbbb") && overview.contains("3 ran · 1 hit"), "{overview}");
    assert!(ask(&site, "/pipelines", "").unwrap().contains("href=\"/pipeline?name=toy\""));
    let graph = ask(&site, "/pipeline", "name=toy").unwrap();
    assert_eq!(graph.matches("<g class=\"box").count(), 4);
    assert!(
        graph.contains("is not here") && graph.contains("href=\"/node?pipeline=toy&amp;name=train%402\""),
        "{graph}"
    );
    let node = ask(&site, "/node", "pipeline=toy&name=train@2").unwrap();
    for told in ["bit-exact on cpu", "optimizer.lr", "examples", "0.2000", "attempt 1", "No log of it is left"] {
        assert!(node.contains(told), "{told}: {node}");
    }
    let key = index.keys_of_node("toy", "train@2", 1)[0];
    assert!(ask(&site, "/node", &format!("key={key}")).unwrap().contains("<h1>train@2</h1>"));
    assert!(ask(&site, "/pipeline", "name=toy&state=hit").unwrap().contains("1 to 1 of 1"));
    assert!(ask(&site, "/pipeline", "name=toy&q=nothing").unwrap().contains("No node is like that"));
}

#[test]
fn what_is_asked_wrongly_is_told() {
    let (_folder, store, _) = sample::store();
    let site = site(&store);
    for (path, query, status) in [
        ("/pipeline", "", 400),
        ("/pipeline", "name=none", 404),
        ("/pipeline", "name=../../etc/passwd", 404),
        ("/pipeline", "name=toy&open=x", 400),
        ("/pipeline", "name=toy&skip=-1", 400),
        ("/node", "pipeline=toy", 400),
        ("/node", "pipeline=toy&name=none", 404),
        ("/node", "key=12", 400),
        ("/node", &format!("key={}", "0".repeat(64)), 404),
        ("/log", "run=..&node=x", 404),
        ("/log", "run=20260102-000000-bbbb&node=../x", 404),
        ("/log", "run=20260102-000000-bbbb&node=train@2", 404),
    ] {
        assert_eq!(ask(&site, path, query).err(), Some(status), "{path}?{query}");
    }
}

#[test]
fn what_a_cache_holds_is_text_whatever_it_says() {
    let (_folder, store, mut index) = sample::store();
    let evil = "<script>alert(1)</script>\"'&\u{1b}[31m";
    let mut record = store.node(&index.keys_of_node("toy", "train@2", 1)[0]).unwrap().unwrap();
    record.preimage["fields"]["note"] = evil.into();
    record.key = crate::graph::key::key(&record.preimage);
    record.node = evil.to_owned();
    record.host = evil.to_owned();
    record.metrics.insert(evil.to_owned(), f64::NAN.into());
    record.sources.insert("examples".to_owned(), format!("dataset:{evil}"));
    store.put_node(&record).unwrap();
    index.add_node(&record);
    let mut run = store.run("20260102-000000-bbbb").unwrap().unwrap();
    (run.run, run.pipeline) = ("20260103-000000-cccc".to_owned(), evil.to_owned());
    run.file = evil.to_owned();
    run.nodes[3].name = evil.to_owned();
    run.nodes[3].key = Some(record.key);
    store.put_run(&run).unwrap();
    index.add_run(&run);
    let log = store.run_dir(&run.run).join(crate::exec::attempt_directory(evil, 1)).join("log.txt");
    fs::create_directory(log.parent().unwrap()).unwrap();
    fs::write(&log, format!("{evil}\n{}\n{evil}", "x".repeat(10 << 20))).unwrap();
    let site = site(&store);
    let name = super::super::query::encode([("pipeline", evil), ("name", evil), ("node", evil)].into_iter());
    let pipeline = super::super::query::encode([("name", evil)].into_iter());
    for (path, query) in [
        ("/", String::new()),
        ("/pipelines", String::new()),
        ("/pipeline", pipeline),
        ("/node", name.clone()),
        ("/log", format!("run={}&attempt=1&{name}", run.run)),
    ] {
        let text = ask(&site, path, &query).unwrap_or_else(|status| panic!("{path}: {status}"));
        assert!(text.contains("&lt;script&gt;") && !text.contains("<script>alert"), "{path}");
        assert!(!text.contains('\u{1b}') && text.len() < 1 << 20, "{path}: {}", text.len());
    }
}

#[test]
fn a_cache_may_be_damaged_removed_or_newer_at_any_time() {
    let (folder, store, index) = sample::store();
    let site = site(&store);
    let key = index.keys_of_node("toy", "train@2", 1)[0];
    drop(index);
    let all = [("/", ""), ("/pipelines", ""), ("/pipeline", "name=toy"), ("/node", "pipeline=toy&name=train@2")];
    let each = || all.map(|(path, query)| ask(&site, path, query).map_or_else(|status| status, |_| 200));
    assert_eq!(each(), [200; 4]);
    // A record, an artifact and a run's record that are no more what they were; then none.
    let node = store.root().join(format!("nodes/{}/{}.json", &key.to_string()[..2], &key.to_string()[2..]));
    fs::write(&node, "{").unwrap();
    assert_eq!(each(), [200; 4]);
    fs::remove_directory(&store.root().join("artifacts")).unwrap();
    fs::remove_directory(&store.root().join("objects")).unwrap();
    assert_eq!(each(), [200; 4]);
    fs::write(&store.run_dir("20260102-000000-bbbb").join("run.json"), "no JSON").unwrap();
    assert_eq!(each(), [200; 4]);
    fs::write(&store.root().join("index.sqlite"), "no database").unwrap();
    assert_eq!(each(), [200; 4]);
    fs::write(&store.root().join("VERSION"), "99\n").unwrap();
    assert_eq!(each(), [500; 4]);
    fs::remove_directory(folder.path()).unwrap();
    assert_eq!(each(), [503; 4]);
}

#[test]
fn an_empty_cache_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let store = crate::store::Store::open(folder.path()).unwrap();
    let overview = ask(&site(&store), "/", "").unwrap();
    assert!(overview.contains("Nothing has run in this cache yet") && !overview.contains("Latest runs"));
}

#[test]
fn every_list_says_which_run_goes_on() {
    let (_folder, store, _) = sample::store();
    let mut run = store.run("20260102-000000-bbbb").unwrap().unwrap();
    (run.finished, run.ok, run.nodes, run.run) = (None, None, Vec::new(), "20260103-000000-cccc".to_owned());
    fs::create_directory(&store.run_dir(&run.run)).unwrap();
    store.put_run(&run).unwrap();
    let states = |word: &str| {
        ["/", "/pipelines", "/runs"].map(|path| {
            ask(&site(&store), path, "").unwrap().matches(&format!("<td><span class=\"state {word}\">")).count()
        })
    };
    assert_eq!((states("running"), states("unfinished")), ([0, 0, 0], [2, 1, 1]));
    let _held = sample::hold(&store, &run.run, "");
    assert_eq!((states("running"), states("unfinished")), ([2, 1, 1], [0, 0, 0]));
}
