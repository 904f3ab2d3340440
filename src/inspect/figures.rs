//! Sizes, counts, times and metrics as people read them.

use serde_json::Value;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

pub(crate) use crate::amount::bytes;

/// A count with separators: `12,345`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count and its noun: `1 row`, `2 rows`.
pub fn plural(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(number), if number == 1 { "" } else { "s" })
}

/// A duration in the two largest units that it needs: `4 ms`, `0.25 s`, `12.3 s`, `2 m 05 s`, `3 h 07 m`.
pub fn seconds(seconds: f64) -> String {
    // Rounded first, so that 59.96 s is a minute.
    let tenths = (seconds.max(0.0) * 10.0).round() / 10.0;
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        _ if seconds < 0.0995 => format!("{:.0} ms", seconds.max(0.0) * 1e3),
        _ if tenths < 10.0 => format!("{:.2} s", seconds.max(0.0)),
        _ if tenths < 60.0 => format!("{tenths:.1} s"),
        ..3600 => format!("{} m {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} m", whole / 3600, whole % 3600 / 60),
    }
}

/// A metric: whole numbers with separators, others to four significant digits.
pub fn figure(value: &Value) -> String {
    let Some(number) = value.as_f64() else { return plain(value.as_str().unwrap_or(&value.to_string())) };
    if let Some(number) = value.as_u64() {
        return count(number);
    }
    if number == 0.0 || !number.is_finite() || value.is_i64() {
        return value.to_string();
    }
    let magnitude = number.abs().log10().floor();
    if !(-4.0..9.0).contains(&magnitude) {
        let text = format!("{number:.3e}");
        return match text.split_once('e') {
            Some((digits, power)) => format!("{}e{power}", digits.trim_end_matches('0').trim_end_matches('.')),
            None => text,
        };
    }
    format!("{number:.*}", (3.0 - magnitude).clamp(0.0, 7.0) as usize)
}

/// An RFC 3339 time to the second, as people read it.
pub fn clock(time: &str) -> String {
    time.split('.').next().unwrap_or(time).trim_end_matches('Z').replace('T', " ")
}

/// The first `listed` parts, joined; the rest as a count.
pub fn some<T: AsRef<str>>(parts: &[T], between: &str, listed: usize) -> String {
    let shown = parts.iter().take(listed).map(AsRef::as_ref).collect::<Vec<_>>().join(between);
    match parts.len().saturating_sub(listed) {
        0 => shown,
        more => format!("{shown}{between}… {more} more"),
    }
}

/// Columns that a text takes on a terminal: none for letters that join others, two for wide ones.
pub fn columns(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { text.width() }
}

/// Text on a line, without control characters, cut to `width` columns.
pub fn cut(text: &str, width: usize) -> String {
    let plain = plain(text);
    if columns(&plain) <= width {
        return plain.trim_end().to_owned();
    }
    let mut cut = beginning(plain.chars(), width.saturating_sub(1));
    cut.push('…');
    cut
}

/// As [`cut`], in the middle: the end of a node's name says as much as its beginning.
pub fn cut_middle(text: &str, width: usize) -> String {
    let plain = plain(text);
    if columns(&plain) <= width || width < 3 {
        return cut(&plain, width);
    }
    let tail = (width - 1) / 2;
    let end = beginning(plain.chars().rev(), tail);
    let mut cut = beginning(plain.chars(), width - 1 - tail);
    cut.push('…');
    cut.extend(end.chars().rev());
    cut
}

/// The first letters, as many as `width` columns hold.
fn beginning(letters: impl Iterator<Item = char>, width: usize) -> String {
    let mut used = 0;
    let fits = |letter: &char| {
        used += letter.width().unwrap_or(0);
        used <= width
    };
    letters.take_while(fits).collect()
}

/// Text with a space for each control character, and without what turns the direction of others: what a file holds must not
/// steer the terminal.
pub fn plain(text: &str) -> String {
    let turns = |letter: char| matches!(letter, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|letter| if letter.is_control() || turns(letter) { ' ' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sizes_counts_and_times_read_well() {
        assert_eq!([bytes(12), bytes(3500), bytes(14 << 30)], ["12 B", "3.4 KiB", "14.0 GiB"]);
        assert_eq!([count(7), count(1000), count(1_234_567)], ["7", "1,000", "1,234,567"]);
        assert_eq!([plural(1, "row"), plural(2000, "row")], ["1 row", "2,000 rows"]);
        assert_eq!(clock("2026-11-24T14:05:09.123456Z"), "2026-11-24 14:05:09");
        let durations = [0.0042, 0.25, 9.996, 12.34, 59.96, 125.2, 3599.7, 11_220.0].map(seconds);
        assert_eq!(durations, ["4 ms", "0.25 s", "10.0 s", "12.3 s", "1 m 00 s", "2 m 05 s", "1 h 00 m", "3 h 07 m"]);
    }

    #[test]
    fn metrics_have_four_digits() {
        let values = [json!(0.0), json!(0.123_456), json!(-12.345_67), json!(12_345.678), json!(5e-7), json!(12_345)];
        assert_eq!(values.each_ref().map(figure), ["0.0", "0.1235", "-12.35", "12346", "5e-7", "12,345"]);
        assert_eq!([json!(-3), json!("hit"), json!(null)].each_ref().map(figure), ["-3", "hit", "null"]);
    }

    #[test]
    fn long_lines_are_cut_at_characters_and_controls_do_not_reach_the_terminal() {
        assert_eq!(cut("añb\u{1b}[31m", 10), "añb [31m");
        assert_eq!(cut("äöüäöü", 4), "äöü…");
        assert_eq!((columns("日本"), cut("日本語日本語", 6)), (4, "日本…".to_owned()));
        assert_eq!(cut_middle("finetune@1[lr=1e-7,seed=0]", 15), "finetun…seed=0]");
        assert_eq!([cut_middle("日本語日本語", 6), cut_middle("short", 6)], ["日…語", "short"]);
        assert_eq!(plain("a\u{202e}b"), "a b");
    }

    #[test]
    fn lists_are_short() {
        let parts: Vec<String> = (0..10).map(|n| n.to_string()).collect();
        assert_eq!(some(&parts, ",", 8), "0,1,2,3,4,5,6,7,… 2 more");
        assert_eq!(some(&parts[..2], ",", 8), "0,1");
    }
}
