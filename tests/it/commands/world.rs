//! Where the commands of a page are run: a project in a temporary directory, as a reader has it before him.
//!
//! | world | |
//! |---|---|
//! | `empty` | nothing but `sami` |
//! | `small` | `pipelines/tldr.toml` of `fixtures/docs`, run twice with another learning rate |
//! | `pipelines` | the project's own `pipelines/`, nothing run |
//! | `quickstart` | the same, with the cache of a finished quickstart: the slow tier's |

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use crate::docs::root;
use crate::sandbox::{Sandbox, unsteered};

/// No command of a page takes longer, or is interrupted by then.
const MOST_TIME: Duration = Duration::from_secs(600);

/// A project, and a home beside it that has nothing in it.
pub(crate) struct World {
    folder: tempfile::TempDir,
}

/// How commands ended, and what they said on both of their streams.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) text: String,
}

/// Copies a tree, without what vanishes meanwhile.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs_err::create_dir_all(to).expect("a directory");
    for entry in fs_err::read_dir(from).expect("a directory").flatten() {
        let to = to.join(entry.file_name());
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => copy(&entry.path(), &to),
            Ok(_) => _ = fs_err::copy(entry.path(), to),
            Err(_) => {}
        }
    }
}

/// The small world is run once and copied.
static SMALL: LazyLock<World> = LazyLock::new(|| {
    let world = World::empty();
    copy(&root().join("tests/it/fixtures/docs"), &world.project());
    // The earlier run is of another second, for runs are named by it.
    for commands in ["sami run pipelines/tldr.toml --set lr=2e-3", "sleep 1.1; sami run pipelines/tldr.toml"] {
        let said = world.run(commands, None);
        assert_eq!(said.code, Some(0), "{}", said.text);
    }
    world
});

/// The cache of a finished quickstart: what `.ci/run` has computed, or what is computed now.
pub(crate) fn quickstart_cache() -> PathBuf {
    static CACHE: LazyLock<PathBuf> = LazyLock::new(|| {
        let cache = root().join("target/ci-cache");
        let mut command = Sandbox::new().command(&["run", "pipelines/quickstart.toml", "--cache"]);
        let output = command.arg(&cache).current_dir(root()).output().expect("it starts");
        assert!(output.status.success(), "{output:?}");
        cache
    });
    CACHE.clone()
}

impl World {
    /// The world of a name.
    pub(crate) fn new(name: &str) -> Self {
        let world = Self::empty();
        match name {
            "empty" => {}
            "small" => copy(&SMALL.project(), &world.project()),
            "pipelines" => copy(&root().join("pipelines"), &world.path("pipelines")),
            "quickstart" => {
                copy(&root().join("pipelines"), &world.path("pipelines"));
                copy(&quickstart_cache(), &world.path("cache"));
            }
            other => panic!("there is no world `{other}`"),
        }
        world
    }

    fn empty() -> Self {
        let world = Self { folder: tempfile::tempdir().expect("a temporary directory") };
        for directory in ["project", "home", "bin"] {
            fs_err::create_dir(world.folder.path().join(directory)).expect("a directory");
        }
        fs_err::write(world.path("sami.toml"), "").expect("writes");
        // `cargo run --release -- …` of a reader who has the sources is `sami …` here.
        let cargo = "#!/bin/sh\n[ \"$1 $2 $3\" = \"run --release --\" ] || { echo \"no cargo here: $*\"; exit 1; }\nshift 3\nexec sami \"$@\"\n";
        let bin = world.folder.path().join("bin");
        fs_err::write(bin.join("cargo"), cargo).expect("writes");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs_err::set_permissions(bin.join("cargo"), mode).expect("it is ours");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_sami"), bin.join("sami")).expect("a link");
        world
    }

    fn project(&self) -> PathBuf {
        self.path("")
    }

    /// A file of the project.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("project").join(name)
    }

    /// Runs commands to their end, or until they have said a text.
    pub(crate) fn run(&self, commands: &str, until: Option<&str>) -> Said {
        let mut command = Command::new("sh");
        command
            .args(["-euc", &format!("exec 2>&1\nPATH=\"$SAMI_BIN:$PATH\"\n{commands}")])
            .current_dir(self.project())
            .process_group(0);
        unsteered(&mut command);
        let (bin, home) = (self.folder.path().join("bin"), self.folder.path().join("home"));
        command.env("SAMI_BIN", bin).env("HOME", home).env("COLUMNS", "120");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("there is a `sh`");
        let text = Arc::new(Mutex::new(Vec::new()));
        let reader = std::thread::spawn({
            let (mut pipe, text) = (child.stdout.take().expect("it is piped"), Arc::clone(&text));
            move || {
                let mut buffer = [0; 8192];
                while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                    text.lock().expect("nobody panics").extend_from_slice(&buffer[..count]);
                }
            }
        });
        let said = || String::from_utf8_lossy(&text.lock().expect("nobody panics")).into_owned();
        let code = wait(&mut child, || until.is_some_and(|until| said().contains(until)));
        reader.join().expect("it reads");
        Said { code, text: said() }
    }
}

/// Waits for an end; interrupts once `enough` is true, as Ctrl-C does, and kills what takes too long.
fn wait(child: &mut Child, enough: impl Fn() -> bool) -> Option<i32> {
    let start = Instant::now();
    let group = rustix::process::Pid::from_child(child);
    let mut signalled = false;
    loop {
        if let Some(status) = child.try_wait().expect("it is ours") {
            // Nothing that it started outlives it.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            return status.code();
        }
        if !signalled && enough() {
            signalled = true;
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::INT);
        }
        if start.elapsed() > MOST_TIME {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
