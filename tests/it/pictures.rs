//! Pictures of a terminal for the documents: `docs/images/NAME.svg` is drawn from `docs/images/NAME.txt`, which is
//! what a terminal said, `$ command` lines included.

use std::fmt::Write;

use super::docs;

/// Width of a letter and height of a line, in pixels.
const LETTER: f64 = 7.8;
const LINE: f64 = 18.0;
const MARGIN: f64 = 16.0;
const BAR: f64 = 28.0;

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A terminal with this text in it.
fn terminal(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    let columns = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0);
    let width = (columns as f64).mul_add(LETTER, 2.0 * MARGIN);
    let height = (lines.len() as f64).mul_add(LINE, BAR + 2.0 * MARGIN);
    let mut drawing = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" font-family=\"ui-monospace, SFMono-Regular, Menlo, Consolas, monospace\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#14171c\"/>\n"
    );
    for (dot, colour) in ["#ff5f57", "#febc2e", "#28c840"].iter().enumerate() {
        let x = (dot as f64).mul_add(18.0, 20.0);
        let _ = writeln!(drawing, "<circle cx=\"{x}\" cy=\"18\" r=\"6\" fill=\"{colour}\"/>");
    }
    for (number, line) in lines.iter().enumerate().filter(|(_, line)| !line.is_empty()) {
        let y = (number as f64).mul_add(LINE, BAR + MARGIN + 12.0);
        let style = if line.starts_with("$ ") { "fill=\"#ffffff\" font-weight=\"bold\"" } else { "fill=\"#c9d1d9\"" };
        // As wide as the letters should be, whatever font there is.
        let length = line.chars().count() as f64 * LETTER;
        let _ = writeln!(
            drawing,
            "<text x=\"{MARGIN}\" y=\"{y:.0}\" {style} textLength=\"{length:.0}\" xml:space=\"preserve\">{}</text>",
            escape(line)
        );
    }
    drawing.push_str("</svg>\n");
    drawing
}

#[test]
fn pictures_are_drawn_from_what_terminals_said() {
    let texts = docs::files_under("docs/images", "txt");
    assert!(!texts.is_empty(), "docs/images has no text to draw");
    for path in texts {
        let text = fs_err::read_to_string(&path).expect("a text");
        let picture = path.with_extension("svg");
        let picture = picture.strip_prefix(docs::root()).expect("it is in the project");
        docs::check_made(&picture.to_string_lossy(), &terminal(&text));
    }
}

#[test]
fn a_terminal_shows_every_line() {
    let drawing = terminal("$ sami runs\n\na < b & c\n");
    assert_eq!(drawing.matches("<text").count(), 2);
    assert!(drawing.contains("a &lt; b &amp; c") && drawing.ends_with("</svg>\n"));
}
