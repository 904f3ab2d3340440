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
    assert_eq!(fault("[remot]\n").help, ["a table with a similar name exists: `remote`"]);
    assert_eq!(fault("x = 1\n").help, ["the tables are `remote`"]);
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
