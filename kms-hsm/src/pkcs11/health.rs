//! How the provider is: breaker and latch, asked before every job.
//!
//! Invariant: a latch is left only by a new process (test `a_latch_is_never_left`).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{HsmError, LatchReason};
use crate::hsm::HsmHealth;

/// What the breaker says when no time of the next probe is known.
const DEFAULT_RETRY: Duration = Duration::from_millis(100);

/// The state behind the breaker.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Logged in; roots open or not.
    Up { roots: bool },
    /// The breaker is open.
    Down { detail: String, probe_at: Option<Instant> },
    /// Until an operator acts.
    Latched(LatchReason),
}

/// The health of the provider.
#[derive(Debug)]
pub(crate) struct Health {
    /// Whether the state is `Up`: all that a job has to read on its way in.
    up: AtomicBool,
    state: Mutex<State>,
    /// Closed by us: no more jobs are taken, whatever the state, which still holds for those that were.
    closed: AtomicBool,
}

impl Health {
    pub(crate) fn starting() -> Self {
        let state = State::Down { detail: "starting".into(), probe_at: None };
        let (up, closed) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { up, state: Mutex::new(state), closed }
    }

    /// Refuses a job while the breaker is open or a latch is set.
    pub(crate) fn check(&self, now: impl FnOnce() -> Instant) -> Result<(), HsmError> {
        if self.up.load(Ordering::Acquire) {
            return Ok(());
        }
        if self.is_closed() {
            return Err(closed());
        }
        self.check_taken(now)
    }

    /// Like [`Health::check`], for jobs that were taken before closing began: they are finished.
    pub(crate) fn check_taken(&self, now: impl FnOnce() -> Instant) -> Result<(), HsmError> {
        if self.up.load(Ordering::Acquire) {
            return Ok(());
        }
        match &*self.lock() {
            State::Up { .. } => Ok(()),
            State::Down { detail, probe_at } => Err(HsmError::Unavailable {
                detail: detail.clone(),
                retry_after: probe_at.map_or(DEFAULT_RETRY, |at| {
                    at.saturating_duration_since(now()).max(Duration::from_millis(1))
                }),
            }),
            State::Latched(reason) => Err(HsmError::Latched { reason: reason.clone() }),
        }
    }

    /// Opens the breaker. Returns whether it was closed before.
    pub(crate) fn trip(&self, detail: &str) -> bool {
        let mut state = self.lock();
        if !matches!(*state, State::Up { .. }) {
            return false;
        }
        *state = State::Down { detail: detail.to_owned(), probe_at: None };
        self.up.store(false, Ordering::Release);
        tracing::error!(detail, "the HSM is unavailable");
        true
    }

    /// Says when the prober tries next, and what it saw last.
    pub(crate) fn next_probe(&self, detail: &str, at: Instant) {
        let mut state = self.lock();
        if matches!(*state, State::Latched(_)) {
            return;
        }
        *state = State::Down { detail: detail.to_owned(), probe_at: Some(at) };
        self.up.store(false, Ordering::Release);
    }

    /// Says when the prober tries next.
    pub(crate) fn probe_at(&self, at: Instant) {
        if let State::Down { probe_at, .. } = &mut *self.lock() {
            *probe_at = Some(at);
        }
    }

    /// Closes the breaker.
    pub(crate) fn up(&self, roots: bool) {
        let mut state = self.lock();
        if matches!(*state, State::Latched(_)) {
            return;
        }
        *state = State::Up { roots };
        self.up.store(!self.is_closed(), Ordering::Release);
    }

    /// Latches; the first reason stays.
    pub(crate) fn latch(&self, reason: &LatchReason) {
        let mut state = self.lock();
        if matches!(*state, State::Latched(_)) {
            return;
        }
        *state = State::Latched(reason.clone());
        self.up.store(false, Ordering::Release);
        tracing::error!(%reason, "the HSM is latched until an operator acts");
    }

    /// Takes no more jobs. Returns whether it took them before, or was to take them again.
    pub(crate) fn close(&self) -> bool {
        // Under the lock of the state, so that no one who comes up meanwhile overlooks it.
        let _state = self.lock();
        self.up.store(false, Ordering::Release);
        !self.closed.swap(true, Ordering::AcqRel)
    }

    /// Returns whether a prober can help.
    pub(crate) fn is_down(&self) -> bool {
        !self.is_closed() && matches!(*self.lock(), State::Down { .. })
    }

    pub(crate) fn report(&self) -> HsmHealth {
        if self.is_closed() {
            return HsmHealth::Unavailable("closed".into());
        }
        match &*self.lock() {
            State::Up { roots: true } => HsmHealth::Ready,
            State::Up { roots: false } => HsmHealth::NoRoots,
            State::Down { detail, .. } => HsmHealth::Unavailable(detail.clone()),
            State::Latched(reason) => HsmHealth::Latched(reason.clone()),
        }
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The answer to a job that came after [`crate::Hsm::close`].
pub(crate) fn closed() -> HsmError {
    HsmError::Unavailable { detail: "closed".into(), retry_after: DEFAULT_RETRY }
}

#[cfg(test)]
mod tests {
    use kms_core::clock::{Clock as _, SystemClock};

    use super::*;

    fn check(health: &Health) -> Result<(), HsmError> {
        health.check(|| SystemClock.monotonic())
    }

    #[test]
    fn jobs_pass_only_while_up() {
        let health = Health::starting();
        assert!(matches!(check(&health), Err(HsmError::Unavailable { .. })));
        health.up(true);
        assert_eq!(check(&health), Ok(()));
        assert!(health.trip("gone"));
        assert!(!health.trip("gone again"), "only the first one opens it");
        assert!(
            matches!(check(&health), Err(HsmError::Unavailable { detail, .. }) if detail == "gone")
        );
    }

    #[test]
    fn a_latch_is_never_left() {
        let health = Health::starting();
        health.latch(&LatchReason::PinRefused);
        health.up(true);
        health.next_probe("x", SystemClock.monotonic());
        health.latch(&LatchReason::PinLocked);
        assert_eq!(check(&health), Err(HsmError::Latched { reason: LatchReason::PinRefused }));
        assert_eq!(health.report(), HsmHealth::Latched(LatchReason::PinRefused));
    }

    #[test]
    fn closing_finishes_what_was_taken_and_takes_no_more() {
        let health = Health::starting();
        health.up(true);
        assert!(health.close(), "the first time");
        assert!(!health.close());
        assert_eq!(check(&health), Err(closed()));
        assert_eq!(health.check_taken(|| SystemClock.monotonic()), Ok(()));
        health.up(true);
        assert_eq!(check(&health), Err(closed()), "not even when it comes up meanwhile");
        assert_eq!(health.report(), HsmHealth::Unavailable("closed".into()));
    }

    #[test]
    fn closing_does_not_lift_a_latch_or_mend_a_device() {
        let health = Health::starting();
        health.latch(&LatchReason::PinRefused);
        health.close();
        let refused = Err(HsmError::Latched { reason: LatchReason::PinRefused });
        assert_eq!(health.check_taken(|| SystemClock.monotonic()), refused);
        let health = Health::starting();
        health.up(true);
        health.close();
        health.latch(&LatchReason::PinLocked);
        let refused = Err(HsmError::Latched { reason: LatchReason::PinLocked });
        assert_eq!(health.check_taken(|| SystemClock.monotonic()), refused, "found while closing");
        assert!(!health.is_down(), "no prober starts while closing");
    }

    #[test]
    fn retry_after_is_the_time_to_the_next_probe() {
        let health = Health::starting();
        let now = SystemClock.monotonic();
        health.next_probe("x", now + Duration::from_secs(3));
        let answer = health.check(|| now);
        assert!(
            matches!(answer, Err(HsmError::Unavailable { retry_after, .. }) if retry_after == Duration::from_secs(3))
        );
    }
}
