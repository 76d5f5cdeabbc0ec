//! Times, durations and sizes as users write them.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A moment, in whole milliseconds since the Unix epoch, UTC; written as RFC 3339 with three decimals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(i64);

impl Time {
    /// The present moment by the system's clock.
    #[must_use]
    pub fn now() -> Self {
        Self(Timestamp::now().as_millisecond())
    }

    /// The moment this many milliseconds after the Unix epoch.
    #[must_use]
    pub fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub fn as_millis(self) -> i64 {
        self.0
    }

    /// The moment this much earlier; the beginning of time when that would be before it.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// The moment this much later; the end of time when that would be beyond it.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }
}

impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match Timestamp::from_millisecond(self.0) {
            Ok(time) => write!(f, "{time:.3}"),
            Err(_) => f.write_str(if self.0 < 0 { "-009999-01-02T01:59:59.000Z" } else { "9999-12-30T22:00:00.999Z" }),
        }
    }
}

impl Serialize for Time {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time: Timestamp = text.parse().map_err(|_| {
            serde::de::Error::custom(format!("`{text}` is not a time: write it like 2026-01-31T12:00:00Z"))
        })?;
        Ok(Self(time.as_millisecond()))
    }
}

/// A text that is no duration or size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a duration, or a negative one.
    #[error("`{0}` is not a duration: write it like \"2h30m\", \"90s\" or as a number of seconds")]
    Duration(String),
    /// Not a size.
    #[error("`{0}` is not a size: write it like \"24GiB\", \"500MB\" or as a number of bytes")]
    Size(String),
}

/// Reads a duration: `"2h30m"`, `"250ms"`, or seconds as a plain number.
///
/// # Errors
/// When the text is neither, or names a negative duration.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let wrong = || UnitError::Duration(text.to_owned());
    let trimmed = text.trim();
    if let Ok(seconds) = trimmed.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|_| wrong());
    }
    // Days and weeks have 24 hours and 7 days here: nobody means a time limit to depend on daylight saving.
    let span: jiff::Span = trimmed.parse().map_err(|_| wrong())?;
    let signed = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|_| wrong())?;
    Duration::try_from(signed).map_err(|_| wrong())
}

/// Reads a size: `"24GiB"` (powers of 1,024), `"500MB"` (powers of 1,000), or bytes as a plain number.
///
/// # Errors
/// When the text is neither, or is more than 2^64 bytes.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let wrong = || UnitError::Size(text.to_owned());
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "t" | "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err(wrong()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(wrong);
    }
    let bytes = number.parse::<f64>().map_err(|_| wrong())? * factor as f64;
    if bytes.is_finite() && (0.0..18e18).contains(&bytes) { Ok(bytes as u64) } else { Err(wrong()) }
}

/// Serde of a [`Duration`]: read as text or as a number of seconds, written as a number of seconds.
pub mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Seconds(f64),
        Text(String),
    }

    fn read<E: serde::de::Error>(written: Written) -> Result<Duration, E> {
        match written {
            Written::Seconds(seconds) => Duration::try_from_secs_f64(seconds)
                .map_err(|_| E::custom(super::UnitError::Duration(seconds.to_string()))),
            Written::Text(text) => super::parse_duration(&text).map_err(E::custom),
        }
    }

    /// Writes seconds, whole ones as an integer.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        if duration.subsec_nanos() == 0 {
            serializer.serialize_u64(duration.as_secs())
        } else {
            serializer.serialize_f64(duration.as_secs_f64())
        }
    }

    /// Reads `"2h30m"` or a number of seconds.
    ///
    /// # Errors
    /// When it is neither.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        read(Written::deserialize(deserializer)?)
    }

    /// The same for a duration that may be absent.
    pub mod option {
        use std::time::Duration;

        use serde::{Deserialize, Deserializer, Serializer};

        /// Writes seconds or null.
        ///
        /// # Errors
        /// Those of the serializer.
        pub fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
            match duration {
                Some(duration) => super::serialize(duration, serializer),
                None => serializer.serialize_none(),
            }
        }

        /// Reads a duration or null.
        ///
        /// # Errors
        /// When it is neither.
        pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
            Option::<super::Written>::deserialize(deserializer)?.map(super::read).transpose()
        }
    }
}

/// Serde of a size in bytes: read as text or as a number of bytes, written as a number.
pub mod size {
    use serde::{Deserialize, Deserializer};

    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a size like \"24GiB\" or a number of bytes")]
    enum Written {
        Bytes(u64),
        Text(String),
    }

    /// Reads `"24GiB"` or a number of bytes.
    ///
    /// # Errors
    /// When it is neither.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        match Written::deserialize(deserializer)? {
            Written::Bytes(bytes) => Ok(bytes),
            Written::Text(text) => super::parse_size(&text).map_err(serde::de::Error::custom),
        }
    }

    /// The same for a size that may be absent.
    pub mod option {
        use serde::{Deserialize, Deserializer, Serializer};

        /// Writes bytes or null.
        ///
        /// # Errors
        /// Those of the serializer.
        pub fn serialize<S: Serializer>(size: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
            match size {
                Some(bytes) => serializer.serialize_u64(*bytes),
                None => serializer.serialize_none(),
            }
        }

        /// Reads a size or null.
        ///
        /// # Errors
        /// When it is neither.
        pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
            #[derive(Deserialize)]
            struct Wrapped(#[serde(deserialize_with = "super::deserialize")] u64);
            Ok(Option::<Wrapped>::deserialize(deserializer)?.map(|Wrapped(bytes)| bytes))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_text_or_seconds() {
        assert_eq!(parse_duration("2h30m"), Ok(Duration::from_secs(9000)));
        assert_eq!(parse_duration("90d"), Ok(Duration::from_secs(90 * 24 * 3600)));
        assert_eq!(parse_duration("2w"), Ok(Duration::from_secs(14 * 24 * 3600)));
        assert_eq!(parse_duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        for wrong in ["", "soon", "-3s", "-1", "NaN", "1e300"] {
            assert_eq!(parse_duration(wrong), Err(UnitError::Duration(wrong.into())), "{wrong}");
        }
    }

    #[test]
    fn sizes_tell_powers_of_1000_from_powers_of_1024() {
        assert_eq!(parse_size("24GiB"), Ok(24 << 30));
        assert_eq!(parse_size("500 MB"), Ok(500_000_000));
        assert_eq!(parse_size("1.5k"), Ok(1_500));
        assert_eq!(parse_size("123"), Ok(123));
        for wrong in ["", "GiB", "1 parsec", "-1", "99999999999TiB"] {
            assert_eq!(parse_size(wrong), Err(UnitError::Size(wrong.into())), "{wrong}");
        }
    }

    #[test]
    fn times_are_written_with_milliseconds() {
        let time = Time::from_millis(1_700_000_000_007);
        assert_eq!(time.to_string(), "2023-11-14T22:13:20.007Z");
        let json = serde_json::to_string(&time).expect("a string");
        assert_eq!(serde_json::from_str::<Time>(&json).expect("a time"), time);
    }
}
