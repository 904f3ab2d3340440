use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// Tells a server that has one answer to everything of 100 metrics more than wait for it, of a run that is over. Returns how
/// often it was asked until then, and the tracker.
fn told_again(answer: &'static str) -> (usize, Mlflow) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            let _ = stream.read(&mut [0; 4096]);
            let _ = write!(stream, "HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    let about = About {
        cache: std::path::PathBuf::new(),
        file: "x.toml".to_owned(),
        params: std::collections::BTreeMap::new(),
        identity: crate::digest::Digest::of(b"x"),
        again: true,
    };
    let settings = MlflowSettings { url, experiment: None, timeout: Duration::from_secs(5) };
    let mut mlflow = Mlflow::new(&settings, &about, Arc::new(Mutex::new(Tracked::new(&about))));
    let at = jiff::Timestamp::UNIX_EPOCH;
    let (name, pipeline) = ("r".to_owned(), "p".to_owned());
    mlflow.take(Note::Begin(Arc::new(Begin { runs: vec![name.clone()], name, pipeline, at })));
    for step in 1..=MOST_TOLD_AGAIN as u64 + 100 {
        mlflow.take(Note::Step { node: "train".into(), step, figures: vec![("loss".to_owned(), 0.5)], at });
    }
    (asked.load(Ordering::SeqCst), mlflow)
}

#[test]
fn a_server_that_is_away_is_not_asked_at_each_metric_of_a_run_that_is_over() {
    let (asked, mut mlflow) = told_again("503 Service Unavailable");
    assert!((1..=3).contains(&asked), "{asked} requests");
    let (wrong, place) = mlflow.close();
    let wrong = wrong.unwrap();
    assert_eq!((wrong.id, place), ("trackers::mlflow-incomplete", None));
    assert!(wrong.notes.contains(&"20100 metrics did not arrive".to_owned()), "{wrong:?}");
}

#[test]
fn a_server_that_refuses_a_run_that_is_over_is_asked_once() {
    let (asked, mut mlflow) = told_again("403 Forbidden");
    let (wrong, _) = mlflow.close();
    assert_eq!((asked, wrong.unwrap().id, mlflow.lost), (1, "trackers::mlflow-refused", MOST_TOLD_AGAIN + 100));
}

#[test]
fn names_are_what_mlflow_takes() {
    assert_eq!(key("train/finetune@2/loss"), "train/finetune.2/loss");
    assert_eq!(key("evaluate[seed=1,lr=0.1]/win_rate"), "evaluate.seed-1.lr-0.1/win_rate");
    assert_eq!(key("é:x"), "_-x");
    assert_eq!(key(&"x".repeat(999)).len(), LONGEST_NAME);
}

#[test]
fn numbers_that_are_none_are_words() {
    let json = |value: f64| Metric { key: "k".into(), value, step: 1, at: 2 }.json()["value"].clone();
    assert_eq!(json(0.5), json!(0.5));
    assert_eq!(json(f64::NAN), json!("NaN"));
    assert_eq!(json(f64::NEG_INFINITY), json!("-Infinity"));
}
