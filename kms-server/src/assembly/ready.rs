//! The file that says that the server is ready, where, and how long it took.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kms_core::clock::Timestamp;
use serde::Serialize;

/// A file that is there while the server is ready; put in its place whole, removed at the end.
#[derive(Debug)]
pub struct ReadyFile(PathBuf);

#[derive(Serialize)]
struct Content {
    pid: u32,
    /// With the pid, which may come again, it names the process.
    started_unix_ms: i64,
    listen: SocketAddr,
    admin: SocketAddr,
    token_login_ms: u128,
    ready_ms: u128,
}

impl ReadyFile {
    /// Removes what an earlier process left.
    pub fn prepare(path: PathBuf) -> io::Result<Self> {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(Self(path)),
        }
    }

    /// Writes the file, at the time `now`.
    pub fn write(
        &self,
        now: Timestamp,
        listen: SocketAddr,
        admin: SocketAddr,
        token_login: Duration,
        ready: Duration,
    ) -> io::Result<()> {
        let content = Content {
            pid: std::process::id(),
            started_unix_ms: started(now, ready),
            listen,
            admin,
            token_login_ms: token_login.as_millis(),
            ready_ms: ready.as_millis(),
        };
        let text = serde_json::to_string(&content).map_err(io::Error::other)?;
        replace(&self.0, &format!("{text}\n"))
    }
}

/// Returns when a process started that was ready `now`, after `ready`; in milliseconds since 1970.
fn started(now: Timestamp, ready: Duration) -> i64 {
    now.as_unix_ms().saturating_sub(i64::try_from(ready.as_millis()).unwrap_or(i64::MAX))
}

impl Drop for ReadyFile {
    fn drop(&mut self) {
        // A file that stays says that a process was ready which is no more; the pid in it tells.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Puts a file in its place whole: readers see the old one or the new one.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let side = path.with_extension("tmp");
    let mut file = std::fs::File::create(&side)?;
    file.write_all(text.as_bytes())?;
    drop(file);
    std::fs::rename(side, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_before_the_moment_of_readiness_by_what_it_took() {
        let now = Timestamp::from_unix_ms(1_700_000_000_500);
        assert_eq!(started(now, Duration::from_millis(500)), 1_700_000_000_000);
        assert_eq!(started(now, Duration::ZERO), 1_700_000_000_500);
    }
}
