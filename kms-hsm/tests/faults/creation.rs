//! Creation that fails halfway: what is left behind is found, destroyed, or ends with the module.

use kms_core::id::RootGeneration;
use kms_core::key::{CkaId, Protection};
use kms_hsm::{Hsm as _, HsmError, HsmHealth, TokenKeys};
use kms_testkit::Faulty;

use crate::rig::{Key, Rig, soon, with_rig};

#[test]
fn an_extractable_key_that_cannot_be_destroyed_ends_with_the_module() {
    let test = "creation::an_extractable_key_that_cannot_be_destroyed_ends_with_the_module";
    with_rig(test, |rig, faulty| {
        // Kept: a key that is let go is destroyed too, and would meet the fault.
        let mut kept = vec![rig.key(1).key];
        for code in ["CKR_FUNCTION_FAILED", "CKR_DEVICE_ERROR", "CKR_OBJECT_HANDLE_INVALID"] {
            let mark = faulty.mark();
            // The first object that creation destroys is the extractable one.
            faulty.script(&[&format!("C_DestroyObject 1 return {code}")]);
            kept.push(rig.try_key(2, Protection::HsmWrapped).unwrap().key);
            assert_eq!(faulty.count_since(mark, "C_Finalize"), 1, "{code}");
            assert!(kept.iter().all(|key| rig.round_trip(key).is_ok()), "{code}");
        }
        rig.assert_not_fatal();
    });
}

#[test]
fn a_resident_key_that_could_not_be_undone_can_be_destroyed_later() {
    let test = "creation::a_resident_key_that_could_not_be_undone_can_be_destroyed_later";
    with_rig(test, |rig, faulty| {
        let kept = rig.key(1).key;
        faulty.script(&["C_Encrypt 1 flip", "C_DestroyObject * return CKR_FUNCTION_FAILED"]);
        assert!(rig.try_key(2, Protection::HsmResident).is_err());
        faulty.heal();
        rig.await_recovery(&kept);
        rig.hsm.destroy_resident(CkaId([2; 16]), soon()).wait().unwrap();
        assert_eq!(rig.residents().unwrap(), []);
        rig.round_trip(&rig.try_key(2, Protection::HsmResident).unwrap().key).unwrap();
    });
}

#[test]
fn a_resident_key_whose_creation_gave_no_answer_can_be_destroyed_later() {
    let test = "creation::a_resident_key_whose_creation_gave_no_answer_can_be_destroyed_later";
    with_rig(test, |rig, faulty| {
        let kept = rig.key(1).key;
        faulty.script(&["C_GenerateKey 1 lose CKR_DEVICE_ERROR"]);
        assert!(rig.try_key(2, Protection::HsmResident).is_err());
        faulty.heal();
        rig.await_recovery(&kept);
        // Destroyed by its id, without a listing before.
        rig.hsm.destroy_resident(CkaId([2; 16]), soon()).wait().unwrap();
        assert_eq!(rig.residents().unwrap(), []);
    });
}

#[test]
fn what_a_first_attempt_left_is_not_in_the_way_of_the_second() {
    let test = "creation::what_a_first_attempt_left_is_not_in_the_way_of_the_second";
    with_rig(test, |rig, faulty| {
        faulty.script(&["C_GenerateKey 1 lose CKR_SESSION_HANDLE_INVALID"]);
        let key = rig.try_key(2, Protection::HsmResident).unwrap().key;
        assert_eq!(rig.round_trip(&key), Ok(()));
        assert_eq!(rig.residents().unwrap(), [CkaId([2; 16])]);
    });
}

#[test]
fn what_stood_under_the_id_before_is_never_destroyed_by_creation() {
    let test = "creation::what_stood_under_the_id_before_is_never_destroyed_by_creation";
    with_rig(test, |rig, faulty| {
        let first = rig.try_key(2, Protection::HsmResident).unwrap().key;
        faulty.script(&["C_GenerateKey 1 return CKR_SESSION_HANDLE_INVALID"]);
        assert!(rig.try_key(2, Protection::HsmResident).is_err());
        faulty.heal();
        rig.await_recovery(&first);
        assert_eq!(rig.residents().unwrap(), [CkaId([2; 16])]);
    });
}

/// What SoftHSM says when its storage is full, what others may say, and a code of a vendor.
const AMBIGUOUS: [&str; 3] = ["CKR_FUNCTION_FAILED", "CKR_GENERAL_ERROR", "0x80000042"];

/// Runs a job under a script, and asserts that nobody else heard of it and that it left nothing on the token.
fn alone<T>(
    (rig, faulty): (&Rig, &Faulty),
    kept: &[Key],
    rule: &str,
    job: impl FnOnce() -> T,
) -> T {
    let (mark, reconnects) = (faulty.mark(), rig.hsm.status().reconnects);
    faulty.script(&[rule]);
    let answer = job();
    assert_eq!(rig.health(), HsmHealth::Ready, "{rule}");
    for key in kept {
        assert_eq!(rig.round_trip(&key.key), Ok(()), "{rule}");
    }
    faulty.heal();
    assert_eq!(rig.hsm.list_token_keys(soon()).wait(), Ok(TokenKeys::default()), "{rule}");
    assert_eq!(rig.hsm.status().reconnects, reconnects, "{rule}");
    for function in ["C_Finalize", "C_Login"] {
        assert_eq!(faulty.count_since(mark, function), 0, "{rule}: {function}");
    }
    answer
}

#[test]
fn a_token_without_room_refuses_one_key_and_keeps_all_others() {
    let test = "creation::a_token_without_room_refuses_one_key_and_keeps_all_others";
    with_rig(test, |rig, faulty| {
        let kept = [rig.key(1)];
        for (code, done) in AMBIGUOUS.iter().flat_map(|code| [(code, "return"), (code, "lose")]) {
            let rule = format!("C_GenerateKey 1 {done} {code}");
            let answer = alone((rig, faulty), &kept, &rule, || {
                rig.try_key(2, Protection::HsmResident).map(drop)
            });
            let Err(HsmError::TokenFull { detail }) = &answer else { panic!("{rule}: {answer:?}") };
            assert!(detail.contains("the token's storage may be full"), "{detail}");
        }
        // Known to be full, and the object is there all the same.
        let rule = "C_GenerateKey 1 lose CKR_DEVICE_MEMORY";
        let make = || rig.try_key(2, Protection::HsmResident).map(drop);
        let answer = alone((rig, faulty), &kept, rule, make);
        assert!(matches!(answer, Err(HsmError::TokenFull { .. })), "{answer:?}");
        rig.round_trip(&rig.try_key(2, Protection::HsmResident).unwrap().key).unwrap();
        rig.assert_not_fatal();
    });
}

#[test]
fn a_token_without_room_refuses_a_root_and_keeps_the_others() {
    let test = "creation::a_token_without_room_refuses_a_root_and_keeps_the_others";
    with_rig(test, |rig, faulty| {
        let kept = [rig.key(1)];
        let second = RootGeneration::new(2).unwrap();
        for rule in [
            "C_GenerateKey 1 return CKR_FUNCTION_FAILED",
            "C_GenerateKey 1 lose CKR_FUNCTION_FAILED",
            "C_GenerateKey 2 return CKR_GENERAL_ERROR",
            "C_GenerateKey 2 lose CKR_GENERAL_ERROR",
        ] {
            let answer =
                alone((rig, faulty), &kept, rule, || rig.hsm.create_root(second, soon()).wait());
            assert!(matches!(answer, Err(HsmError::TokenFull { .. })), "{rule}: {answer:?}");
        }
        rig.hsm.create_root(second, soon()).wait().unwrap();
        rig.assert_not_fatal();
    });
}

#[test]
fn an_ambiguous_code_of_one_creation_takes_the_token_from_no_one() {
    let test = "creation::an_ambiguous_code_of_one_creation_takes_the_token_from_no_one";
    with_rig(test, |rig, faulty| {
        let kept = [rig.key(1)];
        for code in AMBIGUOUS {
            for (call, protection) in [
                ("C_GenerateKey 1 return", Protection::HsmWrapped),
                ("C_WrapKey 1 return", Protection::HsmWrapped),
                ("C_UnwrapKey 1 return", Protection::HsmWrapped),
                ("C_GetAttributeValue 1 return", Protection::HsmResident),
                ("C_EncryptInit 1 return", Protection::HsmResident),
                ("C_Encrypt 1 lose", Protection::HsmResident),
                ("C_DecryptInit 2 return", Protection::HsmResident),
            ] {
                let rule = format!("{call} {code}");
                let make = || rig.try_key(2, protection).map(drop);
                let answer = alone((rig, faulty), &kept, &rule, make);
                assert!(matches!(answer, Err(HsmError::Unavailable { .. })), "{rule}: {answer:?}");
            }
        }
        rig.assert_not_fatal();
    });
}

#[test]
fn an_ambiguous_code_of_a_destruction_takes_the_token_from_no_one() {
    let test = "creation::an_ambiguous_code_of_a_destruction_takes_the_token_from_no_one";
    with_rig(test, |rig, faulty| {
        let kept = [rig.key(1)];
        for (code, done) in AMBIGUOUS.iter().flat_map(|code| [(code, "return"), (code, "lose")]) {
            let going = rig.try_key(2, Protection::HsmResident).unwrap();
            let rule = format!("C_DestroyObject 1 {done} {code}");
            alone((rig, faulty), &kept, &rule, || {
                let answer = rig.hsm.destroy_resident(CkaId([2; 16]), soon()).wait();
                assert!(matches!(answer, Err(HsmError::Unavailable { .. })), "{rule}: {answer:?}");
                rig.hsm.destroy_resident(CkaId([2; 16]), soon()).wait().unwrap();
            });
            drop(going);
        }
        rig.assert_not_fatal();
    });
}

#[test]
fn an_ambiguous_code_of_creation_is_the_devices_when_the_roots_fail_too() {
    let test = "creation::an_ambiguous_code_of_creation_is_the_devices_when_the_roots_fail_too";
    with_rig(test, |rig, faulty| {
        let kept = rig.key(1).key;
        for canary in [
            "C_WrapKey * return",
            "C_Sign * return",
            "C_GetTokenInfo * return",
            "C_CreateObject * return",
        ] {
            let rules = [
                "C_GenerateKey * return CKR_FUNCTION_FAILED".to_owned(),
                format!("{canary} CKR_GENERAL_ERROR"),
            ];
            faulty.script(&rules.each_ref().map(String::as_str));
            let answer = rig.try_key(2, Protection::HsmResident).map(drop);
            assert!(matches!(answer, Err(HsmError::Unavailable { .. })), "{canary}: {answer:?}");
            assert!(matches!(rig.health(), HsmHealth::Unavailable(_)), "{canary}");
            faulty.heal();
            rig.await_recovery(&kept);
            assert_eq!(rig.residents(), Ok(vec![]), "{canary}");
        }
        rig.assert_not_fatal();
    });
}
