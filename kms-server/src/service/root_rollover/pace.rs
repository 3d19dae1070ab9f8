//! How fast: at full speed while nobody uses a key, and in small steps with long pauses while somebody does.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::super::kms::Inner;
use super::super::reconcile::stopped;
use crate::store::RowsLimit;

/// Keys and rows of one step when nobody waits: enough that commits cost little.
const QUIET: RowsLimit = RowsLimit { keys: 256, rows: 1024 };
/// The same while keys are used.
const BUSY: RowsLimit = RowsLimit { keys: 256, rows: 64 };
/// How long a pause is while keys are used, in times of what the step took: a fifth of the time is spent on it.
const PAUSES_A_STEP: u32 = 4;

/// The pace of a pass.
pub(super) struct Pace {
    inner: Arc<Inner>,
    traffic: u64,
    begun: Instant,
    is_busy: bool,
    /// Says true, or has lost its sender, when the server ends.
    stop: watch::Receiver<bool>,
}

impl Pace {
    pub(super) fn new(inner: &Arc<Inner>, stop: watch::Receiver<bool>) -> Self {
        Self {
            traffic: inner.traffic.load(Ordering::Relaxed),
            begun: inner.clock.monotonic(),
            is_busy: false,
            stop,
            inner: Arc::clone(inner),
        }
    }

    /// Begins a step; returns how much it may do.
    pub(super) fn step(&mut self) -> RowsLimit {
        let traffic = self.inner.traffic.load(Ordering::Relaxed);
        self.is_busy = traffic != self.traffic;
        self.traffic = traffic;
        self.begun = self.inner.clock.monotonic();
        if self.is_busy { BUSY } else { QUIET }
    }

    /// Returns whether no further step is to begin. One that has begun is brought to its end, as any change is.
    pub(super) fn is_stopped(&self) -> bool {
        *self.stop.borrow() || self.stop.has_changed().is_err()
    }

    /// Ends a step.
    pub(super) async fn rest(&mut self) {
        let took = self.inner.clock.monotonic().saturating_duration_since(self.begun);
        if self.is_busy && took > Duration::ZERO {
            let pause = took.saturating_mul(PAUSES_A_STEP);
            // Either way the caller looks whether it is stopped.
            let _ = tokio::time::timeout(pause, stopped(&mut self.stop)).await;
        } else {
            tokio::task::yield_now().await;
        }
    }
}
