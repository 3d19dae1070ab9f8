//! Signals of the process: to stop, and to read certificates again.

use std::time::{Duration, Instant};

use kms_core::clock::{Clock as _, SystemClock};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::error::StartError;

/// How long the signal that asked for a stop may come again and mean nothing more: GNU `timeout` sends it to the process
/// and then to its group, and so do terminals and supervisors that reach it by two ways.
const ECHO: Duration = Duration::from_secs(1);

/// What a signal asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    Stop,
    Reload,
}

/// The signals that ask for a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    Terminate,
    Interrupt,
}

/// Tells a wish to stop from the echo of the first one.
#[derive(Debug, Default)]
struct Stops {
    first: Option<(Stop, Instant)>,
}

impl Stops {
    /// Returns whether a signal is a wish of its own.
    fn counts(&mut self, stop: Stop, now: Instant) -> bool {
        let Some((first, at)) = self.first else {
            self.first = Some((stop, now));
            return true;
        };
        stop != first || now.saturating_duration_since(at) >= ECHO
    }
}

pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    stops: Stops,
}

impl Signals {
    pub(super) fn install() -> Result<Self, StartError> {
        let install = |kind| signal(kind).map_err(StartError::system("install a signal handler"));
        Ok(Self {
            terminate: install(SignalKind::terminate())?,
            interrupt: install(SignalKind::interrupt())?,
            hang_up: install(SignalKind::hangup())?,
            stops: Stops::default(),
        })
    }

    /// Waits for a wish. The same signal to stop, within a second of the first, is none.
    pub(super) async fn next(&mut self) -> Wish {
        loop {
            let stop = tokio::select! {
                _ = self.terminate.recv() => Stop::Terminate,
                _ = self.interrupt.recv() => Stop::Interrupt,
                _ = self.hang_up.recv() => return Wish::Reload,
            };
            if self.stops.counts(stop, SystemClock.monotonic()) {
                return Wish::Stop;
            }
            tracing::info!("told to stop again by the same signal within a second: taken for one");
        }
    }

    /// Waits for a wish to stop; others have nothing to act on then.
    pub(super) async fn stop(&mut self) {
        while self.next().await != Wish::Stop {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_signal_counts_again_after_a_second_and_another_at_once() {
        let (mut stops, now) = (Stops::default(), SystemClock.monotonic());
        let just = ECHO.saturating_sub(Duration::from_nanos(1));
        assert!(stops.counts(Stop::Terminate, now), "the first");
        assert!(!stops.counts(Stop::Terminate, now));
        assert!(!stops.counts(Stop::Terminate, now + just));
        assert!(stops.counts(Stop::Interrupt, now + just));
        assert!(stops.counts(Stop::Terminate, now + ECHO), "an echo does not make it longer");
    }
}
