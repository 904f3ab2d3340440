//! Bars with intervals: rates of several candidates under each other.

use std::fmt::Write;

use super::axis::Axis;
use super::escape;
use super::svg::{colour, cut, dash, place};

const WIDTH: f64 = 440.0;
const MARGIN: f64 = 10.0;
const TOP: f64 = 24.0;
/// Height of a bar with what is written above it.
const ROW: f64 = 36.0;
/// Height of a group's name.
const NAME: f64 = 22.0;
const BOTTOM: f64 = 24.0;
/// Bars that are drawn; the rest is counted.
const DRAWN: usize = 60;

/// A bar.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// What it is of.
    pub label: String,
    /// Its value; what is not finite has no bar.
    pub value: f64,
    /// The interval that it is in.
    pub interval: Option<[f64; 2]>,
    /// Its look, as that of a series of curves.
    pub look: usize,
}

/// Bars under a name.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Empty if there is nothing to tell them from.
    pub name: String,
    /// The bars, from above.
    pub bars: Vec<Bar>,
}

/// Shares of one, in percent, as bars.
#[derive(Debug, Clone, PartialEq)]
pub struct Bars {
    /// What they show.
    pub title: String,
    /// What nobody is better than: a line through all bars, and what it is called.
    pub reference: Option<(String, f64)>,
    /// The bars.
    pub groups: Vec<Group>,
}

impl Bars {
    /// The picture.
    pub fn svg(&self) -> String {
        let all = || self.groups.iter().flat_map(|group| &group.bars);
        let beyond = all()
            .flat_map(|bar| bar.interval.into_iter().flatten().chain([bar.value]))
            .any(|value| value.is_finite() && !(0.0..=1.0).contains(&value));
        let values = all().flat_map(|bar| bar.interval.into_iter().flatten().chain([bar.value, 0.0]));
        let whole = || Axis::exactly(0.0, 1.0, 4).marked(vec![0.0, 0.25, 0.5, 0.75, 1.0]);
        let axis = if beyond { Axis::of(values, 4) } else { whole() };
        let x = |value: f64| MARGIN + (WIDTH - 2.0 * MARGIN) * axis.at(value);
        let mut body = String::new();
        let mut y = TOP + 4.0;
        let mut left = DRAWN;
        for group in &self.groups {
            if left == 0 {
                break;
            }
            if !group.name.is_empty() {
                let _ = write!(
                    body,
                    "<text x=\"{MARGIN}\" y=\"{}\" font-weight=\"600\" fill=\"#1f2328\">{}</text>",
                    place(y + 15.0),
                    escape(&cut(&group.name, 64))
                );
                y += NAME;
            }
            for bar in group.bars.iter().take(left) {
                draw(bar, y, &x, &mut body);
                y += ROW;
            }
            left -= group.bars.len().min(left);
        }
        let (floor, more) = (y, all().count().saturating_sub(DRAWN));
        let height = floor + BOTTOM + if more > 0 { 16.0 } else { 0.0 };
        let mut svg = format!(
            "<svg class=\"plot bars\" role=\"img\" viewBox=\"0 0 {WIDTH} {}\" xmlns=\"http://www.w3.org/2000/svg\" \
             font-family=\"system-ui,sans-serif\" font-size=\"12\"><title>{}</title><desc>{}</desc>\
             <text x=\"{MARGIN}\" y=\"14\" font-size=\"13\" font-weight=\"600\" fill=\"#1f2328\">{}</text>",
            place(height),
            escape(&self.title),
            escape(&self.told()),
            escape(&cut(&self.title, 60))
        );
        for tick in &axis.ticks {
            let _ = write!(
                svg,
                "<line x1=\"{0}\" x2=\"{0}\" y1=\"{TOP}\" y2=\"{1}\" stroke=\"var(--line,#d1d9e0)\"/>\
                 <text x=\"{0}\" y=\"{2}\" font-size=\"11\" text-anchor=\"{3}\" class=\"faint\" fill=\"#59636e\">{4}</text>",
                place(x(*tick)),
                place(floor),
                place(floor + 14.0),
                anchor(axis.at(*tick)),
                escape(&percent(*tick, 0))
            );
        }
        if let Some((_, value)) = &self.reference {
            let _ = write!(
                svg,
                "<line x1=\"{0}\" x2=\"{0}\" y1=\"{TOP}\" y2=\"{1}\" stroke=\"var(--muted,#59636e)\" stroke-width=\"1.5\" \
                 stroke-dasharray=\"4 3\"/>",
                place(x(*value)),
                place(floor)
            );
        }
        svg.push_str(&body);
        if more > 0 {
            let _ = write!(
                svg,
                "<text x=\"{MARGIN}\" y=\"{}\" font-size=\"11\" class=\"faint\" fill=\"#59636e\">… {more} more</text>",
                place(floor + 30.0)
            );
        }
        svg.push_str("</svg>");
        svg
    }

    /// The picture in words.
    fn told(&self) -> String {
        let bars = self.groups.iter().flat_map(|group| group.bars.iter().map(move |bar| (group, bar))).take(DRAWN);
        let bars = bars.map(|(group, bar)| {
            let group = if group.name.is_empty() { String::new() } else { format!("{}, ", group.name) };
            format!("{group}{}: {}.", bar.label, value(bar))
        });
        let reference = self.reference.iter().map(|(name, value)| format!("{name}: {}.", percent(*value, 0)));
        bars.chain(reference).collect::<Vec<_>>().join(" ")
    }
}

fn draw(bar: &Bar, y: f64, x: &dyn Fn(f64) -> f64, svg: &mut String) {
    let _ = write!(
        svg,
        "<text x=\"{MARGIN}\" y=\"{0}\" fill=\"#1f2328\">{1}</text>\
         <text x=\"{2}\" y=\"{0}\" text-anchor=\"end\" fill=\"#1f2328\">{3}</text>",
        place(y + 12.0),
        escape(&cut(&bar.label, 44)),
        place(WIDTH - MARGIN),
        escape(&value(bar))
    );
    if !bar.value.is_finite() {
        return;
    }
    let (zero, end) = (x(0.0), x(bar.value));
    let _ = write!(
        svg,
        "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"13\" rx=\"1.5\" fill=\"{3}\" fill-opacity=\"0.28\" stroke=\"{3}\" \
         stroke-width=\"1.2\"{4}/>",
        place(zero.min(end)),
        place(y + 17.0),
        place((end - zero).abs().max(1.0)),
        colour(bar.look),
        dash(bar.look)
    );
    if let Some([low, high]) = bar.interval.filter(|ends| ends.iter().all(|end| end.is_finite())) {
        let _ = write!(
            svg,
            "<path d=\"M{0} {2}H{1}M{0} {3}v8M{1} {3}v8\" fill=\"none\" stroke=\"var(--ink,#1f2328)\" stroke-width=\"1.6\"/>",
            place(x(low)),
            place(x(high)),
            place(y + 23.5),
            place(y + 19.5)
        );
    }
}

fn anchor(at: f64) -> &'static str {
    match at {
        at if at < 0.02 => "start",
        at if at > 0.98 => "end",
        _ => "middle",
    }
}

/// `68.0% (62.0 to 73.5)`
fn value(bar: &Bar) -> String {
    if !bar.value.is_finite() {
        return "not a number".to_owned();
    }
    let ends = bar.interval.filter(|ends| ends.iter().all(|end| end.is_finite()));
    let ends = ends.map_or_else(String::new, |[low, high]| format!(" ({:.1} to {:.1})", 100.0 * low, 100.0 * high));
    format!("{}{ends}", percent(bar.value, 1))
}

fn percent(share: f64, decimals: usize) -> String {
    format!("{:.decimals$}%", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(label: &str, value: f64, interval: Option<[f64; 2]>) -> Bar {
        Bar { label: label.to_owned(), value, interval, look: 0 }
    }

    fn bars(bars: Vec<Bar>) -> Bars {
        Bars {
            title: "win rate against base".to_owned(),
            reference: Some(("even".to_owned(), 0.5)),
            groups: vec![Group { name: String::new(), bars }],
        }
    }

    #[test]
    fn a_bar_has_its_interval_and_says_both_in_words() {
        let svg = bars(vec![bar("sami", 0.68, Some([0.62, 0.735]))]).svg();
        assert!(svg.contains("sami: 68.0% (62.0 to 73.5). even: 50%."), "{svg}");
        // From 10 to 430 pixels: 0.68 of 420.
        assert!(svg.contains("width=\"285.6\"") && svg.contains("M270.4 51.5H318.7"), "{svg}");
        assert_eq!(svg.matches("<rect").count(), 1);
    }

    #[test]
    fn what_is_no_number_has_no_bar_and_what_is_beyond_has_an_axis() {
        let svg = bars(vec![bar("a", f64::NAN, Some([f64::NAN, 1.0])), bar("<b>", 0.5, Some([f64::NAN, 0.6]))]).svg();
        assert!(svg.contains("not a number") && svg.contains("&lt;b&gt;"));
        assert_eq!((svg.matches("<rect").count(), svg.matches("v8M").count()), (1, 0));
        assert!(!svg.contains("NaN"));
        let svg = bars(vec![bar("a", -0.2, Some([-0.4, 0.1])), bar("b", 3.0, None)]).svg();
        assert!(svg.contains(">-100%<") || svg.contains(">-50%<"), "{svg}");
        let many = bars((0..200).map(|n| bar(&n.to_string(), 0.5, None)).collect()).svg();
        assert!(many.contains("… 140 more"));
    }
}
