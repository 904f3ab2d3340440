//! Several ranks train as one does.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::spawn;

use super::super::device_sum::tests::{compiled, nccl};
use super::*;
use crate::collective::{Door, Meeting, TeamError, Token};

/// What a rank is to train.
#[derive(Clone)]
struct Task {
    settings: TrainSettings,
    examples: Vec<Example>,
    reference: bool,
    /// Where the checkpoint is that it begins with, if there is one.
    from: Option<PathBuf>,
    /// What each rank has to add up gradients with, or why it has nothing; `None`: that they go through the hosts is no question.
    nccl: fn(usize) -> Option<Result<Nccl, String>>,
}

impl Task {
    fn new(settings: TrainSettings, examples: Vec<Example>) -> Self {
        Self { settings, examples, reference: false, from: None, nccl: |_| None }
    }

    fn trainer(&self) -> Trainer {
        let reference = self.reference.then(|| Model::random(config(), 8, &Device::Cpu).expect("makes"));
        let mut trainer =
            Trainer::of_weights(config(), weights(), reference, self.examples.clone(), self.settings.clone())
                .expect("gets ready");
        if let Some(from) = &self.from {
            assert!(trainer.resume(from).expect("reads"));
        }
        trainer
    }

    /// What each of so many ranks comes to by `work`.
    fn on<T: Send + 'static>(
        &self,
        ranks: usize,
        work: impl Fn(Result<Trainer, LmError>) -> T + Send + Sync + 'static,
    ) -> Vec<T> {
        let door = Door::here(Token::draw().expect("random")).expect("listens");
        let work = Arc::new(work);
        let meeting = move |rank| Meeting::new(rank, ranks, "a test".to_owned());
        let others: Vec<_> = (1..ranks)
            .map(|rank| {
                let (task, rendezvous, work) = (self.clone(), door.rendezvous().clone(), Arc::clone(&work));
                spawn(move || {
                    let mut trainer = task.trainer();
                    let team = rendezvous.join(&meeting(rank)).expect("joins");
                    work(trainer.join_by(Some(team), (task.nccl)(rank)).map(|()| trainer))
                })
            })
            .collect();
        let mut trainer = self.trainer();
        let team = door.meet(&meeting(0), || Ok(())).expect("meets");
        let first = work(trainer.join_by(Some(team), (self.nccl)(0)).map(|()| trainer));
        std::iter::once(first).chain(others.into_iter().map(|other| other.join().expect("no panic"))).collect()
    }

    /// The records and the weights of each of so many ranks.
    fn trained(&self, ranks: usize) -> Vec<(Vec<StepRecord>, Vec<u8>)> {
        self.on(ranks, |trainer| {
            let mut trainer = run(trainer.expect("joins"));
            trainer.part().expect("all are done");
            (trainer.records().to_vec(), saved(&trainer))
        })
    }
}

/// How far the gradients of a step in parts are from those of one that is not, as a share of the largest.
fn apart(trainer: &Trainer) -> f32 {
    let indices = Order::new(trainer.examples.len(), trainer.settings.seed).batch(0, 6);
    let examples: Vec<&Example> = indices.iter().map(|index| &trainer.examples[*index]).collect();
    let totals = Totals::of(examples.iter().copied(), trainer.settings.form());
    let policy = &trainer.model().noisy(9);
    let work = Work { policy, indices: &indices, examples: &examples, totals, keep: Keep::Everything };
    let mut whole = trainer.passes(&work, 0..6).expect("computes").expect("is finite");
    let whole = std::mem::take(&mut whole.gradients).finish(&trainer.policy.parameters).expect("all there");
    let (_, parts) = Together::new(None).pass(trainer, &work).expect("computes").expect("is finite");
    let flat = |gradient: &Tensor| gradient.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).expect("f32");
    let (mut most, mut apart) = (0.0f32, 0.0f32);
    for (name, one) in &whole {
        for (one, other) in flat(one).iter().zip(flat(&parts[name])) {
            most = most.max(one.abs());
            apart = apart.max((one - other).abs());
        }
    }
    apart / most
}

#[test]
fn any_number_of_ranks_comes_to_the_same_bits_and_none_to_nearly_the_same() {
    let eight = OptimizerSettings { state_bits: 8, ..OptimizerSettings::new(OptimizerName::AdamW, 1e-3) };
    let lora = Some(LoraSettings { rank: 4, dropout: 0.2, ..LoraSettings::default() });
    let last = Accumulation { parts: 2, kept: Kept::Last };
    let dpo = settings(dpo::dpo(Directions::Both));
    let first = settings(dpo::dpo(Directions::First));
    let of = |mut settings: TrainSettings, examples| {
        // Adam makes large steps of gradients that are next to nothing: with this they are as small.
        settings.optimizer.eps = 1e-2;
        Task::new(TrainSettings { batch: 6, steps: 2, ..settings }, examples)
    };
    let rows = dpo::first_rows(queries(20, 2), 2);
    for (task, what) in [
        (of(settings(sami()), queries(7, 2)), "sami"),
        (of(TrainSettings { micro_batch: Some(3), ..settings(sami()) }, queries(7, 2)), "queries in pieces"),
        (of(TrainSettings { responses_each: 2, ..settings(sami()) }, several(7, 2, 2)), "several responses"),
        (of(TrainSettings { lora, kl_weight: 0.2, ..settings(sami()) }, queries(7, 2)), "adapters, dropout and KL"),
        (of(TrainSettings { kl_budget: Some(1e9), ..settings(sami()) }, queries(7, 2)), "a budget"),
        (of(TrainSettings { accumulation: last, ..settings(sami()) }, queries(7, 2)), "the last part"),
        (of(TrainSettings { optimizer: eight, ..settings(Objective::Likelihood) }, texts(7)), "likelihood"),
        (of(dpo, queries(40, 2)), "preferences"),
        (Task { reference: true, ..of(first, rows) }, "preferences of one row, anchored in another model"),
    ] {
        let plain = run(task.trainer());
        let mut alone = task.trainer();
        alone.join(None).expect("alone");
        let alone = run(alone);
        for ranks in 2..=4 {
            for (rank, (records, weights)) in task.trained(ranks).into_iter().enumerate() {
                assert_eq!(records, alone.records(), "{what}: rank {rank} of {ranks}");
                assert!(weights == saved(&alone), "{what}: rank {rank} of {ranks}");
            }
        }
        let mut fresh = task.trainer();
        while !fresh.prepare().expect("computes") {}
        let apart = apart(&fresh);
        assert!(apart < 2e-6, "{what}: {apart}");
        // What dropout leaves out of a row is a function of its bits: where one differs in the last place, all of it does.
        let noisy = task.settings.lora.as_ref().is_some_and(|lora| lora.dropout > 0.0);
        for (one, other) in plain.records().iter().zip(alone.records()).take(if noisy { 1 } else { 2 }) {
            assert!((one.loss - other.loss).abs() < 1e-4 * one.loss.abs(), "{what}: {one:?} {other:?}");
            assert_eq!((one.tokens, one.bound.is_some()), (other.tokens, other.bound.is_some()));
        }
    }
}

#[test]
fn what_ranks_have_begun_any_number_ends_to_the_same_bits() {
    let task = Task::new(TrainSettings { batch: 5, ..settings(sami()) }, queries(7, 2));
    let (records, weights) = task.trained(3).swap_remove(0);
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_owned();
    task.on(3, move |trainer| {
        let mut trainer = trainer.expect("joins");
        trainer.step().expect("steps");
        if trainer.rank() == 0 {
            trainer.checkpoint(&path).expect("writes");
        }
        trainer.part().expect("all are as far");
    });
    let begun = Task { from: Some(directory.path().to_owned()), ..task.clone() };
    for (again, bits) in begun.trained(2) {
        assert!(again == records && bits == weights);
    }
    // Without ranks it stays with the parts.
    let alone = run(begun.trainer());
    assert!(alone.records() == records && saved(&alone) == weights);
    // The other way it goes on, from what was not summed in parts.
    let mut first = task.trainer();
    first.step().expect("steps");
    first.checkpoint(directory.path()).expect("writes");
    assert!(begun.trained(2).iter().all(|(again, _)| again.len() == records.len()));
}

#[test]
fn a_loss_that_is_not_finite_is_the_same_error_on_every_rank() {
    let mut settings = settings(sami());
    settings.optimizer.lr = 1e30;
    let task = Task::new(settings, queries(7, 2));
    let errors = task.on(3, |trainer| {
        let mut trainer = trainer.expect("joins");
        let error = loop {
            if let Err(error) = trainer.step() {
                break error.to_string();
            }
        };
        trainer.part().expect("all have come as far");
        error
    });
    assert!(errors[0].contains("not finite") && errors[0].contains("query-"), "{errors:?}");
    assert!(errors.iter().all(|error| *error == errors[0]), "{errors:?}");
}

#[test]
fn a_rank_that_is_gone_ends_the_step_of_the_others() {
    let task = Task::new(settings(sami()), queries(7, 2));
    let errors = task.on(3, |trainer| {
        let mut trainer = trainer.expect("joins");
        if trainer.rank() == 1 {
            return trainer.step().err();
        }
        // It may be gone before what it said last is heard.
        (0..2).find_map(|_| trainer.step().err())
    });
    assert!(errors[0].is_some() && errors[2].is_some(), "{errors:?}");
    for error in errors.into_iter().flatten() {
        assert!(matches!(error, LmError::Team(TeamError::Lost { rank: 1, ranks: 3, .. })), "{error}");
    }
}

#[test]
fn ranks_of_other_runs_do_not_train_together() {
    let task = Task::new(settings(sami()), queries(7, 2));
    let door = Door::here(Token::draw().expect("random")).expect("listens");
    let rendezvous = door.rendezvous().clone();
    let other = Task { settings: TrainSettings { seed: 6, ..task.settings.clone() }, ..task.clone() };
    let other = spawn(move || {
        let mut trainer = other.trainer();
        let team = rendezvous.join(&Meeting::new(1, 2, String::new())).expect("joins");
        trainer.join(Some(team)).expect_err("another seed").to_string()
    });
    let team = door.meet(&Meeting::new(0, 2, String::new()), || Ok(())).expect("meets");
    let error = task.trainer().join(Some(team)).expect_err("another seed").to_string();
    assert!(error.contains("do not fit together: rank 1 is at [run "), "{error}");
    assert!(other.join().expect("no panic").contains("do not fit together"));
}

#[test]
fn rank_0_says_when_to_stop() {
    let task = Task::new(settings(sami()), queries(7, 2));
    let stops = task.on(2, |trainer| {
        let mut trainer = trainer.expect("joins");
        let told = [trainer.rank() == 1, trainer.rank() == 0];
        let heard = told.map(|stop| trainer.is_to_stop(stop).expect("both ask"));
        trainer.part().expect("both are done");
        heard
    });
    assert_eq!(stops, [[false, true]; 2]);
}

#[test]
fn gradients_that_are_added_up_on_devices_train_as_those_on_hosts_do() {
    let last = Accumulation { parts: 2, kept: Kept::Last };
    for (settings, what) in [
        (settings(sami()), "sami"),
        (
            TrainSettings { lora: Some(LoraSettings { rank: 4, ..LoraSettings::default() }), ..settings(sami()) },
            "adapters",
        ),
        // Three queries: a fourth rank has nothing to compute.
        (TrainSettings { accumulation: last, ..settings(sami()) }, "the last part"),
    ] {
        let mut settings = TrainSettings { batch: 6, steps: 3, ..settings };
        settings.optimizer.eps = 1e-2;
        let mut task = Task::new(settings, queries(7, 2));
        for ranks in 2..=4 {
            let through = |task: &Task| {
                task.on(ranks, |trainer| {
                    let mut trainer = run(trainer.expect("joins"));
                    trainer.part().expect("all are done");
                    (trainer.records().to_vec(), saved(&trainer), trainer.sent())
                })
            };
            task.nccl = |_| None;
            let hosts = through(&task);
            task.nccl = |_| Some(Ok(nccl()));
            let devices = through(&task);
            for (rank, (records, weights, _)) in devices.iter().enumerate() {
                assert!(*weights == devices[0].1, "{what}: rank {rank} of {ranks} has other weights than rank 0");
                for (one, other) in records.iter().zip(&hosts[rank].0) {
                    assert!((one.loss - other.loss).abs() < 1e-4 * one.loss.abs(), "{what}: {one:?} {other:?}");
                    let apart = (one.gradient_norm - other.gradient_norm).abs() / one.gradient_norm;
                    assert!(apart < 1e-4, "{what}: {one:?} {other:?}");
                    assert_eq!((one.tokens, one.bound.is_some()), (other.tokens, other.bound.is_some()));
                }
            }
        }
    }
}

#[test]
fn gradients_go_through_the_hosts_where_a_rank_has_no_nccl_or_cannot_use_it() {
    let mut task = Task::new(TrainSettings { batch: 6, steps: 2, ..settings(sami()) }, queries(7, 2));
    let hosts = task.trained(3);
    let ways = |task: &Task| {
        task.on(3, |trainer| {
            let mut trainer = trainer.expect("joins");
            let way = trainer.gradients_way().expect("there is a question").to_owned();
            let sent = trainer.sent();
            trainer.step().expect("steps");
            let sent = trainer.sent() - sent;
            trainer.part().expect("all are as far");
            (way, sent)
        })
    };
    let words = |task: &Task| ways(task).into_iter().map(|(way, _)| way).collect::<Vec<_>>();
    let numbers: usize = task.trainer().policy.parameters.values().map(|parameter| parameter.elem_count()).sum();
    task.nccl = |_| Some(Ok(nccl()));
    for (way, sent) in ways(&task) {
        assert_eq!(way, "gradients are added up on the GPUs, by NCCL 2.28.9");
        assert!(sent < numbers as u64, "no gradient is among {sent} bytes");
    }
    task.nccl = |_| Some(Err("it is off".to_owned()));
    assert_eq!(words(&task), ["gradients go through the memory of the hosts, not by NCCL: it is off"; 3]);
    task.nccl = |rank| Some(if rank == 1 { Err("it is not found".to_owned()) } else { Ok(nccl()) });
    assert_eq!(words(&task), ["gradients go through the memory of the hosts, not by NCCL: rank 1: it is not found"; 3]);
    assert!(task.trained(3) == hosts, "to the same bits as without the question");
    // Rank 2 finds that it cannot when the others already wait for it.
    task.nccl = |_| Some(Ok(compiled(&["-DREFUSES=2"])));
    for way in words(&task) {
        assert!(way.ends_with("not by NCCL: rank 2: NCCL says: unhandled system error; it has no way"), "{way}");
    }
    assert!(task.trained(3) == hosts);
}
