//! Kubernetes as `kubectl` sees it: jobs are created, listed and deleted by its protocol; their pods are processes of this
//! machine, and end as a test wants it. What a manifest says that is not known here is refused, as the real one refuses it.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde::Deserialize;
use serde_json::{Value, json};

use super::http::{Request, serve};

/// How much sooner than real ones the deadlines and periods of grace of this cluster end.
const HURRY: u32 = 30;

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Manifest {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: Metadata,
    spec: JobSpec,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(rename = "namespace")]
    _namespace: Option<String>,
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct JobSpec {
    backoff_limit: u32,
    #[serde(rename = "ttlSecondsAfterFinished")]
    _ttl: u32,
    active_deadline_seconds: Option<u32>,
    template: Template,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Template {
    metadata: Metadata,
    spec: PodSpec,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodSpec {
    restart_policy: String,
    termination_grace_period_seconds: u32,
    volumes: Vec<Volume>,
    containers: Vec<Container>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Volume {
    name: String,
    #[serde(rename = "persistentVolumeClaim")]
    _claim: Value,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Container {
    #[serde(rename = "name")]
    _name: String,
    #[serde(rename = "image")]
    _image: String,
    volume_mounts: Vec<Mount>,
    command: Vec<String>,
    resources: Resources,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Mount {
    name: String,
    #[serde(rename = "mountPath")]
    _path: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Resources {
    limits: BTreeMap<String, String>,
}

/// What befalls a pod.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fate {
    /// It has to go for another pod: it is told to end, and deleted.
    Preempted,
    /// Its node is short of something: it is told to end, and stays to be seen.
    Evicted,
    /// It takes more memory than its limit.
    OutOfMemory,
    /// Its node is gone, and it with it.
    NodeLost,
    /// The deadline of its job has passed: it is told to end, and deleted.
    Deadline,
}

#[derive(Debug)]
struct Job {
    manifest: Manifest,
    /// The process; `None` as long as there is no node for it.
    pid: Option<Pid>,
    /// Its exit code, 128 and more if it was a signal, once it has ended.
    code: Option<i32>,
    fate: Option<Fate>,
    /// When the pod was to be gone that is being deleted.
    gone: Option<jiff::Timestamp>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    jobs: BTreeMap<String, Job>,
    /// Whether it answers nothing but that it cannot.
    pub(crate) down: bool,
    /// Whether no node is free for new pods.
    pub(crate) full: bool,
    /// How often it was asked for all jobs.
    pub(crate) lists: usize,
}

/// The cluster; its pods end with it.
pub(crate) struct Kubernetes {
    state: Arc<Mutex<State>>,
    address: String,
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        let state = self.state();
        let goes_on = |job: &&Job| job.code.is_none();
        for pid in state.jobs.values().filter(goes_on).filter_map(|job| job.pid) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

impl Kubernetes {
    pub(crate) fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let address = serve(move |stream| answer(stream, &shared));
        Self { state, address }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panicked")
    }

    /// What `KUBECONFIG` is to name.
    pub(crate) fn config(&self) -> String {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {"server": self.address}}],
            "users": [{"name": "lab", "user": {}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab", "namespace": "lab"}}],
        })
        .to_string()
    }

    /// The names of all jobs whose mark ends so, and what their containers may take.
    pub(crate) fn jobs(&self, mark: &str) -> Vec<(String, BTreeMap<String, String>)> {
        let state = self.state();
        let of = |job: &Job| job.manifest.metadata.annotations["sami/mark"].ends_with(mark);
        let limits = |job: &Job| job.manifest.spec.template.spec.containers[0].resources.limits.clone();
        state.jobs.iter().filter(|(_, job)| of(job)).map(|(name, job)| (name.clone(), limits(job))).collect()
    }

    pub(crate) fn all_have_ended(&self) -> bool {
        self.state().jobs.values().all(|job| job.code.is_some())
    }

    /// Has something befall the pod of a job.
    pub(crate) fn befall(&self, name: &str, fate: Fate) {
        befall(&self.state, name, fate);
    }
}

fn befall(state: &Arc<Mutex<State>>, name: &str, fate: Fate) {
    let mut held = state.lock().expect("no thread panicked");
    let Some(job) = held.jobs.get_mut(name) else { return };
    let (Some(pid), None, None) = (job.pid, job.code, job.fate) else { return };
    job.fate = Some(fate);
    match fate {
        Fate::OutOfMemory | Fate::NodeLost => {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        Fate::Preempted | Fate::Evicted | Fate::Deadline => end(state, job, pid),
    }
}

/// Tells a pod to end, and ends it after its period of grace.
fn end(state: &Arc<Mutex<State>>, job: &mut Job, pid: Pid) {
    let grace = Duration::from_secs(job.manifest.spec.template.spec.termination_grace_period_seconds.into());
    job.gone = Some(jiff::Timestamp::now() + grace);
    // The first process of a container is told, and nobody else.
    let _ = kill_process(pid, Signal::TERM);
    let (state, name) = (Arc::clone(state), job.manifest.metadata.name.clone());
    std::thread::spawn(move || {
        std::thread::sleep(grace / HURRY);
        let held = state.lock().expect("no thread panicked");
        if held.jobs.get(&name).is_some_and(|job| job.code.is_none()) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    });
}

fn create(state: &Arc<Mutex<State>>, body: &[u8]) -> (u16, Value) {
    let manifest: Manifest = match serde_json::from_slice(body) {
        Ok(manifest) => manifest,
        Err(error) => return failure(400, "BadRequest", &format!("strict decoding error: {error}")),
    };
    let name = manifest.metadata.name.clone();
    let pod = &manifest.spec.template.spec;
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let quantity = |text: &String| text.trim_end_matches("Mi").parse::<u64>().is_ok();
    let mounted = |mount: &Mount| pod.volumes.iter().any(|volume| volume.name == mount.name);
    let sound = !name.is_empty()
        && name.len() <= 63
        && name.chars().all(is_plain)
        && pod.restart_policy == "Never"
        && manifest.spec.backoff_limit == 0
        && pod.containers.len() == 1
        && pod.containers[0].volume_mounts.iter().all(mounted)
        && pod.containers[0].resources.limits.values().all(quantity);
    if !sound {
        return failure(422, "Invalid", &format!("Job.batch \"{name}\" is invalid"));
    }
    let mut held = state.lock().expect("no thread panicked");
    if held.jobs.contains_key(&name) {
        return failure(409, "AlreadyExists", &format!("jobs.batch \"{name}\" already exists"));
    }
    let mut job = Job { manifest, pid: None, code: None, fate: None, gone: None };
    if !held.full {
        begin(state, &mut job);
    }
    let created = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}});
    held.jobs.insert(name, job);
    (201, created)
}

/// Starts a job's pod.
fn begin(state: &Arc<Mutex<State>>, job: &mut Job) {
    let command = &job.manifest.spec.template.spec.containers[0].command;
    let mut process = Command::new(&command[0]);
    process.args(&command[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    let mut child = super::sandbox::unsteered(&mut process).spawn().expect("it starts");
    job.pid = Some(Pid::from_child(&child));
    let (shared, name) = (Arc::clone(state), job.manifest.metadata.name.clone());
    std::thread::spawn(move || {
        let status = child.wait().expect("it ends");
        let code =
            status.code().unwrap_or_else(|| 128 + std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or(0));
        if let Some(job) = shared.lock().expect("no thread panicked").jobs.get_mut(&name) {
            job.code = Some(code);
        }
    });
    if let Some(deadline) = job.manifest.spec.active_deadline_seconds {
        let (shared, name) = (Arc::clone(state), job.manifest.metadata.name.clone());
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(deadline.into()) / HURRY);
            befall(&shared, &name, Fate::Deadline);
        });
    }
}

/// A job as it is shown.
fn shown(job: &Job) -> Value {
    let metadata = &job.manifest.metadata;
    let failed = |reason: &str| json!([{"type": "Failed", "status": "True", "reason": reason}]);
    let status = match (job.code, job.fate) {
        (_, Some(Fate::Deadline)) => json!({"conditions": failed("DeadlineExceeded")}),
        (None, _) => json!({"active": 1}),
        (Some(0), None) => json!({"succeeded": 1, "conditions": [{"type": "Complete", "status": "True"}]}),
        (Some(_), _) => json!({"failed": 1, "conditions": failed("BackoffLimitExceeded")}),
    };
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "status": status,
        "metadata": {"name": metadata.name, "labels": metadata.labels, "annotations": metadata.annotations},
    })
}

/// A job's pod as it is shown, if there is one.
fn pod(job: &Job) -> Option<Value> {
    let is_gone = matches!(job.fate, Some(Fate::Preempted | Fate::NodeLost | Fate::Deadline));
    if is_gone && job.code.is_some() {
        return None;
    }
    let mut labels = job.manifest.spec.template.metadata.labels.clone();
    labels.insert("job-name".to_owned(), job.manifest.metadata.name.clone());
    let mut metadata = json!({"name": format!("{}-x", job.manifest.metadata.name), "labels": labels});
    if let Some(gone) = job.gone {
        metadata["deletionTimestamp"] = json!(gone.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    }
    let container = |state: Value| json!([{"name": "sami", "state": state}]);
    let status = match (job.pid, job.code) {
        (None, _) => json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes are available:\nno GPU is free"},
        ]}),
        (Some(_), None) => json!({"phase": "Running", "containerStatuses": container(json!({"running": {}}))}),
        (Some(_), Some(0)) if job.fate.is_none() => json!({
            "phase": "Succeeded", "containerStatuses": container(json!({"terminated": {"exitCode": 0, "reason": "Completed"}})),
        }),
        (Some(_), Some(code)) => {
            let reason = if job.fate == Some(Fate::OutOfMemory) { "OOMKilled" } else { "Error" };
            let mut status = json!({
                "phase": "Failed", "containerStatuses": container(json!({"terminated": {"exitCode": code, "reason": reason}})),
            });
            if job.fate == Some(Fate::Evicted) {
                status["reason"] = json!("Evicted");
            }
            status
        }
    };
    let spec = if job.pid.is_some() { json!({"nodeName": "gpu-a"}) } else { json!({}) };
    Some(json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status}))
}

fn failure(code: u16, reason: &str, message: &str) -> (u16, Value) {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": message});
    (code, status)
}

/// Answers one request; `None` when the connection is over.
fn answer(mut stream: &TcpStream, state: &Arc<Mutex<State>>) -> Option<()> {
    let request = Request::read(stream)?;
    let list = |kind: &str, items: Vec<Value>| json!({"kind": kind, "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items});
    let resource = |name: &str, kind: &str| json!({"name": name, "namespaced": true, "kind": kind, "verbs": ["create", "delete", "get", "list"]});
    let version = json!({"groupVersion": "batch/v1", "version": "v1"});
    const JOBS: &str = "/apis/batch/v1/namespaces/lab/jobs";
    let down = state.lock().ok()?.down;
    let (status, body) = match (request.method.as_str(), request.path()) {
        _ if down => failure(503, "ServiceUnavailable", "the server is starting"),
        ("GET", "/version") => (200, json!({"major": "1", "minor": "31", "gitVersion": "v1.31.0"})),
        ("GET", "/api") => (200, json!({"kind": "APIVersions", "versions": ["v1"]})),
        ("GET", "/apis") => {
            let group = json!({"name": "batch", "versions": [version], "preferredVersion": version});
            (200, json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": [group]}))
        }
        ("GET", "/api/v1") => {
            (200, json!({"kind": "APIResourceList", "groupVersion": "v1", "resources": [resource("pods", "Pod")]}))
        }
        ("GET", "/apis/batch/v1") => (
            200,
            json!({"kind": "APIResourceList", "groupVersion": "batch/v1", "resources": [resource("jobs", "Job")]}),
        ),
        ("POST", JOBS) => create(state, &request.body),
        ("GET", JOBS) => {
            let mut held = state.lock().ok()?;
            held.lists += 1;
            (200, list("JobList", held.jobs.values().map(shown).collect()))
        }
        ("GET", "/api/v1/namespaces/lab/pods") => {
            (200, list("PodList", state.lock().ok()?.jobs.values().filter_map(pod).collect()))
        }
        ("DELETE", path) if path.starts_with(JOBS) => {
            let name = path.rsplit('/').next()?;
            let mut held = state.lock().ok()?;
            match held.jobs.remove(name) {
                Some(mut job) => {
                    if let (Some(pid), None) = (job.pid, job.code) {
                        end(state, &mut job, pid);
                    }
                    (200, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
                }
                None => failure(404, "NotFound", &format!("jobs.batch \"{name}\" not found")),
            }
        }
        // An empty document: `kubectl` leaves it to the server what a manifest may say.
        ("GET", "/openapi/v2") => {
            let head = "content-type: application/com.github.proto-openapi.spec.v2.v1.0+protobuf\r\ncontent-length: 0";
            return write!(stream, "HTTP/1.1 200 x\r\n{head}\r\n\r\n").ok();
        }
        (_, path) => failure(404, "NotFound", &format!("there is no {path}")),
    };
    let body = body.to_string();
    let head = format!("content-type: application/json\r\ncontent-length: {}", body.len());
    write!(stream, "HTTP/1.1 {status} x\r\n{head}\r\n\r\n{body}").ok()
}
