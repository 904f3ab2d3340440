//! Amounts as people type them: sizes such as `200GB` and times such as `30d`.

use jiff::SignedDuration;

/// A size in bytes: a number and `B`, `kB`, `MB`, `GB`, `TB` (by 1,000) or `KiB`, `MiB`, `GiB`, `TiB` (by 1,024); a bare letter is
/// taken for the latter, as `df` has it. Only zero needs no unit: whoever forgets one must not lose a cache by it.
pub fn size(text: &str) -> Result<u64, String> {
    let wrong = || "a size is a number and a unit, such as `200GB` or `1.5TiB`".to_owned();
    let (number, unit) = split(text);
    let number = number.parse::<f64>().ok().filter(|number| *number >= 0.0 && number.is_finite()).ok_or_else(wrong)?;
    let unit = unit.to_ascii_lowercase();
    let base: f64 = match unit.as_str() {
        "kb" | "mb" | "gb" | "tb" => 1000.0,
        _ => 1024.0,
    };
    let power = match unit.as_str() {
        "" if number == 0.0 => 0,
        "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        _ => return Err(wrong()),
    };
    Ok((number * base.powi(power)) as u64)
}

/// Bytes as people read them: `12 B`, `3.4 KiB`.
pub fn bytes(bytes: u64) -> String {
    let mut size = bytes as f64;
    let mut unit = 0;
    while size >= 1024.0 && unit < 4 {
        size /= 1024.0;
        unit += 1;
    }
    let unit = ["B", "KiB", "MiB", "GiB", "TiB"][unit];
    if unit == "B" { format!("{bytes} B") } else { format!("{size:.1} {unit}") }
}

/// A length of time: a number and `m`, `h`, `d` or `w`.
pub fn time(text: &str) -> Result<SignedDuration, String> {
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
    fn sizes_and_times_are_read_as_they_are_written() {
        let sizes =
            [("0", 0), ("12B", 12), ("1kB", 1000), ("1k", 1024), ("1.5 GiB", 3 << 29), ("200GB", 200_000_000_000)];
        for (text, bytes) in sizes {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for (text, seconds) in [("30d", 30 * 86400), ("12h", 43200), ("90 m", 5400), ("1.5w", 907_200), ("0d", 0)] {
            assert_eq!(time(text), Ok(SignedDuration::from_secs(seconds)), "{text}");
        }
        for text in ["", "GB", "12", "-1GB", "1XB", "nan", "1e400", "ä", "1 2", "inf"] {
            assert!(size(text).is_err(), "{text}");
        }
        for text in ["", "30", "d", "-1d", "1y", "nand", "1e400d", "999999999999w"] {
            assert!(time(text).is_err(), "{text}");
        }
    }
}
