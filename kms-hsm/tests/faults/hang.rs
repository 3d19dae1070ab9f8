//! Rows "hang" and "slow": callers are answered at their deadline, workers replaced, Finalize never runs under a call.

use std::sync::Arc;
use std::time::Duration;

use kms_core::clock::{Clock as _, SystemClock};
use kms_core::key::Protection;
use kms_hsm::pkcs11::{FatalReason, Pkcs11Hsm};
use kms_hsm::{Hsm as _, HsmError, HsmHealth};
use kms_testkit::{deadline, isolated_faulty};

use crate::rig::{LIMIT, Rig, config, pin, soon, with_rig};

/// A deadline that a hung call misses, and an honest one does not.
const PATIENCE: Duration = Duration::from_millis(150);
/// How late an answer may come beyond its deadline; two cores are shared with other tests.
const LATE: Duration = Duration::from_secs(2);

#[test]
fn a_hung_call_is_answered_at_its_deadline_and_its_worker_replaced() {
    let test = "hang::a_hung_call_is_answered_at_its_deadline_and_its_worker_replaced";
    with_rig(test, |rig, faulty| {
        let key = rig.key(1).key;
        let mark = faulty.mark();
        faulty.script(&["C_Encrypt 1 hang"]);
        let start = SystemClock.monotonic();
        let answer = rig.submit(&key, start + PATIENCE).wait();
        let took = SystemClock.monotonic() - start;
        assert_eq!(answer.unwrap_err(), HsmError::CallDeadline);
        assert!(took >= PATIENCE && took < PATIENCE + LATE, "{took:?}");
        faulty.await_hang(mark, "C_Encrypt", LIMIT);
        // The other worker serves meanwhile; the one that takes the place opens a session of its own.
        deadline::eventually(LIMIT, "a new worker at work", || {
            let pending = [(); 4].map(|()| rig.submit(&key, soon()));
            assert!(pending.into_iter().all(|answer| answer.wait().is_ok()));
            faulty.count_since(mark, "C_OpenSession") == 1
        });
        assert_eq!(rig.hsm.status().workers, 2);
        assert_eq!(rig.health(), HsmHealth::Ready);
        faulty.heal();
        // The old one comes back, sees that another has its place, and goes.
        deadline::eventually(LIMIT, "its session to be closed", || {
            faulty.count_since(mark, "C_CloseSession") == 1
        });
        assert_eq!(rig.round_trip(&key), Ok(()));
        assert!(faulty.count_since(mark, "C_Login") == 0);
        rig.assert_not_fatal();
    });
}

#[test]
fn while_one_worker_hangs_there_are_two_again_after_its_budget() {
    let test = "hang::while_one_worker_hangs_there_are_two_again_after_its_budget";
    isolated_faulty(test, |_, faulty| {
        let rig = Rig::start_with(|config| config.budgets.max_written_off = 3);
        let key = rig.key(1).key;
        let mark = faulty.mark();
        faulty.script(&["C_Encrypt 1-3 hang"]);
        let pending = [(); 3].map(|()| rig.submit(&key, soon()));
        // Two workers hang in two calls: in the third one only a replacement can be.
        faulty.await_hangs(mark, ("C_Encrypt", 3), LIMIT);
        faulty.heal();
        for answer in pending {
            // Of those that were written off, and of the one that was not.
            assert!(matches!(answer.wait(), Ok(_) | Err(HsmError::CallDeadline)));
        }
        rig.await_recovery(&key);
        rig.assert_not_fatal();
    });
}

#[test]
fn more_hangs_than_may_be_written_off_are_fatal() {
    with_rig("hang::more_hangs_than_may_be_written_off_are_fatal", |rig, faulty| {
        let key = rig.key(1).key;
        faulty.script(&["C_Encrypt * hang"]);
        let mut fatal = None;
        deadline::eventually(LIMIT, "something fatal", || {
            drop(rig.submit(&key, soon()));
            fatal = rig.fatal();
            fatal.is_some()
        });
        assert_eq!(fatal, Some(FatalReason::WorkersHung));
        // Callers do not wait for ever, and C_Finalize never ran under the live calls.
        let answer = rig.submit(&key, SystemClock.monotonic() + PATIENCE).wait();
        assert!(answer.is_err());
        assert_eq!(faulty.count_since(0, "C_Finalize"), 0);
    });
}

#[test]
fn a_hung_keeper_is_fatal_and_its_caller_answered() {
    with_rig("hang::a_hung_keeper_is_fatal_and_its_caller_answered", |rig, faulty| {
        let key = rig.key(1);
        let mark = faulty.mark();
        faulty.script(&["C_UnwrapKey 1 hang"]);
        let start = SystemClock.monotonic();
        let answer = rig.hsm.load_key(key.source.clone(), start + PATIENCE).wait();
        assert_eq!(answer.unwrap_err(), HsmError::CallDeadline);
        assert!(SystemClock.monotonic() - start < PATIENCE + LATE);
        faulty.await_hang(mark, "C_UnwrapKey", LIMIT);
        // Loaded keys work while the keeper hangs.
        assert_eq!(rig.round_trip(&key.key), Ok(()));
        assert_eq!(rig.await_fatal(), FatalReason::KeeperHung);
        assert_eq!(faulty.count_since(mark, "C_Finalize"), 0);
    });
}

#[test]
fn a_keeper_that_hangs_while_it_destroys_an_evicted_key_is_fatal() {
    let test = "hang::a_keeper_that_hangs_while_it_destroys_an_evicted_key_is_fatal";
    with_rig(test, |rig, faulty| {
        let (kept, evicted) = (rig.key(1), rig.key(2));
        let mark = faulty.mark();
        faulty.script(&["C_DestroyObject 1 hang"]);
        drop(evicted);
        faulty.await_hang(mark, "C_DestroyObject", LIMIT);
        assert_eq!(rig.round_trip(&kept.key), Ok(()));
        assert_eq!(rig.await_fatal(), FatalReason::KeeperHung);
        assert_eq!(faulty.count_since(mark, "C_Finalize"), 0);
    });
}

#[test]
fn finalize_never_runs_under_a_hung_call() {
    with_rig("hang::finalize_never_runs_under_a_hung_call", |rig, faulty| {
        let key = rig.key(1).key;
        let mark = faulty.mark();
        faulty.script(&[
            "C_Encrypt 1 hang",
            "C_DecryptInit * return CKR_CRYPTOKI_NOT_INITIALIZED",
            "C_GetTokenInfo * return CKR_CRYPTOKI_NOT_INITIALIZED",
        ]);
        drop(rig.submit(&key, SystemClock.monotonic() + PATIENCE));
        faulty.await_hang(mark, "C_Encrypt", LIMIT);
        // The other worker learns that the module must be initialised again, which the hung call forbids.
        let garbage = ([1; 12], vec![0; 48]);
        assert!(rig.decrypt(&key, &garbage).is_err());
        assert_eq!(rig.await_fatal(), FatalReason::FinalizeBlocked);
        assert_eq!(faulty.count_since(mark, "C_Finalize"), 0);
    });
}

#[test]
#[should_panic(expected = "exit status: 75")]
fn by_default_what_is_fatal_ends_the_process() {
    isolated_faulty("hang::by_default_what_is_fatal_ends_the_process", |_, faulty| {
        let rig = Rig::start_with(|config| {
            config.on_fatal = Arc::new(kms_hsm::pkcs11::exit_process);
        });
        let key = rig.key(1);
        faulty.script(&["C_UnwrapKey 1 hang"]);
        let _ = rig.load(&key.source);
        deadline::eventually(LIMIT, "the end of this process", || false);
    });
}

#[test]
fn a_hang_at_start_is_fatal_too() {
    isolated_faulty("hang::a_hang_at_start_is_fatal_too", |_, faulty| {
        faulty.script(&["C_Login 1 hang"]);
        let (sender, fatal) = std::sync::mpsc::channel();
        let config = config(sender);
        let starting = std::thread::spawn(move || {
            Pkcs11Hsm::start(config, pin(), Arc::new(SystemClock)).map(|hsm| hsm.close())
        });
        assert_eq!(fatal.recv_timeout(LIMIT), Ok(FatalReason::KeeperHung));
        faulty.heal();
        drop(starting.join().unwrap());
    });
}

#[test]
fn a_slow_token_refuses_early_and_keeps_deadlines() {
    isolated_faulty("hang::a_slow_token_refuses_early_and_keeps_deadlines", |_, faulty| {
        let rig = Rig::start_with(|config| {
            config.queue_capacity = 4;
            config.budgets.worker_hang = LIMIT;
        });
        let key = rig.key(1).key;
        faulty.script(&["C_Encrypt * delay 100ms"]);
        let start = SystemClock.monotonic();
        let pending: Vec<_> = (0..40).map(|_| rig.submit(&key, start + PATIENCE)).collect();
        let (mut done, mut saturated, mut late) = (0, 0, 0);
        for answer in pending {
            match answer.wait() {
                Ok(_) => done += 1,
                Err(HsmError::Saturated { retry_after }) => {
                    assert!(!retry_after.is_zero());
                    saturated += 1;
                }
                Err(HsmError::QueueDeadline | HsmError::CallDeadline) => late += 1,
                Err(other) => panic!("{other:?}"),
            }
        }
        assert!(SystemClock.monotonic() - start < PATIENCE + LATE);
        // Two at work, four waiting; the first two end in time, the queue's tail does not.
        assert!(saturated >= 40 - 4 - 4, "{done} done, {saturated} saturated, {late} late");
        assert!(done >= 1 && late >= 1, "{done} done, {saturated} saturated, {late} late");
        assert_eq!(rig.health(), HsmHealth::Ready);
        faulty.heal();
        rig.await_recovery(&key);
        rig.assert_not_fatal();
    });
}

#[test]
fn a_hung_creation_leaves_no_key_that_was_acknowledged() {
    with_rig("hang::a_hung_creation_leaves_no_key_that_was_acknowledged", |rig, faulty| {
        let kept = rig.key(1).key;
        faulty.script(&["C_GenerateKey 1 delay 400ms"]);
        let spec = kms_hsm::KeySpec {
            key_uid: kms_core::id::KeyUid::from_bytes([9; 16]),
            version: kms_core::id::KeyVersion::FIRST,
            generation: kms_core::id::RootGeneration::FIRST,
            protection: Protection::HsmWrapped,
            resident_id: kms_core::key::CkaId([9; 16]),
        };
        let answer = rig.hsm.generate_key(spec, SystemClock.monotonic() + PATIENCE).wait();
        assert_eq!(answer.unwrap_err(), HsmError::CallDeadline);
        faulty.heal();
        rig.await_recovery(&kept);
        // What was made after the deadline is gone again.
        deadline::eventually(LIMIT, "the end of the abandoned key", || {
            rig.hsm.status().loaded_keys == 1
        });
        rig.assert_not_fatal();
    });
}
