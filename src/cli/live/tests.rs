//! What a view shows of events, at several sizes.

use std::path::PathBuf;

use serde_json::json;

use super::*;
use crate::digest::Digest;

fn start(nodes: usize, likely: &[(&str, f64)]) -> Event {
    Event::Start {
        run: "r".into(),
        pipeline: "p".into(),
        nodes,
        hits: 1,
        threads: 4,
        likely: likely.iter().map(|(name, seconds)| ((*name).to_owned(), *seconds)).collect(),
    }
}

fn began(node: &str, device: &str) -> Event {
    Event::NodeStart {
        node: node.into(),
        kind: "k".into(),
        key: Digest::of(b""),
        attempt: 1,
        why: "nothing of it is here".into(),
        device: device.into(),
        threads: 1,
        log: PathBuf::new(),
        shards: None,
    }
}

fn far(node: &str, done: u64, seconds: f64) -> Event {
    let metrics = json!({"loss": 0.5}).as_object().cloned().unwrap_or_default();
    let progress = Progress { done, total: 400, unit: "rows".into(), metrics, ..Progress::default() };
    Event::NodeProgress { node: node.into(), progress, seconds, shards: Vec::new() }
}

fn finished(node: &str) -> Event {
    Event::NodeFinish {
        node: node.into(),
        kind: "k".into(),
        key: Digest::of(b""),
        artifact: Digest::of(b""),
        other: None,
        equal_to_within: None,
        seconds: 5.0,
        weights_kept: None,
        metrics: serde_json::Map::new(),
    }
}

fn failed(node: &str, retry: bool) -> Event {
    let (error, help, log) = (String::new(), None, None);
    Event::NodeFail { node: node.into(), attempt: 1, retry, error, help, log, tail: Vec::new() }
}

fn canvas(width: usize, height: usize) -> Canvas {
    Canvas { width, height, letters: Letters::Ascii, coloured: false }
}

fn shown(events: &[(f64, Event)]) -> View {
    let mut view = View::default();
    events.iter().for_each(|(at, event)| view.take(event, *at));
    view
}

#[test]
fn what_goes_on_has_a_line_with_its_rate_and_time_left_and_all_has_the_last_one() {
    let view = shown(&[
        (0.0, start(5, &[])),
        (0.0, began("generate@1", "cpu")),
        (1.0, far("generate@1", 10, 1.0)),
        (11.0, far("generate@1", 110, 11.0)),
        (11.0, began("score", "cuda:0")),
    ]);
    assert_eq!(
        view.lines(12.0, canvas(80, 24), &[]),
        [
            "generate@1  ====------------  110/400 rows · 28 s left · 10.00/s · loss 0.5000",
            "score                         1 s · on cuda:0 · nothing of it is here",
            "all         ===-------------  1 of 5 nodes done · 12 s · at least 28 s left",
        ]
    );
    assert_eq!(
        view.lines(12.0, canvas(40, 24), &[]),
        [
            "generate@1  ==------  110/400 rows",
            "score                 1 s · on cuda:0",
            "all         =>------  1/5 · 12 s",
        ]
    );
    assert!(view.uses_gpus());
}

#[test]
fn a_node_in_parts_has_one_line_with_a_bar_in_segments() {
    let part = |shard, state| Event::NodeShard {
        node: "generate".into(),
        shard,
        of: 2,
        state,
        attempt: 1,
        device: "cpu".into(),
        threads: 1,
        seconds: 0.0,
        error: None,
        log: PathBuf::new(),
    };
    let progress = Progress { done: 30, total: 120, unit: "rows".into(), ..Progress::default() };
    let shards = vec![[10, 60], [20, 60]];
    let view = shown(&[
        (0.0, start(3, &[])),
        (0.0, began("generate", "cpu")),
        (0.0, part(1, ShardState::Started)),
        (0.0, part(2, ShardState::Started)),
        (10.0, Event::NodeProgress { node: "generate".into(), progress, seconds: 10.0, shards }),
        (11.0, part(2, ShardState::Done)),
    ]);
    let lines = view.lines(12.0, canvas(80, 24), &[]);
    assert_eq!(lines.len(), 2);
    assert!(lines[0].starts_with("generate  =------ ==-----   30/120 rows · 1 of 2 shards done · "), "{lines:?}");
    // Where there is no room for a segment each, it is one bar.
    assert_eq!(segments(&[0.5; 9], 16), (vec![0.5], 16));
    assert_eq!((segments(&[0.5; 5], 16).1, segments(&[], 16)), (2, (Vec::new(), 0)));
}

#[test]
fn earlier_attempts_tell_when_all_is_done() {
    let likely = [("a", 10.0), ("b", 20.0), ("c", 30.0)];
    let mut view = shown(&[(0.0, start(4, &likely)), (0.0, began("a", "cpu"))]);
    assert_eq!(view.left(4.0), Some((56.0, false)), "6 of a, 20 of b, 30 of c");
    view.take(&failed("a", true), 5.0);
    view.take(&began("a", "cpu"), 5.0);
    assert_eq!(view.left(5.0), Some((60.0, false)), "it is tried again");
    view.take(&finished("a"), 15.0);
    view.take(&failed("b", false), 20.0);
    assert_eq!(view.left(20.0), Some((30.0, false)));
    let line = view.lines(20.0, canvas(100, 24), &[]).pop().unwrap_or_default();
    assert_eq!(line, "all       ==================------  2 of 4 nodes done · 1 failed · 20 s · about 30 s left");
}

#[test]
fn lines_are_narrower_than_the_terminal_and_fewer_than_its_rows() {
    let mut view = shown(&[(0.0, start(100, &[]))]);
    for number in 0..40 {
        view.take(&began(&format!("a-node-with-a-long-name@{number}[lr=1e-7,日本語]"), "cuda:0"), 0.0);
    }
    view.take(&far("a-node-with-a-long-name@3[lr=1e-7,日本語]", 399, 3.0), 3.0);
    let gpu = Gpu { name: "cuda:0".into(), used: 3 << 30, total: 80 << 30, busy: Some(97) };
    for (width, height) in [(10, 2), (20, 3), (40, 10), (80, 24), (200, 60)] {
        for letters in [Letters::Ascii, Letters::Unicode] {
            let lines = view.lines(5.0, Canvas { letters, ..canvas(width, height) }, std::slice::from_ref(&gpu));
            assert!(lines.len() < height, "{height}: {lines:#?}");
            assert!(lines.iter().all(|line| columns(line) < width), "{width}: {lines:#?}");
        }
    }
    let lines = view.lines(5.0, canvas(100, 24), &[gpu]);
    assert_eq!(lines[11], "… 29 more run");
    assert!(lines[12].starts_with("cuda:0 ") && lines[12].ends_with("3.0 GiB of 80.0 GiB · 97% busy"), "{}", lines[12]);
}

#[test]
fn what_is_brief_or_over_is_not_drawn() {
    let mut view = View::default();
    assert!(view.lines(0.0, canvas(80, 24), &[]).is_empty(), "nothing goes on yet");
    view.take(&start(3, &[]), 0.0);
    view.take(&began("quick", "cpu"), 5.0);
    assert_eq!(view.lines(5.1, canvas(80, 24), &[]).len(), 1);
    assert_eq!(view.lines(5.5, canvas(80, 24), &[]).len(), 2);
    view.take(&finished("quick"), 5.6);
    assert_eq!(view.lines(5.7, canvas(80, 24), &[]).len(), 1);
    let done = Event::Done { ok: true, ran: 1, hits: 1, failed: 0, nodes: Vec::new() };
    view.take(&done, 6.0);
    assert!(view.lines(6.0, canvas(80, 24), &[]).is_empty());
}

#[test]
fn downloads_are_drawn_before_the_run_begins() {
    let download =
        |done, finished| Event::Download { name: "base".into(), done, total: 4 << 30, seconds: 2.0, finished };
    let view = shown(&[(1.0, download(1 << 30, false)), (3.0, download(2 << 30, false))]);
    let lines = view.lines(3.0, canvas(80, 24), &[]);
    assert!(lines[0].starts_with("base      ========--------  2.0 GiB of 4.0 GiB"), "{lines:#?}");
    let view = shown(&[(1.0, download(1 << 30, false)), (3.0, download(4 << 30, true))]);
    assert!(view.lines(3.0, canvas(80, 24), &[]).is_empty());
}

#[test]
fn a_node_that_goes_on_where_another_attempt_stopped_has_the_rate_of_its_own() {
    let view = shown(&[
        (0.0, start(2, &[])),
        (0.0, began("a", "cpu")),
        (0.1, far("a", 300, 0.1)),
        (10.1, far("a", 310, 10.1)),
    ]);
    let line = &view.lines(10.2, canvas(100, 24), &[])[0];
    assert!(line.contains("310/400 rows") && line.contains("1 m 29 s left · 1.000/s"), "{line}");
}
