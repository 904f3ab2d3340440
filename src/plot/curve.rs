//! Curves: figures over steps or iterations, several series in one picture.

use std::fmt::Write;

use super::axis::Axis;
use super::escape;
use super::svg::{colour, cut, dash, place};

const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 212.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 40.0;
const RIGHT: f64 = 14.0;
/// Width of a letter of the small font.
const LETTER: f64 = 6.4;
/// Series that are drawn; the rest is counted.
const DRAWN: usize = 24;
/// Up to how many points of a series each has a dot with its value.
const DOTTED: usize = 40;
/// Places along the picture at which a long series' least and largest are drawn.
const PLACES: usize = 340;
/// Letters of the title.
const TITLE: usize = 40;

/// A point of a series.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Along the picture: a step, an iteration.
    pub x: f64,
    /// The figure; what is not finite is a gap, and marked.
    pub y: f64,
    /// The interval that it is in.
    pub interval: Option<[f64; 2]>,
}

impl From<(f64, f64)> for Point {
    fn from((x, y): (f64, f64)) -> Self {
        Self { x, y, interval: None }
    }
}

/// A line of the picture.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Series {
    /// What it is of.
    pub name: String,
    /// Its points, in order.
    pub points: Vec<Point>,
    /// Its look; series of one number look alike in all pictures of a page.
    pub look: usize,
}

/// A number that is drawn all along, such as what a figure cannot exceed.
#[derive(Debug, Clone, PartialEq)]
pub struct Level {
    /// What it is.
    pub name: String,
    /// Where it is.
    pub value: f64,
}

/// Curves in one picture.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Curves {
    /// What they show.
    pub title: String,
    /// What is counted along the picture.
    pub x: String,
    /// In what the figure is measured.
    pub unit: String,
    /// The lines.
    pub series: Vec<Series>,
    /// Numbers drawn all along.
    pub levels: Vec<Level>,
    /// Whether the picture says itself which line is which; pages that have several pictures of the same series say it once.
    pub legend: bool,
}

impl Curves {
    /// The picture.
    pub fn svg(&self) -> String {
        let drawn = &self.series[..self.series.len().min(DRAWN)];
        let points = || drawn.iter().flat_map(|series| &series.points);
        let counted = |point: &&Point| point.y.is_finite();
        let whole = points().all(|point| point.x.fract() == 0.0);
        let (first, last) = points()
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(first, last), point| (first.min(point.x), last.max(point.x)));
        let x = match last - first {
            // A single step, or none at all, stands in the middle.
            apart if apart.is_nan() || apart <= 0.0 => {
                let middle = if first.is_finite() { first } else { 1.0 };
                Axis::exactly(middle - 1.0, middle + 1.0, 2).marked(vec![middle])
            }
            apart => {
                let axis = Axis::exactly(first, last, 5);
                let each = || (0..=apart as u64).map(|tick| first + tick as f64).collect();
                if whole && apart <= 8.0 { axis.marked(each()) } else { axis }
            }
        };
        let ends = points().filter(counted).flat_map(|point| point.interval.into_iter().flatten());
        let levels = self.levels.iter().map(|level| level.value);
        let numbers: Vec<f64> = points().filter(counted).map(|point| point.y).chain(ends).chain(levels).collect();
        let y = Axis::wide(numbers.iter().copied(), 4);
        let labels: Vec<String> = y.ticks.iter().map(|tick| y.label(*tick)).collect();
        let widest = labels.iter().map(|label| label.chars().count()).max().unwrap_or(1) as f64;
        let left = 10.0 + widest * LETTER;
        let legend = self.legend_rows(drawn);
        let height = HEIGHT + 16.0 * legend.len() as f64;
        let frame = Frame { left, x: &x, y: &y };
        let (title, told) = (escape(&cut(&self.title, TITLE)), escape(&self.told()));
        let mut svg = format!(
            "<svg class=\"plot curves\" role=\"img\" viewBox=\"0 0 {WIDTH} {}\" xmlns=\"http://www.w3.org/2000/svg\" \
             font-family=\"system-ui,sans-serif\" font-size=\"11\"><title>{}</title><desc>{told}</desc>\
             <text x=\"0\" y=\"13\" font-size=\"13\" font-weight=\"600\" fill=\"#1f2328\">{title}</text>",
            place(height),
            escape(&self.title),
        );
        let unit = format!("{}{}", self.unit, if y.log { ", logarithmic" } else { "" });
        let broken = points().filter(|point| !point.y.is_finite()).count();
        let unit = match broken {
            0 => unit,
            1 => format!("{unit} · 1 value is not a number (×)"),
            broken => format!("{unit} · {broken} values are no numbers (×)"),
        };
        let _ = write!(
            svg,
            "<text x=\"0\" y=\"27\" class=\"faint\" fill=\"#59636e\">{}</text>",
            escape(unit.trim_start_matches(" · "))
        );
        for (tick, label) in y.ticks.iter().zip(&labels) {
            let at = frame.y(*tick);
            let _ = write!(
                svg,
                "<line x1=\"{0}\" x2=\"{1}\" y1=\"{2}\" y2=\"{2}\" stroke=\"var(--line,#d1d9e0)\"/>\
                 <text x=\"{3}\" y=\"{4}\" text-anchor=\"end\" class=\"faint\" fill=\"#59636e\">{5}</text>",
                place(left),
                place(WIDTH - RIGHT),
                place(at),
                place(left - 5.0),
                place(at + 3.8),
                escape(label)
            );
        }
        let floor = HEIGHT - BOTTOM;
        for tick in &x.ticks {
            let at = frame.x(*tick);
            let _ = write!(
                svg,
                "<line x1=\"{0}\" x2=\"{0}\" y1=\"{1}\" y2=\"{2}\" stroke=\"var(--muted,#59636e)\"/>\
                 <text x=\"{0}\" y=\"{3}\" text-anchor=\"middle\" class=\"faint\" fill=\"#59636e\">{4}</text>",
                place(at),
                place(floor),
                place(floor + 4.0),
                place(floor + 16.0),
                escape(&x.label(*tick))
            );
        }
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" class=\"faint\" fill=\"#59636e\">{}</text>",
            place(WIDTH - RIGHT),
            place(floor + 31.0),
            escape(&self.x)
        );
        for level in &self.levels {
            let at = frame.y(level.value);
            let _ = write!(
                svg,
                "<line x1=\"{0}\" x2=\"{1}\" y1=\"{2}\" y2=\"{2}\" stroke=\"var(--muted,#59636e)\" stroke-width=\"1.3\" \
                 stroke-dasharray=\"1 3\" stroke-linecap=\"round\"/>\
                 <text x=\"{1}\" y=\"{3}\" text-anchor=\"end\" class=\"faint\" fill=\"#59636e\">{4}</text>",
                place(left),
                place(WIDTH - RIGHT),
                place(at),
                place(if at < TOP + 14.0 { at + 12.0 } else { at - 4.0 }),
                escape(&cut(&level.name, 40))
            );
        }
        drawn.iter().for_each(|series| frame.draw(series, &mut svg));
        if numbers.is_empty() {
            let _ = write!(
                svg,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" class=\"faint\" fill=\"#59636e\">no values yet</text>",
                place(f64::midpoint(left, WIDTH - RIGHT)),
                place(f64::midpoint(TOP, floor))
            );
        }
        for (row, parts) in legend.iter().enumerate() {
            let baseline = HEIGHT + 16.0 * row as f64 + 2.0;
            for (at, part) in parts {
                let _ = write!(
                    svg,
                    "<line x1=\"{}\" x2=\"{}\" y1=\"{3}\" y2=\"{3}\" stroke=\"{4}\" stroke-width=\"2.5\"{5}/>\
                     <text x=\"{}\" y=\"{6}\" fill=\"#1f2328\">{7}</text>",
                    place(*at),
                    place(at + 22.0),
                    place(at + 27.0),
                    place(baseline - 4.0),
                    colour(part.look),
                    dash(part.look),
                    place(baseline),
                    escape(&short(&part.name))
                );
            }
        }
        if self.series.len() > drawn.len() {
            let _ = write!(
                svg,
                "<text x=\"{}\" y=\"{}\" class=\"faint\" fill=\"#59636e\">… {} more series are not drawn</text>",
                place(left),
                place(floor + 31.0),
                self.series.len() - drawn.len()
            );
        }
        svg.push_str("</svg>");
        svg
    }

    /// The picture in words.
    fn told(&self) -> String {
        let told = self.series.iter().take(DRAWN).map(|series| {
            let finite: Vec<&Point> = series.points.iter().filter(|point| point.y.is_finite()).collect();
            match (finite.first(), finite.last()) {
                (Some(first), Some(last)) => {
                    let (x, name) = (&self.x, &series.name);
                    let low = finite.iter().map(|point| point.y).fold(f64::INFINITY, f64::min);
                    let high = finite.iter().map(|point| point.y).fold(f64::NEG_INFINITY, f64::max);
                    format!(
                        "{name}: {} at {x} {}, {} at {x} {}, between {} and {}.",
                        number(first.y),
                        first.x,
                        number(last.y),
                        last.x,
                        number(low),
                        number(high)
                    )
                }
                _ => format!("{}: no values.", series.name),
            }
        });
        let levels = self.levels.iter().map(|level| format!("{}: {}.", level.name, number(level.value)));
        told.chain(levels).collect::<Vec<_>>().join(" ")
    }

    /// Which series stand in each row of the legend, and where they begin.
    fn legend_rows<'a>(&self, drawn: &'a [Series]) -> Vec<Vec<(f64, &'a Series)>> {
        let mut rows: Vec<Vec<(f64, &Series)>> = Vec::new();
        if !self.legend || drawn.len() < 2 {
            return rows;
        }
        let mut end = f64::INFINITY;
        for series in drawn {
            let width = 27.0 + short(&series.name).chars().count() as f64 * LETTER + 14.0;
            if end + width > WIDTH {
                rows.push(Vec::new());
                end = 0.0;
            }
            rows.iter_mut().last().into_iter().for_each(|row| row.push((end, series)));
            end += width;
        }
        rows
    }
}

/// A series' name as a legend has it.
fn short(name: &str) -> String {
    cut(name, 44)
}

/// A number to four digits.
fn number(number: f64) -> String {
    let magnitude = number.abs().log10().floor();
    if number == 0.0 || (-4.0..6.0).contains(&magnitude) {
        let decimals = if number == 0.0 { 0 } else { (3.0 - magnitude).clamp(0.0, 7.0) as usize };
        format!("{number:.decimals$}")
    } else {
        format!("{number:.3e}")
    }
}

/// The part of a picture that curves are drawn in.
struct Frame<'a> {
    left: f64,
    x: &'a Axis,
    y: &'a Axis,
}

impl Frame<'_> {
    fn x(&self, x: f64) -> f64 {
        self.left + 6.0 + (WIDTH - RIGHT - self.left - 12.0) * self.x.at(x)
    }

    fn y(&self, y: f64) -> f64 {
        HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * self.y.at(y)
    }

    fn draw(&self, series: &Series, svg: &mut String) {
        let stroke = colour(series.look);
        let mut path = String::new();
        let mut down = false;
        for point in thinned(&series.points) {
            if !point.y.is_finite() {
                down = false;
                continue;
            }
            let _ =
                write!(path, "{}{} {}", if down { 'L' } else { 'M' }, place(self.x(point.x)), place(self.y(point.y)));
            down = true;
        }
        let few = series.points.len() <= DOTTED;
        if !path.is_empty() {
            let _ = write!(
                svg,
                "<path d=\"{path}\" fill=\"none\" stroke=\"{stroke}\" stroke-width=\"1.8\" stroke-linejoin=\"round\" \
                 stroke-linecap=\"round\"{}/>",
                dash(series.look)
            );
        }
        for (at, point) in series.points.iter().enumerate() {
            if !point.y.is_finite() {
                // So many that they would cover the floor say no more than the count beside the title.
                if few || at % (series.points.len() / DOTTED) == 0 {
                    let floor = HEIGHT - BOTTOM;
                    let _ = write!(
                        svg,
                        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" fill=\"{stroke}\">×</text>",
                        place(self.x(point.x)),
                        place(floor - 2.0)
                    );
                }
                continue;
            }
            if let Some([low, high]) = point.interval.filter(|ends| ends.iter().all(|end| end.is_finite())) {
                let _ = write!(
                    svg,
                    "<path d=\"M{x} {0}V{1}M{2} {0}h8M{2} {1}h8\" fill=\"none\" stroke=\"{stroke}\" stroke-width=\"1.4\"/>",
                    place(self.y(low)),
                    place(self.y(high)),
                    place(self.x(point.x) - 4.0),
                    x = place(self.x(point.x)),
                );
            }
            // A point between two gaps has no line.
            let alone = !series.points.get(at.wrapping_sub(1)).is_some_and(|point| point.y.is_finite())
                && !series.points.get(at + 1).is_some_and(|point| point.y.is_finite());
            if few || alone {
                let _ = write!(
                    svg,
                    "<circle cx=\"{}\" cy=\"{}\" r=\"2.4\" fill=\"{stroke}\"><title>{} at {}: {}</title></circle>",
                    place(self.x(point.x)),
                    place(self.y(point.y)),
                    escape(&series.name),
                    escape(&self.x.label(point.x)),
                    number(point.y)
                );
            }
        }
    }
}

/// The points of a long series that its picture needs: of each place along it the first, the last, the least and the largest, and one
/// gap.
fn thinned(points: &[Point]) -> Vec<Point> {
    if points.len() <= 4 * PLACES {
        return points.to_vec();
    }
    let mut kept = Vec::with_capacity(5 * PLACES);
    for chunk in points.chunks(points.len().div_ceil(PLACES)) {
        let order = |one: &&usize, other: &&usize| chunk[**one].y.total_cmp(&chunk[**other].y);
        let finite: Vec<usize> = (0..chunk.len()).filter(|at| chunk[*at].y.is_finite()).collect();
        let mut wanted: Vec<usize> =
            [finite.first(), finite.iter().min_by(order), finite.iter().max_by(order), finite.last()]
                .into_iter()
                .flatten()
                .copied()
                .chain((0..chunk.len()).find(|at| !chunk[*at].y.is_finite()))
                .collect();
        wanted.sort_unstable();
        wanted.dedup();
        kept.extend(wanted.into_iter().map(|at| chunk[at]));
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &str, look: usize, values: &[f64]) -> Series {
        let points = values.iter().enumerate().map(|(at, y)| Point::from((at as f64 + 1.0, *y))).collect();
        Series { name: name.to_owned(), points, look }
    }

    fn curves(series: Vec<Series>) -> Curves {
        Curves {
            title: "loss".to_owned(),
            x: "step".to_owned(),
            unit: "nats".to_owned(),
            series,
            levels: Vec::new(),
            legend: true,
        }
    }

    #[test]
    fn a_picture_says_in_words_what_it_shows() {
        let two = curves(vec![series("finetune@1", 0, &[2.0, 1.5, 1.0]), series("finetune@2", 1, &[1.0, 1.25])]);
        let svg = two.svg();
        assert!(svg.contains("<title>loss</title>"), "{svg}");
        let told = "finetune@1: 2.000 at step 1, 1.000 at step 3, between 1.000 and 2.000. \
                    finetune@2: 1.000 at step 1, 1.250 at step 2, between 1.000 and 1.250.";
        assert!(svg.contains(told), "{svg}");
        assert_eq!(svg.matches("<path").count(), 2);
        assert!(svg.contains(">finetune@2</text>") && svg.contains("stroke-dasharray=\"7 3\""));
        let without = Curves { legend: false, ..two };
        assert!(!without.svg().contains(">finetune@2</text>"));
    }

    #[test]
    fn what_is_no_number_is_a_gap_that_shows() {
        let svg = curves(vec![series("a", 0, &[1.0, 2.0, f64::NAN, 3.0, f64::INFINITY, 4.0, 5.0])]).svg();
        assert!(svg.contains("2 values are no numbers (×)"), "{svg}");
        assert_eq!(svg.matches(">×<").count(), 2);
        let path = svg.split("<path d=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a path");
        assert_eq!(path.matches('M').count(), 3, "{path}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        let nothing = curves(vec![series("a", 0, &[f64::NAN])]).svg();
        assert!(nothing.contains("no values yet") && nothing.contains("1 value is not a number"));
        assert!(curves(Vec::new()).svg().contains("no values yet"));
    }

    #[test]
    fn long_series_keep_their_peaks_and_stay_small() {
        let mut values: Vec<f64> = (0..1_000_000).map(|step| f64::from(step).sin()).collect();
        values[333_333] = 99.0;
        let svg = curves(vec![series("a", 0, &values)]).svg();
        assert!(svg.len() < 30_000, "{}", svg.len());
        assert!(svg.contains("between -1.0000 and 99.00"));
        let least = thinned(&series("a", 0, &values).points).iter().map(|point| point.y).fold(0.0, f64::max);
        assert_eq!(least, 99.0);
        let gaps = vec![f64::NAN; 100_000];
        assert!(curves(vec![series("a", 0, &gaps)]).svg().len() < 20_000);
    }

    #[test]
    fn names_are_escaped_and_intervals_and_levels_drawn() {
        let mut one = series("<script>", 0, &[0.5]);
        one.points[0].interval = Some([0.4, 0.6]);
        let levels = vec![Level { name: "ln C & more".to_owned(), value: 0.7 }];
        let svg = Curves { levels, title: "a<b".to_owned(), ..curves(vec![one]) }.svg();
        assert!(!svg.contains("<script") && svg.contains("a&lt;b") && svg.contains("ln C &amp; more"), "{svg}");
        assert!(svg.contains("h8M"), "whiskers: {svg}");
    }
}
