//! The file that says that the server is ready, where, and how long it took.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

/// A file that is there while the server is ready; put in its place whole, removed at the end.
#[derive(Debug)]
pub struct ReadyFile(PathBuf);

#[derive(Serialize)]
struct Content {
    pid: u32,
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

    /// Writes the file.
    pub fn write(
        &self,
        listen: SocketAddr,
        admin: SocketAddr,
        token_login: Duration,
        ready: Duration,
    ) -> io::Result<()> {
        let content = Content {
            pid: std::process::id(),
            listen,
            admin,
            token_login_ms: token_login.as_millis(),
            ready_ms: ready.as_millis(),
        };
        let text = serde_json::to_string(&content).map_err(io::Error::other)?;
        replace(&self.0, &format!("{text}\n"))
    }
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
