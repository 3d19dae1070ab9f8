//! Runs the built `kms` with nothing of the caller's environment.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// What one run did.
pub(crate) struct Run {
    /// Exit code.
    pub(crate) code: i32,
    /// Standard output.
    pub(crate) stdout: Vec<u8>,
    /// Standard error, as text.
    pub(crate) stderr: String,
}

impl Run {
    /// Standard output as text.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    /// Standard output as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap()
    }
}

/// Prepares a run; `home` holds everything that the environment names.
pub(crate) fn command(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kms"));
    command.env_clear().env("HOME", home).env("COLUMNS", "100").current_dir(home).args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs `kms` with this on stdin.
pub(crate) fn kms_with(home: &Path, args: &[&str], stdin: &[u8]) -> Run {
    let mut child = command(home, args).spawn().unwrap();
    // A program that reads nothing closes the pipe; that is its good right.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    finished(child.wait_with_output().unwrap())
}

/// Runs `kms` with nothing on stdin.
pub(crate) fn kms(home: &Path, args: &[&str]) -> Run {
    kms_with(home, args, b"")
}

fn finished(output: Output) -> Run {
    let code = output.status.code().expect("kms ended by a signal");
    let stderr = String::from_utf8(output.stderr).unwrap();
    Run { code, stdout: output.stdout, stderr }
}
