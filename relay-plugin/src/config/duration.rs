//! Durations as operators write them: "90s", "10m", "6h", "7d", or "0s".

use std::time::Duration;

const UNITS: [(&str, u64); 4] = [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];

/// A whole number and one unit; nothing else, so that "1m30" cannot mean two things.
pub(super) fn parse(text: &str) -> Option<Duration> {
    let (unit, seconds) = UNITS.iter().find(|(unit, _)| text.ends_with(unit))?;
    let digits = text.strip_suffix(unit)?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits
        .parse::<u64>()
        .ok()?
        .checked_mul(*seconds)
        .map(Duration::from_secs)
}

/// The shortest way to write it.
pub(super) fn show(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (unit, size) = UNITS
        .iter()
        .find(|(_, size)| seconds >= *size && seconds.is_multiple_of(*size))
        .copied()
        .unwrap_or(("s", 1));
    format!("\"{}{unit}\"", seconds / size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_seconds_minutes_hours_and_days() {
        for (text, seconds) in [
            ("0s", 0),
            ("90s", 90),
            ("10m", 600),
            ("6h", 21_600),
            ("7d", 604_800),
        ] {
            assert_eq!(parse(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        for wrong in [
            "",
            "s",
            "10",
            "-1s",
            "+1s",
            "1.5h",
            "1h30m",
            "10 m",
            "1w",
            "99999999999999999999d",
            "1000000000000000000d",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        assert_eq!(show(Duration::from_secs(604_800)), "\"7d\"");
        assert_eq!(show(Duration::from_secs(90)), "\"90s\"");
        assert_eq!(show(Duration::ZERO), "\"0s\"");
    }
}
