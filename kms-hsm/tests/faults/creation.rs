//! Creation that fails halfway: what is left behind is found, destroyed, or ends with the module.

use kms_core::key::{CkaId, Protection};
use kms_hsm::Hsm as _;

use crate::rig::{soon, with_rig};

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
