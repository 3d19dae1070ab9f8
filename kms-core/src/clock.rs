//! Time as a parameter: the one file that reads the system clock.
//!
//! Everything else takes a [`Clock`]. Wall time is for records and periods, monotonic time for deadlines.

use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A point in wall time: milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    /// Makes a timestamp from milliseconds since the Unix epoch.
    pub const fn from_unix_ms(unix_ms: i64) -> Self {
        Self(unix_ms)
    }

    /// Returns the milliseconds since the Unix epoch.
    pub const fn as_unix_ms(self) -> i64 {
        self.0
    }

    /// Reads RFC 3339 with an offset from UTC, in whole milliseconds; `None` when it is anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let read: jiff::Timestamp = text.parse().ok()?;
        (read.subsec_nanosecond() % 1_000_000 == 0).then(|| Self(read.as_millisecond()))
    }

    /// Returns the time `span` later, saturating at the end of time.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        let span_ms = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(span_ms))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Timestamp {
    /// Writes RFC 3339 with milliseconds, in UTC.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(time) => write!(f, "{time:.3}"),
            Err(_) => write!(f, "{}ms", self.0),
        }
    }
}

/// The source of time.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Returns the wall time. It need not be monotonic.
    fn now(&self) -> Timestamp;

    /// Returns a monotonic time, for deadlines and latencies.
    fn monotonic(&self) -> Instant;
}

/// The clock of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads wall time")]
    fn now(&self) -> Timestamp {
        let now = SystemTime::now();
        let unix_ms = match now.duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_millis()).unwrap_or(i64::MAX),
        };
        Timestamp(unix_ms)
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that reads monotonic time")]
    fn monotonic(&self) -> Instant {
        Instant::now()
    }
}

/// A clock that stands still until a test moves it.
#[derive(Debug)]
pub struct ManualClock {
    start: Instant,
    state: Mutex<(Timestamp, Duration)>,
}

impl ManualClock {
    /// Makes a clock that shows `now`.
    pub fn new(now: Timestamp) -> Self {
        Self { start: SystemClock.monotonic(), state: Mutex::new((now, Duration::ZERO)) }
    }

    /// Sets the time of day, as an operator or a time server does; monotonic time does not move.
    pub fn set(&self, now: Timestamp) {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner).0 = now;
    }

    /// Moves both times forward.
    pub fn advance(&self, span: Duration) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        state.0 = state.0.after(span);
        state.1 = state.1.saturating_add(span);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner).0
    }

    fn monotonic(&self) -> Instant {
        self.start + self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_with_its_offset_and_in_whole_milliseconds() {
        let read = |text| Timestamp::parse(text).map(Timestamp::as_unix_ms);
        assert_eq!(read("1970-01-01T00:00:01.5Z"), Some(1_500));
        assert_eq!(read("1970-01-01T01:00:00.001+01:00"), Some(1));
        assert_eq!(read("1969-12-31T23:59:59.999Z"), Some(-1));
        for wrong in ["", "1970-01-01", "1970-01-01T00:00:00", "1970-01-01T00:00:00.0001Z", "1"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    /// Makes a test of everything that is true of every [`Clock`], for one that `pass` lets a span go by on.
    macro_rules! clock_suite {
        ($module:ident, $clock:expr, $pass:expr) => {
            mod $module {
                use super::*;

                #[test]
                fn monotonic_time_moves_by_what_passes_at_least() {
                    let (clock, pass) = ($clock, $pass);
                    let before = clock.monotonic();
                    for span in [Duration::from_millis(1), Duration::ZERO, Duration::from_millis(2)]
                    {
                        let start = clock.monotonic();
                        pass(&clock, span);
                        assert!(clock.monotonic() >= start + span, "{span:?}");
                    }
                    assert!(clock.monotonic() >= before + Duration::from_millis(3));
                }

                #[test]
                fn monotonic_time_goes_back_on_no_thread() {
                    let (clock, pass) = ($clock, $pass);
                    let mut seen = clock.monotonic();
                    for _ in 0..20 {
                        let other = || {
                            pass(&clock, Duration::from_micros(10));
                            clock.monotonic()
                        };
                        let there = std::thread::scope(|scope| scope.spawn(other).join().unwrap());
                        assert!(there >= seen);
                        seen = clock.monotonic();
                        assert!(seen >= there);
                    }
                }

                /// Milliseconds, not seconds or microseconds: both clocks of these tests show a time of this century.
                #[test]
                fn wall_time_is_in_milliseconds() {
                    let shown = $clock.now().to_string();
                    assert!(shown.starts_with("20") && shown.ends_with('Z'), "{shown}");
                }
            }
        };
    }

    clock_suite!(system, SystemClock, |clock: &SystemClock, span: Duration| {
        let over = clock.monotonic() + span;
        while clock.monotonic() < over {
            std::thread::yield_now();
        }
    });

    clock_suite!(
        manual,
        ManualClock::new(Timestamp::from_unix_ms(1_700_000_000_000)),
        ManualClock::advance
    );

    #[test]
    fn timestamp_is_written_as_rfc_3339_with_milliseconds() {
        assert_eq!(
            Timestamp::from_unix_ms(1_700_000_000_123).to_string(),
            "2023-11-14T22:13:20.123Z"
        );
    }

    #[test]
    fn manual_clock_moves_both_times_together() {
        let clock = ManualClock::new(Timestamp::from_unix_ms(0));
        let before = clock.monotonic();
        clock.advance(Duration::from_millis(5));
        assert_eq!(clock.now(), Timestamp::from_unix_ms(5));
        assert_eq!(clock.monotonic() - before, Duration::from_millis(5));
    }

    #[test]
    fn adding_past_the_end_of_time_saturates() {
        assert_eq!(Timestamp(i64::MAX - 1).after(Duration::from_secs(1)), Timestamp(i64::MAX));
    }
}
