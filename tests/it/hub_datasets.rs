//! Datasets from the hub: layouts, shards, formats, the converted copy, what is missing, the shared cache, pipelines on top.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use sami::cli::{DONE, USAGE};
use sami::hub::{Hub, HubError, Part, Repo, RowFiles, Settings, etag};

use super::hub_server::{CONVERTED, Server, Wrong};
use super::sandbox::{Output, Sandbox};

fn packed(text: &str) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(text.as_bytes()).expect("packs");
    packed.finish().expect("packs")
}

/// Rows with a struct `info` of the texts `id` and `post`.
fn posts(numbers: std::ops::Range<usize>) -> Vec<u8> {
    let schema = "message posts { required group info { required binary id (UTF8); required binary post (UTF8); } }";
    let schema = Arc::new(parse_message_type(schema).expect("a schema"));
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::default()).expect("a writer");
    let mut group = writer.next_row_group().expect("a row group");
    for name in ["id", "post"] {
        let texts: Vec<ByteArray> = numbers.clone().map(|n| ByteArray::from(format!("{name} {n}").as_str())).collect();
        let mut column = group.next_column().expect("a column").expect("there is one");
        column.typed::<ByteArrayType>().write_batch(&texts, None, None).expect("writes");
        column.close().expect("closes");
    }
    group.close().expect("closes");
    writer.into_inner().expect("closes")
}

fn files(parts: &[(&str, Vec<u8>)]) -> BTreeMap<String, Vec<u8>> {
    parts.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone())).collect()
}

/// As HH-RLHF has it: packed lines in directories.
fn dialogues() -> Server {
    let lines = |what: &str| -> Vec<u8> {
        let line = |n: usize| {
            let text =
                format!("\n\nHuman: {what} {n}?\n\nAssistant: It is {}.\n\nHuman: More?\n\nAssistant: No.", n * n);
            serde_json::json!({"chosen": text, "rejected": ""}).to_string() + "\n"
        };
        packed(&(0..200).map(line).collect::<String>())
    };
    Server::start(files(&[
        ("README.md", b"hello".to_vec()),
        ("harmless-base/train.jsonl.gz", lines("harmless")),
        ("harmless-base/test.jsonl.gz", lines("test")),
        ("helpful-base/train.jsonl.gz", lines("helpful")),
    ]))
}

/// As TL;DR has it: a script, and the hub's own copy.
fn summaries() -> Server {
    let server = Server::start(files(&[("README.md", b"hello".to_vec()), ("tiny.py", b"print()".to_vec())]));
    server.state().converted = files(&[
        ("comparisons/train/0000.parquet", posts(0..60)),
        ("comparisons/train/0001.parquet", posts(60..100)),
        ("comparisons/validation/0000.parquet", posts(100..110)),
        ("axis/test/0000.parquet", posts(0..1)),
    ]);
    server
}

fn hub(server: &Server, cache: &Path, offline: bool) -> Hub {
    Hub::new(Settings {
        endpoint: server.endpoint.clone(),
        token: None,
        cache: cache.to_owned(),
        offline,
        pause: Duration::from_millis(1),
    })
}

fn repo(text: &str) -> Repo {
    text.parse().expect("a repository")
}

const REPO: &str = "datasets/acme/tiny";

fn part(config: &str, split: &str) -> Part {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Part { split: some(split), config: some(config), files: Vec::new() }
}

fn fetch(hub: &Hub, part: &Part) -> Result<RowFiles, HubError> {
    hub.fetch_rows(&repo(REPO), part, &mut |_| {})
}

fn names(found: &RowFiles) -> Vec<&str> {
    found.files.iter().map(|(name, _)| name.as_str()).collect()
}

#[test]
fn rows_come_once_and_lie_where_python_looks() {
    let (server, folder) = (dialogues(), tempfile::tempdir().expect("a directory"));
    let online = hub(&server, folder.path(), false);
    let wanted = part("harmless-base", "train");
    let content = server.state().files["harmless-base/train.jsonl.gz"].clone();
    assert_eq!(online.cached_rows(&repo(REPO), &wanted).expect("reads"), None);
    assert_eq!(online.rows_to_download(&repo(REPO), &wanted).expect("is told"), Some(content.len() as u64));
    assert!(!folder.path().join("datasets--acme--tiny").exists(), "asking downloads nothing");
    // More cuts than there are tries: what has come is gone on with.
    server.fail("train.jsonl.gz", Wrong::Cut(content.len() / 9), 8);
    let found = fetch(&online, &wanted).expect("downloads");
    assert_eq!(names(&found), ["harmless-base/train.jsonl.gz"]);
    let own = folder.path().join("datasets--acme--tiny");
    let commit = "a".repeat(40);
    assert_eq!(found.files[0].1, own.join("snapshots").join(&commit).join("harmless-base/train.jsonl.gz"));
    assert_eq!(fs_err::read(&found.files[0].1).expect("is there"), content);
    assert_eq!(fs_err::read_to_string(own.join("refs/main")).expect("a ref"), commit);
    let link = fs_err::read_link(&found.files[0].1).expect("a link");
    assert_eq!(link, Path::new("../../../blobs").join(etag(&content, content.len() >= 1000)));
    server.take();
    // A branch is asked for, a commit is not; other rows of it are.
    fetch(&online, &wanted).expect("is there");
    assert_eq!(server.take().len(), 1);
    let pinned = repo(&format!("{REPO}@{commit}"));
    online.fetch_rows(&pinned, &wanted, &mut |_| {}).expect("is there");
    assert_eq!(server.take().len(), 0);
    online.fetch_rows(&pinned, &part("harmless-base", "test"), &mut |_| {}).expect("downloads");
    assert!(server.take().len() > 1);
    let offline = hub(&server, folder.path(), true);
    assert_eq!(fetch(&offline, &wanted).expect("is there"), found);
    let error = fetch(&offline, &part("helpful-base", "")).expect_err("it was never downloaded");
    assert!(matches!(error, HubError::Offline { .. }) && error.to_string().contains(REPO), "{error}");
    assert_eq!(server.take().len(), 0);
    // A file that went missing is one that is not there.
    fs_err::remove_file(&found.files[0].1).expect("removes");
    assert!(matches!(fetch(&offline, &wanted), Err(HubError::Offline { .. })));
    let gone = Hub::new(Settings {
        endpoint: "http://127.0.0.1:1".to_owned(),
        token: None,
        cache: folder.path().to_owned(),
        offline: false,
        pause: Duration::from_millis(1),
    });
    fetch(&gone, &part("harmless-base", "test")).expect("without a network the cache serves");
    assert!(matches!(fetch(&gone, &wanted), Err(HubError::Network { .. })));
}

#[test]
fn what_python_downloaded_is_found_if_it_is_whole() {
    let (server, folder) = (dialogues(), tempfile::tempdir().expect("a directory"));
    let offline = hub(&server, folder.path(), true);
    let commit = "d".repeat(40);
    let own = folder.path().join("datasets--acme--tiny");
    let put = |revision: &str, name: &str| {
        let blob = own.join("blobs").join(etag(name.as_bytes(), false));
        let link = own.join("snapshots").join(&commit).join(name);
        for path in [&blob, &link, &own.join("refs").join(revision)] {
            fs_err::create_dir_all(path.parent().expect("has one")).expect("makes");
        }
        fs_err::write(own.join("refs").join(revision), &commit).expect("writes");
        fs_err::write(&blob, "{}\n").expect("writes");
        std::os::unix::fs::symlink(&blob, &link).expect("links");
    };
    put("main", "data/train-00000-of-00002.parquet");
    assert!(matches!(fetch(&offline, &part("", "")), Err(HubError::Offline { .. })), "one of two shards");
    put("main", "data/train-00001-of-00002.parquet");
    assert_eq!(fetch(&offline, &part("", "")).expect("both are there").files.len(), 2);
    assert!(matches!(fetch(&offline, &part("", "test")), Err(HubError::Offline { .. })));
    fs_err::remove_dir_all(&own).expect("removes");
    put("refs/convert/parquet", "comparisons/train/0000.parquet");
    assert_eq!(
        names(&fetch(&offline, &part("comparisons", "")).expect("the copy")),
        ["comparisons/train/0000.parquet"]
    );
}

#[test]
fn a_script_is_not_run_and_the_hubs_copy_is_taken() {
    let (server, folder) = (summaries(), tempfile::tempdir().expect("a directory"));
    let online = hub(&server, folder.path(), false);
    let found = fetch(&online, &part("comparisons", "")).expect("downloads");
    assert_eq!(names(&found), ["comparisons/train/0000.parquet", "comparisons/train/0001.parquet"]);
    assert_eq!(found.commit, CONVERTED);
    assert_eq!(fetch(&hub(&server, folder.path(), true), &part("comparisons", "")).expect("is there"), found);
    let own = folder.path().join("datasets--acme--tiny");
    assert_eq!(fs_err::read_to_string(own.join("refs/refs/convert/parquet")).expect("a ref"), CONVERTED);
    let refused = |revision: &str, part: &Part| -> String {
        let error = online.fetch_rows(&repo(&format!("{REPO}@{revision}")), part, &mut |_| {}).expect_err("refused");
        assert!(matches!(error, HubError::NoRows { .. }), "{error}");
        let diagnostic = error.diagnostic();
        format!("{} {}", diagnostic.title, diagnostic.help.join(" "))
    };
    assert!(
        refused("main", &part("", "")).contains("several configurations")
            && refused("main", &part("", "")).contains("`axis`, `comparisons`")
    );
    let says = refused("main", &part("comparisons", "test"));
    assert!(says.contains("no split `test`") && says.contains("`train`, `validation`"), "{says}");
    assert!(refused("main", &part("none", "")).contains("no configuration `none`"));
    let says = refused(&"a".repeat(40), &part("", ""));
    assert!(
        says.contains("the script `tiny.py`") && says.contains("hf:datasets/acme/tiny@refs/convert/parquet"),
        "{says}"
    );
    let says = refused("main", &Part { files: vec!["x.jsonl".to_owned()], ..Part::default() });
    assert!(says.contains("`x.jsonl`"), "{says}");
    server.state().converted.clear();
    let says = refused("main", &part("", ""));
    assert!(says.contains("the script `tiny.py`") && says.contains("Python"), "{says}");
}

/// A pipeline that writes the rows of a dataset down.
fn pipeline(dataset: &str) -> String {
    format!(
        "[datasets.rows]\n{dataset}\n[nodes.show]\nkind = \"command\"\nprogram = \"cp\"\n\
         args = [\"{{input.rows}}/rows.jsonl\", \"out.jsonl\"]\ninputs = {{ rows = {{ from = \"rows\", take = 65 }} }}\n"
    )
}

fn sami(sandbox: &Sandbox, server: &Server, args: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = sandbox.command(args);
    command.env("HF_ENDPOINT", &server.endpoint).env("HF_HOME", sandbox.path("home")).env_remove("HF_HUB_OFFLINE");
    command.envs(environment.iter().copied());
    command.output().expect("the binary starts").into()
}

fn rows(sandbox: &Sandbox) -> Vec<serde_json::Value> {
    let output = sandbox.sami(&["cache", "cat", "show"]).exits(DONE.into());
    output.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn a_pipeline_takes_the_first_turn_of_dialogues() {
    let server = dialogues();
    let sandbox = Sandbox::with(&pipeline(
        "source = \"hf:datasets/acme/tiny\"\ndata_files = \"harmless-base/train.jsonl.gz\"\n\
         query = '{{ chosen | split(\"\\n\\nAssistant: \") | first | split(\"Human: \") | last | trim }}'\n",
    ));
    let plan = sami(&sandbox, &server, &["plan", "p.toml"], &[]).exits(DONE.into());
    assert!(plan.stdout.contains("until rows is downloaded ("), "{}", plan.stdout);
    let why = sami(&sandbox, &server, &["why", "p.toml", "show"], &[]).exits(DONE.into());
    assert!(why.stdout.contains("rows is not in the hub's cache"), "{}", why.stdout);
    sami(&sandbox, &server, &["check", "p.toml"], &[]).exits(DONE.into());
    assert!(!sandbox.path("home/hub").exists(), "a plan downloads nothing");
    let little = sami(&sandbox, &server, &["run", "p.toml"], &[("SAMI_FAULT", "room:100")]).exits(USAGE.into());
    assert!(little.stderr.contains("hub::no-room") && little.stderr.contains("p.toml"), "{}", little.stderr);
    let run = sami(&sandbox, &server, &["run", "p.toml", "--json"], &[]).exits(DONE.into());
    assert!(
        run.stdout.contains("\"event\":\"download\"") && run.stdout.contains("\"name\":\"rows\""),
        "{}",
        run.stdout
    );
    let rows = rows(&sandbox);
    assert_eq!((rows.len(), &rows[2]["query"], &rows[2]["id"]), (65, &"harmless 2?".into(), &"2".into()));
    // Nothing is read again, and without a network all is as it was.
    let again = sami(&sandbox, &server, &["run", "p.toml", "--json"], &[("HF_HUB_OFFLINE", "1")]).exits(DONE.into());
    assert_eq!(again.done().names("ran"), [""; 0]);
    let offline = [("HF_HUB_OFFLINE", "1"), ("HF_HUB_CACHE", "elsewhere")];
    let output = sami(&sandbox, &server, &["plan", "p.toml"], &offline).exits(USAGE.into());
    assert!(output.stderr.contains("hub::offline") && output.stderr.contains("of dataset `rows`"), "{}", output.stderr);
}

#[test]
fn a_pipeline_reads_structs_of_several_shards() {
    let server = summaries();
    let sandbox = Sandbox::with(&pipeline(
        "source = \"hf:datasets/acme/tiny\"\nconfig = \"comparisons\"\nsplit = \"train\"\nid = \"{{ info.id }}\"\n\
         query = \"POST: {{ info.post }}\"\n",
    ));
    sami(&sandbox, &server, &["run", "p.toml"], &[]).exits(DONE.into());
    let rows = rows(&sandbox);
    assert_eq!((rows.len(), &rows[64]["id"], &rows[64]["query"]), (65, &"id 64".into(), &"POST: post 64".into()));
    sandbox
        .write("p.toml", &pipeline("source = \"hf:datasets/acme/tiny\"\nconfig = \"comparisons\"\nsplit = \"dev\"\n"));
    let output = sami(&sandbox, &server, &["run", "p.toml"], &[]).exits(USAGE.into());
    assert!(output.stderr.contains("`train`, `validation`"), "{}", output.stderr);
    // A local file in the same form.
    fs_err::write(sandbox.path("own.parquet"), posts(0..70)).expect("writes");
    sandbox.write("p.toml", &pipeline("source = \"own.parquet\"\nid = \"{{ info.id }}\"\n"));
    sandbox.sami(&["check", "p.toml"]).exits(DONE.into());
    sandbox.sami(&["run", "p.toml"]).exits(DONE.into());
    fs_err::write(sandbox.path("own.parquet"), &posts(0..70)[..200]).expect("writes");
    let output = sandbox.sami(&["check", "p.toml"]).exits(USAGE.into());
    assert!(output.stderr.contains("dataset::bad-file") && !output.stderr.contains("bug in sami"), "{}", output.stderr);
}

#[test]
fn dataset_sources_that_cannot_be() {
    for (dataset, says) in [
        ("source = \"hf:acme/tiny\"", "that is a model; the dataset would be `hf:datasets/acme/tiny`"),
        ("source = \"hf:datasets/a/b/c\"", "no name of a repository"),
        ("source = \"rows.jsonl\"\nsplit = \"train\"", "only datasets of the hub have that"),
        ("make = { rows = 3, template = '{}' }\nconfig = \"x\"", "only datasets of the hub have that"),
        ("source = \"hf:datasets/acme/tiny\"\ndata_files = 3", "data_files"),
    ] {
        let sandbox = Sandbox::with(&pipeline(dataset));
        let output = sandbox.sami(&["check", "p.toml"]).exits(USAGE.into());
        assert!(output.stderr.contains(says), "{dataset}: {}", output.stderr);
    }
    let sandbox = Sandbox::with("[models.base]\nsource = \"hf:datasets/acme/tiny\"\n");
    let output = sandbox.sami(&["check", "p.toml"]).exits(USAGE.into());
    assert!(output.stderr.contains("that is a dataset"), "{}", output.stderr);
}
