//! The watchdog: answers for threads that hang in the module, and replaces workers.
//!
//! It never calls the module itself.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use crate::pkcs11::fatal::FatalReason;
use crate::pkcs11::seat::Finding;
use crate::pkcs11::shared::Shared;

/// How late an answer to a hung call may be; one wake-up costs a few microseconds.
const TICK: Duration = Duration::from_millis(20);
/// Every how many ticks those who wait are looked through: a full queue of the default length costs a fraction of a
/// millisecond.
const TICKS_A_SWEEP: u32 = 5;

/// Looks at every seat once a tick, until `stop` is closed.
pub(crate) fn run(shared: &Arc<Shared>, stop: &Receiver<()>) {
    let mut ticks = 0_u32;
    while stop.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
        ticks = ticks.wrapping_add(1);
        let now = shared.now();
        let budgets = shared.config.budgets;
        if shared.keeper_seat.inspect(now, budgets.keeper_hang) == Finding::Hangs {
            shared.health.trip("the keeper hangs in the module");
            (shared.config.on_fatal)(FatalReason::KeeperHung);
        }
        if shared.lane_seat.inspect(now, budgets.lane_hang) == Finding::Hangs {
            shared.health.trip("the lane hangs in the module");
            (shared.config.on_fatal)(FatalReason::LaneHung);
        }
        let mut lost = 0;
        shared.seats.lock().unwrap_or_else(PoisonError::into_inner).retain(|seat| {
            let hangs = seat.inspect(now, budgets.worker_hang) == Finding::Hangs;
            lost += usize::from(hangs);
            !hangs
        });
        // Whoever is ahead of them may have more time than they: those who wait are answered at their own deadlines.
        if ticks.is_multiple_of(TICKS_A_SWEEP) {
            shared.refuse_waiting_for_keeper(|deadline| now < deadline);
            shared.expire_waiting(now);
        }
        for _ in 0..lost {
            replace_worker(shared);
        }
    }
}

fn replace_worker(shared: &Arc<Shared>) {
    // Wrapping: it may have come back already, and have taken itself off before it was counted here.
    let before = shared.written_off.fetch_add(1, Ordering::AcqRel);
    let written_off = before.wrapping_add(1);
    tracing::error!(written_off, "a worker hangs in the module and is written off");
    if written_off > shared.config.budgets.max_written_off {
        shared.health.trip("too many workers hang in the module");
        shared.one_less();
        shared.refuse_waiting();
        return (shared.config.on_fatal)(FatalReason::WorkersHung);
    }
    shared.replace_worker();
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::bounded;
    use kms_core::clock::SystemClock;

    use super::*;
    use crate::pkcs11::config::{Pkcs11Config, TokenSelector};
    use crate::pkcs11::job::Ticket;

    #[test]
    fn a_worker_that_came_back_before_it_was_counted_is_counted_all_the_same() {
        let config = Pkcs11Config::new("m".into(), TokenSelector::Label("x".into()));
        let (ended_in, ended) = bounded(1);
        let shared = Arc::new(Shared::new(config, Arc::new(SystemClock), ended_in));
        shared.workers.store(1, Ordering::Release);
        shared.written_off.fetch_sub(1, Ordering::AcqRel);
        replace_worker(&shared);
        assert_eq!(shared.written_off.load(Ordering::Acquire), 0);
        assert_eq!(shared.workers.load(Ordering::Acquire), 1, "the other took its place");
        shared.queue_in.send(Ticket::Stop).unwrap();
        assert_eq!(ended.recv_timeout(Duration::from_secs(20)), Ok(()));
        assert_eq!(shared.workers.load(Ordering::Acquire), 0);
    }
}
