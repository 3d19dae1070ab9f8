//! How fast: at full speed while nobody uses a key, and in small steps with long pauses while somebody does.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::super::kms::Inner;
use super::super::reconcile::stopped;
use crate::store::RowsLimit;

/// How much one step may do, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// Keys and rows of it.
    pub(super) limit: RowsLimit,
    /// Calls of the HSM that are made at a time.
    pub(super) calls_at_once: usize,
    /// Rows of one such call.
    pub(super) rows_a_call: usize,
}

/// How often the step of an idle server is halved: down to that of a busy one, for an HSM that is a hundred times slower than
/// SoftHSM.
pub(super) const MAX_HALVINGS: u32 = 5;

impl Step {
    /// When nobody waits: enough that commits cost little, and no worker idle.
    const fn quiet(halvings: u32) -> Self {
        let limit = RowsLimit { keys: 256 >> halvings, rows: 2048 >> halvings };
        Self { limit, calls_at_once: 2, rows_a_call: 16 }
    }

    /// While keys are used: a worker is left to those who use them, and nobody waits for more than a few rows.
    pub(super) const BUSY: Self =
        Self { limit: RowsLimit { keys: 256, rows: 64 }, calls_at_once: 1, rows_a_call: 2 };
}

/// How long a pause is while keys are used, in times of what the step took: a fifth of the time is spent on it.
const PAUSES_A_STEP: u32 = 4;

/// The pace of a pass.
pub(super) struct Pace {
    inner: Arc<Inner>,
    traffic: u64,
    begun: Instant,
    is_busy: bool,
    halvings: u32,
    /// Says true, or has lost its sender, when the server ends.
    stop: watch::Receiver<bool>,
}

impl Pace {
    /// The step of an idle server is halved so often.
    pub(super) fn new(inner: &Arc<Inner>, halvings: u32, stop: watch::Receiver<bool>) -> Self {
        Self {
            traffic: inner.traffic.load(Ordering::Relaxed),
            begun: inner.clock.monotonic(),
            is_busy: false,
            halvings: halvings.min(MAX_HALVINGS),
            stop,
            inner: Arc::clone(inner),
        }
    }

    /// Begins a step; returns how much it may do.
    pub(super) fn step(&mut self) -> Step {
        let traffic = self.inner.traffic.load(Ordering::Relaxed);
        self.is_busy = traffic != self.traffic;
        self.traffic = traffic;
        self.begun = self.inner.clock.monotonic();
        if self.is_busy { Step::BUSY } else { Step::quiet(self.halvings) }
    }

    /// Returns how much may follow without a rest: nothing as soon as somebody uses a key, or the server ends.
    pub(super) fn further(&mut self) -> Option<Step> {
        let traffic = self.inner.traffic.load(Ordering::Relaxed);
        self.is_busy |= traffic != self.traffic;
        (!self.is_busy && !self.is_stopped()).then(|| Step::quiet(self.halvings))
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
