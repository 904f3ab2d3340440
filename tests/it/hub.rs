//! Models from the hub: downloads that break off, lie or are refused, the shared cache, and pipelines on top.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use sami::cli::{DONE, USAGE};
use sami::hub::{Downloaded, Hub, HubError, Repo, Settings, Snapshot, Token, etag};

use super::bad_model;
use super::hub_server::{REPO, Server, Wrong};
use super::sandbox::Sandbox;

fn files(parts: &[(&str, &[u8])]) -> BTreeMap<String, Vec<u8>> {
    parts.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect()
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 11) as u8).collect()
}

/// A model with weights in one file; what its files hold does not matter to the hub.
fn server() -> Server {
    Server::start(files(&[
        ("README.md", b"hello"),
        ("config.json", b"{\"model_type\": \"llama\"}"),
        ("tokenizer.json", b"{}"),
        ("model.safetensors", &bytes(300_000)),
        ("pytorch_model.bin", &bytes(5000)),
    ]))
}

fn hub(server: &Server, cache: &Path) -> Hub {
    settings(server, cache, |_| {})
}

fn settings(server: &Server, cache: &Path, change: impl FnOnce(&mut Settings)) -> Hub {
    let mut settings = Settings {
        endpoint: server.endpoint.clone(),
        token: None,
        cache: cache.to_owned(),
        offline: false,
        pause: Duration::from_millis(1),
    };
    change(&mut settings);
    Hub::new(settings)
}

fn repo(text: &str) -> Repo {
    text.parse().expect("a repository")
}

fn fetch(hub: &Hub, name: &str) -> Result<Snapshot, HubError> {
    hub.fetch(&repo(name), &mut |_| {})
}

#[test]
fn a_model_comes_once_and_lies_where_python_looks() {
    let (server, folder) = (server(), tempfile::tempdir().expect("a directory"));
    let hub = hub(&server, folder.path());
    assert_eq!(hub.cached(&repo(REPO)).expect("reads"), None);
    assert_eq!(hub.to_download(&repo(REPO)).expect("is told"), Some(300_000 + 23 + 2));
    server.take();
    let mut last = Downloaded { done: 0, total: 0 };
    let snapshot = hub.fetch(&repo(REPO), &mut |progress| last = progress).expect("downloads");
    assert_eq!(last, Downloaded { done: 300_000, total: 300_000 });
    let names: Vec<&str> = snapshot.files.keys().map(String::as_str).collect();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
    let commit = "a".repeat(40);
    let own = folder.path().join("models--acme--tiny");
    assert_eq!(snapshot.directory, own.join("snapshots").join(&commit));
    assert_eq!(fs_err::read_to_string(own.join("refs/main")).expect("a ref"), commit);
    let weights = etag(&bytes(300_000), true);
    let link = fs_err::read_link(snapshot.directory.join("model.safetensors")).expect("a link");
    assert_eq!(link, Path::new("../../blobs").join(&weights));
    assert_eq!(fs_err::read(&snapshot.files["model.safetensors"]).expect("weights"), bytes(300_000));
    assert!(own.join(".no_exist").join(&commit).join("chat_template.jinja").exists());
    assert!(folder.path().join(".locks/models--acme--tiny").join(format!("{weights}.lock")).exists());
    // A listing, and for each of three files a question and an answer; the weights lie elsewhere.
    let requests = server.take();
    assert_eq!(requests.len(), 1 + 3 * 2 + 1);
    assert!(!requests.iter().any(|request| request.path.contains("README") || request.path.contains(".bin")));

    // Once more: a branch is asked for, a commit is not; with nothing new nothing is downloaded.
    fetch(&hub, REPO).expect("is there");
    assert_eq!(server.take().len(), 1);
    fetch(&hub, &format!("{REPO}@{commit}")).expect("is there");
    assert_eq!(server.take().len(), 0);

    // The branch moves on: what is the same is not downloaded again.
    {
        let mut state = server.state();
        state.commit = "b".repeat(40);
        state.files.insert("tokenizer.json".to_owned(), b"{ }".to_vec());
    }
    let moved = fetch(&hub, REPO).expect("downloads");
    assert_eq!(moved.commit, "b".repeat(40));
    let gets = server.take().into_iter().filter(|request| request.method == "GET" && request.path.contains("resolve"));
    assert_eq!(
        gets.map(|request| request.path).collect::<Vec<_>>(),
        [format!("/{REPO}/resolve/{}/tokenizer.json", moved.commit)]
    );
    assert_eq!(fs_err::read(&snapshot.files["tokenizer.json"]).expect("the old one"), b"{}");
}

#[test]
fn cut_contents_are_continued_and_never_begun_again() {
    let (server, folder) = (server(), tempfile::tempdir().expect("a directory"));
    let hub = hub(&server, folder.path());
    server.fail("model.safetensors", Wrong::Status(503, ""), 1);
    server.fail("main", Wrong::Status(429, "retry-after: 0"), 1);
    // More cuts than there are tries: each try that brings something on gives new ones.
    server.fail("model.safetensors", Wrong::Cut(30_000), 28);
    let snapshot = fetch(&hub, REPO).expect("downloads");
    assert_eq!(fs_err::read(&snapshot.files["model.safetensors"]).expect("weights"), bytes(300_000));
    let contents: Vec<_> =
        server.take().into_iter().filter(|request| request.content && request.method == "GET").collect();
    let ranges: Vec<&str> = contents.iter().filter_map(|one| one.headers.get("range").map(String::as_str)).collect();
    assert!(ranges.len() >= 8 && ranges[0] == "bytes=30000-", "{ranges:?}");
    let mut sorted = ranges.clone();
    sorted.sort_by_key(|range| range.len() * 1_000_000 + range[6..range.len() - 1].parse::<usize>().expect("a number"));
    assert_eq!(ranges, sorted, "it goes forward only");
}

#[test]
fn what_an_earlier_process_left_is_gone_on_with() {
    let (server, folder) = (server(), tempfile::tempdir().expect("a directory"));
    let hub = hub(&server, folder.path());
    let whole = bytes(300_000);
    let blobs = folder.path().join("models--acme--tiny/blobs");
    let incomplete = blobs.join(format!("{}.incomplete", etag(&whole, true)));
    for (left, asked) in [
        (whole[..200_000].to_vec(), vec!["bytes=200000-"]),
        // Longer than the file can be: it is begun anew.
        (bytes(400_000), vec![]),
        // All there but the last step.
        (whole.clone(), vec![]),
        // As long as it should be, and damaged: it is noticed, and the file is fetched from its start.
        (vec![0; 300_000], vec![]),
        (vec![0; 1000], vec!["bytes=1000-"]),
    ] {
        let _ = fs_err::remove_dir_all(folder.path().join("models--acme--tiny"));
        fs_err::create_dir_all(&blobs).expect("makes");
        fs_err::write(&incomplete, &left).expect("writes");
        server.take();
        let snapshot = fetch(&hub, REPO).expect("downloads");
        assert_eq!(fs_err::read(&snapshot.files["model.safetensors"]).expect("weights"), whole);
        assert!(!incomplete.exists());
        let requests = server.take();
        let ranges: Vec<&str> = requests
            .iter()
            .filter(|request| request.content)
            .filter_map(|request| request.headers.get("range").map(String::as_str))
            .collect();
        assert_eq!(ranges, asked, "{} bytes were left", left.len());
    }
    // A server that does not know ranges sends all, and all of it is taken.
    let _ = fs_err::remove_dir_all(folder.path().join("models--acme--tiny"));
    fs_err::create_dir_all(&blobs).expect("makes");
    fs_err::write(&incomplete, &whole[..1000]).expect("writes");
    server.fail("model.safetensors", Wrong::NoRange, 10);
    let snapshot = fetch(&hub, REPO).expect("downloads");
    assert_eq!(fs_err::read(&snapshot.files["model.safetensors"]).expect("weights"), whole);
}

#[test]
fn damaged_contents_never_reach_the_cache() {
    for name in ["model.safetensors", "config.json"] {
        let (server, folder) = (server(), tempfile::tempdir().expect("a directory"));
        let hub = hub(&server, folder.path());
        server.fail(name, Wrong::Bit, 100);
        let error = fetch(&hub, REPO).expect_err("its digest is wrong");
        assert!(matches!(&error, HubError::Damaged { file, .. } if file == name), "{error}");
        let blobs = fs_err::read_dir(folder.path().join("models--acme--tiny/blobs")).expect("blobs");
        let left: Vec<_> = blobs.flatten().map(|entry| entry.file_name()).collect();
        assert!(!left.iter().any(|left| left.to_string_lossy().contains("incomplete")), "{left:?}");
        assert_eq!(hub.cached(&repo(REPO)).expect("reads"), None);
        server.state().faults.clear();
        fetch(&hub, REPO).expect("the next one is good");
    }
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_else() {
    let (server, folder) = (server(), tempfile::tempdir().expect("a directory"));
    server.state().token = Some("hf_secret");
    let error = fetch(&hub(&server, folder.path()), REPO).expect_err("it is gated");
    assert!(matches!(error, HubError::Gated { token: false, .. }));
    let help = error.diagnostic().help.join(" ");
    assert!(help.contains("accept the terms") && help.contains("HF_TOKEN"), "{help}");
    let with = |token: &str| settings(&server, folder.path(), |settings| settings.token = Token::new(token));
    let error = fetch(&with("hf_wrong"), REPO).expect_err("the token is not the right one");
    assert!(matches!(error, HubError::Gated { token: true, .. }));
    server.take();
    fetch(&with("hf_secret"), REPO).expect("downloads");
    let requests = server.take();
    for request in &requests {
        assert_eq!(request.headers.contains_key("authorization"), !request.content, "{request:?}");
    }
    assert!(requests.iter().any(|request| request.content));
    let mut open = vec![folder.path().to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs_err::read_dir(directory).expect("reads").flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else {
                let text = fs_err::read(&path).expect("reads");
                assert!(!text.windows(9).any(|window| window == b"hf_secret"), "{}", path.display());
            }
        }
    }
}

#[test]
fn refusals_say_what_to_do() {
    let (server, folder) = (server(), tempfile::tempdir().expect("a directory"));
    let hub = hub(&server, folder.path());
    assert!(matches!(fetch(&hub, "acme/none"), Err(HubError::NoRepo { .. })));
    assert!(matches!(fetch(&hub, &format!("{REPO}@v9")), Err(HubError::NoRevision { .. })));
    server.fail("main", Wrong::Status(403, "x-error-message: your token may not do that"), 1);
    let error = fetch(&hub, REPO).expect_err("it is refused");
    assert!(matches!(&error, HubError::Denied { what, .. } if what.contains("may not")), "{error}");
    server.fail("main", Wrong::Status(302, ""), 1);
    assert!(matches!(fetch(&hub, REPO), Err(HubError::Malformed { .. })), "a redirect to nowhere");
    server.fail("main", Wrong::Status(302, "location: /api/models/acme/tiny/revision/main"), 20);
    assert!(matches!(fetch(&hub, REPO), Err(HubError::Malformed { .. })), "a redirect in a circle");
    server.state().faults.clear();
    server.fail("main", Wrong::Status(500, ""), 5);
    server.take();
    assert!(matches!(fetch(&hub, REPO), Err(HubError::Network { .. })));
    assert_eq!(server.take().len(), 5, "tries");
    server.state().files.insert("../evil.json".to_owned(), b"x".to_vec());
    assert!(matches!(fetch(&hub, REPO), Err(HubError::Malformed { .. })));
    assert!(!folder.path().join("models--acme--tiny").exists());
}

#[test]
fn without_a_network_the_cache_serves() {
    let (server, folder) = (server(), tempfile::tempdir().expect("a directory"));
    let offline = settings(&server, folder.path(), |settings| settings.offline = true);
    let error = fetch(&offline, REPO).expect_err("the cache is empty");
    assert!(matches!(error, HubError::Offline { .. }) && error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
    let snapshot = fetch(&hub(&server, folder.path()), REPO).expect("downloads");
    server.take();
    assert_eq!(fetch(&offline, REPO).expect("is there"), snapshot);
    assert_eq!(server.take().len(), 0);
    // Nobody listens there.
    let gone = settings(&server, folder.path(), |settings| settings.endpoint = "http://127.0.0.1:1".to_owned());
    assert_eq!(fetch(&gone, REPO).expect("is there"), snapshot);
    assert!(matches!(fetch(&gone, &format!("{REPO}@other")), Err(HubError::Network { .. })));
    // A shard that went missing makes the model one that is not there.
    fs_err::remove_file(folder.path().join("models--acme--tiny/blobs").join(etag(&bytes(300_000), true)))
        .expect("removes");
    assert!(matches!(fetch(&offline, REPO), Err(HubError::Offline { .. })));
}

#[test]
fn of_shards_those_come_that_the_index_names() {
    let index =
        br#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    let folder = tempfile::tempdir().expect("a directory");
    let server = Server::start(files(&[
        ("config.json", b"{}"),
        ("generation_config.json", b"{}"),
        ("tokenizer.json", b"{}"),
        ("model.safetensors.index.json", index),
        ("model-00001-of-00002.safetensors", &bytes(2000)),
        ("model-00002-of-00002.safetensors", &bytes(3000)),
        ("consolidated.safetensors", &bytes(5000)),
    ]));
    let hub = hub(&server, folder.path());
    let snapshot = fetch(&hub, REPO).expect("downloads");
    assert_eq!(snapshot.files.len(), 6);
    assert!(!server.take().iter().any(|request| request.path.contains("consolidated")));
    server.state().files.remove("model-00002-of-00002.safetensors");
    server.state().commit = "c".repeat(40);
    let error = fetch(&hub, REPO).expect_err("a shard is not there").to_string();
    assert!(error.contains("model-00002-of-00002.safetensors"), "{error}");
}

/// Answers of a model from the hub.
fn pipeline() -> String {
    bad_model::PIPELINE.replace("MODEL", "source = \"hf:acme/tiny\"")
}

#[test]
fn a_pipeline_downloads_when_it_runs_and_not_when_it_is_planned() {
    let sandbox = Sandbox::with(&pipeline());
    let init = "init = { hidden_size = 16, layers = 1, heads = 2, max_positions = 64, seed = 1, tokenizer = { from = \"questions\" } }";
    sandbox.write("make.toml", &pipeline().replace("source = \"hf:acme/tiny\"", init));
    sandbox.sami(&["run", "make.toml", "models.base"]).exits(DONE.into());
    sandbox.sami(&["cache", "checkout", "models.base", "model"]).exits(DONE.into());
    let read = |name: &str| fs_err::read(sandbox.path("model").join(name)).expect("a file of the model");
    let names =
        ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];
    let server = Server::start(names.iter().map(|name| ((*name).to_owned(), read(name))).collect());
    let sami = |args: &[&str], offline: bool| -> super::sandbox::Output {
        let mut command = sandbox.command(args);
        command.env("HF_ENDPOINT", &server.endpoint).env("HF_HOME", sandbox.path("home")).env("HF_TOKEN", "hf_secret");
        if offline {
            command.env("HF_HUB_OFFLINE", "1");
        }
        command.output().expect("the binary starts").into()
    };
    let output = sami(&["plan", "p.toml", "--json"], true).exits(USAGE.into());
    assert!(output.stderr.contains("hub::offline") && output.stderr.contains("p.toml:3:10"), "{}", output.stderr);
    let plan = sami(&["plan", "p.toml"], false).exits(DONE.into());
    assert!(
        plan.stdout.contains("unknown  generate") && plan.stdout.contains("base is downloaded ("),
        "{}",
        plan.stdout
    );
    let why = sami(&["why", "p.toml", "generate"], false).exits(DONE.into());
    assert!(why.stdout.contains("`sami run` downloads it"), "{}", why.stdout);
    assert!(!sandbox.path("home/hub").exists(), "a plan downloads nothing");
    sami(&["check", "p.toml"], true).exits(DONE.into());

    let run = sami(&["run", "p.toml", "--json"], false).exits(DONE.into());
    let download =
        run.stdout.lines().find(|line| line.contains("\"event\":\"download\"") && line.contains("\"finished\":true"));
    assert!(download.is_some_and(|line| line.contains("\"name\":\"base\"")), "{}", run.stdout);
    assert_eq!(run.done().names("ran"), ["constitutions", "generate"]);
    assert!(sandbox.path("home/hub/models--acme--tiny/refs/main").exists());
    assert!(!(run.stdout + &run.stderr).contains("hf_secret"));
    for path in sandbox.files("cache") {
        assert!(!String::from_utf8_lossy(&fs_err::read(path).expect("a file")).contains("hf_secret"));
    }
    // The weights stay in the hub's cache, and the key is made of what they are: a directory with the same is the same.
    let again = sami(&["run", "p.toml", "--json"], true).exits(DONE.into()).done();
    assert_eq!(again.names("ran"), [""; 0]);
    let plan = sami(&["plan", "p.toml"], true).exits(DONE.into());
    assert!(plan.stdout.contains("2 fresh"), "{}", plan.stdout);
    sandbox.write(
        "p.toml",
        &pipeline()
            .replace("hf:acme/tiny", "home/hub/models--acme--tiny/snapshots/COMMIT")
            .replace("COMMIT", &"a".repeat(40)),
    );
    assert_eq!(sandbox.run(&[], DONE.into()).names("ran"), [""; 0]);
    sandbox.verify();

    // The branch moves to other weights: the next run has them, and what rests on them is stale.
    sandbox.write("p.toml", &pipeline());
    {
        let mut state = server.state();
        state.commit = "b".repeat(40);
        let config = state.files.get_mut("config.json").expect("it is there");
        *config = String::from_utf8_lossy(config).replace("\"rms_norm_eps\": ", "\"rms_norm_eps\": 1").into_bytes();
    }
    let moved = sami(&["run", "p.toml", "--json"], false).exits(DONE.into());
    assert_eq!(moved.done().names("ran"), ["generate"]);
}

#[test]
fn hub_names_that_cannot_be() {
    for (source, says) in [("hf:", "no name of a repository"), ("hf:a/b/c", "no name"), ("hf:a/b@", "no revision")] {
        let sandbox = Sandbox::with(&pipeline().replace("hf:acme/tiny", source));
        let output = sandbox.sami(&["check", "p.toml"]).exits(USAGE.into());
        assert!(output.stderr.contains(says) && output.stderr.contains("p.toml:3:10"), "{source}: {}", output.stderr);
    }
}
