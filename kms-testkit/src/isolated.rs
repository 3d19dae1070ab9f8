//! A test body in a process of its own, with a SoftHSM token of its own.
//!
//! A PKCS#11 module is process-global (one C_Initialize, one login) and SoftHSM reads SOFTHSM2_CONF from the
//! environment, which a process cannot set safely for itself. So the test runs its own binary once more, for itself
//! alone, with the environment prepared.

use std::io::Read as _;
use std::process::{Command, Stdio};

use crate::softhsm::SoftHsm;

/// Set in the child: the root directory of its token.
const CHILD_VARIABLE: &str = "HOLDFAST_ISOLATED_ROOT";

/// Runs `body` in a child process with a fresh token. `test` is the full name of the calling test, as libtest shows it.
///
/// The child inherits the environment plus SOFTHSM2_CONF. Its output is shown when it fails. The test runner's own
/// time limit is the deadline; bodies bound what they wait for.
pub fn isolated(test: &str, body: impl FnOnce(&SoftHsm)) {
    isolated_with(test, &[], body);
}

/// Like [`isolated`], with more environment for the child: scripts of the faulty module, for example.
///
/// `{root}` in a value stands for the token's root directory.
pub fn isolated_with(test: &str, environment: &[(&str, &str)], body: impl FnOnce(&SoftHsm)) {
    if let Some(root) = std::env::var_os(CHILD_VARIABLE) {
        body(&SoftHsm::existing(root.as_ref()));
        return;
    }
    let root = tempfile::tempdir().expect("make a directory for the token");
    let token = SoftHsm::create(root.path());
    let path = root.path().to_str().expect("temporary paths are UTF-8");
    let output = tempfile::tempfile().expect("make a file for the output");
    let mut child = Command::new(std::env::current_exe().expect("path of the test binary"))
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD_VARIABLE, root.path())
        .env("SOFTHSM2_CONF", token.configuration())
        .envs(environment.iter().map(|(name, value)| (name, value.replace("{root}", path))))
        .stdin(Stdio::null())
        .stdout(output.try_clone().expect("share the output file"))
        .stderr(output.try_clone().expect("share the output file"))
        .spawn()
        .expect("run the test binary again");
    let status = child.wait().expect("wait for the child");
    let mut shown = String::new();
    let mut output = output;
    std::io::Seek::rewind(&mut output).expect("rewind the output");
    output.read_to_string(&mut shown).expect("read the output");
    assert!(status.success(), "`{test}` failed in its child ({status}):\n{shown}");
    assert!(shown.contains("1 passed"), "no test is called `{test}`:\n{shown}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_runs_in_a_child_with_a_token() {
        isolated("isolated::tests::the_body_runs_in_a_child_with_a_token", |token| {
            assert_eq!(std::env::var_os("SOFTHSM2_CONF"), Some(token.configuration().into()));
            assert_eq!(std::fs::read_dir(token.token_dir()).expect("token directory").count(), 1);
        });
    }

    #[test]
    #[should_panic(expected = "no test is called")]
    fn a_misspelt_name_is_noticed() {
        isolated("isolated::tests::no_such_test", |_| {});
    }
}
