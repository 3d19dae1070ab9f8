//! How fast: at full speed while nobody uses a key, and in small steps with long pauses while somebody does.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::super::kms::Inner;
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
}

impl Pace {
    pub(super) fn new(inner: &Arc<Inner>) -> Self {
        Self {
            traffic: inner.traffic.load(Ordering::Relaxed),
            begun: inner.clock.monotonic(),
            is_busy: false,
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

    /// Ends a step.
    pub(super) async fn rest(&self) {
        let took = self.inner.clock.monotonic().saturating_duration_since(self.begun);
        if self.is_busy && took > Duration::ZERO {
            let mut pause = tokio::time::interval(took.saturating_mul(PAUSES_A_STEP));
            pause.tick().await;
            pause.tick().await;
        } else {
            tokio::task::yield_now().await;
        }
    }
}
