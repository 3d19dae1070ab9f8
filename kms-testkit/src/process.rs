//! The shipped binaries, started by tests: waited for, stopped, killed, and their output kept.

use std::fs::File;
use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::deadline;

/// Names the directory that holds `kms-server`, `kms` and `age-plugin-kms`.
pub const BINARIES_VARIABLE: &str = "HOLDFAST_BIN_DIR";
/// How long one attempt to reach a port may take.
const CONNECT_LIMIT: Duration = Duration::from_millis(200);

/// Returns the directory that cargo puts this build's binaries in.
pub(crate) fn target_dir() -> PathBuf {
    let test = std::env::current_exe().expect("path of the test binary");
    let directory = test.parent().expect("the test binary is in a directory");
    let deps = directory.ends_with("deps");
    (if deps { directory.parent().expect("deps is in a directory") } else { directory }).to_owned()
}

/// Returns the path of one of our binaries.
///
/// Cargo does not build the binaries of other packages for a test: `make test` does, and sets HOLDFAST_BIN_DIR.
pub fn binary(name: &str) -> PathBuf {
    let directory = std::env::var_os(BINARIES_VARIABLE).map_or_else(target_dir, PathBuf::from);
    let path = directory.join(name);
    assert!(
        path.is_file(),
        "{} is not there; run `make test`, or build it and set {BINARIES_VARIABLE}",
        path.display()
    );
    path
}

/// A running program. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    stdout: PathBuf,
    stderr: PathBuf,
    _output: tempfile::TempDir,
}

impl Process {
    /// Starts `command` with its output kept and without input.
    pub fn start(command: &mut Command) -> Self {
        let name = Path::new(command.get_program()).display().to_string();
        let output = tempfile::tempdir().expect("make a directory for the output");
        let (stdout, stderr) = (output.path().join("stdout"), output.path().join("stderr"));
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(&stdout).expect("create the output file"))
            .stderr(File::create(&stderr).expect("create the output file"))
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        Self { child, name, stdout, stderr, _output: output }
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns what it has written to stdout so far.
    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// Returns what it has written to stderr so far.
    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// Waits until a whole line of stdout or stderr contains `text`, and returns the line.
    pub fn await_line(&mut self, text: &str, limit: Duration) -> String {
        let mut found = None;
        self.eventually(limit, &format!("a line with `{text}`"), |this| {
            let (stdout, stderr) = (this.stdout(), this.stderr());
            let mut lines = stdout.split_inclusive('\n').chain(stderr.split_inclusive('\n'));
            found =
                lines.find(|line| line.ends_with('\n') && line.contains(text)).map(str::to_owned);
            found.is_some()
        });
        found.expect("a line was found")
    }

    /// Waits until a file is there, and returns its content. Such files are put in their place whole.
    pub fn await_file(&mut self, path: &Path, limit: Duration) -> String {
        self.eventually(limit, &format!("the file {}", path.display()), |_| path.is_file());
        std::fs::read_to_string(path).expect("read the awaited file")
    }

    /// Waits until something listens at `address`.
    pub fn await_port(&mut self, address: SocketAddr, limit: Duration) {
        self.eventually(limit, &format!("a listener at {address}"), |_| {
            TcpStream::connect_timeout(&address, CONNECT_LIMIT).is_ok()
        });
    }

    /// Waits for a condition; fails when the process ends before.
    fn eventually(&mut self, limit: Duration, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let mut ended = None;
        deadline::eventually(limit, what, || {
            let held = holds(self);
            ended = self.child.try_wait().expect("ask for the process");
            held || ended.is_some()
        });
        // The last words may have come between the look and the end.
        assert!(
            ended.is_none() || holds(self),
            "{} ended ({ended:?}) before {what}:\n{}\n{}",
            self.name,
            self.stdout(),
            self.stderr()
        );
    }

    /// Sends SIGTERM and waits for the end.
    pub fn terminate(&mut self, limit: Duration) -> ExitStatus {
        self.signal(Signal::TERM);
        self.await_end(limit)
    }

    /// Sends SIGKILL and waits for the end.
    pub fn kill(&mut self) -> ExitStatus {
        self.signal(Signal::KILL);
        self.child.wait().expect("wait for the process")
    }

    /// Sends a signal, when the process still runs.
    pub fn signal(&mut self, signal: Signal) {
        if self.child.try_wait().expect("ask for the process").is_some() {
            return;
        }
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(id.expect("a process id"), signal).expect("send a signal");
    }

    /// Waits for the end.
    pub fn await_end(&mut self, limit: Duration) -> ExitStatus {
        let mut ended = None;
        let what = format!("the end of {}", self.name);
        deadline::eventually(limit, &what, || {
            ended = self.child.try_wait().expect("ask for the process");
            ended.is_some()
        });
        ended.expect("the process has ended")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself: then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            report(&self.name, &self.stderr());
        }
    }
}

/// Shows the last words of a process when the test that owns it fails.
#[expect(clippy::print_stderr, reason = "the output of a failed test")]
fn report(name: &str, stderr: &str) {
    eprintln!("--- stderr of {name} ---\n{stderr}");
}

fn read(path: &Path) -> String {
    let mut bytes = Vec::new();
    File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)).expect("read the output");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Process {
        Process::start(Command::new("sh").args(["-c", script]))
    }

    #[test]
    fn a_line_is_awaited_and_sigterm_ends_it() {
        let mut process = shell("trap 'exit 7' TERM; echo ready >&2; while :; do sleep 0.01; done");
        assert_eq!(process.await_line("read", LIMIT), "ready\n");
        assert_eq!(process.terminate(LIMIT).code(), Some(7));
    }

    #[test]
    #[should_panic(expected = "before a line with `ready`")]
    fn an_early_end_is_told() {
        shell("echo oops >&2; exit 3").await_line("ready", LIMIT);
    }

    #[test]
    fn sigkill_cannot_be_caught() {
        let mut process = shell("trap '' TERM; echo ready; while :; do sleep 0.01; done");
        process.await_line("ready", LIMIT);
        assert_eq!(process.kill().code(), None);
    }
}
