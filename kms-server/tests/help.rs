//! The help texts of the server are pinned: options and exit statuses are what operators write into their units.
#![allow(clippy::unwrap_used, reason = "test program: a failure here is a failed test")]

use std::fmt::Write as _;
use std::process::Command;

#[test]
fn the_help_of_every_command_is_pinned() {
    let mut all = String::new();
    for words in [
        &["--help"][..],
        &["check-config", "--help"],
        &["verify-store", "--help"],
        &["dev", "--help"],
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kms-server"));
        let output = command.args(words).env("COLUMNS", "100").output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{words:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let _ = write!(all, "===== kms-server {} =====\n{text}\n", words.join(" "));
    }
    insta::assert_snapshot!(all);
}
