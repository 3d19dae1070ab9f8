//! Rows "login lost" and "PIN": one re-login, one attempt with a refused PIN.

use std::sync::{Arc, mpsc};

use kms_core::clock::SystemClock;
use kms_hsm::error::LatchReason;
use kms_hsm::pkcs11::Pkcs11Hsm;
use kms_hsm::{Hsm as _, HsmError, HsmHealth};
use kms_testkit::{deadline, isolated_faulty};

use crate::rig::{LIMIT, config, pin, soon, with_rig};

#[test]
fn a_lost_login_is_renewed_once_and_the_caller_sees_success() {
    with_rig("login::a_lost_login_is_renewed_once_and_the_caller_sees_success", |rig, faulty| {
        let key = rig.key(1).key;
        let mark = faulty.mark();
        faulty.script(&["C_EncryptInit 1 return CKR_USER_NOT_LOGGED_IN"]);
        // SoftHSM itself never lost it, and says CKR_USER_ALREADY_LOGGED_IN: a success for us.
        assert_eq!(rig.round_trip(&key), Ok(()));
        assert_eq!(faulty.count_since(mark, "C_Login"), 1);
        assert_eq!(rig.health(), HsmHealth::Ready);
        rig.assert_not_fatal();
    });
}

#[test]
fn there_is_no_storm_of_logins() {
    with_rig("login::there_is_no_storm_of_logins", |rig, faulty| {
        let key = rig.key(1).key;
        let mark = faulty.mark();
        // The first look at the login hangs until every job has met its loss.
        faulty.script(&["C_EncryptInit * return CKR_USER_NOT_LOGGED_IN", "C_Login * hang"]);
        let pending: Vec<_> = (0..16).map(|_| rig.submit(&key, soon())).collect();
        deadline::eventually(LIMIT, "all jobs to fail once", || {
            faulty.count_since(mark, "C_EncryptInit") == 16
        });
        faulty.heal();
        for answer in pending {
            answer.wait().unwrap();
        }
        assert_eq!(faulty.count_since(mark, "C_Login"), 1);
        assert_eq!(faulty.count_since(mark, "C_EncryptInit"), 32);
    });
}

#[test]
fn a_relogin_that_finds_no_memory_opens_the_breaker_and_is_tried_again() {
    let test = "login::a_relogin_that_finds_no_memory_opens_the_breaker_and_is_tried_again";
    with_rig(test, |rig, faulty| {
        let key = rig.key(1);
        faulty.script(&[
            "C_EncryptInit 1 return CKR_USER_NOT_LOGGED_IN",
            "C_CreateObject * return CKR_DEVICE_MEMORY",
        ]);
        let answer = rig.encrypt(&key.key);
        assert!(matches!(answer, Err(HsmError::Unavailable { .. })), "{answer:?}");
        assert!(matches!(rig.health(), HsmHealth::Unavailable(_)), "{:?}", rig.health());
        faulty.heal();
        rig.await_recovery(&key.key);
        rig.round_trip(&rig.load(&key.source).unwrap()).unwrap();
    });
}

/// Loses the login, refuses the PIN with `code`, and returns what the caller and the status say.
fn refuse_at_relogin(test: &str, code: &str, reason: &LatchReason) {
    with_rig(test, |rig, faulty| {
        let key = rig.key(1).key;
        let mark = faulty.mark();
        faulty.script(&[
            "C_EncryptInit 1 return CKR_USER_NOT_LOGGED_IN",
            &format!("C_Login * return {code}"),
        ]);
        let latched = Err(HsmError::Latched { reason: reason.clone() });
        assert_eq!(rig.encrypt(&key), latched);
        faulty.heal();
        // Neither time nor calls move it, and the token is not asked again.
        for _ in 0..20 {
            assert_eq!(rig.encrypt(&key), latched);
        }
        assert_eq!(rig.health(), HsmHealth::Latched(reason.clone()));
        assert_eq!(faulty.count_since(mark, "C_Login"), 1);
    });
}

#[test]
fn a_refused_pin_latches_after_one_attempt() {
    let test = "login::a_refused_pin_latches_after_one_attempt";
    refuse_at_relogin(test, "CKR_PIN_INCORRECT", &LatchReason::PinRefused);
}

#[test]
fn an_expired_pin_latches_after_one_attempt() {
    let test = "login::an_expired_pin_latches_after_one_attempt";
    refuse_at_relogin(test, "CKR_PIN_EXPIRED", &LatchReason::PinRefused);
}

#[test]
fn a_locked_pin_latches_after_one_attempt() {
    let test = "login::a_locked_pin_latches_after_one_attempt";
    refuse_at_relogin(test, "CKR_PIN_LOCKED", &LatchReason::PinLocked);
}

#[test]
fn a_pin_that_was_changed_meanwhile_is_tried_once_on_reconnecting() {
    let test = "login::a_pin_that_was_changed_meanwhile_is_tried_once_on_reconnecting";
    with_rig(test, |rig, faulty| {
        let key = rig.key(1).key;
        let mark = faulty.mark();
        rig.lose_module(faulty, &key, &["C_Login * return CKR_PIN_INCORRECT"]);
        deadline::eventually(LIMIT, "the latch", || {
            rig.health() == HsmHealth::Latched(LatchReason::PinRefused)
        });
        assert_eq!(faulty.count_since(mark, "C_Login"), 1);
    });
}

#[test]
fn another_token_than_the_pinned_one_is_not_shown_the_pin() {
    let test = "login::another_token_than_the_pinned_one_is_not_shown_the_pin";
    isolated_faulty(test, |_, faulty| {
        let (sender, _fatal) = mpsc::channel();
        let mut config = config(sender);
        // The label is the same; so is the PIN, perhaps, and the other token would keep it.
        config.pinned_serials = vec!["ffffffffffffffff".into()];
        let hsm = Pkcs11Hsm::start(config, pin(), Arc::new(SystemClock)).unwrap();
        let health = hsm.status().health;
        assert!(
            matches!(&health, HsmHealth::Latched(LatchReason::OtherToken { .. })),
            "{health:?}"
        );
        hsm.close();
        assert_eq!(faulty.count_since(0, "C_Login"), 0);
    });
}

#[test]
fn a_wrong_pin_at_start_is_tried_once() {
    isolated_faulty("login::a_wrong_pin_at_start_is_tried_once", |_, faulty| {
        faulty.script(&["C_Login * return CKR_PIN_INCORRECT"]);
        let (sender, _fatal) = mpsc::channel();
        let started = Pkcs11Hsm::start(config(sender), pin(), Arc::new(SystemClock));
        let refused = HsmError::Latched { reason: LatchReason::PinRefused };
        let hsm = started.unwrap();
        assert_eq!(hsm.status().health, HsmHealth::Latched(LatchReason::PinRefused));
        faulty.heal();
        assert_eq!(hsm.random(32, soon()).wait().unwrap_err(), refused);
        hsm.close();
        assert_eq!(faulty.count_since(0, "C_Login"), 1);
    });
}
