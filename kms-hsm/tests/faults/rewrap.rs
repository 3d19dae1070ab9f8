//! Re-wraps that fail halfway: nothing that is extractable outlives them, and no key is lost to a lie.

use kms_core::id::RootGeneration;
use kms_core::key::{Material, WrappedKey};
use kms_hsm::{Hsm as _, HsmError, HsmHealth, KeySource};
use kms_testkit::Faulty;

use crate::rig::{Key, Rig, soon, with_rig};

fn second() -> RootGeneration {
    RootGeneration::new(2).unwrap()
}

fn open_second(rig: &Rig) {
    let pin = rig.hsm.create_root(second(), soon()).wait().unwrap();
    rig.hsm.open_roots(vec![pin], soon()).wait().unwrap();
}

fn rewrap(rig: &Rig, source: &KeySource) -> Result<WrappedKey, HsmError> {
    let done = rig.hsm.rewrap_keys(vec![source.clone()], second(), soon()).wait();
    done.and_then(|mut done| done.remove(0))
}

fn assert_loads_under_both(rig: &Rig, source: &KeySource, blob: WrappedKey) {
    let material = Material::Wrapped(blob);
    let new = KeySource { generation: second(), material, ..source.clone() };
    for source in [source.clone(), new] {
        let key = rig.hsm.load_key(source, soon()).wait().unwrap();
        assert_eq!(rig.round_trip(&key), Ok(()));
    }
}

#[test]
fn a_key_that_a_re_wrap_opened_and_cannot_destroy_ends_with_the_module() {
    let test = "rewrap::a_key_that_a_re_wrap_opened_and_cannot_destroy_ends_with_the_module";
    with_rig(test, |rig, faulty| {
        open_second(rig);
        let key = rig.key(1);
        // The first that it destroys is the opened key, the second what it tried.
        for number in [1, 2] {
            let mark = faulty.mark();
            let rule = format!("C_DestroyObject {number} return CKR_FUNCTION_FAILED");
            faulty.script(&[&rule]);
            // Done again by itself, after the module was initialised anew.
            let blob = rewrap(rig, &key.source).unwrap();
            assert_eq!(faulty.count_since(mark, "C_Finalize"), 1, "{rule}");
            faulty.heal();
            assert_loads_under_both(rig, &key.source, blob);
        }
        assert_eq!(rig.round_trip(&key.key), Ok(()));
        rig.assert_not_fatal();
    });
}

#[test]
fn a_re_wrap_that_lies_loses_no_key() {
    with_rig("rewrap::a_re_wrap_that_lies_loses_no_key", |rig, faulty| {
        open_second(rig);
        let key = rig.key(1);
        for rule in ["C_WrapKey 1 flip", "C_WrapKey 1 constant", "C_Decrypt 2 flip"] {
            faulty.script(&[rule]);
            let answer = rewrap(rig, &key.source);
            assert!(matches!(answer, Err(HsmError::Unavailable { .. })), "{rule}: {answer:?}");
            faulty.heal();
            rig.await_recovery(&key.key);
            let blob = rewrap(rig, &key.source).unwrap();
            assert_loads_under_both(rig, &key.source, blob);
        }
        rig.assert_not_fatal();
    });
}

/// Re-wraps under a script, and asserts that nobody else heard of it.
fn alone(rig: &Rig, faulty: &Faulty, key: &Key, rules: &[&str]) -> Result<WrappedKey, HsmError> {
    let (mark, reconnects) = (faulty.mark(), rig.hsm.status().reconnects);
    faulty.script(rules);
    let answer = rewrap(rig, &key.source);
    assert_eq!(rig.health(), HsmHealth::Ready, "{rules:?}");
    faulty.heal();
    assert_eq!(rig.round_trip(&key.key), Ok(()), "{rules:?}");
    assert_eq!(rig.hsm.status().reconnects, reconnects, "{rules:?}");
    assert_eq!(faulty.count_since(mark, "C_Finalize"), 0, "{rules:?}");
    assert!(faulty.count_since(mark, "C_UnwrapKey") > 0, "{rules:?}");
    assert_eq!(rig.hsm.status().loaded_keys, 1, "{rules:?}");
    answer
}

#[test]
fn a_re_wrap_that_the_token_refuses_takes_the_token_from_no_one() {
    let test = "rewrap::a_re_wrap_that_the_token_refuses_takes_the_token_from_no_one";
    with_rig(test, |rig, faulty| {
        open_second(rig);
        let key = rig.key(1);
        for rules in [
            // As in the profile `locked`: the template is refused, or what was made of it. The roots are asked by C_WrapKey,
            // two of them after each refusal, so the second attempt's is the fourth call.
            &["C_UnwrapKey 1 return CKR_TEMPLATE_INCONSISTENT"][..],
            &["C_UnwrapKey 1 return CKR_ATTRIBUTE_VALUE_INVALID"],
            &["C_UnwrapKey * return CKR_KEY_FUNCTION_NOT_PERMITTED"],
            &[
                "C_WrapKey 1 return CKR_KEY_UNEXTRACTABLE",
                "C_WrapKey 4 return CKR_KEY_UNEXTRACTABLE",
            ],
            &[
                "C_WrapKey 1 return CKR_KEY_NOT_WRAPPABLE",
                "C_WrapKey 4 return CKR_KEY_NOT_WRAPPABLE",
            ],
        ] {
            let answer = alone(rig, faulty, &key, rules);
            assert!(matches!(answer, Err(HsmError::Refused { .. })), "{rules:?}: {answer:?}");
        }
        for code in ["CKR_GENERAL_ERROR", "CKR_FUNCTION_FAILED", "0x80000042"] {
            let rule = format!("C_WrapKey 1 return {code}");
            let answer = alone(rig, faulty, &key, &[&rule]);
            assert!(matches!(answer, Err(HsmError::Unavailable { .. })), "{rule}: {answer:?}");
        }
        // Refused once, as of a handle whose object was replaced: mended, and done.
        let blob = alone(rig, faulty, &key, &["C_WrapKey 1 return CKR_KEY_UNEXTRACTABLE"]).unwrap();
        assert_loads_under_both(rig, &key.source, blob);
        rig.assert_not_fatal();
    });
}

#[test]
fn a_re_wrap_that_a_sick_device_fails_is_done_after_it_is_well() {
    let test = "rewrap::a_re_wrap_that_a_sick_device_fails_is_done_after_it_is_well";
    with_rig(test, |rig, faulty| {
        open_second(rig);
        let key = rig.key(1);
        for rules in [
            &["C_Decrypt 1 return CKR_DEVICE_ERROR"][..],
            // Not even the roots wrap: no policy of one object.
            &["C_WrapKey * return CKR_KEY_UNEXTRACTABLE"],
            &["C_WrapKey * return CKR_GENERAL_ERROR"],
        ] {
            faulty.script(rules);
            let answer = rewrap(rig, &key.source);
            assert!(matches!(answer, Err(HsmError::Unavailable { .. })), "{rules:?}: {answer:?}");
            faulty.heal();
            rig.await_recovery(&key.key);
            let blob = rewrap(rig, &key.source).unwrap();
            assert_loads_under_both(rig, &key.source, blob);
        }
        rig.assert_not_fatal();
    });
}
