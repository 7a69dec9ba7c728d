//! Durations as `lb.toml` and the command line write them: a whole number and a unit, such as
//! `500ms`, `30s`, `10m` or `1h`.

use std::time::Duration;

use crate::number;

/// Units, the largest first, with their length in milliseconds.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Reads a duration; `None` if `text` is not one or is too long for 64 bits of milliseconds.
pub fn parse(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit);
    let (_, milliseconds) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let number: u64 = number::parse(number)?;
    Some(Duration::from_millis(number.checked_mul(*milliseconds)?))
}

/// Writes a duration in the largest unit that gives a whole number; fractions of a
/// millisecond are cut off.
pub fn format(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    if milliseconds == 0 {
        return "0s".to_owned();
    }
    UNITS
        .iter()
        .map(|(name, length)| (name, u128::from(*length)))
        .find(|(_, length)| milliseconds.is_multiple_of(*length))
        .map_or_else(String::new, |(name, length)| {
            format!("{}{name}", milliseconds / length)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        for (text, milliseconds) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("90s", 90_000),
            ("10m", 600_000),
            ("1h", 3_600_000),
            ("720h", 2_592_000_000),
            ("0s", 0),
        ] {
            let duration = Duration::from_millis(milliseconds);
            assert_eq!(parse(text), Some(duration), "{text}");
            assert_eq!(format(duration), text);
        }
        assert_eq!(format(Duration::from_secs(60)), "1m");
    }

    #[test]
    fn what_is_no_duration() {
        for text in [
            "",
            "30",
            "s",
            "-1s",
            "+1s",
            "1.5s",
            "030s",
            "00s",
            "1d",
            "1 s",
            " 1s",
            "1s ",
            "1h30m",
            "1S",
            "99999999999999999999s",
            "18446744073709551615h",
            "٣s",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
