use super::*;
use crate::inspect::sample;
use crate::inspect::story::Told;

/// A loop of so many iterations of `make` (in `cells` cells) and `train`, each fed by the one before.
fn looped(iterations: u64, cells: usize) -> Dag {
    let mut items = vec![Item::new("base", "init")];
    let mut arrows = Vec::new();
    let mut model = 0;
    for iteration in 1..=iterations {
        let first = items.len();
        for cell in 0..cells {
            items.push(Item { state: "fresh", ..Item::new(&format!("make@{iteration}[lr={cell}]"), "generate") });
            arrows.push((model, first + cell));
        }
        model = items.len();
        items.push(Item { state: "fresh", ..Item::new(&format!("train@{iteration}"), "finetune") });
        arrows.extend((0..cells).map(|cell| (first + cell, model)));
    }
    items.push(Item::source("questions", "dataset"));
    arrows.push((items.len() - 1, 1));
    Dag::with(items, arrows)
}

#[test]
fn names_are_taken_apart() {
    let parts = |name: &str| {
        let item = Item::new(name, "score");
        (item.base, item.iteration, item.is_cell)
    };
    assert_eq!(parts("models.blank"), ("models.blank".to_owned(), None, false));
    assert_eq!(parts("train@12"), ("train".to_owned(), Some(12), false));
    assert_eq!(parts("train@2[lr=1e-7,mail=a@b]"), ("train".to_owned(), Some(2), true));
    assert_eq!(parts("train[lr=1e-7]"), ("train".to_owned(), None, true));
    assert_eq!(parts("mail@here"), ("mail@here".to_owned(), None, false));
}

#[test]
fn what_is_small_is_open_and_what_is_large_is_open_where_it_is_worth_a_look() {
    let small = looped(3, 2).fold(&Open::default());
    assert_eq!((small.boxes.len(), small.open.len()), (11, 3));
    let mut large = looped(100, 5);
    let place = large.items.iter().position(|item| item.name == "train@40").unwrap();
    large.items[place].state = "stale";
    let folded = large.fold(&Open::default());
    assert_eq!(folded.open, BTreeSet::from([40]));
    let groups: Vec<&Group> = folded.boxes.iter().map(|(group, _)| group).collect();
    let expected = [
        Group::One(0),
        Group::Iterations(1, 39),
        Group::Cells("make".to_owned(), Some(40)),
        Group::One(place),
        Group::Iterations(41, 100),
        Group::One(large.items.len() - 1),
    ];
    assert_eq!(groups, expected.iter().collect::<Vec<_>>());
    assert_eq!(folded.arrows, [(0, 1), (1, 2), (2, 3), (3, 4), (5, 1)]);
    assert_eq!(large.counts(), [("stale", 1), ("fresh", 599)]);
    let cells = large.fold(&Open { base: Some("make".to_owned()), ..Open::default() });
    assert_eq!(cells.boxes.len(), folded.boxes.len() + 4);
    let none = large.fold(&Open { iterations: Some(BTreeSet::new()), ..Open::default() });
    assert_eq!(none.boxes.len(), 3);
    let unknown = large.fold(&Open { iterations: Some(BTreeSet::from([7, 999])), ..Open::default() });
    assert_eq!(unknown.open, BTreeSet::from([7]));
}

#[test]
fn every_node_is_in_one_box_and_no_drawing_is_too_large() {
    for (iterations, cells) in [(1, 1), (12, 3), (3, 3000), (5000, 1), (100, 100)] {
        let dag = looped(iterations, cells);
        for all in [false, true] {
            let folded = dag.fold(&Open { all, ..Open::default() });
            let mut members: Vec<usize> = folded.boxes.iter().flat_map(|(_, members)| members).copied().collect();
            members.sort_unstable();
            assert_eq!(members, (0..dag.items.len()).collect::<Vec<_>>());
            assert!(folded.boxes.len() <= MOST && folded.too_much == (all && dag.items.len() > MOST));
        }
    }
}

#[test]
fn ten_thousand_nodes_are_folded_and_drawn_within_a_second() {
    use crate::plot::dag::{Block, picture};
    let dag = looped(1000, 9);
    let began = std::time::Instant::now();
    let folded = dag.fold(&Open { iterations: Some((1..=90).collect()), base: Some("make".to_owned()), all: false });
    let block = |(_, members): &(Group, Vec<usize>)| Block { name: members.len().to_string(), ..Block::default() };
    let blocks: Vec<Block> = folded.boxes.iter().map(block).collect();
    assert!(blocks.len() > 800 && picture("x", &blocks, &folded.arrows).len() > 100_000);
    assert!(began.elapsed().as_secs_f64() < 1.0, "{:?}", began.elapsed());
}

#[test]
fn a_run_without_its_pipeline_has_its_states_and_arrows() {
    let (_folder, store, _) = sample::store();
    let run = store.run("20260102-000000-bbbb").unwrap().unwrap();
    let mut dag = Dag::of_run(&store, &run).unwrap();
    let states: Vec<&str> = dag.items.iter().map(|item| item.state).collect();
    assert_eq!(states, ["hit", "ran", "ran", "ran"]);
    assert_eq!(dag.arrows, [(0, 1), (1, 2), (2, 3)]);
    let mut story = Story::default();
    let told = Told { state: "running", done: 1, total: 4, seconds: 3.0, ..Told::default() };
    story.told.insert("train@2".to_owned(), told);
    dag.hear(&story);
    let last = &dag.items[3];
    assert_eq!((last.state, last.share, last.seconds), ("running", Some(0.25), Some(3.0)));
}
