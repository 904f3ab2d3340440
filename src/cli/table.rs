//! Aligned columns for the terminal.

use super::figures::plain;

/// Rows under headers, aligned when it is written.
#[derive(Debug)]
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

    /// The lines, headers first. Columns in which no row says anything are left out.
    pub(crate) fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize, rows: &[Vec<String>]| {
            rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<(usize, usize)> = (0..columns)
            .filter(|&column| width(column, &self.rows[1..]) > 0)
            .map(|column| (column, width(column, &self.rows)))
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for &(column, width) in &widths {
                let cell = row.get(column).map_or("", String::as_str);
                let gap = " ".repeat(width - cell.chars().count());
                let parts = if self.right.contains(&column) { [gap.as_str(), cell] } else { [cell, gap.as_str()] };
                line.extend(parts);
                line.push_str("  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_empty_ones_left_out() {
        let mut table = Table::new(["node", "note", "seconds"], &[2]);
        assert!(table.is_empty());
        table.row(["generate".to_owned(), String::new(), "1.5".to_owned()]);
        table.row(["é\u{1b}[1m".to_owned(), String::new(), "12.25".to_owned()]);
        assert_eq!(table.text(), "node      seconds\ngenerate      1.5\né [1m       12.25\n");
    }
}
