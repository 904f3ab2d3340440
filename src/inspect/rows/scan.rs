//! Rows as their bytes come by.

use super::{Ask, KEPT, Place, Row};

/// Bytes of a row that are held while it is taken in; of a longer one words are looked for in parts.
const HELD: usize = 32 << 20;

/// What was seen so far.
pub(super) struct Scan<'a> {
    ask: &'a Ask,
    rows: Vec<Row>,
    /// The row that is being taken in.
    at: Place,
    /// Its bytes so far, those before the last block; the first were let go where it is very long.
    held: Vec<u8>,
    /// Its beginning, if `held` has let go of it.
    beginning: Vec<u8>,
    /// How long it is so far, `held` and what was let go.
    length: u64,
    /// Which words of the filter were found in what was let go.
    words: Vec<bool>,
    /// Where looking began.
    start: u64,
    /// Whether as many bytes were looked at as may be.
    spent: bool,
}

impl<'a> Scan<'a> {
    pub(super) fn new(ask: &'a Ask, from: Place) -> Self {
        Self {
            ask,
            rows: Vec::new(),
            at: from,
            held: Vec::new(),
            beginning: Vec::new(),
            length: 0,
            words: vec![false; ask.filter.words()],
            start: from.byte,
            spent: false,
        }
    }

    /// Whether no more is to be looked at.
    pub(super) fn is_done(&self) -> bool {
        self.spent
    }

    pub(super) fn into_found(self) -> (Vec<Row>, Place) {
        (self.rows, self.at)
    }

    /// Takes the next bytes in.
    pub(super) fn see(&mut self, block: &[u8]) {
        let mut rest = block;
        if self.ask.filter.is_empty() {
            rest = self.pass_over(block);
        }
        while let Some(end) = memchr::memchr(b'\n', rest) {
            let (line, after) = (&rest[..end], &rest[end + 1..]);
            if self.length == 0 {
                self.row(line, line.len() as u64);
            } else {
                self.hold(line);
                self.held_row();
            }
            self.at.byte += 1;
            if self.spent {
                return;
            }
            rest = after;
        }
        self.hold(rest);
    }

    /// Without a filter: counts rows that are not wanted without looking at each; returns what is left of the block.
    fn pass_over<'b>(&mut self, block: &'b [u8]) -> &'b [u8] {
        let Some(last) = memchr::memrchr(b'\n', block) else { return block };
        let ends = memchr::memchr_iter(b'\n', block).count() as u64;
        let full = self.rows.len() >= self.ask.take && !self.rows.is_empty() || self.ask.take == 0;
        if !full && self.at.nth + ends > self.ask.nth {
            return block;
        }
        self.at.byte += self.length + last as u64 + 1;
        self.at.row += ends;
        self.at.nth += ends;
        self.length = 0;
        self.held.clear();
        self.beginning.clear();
        self.spend();
        if self.spent { &[] } else { &block[last + 1..] }
    }

    /// The file is at its end: what is left is a row without an end of line.
    pub(super) fn end(&mut self) {
        if self.length > 0 {
            self.held_row();
        }
    }

    /// Keeps the bytes of a row that goes on.
    fn hold(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        self.held.extend_from_slice(bytes);
        if self.held.len() > HELD {
            if self.beginning.is_empty() {
                self.beginning.extend_from_slice(&self.held[..KEPT]);
            }
            self.ask.filter.find(&self.held, &mut self.words);
            // A word may lie on both sides of a cut.
            self.held.drain(..self.held.len() - self.ask.filter.longest());
        }
    }

    fn held_row(&mut self) {
        let (held, length) = (std::mem::take(&mut self.held), self.length);
        self.row(&held, length);
        self.held = held;
        self.held.clear();
        self.beginning.clear();
        self.length = 0;
    }

    /// A row is complete.
    fn row(&mut self, line: &[u8], length: u64) {
        if self.ask.filter.passes(line, length, &mut self.words) {
            if self.at.nth >= self.ask.nth && self.rows.len() < self.ask.take {
                let kept = if self.beginning.is_empty() { line } else { &self.beginning };
                let text = String::from_utf8_lossy(&kept[..kept.len().min(KEPT)]).into_owned();
                self.rows.push(Row { at: self.at, length, text });
            }
            self.at.nth += 1;
        }
        self.at.row += 1;
        self.at.byte += length;
        self.spend();
    }

    fn spend(&mut self) {
        self.spent =
            self.at.byte - self.start >= self.ask.budget || self.ask.enough && self.rows.len() >= self.ask.take;
    }
}
