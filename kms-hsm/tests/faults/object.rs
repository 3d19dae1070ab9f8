//! Rows "wrong tag" and "object": a client's garbage is no device fault; what is not found is no reason to create.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use kms_core::key::Protection;
use kms_hsm::error::LatchReason;
use kms_hsm::{Hsm as _, HsmError, HsmHealth};
use kms_testkit::{deadline, isolated_faulty};

use crate::rig::{LIMIT, Rig, soon, with_rig};

#[test]
fn garbage_is_the_callers_fault_and_leaves_the_breaker_alone() {
    with_rig("object::garbage_is_the_callers_fault_and_leaves_the_breaker_alone", |rig, faulty| {
        let (key, other) = (rig.key(1).key, rig.key(2).key);
        let good = rig.encrypt(&key).unwrap();
        let mark = faulty.mark();
        for number in 0..200_u8 {
            let (iv, mut bytes) = good.clone();
            let place = usize::from(number) % bytes.len();
            bytes[place] ^= 1;
            let answers = [
                rig.decrypt(&key, &(iv, bytes)),
                rig.decrypt(&other, &good),
                rig.decrypt(&key, &(iv, vec![number; 16])),
                rig.decrypt(&key, &(iv, vec![number; 3])),
            ];
            for answer in answers {
                assert_eq!(answer, Err(HsmError::CiphertextInvalid));
            }
            assert_eq!(rig.health(), HsmHealth::Ready);
        }
        assert_eq!(rig.decrypt(&key, &good), Ok(()));
        // Canaries are bounded: one a key and second, not one a request.
        let decrypts = faulty.count_since(mark, "C_Decrypt");
        assert!(decrypts <= 600 + 1 + 60, "{decrypts} calls");
        rig.assert_not_fatal();
    });
}

#[test]
fn an_ambiguous_code_with_a_failing_canary_is_the_device() {
    with_rig("object::an_ambiguous_code_with_a_failing_canary_is_the_device", |rig, faulty| {
        let key = rig.key(1).key;
        let good = rig.encrypt(&key).unwrap();
        for code in ["CKR_GENERAL_ERROR", "CKR_FUNCTION_FAILED", "0x80000042"] {
            faulty.script(&[
                &format!("C_Decrypt * return {code}"),
                "C_GetTokenInfo * return CKR_GENERAL_ERROR",
            ]);
            let answer = rig.decrypt(&key, &good);
            assert!(matches!(answer, Err(HsmError::Unavailable { .. })), "{code}: {answer:?}");
            faulty.heal();
            rig.await_recovery(&key);
        }
    });
}

#[test]
fn a_handle_that_names_nothing_is_resolved_again_once() {
    with_rig("object::a_handle_that_names_nothing_is_resolved_again_once", |rig, faulty| {
        let wrapped = rig.key(1).key;
        let resident = rig.try_key(2, Protection::HsmResident).unwrap().key;
        for code in ["CKR_OBJECT_HANDLE_INVALID", "CKR_KEY_HANDLE_INVALID"] {
            for key in [&wrapped, &resident] {
                faulty.script(&[&format!("C_EncryptInit 1 return {code}")]);
                assert_eq!(rig.round_trip(key), Ok(()), "{code}");
            }
        }
        assert_eq!(rig.health(), HsmHealth::Ready);
        rig.assert_not_fatal();
    });
}

#[test]
fn a_handle_that_names_another_object_is_forgotten_and_not_destroyed() {
    let test = "object::a_handle_that_names_another_object_is_forgotten_and_not_destroyed";
    with_rig(test, |rig, faulty| {
        // The keeper's look at it finds another key, or nothing; then the key is loaded anew, or cannot be.
        for (looks, loads) in [
            (vec!["C_Decrypt 1 flip"], true),
            (vec!["C_DecryptInit 1 return CKR_OBJECT_HANDLE_INVALID"], true),
            (vec!["C_Decrypt 1 flip", "C_UnwrapKey 1 return CKR_WRAPPED_KEY_INVALID"], false),
        ] {
            let key = rig.key(1);
            let mark = faulty.mark();
            let mut rules = vec!["C_EncryptInit 1 return CKR_OBJECT_HANDLE_INVALID"];
            rules.extend(&looks);
            faulty.script(&rules);
            let answer = rig.encrypt(&key.key);
            assert_eq!(answer.is_ok(), loads, "{looks:?}: {answer:?}");
            // The keeper takes one after the other: what was given back before is destroyed by now.
            rig.residents().unwrap();
            assert_eq!(faulty.count_since(mark, "C_DestroyObject"), 0, "{looks:?}");
            faulty.heal();
            // What was loaded in its place is the key's own, and goes with it.
            assert_eq!(rig.round_trip(&key.key), Ok(()), "{looks:?}");
            let mark = faulty.mark();
            drop(key);
            deadline::eventually(LIMIT, "the new object to be destroyed", || {
                faulty.count_since(mark, "C_DestroyObject") == 1
            });
        }
        assert_eq!(rig.health(), HsmHealth::Ready);
        rig.assert_not_fatal();
    });
}

#[test]
fn a_handle_that_stays_invalid_is_never_the_callers_fault() {
    with_rig("object::a_handle_that_stays_invalid_is_never_the_callers_fault", |rig, faulty| {
        let key = rig.key(1).key;
        faulty.script(&["C_EncryptInit * return CKR_OBJECT_HANDLE_INVALID"]);
        let answer = rig.encrypt(&key);
        assert!(
            matches!(answer, Err(HsmError::Unavailable { .. } | HsmError::Latched { .. })),
            "{answer:?}"
        );
    });
}

#[test]
fn roots_that_are_not_found_latch_and_none_is_made() {
    with_rig("object::roots_that_are_not_found_latch_and_none_is_made", |rig, faulty| {
        let key = rig.key(1).key;
        let mark = faulty.mark();
        rig.lose_module(faulty, &key, &["C_FindObjects * empty"]);
        deadline::eventually(LIMIT, "the latch", || {
            matches!(
                rig.health(),
                HsmHealth::Latched(LatchReason::RootMissing { generation: 1, .. })
            )
        });
        let answer = rig.encrypt(&key);
        let missing = |reason: &LatchReason| matches!(reason, LatchReason::RootMissing { .. });
        assert!(
            matches!(&answer, Err(HsmError::Latched { reason }) if missing(reason)),
            "{answer:?}"
        );
        assert_eq!(faulty.count_since(mark, "C_GenerateKey"), 0);
    });
}

#[test]
fn roots_that_are_not_found_at_start_latch_and_none_is_made() {
    with_rig("object::roots_that_are_not_found_at_start_latch_and_none_is_made", |rig, faulty| {
        let mark = faulty.mark();
        faulty.script(&["C_FindObjects * empty"]);
        let answer = rig.hsm.open_roots(vec![rig.root.clone()], soon()).wait();
        let missing = |reason: &LatchReason| matches!(reason, LatchReason::RootMissing { .. });
        assert!(
            matches!(&answer, Err(HsmError::Latched { reason }) if missing(reason)),
            "{answer:?}"
        );
        assert_eq!(faulty.count_since(mark, "C_GenerateKey"), 0);
    });
}

#[test]
fn a_resident_key_that_another_destroyed_is_missing_and_says_so() {
    let test = "object::a_resident_key_that_another_destroyed_is_missing_and_says_so";
    isolated_faulty(test, |token, _| {
        let rig = Rig::start();
        let kept = rig.key(1).key;
        let before = files_below(&token.token_dir());
        let gone = rig.try_key(2, Protection::HsmResident).unwrap();
        assert_eq!(rig.round_trip(&gone.key), Ok(()));
        for file in files_below(&token.token_dir()).difference(&before) {
            std::fs::remove_file(file).unwrap();
        }
        // Not once and for ever "try again": this key is gone, and the others are not.
        for _ in 0..3 {
            assert_eq!(rig.encrypt(&gone.key).unwrap_err(), HsmError::ResidentMissing);
        }
        assert_eq!(rig.load(&gone.source).unwrap_err(), HsmError::ResidentMissing);
        assert_eq!(rig.round_trip(&kept), Ok(()));
        assert_eq!(rig.health(), HsmHealth::Ready);
        rig.assert_not_fatal();
    });
}

/// Lists the files of a token directory, two levels down.
fn files_below(directory: &Path) -> HashSet<PathBuf> {
    let list = |path: &Path| std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    list(directory).flat_map(|token| list(&token).collect::<Vec<_>>()).collect()
}

#[test]
fn a_lost_reply_to_creation_leaves_nothing_unreported() {
    with_rig("object::a_lost_reply_to_creation_leaves_nothing_unreported", |rig, faulty| {
        let kept = rig.key(1).key;
        faulty.script(&["C_GenerateKey 1 lose CKR_DEVICE_ERROR"]);
        let answer = rig.try_key(2, Protection::HsmResident).map(drop);
        assert!(answer.is_err(), "{answer:?}");
        faulty.heal();
        rig.await_recovery(&kept);
        // The reconciler finds the orphan by listing, and can remove it; then the same intent succeeds.
        let orphans = rig.residents().unwrap();
        assert_eq!(orphans.len(), 1);
        rig.hsm.destroy_resident(orphans[0], soon()).wait().unwrap();
        assert_eq!(rig.residents().unwrap(), []);
        rig.round_trip(&rig.try_key(2, Protection::HsmResident).unwrap().key).unwrap();
    });
}
