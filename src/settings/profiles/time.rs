//! Lengths of time, as people and Slurm write them.

use std::time::Duration;

/// Reads `4h`, `1d 12h`, `90m`, `30s`, `2m30s`, or Slurm's `DAYS-HOURS:MINUTES:SECONDS` and `HOURS:MINUTES:SECONDS`.
pub(super) fn read(text: &str) -> Result<Duration, String> {
    let bad = || format!("`{text}` is no length of time");
    let text = text.trim();
    let seconds = if text.contains(':') { clock(text) } else { units(text) };
    seconds.filter(|seconds| *seconds > 0.0 && *seconds < 1e9).map(Duration::from_secs_f64).ok_or_else(bad)
}

fn clock(text: &str) -> Option<f64> {
    let (days, rest) = match text.split_once('-') {
        Some((days, rest)) => (days.parse::<u32>().ok()?, rest),
        None => (0, text),
    };
    let parts = rest.split(':').map(|part| part.parse::<u32>().ok()).collect::<Option<Vec<u32>>>()?;
    let [hours, minutes, seconds] = parts[..] else { return None };
    Some(f64::from(days) * 86400.0 + f64::from(hours) * 3600.0 + f64::from(minutes) * 60.0 + f64::from(seconds))
}

fn units(text: &str) -> Option<f64> {
    let mut rest = text;
    let mut sum = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = rest[end..].trim_start();
        let end = rest.find(|letter: char| !letter.is_ascii_alphabetic()).unwrap_or(rest.len());
        sum += number
            * match &rest[..end] {
                "d" | "day" | "days" => 86400.0,
                "h" | "hour" | "hours" => 3600.0,
                "m" | "min" | "minutes" => 60.0,
                "s" | "seconds" => 1.0,
                "ms" => 0.001,
                _ => return None,
            };
        rest = rest[end..].trim_start();
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn lengths_of_time_are_read() {
        let seconds = |text: &str| read(text).map(|time| time.as_secs_f64()).ok();
        assert_eq!(seconds("4h"), Some(14400.0));
        assert_eq!(seconds("1d 12h"), Some(129_600.0));
        assert_eq!(seconds("2m30s"), Some(150.0));
        assert_eq!(seconds("200ms"), Some(0.2));
        assert_eq!(seconds("1-00:00:10"), Some(86410.0));
        assert_eq!(seconds("04:30:00"), Some(16200.0));
        for bad in ["", "4", "h", "4 fortnights", "1:2", "-1h", "0s", "1e99d", "::", "1-2"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }
}
