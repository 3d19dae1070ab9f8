//! Those who wait behind a call that hangs: answered at their own deadlines, whoever is ahead of them; and bounded.

use std::time::Duration;

use kms_core::clock::{Clock as _, SystemClock};
use kms_hsm::pkcs11::Pkcs11Config;
use kms_hsm::{Hsm as _, HsmError};
use kms_testkit::{Faulty, isolated_faulty};

use crate::rig::{LIMIT, Rig, soon};

/// A deadline that a job behind a hang misses.
const PATIENCE: Duration = Duration::from_millis(200);

/// Runs a body with one worker and budgets that no hang of this file meets.
fn with_one_worker(
    test: &str,
    more: impl FnOnce(&mut Pkcs11Config),
    body: impl FnOnce(&Rig, &Faulty),
) {
    isolated_faulty(test, |_, faulty| {
        let rig = Rig::start_with(|config| {
            config.workers = 1;
            config.budgets.worker_hang = LIMIT;
            config.budgets.keeper_hang = LIMIT;
            config.budgets.drain = LIMIT;
            more(config);
        });
        body(&rig, faulty);
        faulty.heal();
        rig.assert_not_fatal();
    });
}

#[test]
fn a_job_does_not_wait_for_one_ahead_that_has_more_time() {
    let test = "waiting::a_job_does_not_wait_for_one_ahead_that_has_more_time";
    with_one_worker(
        test,
        |_| {},
        |rig, faulty| {
            let key = rig.key(1).key;
            let mark = faulty.mark();
            faulty.script(&["C_Encrypt 1 hang"]);
            let start = SystemClock.monotonic();
            let patient = rig.submit(&key, soon());
            faulty.await_hang(mark, "C_Encrypt", LIMIT);
            let behind = rig.submit(&key, start + PATIENCE).wait();
            assert_eq!(behind.unwrap_err(), HsmError::QueueDeadline);
            assert!(SystemClock.monotonic() - start < LIMIT / 2, "long before the hang is over");
            faulty.heal();
            assert!(patient.wait().is_ok());
        },
    );
}

#[test]
fn work_for_the_keeper_does_not_wait_for_one_ahead_that_has_more_time() {
    let test = "waiting::work_for_the_keeper_does_not_wait_for_one_ahead_that_has_more_time";
    with_one_worker(
        test,
        |_| {},
        |rig, faulty| {
            let source = rig.key(1).source;
            let mark = faulty.mark();
            faulty.script(&["C_UnwrapKey 1 hang"]);
            let start = SystemClock.monotonic();
            let patient = rig.hsm.load_key(source.clone(), soon());
            faulty.await_hang(mark, "C_UnwrapKey", LIMIT);
            let behind = rig.hsm.load_key(source, start + PATIENCE).wait();
            assert_eq!(behind.unwrap_err(), HsmError::QueueDeadline);
            assert!(SystemClock.monotonic() - start < LIMIT / 2, "long before the hang is over");
            faulty.heal();
            assert!(patient.wait().is_ok());
        },
    );
}

#[test]
fn a_job_does_not_wait_for_one_that_waits_at_the_gate() {
    let test = "waiting::a_job_does_not_wait_for_one_that_waits_at_the_gate";
    with_one_worker(
        test,
        |_| {},
        |rig, faulty| {
            let key = rig.key(1).key;
            let mark = faulty.mark();
            // The keeper connects anew for the sake of the first job, and hangs with the gate in its hands.
            faulty.script(&[
                "C_EncryptInit 1 return CKR_OBJECT_HANDLE_INVALID",
                "C_DecryptInit 1 return CKR_SESSION_HANDLE_INVALID",
                "C_GetSessionInfo 1 return CKR_SESSION_HANDLE_INVALID",
                "C_Initialize 1 hang",
            ]);
            let start = SystemClock.monotonic();
            let first = rig.submit(&key, soon());
            faulty.await_hang(mark, "C_Initialize", LIMIT);
            let at_the_gate = rig.submit(&key, soon());
            let behind = rig.submit(&key, start + PATIENCE).wait();
            assert_eq!(behind.unwrap_err(), HsmError::QueueDeadline);
            assert!(SystemClock.monotonic() - start < LIMIT / 2, "long before the hang is over");
            faulty.heal();
            assert!(first.wait().is_ok());
            assert!(at_the_gate.wait().is_ok());
        },
    );
}

#[test]
fn a_job_that_was_tried_is_not_answered_as_if_it_had_not_been() {
    let test = "waiting::a_job_that_was_tried_is_not_answered_as_if_it_had_not_been";
    with_one_worker(
        test,
        |_| {},
        |rig, faulty| {
            let key = rig.key(1);
            let mark = faulty.mark();
            faulty.script(&["C_UnwrapKey 1 hang", "C_EncryptInit 1 return CKR_USER_NOT_LOGGED_IN"]);
            let loading = rig.hsm.load_key(key.source.clone(), soon());
            faulty.await_hang(mark, "C_UnwrapKey", LIMIT);
            let rescued = rig.submit(&key.key, SystemClock.monotonic() + PATIENCE).wait();
            assert_eq!(rescued.unwrap_err(), HsmError::CallDeadline);
            faulty.heal();
            assert!(loading.wait().is_ok());
        },
    );
}

#[test]
fn as_many_wait_for_the_keeper_as_may_and_not_one_more() {
    let test = "waiting::as_many_wait_for_the_keeper_as_may_and_not_one_more";
    with_one_worker(
        test,
        |config| config.keeper_capacity = 2,
        |rig, faulty| {
            let key = rig.key(1);
            let mark = faulty.mark();
            faulty.script(&["C_UnwrapKey 1 hang", "C_EncryptInit * return CKR_USER_NOT_LOGGED_IN"]);
            let load = || rig.hsm.load_key(key.source.clone(), soon());
            let served = load();
            faulty.await_hang(mark, "C_UnwrapKey", LIMIT);
            // One place for a load, one for a job that a worker could not do.
            let waiting = load();
            let rescued = rig.submit(&key.key, soon());
            kms_testkit::deadline::eventually(LIMIT, "the worker to hand its job over", || {
                faulty.count_since(mark, "C_EncryptInit") == 1
            });
            // The worker counts the job after its call: only then is the place taken.
            let one_more = rig.submit(&key.key, soon()).wait();
            assert!(matches!(one_more, Err(HsmError::Saturated { .. })), "{one_more:?}");
            let one_more = load().wait();
            assert!(matches!(one_more, Err(HsmError::Saturated { .. })), "{one_more:?}");
            faulty.heal();
            assert!(served.wait().is_ok());
            assert!(waiting.wait().is_ok());
            assert!(rescued.wait().is_ok());
        },
    );
}
