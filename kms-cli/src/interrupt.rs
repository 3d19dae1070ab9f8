//! SIGINT and SIGTERM end the process with 130, wherever it is, and nothing half written is left.
//!
//! A thread awaits them and ends the process at once: reads, writes and calls that wait need not be woken. An output that
//! has no name yet goes with the process, and what a pipe was given stays given. What is different is told here: a step
//! that must not be cut is waited for ([`uninterrupted`]), a partial file that has a name is removed
//! ([`create_partial`]), and of a change that is asked for it is said how to repeat it ([`Asked`]). Process-wide, as signals are.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::NamedTempFile;
use tokio::signal::unix::{SignalKind, signal};

use crate::client::Repeat;
use crate::error::CliError;

/// Partial files that have a name. Held while a step must not be cut, and by the end of the process.
static PARTIAL: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// The change that is asked for and has no answer yet.
static ASKED: Mutex<Option<Repeat>> = Mutex::new(None);

/// From now on SIGINT and SIGTERM end the process in an orderly way.
///
/// # Errors
/// [`CliError::Bug`] when the system gives no thread or no signals.
pub fn listen(as_json: bool) -> Result<(), CliError> {
    let failed = |_| CliError::Bug("signals cannot be awaited");
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    // Before the thread runs: a signal that comes in between must not be missed.
    let entered = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    drop(entered);
    let serve = move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        end(as_json);
    };
    std::thread::Builder::new().name("signals".into()).spawn(serve).map_err(failed)?;
    Ok(())
}

fn end(as_json: bool) {
    let partial = hold();
    for path in partial.iter() {
        // It may have got its real name, or be gone: then there is nothing to remove.
        let _ = std::fs::remove_file(path);
    }
    let error = CliError::Interrupted(*asked());
    let _ = std::io::stderr().write_all(error.text(as_json).as_bytes());
    // Still holding: no other step begins.
    std::process::exit(error.exit().code().into());
}

/// Runs a step that a signal must not cut: one that comes meanwhile ends the process after it. Steps must not nest.
pub fn uninterrupted<T>(step: impl FnOnce() -> T) -> T {
    let _held = hold();
    step()
}

/// Creates a file with a temporary name, which is removed when a signal ends the process.
pub fn create_partial<E>(
    create: impl FnOnce() -> Result<NamedTempFile, E>,
) -> Result<NamedTempFile, E> {
    let mut partial = hold();
    let file = create()?;
    partial.push(file.path().to_path_buf());
    Ok(file)
}

/// As long as it lives, a change is asked for that a signal leaves open. A command asks for one at a time.
#[must_use]
#[derive(Debug)]
pub struct Asked(());

impl Asked {
    /// Begins to ask.
    pub fn new(repeat: Repeat) -> Self {
        *asked() = Some(repeat);
        Self(())
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        *asked() = None;
    }
}

fn asked() -> MutexGuard<'static, Option<Repeat>> {
    ASKED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn hold() -> MutexGuard<'static, Vec<PathBuf>> {
    PARTIAL.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kms_testkit::process::Process;
    use rustix::process::Signal;
    use std::path::Path;
    use std::process::Command;
    use std::time::Duration;

    const LIMIT: Duration = Duration::from_secs(30);
    /// Set in the child: the directory to work in.
    const CHILD: &str = "HOLDFAST_INTERRUPT_CHILD";

    /// Runs the test that calls this once more, in a process of its own, and sends it a signal when it is ready.
    fn interrupted(test: &str, directory: &Path) -> Option<i32> {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([test, "--exact", "--nocapture"]).env(CHILD, directory);
        let mut child = Process::start(&mut command);
        child.await_file(&directory.join("ready"), LIMIT);
        child.signal(Signal::INT);
        child.await_end(LIMIT).code()
    }

    #[test]
    fn a_signal_removes_a_partial_file_that_has_a_name() {
        if let Some(directory) = std::env::var_os(CHILD) {
            let directory = Path::new(&directory);
            listen(false).unwrap();
            let _partial = create_partial(|| NamedTempFile::new_in(directory)).unwrap();
            std::fs::write(directory.join("ready"), "").unwrap();
            let (_keep, never) = std::sync::mpsc::channel::<()>();
            let _ = never.recv_timeout(LIMIT);
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let test = "interrupt::tests::a_signal_removes_a_partial_file_that_has_a_name";
        assert_eq!(interrupted(test, directory.path()), Some(130));
        let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn a_step_that_must_not_be_cut_is_ended_first() {
        if let Some(directory) = std::env::var_os(CHILD) {
            let directory = Path::new(&directory);
            listen(false).unwrap();
            uninterrupted(|| {
                std::fs::write(directory.join("ready"), "").unwrap();
                // The signal comes now, and is told once the step ends.
                let (_keep, never) = std::sync::mpsc::channel::<()>();
                let _ = never.recv_timeout(Duration::from_millis(300));
                std::fs::write(directory.join("whole"), "").unwrap();
            });
            let (_keep, never) = std::sync::mpsc::channel::<()>();
            let _ = never.recv_timeout(LIMIT);
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let test = "interrupt::tests::a_step_that_must_not_be_cut_is_ended_first";
        assert_eq!(interrupted(test, directory.path()), Some(130));
        assert!(directory.path().join("whole").exists());
    }
}
