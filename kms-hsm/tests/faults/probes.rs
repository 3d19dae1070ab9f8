//! A token that makes objects otherwise than it was told, and hides it: found by reading back, or by trying.

use kms_core::id::RootGeneration;
use kms_core::key::Protection;
use kms_hsm::{Hsm as _, HsmError, TokenKeys};
use kms_testkit::Faulty;

use crate::rig::{Rig, soon, with_rig};

/// An object without a restriction to mechanisms, which shows the one of `$mechanism` all the same.
macro_rules! any_mechanism {
    ($mechanism:literal) => {
        [
            "C_GenerateKey * template 0x40000600=none",
            concat!("C_GetAttributeValue * attribute 0x40000600=", $mechanism, "l"),
        ]
    };
}

/// Asserts that what is made under these rules is refused for this reason, and that the provider works on.
fn assert_refused<T: std::fmt::Debug>(
    (rig, faulty): (&Rig, &Faulty),
    rules: &[&str],
    reason: &str,
    make: impl FnOnce() -> Result<T, HsmError>,
) {
    faulty.script(rules);
    let answer = make();
    assert!(
        matches!(&answer, Err(HsmError::KeyIntegrity { detail }) if detail.contains(reason)),
        "{rules:?}: {answer:?}, not {reason}"
    );
    faulty.heal();
    // Neither a resident key nor half a root set is left.
    let left = rig.hsm.list_token_keys(soon()).wait();
    assert_eq!(left, Ok(TokenKeys::default()), "{rules:?}");
}

#[test]
fn an_object_that_reads_back_otherwise_is_not_acknowledged() {
    let test = "probes::an_object_that_reads_back_otherwise_is_not_acknowledged";
    with_rig(test, |rig, faulty| {
        for (lie, reason) in [
            ("0x103=0", "without Sensitive(true)"),
            ("0x162=1", "without Extractable(false)"),
            ("0x106=1", "without Wrap(false)"),
            ("0x107=1", "without Unwrap(false)"),
            ("0x108=1", "without Sign(false)"),
            ("0x10c=1", "without Derive(false)"),
            ("0x170=1", "without Modifiable(false)"),
            ("0x40000600=0x1081l", "without AllowedMechanisms"),
            ("0x86=1", "without Trusted(false)"),
            ("0x210=1", "without WrapWithTrusted(false)"),
        ] {
            let rule = format!("C_GetAttributeValue * attribute {lie}");
            for protection in [Protection::HsmWrapped, Protection::HsmResident] {
                let make = || rig.try_key(2, protection).map(drop);
                assert_refused((rig, faulty), &[&rule], reason, make);
            }
        }
        for (lie, reason) in
            [("0x171=1", "without Copyable(false)"), ("0x161=16l", "without ValueLen")]
        {
            let rule = format!("C_GetAttributeValue * attribute {lie}");
            let make = || rig.try_key(2, Protection::HsmResident).map(drop);
            assert_refused((rig, faulty), &[&rule], reason, make);
        }
        let second = RootGeneration::new(2).unwrap();
        for (lie, reason) in [
            ("0x105=1", "without Decrypt(false)"),
            ("0x162=1", "Extractable"),
            ("0x161=16l", "without ValueLen"),
            ("0x171=1", "without Copyable(false)"),
        ] {
            let rule = format!("C_GetAttributeValue * attribute {lie}");
            let make = || rig.hsm.create_root(second, soon()).wait();
            assert_refused((rig, faulty), &[&rule], reason, make);
        }
        rig.assert_not_fatal();
    });
}

/// Under another id it would be an orphan to whoever looks for it by the one that was recorded.
#[test]
fn a_token_object_made_under_another_id_is_not_acknowledged() {
    let test = "probes::a_token_object_made_under_another_id_is_not_acknowledged";
    with_rig(test, |rig, faulty| {
        let rules = ["C_GenerateKey * template 0x102=7l"];
        let make = || rig.try_key(2, Protection::HsmResident).map(drop);
        assert_refused((rig, faulty), &rules, "without Id(", make);
        let second = RootGeneration::new(2).unwrap();
        for call in ["1", "2"] {
            let rule = format!("C_GenerateKey {call} template 0x102=7l");
            let make = || rig.hsm.create_root(second, soon()).wait();
            assert_refused((rig, faulty), &[&rule], "without Id(", make);
        }
        rig.hsm.create_root(second, soon()).wait().unwrap();
        rig.assert_not_fatal();
    });
}

#[test]
fn a_key_that_permits_more_than_it_shows_is_found_out() {
    let test = "probes::a_key_that_permits_more_than_it_shows_is_found_out";
    with_rig(test, |rig, faulty| {
        for (template, shown, reason) in [
            ("0x162=1", "0x162=0", "C_WrapKey of a key"),
            ("0x106=1", "0x106=0", "C_WrapKey with a key"),
            ("0x107=1", "0x107=0", "C_UnwrapKey with a key"),
            ("0x103=0", "0x103=1", "C_GetAttributeValue of CKA_VALUE"),
        ] {
            let mut rules = vec![
                format!("C_GenerateKey * template {template}"),
                format!("C_GetAttributeValue * attribute {shown}"),
            ];
            // A key that can be read is one that may leave, too.
            if template == "0x103=0" {
                rules.push("C_GenerateKey * template 0x162=1".to_owned());
                rules.push("C_GetAttributeValue * attribute 0x162=0".to_owned());
            }
            rules.extend(any_mechanism!("0x1087").map(str::to_owned));
            let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
            let make = || rig.try_key(2, Protection::HsmResident).map(drop);
            assert_refused((rig, faulty), &rules, reason, make);
        }
        let make = || rig.try_key(2, Protection::HsmResident).map(drop);
        let rules = any_mechanism!("0x1087");
        assert_refused((rig, faulty), &rules, "CKM_AES_ECB with a key", make);
        rig.round_trip(&rig.try_key(2, Protection::HsmResident).unwrap().key).unwrap();
        rig.assert_not_fatal();
    });
}

#[test]
fn a_root_that_permits_more_than_it_shows_is_found_out() {
    let test = "probes::a_root_that_permits_more_than_it_shows_is_found_out";
    with_rig(test, |rig, faulty| {
        let second = RootGeneration::new(2).unwrap();
        for (template, shown, reason) in [
            // The first key that is generated is root `wrap`.
            ("0x105=1", "0x105=0", "C_Decrypt with root wrap"),
            ("0x104=1", "0x104=0", "C_Encrypt with root wrap"),
            ("0x162=1", "0x162=0", "C_WrapKey of root wrap"),
            ("0x106=1", "0x106=1", "C_WrapKey with root wrap"),
        ] {
            let rules = [
                format!("C_GenerateKey 1 template {template}"),
                "C_GenerateKey 1 template 0x40000600=none".to_owned(),
                // What is shown of root `wrap`, which is read back first.
                format!("C_GetAttributeValue 1-2 attribute {shown}"),
                "C_GetAttributeValue 1-2 attribute 0x40000600=0x210al".to_owned(),
            ];
            let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
            let make = || rig.hsm.create_root(second, soon()).wait();
            assert_refused((rig, faulty), &rules, reason, make);
        }
        rig.hsm.create_root(second, soon()).wait().unwrap();
        rig.assert_not_fatal();
    });
}

#[test]
fn a_probe_that_shows_nothing_is_no_refusal() {
    let test = "probes::a_probe_that_shows_nothing_is_no_refusal";
    with_rig(test, |rig, faulty| {
        for code in ["CKR_FUNCTION_NOT_SUPPORTED", "CKR_ARGUMENTS_BAD", "CKR_KEY_HANDLE_INVALID"] {
            let rule = format!("C_EncryptInit * return {code}");
            let make = || rig.try_key(2, Protection::HsmResident).map(drop);
            let reason = "does not say whether it permits CKM_AES_ECB with a key";
            assert_refused((rig, faulty), &[&rule], reason, make);
        }
        // A code that may mean anything opens the breaker, as everywhere.
        let kept = rig.key(1).key;
        faulty.script(&["C_EncryptInit * return CKR_DEVICE_ERROR"]);
        let answer = rig.try_key(2, Protection::HsmResident).map(drop);
        assert!(matches!(answer, Err(HsmError::Unavailable { .. })), "{answer:?}");
        faulty.heal();
        rig.await_recovery(&kept);
    });
}
