//! Amounts as people type them: times such as `30d`.

use jiff::SignedDuration;

/// A length of time: a number and `m`, `h`, `d` or `w`.
pub(crate) fn time(text: &str) -> Result<SignedDuration, String> {
    let wrong = || "a time is a number and `m`, `h`, `d` or `w`, such as `12h` or `30d`".to_owned();
    let (number, unit) = split(text);
    let minutes: f64 = match unit {
        "m" | "min" => 1.0,
        "h" => 60.0,
        "d" => 24.0 * 60.0,
        "w" => 7.0 * 24.0 * 60.0,
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    // A thousand years: what is longer overflows when it is taken from the date.
    let seconds = number * minutes * 60.0;
    if (0.0..=3e10).contains(&seconds) { Ok(SignedDuration::from_secs(seconds as i64)) } else { Err(wrong()) }
}

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|letter: char| letter.is_ascii_alphabetic()).unwrap_or(text.len());
    (text[..end].trim(), &text[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_written() {
        for (text, seconds) in [("30d", 30 * 86400), ("12h", 43200), ("90 m", 5400), ("1.5w", 907_200), ("0d", 0)] {
            assert_eq!(time(text), Ok(SignedDuration::from_secs(seconds)), "{text}");
        }
        for text in ["", "30", "d", "-1d", "1y", "nand", "1e400d", "999999999999w"] {
            assert!(time(text).is_err(), "{text}");
        }
    }
}
