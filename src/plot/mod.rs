//! Pictures: data in, SVG or lines of letters out. Nothing here reads a disk or knows what a node is.
//!
//! A picture in SVG has a title, the colours of the page's style sheet (with others where there is none, so that it can stand alone), and no
//! colour that alone tells something. All text in it is escaped here, so a page may take it as it is.

pub mod axis;
pub mod bars;
pub mod curve;
pub mod svg;
pub mod text;

pub mod heat;

pub mod dag;
pub mod layered;

/// A text within SVG.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // What XML cannot hold.
            _ if letter.is_control() && !"\n\t".contains(letter) => escaped.push(' '),
            _ => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_is_markup() {
        assert_eq!(escape("<a b=\"c\" d='e'>&\u{1b}\n"), "&lt;a b=&quot;c&quot; d=&#39;e&#39;&gt;&amp; \n");
    }
}
