//! The client programs against a dev server, as a person would run them.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test support: a failure here is a failed test, and no test file uses all of it"
)]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kms_testkit::process::binary;
use serde_json::Value;
use tempfile::TempDir;

use crate::support_dev::DevServer;

/// A dev server, and a directory to work in.
#[derive(Debug)]
pub struct World {
    pub server: DevServer,
    pub home: TempDir,
}

/// How a program ended.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl World {
    pub fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let server = DevServer::start(&home.path().join("dev"));
        fs::create_dir(home.path().join("work")).unwrap();
        Self { server, home }
    }

    /// Returns the path of a file to work with.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join("work").join(name)
    }

    /// Makes a file to work with.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// Returns a command that runs `program` with our binaries on the path and the dev context.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let path = std::env::var("PATH").unwrap();
        let ours = binary("age-plugin-kms");
        let mut command = Command::new(program.as_ref());
        command
            .env("PATH", format!("{}:{path}", ours.parent().unwrap().display()))
            .env("HOME", self.home.path())
            .env("KMS_CONFIG", self.server.directory.join("cli.toml"))
            .env_remove("KMS_CONTEXT")
            .current_dir(self.home.path().join("work"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn run(&self, program: impl AsRef<Path>, args: &[&str], stdin: &[u8]) -> Run {
        let mut child = self.command(program).args(args).spawn().unwrap();
        let mut pipe = child.stdin.take().unwrap();
        // While the output is read: a program that waits for its reader reads nothing itself.
        let output = std::thread::scope(|scope| {
            scope.spawn(move || {
                // A program that reads nothing closes the pipe; that is its good right.
                let _ = pipe.write_all(stdin);
            });
            child.wait_with_output().unwrap()
        });
        let stderr = String::from_utf8(output.stderr).unwrap();
        Run { code: output.status.code().unwrap(), stdout: output.stdout, stderr }
    }

    pub fn kms(&self, args: &[&str]) -> Run {
        self.run(binary("kms"), args, b"")
    }

    /// Runs `kms`, which must succeed, with `stdin`, and returns its output.
    #[track_caller]
    pub fn pipe(&self, args: &[&str], stdin: &[u8]) -> Vec<u8> {
        self.run(binary("kms"), args, stdin).good()
    }

    /// Runs `kms`, which must succeed, and returns its JSON object.
    #[track_caller]
    pub fn json(&self, args: &[&str], stdin: &[u8]) -> Value {
        let args = [args, &["--output", "json"]].concat();
        let output = self.pipe(&args, stdin);
        let value: Value = serde_json::from_slice(&output).unwrap();
        assert!(value.is_object(), "{value}");
        value
    }

    /// Runs stock `age`, which must succeed, and returns its output.
    #[track_caller]
    pub fn age(&self, args: &[&str], stdin: &[u8]) -> Vec<u8> {
        self.run("age", args, stdin).good()
    }

    /// Creates a key and returns it.
    #[track_caller]
    pub fn create(&self, key: &str, more: &[&str]) -> Value {
        let about = [
            "key",
            "create",
            key,
            "--owner",
            "tests",
            "--sensitivity",
            "low",
            "--usage",
            "command line tests",
            "--cryptoperiod",
            "30d",
        ];
        self.json(&[&about, more].concat(), b"")
    }
}

impl Run {
    /// Returns the output of a program that must have succeeded.
    #[track_caller]
    pub fn good(self) -> Vec<u8> {
        assert_eq!(self.code, 0, "{}", self.stderr);
        self.stdout
    }

    /// Asserts that `kms --output json` failed with this code, and returns the reason it gives.
    #[track_caller]
    pub fn refused(&self, code: i32) -> String {
        assert_eq!(self.code, code, "{}", self.stderr);
        assert!(self.stdout.is_empty(), "{:?}", self.stdout);
        let told: Value = serde_json::from_str(&self.stderr).unwrap();
        assert_eq!(told["error"]["exit_code"], code);
        assert!(!told["error"]["message"].as_str().unwrap().is_empty());
        told["error"]["reason"].as_str().unwrap_or_default().to_owned()
    }
}
