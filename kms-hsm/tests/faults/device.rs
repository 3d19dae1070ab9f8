//! Rows "device": breaker, Unavailable with a time to retry, one prober, recovery without a restart.

use std::time::Duration;

use kms_core::clock::{Clock as _, SystemClock};
use kms_core::key::Protection;
use kms_hsm::error::LatchReason;
use kms_hsm::{HsmError, HsmHealth};
use kms_testkit::{deadline, isolated_faulty};

use crate::rig::{LIMIT, Rig, with_rig};

const CODES: [&str; 4] = [
    "CKR_DEVICE_ERROR",
    "CKR_DEVICE_REMOVED",
    "CKR_TOKEN_NOT_PRESENT",
    "CKR_CRYPTOKI_NOT_INITIALIZED",
];

fn assert_unavailable<T: std::fmt::Debug>(answer: Result<T, HsmError>, when: &str) {
    match answer {
        Err(HsmError::Unavailable { retry_after, .. }) => assert!(!retry_after.is_zero(), "{when}"),
        other => panic!("{when}: {other:?}"),
    }
}

#[test]
fn a_device_that_is_gone_opens_the_breaker_and_comes_back_by_itself() {
    let test = "device::a_device_that_is_gone_opens_the_breaker_and_comes_back_by_itself";
    with_rig(test, |rig, faulty| {
        let wrapped = rig.key(1).key;
        let resident = rig.try_key(2, Protection::HsmResident).unwrap().key;
        for code in CODES {
            let gone: Vec<String> =
                ["C_EncryptInit", "C_OpenSession", "C_GetTokenInfo", "C_GetSlotList"]
                    .map(|function| format!("{function} * return {code}"))
                    .into();
            faulty.script(&gone.iter().map(String::as_str).collect::<Vec<_>>());
            assert_unavailable(rig.encrypt(&wrapped), code);
            assert!(matches!(rig.health(), HsmHealth::Unavailable(_)), "{code}");
            // The breaker answers, not the module.
            let mark = faulty.mark();
            for _ in 0..50 {
                assert_unavailable(rig.encrypt(&wrapped), code);
            }
            assert_eq!(faulty.count_since(mark, "C_EncryptInit"), 0, "{code}");
            faulty.heal();
            rig.await_recovery(&wrapped);
            rig.await_recovery(&resident);
        }
        rig.assert_not_fatal();
    });
}

#[test]
fn the_prober_is_one_and_waits_longer_each_time() {
    with_rig("device::the_prober_is_one_and_waits_longer_each_time", |rig, faulty| {
        let key = rig.key(1).key;
        faulty.script(&[
            "C_EncryptInit * return CKR_DEVICE_ERROR",
            "C_GetTokenInfo * return CKR_DEVICE_ERROR",
            "C_GetSlotList * return CKR_DEVICE_ERROR",
        ]);
        let pending: Vec<_> = (0..32).map(|_| rig.submit(&key, crate::rig::soon())).collect();
        for answer in pending {
            assert_unavailable(answer.wait(), "while it is gone");
        }
        // Calls are logged as they end: of one prober they never come from two threads at once, so each C_Initialize
        // has its C_Finalize before the next one.
        deadline::eventually(LIMIT, "several probes", || {
            faulty.count_since(0, "C_GetTokenInfo") + faulty.count_since(0, "C_GetSlotList") > 6
        });
        let calls = faulty.calls_since(0);
        let turns: Vec<_> = calls
            .iter()
            .filter(|call| ["C_Initialize", "C_Finalize"].contains(&call.function.as_str()))
            .map(|call| call.function.as_str())
            .collect();
        assert!(turns.iter().step_by(2).all(|turn| *turn == "C_Initialize"), "{turns:?}");
        assert!(turns.iter().skip(1).step_by(2).all(|turn| *turn == "C_Finalize"), "{turns:?}");
        faulty.heal();
        rig.await_recovery(&key);
    });
}

#[test]
fn a_device_that_fails_only_under_work_is_left_alone_for_longer_each_time() {
    let test = "device::a_device_that_fails_only_under_work_is_left_alone_for_longer_each_time";
    isolated_faulty(test, |_, faulty| {
        let first = Duration::from_millis(20);
        let rig = Rig::start_with(|config| {
            config.budgets.probe_first = first;
            config.budgets.probe_max = first * 8;
        });
        let key = rig.key(1).key;
        faulty.script(&["C_EncryptInit * return CKR_DEVICE_ERROR"]);
        // Every probe finds all in order.
        for pause in [1, 2, 4, 8, 8, 8] {
            let start = SystemClock.monotonic();
            assert_unavailable(rig.encrypt(&key), "under work");
            deadline::eventually(LIMIT, "the breaker to close", || {
                rig.health() == HsmHealth::Ready
            });
            let down = SystemClock.monotonic() - start;
            assert!(down >= first * pause, "{down:?}, at least {pause} times the first pause");
        }
        faulty.heal();
        rig.await_recovery(&key);
        rig.assert_not_fatal();
    });
}

#[test]
fn a_fault_while_reconnecting_is_no_reason_to_latch() {
    with_rig("device::a_fault_while_reconnecting_is_no_reason_to_latch", |rig, faulty| {
        let key = rig.key(1).key;
        for rule in [
            "C_FindObjects * return CKR_GENERAL_ERROR",
            "C_FindObjectsInit * return CKR_DEVICE_ERROR",
            "C_Login * return CKR_GENERAL_ERROR",
            "C_Initialize * return CKR_GENERAL_ERROR",
            "C_OpenSession * return CKR_DEVICE_ERROR",
            "C_Sign * return CKR_DEVICE_ERROR",
            "C_WrapKey * return CKR_DEVICE_ERROR",
        ] {
            let mark = faulty.mark();
            rig.lose_module(faulty, &key, &[rule]);
            let function = rule.split(' ').next().unwrap();
            deadline::eventually(LIMIT, rule, || faulty.count_since(mark, function) >= 2);
            assert!(
                matches!(rig.health(), HsmHealth::Unavailable(_)),
                "{rule}: {:?}",
                rig.health()
            );
            faulty.heal();
            rig.await_recovery(&key);
        }
    });
}

#[test]
fn another_token_after_reconnecting_latches() {
    with_rig("device::another_token_after_reconnecting_latches", |rig, faulty| {
        let key = rig.key(1).key;
        rig.lose_module(faulty, &key, &["C_GetTokenInfo * serial ffffffffffffffff"]);
        let other = LatchReason::OtherToken {
            found: "ffffffffffffffff".into(),
            pinned: rig.root.token_serial.clone(),
        };
        deadline::eventually(LIMIT, "the latch", || {
            rig.health() == HsmHealth::Latched(other.clone())
        });
        faulty.heal();
        assert_eq!(rig.encrypt(&key), Err(HsmError::Latched { reason: other }));
    });
}

#[test]
fn a_root_with_another_check_value_after_reconnecting_latches() {
    let test = "device::a_root_with_another_check_value_after_reconnecting_latches";
    for (name, rule, role) in
        [("wrap", "C_WrapKey * flip", "wrap"), ("mac", "C_Sign * flip", "mac")]
    {
        // One process a role: a latch is for good.
        if std::env::var("HOLDFAST_ROLE").is_ok_and(|chosen| chosen != name) {
            continue;
        }
        let environment = [("HOLDFAST_ROLE", name)];
        kms_testkit::faulty::isolated_faulty_with(test, &environment, |_, faulty| {
            let rig = Rig::start();
            let key = rig.key(1).key;
            rig.lose_module(faulty, &key, &[rule]);
            let changed = LatchReason::RootChanged { role, generation: 1 };
            deadline::eventually(LIMIT, "the latch", || {
                rig.health() == HsmHealth::Latched(changed.clone())
            });
        });
    }
}

#[test]
fn a_root_that_is_no_longer_sealed_latches() {
    let test = "device::a_root_that_is_no_longer_sealed_latches";
    for (name, lie, lacks) in [
        ("use", "0x105=1", "it lacks Decrypt(false)"),
        ("seal", "0x162=1", "it lacks Extractable(false)"),
        ("trust", "0x86=1", "it has Trusted(true)"),
    ] {
        // One process each: a latch is for good.
        if std::env::var("HOLDFAST_LIE").is_ok_and(|chosen| chosen != name) {
            continue;
        }
        kms_testkit::faulty::isolated_faulty_with(test, &[("HOLDFAST_LIE", name)], |_, faulty| {
            let rig = Rig::start();
            let key = rig.key(1).key;
            let rule = format!("C_GetAttributeValue * attribute {lie}");
            rig.lose_module(faulty, &key, &[&rule]);
            let reason =
                LatchReason::RootNotSealed { role: "wrap", generation: 1, attribute: lacks.into() };
            deadline::eventually(LIMIT, "the latch", || {
                rig.health() == HsmHealth::Latched(reason.clone())
            });
        });
    }
}

#[test]
fn a_token_directory_that_was_away_is_served_again() {
    isolated_faulty("device::a_token_directory_that_was_away_is_served_again", |token, _| {
        let rig = Rig::start();
        let key = rig.key(1);
        let away = token.root().join("away");
        std::fs::rename(token.token_dir(), &away).unwrap();
        // A session key may go on; loading needs the root. Nothing is "not found", and no root is made.
        let answer = rig.load(&key.source);
        assert!(matches!(answer, Err(HsmError::Unavailable { .. })), "{answer:?}");
        deadline::eventually(LIMIT, "the breaker", || {
            let _ = rig.load(&key.source);
            !matches!(rig.health(), HsmHealth::Ready)
        });
        assert!(!token.token_dir().exists(), "a token directory was made");
        std::fs::rename(&away, token.token_dir()).unwrap();
        rig.await_recovery(&key.key);
        rig.load(&key.source).unwrap();
    });
}
