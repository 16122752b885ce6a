//! Time: one timestamp type (µs, UTC) and one way to ask for it, so that tests can drive the clock.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use chrono::{DateTime, Datelike, NaiveDate, SecondsFormat, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Microseconds since the Unix epoch, UTC. On the wire: RFC 3339 with six fraction digits and `Z`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// A text that is not an RFC 3339 time within the supported range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an RFC 3339 timestamp, e.g. 2026-11-22T10:00:00Z")]
pub struct TimestampError(String);

impl Timestamp {
    /// From microseconds since the epoch.
    #[must_use]
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since the epoch.
    #[must_use]
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Later by `seconds` (negative: earlier), saturating.
    #[must_use]
    pub const fn plus_seconds(self, seconds: i64) -> Self {
        Self(self.0.saturating_add(seconds.saturating_mul(1_000_000)))
    }

    /// Later by `micros` (negative: earlier), saturating.
    #[must_use]
    pub const fn plus_micros(self, micros: i64) -> Self {
        Self(self.0.saturating_add(micros))
    }

    /// Whole seconds until `later`; 0 where that has passed.
    #[must_use]
    pub const fn seconds_until(self, later: Self) -> i64 {
        let micros = later.0.saturating_sub(self.0);
        if micros > 0 { micros / 1_000_000 } else { 0 }
    }

    /// RFC 3339 with microseconds and `Z`.
    #[must_use]
    pub fn to_rfc3339(self) -> String {
        DateTime::<Utc>::from_timestamp_micros(self.0)
            .unwrap_or(DateTime::<Utc>::MAX_UTC)
            .to_rfc3339_opts(SecondsFormat::Micros, true)
    }

    /// Reads RFC 3339 with any offset; digits past the microsecond are cut off. Years begin with 1, as in most languages.
    pub fn parse_rfc3339(text: &str) -> Result<Self, TimestampError> {
        match Self::as_written(text) {
            Some(written) => Ok(written),
            None => Self::parse_any(text),
        }
    }

    /// The form that `to_rfc3339` writes, which is what all that is sealed has: read where its digits stand.
    fn as_written(text: &str) -> Option<Self> {
        let text: &[u8; 27] = text.as_bytes().try_into().ok()?;
        let [_, _, _, _, b'-', _, _, b'-', _, _, b'T', _, _, b':', _, _, b':', _, _, b'.', _, _, _, _, _, _, b'Z'] = text else {
            return None;
        };
        let number = |from: usize, to: usize| {
            let digit = |sum: u32, byte: &u8| byte.is_ascii_digit().then(|| sum * 10 + u32::from(byte - b'0'));
            text.get(from..to)?.iter().try_fold(0, digit)
        };
        let year = i32::try_from(number(0, 4)?).ok().filter(|year| *year > 0)?;
        let date = NaiveDate::from_ymd_opt(year, number(5, 7)?, number(8, 10)?)?;
        let time = date.and_hms_micro_opt(number(11, 13)?, number(14, 16)?, number(17, 19)?, number(20, 26)?)?;
        Some(Self(time.and_utc().timestamp_micros()))
    }

    fn parse_any(text: &str) -> Result<Self, TimestampError> {
        // The parser takes a minus sign beyond ASCII too.
        let parsed = DateTime::parse_from_rfc3339(text).ok().filter(|t| text.is_ascii() && t.year() > 0 && t.to_utc().year() > 0);
        match parsed {
            Some(t) => Ok(Self(t.timestamp_micros())),
            None => Err(TimestampError(text.chars().take(64).collect())),
        }
    }
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.to_rfc3339())
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.to_rfc3339())
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        Self::parse_rfc3339(&text).map_err(serde::de::Error::custom)
    }
}

/// Where time comes from. Everything that needs the time takes one of these.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// The current time.
    fn now(&self) -> Timestamp;

    /// Microseconds from some beginning, by what nobody sets: for how long something took.
    fn steady_micros(&self) -> i64 {
        self.now().as_micros()
    }

    /// True while it is known to be wrong by more than a second.
    fn is_suspect(&self) -> bool {
        false
    }
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        // Seconds and micros as they are asked for: a calendar, which takes as long as asking, is nobody's here.
        let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        Timestamp(UNIX_EPOCH.elapsed().map_or_else(|before| -micros(before.duration()), micros))
    }

    #[allow(clippy::disallowed_types)] // as above
    fn steady_micros(&self) -> i64 {
        static BEGINNING: LazyLock<std::time::Instant> = LazyLock::new(std::time::Instant::now);
        i64::try_from(BEGINNING.elapsed().as_micros()).unwrap_or(i64::MAX)
    }
}

/// A clock that stands still until a test moves it.
#[derive(Debug, Default)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    /// A clock standing at `start`.
    #[must_use]
    pub fn new(start: Timestamp) -> Self {
        Self(AtomicI64::new(start.0))
    }

    /// Moves it by `seconds`, backwards too.
    pub fn advance_seconds(&self, seconds: i64) {
        self.0.fetch_add(seconds * 1_000_000, Ordering::SeqCst);
    }

    /// Moves it by `micros`, backwards too.
    pub fn advance_micros(&self, micros: i64) {
        self.0.fetch_add(micros, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_read_where_it_stands_is_what_the_library_reads(
            micros in prop_oneof![any::<i64>(), 0i64..4_000_000_000_000_000],
            at in 0usize..28,
            put in "[0-9TtZz.:+ -]{0,2}",
            removed in 0usize..2,
        ) {
            let written = Timestamp::from_micros(micros).to_rfc3339();
            let end = (at + removed).min(written.len());
            let changed = written.get(..at.min(written.len())).zip(written.get(end..)).map(|(before, behind)| [before, put.as_str(), behind].concat());
            for text in [written.clone(), changed.unwrap_or_default()] {
                prop_assert!(Timestamp::as_written(&text).is_none_or(|read| Timestamp::parse_any(&text) == Ok(read)), "{}", text);
            }
            if micros >= 0 && written.len() == 27 {
                prop_assert_eq!(Timestamp::as_written(&written), Some(Timestamp::from_micros(micros)));
            }
        }
    }

    #[test]
    fn no_day_and_no_second_is_read_that_there_is_not() {
        let is_read = |day_and_time: &str| {
            let text = format!("{day_and_time}.000000Z");
            let short = Timestamp::as_written(&text);
            assert!(short.is_none() || short == Timestamp::parse_any(&text).ok(), "{text}");
            short.is_some()
        };
        assert!(is_read("2024-02-29T23:59:59") && is_read("2000-02-29T00:00:00") && is_read("0001-01-01T00:00:00"));
        for none in ["2026-02-29", "1900-02-29", "2026-04-31", "2026-00-01", "2026-13-01", "2026-01-00", "0000-01-01"] {
            assert!(!is_read(&format!("{none}T00:00:00")), "{none}");
        }
        for none in ["24:00:00", "23:60:00", "23:59:60", "23:59:61", "2a:00:00"] {
            assert!(!is_read(&format!("2026-01-01T{none}")), "{none}");
        }
    }

    #[test]
    #[allow(clippy::disallowed_methods)] // another who asks the machine, to hold the one against it
    fn the_machine_s_clock_says_what_its_calendar_says() {
        let before = Utc::now().timestamp_micros();
        let now = SystemClock.now().as_micros();
        assert!((before..=Utc::now().timestamp_micros()).contains(&now));
    }

    #[test]
    fn seconds_until_are_whole_and_never_negative() {
        let t = Timestamp::from_micros(5);
        assert_eq!(t.seconds_until(t.plus_micros(1_999_999)), 1);
        assert_eq!(t.seconds_until(t.plus_seconds(900)), 900);
        assert_eq!(t.seconds_until(t.plus_micros(999_999)), 0);
        assert_eq!(t.seconds_until(t.plus_seconds(-900)), 0);
        assert_eq!(Timestamp::from_micros(i64::MIN).seconds_until(Timestamp::from_micros(i64::MAX)), i64::MAX / 1_000_000);
    }

    #[test]
    fn a_timestamp_survives_its_wire_form() {
        let t = Timestamp::parse_rfc3339("2026-11-22T10:00:00.123456Z").unwrap();
        assert_eq!(t.to_rfc3339(), "2026-11-22T10:00:00.123456Z");
        assert_eq!(Timestamp::parse_rfc3339("2026-11-22T11:00:00.123456789+01:00").unwrap(), t);
        for refused in ["yesterday", "0000-01-01T00:00:00Z", "2026-11-22T10:00:00\u{2212}01:00", "2026-11-22T10:00:00"] {
            assert!(Timestamp::parse_rfc3339(refused).is_err(), "{refused}");
        }
    }
}
