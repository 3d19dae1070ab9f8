//! The process that keeps a cluster: it outlives a test that is killed, by as long as it takes to end the cluster.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::find::User;

/// A shell that starts and ends the server, and ends it for good when its input ends.
#[derive(Debug)]
pub(super) struct Keeper {
    child: Child,
    /// `None` when it was told to end.
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Keeper {
    /// Starts one for the cluster in `directory`.
    pub(super) fn start(bin: &Path, directory: &Path, user: Option<User>) -> Self {
        let mut command = as_user(Path::new("/bin/sh"), directory, user);
        command.args(["-c", include_str!("keeper.sh"), "keeper.sh"]).args([bin, directory]);
        // A group of its own: what ends the test by its group, as ^C does, must not end its keeper before the cluster.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("start a shell");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("its output is a pipe"));
        Self { child, input, output }
    }

    /// Gives it a command and returns the process id of the server; `None` when there is no server now.
    pub(super) fn tell(&mut self, command: &str) -> Option<u32> {
        let input = self.input.as_mut().expect("it was not told to end");
        writeln!(input, "{command}").expect("tell the keeper");
        let mut answer = String::new();
        self.output.read_line(&mut answer).expect("hear the keeper");
        answer.trim().parse().ok()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.input.take());
        // It ends by itself, and what it cannot end it kills.
        let _ = self.child.wait();
    }
}

/// Returns a command that runs as `user` in `directory`, where that user may be.
pub(super) fn as_user(program: &Path, directory: &Path, user: Option<User>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(directory);
    if let Some(User { uid, gid }) = user {
        command.uid(uid).gid(gid);
    }
    command
}
