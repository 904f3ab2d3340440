//! Draws what moves between caches: a bar on a terminal, a line now and then elsewhere.

use std::io::{self, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::figures::{bytes, count, plural};
use super::terminal;
use crate::remote::{Moved, Moving};

/// Time between two lines.
const BEAT: Duration = Duration::from_secs(10);

/// Draws a transfer; shared by its threads.
pub(crate) struct Transfer {
    verb: &'static str,
    bar: Option<ProgressBar>,
    state: Mutex<State>,
}

struct State {
    objects: (u64, u64),
    bytes: (u64, u64),
    told: Instant,
}

impl Transfer {
    /// Draws for whoever is there; `verb` is what is done: `pushing`.
    pub(crate) fn new(verb: &'static str) -> Self {
        let bar = terminal::can_redraw().then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10));
            let style = "{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
            // A template that is a constant parses.
            bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_message(verb);
            bar
        });
        Self { verb, bar, state: Mutex::new(State { objects: (0, 0), bytes: (0, 0), told: Instant::now() }) }
    }

    /// Takes note of what happened.
    pub(crate) fn tell(&self, moving: Moving) {
        let Ok(mut state) = self.state.lock() else { return };
        match moving {
            Moving::Begins { objects, bytes } => {
                (state.objects.1, state.bytes.1) = (state.objects.1 + objects, state.bytes.1 + bytes);
            }
            Moving::Bytes(more) => state.bytes.0 += more,
            Moving::Lost(again) => state.bytes.0 = state.bytes.0.saturating_sub(again),
            Moving::Object => state.objects.0 += 1,
        }
        if let Some(bar) = &self.bar {
            bar.set_length(state.bytes.1);
            bar.set_position(state.bytes.0);
        } else if state.told.elapsed() >= BEAT {
            state.told = Instant::now();
            let ((done, all), (came, total)) = (state.objects, state.bytes);
            let line = format!(
                "{}: {} of {}, {} of {}\n",
                self.verb,
                count(done),
                plural(all, "object"),
                bytes(came),
                bytes(total)
            );
            // Progress that cannot be shown is no failure.
            let _ = io::stderr().lock().write_all(line.as_bytes());
        }
    }

    /// Clears the bar.
    pub(crate) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// What was moved, in a line: `3 nodes (2 there already), 3 artifacts, 5 objects, 1.2 MiB`.
pub(crate) fn line(moved: &Moved) -> String {
    let mut text = plural(moved.nodes, "node record");
    if moved.known > 0 {
        text.push_str(&format!(" ({} there already)", count(moved.known)));
    }
    text.push_str(&format!(
        ", {}, {}, {}",
        plural(moved.artifacts, "artifact"),
        plural(moved.objects, "object"),
        bytes(moved.bytes)
    ));
    if moved.runs > 0 {
        text.push_str(&format!(", {}", plural(moved.runs, "run")));
    }
    text
}
