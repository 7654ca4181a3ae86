//! Durations as people write them: `30s`, `5m`, `250ms`, `1h30m`. URLs and files take the same.

use std::fmt;
use std::time::Duration;

use serde::de::{Deserializer, Error, Visitor};

/// What a text that is no duration is told to be.
pub(crate) const EXPECTED: &str = "a duration as in \"30s\", \"250ms\" or \"1h30m\"";

/// Reads whole numbers with the units `ns`, `us`, `ms`, `s`, `m`, `h` and `d`; what stands side by side is added up.
///
/// `None` for anything else, a number without a unit included: nobody can tell what was meant.
#[must_use]
pub fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let number: u64 = number.parse().ok()?;
        let part = match unit {
            "ns" => Duration::from_nanos(number),
            "us" => Duration::from_micros(number),
            "ms" => Duration::from_millis(number),
            "s" => Duration::from_secs(number),
            "m" => Duration::from_secs(number.checked_mul(60)?),
            "h" => Duration::from_secs(number.checked_mul(60 * 60)?),
            "d" => Duration::from_secs(number.checked_mul(24 * 60 * 60)?),
            _ => return None,
        };
        total = total.checked_add(part)?;
        rest = after.trim_start();
    }
    Some(total)
}

/// For fields of a config: `#[serde(with = "buqueue_core::duration")]`.
///
/// # Errors
/// The deserializer's, for what is no such text.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    struct Text;

    impl Visitor<'_> for Text {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(EXPECTED)
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Duration, E> {
            parse(text).ok_or_else(|| E::custom(format_args!("must be {EXPECTED}, is {text:?}")))
        }
    }

    deserializer.deserialize_str(Text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_read() {
        for (text, expected) in [
            ("30s", Duration::from_secs(30)),
            (" 5m ", Duration::from_secs(300)),
            ("0s", Duration::ZERO),
            ("250ms", Duration::from_millis(250)),
            ("7us", Duration::from_micros(7)),
            ("7ns", Duration::from_nanos(7)),
            ("1h30m", Duration::from_secs(5400)),
            ("1d 2h", Duration::from_secs(26 * 3600)),
        ] {
            assert_eq!(parse(text), Some(expected), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in [
            "",
            " ",
            "30",
            "s",
            "-1s",
            "1.5s",
            "30 s",
            "30S",
            "1h30",
            "1y",
            "99999999999999999999s",
            "9999999999999999999d",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn files_say_it_in_the_same_way() {
        let read = |json: &str| deserialize(&mut serde_json::Deserializer::from_str(json));
        assert_eq!(read("\"1h30m\"").unwrap(), Duration::from_secs(5400));
        for json in ["30", "\"30\"", "null"] {
            assert!(read(json).unwrap_err().to_string().contains(EXPECTED), "{json}");
        }
    }
}
