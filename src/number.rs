//! Whole numbers in text.
//!
//! The file, blocklists and the command line write them alike: decimal digits without a sign and without
//! leading zeros, which some programs take for octal. TOML's own integers follow the same rule.

use std::str::FromStr;

/// Reads a number. `None`: it is none of that form, or it is too large for its type.
pub fn parse<T: FromStr>(text: &str) -> Option<T> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let plain = text == "0" || !text.starts_with('0');
    text.parse().ok().filter(|_| digits && plain)
}

/// The digits that a number with leading zeros should have: "22" for "022". `None`: it has none.
pub fn without_leading_zeros(text: &str) -> Option<&str> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let (last, zeros) = (
        text.len().checked_sub(1)?,
        text.len() - text.trim_start_matches('0').len(),
    );
    (digits && text.starts_with('0') && last > 0).then(|| &text[zeros.min(last)..])
}

/// A number with its noun, for messages: `1 service`, `2 services`.
pub fn count(number: impl Into<u64>, one: &str, many: &str) -> String {
    match number.into() {
        1 => format!("1 {one}"),
        number => format!("{number} {many}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nouns() {
        let services = [0_u32, 1, 2].map(|number| count(number, "service", "services"));
        assert_eq!(services, ["0 services", "1 service", "2 services"]);
    }

    #[test]
    fn numbers() {
        for (text, number) in [("0", 0), ("1", 1), ("80", 80), ("65535", 65_535)] {
            assert_eq!(parse::<u16>(text), Some(number), "{text}");
            assert_eq!(without_leading_zeros(text), None, "{text}");
        }
        for text in [
            "", "+80", "-0", "-1", " 80", "80 ", "8e1", "0x50", "65536", "٣",
        ] {
            assert_eq!(parse::<u16>(text), None, "{text}");
            assert_eq!(without_leading_zeros(text), None, "{text}");
        }
        for (text, plain) in [("022", "22"), ("00", "0"), ("0000", "0"), ("0080", "80")] {
            assert_eq!(parse::<u16>(text), None, "{text}");
            assert_eq!(without_leading_zeros(text), Some(plain), "{text}");
        }
    }
}
