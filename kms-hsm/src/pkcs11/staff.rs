//! The workers: how they start, how many there are, and what follows when one ends.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread;

use crate::pkcs11::seat::Seat;
use crate::pkcs11::shared::Shared;
use crate::pkcs11::worker;

impl Shared {
    /// Starts one more worker.
    pub(crate) fn spawn_worker(self: &Arc<Self>) -> std::io::Result<()> {
        self.workers.fetch_add(1, Ordering::AcqRel);
        self.start_worker().inspect_err(|_| self.one_less())
    }

    /// Starts a worker in the place of one that is lost: their count stays, unless that fails.
    pub(crate) fn replace_worker(self: &Arc<Self>) {
        if let Err(error) = self.start_worker() {
            tracing::error!(%error, "a lost worker could not be replaced");
            self.one_less();
        }
    }

    fn start_worker(self: &Arc<Self>) -> std::io::Result<()> {
        let seat = Arc::new(Seat::default());
        let (shared, own) = (Arc::clone(self), Arc::clone(&seat));
        // Before it runs: it takes its seat away when it ends.
        self.seats.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&seat));
        let body = move || worker::run(&shared, &own);
        match thread::Builder::new().name("hsm-worker".into()).spawn(body) {
            Ok(thread) => {
                self.keep_thread(thread);
                Ok(())
            }
            Err(error) => {
                self.take_away(&seat);
                Err(error)
            }
        }
    }

    /// Counts a worker down that ends or is lost, and is not replaced.
    pub(crate) fn one_less(&self) {
        if self.workers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.refuse_waiting();
        }
    }

    fn take_away(&self, seat: &Arc<Seat>) {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        seats.retain(|other| !Arc::ptr_eq(other, seat));
    }
}

/// A worker's place among the workers.
///
/// Invariant: however its thread ends, the counts are right afterwards, no caller waits for it, and one that panicked
/// has a successor (test `a_worker_that_panics_is_replaced_wherever_it_was`).
pub(crate) struct Place<'a> {
    shared: &'a Arc<Shared>,
    seat: &'a Arc<Seat>,
    leaves: bool,
}

impl<'a> Place<'a> {
    /// Takes the place of a worker that is counted already.
    pub(crate) const fn new(shared: &'a Arc<Shared>, seat: &'a Arc<Seat>) -> Self {
        Self { shared, seat, leaves: false }
    }

    /// Notes that the worker was told to go, or that another has taken over: no one is to follow it.
    pub(crate) const fn leave(&mut self) {
        self.leaves = true;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let written_off = self.seat.vacate();
        self.shared.take_away(self.seat);
        if written_off {
            // The watchdog has counted it down, and put another in its place.
            self.shared.written_off.fetch_sub(1, Ordering::AcqRel);
        } else if self.leaves {
            self.shared.one_less();
        } else {
            tracing::error!("a worker died and is replaced");
            self.shared.replace_worker();
        }
        // Room for every worker there can be; the one who closes may have stopped waiting.
        let _ = self.shared.ended.try_send(());
    }
}
