//! A remote cache in a directory: what one machine made is a hit on another, and nothing wrong ever gets in.

use std::path::{Path, PathBuf};

use super::sandbox::{Output, Sandbox};

/// Two nodes, one of them with a file that is fetched in ranges; `extra` goes into the first.
pub(crate) fn pipeline(extra: &str) -> String {
    format!(
        "schema = 1\nname = \"toy\"\n[nodes.a]\nkind = \"command\"\nprogram = \"sh\"\n\
         args = [\"-ec\", \"{extra}; head -c 20000000 /dev/zero | tr '\\\\0' x > big; echo a > out\"]\n\
         [nodes.b]\nkind = \"command\"\nprogram = \"sh\"\ninputs = {{ a = \"a\" }}\n\
         args = [\"-ec\", \"cat {{input.a}}/out > out; echo b >> out\"]\n"
    )
}

/// A project that shares by this `[remote]`.
pub(crate) fn project(pipeline: &str, remote: &str) -> Sandbox {
    let sandbox = Sandbox::with(pipeline);
    sandbox.write("sami.toml", &format!("[remote]\n{remote}\n"));
    sandbox
}

pub(crate) fn url(directory: &Path) -> String {
    format!("url = \"file://{}\"", directory.display())
}

/// The only file under a directory whose size is this.
fn sized(directory: &Path, size: u64) -> PathBuf {
    let mut open = vec![directory.to_owned()];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs_err::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if fs_err::metadata(&path).unwrap().len() == size {
            return path;
        }
    }
    panic!("no file of {size} bytes under {}", directory.display());
}

fn overwrite(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    use std::os::unix::fs::PermissionsExt;
    let mut bytes = fs_err::read(path).unwrap();
    change(&mut bytes);
    fs_err::set_permissions(path, PermissionsExt::from_mode(0o644)).unwrap();
    fs_err::write(path, bytes).unwrap();
}

#[track_caller]
fn moved(output: &Output, done: &str, figure: &str) -> u64 {
    output.json()[done][figure].as_u64().unwrap_or_else(|| panic!("no `{figure}` in {}", output.stdout))
}

const BIG: u64 = 20_000_000;

#[test]
fn what_one_machine_made_is_a_hit_on_another() {
    let shared = tempfile::tempdir().unwrap();
    let remote = url(&shared.path().join("remote"));
    let (here, there) = (project(&pipeline("true"), &remote), project(&pipeline("true"), &remote));
    assert!(there.sami(&["pull"]).exits(2).stderr.contains("there is no remote cache"));
    assert_eq!(here.run(&[], 0).ran, 2);
    let first = here.sami(&["push", "--json"]).exits(0);
    let figures = ["nodes", "known", "artifacts", "objects", "runs"].map(|figure| moved(&first, "pushed", figure));
    assert_eq!(figures, [2, 0, 2, 3, 1]);
    let second = here.sami(&["push", "--json"]).exits(0);
    assert_eq!([moved(&second, "pushed", "known"), moved(&second, "pushed", "bytes")], [2, 0]);
    let survey = here.sami(&["remote", "--verify"]).exits(0).stdout;
    assert!(survey.contains("every byte is as it should be") && survey.contains("second is refused"), "{survey}");

    let came = there.sami(&["pull", "--json"]).exits(0);
    assert_eq!(moved(&came, "pulled", "objects"), 3);
    let done = there.run(&[], 0);
    assert_eq!((done.ran, done.hits), (0, 2));
    there.verify();
    for folder in ["objects", "artifacts", "nodes"] {
        let files = here.files(&format!("cache/{folder}"));
        for path in &files {
            let name = path.strip_prefix(here.path("")).unwrap();
            assert_eq!(fs_err::read(path).unwrap(), fs_err::read(there.path(name)).unwrap(), "{}", name.display());
        }
        assert_eq!(files.len(), there.files(&format!("cache/{folder}")).len());
    }
    // Where there is a record there is a look at it.
    assert!(there.sami(&["cache", "show", "b"]).exits(0).stdout.contains("toy"));
}

#[test]
fn single_things_are_named_as_everywhere() {
    let shared = tempfile::tempdir().unwrap();
    let remote = url(shared.path());
    let here = project(&pipeline("true"), &remote);
    let done = here.run(&[], 0);
    let (key, artifact) = (done.nodes[1].key.clone().unwrap(), done.nodes[1].artifact.clone().unwrap());
    for what in ["b", "toy/b", &key, &key[..10], &artifact[..10]] {
        fs_err::remove_dir_all(shared.path()).unwrap();
        assert_eq!(moved(&here.sami(&["push", what, "--json"]).exits(0), "pushed", "nodes"), 1, "{what}");
        let there = project(&pipeline("true"), &remote);
        assert_eq!(moved(&there.sami(&["pull", what, "--json"]).exits(0), "pulled", "objects"), 1, "{what}");
        let nodes = there.files("cache/nodes").len();
        let by_artifact = what.len() == 10 && artifact.starts_with(what);
        assert_eq!(nodes, usize::from(!by_artifact), "{what}");
    }
    assert_eq!(moved(&here.sami(&["push", "toy", "--json"]).exits(0), "pushed", "nodes"), 1);
    let there = project(&pipeline("true"), &remote);
    let listed = there.sami(&["pull", "--list"]).exits(0).stdout;
    assert!(listed.contains("toy/a") && listed.contains("toy/b") && listed.contains(&key[..12]), "{listed}");
    assert_eq!(moved(&there.sami(&["pull", "--all", "--json"]).exits(0), "pulled", "nodes"), 2);
    for (command, id) in [("push", "cli::unknown"), ("pull", "remote::unknown")] {
        assert!(there.sami(&[command, "nothing"]).exits(2).stderr.contains(id));
    }
    here.write("sami.toml", "");
    assert!(here.sami(&["push"]).exits(2).stderr.contains("cli::no-remote"));
    let other = format!("file://{}", shared.path().join("other").display());
    here.sami(&["push", "--all", "--remote", &other]).exits(0);
    let nowhere = format!("file://{}", shared.path().join("no/such").display());
    assert!(here.sami(&["push", "--remote", &nowhere]).exits(1).stderr.contains("no directory is above"));
    fs_err::write(shared.path().join("other/remote.json"), "{\"format\": 7}").unwrap();
    assert!(here.sami(&["push", "--remote", &other]).exits(3).stderr.contains("remote::newer-format"));
}

#[test]
fn wrong_bytes_there_never_get_a_name_here() {
    let shared = tempfile::tempdir().unwrap();
    let remote = url(shared.path());
    let here = project(&pipeline("true"), &remote);
    here.run(&[], 0);
    here.sami(&["push"]).exits(0);
    let big = sized(&shared.path().join("objects"), BIG);
    type Change = fn(&mut Vec<u8>);
    let changes: [Change; 4] =
        [|bytes| bytes[12_345_678] ^= 1, |bytes| bytes.truncate(BIG as usize / 2), |bytes| bytes.push(0), Vec::clear];
    for change in changes {
        overwrite(&big, change);
        let there = project(&pipeline("true"), &remote);
        let told = there.sami(&["pull"]).exits(1).stderr;
        let name = big.file_name().unwrap().to_str().unwrap();
        assert!(told.contains(name) && told.contains("wrong bytes"), "{told}");
        // What hangs on it is not here; the rest is.
        assert_eq!((there.files("cache/objects").len(), there.files("cache/nodes").len()), (2, 1));
        there.verify();
        assert!(here.sami(&["remote", "--verify"]).exits(3).stdout.contains("damaged objects/"));
        // Who has it puts it right.
        here.sami(&["push", "--again"]).exits(0);
        here.sami(&["remote", "--verify"]).exits(0);
        there.sami(&["pull"]).exits(0);
        assert_eq!(there.run(&[], 0).ran, 0);
    }
    fs_err::remove_file(&big).unwrap();
    let there = project(&pipeline("true"), &remote);
    assert!(there.sami(&["pull"]).exits(1).stderr.contains("lacks `objects/"));
    assert!(there.sami(&["remote", "--verify"]).exits(3).stdout.contains("missing objects/"));
    let manifest = fs_err::read_dir(shared.path().join("artifacts")).unwrap().next().unwrap().unwrap().path();
    overwrite(
        &sized(
            &manifest,
            fs_err::metadata(fs_err::read_dir(&manifest).unwrap().next().unwrap().unwrap().path()).unwrap().len(),
        ),
        |bytes| bytes[3] ^= 1,
    );
    assert!(there.sami(&["pull", "--all"]).exits(1).stderr.contains("artifacts/"));
    there.verify();
}

#[test]
fn what_is_damaged_here_is_not_sent() {
    let shared = tempfile::tempdir().unwrap();
    let here = project(&pipeline("true"), &url(shared.path()));
    here.run(&[], 0);
    overwrite(&sized(&here.path("cache/objects"), BIG), |bytes| bytes[7] ^= 1);
    let told = here.sami(&["push"]).exits(1).stderr;
    assert!(told.contains("its bytes are not those of its name"), "{told}");
    let survey = here.sami(&["remote", "--verify", "--json"]).exits(0).json();
    assert_eq!(survey["survey"]["folders"][0]["files"], 2);
    assert_eq!(survey["survey"]["folders"][2]["files"], 1);
    assert_eq!(here.run(&[], 0).ran, 1);
    here.sami(&["push"]).exits(0);
    assert_eq!(here.sami(&["remote", "--verify", "--json"]).exits(0).json()["survey"]["folders"][2]["files"], 2);
}

#[test]
fn the_first_artifact_under_a_key_stays() {
    let shared = tempfile::tempdir().unwrap();
    let remote = url(shared.path());
    // The same key, other bytes each time.
    let text = pipeline("date +%s%N > when");
    let (here, there) = (project(&text, &remote), project(&text, &remote));
    let artifact = |sandbox: &Sandbox| sandbox.run(&[], 0).nodes[0].artifact.clone().unwrap();
    let (first, second) = (artifact(&here), artifact(&there));
    assert_ne!(first, second);
    here.sami(&["push"]).exits(0);
    let told = there.sami(&["push"]).exits(0).stderr;
    assert!(told.contains("cli::other-artifact") && told.contains(&first[..12]), "{told}");
    let told = there.sami(&["pull", "a"]).exits(0).stderr;
    assert!(told.contains(&format!("{} stays", &second[..12])), "{told}");
    assert_eq!(artifact(&there), second);
    let fresh = project(&text, &remote);
    fresh.sami(&["pull", "a"]).exits(0);
    assert_eq!(artifact(&fresh), first);
}

#[test]
fn a_transfer_that_was_killed_goes_on() {
    let shared = tempfile::tempdir().unwrap();
    let remote = url(shared.path());
    let here = project(&pipeline("true"), &remote);
    here.run(&[], 0);
    let killed = |sandbox: &Sandbox, command: &str, fault: &str| {
        let output = sandbox.command(&[command]).env("SAMI_FAULT", fault).output().unwrap();
        assert!(!output.status.success(), "{command} {fault}");
    };
    killed(&here, "push", "kill:send:1");
    assert!(!shared.path().join("nodes").exists(), "no record before its bytes");
    here.sami(&["push"]).exits(0);
    here.sami(&["remote", "--verify"]).exits(0);
    let there = project(&pipeline("true"), &remote);
    killed(&there, "pull", "kill:arrive:3");
    assert!(there.files("cache/nodes").is_empty());
    let waiting: u64 = there.files("cache/tmp/arriving").iter().map(|path| path.metadata().unwrap().len()).sum();
    assert!(waiting > 0);
    there.sami(&["pull"]).exits(0);
    assert_eq!(there.run(&[], 0).ran, 0);
    there.verify();
    // A beginning that is wrong is found out at the end, and what came is asked for again.
    let damaged = project(&pipeline("true"), &remote);
    killed(&damaged, "pull", "kill:arrive:3");
    let longest = damaged.files("cache/tmp/arriving").into_iter().max_by_key(|path| path.metadata().unwrap().len());
    overwrite(&longest.unwrap(), |bytes| bytes[0] ^= 1);
    damaged.sami(&["pull"]).exits(0);
    assert_eq!(damaged.files("cache/quarantine").len(), 1);
    assert_eq!(damaged.run(&[], 0).ran, 0);
}

/// A file of two tensors, the second of which holds `last`.
fn tensors(last: u8) -> Vec<u8> {
    const SIZE: usize = 1_500_000;
    let entry =
        |from: usize| format!("{{\"dtype\":\"U8\",\"shape\":[{SIZE}],\"data_offsets\":[{from},{}]}}", from + SIZE);
    let header = format!("{{\"a\":{},\"b\":{}}}", entry(0), entry(SIZE));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.extend((0..SIZE).map(|at| (at % 251) as u8));
    bytes.extend(std::iter::repeat_n(last, SIZE));
    bytes
}

#[test]
fn models_share_there_what_they_share_here() {
    let shared = tempfile::tempdir().unwrap();
    let remote = url(&shared.path().join("remote"));
    let mut text = "schema = 1\nname = \"toy\"\n".to_owned();
    for (node, last) in [("a", 1), ("b", 2)] {
        let file = shared.path().join(node);
        fs_err::write(&file, tensors(last)).unwrap();
        text += &format!(
            "[nodes.{node}]\nkind = \"command\"\nprogram = \"cp\"\nargs = [\"{}\", \"model.safetensors\"]\n",
            file.display()
        );
    }
    let thin = |sandbox: &Sandbox, args: &[&str], code| {
        let output = sandbox.command(args).env("SAMI_THIN", "1000000").output().unwrap();
        Output::from(output).exits(code)
    };
    let here = project(&text, &remote);
    thin(&here, &["run", "p.toml"], 0);
    let recipes = |sandbox: &Sandbox| {
        sandbox.files("cache/objects").iter().filter(|path| path.to_string_lossy().ends_with(".parts")).count()
    };
    assert_eq!(recipes(&here), 2);
    let sent = moved(&thin(&here, &["push", "--json"], 0), "pushed", "bytes");
    assert!((4_500_000..4_600_000).contains(&sent), "{sent} bytes");
    thin(&here, &["remote", "--verify"], 0);
    let there = project(&text, &remote);
    let came = moved(&thin(&there, &["pull", "--json"], 0), "pulled", "bytes");
    assert_eq!((came, recipes(&there)), (sent, 2));
    assert_eq!(there.run(&[], 0).ran, 0);
    there.verify();
    // A list of parts that is another's is found out.
    let lists: Vec<PathBuf> = {
        let all = here.files("cache/objects").into_iter().filter(|path| path.to_string_lossy().ends_with(".parts"));
        all.map(|path| {
            shared.path().join("remote/objects").join(path.strip_prefix(here.path("cache/objects")).unwrap())
        })
        .collect()
    };
    fs_err::copy(&lists[0], &lists[1]).unwrap();
    let wrong = project(&text, &remote);
    assert!(thin(&wrong, &["pull"], 1).stderr.contains("make up another file"));
    assert_eq!(wrong.files("cache/nodes").len(), 1);
    thin(&wrong, &["remote", "--verify"], 3);
    wrong.verify();
    // In an archive it is whole, and in pieces again where it comes to.
    thin(&here, &["cache", "export", "-o", "a.tar"], 0);
    let far = Sandbox::with(&text);
    thin(&far, &["cache", "import", here.path("a.tar").to_str().unwrap()], 0);
    assert_eq!((far.run(&[], 0).ran, recipes(&far)), (0, 2));
    far.verify();
}

#[test]
fn an_archive_carries_a_run() {
    let here = Sandbox::with(&pipeline("true"));
    here.run(&[], 0);
    for name in ["a.tar", "a.tar.zst", "a.tar.gz"] {
        here.sami(&["cache", "export", "-o", name]).exits(0);
        let there = Sandbox::with(&pipeline("true"));
        let file = here.path(name);
        let file = file.to_str().unwrap();
        assert!(there.sami(&["cache", "import", file, "--dry-run"]).exits(0).stdout.contains("is whole"));
        assert!(there.files("cache/nodes").is_empty());
        let told = there.sami(&["cache", "import", file, "--json"]).exits(0).json();
        assert_eq!((&told["imported"]["nodes"], &told["imported"]["runs"]), (&2.into(), &1.into()));
        assert_eq!(there.run(&[], 0).ran, 0);
        assert!(there.sami(&["runs"]).exits(0).stdout.lines().count() >= 2);
        there.verify();
    }
    assert!(here.sami(&["cache", "export", "-o", "a.zip"]).exits(2).stderr.contains("archive::name"));
    let cut = fs_err::read(here.path("a.tar")).unwrap();
    fs_err::write(here.path("cut.tar"), &cut[..cut.len() / 2]).unwrap();
    let there = Sandbox::with(&pipeline("true"));
    let told = there.sami(&["cache", "import", here.path("cut.tar").to_str().unwrap()]).exits(3).stderr;
    assert!(told.contains("archive::truncated") && told.contains("as it was"), "{told}");
    assert!(there.files("cache/objects").is_empty() && there.files("cache/tmp").is_empty());
    let told = there.sami(&["cache", "import", here.path("p.toml").to_str().unwrap()]).exits(2).stderr;
    assert!(told.contains("archive::not-ours"), "{told}");
}

#[test]
fn a_run_takes_and_gives_on_its_own() {
    let shared = tempfile::tempdir().unwrap();
    let remote = url(&shared.path().join("remote")) + "\npush = \"on-success\"\npull = true\n";
    let here = project(&pipeline("true"), &remote);
    assert_eq!(here.run(&[], 0).ran, 2);
    let there = project(&pipeline("true"), &remote);
    let done = there.run(&[], 0);
    assert_eq!((done.ran, done.hits), (0, 2));
    // What is damaged here comes from there.
    overwrite(&sized(&there.path("cache/objects"), BIG), |bytes| bytes[7] ^= 1);
    assert_eq!(there.run(&[], 0).ran, 0);
    there.verify();
    // Of what was asked for by name the middle stays away.
    let part = project(&pipeline("true"), &remote);
    assert_eq!(part.run(&["b"], 0).ran, 0);
    assert_eq!((part.files("cache/objects").len(), part.files("cache/nodes").len()), (1, 1));
    // A node below one that only this machine has to run is found while the run goes on.
    let text = pipeline("true").replace("[nodes.a]", "[nodes.x]\nkind = \"command\"\nprogram = \"sh\"\nargs = [\"-ec\", \"X > out\"]\n[nodes.y]\nkind = \"command\"\nprogram = \"sh\"\ninputs = { x = \"x\" }\nargs = [\"-ec\", \"cat {input.x}/out > out\"]\n[nodes.a]");
    let first = project(&text.replace("X >", "echo 1 >"), &remote);
    assert_eq!(first.run(&[], 0).ran, 2);
    let second = project(&text.replace("X >", "echo  1 >"), &remote);
    let done = second.run(&[], 0);
    let states: Vec<&str> = done.nodes.iter().map(|node| node.state.as_str()).collect();
    assert_eq!(states, ["ran", "hit", "hit", "hit"]);
    assert_eq!(second.run(&["--no-remote", "--force", "b"], 0).ran, 1);
}
