//! Row "session lost": reopen, retry once, never an old handle.

use kms_hsm::pkcs11::Pkcs11Hsm;
use kms_hsm::{Hsm as _, HsmError, HsmHealth};
use kms_testkit::deadline;

use crate::rig::{LIMIT, with_rig};

const CODES: [&str; 4] = [
    "CKR_SESSION_HANDLE_INVALID",
    "CKR_SESSION_CLOSED",
    "CKR_OPERATION_ACTIVE",
    "CKR_OPERATION_NOT_INITIALIZED",
];

#[test]
fn a_lost_session_is_reopened_and_the_caller_sees_success() {
    with_rig("session::a_lost_session_is_reopened_and_the_caller_sees_success", |rig, faulty| {
        let key = rig.key(1).key;
        let sealed = rig.encrypt(&key).unwrap();
        for code in CODES {
            for function in ["C_EncryptInit", "C_Encrypt"] {
                faulty.script(&[&format!("{function} 1 return {code}")]);
                assert!(rig.encrypt(&key).is_ok(), "{function} {code}");
            }
            for function in ["C_DecryptInit", "C_Decrypt"] {
                faulty.script(&[&format!("{function} 1 return {code}")]);
                assert_eq!(rig.decrypt(&key, &sealed), Ok(()), "{function} {code}");
            }
        }
        assert_eq!(rig.health(), HsmHealth::Ready);
        // The keeper's session was never closed, so the login held.
        assert_eq!(faulty.count_since(0, "C_Login"), 1);
        assert_eq!(faulty.count_since(0, "C_Finalize"), 0);
        rig.assert_not_fatal();
    });
}

#[test]
fn it_is_retried_once_only_and_recovers_by_itself() {
    with_rig("session::it_is_retried_once_only_and_recovers_by_itself", |rig, faulty| {
        let key = rig.key(1).key;
        let mark = faulty.mark();
        faulty.script(&["C_EncryptInit * return CKR_SESSION_HANDLE_INVALID"]);
        let answer = rig.encrypt(&key);
        assert!(matches!(answer, Err(HsmError::Unavailable { .. })), "{answer:?}");
        assert!(faulty.count_since(mark, "C_EncryptInit") >= 2);
        faulty.heal();
        rig.await_recovery(&key);
    });
}

#[test]
fn a_reconnect_that_finds_no_room_opens_the_breaker_and_is_tried_again() {
    let test = "session::a_reconnect_that_finds_no_room_opens_the_breaker_and_is_tried_again";
    with_rig(test, |rig, faulty| {
        let key = rig.key(1).key;
        // The token drops all sessions; the keeper learns it while it mends a worker's job, and finds no room for new ones.
        faulty.script(&[
            "C_EncryptInit 1 return CKR_OBJECT_HANDLE_INVALID",
            "C_DecryptInit 1 return CKR_SESSION_HANDLE_INVALID",
            "C_GetSessionInfo 1 return CKR_SESSION_HANDLE_INVALID",
            "C_OpenSession * return CKR_SESSION_COUNT",
        ]);
        let answer = rig.encrypt(&key);
        assert!(matches!(answer, Err(HsmError::Unavailable { .. })), "{answer:?}");
        assert!(matches!(rig.health(), HsmHealth::Unavailable(_)), "{:?}", rig.health());
        faulty.heal();
        rig.await_recovery(&key);
        rig.assert_not_fatal();
    });
}

#[test]
fn a_token_of_two_sessions_gets_one_worker() {
    let test = "session::a_token_of_two_sessions_gets_one_worker";
    kms_testkit::isolated_faulty(test, |_, faulty| {
        faulty
            .script(&["C_GetTokenInfo * sessions 2", "C_OpenSession 3+ return CKR_SESSION_COUNT"]);
        for workers in [0, 8] {
            let rig = crate::rig::Rig::start_with(|config| config.workers = workers);
            assert_eq!(rig.hsm.status().workers, 1);
            let key = rig.key(1).key;
            let pending = [(); 8].map(|()| rig.submit(&key, crate::rig::soon()));
            assert!(pending.into_iter().all(|answer| answer.wait().is_ok()));
            assert_eq!(rig.health(), HsmHealth::Ready);
            rig.hsm.close();
            faulty.script(&[
                "C_GetTokenInfo * sessions 2",
                "C_OpenSession 3+ return CKR_SESSION_COUNT",
            ]);
        }
    });
}

#[test]
fn a_token_that_comes_late_is_staffed_then() {
    let test = "session::a_token_that_comes_late_is_staffed_then";
    kms_testkit::isolated_faulty(test, |_, faulty| {
        faulty.script(&["C_GetSlotList * return CKR_DEVICE_REMOVED"]);
        let (sender, _fatal) = std::sync::mpsc::channel();
        let config = crate::rig::config(sender);
        let clock = std::sync::Arc::new(kms_core::clock::SystemClock);
        let hsm = Pkcs11Hsm::start(config, crate::rig::pin(), clock).unwrap();
        assert_eq!(hsm.status().workers, 0);
        assert!(matches!(
            hsm.random(16, crate::rig::soon()).wait(),
            Err(HsmError::Unavailable { .. })
        ));
        faulty.heal();
        deadline::eventually(LIMIT, "the token", || hsm.status().health == HsmHealth::NoRoots);
        assert_eq!(hsm.status().workers, 2);
        assert!(hsm.random(16, crate::rig::soon()).wait().is_ok());
        hsm.close();
    });
}

#[test]
fn sessions_that_fail_are_closed() {
    with_rig("session::sessions_that_fail_are_closed", |rig, faulty| {
        let key = rig.key(1).key;
        let mark = faulty.mark();
        for _ in 0..20 {
            faulty.script(&["C_Encrypt 1 return CKR_OPERATION_ACTIVE"]);
            rig.encrypt(&key).unwrap();
        }
        let (opened, closed) =
            (faulty.count_since(mark, "C_OpenSession"), faulty.count_since(mark, "C_CloseSession"));
        assert_eq!(closed, 20);
        assert!(opened <= closed, "{opened} opened, {closed} closed");
    });
}
