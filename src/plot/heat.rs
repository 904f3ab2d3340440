//! A matrix as a heat map: a number in each cell, and a colour that says how large it is.

use std::fmt::Write;

use super::escape;

/// From low to high; whatever stands on one of them is black or white, whichever is read better.
const COLOURS: [[f64; 3]; 5] =
    [[241.0, 238.0, 246.0], [189.0, 201.0, 225.0], [116.0, 169.0, 207.0], [43.0, 140.0, 190.0], [4.0, 90.0, 141.0]];
/// Sides of a cell with a number in it, in pixels.
const CELL: (f64, f64) = (76.0, 44.0);
/// The same of one that is too small for a number.
const SMALL: (f64, f64) = (26.0, 22.0);
/// Columns that have numbers in their cells.
const NUMBERED: usize = 16;
/// Rows and columns that are drawn.
const MOST: (usize, usize) = (64, 128);
/// Room for the names of rows, and of columns.
const MARGIN: (f64, f64) = (40.0, 26.0);

/// A matrix to draw.
#[derive(Debug, Clone, PartialEq)]
pub struct Heat<'a> {
    /// What it is, for who cannot see it and under the pointer.
    pub title: &'a str,
    /// Names of rows: short, there is room for four letters.
    pub rows: &'a [String],
    /// Names of columns.
    pub columns: &'a [String],
    /// Cells by row; `None` and what is not finite is drawn as no number.
    pub cells: &'a [Vec<Option<f64>>],
    /// Columns that belong to each row, one after another; their cells are outlined. 0: none.
    pub own: usize,
    /// What the first colour stands for and what the last.
    pub range: (f64, f64),
    /// Digits after the point.
    pub digits: usize,
}

impl Heat<'_> {
    /// Draws it. In each column the largest number is bold.
    pub fn svg(&self) -> String {
        let (rows, columns) = (self.cells.len().min(MOST.0), self.width().min(MOST.1));
        let numbered = columns <= NUMBERED;
        let (wide, high) = if numbered { CELL } else { SMALL };
        let (width, height) = (MARGIN.0 + wide * columns as f64 + 4.0, MARGIN.1 + high * rows as f64 + 4.0);
        let mut svg = format!(
            "<svg class=\"heat\" role=\"img\" xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" font-size=\"13\"><title>{}</title><desc>{}</desc>",
            escape(self.title),
            escape(&self.description(rows, columns))
        );
        for j in 0..columns {
            let x = MARGIN.0 + wide * (j as f64 + 0.5);
            // Where columns are narrow every fourth has its name.
            if numbered || j % 4 == 0 {
                let name = escape(self.columns.get(j).map_or("", String::as_str));
                let _ =
                    write!(svg, "<text x=\"{x}\" y=\"18\" text-anchor=\"middle\" fill=\"currentColor\">{name}</text>");
            }
        }
        let best: Vec<Option<f64>> = (0..columns).map(|j| self.largest(j)).collect();
        for k in 0..rows {
            let y = MARGIN.1 + high * k as f64;
            let name = escape(self.rows.get(k).map_or("", String::as_str));
            let middle = y + high / 2.0 + 4.5;
            let x = MARGIN.0 - 8.0;
            let _ =
                write!(svg, "<text x=\"{x}\" y=\"{middle}\" text-anchor=\"end\" fill=\"currentColor\">{name}</text>");
            for (j, best) in best.iter().enumerate() {
                let x = MARGIN.0 + wide * j as f64;
                self.cell(&mut svg, (k, j), (x, y), *best);
            }
        }
        // Above all cells, so that no neighbour lies on the line.
        for (k, j) in (0..rows).flat_map(|k| (0..columns).map(move |j| (k, j))).filter(|place| self.is_own(*place)) {
            let (x, y) = (MARGIN.0 + wide * j as f64 + 2.0, MARGIN.1 + high * k as f64 + 2.0);
            let (w, h) = (wide - 4.0, high - 4.0);
            let _ = write!(
                svg,
                "<rect class=\"own\" x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\" fill=\"none\" stroke=\"#e07b00\" stroke-width=\"3\"/>"
            );
        }
        svg.push_str("</svg>");
        svg
    }

    /// Columns of the widest row.
    fn width(&self) -> usize {
        self.cells.iter().map(Vec::len).max().unwrap_or(0)
    }

    fn at(&self, (k, j): (usize, usize)) -> Option<f64> {
        self.cells.get(k).and_then(|row| row.get(j).copied().flatten()).filter(|value| value.is_finite())
    }

    fn is_own(&self, (k, j): (usize, usize)) -> bool {
        self.own > 0 && j / self.own == k
    }

    fn largest(&self, j: usize) -> Option<f64> {
        (0..self.cells.len()).filter_map(|k| self.at((k, j))).max_by(f64::total_cmp)
    }

    fn name(&self, (k, j): (usize, usize)) -> String {
        let part = |names: &[String], at: usize| names.get(at).cloned().unwrap_or_else(|| (at + 1).to_string());
        format!("{} × {}", part(self.rows, k), part(self.columns, j))
    }

    fn cell(&self, svg: &mut String, place: (usize, usize), (x, y): (f64, f64), best: Option<f64>) {
        let numbered = self.width().min(MOST.1) <= NUMBERED;
        let (wide, high) = if numbered { CELL } else { SMALL };
        let value = self.at(place);
        let name = escape(&self.name(place));
        let own = if self.is_own(place) { ", its own" } else { "" };
        let (w, h) = (wide - 2.0, high - 2.0);
        let (x, y) = (x + 1.0, y + 1.0);
        let middle = (x + w / 2.0, y + h / 2.0 + 4.5);
        let Some(value) = value else {
            let _ = write!(
                svg,
                "<g><title>{name}{own}: no number</title><rect x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\" fill=\"none\" \
                 stroke=\"currentColor\" stroke-dasharray=\"3 3\"/>"
            );
            if numbered {
                let _ = write!(
                    svg,
                    "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" fill=\"currentColor\">NaN</text>",
                    middle.0, middle.1
                );
            }
            svg.push_str("</g>");
            return;
        };
        let colour = colour(value, self.range);
        let text = format!("{value:.*}", self.digits);
        let _ = write!(
            svg,
            "<g><title>{name}{own}: {text}</title><rect x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\" fill=\"{}\"/>",
            hex(colour)
        );
        if numbered {
            let weight = if best == Some(value) { " font-weight=\"700\"" } else { "" };
            // A style beats that of the page, which has all text in the ink of the theme.
            let ink = if is_dark(colour) { "on-dark" } else { "on-light" };
            let fill = if is_dark(colour) { "#fff" } else { "#000" };
            let _ = write!(
                svg,
                "<text class=\"{ink}\" x=\"{}\" y=\"{}\" text-anchor=\"middle\" fill=\"{fill}\"{weight}>{text}</text>",
                middle.0, middle.1
            );
        }
        svg.push_str("</g>");
    }

    /// The matrix in words; of a large one how large it is.
    fn description(&self, rows: usize, columns: usize) -> String {
        let (all_rows, all_columns) = (self.cells.len(), self.width());
        let mut text = format!("{all_rows} rows and {all_columns} columns.");
        if (rows, columns) != (all_rows, all_columns) {
            let _ = write!(text, " The first {rows} rows and {columns} columns are drawn.");
        }
        if rows * columns <= 36 {
            for place in (0..rows).flat_map(|k| (0..columns).map(move |j| (k, j))) {
                let value =
                    self.at(place).map_or_else(|| "no number".to_owned(), |value| format!("{value:.*}", self.digits));
                let _ = write!(text, " {}: {value}.", self.name(place));
            }
        }
        text
    }
}

/// The colours from the first to the last with the numbers that they stand for.
pub fn legend(range: (f64, f64), digits: usize, unit: &str) -> String {
    let (width, height) = (220.0, 34.0);
    let part = width / 44.0;
    let mut svg = format!(
        "<svg class=\"legend\" role=\"img\" xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-size=\"12\"><title>colours from {:.digits$} to {:.digits$} {}</title>",
        range.0,
        range.1,
        escape(unit)
    );
    for step in 0..44 {
        let at = range.0 + (range.1 - range.0) * f64::from(step) / 43.0;
        let x = part * f64::from(step);
        let _ = write!(
            svg,
            "<rect x=\"{x}\" y=\"0\" width=\"{}\" height=\"14\" fill=\"{}\"/>",
            part + 0.5,
            hex(colour(at, range))
        );
    }
    let _ = write!(
        svg,
        "<text x=\"0\" y=\"30\" fill=\"currentColor\">{:.digits$}</text>\
         <text x=\"{width}\" y=\"30\" text-anchor=\"end\" fill=\"currentColor\">{:.digits$} {}</text></svg>",
        range.0,
        range.1,
        escape(unit)
    );
    svg
}

/// The smallest and the largest number of some; from 0 to 1 if there are none, and never from a number to itself.
pub fn range(numbers: impl Iterator<Item = f64>) -> (f64, f64) {
    let finite = numbers.filter(|number| number.is_finite());
    let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), one| (low.min(one), high.max(one)));
    match high - low {
        between if between > 0.0 => (low, high),
        between if between == 0.0 => (low - 0.5, high + 0.5),
        _ => (0.0, 1.0),
    }
}

fn colour(value: f64, (low, high): (f64, f64)) -> [f64; 3] {
    let share = ((value - low) / (high - low)).clamp(0.0, 1.0);
    let place = if share.is_finite() { share * (COLOURS.len() - 1) as f64 } else { 0.0 };
    let first = (place as usize).min(COLOURS.len() - 2);
    let between = place - first as f64;
    let mut mixed = [0.0; 3];
    for (part, mixed) in mixed.iter_mut().enumerate() {
        *mixed = COLOURS[first][part] * (1.0 - between) + COLOURS[first + 1][part] * between;
    }
    mixed
}

fn hex(colour: [f64; 3]) -> String {
    let [red, green, blue] = colour.map(|part| part.round() as u8);
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// Whether white is read better than black on a colour: by the contrast of WCAG 2.
fn is_dark(colour: [f64; 3]) -> bool {
    let light = luminance(colour);
    1.05 / (light + 0.05) > (light + 0.05) / 0.05
}

fn luminance(colour: [f64; 3]) -> f64 {
    let [red, green, blue] = colour.map(|part| {
        let part = part / 255.0;
        if part <= 0.04045 { part / 12.92 } else { ((part + 0.055) / 1.055).powf(2.4) }
    });
    0.2126 * red + 0.7152 * green + 0.0722 * blue
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heat(cells: &[Vec<Option<f64>>], own: usize) -> String {
        let names = |letter: &str, count: usize| (1..=count).map(|n| format!("{letter}{n}")).collect::<Vec<_>>();
        let columns = cells.iter().map(Vec::len).max().unwrap_or(0);
        let range = range(cells.iter().flatten().flatten().copied());
        let (rows, columns) = (names("C", cells.len()), names("R<", columns));
        Heat { title: "a <b>", rows: &rows, columns: &columns, cells, own, range, digits: 1 }.svg()
    }

    #[test]
    fn a_matrix_has_its_numbers_its_own_cells_and_its_words() {
        let svg = heat(&[vec![Some(-11.82), Some(-20.0)], vec![None, Some(f64::NAN)]], 1);
        assert!(svg.contains("<title>a &lt;b&gt;</title>") && !svg.contains("R<"), "{svg}");
        assert!(
            svg.contains(" C1 × R&lt;1: -11.8. C1 × R&lt;2: -20.0. C2 × R&lt;1: no number. C2 × R&lt;2: no number."),
            "{svg}"
        );
        assert_eq!((svg.matches("class=\"own\"").count(), svg.matches(">NaN<").count()), (2, 2), "{svg}");
        assert_eq!(svg.matches("font-weight=\"700\"").count(), 2, "the largest of each column: {svg}");
        assert!(svg.contains("fill=\"#045a8d\"") && svg.contains("fill=\"#f1eef6\""), "{svg}");
    }

    #[test]
    fn any_matrix_can_be_drawn() {
        for cells in [vec![], vec![vec![]], vec![vec![Some(0.0)], vec![]], vec![vec![Some(f64::INFINITY); 3]; 2]] {
            assert!(heat(&cells, 2).ends_with("</svg>"));
        }
        let large = heat(&vec![vec![Some(1.0); 500]; 200], 1);
        assert!(large.contains("200 rows and 500 columns. The first 64 rows and 128 columns are drawn."), "{large}");
        assert_eq!(large.matches("<g>").count(), 64 * 128);
        assert_eq!(range([f64::NAN, 2.0].into_iter()), (1.5, 2.5));
        assert_eq!(range(std::iter::empty()), (0.0, 1.0));
    }

    #[test]
    fn numbers_can_be_read_on_every_colour() {
        for step in 0..=200 {
            let colour = colour(f64::from(step), (0.0, 200.0));
            let (light, ink) = (luminance(colour), if is_dark(colour) { 1.0 } else { 0.0 });
            let contrast = (light.max(ink) + 0.05) / (light.min(ink) + 0.05);
            assert!(contrast >= 4.5, "{contrast} at {step}");
        }
        assert!(legend((-40.0, -7.5), 1, "nats").contains("colours from -40.0 to -7.5 nats"));
    }
}
