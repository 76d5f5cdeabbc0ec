//! Durations and sizes as people write them: `"2h30m"`, `"500ms"`, `"128MiB"`, or a plain number of seconds or bytes.

use serde::{Deserialize, Deserializer};
use std::time::Duration;

/// Why a text is neither a duration nor a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// The text has no digits where a number belongs.
    #[error("`{0}` is not a number with a unit; write for example {1}")]
    Malformed(String, &'static str),
    /// The unit is not known.
    #[error("`{0}` is not a unit here; use one of {1}")]
    Unit(String, &'static str),
    /// The number does not fit.
    #[error("`{0}` is too large")]
    TooLarge(String),
}

/// The longest duration there is: a year. Far more than anything here takes, and far less than what no clock can count to.
const LONGEST: Duration = Duration::from_secs(366 * 86_400);

const DURATION_UNITS: &str = "ms, s, m, h, d";
const SIZE_UNITS: &str = "B, KiB, MiB, GiB, KB, MB, GB";

/// Parses `"2h30m"`, `"1.5s"`, `"250ms"`; a number without a unit counts seconds.
///
/// # Errors
/// Names the part that is not understood.
pub fn parse_duration(text: &str) -> Result<Duration, QuantityError> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<f64>() {
        return seconds_to_duration(seconds, text);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let (number, after) = split_number(rest, "\"2s\" or \"1m30s\"")?;
        let unit_end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        let scale = match unit {
            "ms" => 0.001,
            "s" | "sec" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            other => return Err(QuantityError::Unit(other.to_owned(), DURATION_UNITS)),
        };
        total = total
            .checked_add(seconds_to_duration(number * scale, text)?)
            .ok_or_else(|| QuantityError::TooLarge(text.to_owned()))?;
        rest = next.trim_start();
    }
    if text.is_empty() {
        return Err(QuantityError::Malformed(text.to_owned(), "\"2s\" or \"1m30s\""));
    }
    Ok(total)
}

/// Parses `"128MiB"`, `"64KB"`; a number without a unit counts bytes.
///
/// # Errors
/// Names the part that is not understood.
pub fn parse_size(text: &str) -> Result<u64, QuantityError> {
    let text = text.trim();
    let (number, unit) = split_number(text, "\"128MiB\"")?;
    let scale: u64 = match unit.trim() {
        "" | "B" => 1,
        "KiB" | "K" | "k" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        "KB" | "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        other => return Err(QuantityError::Unit(other.to_owned(), SIZE_UNITS)),
    };
    let bytes = number * scale as f64;
    // 2^53: beyond it a float no longer counts single bytes, and nothing here is that large.
    if bytes > 9_007_199_254_740_992.0 {
        return Err(QuantityError::TooLarge(text.to_owned()));
    }
    Ok(bytes as u64)
}

fn split_number<'a>(text: &'a str, example: &'static str) -> Result<(f64, &'a str), QuantityError> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    let number = number.parse::<f64>().map_err(|_| QuantityError::Malformed(text.to_owned(), example))?;
    Ok((number, rest.trim_start()))
}

fn seconds_to_duration(seconds: f64, text: &str) -> Result<Duration, QuantityError> {
    Duration::try_from_secs_f64(seconds).map_err(|_| QuantityError::TooLarge(text.to_owned()))
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TextOrNumber {
    Integer(u64),
    Float(f64),
    Text(String),
}

/// A duration given as text or as a number of seconds, at most a year.
pub fn duration<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
    let duration = match TextOrNumber::deserialize(input)? {
        TextOrNumber::Integer(seconds) => Duration::from_secs(seconds),
        TextOrNumber::Float(seconds) => {
            seconds_to_duration(seconds, &seconds.to_string()).map_err(serde::de::Error::custom)?
        }
        TextOrNumber::Text(text) => parse_duration(&text).map_err(serde::de::Error::custom)?,
    };
    if duration > LONGEST {
        return Err(serde::de::Error::custom(format_args!("{} is too long: a year at most", show_duration(duration))));
    }
    Ok(duration)
}

/// The same, longer than nothing.
pub fn time_to_work<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
    let duration = duration(input)?;
    if duration.is_zero() {
        return Err(serde::de::Error::custom("it must be longer than nothing: no call ends in no time"));
    }
    Ok(duration)
}

/// Memory for WebAssembly: a page at least, since no memory is smaller.
pub fn memory<'de, D: Deserializer<'de>>(input: D) -> Result<u64, D::Error> {
    let bytes = size(input)?;
    if bytes < PAGE {
        return Err(serde::de::Error::custom(format_args!("{bytes} bytes are too few: a page of memory has 64 KiB")));
    }
    Ok(bytes)
}

/// A number of things of which there must be one.
pub fn one_or_more<'de, D: Deserializer<'de>>(input: D) -> Result<usize, D::Error> {
    let count = usize::deserialize(input)?;
    if count == 0 {
        return Err(serde::de::Error::custom("it must be 1 or more: with 0 no plugin could be called"));
    }
    Ok(count)
}

/// Bytes of a page of WebAssembly's linear memory.
const PAGE: u64 = 64 << 10;

/// A size given as text or as a number of bytes.
pub fn size<'de, D: Deserializer<'de>>(input: D) -> Result<u64, D::Error> {
    match TextOrNumber::deserialize(input)? {
        TextOrNumber::Integer(bytes) => Ok(bytes),
        TextOrNumber::Float(bytes) => Err(serde::de::Error::custom(format!("{bytes} is no whole number of bytes"))),
        TextOrNumber::Text(text) => parse_size(&text).map_err(serde::de::Error::custom),
    }
}

/// Writes a duration the way the API answers it: as seconds.
pub fn as_seconds<S: serde::Serializer>(value: &Duration, output: S) -> Result<S::Ok, S::Error> {
    output.serialize_f64(value.as_secs_f64())
}

/// A size for people: `128 MiB`, `16 KiB`, `100 bytes`.
pub fn show_size(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 && b % (1 << 30) == 0 => format!("{} GiB", b >> 30),
        b if b >= 1 << 20 && b % (1 << 20) == 0 => format!("{} MiB", b >> 20),
        b if b >= 1 << 10 && b % (1 << 10) == 0 => format!("{} KiB", b >> 10),
        b => format!("{b} bytes"),
    }
}

/// A duration for people: `2 s`, `250 ms`.
pub fn show_duration(duration: Duration) -> String {
    if duration.subsec_nanos() == 0 {
        format!("{} s", duration.as_secs())
    } else {
        format!("{} ms", duration.as_millis())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_write_them() {
        assert_eq!(parse_duration("2h30m"), Ok(Duration::from_secs(9000)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("1.5"), Ok(Duration::from_millis(1500)));
        assert!(parse_duration("").is_err());
        assert!(parse_duration("2 parsecs").is_err());
        assert!(parse_duration("-1s").is_err());
        assert!(parse_duration("1e400s").is_err());
    }

    #[test]
    fn what_no_call_could_work_with_is_refused() {
        let refused = |text: &str| toml::from_str::<crate::Limits>(text).unwrap_err().message().to_owned();
        for (text, why) in [
            ("timeout = 0", "longer than nothing"),
            ("timeout = \"0s\"", "longer than nothing"),
            ("complete_timeout = 9223372036854775807", "a year at most"),
            ("http_timeout = \"1000d\"", "a year at most"),
            ("wait = 1e17", "a year at most"),
            ("memory = 0", "64 KiB"),
            ("memory = \"1KiB\"", "64 KiB"),
            ("parallel = 0", "1 or more"),
        ] {
            let told = refused(text);
            assert!(told.contains(why), "{text}: {told}");
        }
        assert_eq!(toml::from_str::<crate::Limits>("wait = 0\nmemory = \"64KiB\"").unwrap().memory, 64 << 10);
    }

    #[test]
    fn sizes_read_as_people_write_them() {
        assert_eq!(parse_size("128MiB"), Ok(128 << 20));
        assert_eq!(parse_size("64 KB"), Ok(64_000));
        assert_eq!(parse_size("12"), Ok(12));
        assert!(parse_size("12 hectares").is_err());
        assert!(parse_size("").is_err());
        assert!(parse_size("99999999999999999999GiB").is_err());
    }
}
