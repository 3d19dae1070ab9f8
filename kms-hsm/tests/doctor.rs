//! The doctor against SoftHSM as it is, and against a token that fails or lies.
//!
//! Not in the conformance suite: the doctor speaks PKCS#11 itself, below the trait `Hsm`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::path::Path;

use kms_core::clock::SystemClock;
use kms_core::secret::Pin;
use kms_hsm::doctor::{DoctorError, IvMode, Need, Report, Row, Verdict, examine};
use kms_hsm::pkcs11::TokenSelector;
use kms_testkit::softhsm::{self, TOKEN_LABEL, USER_PIN};
use kms_testkit::{faulty, isolated, isolated_faulty};

fn by_label() -> TokenSelector {
    TokenSelector::Label(TOKEN_LABEL.into())
}

fn examine_with(module: &Path, pin: &str) -> Result<Report, DoctorError> {
    examine(module, Some(&by_label()), &Pin::new(pin.into()), &SystemClock)
}

fn row<'a>(report: &'a Report, what: &str) -> &'a Row {
    let found = report.rows.iter().find(|row| row.what == what);
    found.unwrap_or_else(|| panic!("no row `{what}`: {report:#?}"))
}

/// Names the needed rows that are bad.
fn missing(report: &Report) -> Vec<&str> {
    let bad = |row: &&Row| row.need == Need::Needed && row.verdict == Verdict::Bad;
    report.rows.iter().filter(bad).map(|row| row.what).collect()
}

#[test]
fn softhsm_can_serve_us() {
    isolated("softhsm_can_serve_us", |_| {
        let report = examine_with(&softhsm::module(), USER_PIN).unwrap();
        assert_eq!(report.refusal(), None, "{report:#?}");
        assert_eq!(report.iv_mode, IvMode::Caller);
        assert_eq!(report.max_sessions, None);
        assert_eq!(report.token.label, TOKEN_LABEL);
        assert_eq!(report.token.serial.len(), 16);
        assert!([1, 2, 4].contains(&report.recommended_workers));
        assert_eq!(report.lanes.iter().map(|lane| lane.lanes).collect::<Vec<_>>(), [1, 2, 4]);
        assert!(report.lanes.iter().all(|lane| lane.operations_per_second > 0));
        assert_eq!(report.latencies.len(), 5);
        for what in ["CKA_UNWRAP_TEMPLATE", "WRAP_WITH_TRUSTED", "CKM_EDDSA (Ed25519)"] {
            assert_eq!(row(&report, what).verdict, Verdict::Good, "{what}");
        }
    });
}

#[test]
fn the_limits_of_softhsm_2_6_1_are_found() {
    isolated("the_limits_of_softhsm_2_6_1_are_found", |_| {
        let report = examine_with(&softhsm::module(), USER_PIN).unwrap();
        if report.module.version != "2.6" {
            // SoftHSM 2.7 has a code of its own.
            let code = report.tag_failure.as_deref();
            return assert_eq!(code, Some("CKR_ENCRYPTED_DATA_INVALID"));
        }
        assert_eq!(report.tag_failure.as_deref(), Some("CKR_GENERAL_ERROR"));
        assert_eq!(row(&report, "code for a wrong tag").verdict, Verdict::Bad);
        assert_eq!(row(&report, "CKM_RSA_PKCS_OAEP (SHA-1)").verdict, Verdict::Good);
        let sha256 = row(&report, "CKM_RSA_PKCS_OAEP (SHA-256)");
        assert_eq!((sha256.verdict, sha256.result.as_str()), (Verdict::Bad, "CKR_ARGUMENTS_BAD"));
    });
}

#[test]
fn the_report_is_data_and_text() {
    isolated("the_report_is_data_and_text", |_| {
        let report = examine_with(&softhsm::module(), USER_PIN).unwrap();
        let data = serde_json::to_value(&report).unwrap();
        assert_eq!(data["iv_mode"], "caller");
        assert_eq!(data["rows"][0]["need"], "needed");
        assert!(data["latencies"][0]["median_ns"].as_u64().unwrap() > 0);
        assert!(!data.to_string().contains(USER_PIN));
        for row in &report.rows {
            assert!(row.cells().iter().all(|cell| !cell.is_empty()), "{row:?}");
        }
    });
}

#[test]
fn nothing_is_left_on_the_token_and_the_pin_is_tried_once() {
    isolated_faulty("nothing_is_left_on_the_token_and_the_pin_is_tried_once", |token, faulty| {
        let files = || walk(&token.token_dir());
        let before = files();
        examine_with(&faulty::module(), USER_PIN).unwrap();
        assert_eq!(files(), before);
        assert_eq!(faulty.count_since(0, "C_Login"), 1);
        assert_eq!(faulty.count_since(0, "C_Finalize"), 1);
        let calls = faulty.calls_since(0);
        let succeeded =
            |name: &str| calls.iter().filter(|call| call.function == name && call.rv == 0).count();
        assert_eq!(succeeded("C_OpenSession"), succeeded("C_CloseSession"));
        let made = ["C_GenerateKey", "C_CreateObject", "C_UnwrapKey"].map(succeeded);
        let pairs = succeeded("C_GenerateKeyPair");
        assert_eq!(succeeded("C_DestroyObject"), made.iter().sum::<usize>() + 2 * pairs);
        // A second examination in the same process works as the first did.
        examine_with(&faulty::module(), USER_PIN).unwrap();
    });
}

fn walk(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut found = vec![];
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        found.extend(if path.is_dir() { walk(&path) } else { vec![path.clone()] });
    }
    found.sort();
    found
}

#[test]
fn a_missing_mechanism_refuses_the_token_by_name() {
    isolated_faulty("a_missing_mechanism_refuses_the_token_by_name", |_, faulty| {
        faulty.script(&["C_WrapKey * return CKR_MECHANISM_INVALID"]);
        let report = examine_with(&faulty::module(), USER_PIN).unwrap();
        let refusal = report.refusal().unwrap().to_string();
        let wanted = "CKM_AES_KEY_WRAP_PAD (0x210A) (CKR_MECHANISM_INVALID)";
        assert!(refusal.contains(wanted), "{refusal}");
    });
}

#[test]
fn what_a_broken_token_does_is_seen() {
    isolated_faulty("what_a_broken_token_does_is_seen", |_, faulty| {
        let cases: [(&str, &[&str]); 6] = [
            ("C_GenerateRandom * constant", &["C_GenerateRandom"]),
            ("C_GenerateKey 2 return CKR_MECHANISM_INVALID", &["CKM_AES_KEY_GEN"]),
            ("C_EncryptInit * iv", &["IV of AES-GCM"]),
            (
                "C_CreateObject 1 return CKR_TEMPLATE_INCONSISTENT",
                &["C_CreateObject of a public pattern"],
            ),
            ("C_Sign 2 flip", &["CKM_SHA256_HMAC"]),
            ("C_WrapKey 1 flip", &["CKM_AES_KEY_WRAP_PAD (0x210A)"]),
        ];
        for (rule, expected) in cases {
            faulty.script(&[rule]);
            let report = examine_with(&faulty::module(), USER_PIN).unwrap();
            assert_eq!(missing(&report), expected, "{rule}");
        }
    });
}

#[test]
fn a_token_that_chooses_the_iv_is_recognised() {
    isolated_faulty("a_token_that_chooses_the_iv_is_recognised", |_, faulty| {
        faulty.script(&["C_EncryptInit * iv"]);
        let report = examine_with(&faulty::module(), USER_PIN).unwrap();
        assert_eq!(report.iv_mode, IvMode::TokenWritesBack);
    });
}

#[test]
fn an_unenforced_attribute_refuses_the_token() {
    isolated_faulty("an_unenforced_attribute_refuses_the_token", |_, faulty| {
        // A token that says yes to every change, though it ignores it: sealing would mean nothing.
        faulty.script(&["C_SetAttributeValue * return CKR_OK"]);
        let report = examine_with(&faulty::module(), USER_PIN).unwrap();
        assert_eq!(missing(&report), ["EXTRACTABLE cannot be set again"]);
        assert_eq!(row(&report, "MODIFIABLE=false").verdict, Verdict::Bad);
    });
}

#[test]
fn a_call_that_is_not_there_is_no_refusal() {
    isolated_faulty("a_call_that_is_not_there_is_no_refusal", |_, faulty| {
        // Nothing was tried, so nothing is known of what it would have done.
        faulty.script(&["C_SetAttributeValue * return CKR_FUNCTION_NOT_SUPPORTED"]);
        let report = examine_with(&faulty::module(), USER_PIN).unwrap();
        assert_eq!(row(&report, "MODIFIABLE=false").verdict, Verdict::Bad);
    });
}

#[test]
fn two_sessions_are_the_least() {
    isolated_faulty("two_sessions_are_the_least", |_, faulty| {
        for (rule, bound, refused) in [
            ("C_GetTokenInfo * sessions 1", 1, true),
            ("C_OpenSession 2+ return CKR_SESSION_COUNT", 1, true),
            ("C_GetTokenInfo * sessions 2", 2, false),
            ("C_GetTokenInfo * sessions 3", 3, false),
        ] {
            faulty.script(&[rule]);
            let report = examine_with(&faulty::module(), USER_PIN).unwrap();
            assert_eq!(report.max_sessions, Some(bound), "{rule}");
            assert_eq!(missing(&report).contains(&"sessions"), refused, "{rule}");
            assert!(report.recommended_workers as u64 <= bound.saturating_sub(1).max(1), "{rule}");
        }
    });
}

#[test]
fn a_refused_pin_is_not_tried_again() {
    isolated_faulty("a_refused_pin_is_not_tried_again", |_, faulty| {
        let outcome = examine_with(&faulty::module(), "wrong-pin");
        assert_eq!(outcome.unwrap_err(), DoctorError::PinRefused);
        assert_eq!(faulty.count_since(0, "C_Login"), 1);
        faulty.script(&["C_Login * return CKR_PIN_LOCKED"]);
        let outcome = examine_with(&faulty::module(), USER_PIN);
        assert_eq!(outcome.unwrap_err(), DoctorError::PinLocked);
        assert_eq!(faulty.count_since(0, "C_Login"), 2);
    });
}

#[test]
fn the_token_is_chosen_without_doubt() {
    isolated("the_token_is_chosen_without_doubt", |token| {
        let pin = Pin::new(USER_PIN.into());
        let choose = |wanted: Option<&TokenSelector>| {
            examine(&softhsm::module(), wanted, &pin, &SystemClock)
                .map(|report| report.token.serial)
        };
        let only = choose(None).unwrap();
        assert_eq!(choose(Some(&TokenSelector::Serial(only.clone()))), Ok(only.clone()));
        let missing = choose(Some(&TokenSelector::Label("other".into()))).unwrap_err();
        assert!(
            matches!(&missing, DoctorError::TokenMissing { present } if present.contains(&only))
        );
        token.init_token(TOKEN_LABEL);
        assert!(matches!(choose(None), Err(DoctorError::TokenAmbiguous { .. })));
        assert!(matches!(choose(Some(&by_label())), Err(DoctorError::TokenAmbiguous { .. })));
        assert_eq!(choose(Some(&TokenSelector::Serial(only.clone()))), Ok(only));
    });
}

#[test]
fn what_is_not_a_module_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("libnothing.so");
    std::fs::write(&file, "not a library").unwrap();
    for module in [file, directory.path().join("absent.so")] {
        let outcome = examine_with(&module, USER_PIN);
        assert!(matches!(outcome, Err(DoctorError::ModuleUnusable { .. })), "{outcome:?}");
    }
}
