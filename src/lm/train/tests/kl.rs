//! KL to the reference: in the loss, on the probes, and as an end.

use super::*;

#[test]
fn kl_starts_at_nothing_is_in_the_loss_and_holds_the_model() {
    let examples = queries(6, 2);
    let last = |kl_weight| {
        let settings = TrainSettings { kl_weight, kl_budget: Some(1e9), steps: 25, ..settings(sami()) };
        let records = run(trainer(&settings, &examples)).records;
        assert!(records[0].kl.is_some_and(|kl| kl.abs() < 1e-6), "policy and reference are one at first");
        let last = records.last().expect("there");
        (last.kl.expect("measured"), last.probe_kl.expect("measured"))
    };
    let (free, held) = (last(0.0), last(3.0));
    assert!(free.0 > 0.01 && held.0 < 0.5 * free.0 && held.1 < 0.5 * free.1, "{free:?} {held:?}");

    let settings = TrainSettings { kl_weight: 0.7, kl_over: KlOver::Diagonal, ..settings(sami()) };
    for record in run(trainer(&settings, &examples)).records {
        let wanted = record.objective + 0.7 * record.kl.expect("measured");
        assert!((record.loss - wanted).abs() < 1e-12, "{record:?}");
    }
}

#[test]
fn training_ends_with_its_kl_budget() {
    let (budget, examples) = (0.02, queries(6, 2));
    let settings = TrainSettings { kl_budget: Some(budget), steps: 500, ..settings(sami()) };
    let mut spent = run(trainer(&settings, &examples));
    let kl: Vec<f64> = spent.records().iter().filter_map(|record| record.probe_kl).collect();
    let (last, before) = kl.split_last().expect("a step");
    assert!(*last > budget && before.iter().all(|kl| *kl <= budget), "{kl:?}");
    assert!((2..500).contains(&spent.step_count()));
    let error = spent.step().expect_err("done");
    assert!(error.to_string().contains("`steps`"), "{error}");

    let directory = tempfile::tempdir().expect("a directory");
    spent.checkpoint(directory.path()).expect("writes");
    let mut resumed = trainer(&settings, &examples);
    assert!(resumed.resume(directory.path()).expect("reads") && resumed.done());
}

#[test]
fn probes_are_measured_at_their_interval_and_at_the_end() {
    let examples = queries(6, 2);
    let settings = TrainSettings { probe_every: Some(3), steps: 8, ..settings(sami()) };
    let trained = run(trainer(&settings, &examples));
    let measured: Vec<u64> =
        trained.records().iter().filter(|record| record.probe_kl.is_some()).map(|record| record.step).collect();
    assert_eq!(measured, [3, 6, 8]);
    assert!(trained.records().iter().all(|record| record.kl.is_none()), "no step has to pay for it");
    // What was remembered of the reference is what it says.
    let reference = Model::new(config(), weights()).expect("fits");
    let probes: Vec<Sequence> = Order::new(6, settings.seed)
        .batch(0, 6)
        .into_iter()
        .flat_map(|index| [0, 3].map(|cell| examples[index].sequences[cell].clone()))
        .collect();
    let kl = crate::lm::logprobs::response_kl(trained.model(), &reference, &probes).expect("measures").concat();
    let wanted = sum(&kl) / kl.len() as f64;
    assert_eq!(trained.records()[7].probe_kl, Some(wanted));

    let budget = TrainSettings { kl_budget: Some(wanted / 1e3), ..settings };
    assert_eq!(run(trainer(&budget, &examples)).step_count(), 3, "it ends at the first measurement that is above");
}
