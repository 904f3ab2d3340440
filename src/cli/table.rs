//! Columns that are aligned where there is room for them, and lines of words where there is not.

use serde::{Deserialize, Serialize};

use super::figures::{columns, plain};
use super::screen::Screen;

/// Narrowest that a column of text becomes before the table is told in another form.
const NARROW: usize = 16;
/// Between two columns.
const GAP: usize = 2;

/// Rows under headers, laid out when it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    right: Vec<usize>,
}

impl Table {
    /// A table without rows; `right` are the columns, from 0, that are set to the right.
    pub(crate) fn new<H: Into<String>>(headers: impl IntoIterator<Item = H>, right: &[usize]) -> Self {
        Self { rows: vec![headers.into_iter().map(Into::into).collect()], right: right.to_vec() }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| plain(&cell)).collect());
    }

    /// Whether it has no rows.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    /// The lines for standard output. Columns in which no row says anything are left out.
    pub(crate) fn text(&self) -> String {
        self.on(Screen::of_stdout())
    }

    /// The lines for a screen: aligned under headers; of columns of text that are too wide, cells go on in further lines; on a
    /// narrow screen each row is a paragraph; with `--plain` each is a line of names and values.
    pub(crate) fn on(&self, screen: Screen) -> String {
        let wanted = self.widths();
        if screen.plain {
            return self.rows[1..].iter().map(|row| self.words(row, &wanted)).collect();
        }
        match screen.room.map_or(Some(wanted.clone()), |room| self.fit(&wanted, room)) {
            Some(widths) => self.rows.iter().map(|row| self.aligned(row, &widths)).collect(),
            None => self.rows[1..].iter().map(|row| self.paragraph(row, &wanted, screen.width)).collect(),
        }
    }

    /// Columns in which some row says something, and how wide each is.
    fn widths(&self) -> Vec<(usize, usize)> {
        let count = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize, rows: &[Vec<String>]| {
            rows.iter().filter_map(|row| row.get(column)).map(|cell| columns(cell)).max().unwrap_or(0)
        };
        (0..count)
            .filter(|&column| width(column, &self.rows[1..]) > 0)
            .map(|column| (column, width(column, &self.rows)))
            .collect()
    }

    /// The same columns, those of text made narrower until all fit; `None` if they do not.
    fn fit(&self, wanted: &[(usize, usize)], room: usize) -> Option<Vec<(usize, usize)>> {
        let mut widths = wanted.to_vec();
        loop {
            let all = widths.iter().map(|(_, width)| width + GAP).sum::<usize>().saturating_sub(GAP);
            if all <= room {
                return Some(widths);
            }
            // Numbers and names in the first column stay whole, and words are broken only where they are too long.
            let texts = widths.iter_mut().filter(|(column, _)| *column > 0 && !self.right.contains(column));
            let (column, width) = texts.max_by_key(|(_, width)| *width)?;
            let word = self.rows.iter().filter_map(|row| row.get(*column)).flat_map(|cell| cell.split(' '));
            let least = word.map(columns).max().unwrap_or(0).clamp(NARROW, 2 * NARROW);
            if *width <= least {
                return None;
            }
            *width = (*width - (all - room).min(*width)).max(least);
        }
    }

    fn aligned(&self, row: &[String], widths: &[(usize, usize)]) -> String {
        let cell = |column: usize| row.get(column).map_or("", String::as_str);
        let cells: Vec<Vec<String>> = widths.iter().map(|(column, width)| wrapped(cell(*column), *width)).collect();
        let height = cells.iter().map(Vec::len).max().unwrap_or(1);
        let mut text = String::new();
        for line in 0..height {
            let mut told = String::new();
            for ((column, width), cell) in widths.iter().zip(&cells) {
                let cell = cell.get(line).map_or("", String::as_str);
                let gap = " ".repeat(width.saturating_sub(columns(cell)));
                let parts = if self.right.contains(column) { [gap.as_str(), cell] } else { [cell, gap.as_str()] };
                told.extend(parts);
                told.push_str(&" ".repeat(GAP));
            }
            text.push_str(told.trim_end());
            text.push('\n');
        }
        text
    }

    /// The first cell on a line, the others with their headers below it.
    fn paragraph(&self, row: &[String], widths: &[(usize, usize)], room: usize) -> String {
        let mut pairs = self.pairs(row, widths);
        let mut text = pairs.next().map_or_else(String::new, |(_, cell)| cell.to_owned());
        let mut line = String::new();
        for (header, cell) in pairs {
            let pair = format!("{header} {cell}");
            let pair = pair.trim();
            if !line.is_empty() && 2 + columns(&line) + 3 + columns(pair) > room {
                text.push_str(&format!("\n  {line}"));
                line.clear();
            }
            if line.is_empty() {
                let mut parts = wrapped(pair, room.saturating_sub(4).max(NARROW));
                line = parts.pop().unwrap_or_default();
                let is_first = parts.is_empty();
                for (number, part) in parts.iter().enumerate() {
                    text.push_str(&format!("\n{}{part}", if number == 0 { "  " } else { "    " }));
                }
                if !is_first {
                    line.insert_str(0, "  ");
                }
            } else {
                line.push_str(" · ");
                line.push_str(pair);
            }
        }
        if !line.is_empty() {
            text.push_str(&format!("\n  {line}"));
        }
        text.push('\n');
        text
    }

    /// A line that can be read out.
    fn words(&self, row: &[String], widths: &[(usize, usize)]) -> String {
        let pairs = self.pairs(row, widths).map(|(header, cell)| format!("{header} {cell}").trim().to_owned());
        pairs.collect::<Vec<_>>().join(", ") + "\n"
    }

    fn pairs<'a>(&'a self, row: &'a [String], widths: &[(usize, usize)]) -> impl Iterator<Item = (&'a str, &'a str)> {
        let shown: Vec<usize> = widths.iter().map(|(column, _)| *column).collect();
        let pair = move |column: usize| {
            let cell = row.get(column).map_or("", String::as_str);
            let header = self.rows[0].get(column).map_or("", String::as_str);
            (!cell.is_empty()).then_some((header, cell))
        };
        shown.into_iter().filter_map(pair)
    }
}

/// A text in lines of a width, broken between words where that can be.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    if columns(text) <= width {
        return vec![text.to_owned()];
    }
    let (mut lines, mut line) = (Vec::new(), String::new());
    for word in text.split(' ') {
        if !line.is_empty() && columns(&line) + 1 + columns(word) > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        let mut rest = word;
        while columns(&line) + columns(rest) > width {
            let mut end = 0;
            for (at, letter) in rest.char_indices() {
                if columns(&line) + columns(&rest[..at + letter.len_utf8()]) > width && at > 0 {
                    break;
                }
                end = at + letter.len_utf8();
            }
            line.push_str(&rest[..end]);
            lines.push(std::mem::take(&mut line));
            rest = &rest[end..];
        }
        line.push_str(rest);
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toy() -> Table {
        let mut table = Table::new(["node", "note", "seconds", "why"], &[2]);
        let row = |cells: [&str; 4]| cells.map(str::to_owned);
        table.row(row(["generate@1", "", "1.5", "its field `temperature` changed from 0.7 to 1.0"]));
        table.row(row(["日本", "", "12.25", ""]));
        table
    }

    #[test]
    fn columns_are_aligned_and_empty_ones_left_out() {
        let mut table = Table::new(["node", "note", "seconds"], &[2]);
        assert!(table.is_empty());
        table.row(["generate".to_owned(), String::new(), "1.5".to_owned()]);
        table.row(["é\u{1b}[1m".to_owned(), String::new(), "12.25".to_owned()]);
        table.row(["日本".to_owned(), String::new(), "2".to_owned()]);
        let wide = "node      seconds\ngenerate      1.5\né [1m       12.25\n日本            2\n";
        assert_eq!(table.on(Screen::piped()), wide);
        assert_eq!(table.on(Screen::plain(100)), wide);
    }

    #[test]
    fn wide_cells_go_on_below_and_narrow_screens_have_paragraphs() {
        assert_eq!(
            toy().on(Screen::plain(50)),
            "node        seconds  why\n\
             generate@1      1.5  its field `temperature`\n\
             \x20                    changed from 0.7 to 1.0\n\
             日本          12.25\n"
        );
        assert_eq!(
            toy().on(Screen::plain(30)),
            "generate@1\n  seconds 1.5\n  why its field\n    `temperature` changed from\n    0.7 to 1.0\n日本\n  seconds 12.25\n"
        );
        assert_eq!(
            toy().on(Screen::spoken()),
            "node generate@1, seconds 1.5, why its field `temperature` changed from 0.7 to 1.0\n\
             node 日本, seconds 12.25\n"
        );
    }

    #[test]
    fn nothing_is_wider_than_the_screen() {
        let mut table = toy();
        table.row([&"x".repeat(70), &"y ".repeat(70), "1", &"z".repeat(99)].map(ToOwned::to_owned));
        for width in [20, 40, 80, 200] {
            let text = table.on(Screen::plain(width));
            let too_wide = |line: &&str| columns(line) > width.max(70);
            assert_eq!(text.lines().find(too_wide), None, "at {width}:\n{text}");
        }
    }
}
