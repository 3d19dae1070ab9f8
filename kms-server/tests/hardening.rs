//! What the process asks of the kernel before anything else, and what is left of a panic.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "test program: a failure here is a failed test"
)]

use std::process::{Command, Output};

/// Set in the child that panics.
const CHILD: &str = "HOLDFAST_PANIC_CHILD";

/// Runs the server under strace until it finds no configuration; returns the calls that harden the process.
fn calls(arguments: &[&str]) -> String {
    let log = tempfile::NamedTempFile::new().unwrap();
    let output = Command::new("strace")
        .args(["-f", "-e", "trace=prctl,prlimit64,setrlimit", "-o"])
        .arg(log.path())
        .arg(env!("CARGO_BIN_EXE_kms-server"))
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("cannot run strace: {error}; apt-get install strace"));
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    std::fs::read_to_string(log.path()).unwrap()
}

const NO_CORE: &str = "RLIMIT_CORE, {rlim_cur=0, rlim_max=0}";
const HIDDEN: &str = "prctl(PR_SET_DUMPABLE, SUID_DUMP_DISABLE) = 0";

#[test]
fn a_server_dumps_no_core_and_hides_its_memory() {
    for arguments in [&["--config", "/nowhere"][..], &["check-config", "--config", "/nowhere"]] {
        let calls = calls(arguments);
        assert!(calls.contains(NO_CORE) && calls.contains(HIDDEN), "{calls}");
    }
}

#[test]
fn a_dev_server_dumps_no_core_and_hides_nothing_from_its_user() {
    let calls = calls(&["dev", "--dir", "/proc/nowhere"]);
    assert!(calls.contains(NO_CORE) && !calls.contains(HIDDEN), "{calls}");
}

/// Runs a test of this file in a child that panics.
fn child(test: &str) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).env(CHILD, "1").env("RUST_BACKTRACE", "1");
    command.output().unwrap()
}

#[test]
fn a_panic_tells_its_place_and_not_its_text() {
    if std::env::var_os(CHILD).is_some() {
        kms_server::hardening::keep_panics_short();
        let _ = std::thread::spawn(|| panic!("the secret is {}", "CANARY")).join();
        std::process::exit(3);
    }
    let output = child("a_panic_tells_its_place_and_not_its_text");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let told = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(told.contains(&format!("panic at {}:", file!())), "{told}");
    assert!(!told.contains("CANARY") && !told.contains("backtrace"), "{told}");
}
