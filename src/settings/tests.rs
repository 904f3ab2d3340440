use std::path::Path;
use std::time::Duration;

use super::*;

fn parse(text: &str) -> Result<Settings, Vec<Diagnostic>> {
    Settings::parse("sami.toml", text)
}

fn remote(text: &str) -> RemoteSettings {
    parse(text).unwrap_or_else(|faults| panic!("{faults:#?}")).remote.expect("a remote")
}

/// The only fault of a text.
fn fault(text: &str) -> Diagnostic {
    let mut faults = parse(text).expect_err("it is wrong");
    assert_eq!(faults.len(), 1, "{faults:#?}");
    faults.remove(0)
}

#[test]
fn a_remote_is_read_with_its_defaults() {
    assert_eq!(parse(""), Ok(Settings::default()));
    let plain = remote("[remote]\nurl = \"s3://lab/sami/cache/\"\n");
    assert_eq!(plain.place, Place::S3 { bucket: "lab".into(), prefix: "sami/cache".into() });
    assert_eq!((plain.push, plain.pull, plain.concurrency, plain.allow_http), (Push::Never, false, 16, false));
    let all = remote(
        "remote = { url = \"s3://lab\", push = \"on-success\", pull = true, endpoint = \"http://localhost:9000\", \
         region = \"here\", allow_http = true, anonymous = true, concurrency = 4, timeout = 3 }",
    );
    assert_eq!((all.push, all.pull, all.concurrency), (Push::OnSuccess, true, 4));
    assert_eq!((all.endpoint.as_deref(), all.region.as_deref()), (Some("http://localhost:9000"), Some("here")));
    assert_eq!((all.timeout, all.anonymous), (Duration::from_secs(3), true));
    let place = |url: &str| parse_url(url, false).unwrap();
    assert_eq!(place("file:///a%20b/c"), Place::Directory("/a b/c".into()));
    assert_eq!(place("gs://lab/x"), Place::Gs { bucket: "lab".into(), prefix: "x".into() });
    assert_eq!(place("https://lab.org/cache/"), Place::Http("https://lab.org/cache".into()));
}

#[test]
fn what_is_unknown_or_of_the_wrong_kind_is_said_with_its_place() {
    let unknown = fault("[remote]\nurl = \"s3://lab\"\npul = true\n");
    assert_eq!(unknown.id, "settings::unknown-key");
    assert_eq!(unknown.labels[0].source.position(unknown.labels[0].span.start), (3, 1));
    assert_eq!(unknown.help, ["a key with a similar name exists: `pull`"]);
    assert_eq!(fault("[remot]\n").help, ["one with a similar name exists: `remote`"]);
    assert_eq!(fault("x = 1\n").help, ["there are `mlflow`, `profiles`, `remote`, `tensorboard`"]);
    assert_eq!(fault("remote = 1\n").id, "settings::value");
    assert_eq!(fault("[remote]\n").id, "settings::missing-key");
    assert_eq!(fault("[remote\n").id, "settings::syntax");
    let with = |line: &str| fault(&format!("[remote]\nurl = \"s3://lab\"\n{line}\n"));
    assert_eq!(with("push = \"on-sucess\"").help, ["did you mean \"on-success\"?"]);
    for line in
        ["push = true", "pull = \"yes\"", "concurrency = 0", "concurrency = 1.5", "timeout = -1", "region = \"\""]
    {
        assert_eq!(with(line).id, "settings::value", "{line}");
    }
    assert_eq!(with("endpoint = \"http://localhost\"").id, "settings::url");
    assert_eq!(with("endpoint = \"localhost\"").id, "settings::url");
    let several = parse("[remote]\nurl = \"s3://lab\"\npush = 1\npull = 1\nx = 1\n").unwrap_err();
    assert_eq!(several.len(), 3, "{several:#?}");
}

#[test]
fn urls_that_mean_nothing_are_refused_with_what_to_write() {
    let url = |url: &str| fault(&format!("[remote]\nurl = \"{url}\"\n"));
    for (text, help) in [
        ("lab/cache", "write `s3://`"),
        ("s3:///x", "write `s3://BUCKET/PREFIX`"),
        ("s4://lab", "did you mean `s3:`?"),
        ("ftp://lab", "write `s3://`"),
        ("file://lab/x", "write `file:///DIRECTORY`"),
        ("file:///", "write `file:///DIRECTORY`"),
        ("http://lab", "write `https://`"),
        ("s3://lab:9000/x", "name the server with `endpoint"),
    ] {
        let found = url(text);
        assert_eq!(found.id, "settings::url", "{text}");
        assert!(found.help[0].starts_with(help), "{text}: {:?}", found.help);
    }
    assert_eq!(fault("[remote]\nurl = \"https://lab\"\npush = \"on-success\"\n").id, "settings::value");
    let unsigned = fault("[remote]\nurl = \"gs://lab\"\nanonymous = true\npush = \"on-success\"\n");
    assert!(unsigned.title.contains("read and not written"), "{unsigned:?}");
    assert_eq!(fault("[remote]\nurl = \"gs://lab\"\nendpoint = \"https://x\"\n").id, "settings::value");
}

#[test]
fn secrets_are_refused_and_never_shown() {
    for text in [
        "[remote]\nurl = \"https://me:hunter2@lab/x\"\n",
        "[remote]\nurl = \"s3://lab/x?X-Amz-Signature=hunter2\"\n",
        "[remote]\nurl = \"s3://lab\"\nendpoint = \"https://hunter2@lab\"\n",
        "[remote]\nurl = \"s3://lab\"\nsecret_access_key = \"hunter2\"\n",
        "[remote]\nurl = \"s3://lab\"\nAWS_SESSION_TOKEN = \"hunter2\"\n",
        "remote = { url = \"s3://lab\", password = \"hunter2\" }\n",
    ] {
        let found = fault(text);
        assert_eq!(found.id, "settings::secret", "{text}");
        assert!(!format!("{found:?}").contains("hunter2"), "{found:?}");
    }
    // What is unknown may be one all the same.
    let unknown = parse("[remotes]\nkey = \"hunter2\"\n").unwrap_err();
    assert!(!format!("{unknown:?}").contains("hunter2"), "{unknown:?}");
}

#[test]
fn files_that_cannot_be_read_are_said_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sami.toml");
    assert_eq!(Settings::read(&path), Ok(Settings::default()));
    assert_eq!(Settings::read(folder.path()).unwrap_err()[0].id, "settings::unreadable");
    fs_err::write(&path, b"\xff").unwrap();
    assert_eq!(Settings::read(&path).unwrap_err()[0].notes, ["it is not UTF-8"]);
    fs_err::write(&path, vec![b'#'; 2 << 20]).unwrap();
    assert_eq!(Settings::read(&path).unwrap_err()[0].notes, ["it is larger than 1 MiB"]);
    assert_eq!(Settings::read(Path::new("/no/such/sami.toml")), Ok(Settings::default()));
}

#[test]
fn trackers_are_named_on_a_line_each() {
    let both = parse("tensorboard = true\nmlflow = \"http://localhost:5000/\"\n").unwrap();
    assert_eq!(both.tensorboard, Some(TensorboardSettings { directory: None }));
    let mlflow = both.mlflow.unwrap();
    assert_eq!((mlflow.url.as_str(), mlflow.experiment, mlflow.timeout.as_secs()), ("http://localhost:5000", None, 10));
    assert_eq!(parse("tensorboard = false\n").unwrap().tensorboard, None);
    let elsewhere = parse("tensorboard = \"/shared/tb\"\n").unwrap().tensorboard.unwrap();
    assert_eq!(elsewhere.directory.as_deref(), Some(Path::new("/shared/tb")));
    let table =
        parse("[mlflow]\nurl = \"http://tracking.lab/mlflow\"\nallow_http = true\nexperiment = \"e\"\ntimeout = 3\n");
    let table = table.unwrap().mlflow.unwrap();
    assert_eq!((table.url.as_str(), table.experiment.as_deref()), ("http://tracking.lab/mlflow", Some("e")));
    assert_eq!(table.timeout, Duration::from_secs(3));
    for url in ["http://127.0.0.1:5000", "http://[::1]:5000", "https://mlflow.lab.org/path"] {
        assert!(parse(&format!("mlflow = \"{url}\"\n")).unwrap().mlflow.is_some(), "{url}");
    }
}

#[test]
fn trackers_that_cannot_be_are_refused_with_what_to_write() {
    for (text, id, help) in [
        ("tensorboard = 1\n", "settings::value", "write `tensorboard = true`"),
        ("[tensorboard]\n", "settings::value", "write `tensorboard = true`"),
        ("mlflow = true\n", "settings::value", "write `mlflow = "),
        ("mlflow = \"\"\n", "settings::value", "put text between quotes"),
        ("[mlflow]\n", "settings::missing-key", "name the server"),
        ("mlflow = \"localhost:5000\"\n", "settings::url", "write `http://localhost:5000`"),
        ("mlflow = \"sqlite:///m.db\"\n", "settings::url", "write `http://localhost:5000`"),
        ("mlflow = \"mlflow\"\n", "settings::url", "write `http://localhost:5000`"),
        ("mlflow = \"http://mlflow.lab.org\"\n", "settings::url", "write `https://`"),
        ("mlflow = \"https://\"\n", "settings::url", "write `http://localhost:5000`"),
        ("[mlflow]\nurl = \"https://h\"\ntimeout = 0\n", "settings::value", "give such a number"),
        ("[mlflow]\nurl = \"https://h\"\nexperimint = \"x\"\n", "settings::unknown-key", "a key with a similar name"),
        ("mlflow = \"https://me:hunter2@h\"\n", "settings::secret", "leave it out"),
        ("mlflow = \"https://h?token=hunter2\"\n", "settings::secret", "leave it out"),
        (
            "[mlflow]\nurl = \"https://h\"\ntoken = \"hunter2\"\n",
            "settings::secret",
            "set it in the environment (`MLFLOW_",
        ),
        ("mflow = \"https://h\"\n", "settings::unknown-key", "one with a similar name exists: `mlflow`"),
    ] {
        let found = fault(text);
        assert_eq!(found.id, id, "{text}: {found:?}");
        assert!(found.help[0].starts_with(help), "{text}: {:?}", found.help);
        assert!(!format!("{found:?}").contains("hunter2"), "{found:?}");
    }
}

#[test]
fn a_wrong_value_is_not_called_a_missing_one() {
    for (text, ids) in [
        ("[remote]\nurl = 1\n", &["settings::value"][..]),
        ("[mlflow]\nurl = 1\n", &["settings::value"]),
        ("[mlflow]\nallow_http = \"x\"\n", &["settings::missing-key", "settings::value"]),
    ] {
        let faults = parse(text).expect_err("it is wrong");
        let found: Vec<&str> = faults.iter().map(|fault| fault.id).collect();
        assert_eq!(found, ids, "{text}");
    }
}
