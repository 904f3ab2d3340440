//! Draws: what every one has, and which of them are held out.

use std::collections::HashSet;

use super::*;

fn principles(contrast: Contrast, per_query: usize, count: usize, size: Size, share: f64) -> Constitutions {
    let all = (0..count)
        .map(|n| {
            (format!("p{n}"), Principle { definition: format!("do {n}\nalways"), antithesis: format!("avoid {n}") })
        })
        .collect();
    Constitutions {
        task: None,
        contrast,
        per_query,
        size,
        hold_out: HoldOut { share, principles: Vec::new() },
        must_flip: Vec::new(),
        format: Format::Numbered,
        seed: 1,
        principles: all,
        provenance: None,
    }
}

fn stances(constitution: &Constitution) -> Vec<(String, Polarity)> {
    let mut all: Vec<_> = constitution.principles.iter().map(|stance| (stance.name.clone(), stance.polarity)).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

#[test]
fn complement_flips_every_principle_and_draws_repeat() {
    let set = principles(Contrast::Complement, 2, 4, Size { min: 2, max: 3 }, 0.0);
    let drawer = set.drawer().expect("sound");
    let mut first_order_differs = false;
    for query in 0..50 {
        let pair = drawer.draw(&query.to_string(), 0, Part::Train).expect("drawn");
        assert_eq!(pair, drawer.draw(&query.to_string(), 0, Part::Train).expect("drawn"));
        for (one, other) in stances(&pair[0]).iter().zip(stances(&pair[1])) {
            assert_eq!(one.0, other.0);
            assert_ne!(one.1, other.1);
        }
        first_order_differs |= pair[0].principles[0].name != pair[1].principles[0].name;
    }
    assert!(first_order_differs, "each constitution has its own order");
}

#[test]
fn positive_comes_first_and_no_two_are_equal() {
    let set = principles(Contrast::PositiveVsAntithesis, 4, 12, Size { min: 12, max: 12 }, 0.0);
    let drawer = set.drawer().expect("sound");
    let drawn = drawer.draw("q", 3, Part::Train).expect("drawn");
    assert!(drawn[0].principles.iter().all(|stance| stance.polarity == Polarity::Definition));
    let distinct: HashSet<_> = drawn.iter().map(|one| format!("{:?}", stances(one))).collect();
    assert_eq!(distinct.len(), 4);
    assert!(drawn[0].text.contains("12. do"), "{}", drawn[0].text);
    assert_eq!(crate::kinds::principles::split_numbered(&drawn[0].text).len(), 12);
}

#[test]
fn held_out_combinations_never_show_in_training() {
    for (contrast, per_query) in
        [(Contrast::Complement, 2), (Contrast::Uniform, 2), (Contrast::Uniform, 4), (Contrast::PositiveVsAntithesis, 2)]
    {
        let set = principles(contrast, per_query, 4, Size { min: 2, max: 3 }, 0.25);
        let drawer = set.drawer().expect("sound");
        let (all, held_out) = drawer.combinations().expect("few");
        assert_eq!(held_out, (all as f64 * 0.25).round() as usize);
        let seen = |part| -> HashSet<String> {
            (0..300)
                .flat_map(|query| {
                    let drawn = drawer.draw(&query.to_string(), 0, part).expect("drawn");
                    let skip = usize::from(contrast == Contrast::PositiveVsAntithesis);
                    drawn.into_iter().skip(skip).map(|one| format!("{:?}", stances(&one))).collect::<Vec<_>>()
                })
                .collect()
        };
        let (train, test) = (seen(Part::Train), seen(Part::HeldOut));
        assert!(train.is_disjoint(&test) && !test.is_empty());
    }
}

#[test]
fn nothing_held_out_gives_none_and_too_few_principles_an_error() {
    let plain = principles(Contrast::Uniform, 2, 2, Size { min: 2, max: 2 }, 0.0);
    assert!(plain.drawer().expect("sound").draw("q", 0, Part::HeldOut).is_none());
    let (field, what, _) =
        principles(Contrast::Uniform, 3, 1, Size { min: 1, max: 1 }, 0.0).drawer().expect_err("too few");
    assert_eq!(field, "per_query");
    assert!(what.contains("2 polarities"), "{what}");
}

fn names(constitution: &Constitution) -> HashSet<&str> {
    constitution.principles.iter().map(|stance| stance.name.as_str()).collect()
}

#[test]
fn held_out_principles_are_in_no_constitution_of_training() {
    let held: Vec<String> = ["p15", "p16", "p17", "p18", "p19"].map(str::to_owned).into();
    for contrast in [Contrast::Complement, Contrast::Uniform, Contrast::PositiveVsAntithesis] {
        let mut set = principles(contrast, 2, 20, Size { min: 2, max: 2 }, 0.0);
        set.hold_out.principles.clone_from(&held);
        let drawer = set.drawer().expect("sound");
        let pairs = |count: usize| count * (count - 1) / 2;
        let polarities = if contrast == Contrast::PositiveVsAntithesis { 3 } else { 2 };
        assert_eq!(drawer.combinations(), Some(((pairs(15) + pairs(5)) * polarities, pairs(5) * polarities)));
        let mut mixed = false;
        for query in 0..200 {
            let drawn = |part| drawer.draw(&query.to_string(), 0, part).expect("drawn");
            let is_held = |name: &&str| held.iter().any(|held| held == name);
            assert!(drawn(Part::Train).iter().all(|one| !names(one).iter().any(is_held)));
            assert!(drawn(Part::HeldOut).iter().all(|one| names(one).iter().all(is_held)));
            let all = drawn(Part::All);
            mixed |= names(&all[0]).iter().any(is_held) && !names(&all[0]).iter().all(is_held);
        }
        assert!(mixed, "all principles go together where all combinations are asked for");
    }
}

#[test]
fn principles_that_cannot_be_held_out_are_named() {
    let fault = |size, held: &[&str]| {
        let mut set = principles(Contrast::Complement, 2, 4, Size { min: size, max: size }, 0.0);
        set.hold_out.principles = held.iter().map(|name| (*name).to_owned()).collect();
        set.drawer().err().map(|(field, what, _)| (field, what))
    };
    assert_eq!(fault(2, &["p2", "p3"]), None);
    let (field, what) = fault(4, &["p2", "p3"]).expect("too many for either part");
    assert_eq!((field, what.contains("4 principles cannot be drawn from 2")), ("principles_per_constitution", true));
    let (field, what) = fault(1, &["p9"]).expect("unknown");
    assert_eq!((field, what.contains("`p9`")), ("hold_out", true));
    assert_eq!(fault(1, &["p0", "p1", "p2", "p3"]).expect("nothing left").0, "hold_out");
}

/// Helpful queries go with constitutions against helpfulness, harmless ones with others: the authors' sets for dialogue.
#[test]
fn what_must_flip_is_flipped_in_all_but_the_first() {
    let mut set = principles(Contrast::PositiveVsAntithesis, 2, 2, Size { min: 2, max: 2 }, 0.0);
    set.must_flip = vec!["p1".to_owned()];
    let drawer = set.drawer().expect("sound");
    assert_eq!(drawer.combinations(), Some((2, 0)));
    let mut seen = HashSet::new();
    for query in 0..100 {
        let pair = drawer.draw(&query.to_string(), 0, Part::Train).expect("drawn");
        assert!(pair[0].principles.iter().all(|stance| stance.polarity == Polarity::Definition));
        assert_eq!(stances(&pair[1])[1], ("p1".to_owned(), Polarity::Antithesis));
        seen.insert(stances(&pair[1])[0].1);
    }
    assert_eq!(seen.len(), 2, "the other principle goes either way");

    // Three of four principles, one of them always there and always flipped.
    let mut larger = principles(Contrast::PositiveVsAntithesis, 4, 4, Size { min: 3, max: 3 }, 0.0);
    larger.must_flip = vec!["p2".to_owned()];
    let drawer = larger.drawer().expect("sound");
    for query in 0..50 {
        let drawn = drawer.draw(&query.to_string(), 0, Part::Train).expect("drawn");
        assert!(drawn[1..].iter().all(|one| stances(one).contains(&("p2".to_owned(), Polarity::Antithesis))));
        let distinct: HashSet<_> = drawn.iter().map(|one| format!("{:?}", stances(one))).collect();
        assert_eq!(distinct.len(), 4);
    }
    larger.per_query = 6;
    assert_eq!(larger.drawer().expect_err("four polarities and the first").0, "per_query");
    larger.contrast = Contrast::Uniform;
    assert_eq!(larger.drawer().expect_err("nothing is all positive").0, "must_flip");
}

#[test]
fn more_than_two_constitutions_are_distinct_under_every_contrast() {
    for contrast in [Contrast::Complement, Contrast::Uniform, Contrast::PositiveVsAntithesis] {
        for per_query in [2, 3, 5, 8] {
            let set = principles(contrast, per_query, 3, Size { min: 3, max: 3 }, 0.0);
            let drawer = set.drawer().expect("sound");
            for query in 0..20 {
                let drawn = drawer.draw(&query.to_string(), 0, Part::Train).expect("drawn");
                let distinct: HashSet<_> = drawn.iter().map(|one| format!("{:?}", stances(one))).collect();
                assert_eq!(distinct.len(), per_query, "{contrast:?}");
                if contrast == Contrast::Complement {
                    for pair in drawn.chunks_exact(2) {
                        let both = stances(&pair[0]).into_iter().zip(stances(&pair[1]));
                        assert!(both.into_iter().all(|(one, other)| one.1 != other.1));
                    }
                }
            }
        }
    }
}

#[test]
fn a_principle_alone_is_two_constitutions() {
    let set = principles(Contrast::Complement, 2, 3, Size { min: 1, max: 3 }, 0.0);
    let [definition, antithesis] = set.alone("p1").expect("is there");
    assert_eq!((definition.text.as_str(), antithesis.text.as_str()), ("1. do 1\nalways", "1. avoid 1"));
    assert_eq!(antithesis.principles[0].polarity, Polarity::Antithesis);
    assert!(set.alone("p7").is_none());
}
