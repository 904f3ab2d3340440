use std::sync::{Mutex, PoisonError};

use super::*;
use crate::diag::Diagnostic;
use crate::exec::job::{Exit, RESULT, WORDS};
use crate::store::Usage;

/// An engine whose jobs are as a test says; it keeps what it was asked.
#[derive(Debug, Default)]
struct Fake {
    seen: Mutex<HashMap<String, Seen>>,
    asked: Mutex<Vec<String>>,
    busy: Mutex<u32>,
}

impl Fake {
    fn ask(&self, what: String) {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    fn asked(&self, word: &str) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|what| what.starts_with(word)).cloned().collect()
    }

    fn set(&self, job: &str, state: Standing) {
        let seen = Seen { state, host: Some("n1".into()), why: String::new() };
        self.seen.lock().unwrap().insert(job.to_owned(), seen);
    }
}

impl Engine for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn submit(&self, jobs: &[Submission]) -> Vec<Result<String, Refusal>> {
        self.ask(format!("submit {}", jobs.len()));
        let submit = |job: &Submission| {
            let mut busy = self.busy.lock().unwrap();
            if *busy > 0 {
                *busy -= 1;
                let finding = Diagnostic::error("cluster::quota", "no more jobs");
                return Err(Refusal { finding: Box::new(finding), passing: true });
            }
            let id = format!("job-{}", job.mark);
            self.set(&id, Standing::Waits);
            Ok(id)
        };
        jobs.iter().map(submit).collect()
    }

    fn poll(&self, jobs: &[&str]) -> Result<HashMap<String, Seen>, Refusal> {
        self.ask(format!("poll {}", jobs.len()));
        let seen = self.seen.lock().unwrap();
        Ok(jobs.iter().filter_map(|job| Some(((*job).to_owned(), seen.get(*job)?.clone()))).collect())
    }

    fn find(&self, marks: &[&str]) -> Result<HashMap<String, String>, Refusal> {
        let seen = self.seen.lock().unwrap();
        let known = |mark: &&&str| seen.contains_key(&format!("job-{mark}"));
        Ok(marks.iter().filter(known).map(|mark| ((*mark).to_owned(), format!("job-{mark}"))).collect())
    }

    fn cancel(&self, jobs: &[&str]) -> Result<(), Refusal> {
        self.ask(format!("cancel {}", jobs.join(" ")));
        jobs.iter().for_each(|job| self.set(job, Standing::Cancelled));
        Ok(())
    }

    fn look(&self, job: &str) -> String {
        format!("look {job}")
    }
}

/// A watcher over a fake engine, and attempts with a directory each.
struct Scene {
    engine: Arc<Fake>,
    watcher: Watcher,
    inbox: Receiver<Message>,
    folder: tempfile::TempDir,
}

impl Scene {
    fn new(lag: u64) -> Self {
        Self::on(tempfile::tempdir().unwrap(), lag)
    }

    /// In a directory that is a cache, or none.
    fn on(folder: tempfile::TempDir, lag: u64) -> Self {
        let engine = Arc::new(Fake::default());
        let (outbox, inbox) = channel();
        let rhythm = Rhythm { interval: Duration::from_millis(20), lag: Duration::from_millis(lag) };
        let watcher = Watcher::start(Arc::clone(&engine) as Arc<dyn Engine>, rhythm, outbox, folder.path()).unwrap();
        Self { engine, watcher, inbox, folder }
    }

    fn directory(&self, attempt: u64) -> PathBuf {
        let directory = self.folder.path().join(attempt.to_string());
        fs_err::create_dir_all(&directory).unwrap();
        directory
    }

    fn submit(&self, attempt: u64) {
        let directory = self.directory(attempt);
        let submission = Submission { mark: attempt.to_string(), directory, ..Submission::sample() };
        self.watcher.order(Order::Submit { attempt, submission: Box::new(submission), unsettled: Vec::new() });
    }

    fn leave(&self, attempt: u64, result: JobResult, told: Option<crate::exec::job::ToldBy>) {
        let exit = Exit {
            result,
            told,
            host: "n1".into(),
            seconds: 1.0,
            usage: Usage::default(),
            spent: crate::endpoint::Spent::default(),
        };
        fs::write_atomic(&self.directory(attempt).join(RESULT), &serde_json::to_vec(&exit).unwrap()).unwrap();
    }

    /// Messages until one is as wanted, which is the last one; panics if there is none for ten seconds.
    fn until(&self, mut wanted: impl FnMut(&Message) -> bool) -> Vec<Message> {
        let mut all = Vec::new();
        loop {
            let message = self.inbox.recv_timeout(Duration::from_secs(10));
            all.push(message.unwrap_or_else(|_| panic!("only {all:?}")));
            if all.last().is_some_and(&mut wanted) {
                return all;
            }
        }
    }

    fn fate(&self, of: u64) -> (Vec<Message>, Fate) {
        let is_over =
            |message: &Message| matches!(message, Message::Sight { attempt, sight: Sight::Over(_) } if *attempt == of);
        let mut all = self.until(is_over);
        let Some(Message::Sight { sight: Sight::Over(fate), .. }) = all.pop() else { panic!("{all:?}") };
        (all, *fate)
    }
}

fn submitted(message: &Message) -> bool {
    matches!(message, Message::Sight { sight: Sight::Submitted { .. }, .. })
}

#[test]
fn words_and_the_record_reach_the_scheduler_in_order() {
    let scene = Scene::new(10_000);
    scene.submit(1);
    scene.until(submitted);
    scene.engine.set("job-1", Standing::Runs);
    let words = scene.directory(1).join(WORDS);
    fs::append_unsynced(&words, b"{\"began\":{\"host\":\"n1\"}}\n\"last").unwrap();
    scene.until(|message| matches!(message, Message::Word { attempt: 1, word: Word::Began { .. } }));
    // A word may arrive in two parts.
    fs::append_unsynced(&words, b"\"\n").unwrap();
    scene.until(|message| matches!(message, Message::Word { attempt: 1, word: Word::Last }));
    scene.leave(1, JobResult::Interrupted, None);
    let (_, fate) = scene.fate(1);
    assert_eq!((fate.exit.unwrap().result, fate.seen), (JobResult::Interrupted, None), "no one had to be asked");
}

#[test]
fn all_jobs_are_polled_in_one_call_and_submitted_in_batches() {
    let scene = Scene::new(10_000);
    {
        // The engine takes its time over the first.
        let _busy = scene.engine.busy.lock().unwrap();
        (1..=50).for_each(|attempt| scene.submit(attempt));
    }
    let mut count = 0;
    scene.until(|message| {
        count += u32::from(submitted(message));
        count == 50
    });
    while !scene.engine.asked("poll").contains(&"poll 50".to_owned()) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(scene.engine.asked("submit").len() <= 2, "{:?}", scene.engine.asked("submit"));
}

#[test]
fn a_job_that_is_gone_has_the_time_that_a_file_may_take_to_be_seen() {
    let scene = Scene::new(600);
    scene.submit(1);
    scene.submit(2);
    let mut count = 0;
    scene.until(|message| {
        count += u32::from(submitted(message));
        count == 2
    });
    scene.engine.set("job-1", Standing::HostFailed);
    scene.engine.set("job-2", Standing::Ended(Some(0)));
    let began = Instant::now();
    std::thread::sleep(Duration::from_millis(300));
    scene.leave(2, JobResult::Interrupted, None);
    let (_, late) = scene.fate(2);
    assert_eq!(late.exit.map(|exit| exit.result), Some(JobResult::Interrupted), "it was seen late");
    let (_, lost) = scene.fate(1);
    assert!(began.elapsed() >= Duration::from_millis(600) && lost.exit.is_none());
    assert_eq!(lost.seen.map(|seen| seen.state), Some(Standing::HostFailed));
}

#[test]
fn an_attempt_that_was_told_to_stop_waits_for_what_its_job_came_to() {
    let scene = Scene::new(10_000);
    scene.submit(1);
    scene.until(submitted);
    scene.engine.set("job-1", Standing::Runs);
    scene.leave(1, JobResult::Interrupted, Some(crate::exec::job::ToldBy::Signal));
    std::thread::sleep(Duration::from_millis(400));
    scene.engine.set("job-1", Standing::Preempted);
    let (_, fate) = scene.fate(1);
    assert_eq!(fate.seen.map(|seen| seen.state), Some(Standing::Preempted));
}

#[test]
fn what_a_job_made_has_the_time_that_a_file_may_take_to_be_seen() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "made").unwrap();
    let files = BTreeMap::from([("out".to_owned(), file)]);
    let artifact = store.put_artifact("files", &files).unwrap();
    let object = store.files(&artifact).unwrap().remove("out").unwrap();
    let (scene, aside) = (Scene::on(folder, 1500), object.with_extension("aside"));
    let done = || JobResult::Done { artifact, metrics: serde_json::Map::new(), put: Vec::new(), unsettled: Vec::new() };
    for (attempt, unseen) in [(1, false), (2, true)] {
        fs::rename(&object, &aside).unwrap();
        scene.submit(attempt);
        scene.leave(attempt, done(), None);
        let began = Instant::now();
        if !unseen {
            std::thread::sleep(Duration::from_millis(400));
            fs::rename(&aside, &object).unwrap();
        }
        let (_, fate) = scene.fate(attempt);
        assert_eq!(fate.unseen, unseen);
        assert!(began.elapsed() >= Duration::from_millis(if unseen { 1500 } else { 400 }));
        assert_eq!(fate.exit.map(|exit| exit.result), Some(done()));
    }
}

#[test]
fn a_stop_cancels_what_waits_and_tells_what_runs() {
    let scene = Scene::new(50);
    scene.submit(1);
    scene.submit(2);
    let mut count = 0;
    scene.until(|message| {
        count += u32::from(submitted(message));
        count == 2
    });
    scene.engine.set("job-2", Standing::Runs);
    scene.until(|message| {
        matches!(message, Message::Sight { attempt: 2, sight: Sight::At(seen) } if seen.state == Standing::Runs)
    });
    scene.watcher.order(Order::Stop { attempt: 1 });
    scene.watcher.order(Order::Stop { attempt: 2 });
    let (_, fate) = scene.fate(1);
    assert_eq!(fate.seen.map(|seen| seen.state), Some(Standing::Cancelled));
    assert!(scene.directory(2).join(STOP_FILE).exists());
    assert_eq!(scene.engine.asked("cancel"), ["cancel job-1"]);
}

#[test]
fn a_job_is_found_by_its_mark_and_one_that_never_was_is_lost() {
    let scene = Scene::new(50);
    scene.engine.set("job-m", Standing::Runs);
    let adopt = |attempt: u64, mark: &str| {
        let directory = scene.directory(attempt);
        scene.watcher.order(Order::Adopt { attempt, directory, mark: mark.to_owned(), job: None });
    };
    adopt(1, "m");
    adopt(2, "never");
    let (_, fate) = scene.fate(2);
    assert_eq!(fate, Fate::default());
    scene.leave(1, JobResult::Interrupted, None);
    let (all, fate) = scene.fate(1);
    assert!(fate.exit.is_some(), "{all:?}");
}

#[test]
fn what_the_engine_cannot_take_just_now_is_submitted_again() {
    let scene = Scene::new(10_000);
    *scene.engine.busy.lock().unwrap() = 1;
    scene.submit(1);
    let all = scene.until(submitted);
    assert!(matches!(&all[0], Message::Sight { sight: Sight::Blind { .. }, .. }), "{all:?}");
}
