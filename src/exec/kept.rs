//! Workers that have nothing to do and wait for the next attempt: light ones, and such as keep a model's weights for it.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use super::ExecError;
use super::attempt::Start;
use super::job::Job;
use super::local::Worker;
use super::room::needs_weights;
use crate::digest::Digest;
use crate::pipeline::{Pipeline, Target};
use crate::store::StoreError;

/// Workers that take further attempts and have none.
#[derive(Debug, Default)]
pub(super) struct Idle {
    light: Vec<Worker>,
    kept: Vec<Keeper>,
}

/// A worker that keeps weights.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) worker: Worker,
    /// `cpu` or `cuda:N`: where the weights are.
    pub(super) device: String,
    /// The models, as the pipeline names them, and what they are.
    pub(super) models: Vec<(Target, Digest)>,
}

/// Which nodes use a model.
pub(super) type Users = HashMap<Target, Vec<usize>>;

/// The users of the models of a pipeline, of those nodes.
pub(super) fn users(pipeline: &Pipeline, nodes: impl Iterator<Item = usize>) -> Users {
    let mut users = Users::new();
    for node in nodes {
        for link in needs_weights(pipeline, &pipeline.nodes[node]) {
            let of_model = users.entry(link.target.clone()).or_default();
            // One may take a model twice.
            if of_model.last() != Some(&node) {
                of_model.push(node);
            }
        }
    }
    users
}

impl Idle {
    /// Gives a light job to a worker that is idle, or to a new one.
    pub(super) fn give(&mut self, start: &Start<'_>, mut job: Job) -> Result<Worker, ExecError> {
        loop {
            let known = self.light.pop();
            let waited = known.is_some();
            let mut worker = match known {
                Some(worker) => worker,
                None => {
                    let slot = start.store.tmp().join(format!("{}.{}", start.journal.run(), start.serial));
                    Worker::light(start.program, start.store.root(), &slot, start.inbox).map_err(ExecError::Spawn)?
                }
            };
            (job.scratch, job.staging) = worker.directories().unwrap_or_default();
            let mut line = serde_json::to_vec(&job).map_err(StoreError::from)?;
            line.push(b'\n');
            match worker.give(start.serial, &line) {
                Ok(()) => return Ok(worker),
                // It died while it had nothing to do, which is no one's loss.
                Err(error) if waited => {
                    tracing::debug!("an idle worker is gone: {error}");
                    worker.wait()?;
                }
                Err(error) => return Err(ExecError::Spawn(error)),
            }
        }
    }

    /// Gives the file of a job, which is the run's attempt of this number, to the worker of a device that has most of the weights of its
    /// models, if there is one; the latest of several.
    pub(super) fn go_on(
        &mut self,
        device: &str,
        models: &[(Target, Digest)],
        (serial, job): (u64, &Path),
    ) -> Result<Option<Worker>, ExecError> {
        while let Some(at) = self.best(device, models) {
            let mut worker = self.kept.remove(at).worker;
            let mut line = serde_json::to_vec(job).map_err(StoreError::from)?;
            line.push(b'\n');
            match worker.give(serial, &line) {
                Ok(()) => return Ok(Some(worker)),
                // As above.
                Err(error) => {
                    tracing::debug!("an idle worker is gone: {error}");
                    worker.wait()?;
                }
            }
        }
        Ok(None)
    }

    /// Where that worker is.
    fn best(&self, device: &str, models: &[(Target, Digest)]) -> Option<usize> {
        let has = |keeper: &Keeper| {
            let found = keeper.models.iter().filter(|(_, id)| models.iter().any(|(_, model)| model == id));
            if keeper.device == device { found.count() } else { 0 }
        };
        let found = self.kept.iter().map(has).enumerate().filter(|(_, found)| *found > 0);
        found.max_by_key(|(at, found)| (*found, *at)).map(|(at, _)| at)
    }

    /// Adds a light one whose attempt is over.
    pub(super) fn add(&mut self, worker: Worker) {
        self.light.push(worker);
    }

    /// Adds one that keeps weights.
    pub(super) fn keep(&mut self, keeper: Keeper) {
        self.kept.push(keeper);
    }

    /// Whether none keeps weights.
    pub(super) fn keeps_none(&self) -> bool {
        self.kept.is_empty()
    }

    /// The devices on which weights of these models are kept.
    pub(super) fn devices_of<'a>(&'a self, wanted: impl Fn(&Target) -> bool + 'a) -> impl Iterator<Item = &'a str> {
        let has = move |keeper: &&Keeper| keeper.models.iter().any(|(target, _)| wanted(target));
        self.kept.iter().filter(has).map(|keeper| keeper.device.as_str())
    }

    /// Ends those on a device, but for the one that an attempt takes that is about to start there with these models.
    pub(super) fn make_way(&mut self, device: &str, models: &[(Target, Digest)]) -> io::Result<()> {
        let taken = self.best(device, models);
        self.end_unless(|at, keeper| keeper.device != device || Some(at) == taken)
    }

    /// Ends those whose weights too few are waiting for; `waiting` says how many attempts want a model. The latest stay.
    pub(super) fn let_go(&mut self, waiting: impl Fn(&Target) -> usize) -> io::Result<()> {
        let mut left: HashMap<Target, usize> = HashMap::new();
        let mut stays = vec![false; self.kept.len()];
        for (at, keeper) in self.kept.iter().enumerate().rev() {
            for (target, _) in &keeper.models {
                let left = left.entry(target.clone()).or_insert_with(|| waiting(target));
                stays[at] |= *left > 0;
                *left = left.saturating_sub(1);
            }
        }
        self.end_unless(|at, _| stays[at])
    }

    fn end_unless(&mut self, stays: impl Fn(usize, &Keeper) -> bool) -> io::Result<()> {
        let (mut kept, mut ended) = (Vec::new(), Vec::new());
        for (at, keeper) in std::mem::take(&mut self.kept).into_iter().enumerate() {
            if stays(at, &keeper) { kept.push(keeper) } else { ended.push(keeper) }
        }
        self.kept = kept;
        // Their memory is free once this returns.
        ended.into_iter().try_for_each(|mut keeper| {
            tracing::debug!("an idle worker and its weights on {} are let go of", keeper.device);
            keeper.worker.wait().map(drop)
        })
    }

    /// Ends all.
    pub(super) fn end(&mut self) -> io::Result<()> {
        self.end_unless(|_, _| false)?;
        self.light.drain(..).try_for_each(|mut worker| worker.wait().map(drop))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    /// Keepers of models by their letters; their processes have nothing to say.
    fn idle(folder: &Path, keepers: &[(&str, &str)]) -> Idle {
        let mut idle = Idle::default();
        for (device, models) in keepers {
            let log = crate::fs::create(&folder.join("log")).unwrap();
            let worker = Worker::start(Path::new("/bin/true"), folder, log, 1, 0, &channel().0).unwrap();
            let names = models.chars().map(target);
            let models = names.zip(self::models(models)).map(|(name, (_, id))| (name, id)).collect();
            idle.keep(Keeper { worker, device: (*device).to_owned(), models });
        }
        idle
    }

    fn target(model: char) -> Target {
        Target::Model(model.to_string())
    }

    /// Models as attempts have them, by other names than those that keep them.
    fn models(models: &str) -> Vec<(Target, Digest)> {
        models.chars().map(|model| (Target::Node(7), Digest::of(model.to_string().as_bytes()))).collect()
    }

    /// Who is left: devices and models.
    fn left(idle: &Idle) -> Vec<String> {
        let models = |keeper: &Keeper| {
            let names = keeper.models.iter().filter_map(|(target, _)| match target {
                Target::Model(name) => Some(name.as_str()),
                _ => None,
            });
            names.collect::<String>()
        };
        idle.kept.iter().map(|keeper| format!("{} {}", keeper.device, models(keeper))).collect()
    }

    #[test]
    fn the_one_with_most_of_the_weights_is_taken_and_the_latest_of_such() {
        let folder = tempfile::tempdir().unwrap();
        let mut idle =
            idle(folder.path(), &[("cpu", "a"), ("cpu", "ab"), ("cuda:0", "ab"), ("cpu", "ab"), ("cpu", "b")]);
        assert_eq!(idle.best("cpu", &models("ab")), Some(3));
        assert_eq!(idle.best("cpu", &models("bc")), Some(4));
        assert_eq!(idle.best("cuda:0", &models("a")), Some(2));
        assert_eq!((idle.best("cuda:1", &models("a")), idle.best("cpu", &models("c"))), (None, None));
        assert_eq!(idle.devices_of(|model| *model == target('b')).collect::<Vec<_>>(), ["cpu", "cuda:0", "cpu", "cpu"]);
        idle.end().unwrap();
        assert!(idle.keeps_none());
    }

    #[test]
    fn an_attempt_has_a_device_to_itself_but_for_the_one_that_it_takes() {
        let folder = tempfile::tempdir().unwrap();
        let mut idle = idle(folder.path(), &[("cuda:0", "a"), ("cuda:1", "a"), ("cuda:0", "b"), ("cpu", "a")]);
        idle.make_way("cuda:0", &models("b")).unwrap();
        assert_eq!(left(&idle), ["cuda:1 a", "cuda:0 b", "cpu a"]);
        idle.make_way("cuda:1", &models("c")).unwrap();
        assert_eq!(left(&idle), ["cuda:0 b", "cpu a"]);
        idle.end().unwrap();
    }

    #[test]
    fn as_many_stay_as_attempts_wait() {
        let folder = tempfile::tempdir().unwrap();
        let keepers = [("cpu", "a"), ("cuda:0", "a"), ("cuda:1", "ab"), ("cuda:2", "c")];
        let mut idle = idle(folder.path(), &keepers);
        let waits = |a, b, c| {
            move |model: &Target| match model {
                Target::Model(name) if name == "a" => a,
                Target::Model(name) if name == "b" => b,
                _ => c,
            }
        };
        idle.let_go(waits(3, 1, 1)).unwrap();
        assert_eq!(left(&idle).len(), 4);
        idle.let_go(waits(2, 0, 0)).unwrap();
        assert_eq!(left(&idle), ["cuda:0 a", "cuda:1 ab"]);
        idle.let_go(waits(0, 5, 0)).unwrap();
        assert_eq!(left(&idle), ["cuda:1 ab"]);
        idle.let_go(waits(0, 0, 9)).unwrap();
        assert!(idle.keeps_none());
    }
}
