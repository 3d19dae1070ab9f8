//! Imports that fail halfway: nothing that is extractable outlives them, and what is left can be destroyed.

use std::time::Duration;

use kms_core::clock::{Clock as _, SystemClock};
use kms_core::id::{KeyUid, KeyVersion, RootGeneration};
use kms_core::import::{self, ImportCheck, ImportMethod, OaepHash, RsaSize};
use kms_core::key::{CkaId, Protection};
use kms_hsm::pkcs11::FatalReason;
use kms_hsm::{GeneratedKey, Hsm as _, HsmError, HsmHealth, ImportKeySpec, KeyImport, KeySpec};

use kms_testkit::{Faulty, isolated_faulty};

use crate::rig::{LIMIT, Rig, soon, with_rig};

const JOB: &str = "tenants/t/keys/k/importJobs/j";
/// Jobs that may wait for the lane, beside the one that it does.
const LANE_QUEUE: u8 = 8;
/// A deadline that passes while the lane hangs.
const PATIENCE: Duration = Duration::from_millis(150);
const METHOD: ImportMethod = ImportMethod::RsaOaepSha1AesKwp;

fn job() -> ImportKeySpec {
    ImportKeySpec { id: CkaId([7; 16]), size: RsaSize::Bits3072, hash: OaepHash::Sha1 }
}

fn create(rig: &Rig) -> Result<Vec<u8>, HsmError> {
    rig.hsm.create_import_key(job(), soon()).wait()
}

fn sealed(public: &[u8], protection: Protection) -> KeyImport {
    let sealed = import::seal(METHOD, public, JOB, b"an imported key has 32 bytes, so").unwrap();
    let spec = KeySpec {
        key_uid: KeyUid::from_bytes([2; 16]),
        version: KeyVersion::FIRST,
        generation: RootGeneration::FIRST,
        protection,
        resident_id: CkaId([2; 16]),
    };
    KeyImport {
        spec,
        job: job(),
        method: METHOD,
        wrapped: sealed.wrapped,
        check: sealed.check,
        check_aad: ImportCheck::aad(JOB),
    }
}

fn run(rig: &Rig, import: &KeyImport) -> Result<GeneratedKey, HsmError> {
    rig.hsm.import_key(import.clone(), soon()).wait()
}

#[test]
fn what_an_import_opened_and_cannot_destroy_ends_with_the_module() {
    let test = "import::what_an_import_opened_and_cannot_destroy_ends_with_the_module";
    with_rig(test, |rig, faulty| {
        let kept = rig.key(1).key;
        let import = sealed(&create(rig).unwrap(), Protection::HsmWrapped);
        // The first object that an import in two steps destroys is the AES key between them.
        let mark = faulty.mark();
        faulty.script(&["C_DestroyObject 1 return CKR_FUNCTION_FAILED"]);
        // Done again by itself, after the module was initialised anew.
        let imported = run(rig, &import).unwrap();
        assert_eq!(faulty.count_since(mark, "C_Finalize"), 1);
        faulty.heal();
        let import = sealed(&create(rig).unwrap(), Protection::HsmWrapped);
        let mark = faulty.mark();
        // The second is the opened key.
        faulty.script(&["C_DestroyObject 2 return CKR_FUNCTION_FAILED"]);
        let again = run(rig, &import).unwrap();
        assert_eq!(faulty.count_since(mark, "C_Finalize"), 1);
        faulty.heal();
        for key in [&kept, &imported.key, &again.key] {
            assert_eq!(rig.round_trip(key), Ok(()));
        }
        rig.assert_not_fatal();
    });
}

#[test]
fn an_import_whose_job_cannot_be_used_up_is_undone() {
    let test = "import::an_import_whose_job_cannot_be_used_up_is_undone";
    with_rig(test, |rig, faulty| {
        let kept = rig.key(1).key;
        let import = sealed(&create(rig).unwrap(), Protection::HsmResident);
        // After the AES key and the opened one.
        faulty.script(&["C_DestroyObject 3 return CKR_DEVICE_ERROR"]);
        assert!(run(rig, &import).is_err());
        faulty.heal();
        rig.await_recovery(&kept);
        assert_eq!(rig.residents().unwrap(), []);
    });
}

#[test]
fn an_imported_resident_key_whose_creation_gave_no_answer_can_be_destroyed_later() {
    let test =
        "import::an_imported_resident_key_whose_creation_gave_no_answer_can_be_destroyed_later";
    with_rig(test, |rig, faulty| {
        let kept = rig.key(1).key;
        let import = sealed(&create(rig).unwrap(), Protection::HsmResident);
        // The third unwrapping makes the token object.
        faulty.script(&["C_UnwrapKey 3 lose CKR_DEVICE_ERROR"]);
        assert!(run(rig, &import).is_err());
        faulty.heal();
        rig.await_recovery(&kept);
        rig.hsm.destroy_resident(CkaId([2; 16]), soon()).wait().unwrap();
        assert_eq!(rig.residents().unwrap(), []);
        // The job was not used up: its key opened nothing that was answered.
        assert!(run(rig, &import).is_ok());
    });
}

#[test]
fn a_lost_session_is_opened_again_and_the_import_done() {
    let test = "import::a_lost_session_is_opened_again_and_the_import_done";
    with_rig(test, |rig, faulty| {
        for nth in 1..=3 {
            let import = sealed(&create(rig).unwrap(), Protection::HsmResident);
            faulty.script(&[&format!("C_UnwrapKey {nth} lose CKR_SESSION_HANDLE_INVALID")]);
            let imported = run(rig, &import).unwrap();
            faulty.heal();
            assert_eq!(rig.round_trip(&imported.key), Ok(()), "{nth}");
            assert_eq!(rig.residents().unwrap(), [CkaId([2; 16])], "{nth}");
            rig.hsm.destroy_resident(CkaId([2; 16]), soon()).wait().unwrap();
        }
    });
}

#[test]
fn a_sick_device_is_not_the_callers_fault() {
    let test = "import::a_sick_device_is_not_the_callers_fault";
    with_rig(test, |rig, faulty| {
        let kept = rig.key(1).key;
        let import = sealed(&create(rig).unwrap(), Protection::HsmWrapped);
        // Not even the root wraps: nothing says that the input is at fault.
        faulty.script(&[
            "C_UnwrapKey 1 return CKR_GENERAL_ERROR",
            "C_WrapKey * return CKR_GENERAL_ERROR",
        ]);
        let answer = run(rig, &import);
        assert!(matches!(answer, Err(HsmError::Unavailable { .. })), "{answer:?}");
        faulty.heal();
        rig.await_recovery(&kept);
        assert!(run(rig, &import).is_ok(), "and the job is as it was");
    });
}

/// What tokens may say of a wrapped key, a length or a template that they do not like.
const OF_INPUT: [&str; 9] = [
    "CKR_KEY_SIZE_RANGE",
    "0xf1", // CKR_UNWRAPPING_KEY_SIZE_RANGE
    "CKR_ATTRIBUTE_VALUE_INVALID",
    "CKR_TEMPLATE_INCONSISTENT",
    "CKR_WRAPPED_KEY_LEN_RANGE",
    "CKR_WRAPPED_KEY_INVALID",
    "CKR_DATA_LEN_RANGE",
    "CKR_KEY_FUNCTION_NOT_PERMITTED",
    "CKR_GENERAL_ERROR",
];

/// Imports under a script, and asserts that nobody else heard of it and that the job is used up.
fn used_up(rig: &Rig, faulty: &Faulty, rule: &str) -> HsmError {
    let import = sealed(&create(rig).unwrap(), Protection::HsmWrapped);
    let (mark, reconnects) = (faulty.mark(), rig.hsm.status().reconnects);
    faulty.script(&[rule]);
    let answer = run(rig, &import).map(drop);
    assert_eq!(rig.health(), HsmHealth::Ready, "{rule}");
    faulty.heal();
    assert_eq!(rig.hsm.status().reconnects, reconnects, "{rule}");
    for function in ["C_Finalize", "C_Login"] {
        assert_eq!(faulty.count_since(mark, function), 0, "{rule}: {function}");
    }
    assert_eq!(run(rig, &import).map(drop), Err(HsmError::ImportKeyMissing), "{rule}");
    let Err(error) = answer else { panic!("{rule}: the import was done") };
    error
}

#[test]
fn no_code_of_a_token_that_saw_the_input_is_anyone_elses_or_leaves_the_job() {
    let test = "import::no_code_of_a_token_that_saw_the_input_is_anyone_elses_or_leaves_the_job";
    with_rig(test, |rig, faulty| {
        let kept = rig.key(1).key;
        for code in OF_INPUT {
            // The key between the steps, then the key itself.
            let first = used_up(rig, faulty, &format!("C_UnwrapKey 1 return {code}"));
            assert_eq!(first, HsmError::ImportMaterialInvalid, "{code}");
            let second = used_up(rig, faulty, &format!("C_UnwrapKey 2 return {code}"));
            let expected = match code {
                "CKR_KEY_SIZE_RANGE" => HsmError::ImportKeyLength,
                _ => HsmError::ImportMaterialInvalid,
            };
            assert_eq!(second, expected, "{code}");
        }
        for code in ["CKR_KEY_SIZE_RANGE", "CKR_KEY_NOT_WRAPPABLE", "CKR_GENERAL_ERROR"] {
            let wrapped = used_up(rig, faulty, &format!("C_WrapKey 1 return {code}"));
            assert_eq!(wrapped, HsmError::ImportKeyLength, "{code}");
        }
        for code in ["CKR_KEY_SIZE_RANGE", "CKR_ARGUMENTS_BAD", "CKR_MECHANISM_INVALID"] {
            let tried = used_up(rig, faulty, &format!("C_DecryptInit 1 return {code}"));
            assert_eq!(tried, HsmError::ImportKeyLength, "{code}");
        }
        let checked = used_up(rig, faulty, "C_Decrypt 1 lose CKR_GENERAL_ERROR");
        assert_eq!(checked, HsmError::ImportCheckMismatch);
        assert_eq!(rig.round_trip(&kept), Ok(()));
        rig.assert_not_fatal();
    });
}

#[test]
fn a_token_that_has_no_room_says_nothing_of_the_input() {
    let test = "import::a_token_that_has_no_room_says_nothing_of_the_input";
    with_rig(test, |rig, faulty| {
        let import = sealed(&create(rig).unwrap(), Protection::HsmWrapped);
        for nth in [1, 2] {
            faulty.script(&[&format!("C_UnwrapKey {nth} return CKR_DEVICE_MEMORY")]);
            let answer = run(rig, &import);
            assert!(matches!(answer, Err(HsmError::TokenFull { .. })), "{answer:?}");
            assert_eq!(rig.health(), HsmHealth::Ready);
        }
        faulty.heal();
        assert!(run(rig, &import).is_ok(), "and the job is as it was");
    });
}

#[test]
fn a_key_pair_whose_generation_gave_no_answer_can_be_destroyed() {
    let test = "import::a_key_pair_whose_generation_gave_no_answer_can_be_destroyed";
    with_rig(test, |rig, faulty| {
        let kept = rig.key(1).key;
        faulty.script(&["C_GenerateKeyPair 1 lose CKR_GENERAL_ERROR"]);
        let answer = create(rig);
        assert!(matches!(answer, Err(HsmError::TokenFull { .. })), "{answer:?}");
        faulty.heal();
        assert_eq!(rig.health(), HsmHealth::Ready, "the fault is the job's alone");
        let listed = rig.hsm.list_token_keys(soon()).wait().unwrap();
        assert_eq!(listed.import_keys, [job().id]);
        rig.hsm.destroy_import_key(job().id, soon()).wait().unwrap();
        assert_eq!(rig.hsm.list_token_keys(soon()).wait().unwrap().import_keys, []);
        assert_eq!(rig.round_trip(&kept), Ok(()));
    });
}

#[test]
fn a_token_without_rsa_says_so() {
    let test = "import::a_token_without_rsa_says_so";
    with_rig(test, |rig, faulty| {
        for (rule, lacks) in [
            ("C_GenerateKeyPair 1 return CKR_MECHANISM_INVALID", "CKM_RSA_PKCS_KEY_PAIR_GEN"),
            ("C_WrapKey 1 return CKR_MECHANISM_INVALID", "CKM_RSA_PKCS_OAEP with SHA-1"),
            ("C_UnwrapKey 1 return CKR_ARGUMENTS_BAD", "CKM_RSA_PKCS_OAEP with SHA-1"),
        ] {
            faulty.script(&[rule]);
            assert_eq!(create(rig), Err(HsmError::MechanismMissing { mechanism: lacks }), "{rule}");
            faulty.heal();
            let listed = rig.hsm.list_token_keys(soon()).wait().unwrap();
            assert_eq!(listed.import_keys, [], "{rule}");
        }
    });
}

#[test]
fn keys_are_made_and_loaded_while_a_key_pair_is_generated() {
    let test = "import::keys_are_made_and_loaded_while_a_key_pair_is_generated";
    with_rig(test, |rig, faulty| {
        let mark = faulty.mark();
        faulty.script(&["C_GenerateKeyPair 1 hang"]);
        let pending = rig.hsm.create_import_key(job(), soon());
        faulty.await_hang(mark, "C_GenerateKeyPair", LIMIT);
        let key = rig.key(1);
        assert_eq!(rig.round_trip(&key.key), Ok(()));
        assert!(rig.load(&key.source).is_ok());
        faulty.heal();
        assert!(pending.wait().is_ok());
    });
}

#[test]
fn a_full_lane_refuses_one_more_at_once() {
    let test = "import::a_full_lane_refuses_one_more_at_once";
    with_rig(test, |rig, faulty| {
        let mark = faulty.mark();
        faulty.script(&["C_GenerateKeyPair 1 hang"]);
        let at_work = rig.hsm.create_import_key(job(), soon());
        faulty.await_hang(mark, "C_GenerateKeyPair", LIMIT);
        let submit = |number| {
            let spec = ImportKeySpec { id: CkaId([number; 16]), ..job() };
            rig.hsm.create_import_key(spec, soon())
        };
        let waiting: Vec<_> = (10..10 + LANE_QUEUE).map(submit).collect();
        let refused = submit(9).wait();
        assert!(matches!(refused, Err(HsmError::Saturated { .. })), "{refused:?}");
        faulty.heal();
        assert!(at_work.wait().is_ok());
        for waited in waiting {
            assert!(waited.wait().is_ok(), "each that waited is served");
        }
        rig.assert_not_fatal();
    });
}

#[test]
fn a_lane_that_hangs_past_its_budget_is_fatal_and_its_caller_answered() {
    let test = "import::a_lane_that_hangs_past_its_budget_is_fatal_and_its_caller_answered";
    isolated_faulty(test, |_, faulty| {
        let rig = Rig::start_with(|config| config.budgets.lane_hang = PATIENCE * 4);
        let key = rig.key(1).key;
        let mark = faulty.mark();
        faulty.script(&["C_GenerateKeyPair 1 hang"]);
        let answer = rig.hsm.create_import_key(job(), SystemClock.monotonic() + PATIENCE).wait();
        assert_eq!(answer.unwrap_err(), HsmError::CallDeadline);
        faulty.await_hang(mark, "C_GenerateKeyPair", LIMIT);
        assert_eq!(rig.round_trip(&key), Ok(()), "keys work until then");
        assert_eq!(rig.await_fatal(), FatalReason::LaneHung);
        assert_eq!(faulty.count_since(mark, "C_Finalize"), 0);
    });
}
