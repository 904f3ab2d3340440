//! A server on this machine that speaks as much of MLflow's API as is used, and fails when told to. What the real one takes and
//! shows, `trackers` asks the real one.

use std::io::Write;
use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::http::{Request, serve};

/// How it answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Manner {
    /// As it should.
    Well,
    /// So many requests get this status.
    Status(u16, usize),
    /// So many milliseconds late.
    Slow(u64),
    /// With a page of the web.
    Page,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) manner: Manner,
    pub(crate) experiments: Vec<String>,
    pub(crate) runs: Vec<Run>,
    /// Values of the header with credentials.
    pub(crate) credentials: Vec<String>,
    pub(crate) requests: usize,
}

/// A run there.
#[derive(Debug, Default)]
pub(crate) struct Run {
    pub(crate) name: String,
    pub(crate) status: String,
    pub(crate) tags: Vec<(String, String)>,
    pub(crate) params: Vec<(String, String)>,
    pub(crate) metrics: Vec<(String, u64, Value)>,
    /// When the first step of training arrived, and when the run was ended.
    pub(crate) first: Option<Instant>,
    pub(crate) ended: Option<Instant>,
}

impl Run {
    /// The steps of a metric, in the order in which they came.
    pub(crate) fn steps(&self, key: &str) -> Vec<u64> {
        self.metrics.iter().filter(|(found, ..)| found == key).map(|(_, step, _)| *step).collect()
    }
}

pub(crate) struct Server {
    state: Arc<Mutex<State>>,
    pub(crate) address: String,
}

impl Server {
    /// Serves until the process ends.
    pub(crate) fn start(manner: Manner) -> Self {
        let state = State { manner, experiments: Vec::new(), runs: Vec::new(), credentials: Vec::new(), requests: 0 };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        let address = serve(move |stream| answer(stream, &shared));
        Self { state, address }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panicked")
    }
}

/// Answers one request; `None` when the connection is over.
fn answer(stream: &TcpStream, state: &Mutex<State>) -> Option<()> {
    let request = Request::read(stream)?;
    let asked: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let manner = {
        let mut state = state.lock().expect("no thread panicked");
        state.requests += 1;
        state.credentials.extend(request.header("authorization").map(str::to_owned));
        let manner = state.manner;
        if let Manner::Status(status, times) = manner {
            state.manner = if times > 1 { Manner::Status(status, times - 1) } else { Manner::Well };
        }
        manner
    };
    let (status, text) = match manner {
        Manner::Status(status, _) => (status, json!({"error_code": "X", "message": "told to fail"}).to_string()),
        Manner::Page => (200, "<html>hello</html>".to_owned()),
        _ => {
            let (status, value) = carry_out(&request.target, &asked, &mut state.lock().expect("no thread panicked"));
            (status, value.to_string())
        }
    };
    if let Manner::Slow(milliseconds) = manner {
        std::thread::sleep(Duration::from_millis(milliseconds));
    }
    let mut stream = stream;
    write!(stream, "HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n{text}", text.len()).ok()
}

fn carry_out(target: &str, asked: &Value, state: &mut State) -> (u16, Value) {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let parameter = query.split_once('=').map(|(_, value)| value).unwrap_or_default();
    let absent = (404, json!({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such thing"}));
    let id = asked["run_id"].as_str().unwrap_or(parameter).to_owned();
    match path.strip_prefix("/api/2.0/mlflow/").unwrap_or_default() {
        "experiments/get-by-name" => match state.experiments.iter().position(|name| name == parameter) {
            Some(at) => (200, json!({"experiment": {"experiment_id": at.to_string(), "lifecycle_stage": "active"}})),
            None => absent,
        },
        "experiments/create" => {
            state.experiments.push(asked["name"].as_str().expect("a name").to_owned());
            (200, json!({"experiment_id": (state.experiments.len() - 1).to_string()}))
        }
        "runs/create" => {
            let name = asked["run_name"].as_str().expect("a name").to_owned();
            let text = |tag: &Value, name: &str| tag[name].as_str().expect("a text").to_owned();
            let tags = asked["tags"].as_array().into_iter().flatten();
            let tags = tags.map(|tag| (text(tag, "key"), text(tag, "value"))).collect();
            state.runs.push(Run { name, status: "RUNNING".to_owned(), tags, ..Run::default() });
            (200, json!({"run": {"info": {"run_id": (state.runs.len() - 1).to_string()}}}))
        }
        "runs/search" => {
            let filter = asked["filter"].as_str().expect("a filter");
            let (tag, wanted) = filter.split_once(" LIKE ").expect("what is spoken here");
            let (tag, wanted) = (tag.trim_start_matches("tags.").trim_matches('`'), wanted.trim_matches(['\'', '%']));
            let has = |run: &Run| run.tags.iter().any(|(key, value)| key == tag && value.contains(wanted));
            let found = state.runs.iter().enumerate().filter(|(_, run)| has(run));
            let runs: Vec<Value> = found.map(|(at, _)| json!({"info": {"run_id": at.to_string()}})).collect();
            (200, json!({"runs": runs}))
        }
        path => {
            let Some(run) = id.parse().ok().and_then(|at: usize| state.runs.get_mut(at)) else { return absent };
            match path {
                "runs/get" => {
                    let mut latest = std::collections::BTreeMap::new();
                    for (key, step, value) in &run.metrics {
                        latest.insert(key.clone(), json!({"key": key, "step": step, "value": value}));
                    }
                    let info = json!({"experiment_id": "0", "lifecycle_stage": "active"});
                    let tags = run.tags.iter().map(|(key, value)| json!({"key": key, "value": value}));
                    let (tags, metrics) = (tags.collect::<Vec<_>>(), latest.into_values().collect::<Vec<_>>());
                    (200, json!({"run": {"info": info, "data": {"metrics": metrics, "tags": tags}}}))
                }
                "runs/update" => {
                    asked["status"].as_str().expect("a status").clone_into(&mut run.status);
                    run.ended = asked.get("end_time").map(|_| Instant::now());
                    (200, json!({}))
                }
                "runs/set-tag" => {
                    let (key, value) =
                        (asked["key"].as_str().expect("a key"), asked["value"].as_str().expect("a value"));
                    run.tags.retain(|(known, _)| known != key);
                    run.tags.push((key.to_owned(), value.to_owned()));
                    (200, json!({}))
                }
                "runs/log-batch" => {
                    for param in asked["params"].as_array().into_iter().flatten() {
                        let text = |name: &str| param[name].as_str().expect("a text").to_owned();
                        run.params.push((text("key"), text("value")));
                    }
                    for metric in asked["metrics"].as_array().into_iter().flatten() {
                        let key = metric["key"].as_str().expect("a key").to_owned();
                        if key.starts_with("train/") {
                            run.first.get_or_insert_with(Instant::now);
                        }
                        run.metrics.push((key, metric["step"].as_u64().expect("a step"), metric["value"].clone()));
                    }
                    (200, json!({}))
                }
                _ => absent,
            }
        }
    }
}
