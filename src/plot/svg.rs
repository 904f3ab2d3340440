//! What pictures of series share: places on the picture, colours, texts that are cut.

/// Colours of series where the page has none of its own: each at least 3:1 against white.
const COLOURS: [&str; 8] = ["#0b62c4", "#c2410c", "#15803d", "#7c3aed", "#b91c1c", "#0e7490", "#a16207", "#be185d"];
/// How the lines of series are broken, so that colour is not all that tells them apart.
const DASHES: [&str; 5] = ["", "7 3", "2 3", "9 3 2 3", "4 2"];

/// A place in pixels, to a tenth.
pub fn place(pixels: f64) -> String {
    let rounded = (pixels * 10.0).round() / 10.0;
    if rounded.is_finite() { format!("{}", rounded + 0.0) } else { "0".to_owned() }
}

/// The colour of a series: the page's `--series-1` to `--series-8`, or else one that is seen on white.
pub fn colour(series: usize) -> String {
    let number = series % COLOURS.len();
    format!("var(--series-{},{})", number + 1, COLOURS[number])
}

/// The attribute that breaks a series' line; none of the first.
pub fn dash(series: usize) -> String {
    match DASHES[series % DASHES.len()] {
        "" => String::new(),
        dash => format!(" stroke-dasharray=\"{dash}\""),
    }
}

/// Text cut to so many letters.
pub fn cut(text: &str, letters: usize) -> String {
    if text.chars().count() <= letters {
        return text.to_owned();
    }
    text.chars().take(letters.saturating_sub(1)).chain(['…']).collect()
}

/// A piece of a series' line, as it stands in a legend.
pub fn swatch(series: usize) -> String {
    format!(
        "<svg class=\"swatch\" width=\"28\" height=\"10\" viewBox=\"0 0 28 10\" aria-hidden=\"true\" focusable=\"false\">\
         <line x1=\"1\" x2=\"27\" y1=\"5\" y2=\"5\" stroke=\"{}\" stroke-width=\"2.5\"{}/></svg>",
        colour(series),
        dash(series)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_short_and_texts_are_cut() {
        assert_eq!([place(1.25), place(-0.01), place(f64::NAN), place(3.0)], ["1.3", "0", "0", "3"]);
        assert_eq!((cut("abcdef", 4), cut("äb", 4)), ("abc…".to_owned(), "äb".to_owned()));
    }

    #[test]
    fn series_differ_by_more_than_their_colour() {
        let looks: std::collections::HashSet<(String, String)> = (0..40).map(|n| (colour(n), dash(n))).collect();
        assert_eq!(looks.len(), 40);
        assert!(swatch(1).contains("stroke-dasharray=\"7 3\""));
    }
}
