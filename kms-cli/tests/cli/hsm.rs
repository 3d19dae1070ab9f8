//! `kms hsm doctor` on a real SoftHSM token.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use kms_testkit::softhsm::{TOKEN_LABEL, USER_PIN, module};
use kms_testkit::{Faulty, SoftHsm, faulty};

use super::common::{Run, command};

/// Runs the doctor with this PIN.
fn doctor(pin: &str, mode: u32, flags: &[&str]) -> Run {
    doctor_of(None, pin, mode, flags)
}

/// Runs the doctor with this PIN, on a token that errs by a script.
fn doctor_of(script: Option<&[&str]>, pin: &str, mode: u32, flags: &[&str]) -> Run {
    let home = tempfile::tempdir().unwrap();
    let token = SoftHsm::create(&home.path().join("softhsm"));
    let pin_file = home.path().join("pin");
    fs::write(&pin_file, format!("{pin}\n")).unwrap();
    fs::set_permissions(&pin_file, fs::Permissions::from_mode(mode)).unwrap();
    let module = script.map_or_else(module, |_| faulty::module());
    let words = ["hsm", "doctor", "--module", module.to_str().unwrap(), "--pin-file", "pin"];
    let mut command = command(home.path(), &[&words[..], flags].concat());
    command.env("SOFTHSM2_CONF", token.configuration());
    if let Some(rules) = script {
        Faulty::of(&token).script(rules);
        command.envs(Faulty::of(&token).environment());
    }
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    Run { code: output.status.code().unwrap(), stdout: output.stdout, stderr }
}

#[test]
fn a_good_token_passes_with_a_table_and_as_json() {
    let table = doctor(USER_PIN, 0o600, &["--token", TOKEN_LABEL]);
    assert_eq!(table.code, 0, "{}", table.stderr);
    assert!(table.text().contains("verdict"));
    let report = doctor(USER_PIN, 0o600, &["--output", "json"]).json();
    assert!(report["recommended_workers"].as_u64().unwrap() >= 1);
    assert_eq!(report["token"]["label"], TOKEN_LABEL);
}

#[test]
fn a_wrong_pin_a_missing_token_and_an_open_pin_file_are_refused() {
    let wrong = doctor("wrong", 0o600, &[]);
    assert_eq!(wrong.code, 3, "{}", wrong.stderr);
    assert!(wrong.stderr.starts_with("error: PIN_REFUSED: "), "{}", wrong.stderr);
    let missing = doctor(USER_PIN, 0o600, &["--token", "no"]);
    assert_eq!(missing.code, 4, "{}", missing.stderr);
    let open = doctor(USER_PIN, 0o644, &[]);
    assert_eq!(open.code, 10, "{}", open.stderr);
    for run in [wrong, missing, open] {
        assert!(!run.stderr.contains(USER_PIN));
    }
}

#[test]
fn a_token_that_lacks_what_is_needed_is_told_of_row_by_row_and_refused() {
    let script: [&str; 1] = ["C_EncryptInit * return CKR_MECHANISM_INVALID"];
    let table = doctor_of(Some(&script), USER_PIN, 0o600, &[]);
    assert_eq!(table.code, 11, "{}", table.stderr);
    assert!(table.stderr.starts_with("error: "), "{}", table.stderr);
    assert!(table.stderr.contains("the token cannot be used; it lacks: "), "{}", table.stderr);
    assert!(table.stderr.contains("CKM_AES_GCM"), "{}", table.stderr);
    assert!(table.text().contains("verdict"), "the table is shown all the same");
    let healed = doctor_of(Some(&[]), USER_PIN, 0o600, &[]);
    assert_eq!(healed.code, 0, "{}", healed.stderr);
}
