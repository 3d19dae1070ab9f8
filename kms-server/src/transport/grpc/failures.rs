//! Which failures of the server are worth a log line of their own.
//!
//! While the HSM, the database or the audit log is away, every call fails alike: a line each would be thousands a second,
//! on a disk that may be the one that is full. The first of a reason are told as they are, the rest is counted.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many failures of one reason are told one by one in [`WINDOW`]: enough to see whom it meets.
pub(super) const TOLD_ALONE: u64 = 16;
/// How long failures of one reason are counted together.
pub(super) const WINDOW: Duration = Duration::from_secs(10);

/// What to do about one failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Tell it; before it, how many were only counted in the window that is over.
    Tell {
        /// How many, 0 mostly.
        counted: u64,
    },
    /// It is counted.
    Count,
}

/// Counts the failures of each reason. Bounded: reasons are a fixed set.
#[derive(Debug, Default)]
pub(super) struct FailureLog(Mutex<BTreeMap<&'static str, Window>>);

#[derive(Debug)]
struct Window {
    began: Instant,
    failures: u64,
}

impl FailureLog {
    /// Takes one failure in.
    pub(super) fn note(&self, reason: &'static str, now: Instant) -> Line {
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let window = windows.entry(reason).or_insert(Window { began: now, failures: 0 });
        let mut counted = 0;
        if now.saturating_duration_since(window.began) >= WINDOW {
            counted = window.failures.saturating_sub(TOLD_ALONE);
            *window = Window { began: now, failures: 0 };
        }
        window.failures = window.failures.saturating_add(1);
        if window.failures > TOLD_ALONE { Line::Count } else { Line::Tell { counted } }
    }

    /// Returns how many of each reason were only counted in the windows that are over at `now`, and forgets them: a flood
    /// that has ended has no next failure to tell it.
    pub(super) fn tick(&self, now: Instant) -> Vec<(&'static str, u64)> {
        self.take(|window| now.saturating_duration_since(window.began) >= WINDOW)
    }

    /// The same of all windows, over or not: for the end of the process.
    pub(super) fn drain(&self) -> Vec<(&'static str, u64)> {
        self.take(|_| true)
    }

    fn take(&self, is_over: impl Fn(&Window) -> bool) -> Vec<(&'static str, u64)> {
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        windows
            .extract_if(.., |_, window| is_over(window))
            .map(|(reason, window)| (reason, window.failures.saturating_sub(TOLD_ALONE)))
            .filter(|(_, counted)| *counted > 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use kms_core::clock::{Clock as _, SystemClock};

    use super::*;

    const ALONE: Line = Line::Tell { counted: 0 };

    #[test]
    fn the_first_of_a_reason_are_told_and_one_more_is_counted() {
        let (log, now) = (FailureLog::default(), SystemClock.monotonic());
        for _ in 0..TOLD_ALONE {
            assert_eq!(log.note("HSM_UNAVAILABLE", now), ALONE);
        }
        assert_eq!(log.note("HSM_UNAVAILABLE", now), Line::Count);
        assert_eq!(log.note("AUDIT_UNAVAILABLE", now), ALONE, "each reason for itself");
    }

    #[test]
    fn what_was_counted_is_told_once_after_the_window_or_at_the_end_without_another_failure() {
        let (log, began) = (FailureLog::default(), SystemClock.monotonic());
        let flood = |reason, count| {
            for _ in 0..count {
                log.note(reason, began);
            }
        };
        flood("HSM_UNAVAILABLE", TOLD_ALONE + 7);
        flood("AUDIT_UNAVAILABLE", TOLD_ALONE);
        let last = began + WINDOW.checked_sub(Duration::from_millis(1)).unwrap();
        assert_eq!(log.tick(last), []);
        assert_eq!(log.tick(began + WINDOW), [("HSM_UNAVAILABLE", 7)]);
        assert_eq!(log.tick(began + WINDOW), []);
        flood("HSM_UNAVAILABLE", TOLD_ALONE + 1);
        assert_eq!(log.drain(), [("HSM_UNAVAILABLE", 1)]);
        assert_eq!(log.drain(), []);
    }

    #[test]
    fn what_was_counted_is_told_when_the_window_is_over() {
        let (log, began) = (FailureLog::default(), SystemClock.monotonic());
        for _ in 0..TOLD_ALONE + 7 {
            log.note("HSM_UNAVAILABLE", began);
        }
        let last = began + WINDOW.checked_sub(Duration::from_millis(1)).unwrap();
        assert_eq!(log.note("HSM_UNAVAILABLE", last), Line::Count);
        assert_eq!(log.note("HSM_UNAVAILABLE", began + WINDOW), Line::Tell { counted: 8 });
        assert_eq!(log.note("HSM_UNAVAILABLE", began + WINDOW), ALONE);
    }
}
