//! Preferences: anchored in the reference, whatever is done meanwhile; and the steps of runs that went wrong.

use super::super::super::loss::preference::dpo as preference;
use super::*;

pub(super) fn dpo(directions: Directions) -> Objective {
    Objective::Dpo { beta: 0.5, label_smoothing: 0.0, length_norm: LengthNorm::Sum, directions }
}

/// Of each query the first constitution's row.
pub(super) fn first_rows(queries: Vec<Example>, count: usize) -> Vec<Example> {
    let first = |mut example: Example| {
        example.sequences.truncate(count);
        example
    };
    queries.into_iter().map(first).collect()
}

#[test]
fn starts_at_ln_2_and_prefers_what_it_should() {
    for (directions, examples) in [(Directions::Both, queries(6, 3)), (Directions::First, first_rows(queries(6, 2), 2))]
    {
        let settings = TrainSettings { batch: 6, steps: 40, kl_budget: Some(1e9), ..settings(dpo(directions)) };
        let records = run(trainer(&settings, &examples)).records;
        let (first, last) = (&records[0], &records[39]);
        assert_eq!((first.loss, first.reward_margin, first.accuracy), (2f64.ln(), Some(0.0), Some(0.5)), "{first:?}");
        assert!(last.loss < 0.1 && last.accuracy == Some(1.0), "{last:?}");
        assert!(last.reward_margin > Some(2.0) && last.kl > Some(0.01), "{last:?}");
        assert_eq!(last.bound.is_some(), directions == Directions::Both);
        assert!(last.logprob_diagonal > last.logprob_off_diagonal, "{last:?}");
    }
}

#[test]
fn loss_is_that_of_the_formula_against_another_reference() {
    let examples = queries(3, 2);
    let other = Model::random(config(), 8, &Device::Cpu).expect("makes");
    let settings = settings(dpo(Directions::Both));
    let mut trainer =
        Trainer::of_weights(config(), weights(), Some(other.clone()), examples.clone(), settings).expect("gets ready");
    let sums = |model: &Model, example: &Example| -> Vec<f64> {
        response_logprobs(model, &example.sequences).expect("scores").iter().map(|logprobs| sum(logprobs)).collect()
    };
    let of_example = |example: &Example| -> f64 {
        let (ours, theirs) = (sums(trainer.model(), example), sums(&other, example));
        let reward = |cell: usize| 0.5 * (ours[cell] - theirs[cell]);
        f64::midpoint(preference(reward(0) - reward(1), 0.0).0, preference(reward(3) - reward(2), 0.0).0)
    };
    let wanted = examples.iter().map(of_example).sum::<f64>() / 3.0;
    assert!(trainer.reference.is_none(), "KL was not asked for");
    let record = trainer.step().expect("steps");
    assert!((record.loss - wanted).abs() < 1e-9, "{} is not {wanted}", record.loss);
    assert_eq!(record.kl, None);
}

#[test]
fn gradient_is_that_of_finite_differences() {
    let examples = queries(2, 2);
    let settings = TrainSettings { batch: 2, ..settings(dpo(Directions::Both)) };
    let trainer = |weights| {
        let reference = Model::random(config(), 8, &Device::Cpu).expect("makes");
        let mut trainer = Trainer::of_weights(config(), weights, Some(reference), examples.clone(), settings.clone())
            .expect("gets ready");
        while !trainer.prepare().expect("computes") {}
        trainer
    };
    let (_, slopes) = gradient(&trainer(weights()), &[0, 1], Keep::Everything);
    for (name, slopes) in slopes {
        let norm = slopes.iter().map(|number| number * number).sum::<f32>().sqrt();
        let moved = |by: f32| {
            let mut weights = weights();
            let weight = weights.get_mut(&name).expect("there");
            let direction: Vec<f32> = slopes.iter().map(|number| by * number / norm).collect();
            let direction = Tensor::from_vec(direction, weight.shape(), &Device::Cpu).expect("fits");
            *weight = (&*weight + direction).expect("computes");
            trainer(weights).step().expect("steps").loss
        };
        let slope = (moved(2e-3) - moved(-2e-3)) / 4e-3;
        assert!((slope / f64::from(norm) - 1.0).abs() < 1e-2, "`{name}`: slope {slope}, norm {norm}");
    }
}

#[test]
fn anchors_are_of_the_start_and_cost_no_second_model() {
    // Fewer examples come up than there are.
    let settings = TrainSettings { steps: 5, ..settings(dpo(Directions::Both)) };
    let mut first = trainer(&settings, &queries(40, 2));
    assert!(first.prepare().expect("computes"), "fifteen examples, at once");
    assert_eq!(first.anchor.as_ref().expect("there is one").known().len(), 15);
    let other = Model::random(config(), 8, &Device::Cpu).expect("makes");
    let mut second =
        Trainer::of_weights(config(), weights(), Some(other), queries(40, 2), settings.clone()).expect("gets ready");
    second.step().expect("steps");
    assert!(format!("{:?}", second.anchor).contains("waiting: 0"));
    let all = TrainSettings { steps: 20, ..settings };
    let mut all = trainer(&all, &queries(40, 2));
    assert!(!all.prepare().expect("computes") && !all.prepare().expect("computes"));
    assert!(all.prepare().expect("computes") && all.prepare().expect("has nothing to do"));
}

#[test]
fn passes_in_tensors_give_the_same_gradient() {
    let examples = queries(3, 2);
    let of = |compute| {
        let settings = TrainSettings { compute, ..settings(dpo(Directions::Both)) };
        let reference = Model::random(config(), 8, &Device::Cpu).expect("makes");
        let mut trainer =
            Trainer::of_weights(config(), weights(), Some(reference), examples.clone(), settings).expect("gets ready");
        while !trainer.prepare().expect("computes") {}
        gradient(&trainer, &[0, 1, 2], Keep::Inputs)
    };
    let ((loss, exact), (near_loss, near)) = (of(Compute::F32), of(Compute::Bf16));
    assert!((loss - near_loss).abs() < 0.05, "{loss} is not {near_loss}");
    let squares = |numbers: &[f32]| numbers.iter().map(|number| f64::from(*number).powi(2)).sum::<f64>();
    let (mut apart, mut whole) = (0.0, 0.0);
    for (name, numbers) in &exact {
        let differences: Vec<f32> = numbers.iter().zip(&near[name]).map(|(one, other)| one - other).collect();
        apart += squares(&differences);
        whole += squares(numbers);
    }
    assert!(apart < 0.05f64.powi(2) * whole, "{} of {}", apart.sqrt(), whole.sqrt());
}

#[test]
fn equal_responses_are_no_preference() {
    let mut examples = queries(1, 2);
    let sequences = &mut examples[0].sequences;
    for row in [0, 2] {
        sequences[row + 1] = sequences[row].clone();
    }
    let settings = TrainSettings { batch: 1, ..settings(dpo(Directions::Both)) };
    let mut trainer = trainer(&settings, &examples);
    while !trainer.prepare().expect("computes") {}
    let (loss, slopes) = gradient(&trainer, &[0], Keep::Everything);
    assert_eq!(loss, 2f64.ln());
    assert!(slopes.values().flatten().all(|slope| slope.abs() < 1e-6), "nothing pulls");
    assert_eq!(trainer.step().expect("steps").accuracy, Some(0.5));
}

#[test]
fn an_update_of_the_last_part_alone() {
    let authors = TrainSettings {
        batch: 8,
        steps: 3,
        clip: 0.0,
        schedule: Schedule::authors_2024(),
        accumulation: Accumulation { parts: 4, kept: Kept::Last },
        optimizer: OptimizerSettings::new(OptimizerName::RmsProp, 1e-3),
        ..settings(sami())
    };
    // Of 40 examples an epoch is five steps: 0, 1, 3/4.
    let examples = queries(40, 2);
    let mut trained = trainer(&authors, &examples);
    let before = saved(&trained);
    let last: Vec<usize> = Order::new(40, authors.seed).batch(0, 8)[6..].to_vec();
    let (loss, slopes) = gradient(&trained, &last, Keep::Everything);
    let norm = slopes.values().flatten().map(|number| f64::from(*number).powi(2)).sum::<f64>().sqrt();
    let record = trained.step().expect("steps");
    assert!((record.loss - loss).abs() < 1e-7 && (record.gradient_norm / norm * 4.0 - 1.0).abs() < 1e-6, "{record:?}");
    assert_eq!(record.learning_rate, 0.0);
    assert!(saved(&trained) == before, "the first update does nothing");
    // But RMSprop has seen a quarter of the gradient.
    let state = trained.optimizer.state().expect("reads");
    let seen: f64 = state
        .iter()
        .map(|(_, second)| match second {
            Numbers::F32(second) => sum(second),
            Numbers::U8(_) => panic!("eight bits were not asked for"),
        })
        .sum();
    assert!((seen / (0.01 * (norm / 4.0).powi(2)) - 1.0).abs() < 5e-2, "{seen} of {norm}");
    let trained = run(trained);
    let rates: Vec<f64> = trained.records().iter().map(|record| record.learning_rate).collect();
    assert_eq!(rates, [0.0, 1e-3, 0.75e-3]);
    assert_eq!(trained.records()[2].tokens, {
        let last: Vec<&Example> =
            Order::new(40, authors.seed).batch(2, 8)[6..].iter().map(|index| &examples[*index]).collect();
        last.iter().flat_map(|example| &example.sequences).map(|one| one.ids.len() as u64).sum::<u64>()
    });
    assert!(saved(&trained) != before);

    // Kept in full, parts are one large batch.
    let whole = TrainSettings { accumulation: Accumulation::default(), ..authors.clone() };
    let parts = TrainSettings { accumulation: Accumulation { parts: 4, kept: Kept::All }, ..authors };
    assert!(saved(&run(trainer(&whole, &examples))) == saved(&run(trainer(&parts, &examples))));
}

#[test]
fn weights_in_bf16_lose_what_is_less_than_half_of_their_last_place() {
    let rounded = |rate: f64| {
        let settings = TrainSettings {
            weights: Weights::Bf16,
            schedule: Schedule::default(),
            steps: 2,
            optimizer: OptimizerSettings::new(OptimizerName::AdamW, rate),
            ..settings(sami())
        };
        let fresh = trainer(&settings, &queries(3, 2));
        let before: Vec<f32> = flat(&fresh, "model.norm.weight");
        let trained = run(fresh);
        let after = flat(&trained, "model.norm.weight");
        let is_bf16 = |number: &f32| number.to_bits().trailing_zeros() >= 16;
        for name in trained.policy.parameters.keys() {
            assert!(flat(&trained, name).iter().all(is_bf16), "`{name}`");
        }
        (before, after)
    };
    // Norms start at 1, where the next number of bf16 is 2⁻⁷ above and 2⁻⁸ below.
    let (before, after) = rounded(5e-4);
    assert_eq!(before, after, "an update of AdamW is about the rate");
    let (before, after) = rounded(5e-3);
    assert_ne!(before, after);
}

fn flat(trainer: &Trainer, name: &str) -> Vec<f32> {
    trainer.policy.parameters[name].flatten_all().and_then(|flat| flat.to_vec1()).expect("f32")
}
