//! The gate between calls and C_Finalize: calls pass for reading, re-initialisation for writing.
//!
//! Invariant: C_Finalize never runs while a call is inside (test `exclusive_waits_for_those_inside`). Handle numbers
//! restart after it, so everything that holds a handle holds the epoch it is of, too.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cryptoki::context::Pkcs11;
use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;
use cryptoki::slot::Slot;
use kms_core::clock::Clock;
use kms_core::id::RootGeneration;

/// The handles of a root set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Root {
    pub(crate) wrap: ObjectHandle,
    pub(crate) mac: ObjectHandle,
}

/// Everything that is valid until the next change of epoch.
pub(crate) struct Live {
    /// Counts C_Initialize: sessions of another module epoch must not even be closed.
    pub(crate) module_epoch: u64,
    /// Counts losses of objects too: key handles of another epoch name nothing, or something else.
    pub(crate) epoch: u64,
    /// Counts looks at the login: of many jobs that met a lost one, the first has it looked at.
    pub(crate) login: u64,
    pub(crate) context: Pkcs11,
    pub(crate) slot: Slot,
    pub(crate) roots: HashMap<RootGeneration, Root>,
    /// Sessions opened for the workers by the keeper, so that no request opens one.
    pub(crate) sessions: Arc<Mutex<Vec<Session>>>,
}

impl Live {
    /// Makes a copy in which some things may be put anew.
    pub(crate) fn renewed(&self) -> Self {
        Self {
            module_epoch: self.module_epoch,
            epoch: self.epoch,
            login: self.login,
            context: self.context.clone(),
            slot: self.slot,
            roots: self.roots.clone(),
            sessions: Arc::clone(&self.sessions),
        }
    }
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// The gate. See the module's description.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    live: Option<Arc<Live>>,
    inside: usize,
    exclusive: bool,
}

/// Why one may not go in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// There is no live module.
    NotLive,
    /// The deadline passed while the keeper had the gate.
    Deadline,
}

impl Gate {
    /// Goes in for one job; waits while the keeper has the gate, until `deadline` at most.
    pub(crate) fn enter(
        &self,
        deadline: Instant,
        clock: &dyn Clock,
    ) -> Result<Inside<'_>, Refused> {
        let mut state = self.lock();
        while state.exclusive {
            let left = deadline.saturating_duration_since(clock.monotonic());
            if left.is_zero() {
                return Err(Refused::Deadline);
            }
            state =
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let Some(live) = state.live.clone() else { return Err(Refused::NotLive) };
        state.inside += 1;
        Ok(Inside { gate: self, live })
    }

    /// Keeps everyone out and waits until those inside are out. `None` when one of them is not within `budget`.
    pub(crate) fn exclusive(&self, budget: Duration) -> Option<Exclusive<'_>> {
        let mut state = self.lock();
        state.exclusive = true;
        let (mut state, _) = self
            .changed
            .wait_timeout_while(state, budget, |state| state.inside > 0)
            .unwrap_or_else(PoisonError::into_inner);
        if state.inside > 0 {
            state.exclusive = false;
            self.changed.notify_all();
            return None;
        }
        drop(state);
        Some(Exclusive { gate: self })
    }

    /// Puts something newer of the same module epoch in place, beside those inside.
    pub(crate) fn swap(&self, live: Arc<Live>) {
        self.lock().live = Some(live);
    }

    /// Returns what is live now, without going in.
    pub(crate) fn live(&self) -> Option<Arc<Live>> {
        self.lock().live.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One call's stay inside.
#[derive(Debug)]
pub(crate) struct Inside<'a> {
    gate: &'a Gate,
    pub(crate) live: Arc<Live>,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state.inside -= 1;
        if state.exclusive && state.inside == 0 {
            self.gate.changed.notify_all();
        }
    }
}

/// The keeper's time alone.
#[derive(Debug)]
pub(crate) struct Exclusive<'a> {
    gate: &'a Gate,
}

impl Exclusive<'_> {
    /// Takes what is live away, or puts something in its place.
    pub(crate) fn set(&self, live: Option<Arc<Live>>) {
        self.gate.lock().live = live;
    }
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        self.gate.lock().exclusive = false;
        self.gate.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use kms_core::clock::SystemClock;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn live() -> Arc<Live> {
        let context = Pkcs11::new(kms_testkit::softhsm::module()).unwrap();
        Arc::new(Live {
            module_epoch: 1,
            epoch: 1,
            login: 1,
            context,
            slot: Slot::try_from(0_u64).unwrap(),
            roots: HashMap::new(),
            sessions: Arc::default(),
        })
    }

    fn open() -> Gate {
        let gate = Gate::default();
        gate.exclusive(LONG).unwrap().set(Some(live()));
        gate
    }

    fn enter(gate: &Gate, wait: Duration) -> Result<Inside<'_>, Refused> {
        gate.enter(SystemClock.monotonic() + wait, &SystemClock)
    }

    #[test]
    fn nobody_enters_before_there_is_something_live() {
        assert_eq!(enter(&Gate::default(), LONG).unwrap_err(), Refused::NotLive);
        assert!(enter(&open(), LONG).is_ok());
    }

    #[test]
    fn exclusive_waits_for_those_inside() {
        let gate = open();
        let inside = enter(&gate, LONG).unwrap();
        assert!(gate.exclusive(Duration::from_millis(10)).is_none(), "someone is inside");
        std::thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            let gate = &gate;
            scope.spawn(move || {
                let exclusive = gate.exclusive(LONG);
                tell.send(exclusive.is_some()).unwrap();
            });
            assert!(told.recv_timeout(Duration::from_millis(50)).is_err(), "still inside");
            drop(inside);
            assert_eq!(told.recv_timeout(LONG), Ok(true));
        });
    }

    #[test]
    fn after_a_failed_exclusive_others_enter_again() {
        let gate = open();
        let _inside = enter(&gate, LONG).unwrap();
        assert!(gate.exclusive(Duration::ZERO).is_none());
        assert!(enter(&gate, LONG).is_ok());
    }

    #[test]
    fn whoever_waits_at_the_gate_is_refused_at_the_deadline() {
        let gate = open();
        let exclusive = gate.exclusive(LONG).unwrap();
        assert_eq!(enter(&gate, Duration::from_millis(5)).unwrap_err(), Refused::Deadline);
        drop(exclusive);
        assert!(enter(&gate, LONG).is_ok());
    }
}
