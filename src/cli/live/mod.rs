//! What stands at the foot of the terminal while a run goes on: a few lines that are drawn anew, and text above them that stays.
//!
//! A thread draws, at most a few times a second and only what changed, so that however much happens it costs the run
//! nothing and the eye little. Whatever else this process says on standard error goes through [`above`].

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::figures::columns;
use super::terminal;
use view::Canvas;
pub(super) use view::View;

mod gpu;
mod view;

/// Between two looks at whether something changed, the size of the terminal among it.
const LOOK: Duration = Duration::from_millis(250);
/// Where a terminal does not know its size.
const SIZE: (usize, usize) = (80, 24);

/// What is drawn on standard error now; of the whole process, as that is.
static DRAWN: Mutex<Drawn> = Mutex::new(Drawn { lines: Vec::new() });

#[derive(Debug)]
struct Drawn {
    /// The lines at the foot, with their columns; the cursor stands below the last one.
    lines: Vec<(String, usize)>,
}

/// Writes text that stays to standard error, above what is drawn there. Where that cannot be written no one reads.
pub(super) fn above(text: &str) {
    let text = &terminal::shown(text, io::stderr().is_terminal());
    let mut drawn = lock(&DRAWN);
    let lines: Vec<String> = drawn.lines.iter().map(|(line, _)| line.clone()).collect();
    drawn.draw(text, lines);
}

/// Standard error as something to be written to.
#[derive(Debug)]
pub(super) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        above(&String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drawn {
    /// Writes `text` where the lines at the foot began, and these, or others, below it.
    fn draw(&mut self, text: &str, lines: Vec<String>) {
        let columns_now = terminal::size(io::stderr()).map_or(SIZE.0, |(width, _)| width);
        let out = script(rows(&self.lines, columns_now), text, &lines);
        let measured = lines.into_iter().map(|line| {
            let columns = columns(&without_colours(&line));
            (line, columns)
        });
        self.lines = measured.collect();
        let _ = io::stderr().lock().write_all(out.as_bytes());
    }

    fn differs(&self, lines: &[String]) -> bool {
        self.lines.len() != lines.len() || self.lines.iter().zip(lines).any(|((old, _), new)| old != new)
    }
}

/// How many rows lines take on a terminal that became so narrow: most terminals break them anew.
fn rows(lines: &[(String, usize)], width: usize) -> usize {
    lines.iter().map(|(_, columns)| columns.div_ceil(width.max(1)).max(1)).sum()
}

/// What is to be written so that `text` stands where the last `rows` rows were, and `lines` below it.
fn script(rows: usize, text: &str, lines: &[String]) -> String {
    if rows == 0 && lines.is_empty() {
        return text.to_owned();
    }
    // Terminals that know this show all of it at once; the others pass over it.
    let mut out = "\u{1b}[?2026h\r".to_owned();
    if rows > 0 {
        out.push_str(&format!("\u{1b}[{rows}A"));
    }
    if !text.is_empty() {
        out.push_str("\u{1b}[J");
        out.push_str(text);
        if !text.ends_with('\n') {
            out.push('\n');
        }
    }
    for line in lines {
        out.push_str(line);
        out.push_str("\u{1b}[K\n");
    }
    out.push_str("\u{1b}[J\u{1b}[?2026l");
    out
}

fn without_colours(line: &str) -> String {
    let mut parts = line.split("\u{1b}[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once('m').map_or("", |(_, rest)| rest))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A run that is drawn, until it is dropped.
#[derive(Debug)]
pub(super) struct Live {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    view: View,
    /// When the run began.
    zero: Instant,
    /// What is to be written above the lines.
    text: String,
    over: bool,
}

impl Live {
    /// Begins to draw a run that began at `zero`.
    pub(super) fn new(zero: Instant) -> Self {
        let state = State { view: View::default(), zero, text: String::new(), over: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let drawn = shared.clone();
        let thread = std::thread::Builder::new().name("screen".to_owned()).spawn(move || drawn.draw()).ok();
        Self { shared, thread }
    }

    /// Changes what is drawn.
    pub(super) fn change(&self, change: impl FnOnce(&mut View, f64)) {
        let mut state = lock(&self.shared.state);
        let now = state.zero.elapsed().as_secs_f64();
        change(&mut state.view, now);
    }

    /// Seconds are counted from now on.
    pub(super) fn restart(&self) {
        lock(&self.shared.state).zero = Instant::now();
    }

    /// Writes lines that stay above.
    pub(super) fn write(&self, text: &str) {
        let mut state = lock(&self.shared.state);
        state.text.push_str(&terminal::shown(text, true));
        drop(state);
        if self.thread.is_none() {
            self.shared.flush();
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        lock(&self.shared.state).over = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // It cannot end otherwise but by a bug, which has been told.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn flush(&self) {
        let text = std::mem::take(&mut lock(&self.state).text);
        lock(&DRAWN).draw(&text, Vec::new());
    }

    fn draw(&self) {
        let continued = Arc::new(AtomicBool::new(false));
        let watched = signal_hook::flag::register(signal_hook::consts::SIGCONT, continued.clone());
        let coloured = anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never;
        let mut gpus: Option<gpu::Gpus> = None;
        let mut size = None;
        loop {
            let mut state = lock(&self.state);
            if state.over {
                break;
            }
            // A shell has written below it since.
            let moved = continued.swap(false, Ordering::Relaxed);
            if terminal::is_in_front() || !state.text.is_empty() {
                if state.view.uses_gpus() {
                    gpus.get_or_insert_with(gpu::Gpus::ask);
                } else {
                    gpus = None;
                }
                let (width, height) = terminal::size(io::stderr()).unwrap_or(SIZE);
                let canvas = Canvas { width, height, letters: terminal::letters(), coloured };
                let now = state.zero.elapsed().as_secs_f64();
                let told = gpus.as_ref().map(gpu::Gpus::told).unwrap_or_default();
                let lines = state.view.lines(now, canvas, &told);
                let text = std::mem::take(&mut state.text);
                drop(state);
                let mut drawn = lock(&DRAWN);
                if moved {
                    drawn.lines.clear();
                }
                if !text.is_empty() || size.replace((width, height)) != Some((width, height)) || drawn.differs(&lines) {
                    drawn.draw(&text, lines);
                }
                drop(drawn);
                state = lock(&self.state);
            }
            if !state.over {
                drop(self.changed.wait_timeout(state, LOOK));
            }
        }
        if let Ok(id) = watched {
            signal_hook::low_level::unregister(id);
        }
        self.flush();
    }
}

#[cfg(test)]
mod drawing {
    use super::*;

    #[test]
    fn text_that_stays_is_written_where_the_lines_began() {
        assert_eq!(script(0, "a\n", &[]), "a\n", "as it is where nothing is drawn");
        let told = script(2, "gone\n", &["foot".to_owned()]);
        assert_eq!(told, "\u{1b}[?2026h\r\u{1b}[2A\u{1b}[Jgone\nfoot\u{1b}[K\n\u{1b}[J\u{1b}[?2026l");
        let lines = [("x".repeat(70), 70), (String::new(), 0)];
        assert_eq!([rows(&lines, 80), rows(&lines, 40), rows(&lines, 0)], [2, 3, 71]);
        assert_eq!(without_colours("a\u{1b}[36mb\u{1b}[0m c"), "ab c");
    }
}
