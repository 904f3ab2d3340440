//! Pictures made of letters: bars, and curves over an axis.

use std::fmt::Write as _;

/// What a picture may be made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Letters {
    /// Lines, blocks and braille dots.
    Unicode,
    /// ASCII alone.
    Ascii,
}

/// A line of a picture, and what to call it.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// Points (x, y) in the order of x; those that are no numbers are gaps.
    pub points: Vec<(f64, f64)>,
}

/// How large a picture is, in letters, and what it is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Canvas {
    /// Columns, labels included.
    pub width: usize,
    /// Rows of the curve itself.
    pub height: usize,
    /// What it is made of.
    pub letters: Letters,
}

/// Marks of several series in one picture: a letter tells them apart, colour or not.
pub const MARKS: [char; 8] = ['*', 'o', '+', 'x', '#', '@', '%', '&'];

/// Digits of a number on an axis.
const DIGITS: usize = 4;

/// A bar that is filled by `share` of `width` letters: what is filled and what is not.
pub fn bar(share: f64, width: usize, letters: Letters) -> (String, String) {
    let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    let halves = (share * (2 * width) as f64).floor() as usize;
    let (full, half) = (halves / 2, halves % 2);
    let (line, end, rest) = match letters {
        Letters::Unicode => ("━", "╸", "─"),
        Letters::Ascii => ("=", ">", "-"),
    };
    let filled = line.repeat(full) + if half == 1 { end } else { "" };
    (filled, rest.repeat(width - full - half))
}

/// Curves over their x, with labelled axes; several are told apart by [`MARKS`], and a line below says which is which. Empty
/// if there is nothing to draw.
pub fn curves(series: &[Series], canvas: Canvas) -> Vec<String> {
    let is_there = |(x, y): &&(f64, f64)| x.is_finite() && y.is_finite();
    let points = || series.iter().flat_map(|series| series.points.iter().filter(is_there));
    let (Some(xs), Some(ys)) = (range(points().map(|point| point.0)), range(points().map(|point| point.1))) else {
        return Vec::new();
    };
    let ys = padded(ys);
    let height = canvas.height.max(2);
    let labels: Vec<String> = (0..height).map(|row| label_of(row, height, ys)).collect();
    let margin = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
    let (corner, tick, side, floor) = match canvas.letters {
        Letters::Unicode => ('└', '┤', '│', '─'),
        Letters::Ascii => ('+', '|', '|', '-'),
    };
    let width = canvas.width.saturating_sub(margin + 2).max(8);
    let mut picture = Picture::new(width, height, canvas.letters, series.len() > 1);
    for (number, series) in series.iter().enumerate() {
        let mut last = None;
        for (x, y) in &series.points {
            if !(x.is_finite() && y.is_finite()) {
                last = None;
                continue;
            }
            let at = (picture.across(*x, xs), picture.down(*y, ys));
            picture.line(last.unwrap_or(at), at, number);
            last = Some(at);
        }
    }
    let rows = picture.rows();
    let row = |(label, row): (&String, String)| {
        let edge = if label.is_empty() { side } else { tick };
        format!("{label:>margin$} {edge}{row}").trim_end().to_owned()
    };
    let mut lines: Vec<String> = labels.iter().zip(rows).map(row).collect();
    lines.push(format!("{:margin$} {corner}{}", "", floor.to_string().repeat(width)));
    let (left, right) = (number(xs.0), number(xs.1));
    let gap = width.saturating_sub(left.len() + right.len());
    lines.push(if xs.0 == xs.1 {
        format!("{:margin$}  {left}", "")
    } else {
        format!("{:margin$}  {left}{:gap$}{right}", "", "")
    });
    if series.len() > 1 {
        lines.extend(legend(series, canvas.width));
    }
    lines
}

/// Which mark is whose, on lines of a width.
fn legend(series: &[Series], width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for (number, series) in series.iter().enumerate() {
        let part = format!("{} {}", MARKS[number % MARKS.len()], series.name);
        match lines.last_mut() {
            Some(line) if line.chars().count() + 3 + part.chars().count() <= width => {
                let _ = write!(line, "   {part}");
            }
            _ => lines.push(part),
        }
    }
    lines
}

/// What a curve says, for who does not see it: ends, extremes, and some values between.
pub fn told(series: &Series, samples: usize) -> Vec<String> {
    let points: Vec<(f64, f64)> =
        series.points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
    let name = &series.name;
    let gaps = series.points.len() - points.len();
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return vec![format!("{name}: no values")];
    };
    let by = |one: &&(f64, f64), other: &&(f64, f64)| one.1.total_cmp(&other.1);
    let (least, most) = (points.iter().min_by(by).unwrap_or(first), points.iter().max_by(by).unwrap_or(first));
    let at = |point: &(f64, f64)| format!("{} at {}", number(point.1), number(point.0));
    let mut lines =
        vec![format!("{name}: first {}, last {}, lowest {}, highest {}", at(first), at(last), at(least), at(most))];
    if points.len() > 2 {
        let step = points.len().div_ceil(samples.max(1)).max(1);
        let shown: Vec<String> = points.iter().step_by(step).map(at).collect();
        lines.push(format!("{name}, in between: {}", shown.join(", ")));
    }
    if gaps > 0 {
        lines.push(format!("{name}: {gaps} without a number"));
    }
    lines
}

/// The ends of an axis that some numbers lie on.
fn range(numbers: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    numbers.fold(None, |range, number| {
        let (least, most) = range.unwrap_or((number, number));
        Some((least.min(number), most.max(number)))
    })
}

/// An axis that is no point.
fn padded((least, most): (f64, f64)) -> (f64, f64) {
    if most > least {
        return (least, most);
    }
    let half = (least.abs() * 0.1).max(f64::MIN_POSITIVE).max(if least == 0.0 { 1.0 } else { 0.0 });
    (least - half, most + half)
}

/// The label of a row: its value where there is one to be told.
fn label_of(row: usize, height: usize, (least, most): (f64, f64)) -> String {
    let every = if height > 6 { (height - 1).div_ceil(4) } else { height - 1 };
    if !row.is_multiple_of(every.max(1)) && row + 1 != height {
        return String::new();
    }
    // Two labels on neighbouring rows say no more than one.
    if row + 1 != height && height - 1 - row < every.div_ceil(2) {
        return String::new();
    }
    let share = row as f64 / (height - 1) as f64;
    let value = most * (1.0 - share) + least * share;
    // What rounding left of nothing.
    number(if value.abs() < (most - least).abs() * 1e-9 { 0.0 } else { value })
}

/// A number on an axis.
fn number(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let magnitude = value.abs().log10().floor();
    if !(-4.0..7.0).contains(&magnitude) {
        let text = format!("{value:.2e}");
        return match text.split_once('e') {
            Some((digits, power)) if digits.contains('.') => {
                format!("{}e{power}", digits.trim_end_matches('0').trim_end_matches('.'))
            }
            _ => text,
        };
    }
    let places = (DIGITS as f64 - 1.0 - magnitude).clamp(0.0, 7.0) as usize;
    let text = format!("{value:.places$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// Dots on a grid that is finer than letters where braille is to be had.
struct Picture {
    width: usize,
    height: usize,
    /// Dots per letter, across and down.
    dots: (usize, usize),
    /// By rows of letters: bits of braille, or the mark.
    cells: Vec<u32>,
    marked: bool,
}

/// Bits of the dots of a braille letter, by column and row.
const BRAILLE: [[u32; 4]; 2] = [[0x01, 0x02, 0x04, 0x40], [0x08, 0x10, 0x20, 0x80]];

impl Picture {
    fn new(width: usize, height: usize, letters: Letters, several: bool) -> Self {
        let marked = several || letters == Letters::Ascii;
        let dots = if marked { (1, 1) } else { (2, 4) };
        Self { width, height, dots, cells: vec![0; width * height], marked }
    }

    fn across(&self, x: f64, (least, most): (f64, f64)) -> f64 {
        let share = if most > least { x / (most - least) - least / (most - least) } else { 0.0 };
        share.clamp(0.0, 1.0) * (self.width * self.dots.0 - 1) as f64
    }

    fn down(&self, y: f64, (least, most): (f64, f64)) -> f64 {
        let share = y / (most - least) - least / (most - least);
        (1.0 - share.clamp(0.0, 1.0)) * (self.height * self.dots.1 - 1) as f64
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64), series: usize) {
        let steps = (to.0 - from.0).abs().max((to.1 - from.1).abs()).ceil().max(1.0);
        for step in 0..=steps as usize {
            let share = step as f64 / steps;
            let (x, y) = (from.0 + (to.0 - from.0) * share, from.1 + (to.1 - from.1) * share);
            self.dot(x.round() as usize, y.round() as usize, series);
        }
    }

    fn dot(&mut self, x: usize, y: usize, series: usize) {
        let at = (y / self.dots.1) * self.width + x / self.dots.0;
        if self.marked {
            self.cells[at] = MARKS[series % MARKS.len()] as u32;
        } else {
            self.cells[at] |= BRAILLE[x % 2][y % 4];
        }
    }

    fn rows(&self) -> impl Iterator<Item = String> {
        self.cells.chunks(self.width).map(|row| row.iter().map(|cell| self.letter(*cell)).collect())
    }

    fn letter(&self, cell: u32) -> char {
        let code = match cell {
            0 => return ' ',
            mark if self.marked => mark,
            bits => 0x2800 + bits,
        };
        char::from_u32(code).unwrap_or(' ')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &str, values: &[f64]) -> Series {
        Series {
            name: name.to_owned(),
            points: values.iter().enumerate().map(|(step, value)| (step as f64 + 1.0, *value)).collect(),
        }
    }

    #[test]
    fn bars_fill_by_halves_and_are_always_as_wide() {
        assert_eq!(bar(0.5, 4, Letters::Unicode), ("━━".to_owned(), "──".to_owned()));
        assert_eq!(bar(0.65, 4, Letters::Ascii), ("==>".to_owned(), "-".to_owned()));
        for share in [-1.0, 0.0, 0.01, 0.999, 1.0, 7.0, f64::NAN, f64::INFINITY] {
            let (filled, rest) = bar(share, 10, Letters::Unicode);
            assert_eq!(filled.chars().count() + rest.chars().count(), 10, "{share}");
        }
        assert_eq!(bar(0.999, 10, Letters::Ascii).1, "", "the last letter is half full");
    }

    #[test]
    fn a_curve_has_its_extremes_at_the_edges_and_its_axis_labelled() {
        let canvas = Canvas { width: 30, height: 5, letters: Letters::Ascii };
        assert_eq!(
            curves(&[series("loss", &[4.0, 3.0, 2.0, 1.0, 0.0])], canvas),
            [
                "4 |****",
                "  |    ******",
                "  |          *******",
                "  |                 ******",
                "0 |                       ****",
                "  +---------------------------",
                "   1                         5",
            ]
        );
    }

    #[test]
    fn one_curve_is_drawn_in_dots_and_several_in_marks_with_their_names() {
        let canvas = Canvas { width: 40, height: 4, letters: Letters::Unicode };
        let (one, other) = (series("a", &[0.0, 1.0, 4.0]), series("b", &[4.0, 1.0, 0.0]));
        let alone = curves(std::slice::from_ref(&one), canvas).join("\n");
        assert!(alone.chars().any(|letter| ('\u{2801}'..='\u{28ff}').contains(&letter)), "{alone}");
        let both = curves(&[one, other], canvas);
        assert_eq!(both.last().map(String::as_str), Some("* a   o b"));
        assert!(both[0].contains('*') && both[0].contains('o'), "{both:#?}");
        assert!(both.iter().all(|line| line.chars().count() <= 40), "{both:#?}");
    }

    #[test]
    fn whatever_the_numbers_are_a_picture_stays_within_its_canvas() {
        let odd = [
            vec![],
            vec![f64::NAN; 3],
            vec![1.0],
            vec![0.0, 0.0],
            vec![-5.0, f64::NAN, f64::INFINITY, 5.0],
            vec![1e-300, 1e300],
            vec![-1.7e308, 1.7e308],
            vec![123_456_789.0, 123_456_790.0],
            (0..10_000).map(|step| f64::from(step).sin()).collect(),
        ];
        for values in odd {
            for (width, letters) in [(20, Letters::Ascii), (40, Letters::Unicode), (200, Letters::Unicode)] {
                let canvas = Canvas { width, height: 8, letters };
                let lines = curves(&[series("x", &values)], canvas);
                let is_there = values.iter().any(|value| value.is_finite());
                assert_eq!(lines.len(), if is_there { 10 } else { 0 }, "{values:?}");
                assert!(lines.iter().all(|line| line.chars().count() <= width.max(24)), "{lines:#?}");
            }
        }
    }

    #[test]
    fn a_curve_can_be_told() {
        assert_eq!(
            told(&series("loss", &[2.0, f64::NAN, 0.5, 1.0]), 2),
            [
                "loss: first 2 at 1, last 1 at 4, lowest 0.5 at 3, highest 2 at 1",
                "loss, in between: 2 at 1, 1 at 4",
                "loss: 1 without a number",
            ]
        );
        assert_eq!(told(&series("loss", &[]), 2), ["loss: no values"]);
    }

    #[test]
    fn numbers_on_an_axis_are_short() {
        let texts = [0.0, 1.0, -0.25, std::f64::consts::LN_2, 1234.5, 1e-7, 2.5e12].map(number);
        assert_eq!(texts, ["0", "1", "-0.25", "0.6931", "1234", "1e-7", "2.5e12"]);
    }
}
