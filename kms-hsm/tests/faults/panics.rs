//! A worker that panics, wherever it is: its caller is answered, and there are as many workers as before.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use kms_core::clock::{Clock, SystemClock, Timestamp};
use kms_hsm::{Hsm as _, HsmError, HsmHealth};
use kms_testkit::{deadline, isolated_faulty};

use crate::rig::{LIMIT, Rig, soon};

/// More than the times one job of a worker asks the clock.
const MOST_LOOKS: usize = 16;

/// A clock that panics in the hands of a worker, when it is asked for the time the so-many-th time.
#[derive(Debug, Default)]
struct Trap(AtomicUsize);

impl Clock for Trap {
    fn now(&self) -> Timestamp {
        SystemClock.now()
    }

    fn monotonic(&self) -> Instant {
        if std::thread::current().name() == Some("hsm-worker") {
            let less = |left: usize| left.checked_sub(1);
            let sprung = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, less) == Ok(1);
            assert!(!sprung, "the trap is sprung");
        }
        SystemClock.monotonic()
    }
}

#[test]
fn a_worker_that_panics_is_replaced_wherever_it_was() {
    let test = "panics::a_worker_that_panics_is_replaced_wherever_it_was";
    isolated_faulty(test, |_, faulty| {
        let trap = Arc::new(Trap::default());
        // No watchdog comes to help.
        let rig = Rig::start_on(Arc::clone(&trap) as _, |config| {
            config.budgets.worker_hang = LIMIT * 2;
        });
        let key = rig.key(1).key;
        let (mark, mut panicked) = (faulty.mark(), 0);
        for looks in 1..=MOST_LOOKS {
            trap.0.store(looks, Ordering::Release);
            let answer = rig.submit(&key, soon()).wait();
            if trap.0.swap(0, Ordering::AcqRel) > 0 {
                assert!(answer.is_ok(), "{looks}: {answer:?}");
                continue;
            }
            panicked += 1;
            assert_eq!(answer.map(drop), Err(HsmError::CallDeadline), "look {looks}");
            assert_eq!(rig.hsm.status().workers, 2, "look {looks}");
        }
        // Before the job was begun with, and within it.
        assert!((3..MOST_LOOKS).contains(&panicked), "{panicked}");
        let count = |function| faulty.count_since(mark, function);
        assert_eq!(count("C_OpenSession"), count("C_CloseSession"), "a session was lost");
        // Two are at work at a time.
        let mark = faulty.mark();
        faulty.script(&["C_Encrypt 1-2 hang"]);
        let pending = [(); 2].map(|()| rig.submit(&key, soon()));
        faulty.await_hangs(mark, ("C_Encrypt", 2), LIMIT);
        faulty.heal();
        assert!(pending.into_iter().all(|answer| answer.wait().is_ok()));
        assert_eq!(rig.health(), HsmHealth::Ready);
        // Each of them takes its leave.
        rig.hsm.close();
        assert_eq!(rig.hsm.status().workers, 0);
        rig.assert_not_fatal();
    });
}

#[test]
fn a_worker_that_panics_as_it_goes_is_not_followed() {
    isolated_faulty("panics::a_worker_that_panics_as_it_goes_is_not_followed", |_, _| {
        let trap = Arc::new(Trap::default());
        let rig = Rig::start_on(Arc::clone(&trap) as _, |config| config.workers = 1);
        assert_eq!(rig.round_trip(&rig.key(1).key), Ok(()));
        // Idle, it does not look at the clock: the next time is when it closes its session.
        trap.0.store(1, Ordering::Release);
        rig.hsm.close();
        assert_eq!(trap.0.load(Ordering::Acquire), 0);
        deadline::eventually(LIMIT, "the last worker", || rig.hsm.status().workers == 0);
    });
}
