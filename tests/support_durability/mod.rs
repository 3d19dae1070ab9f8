//! The real server's system calls: a dev server under strace, and what its trace says about answers and disks.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test support: a failure here is a failed test"
)]

pub mod calls;
pub mod sockets;
pub mod threads;

use std::path::Path;
use std::process::Command;

use kms_testkit::Process;
use tempfile::TempDir;

use crate::strace::{Call, Effect, parse};
use crate::support_dev::{DevServer, LIMIT, dev_command, forget_ready};
use sockets::Connection;
use threads::Touch;

/// The calls that are traced. `recvfrom` tells where a request begins.
const CALLS: &str = "openat,close,lseek,read,write,pwrite64,writev,pwritev,sendto,sendmsg,recvfrom,fsync,fdatasync,\
                     ftruncate,fallocate,unlink,unlinkat";

/// A dev server under strace.
#[derive(Debug)]
pub struct Traced {
    pub server: DevServer,
    pid: String,
    home: TempDir,
}

/// What a server did until it ended.
#[derive(Debug)]
pub struct Trace {
    pub calls: Vec<Call>,
    pub connections: Vec<Connection>,
    pub touches: Vec<Touch>,
    /// Names of the threads that have one.
    pub threads: Vec<String>,
    /// CKA_ID of root `wrap`, as the store has it.
    pub root_id: Vec<u8>,
}

impl Traced {
    /// Starts a server on a new directory.
    pub fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("dev");
        forget_ready(&directory);
        let plain = dev_command(&directory);
        let mut strace = Command::new("strace");
        strace.args(["-f", "-y", "-xx", "-s", "4000000", "-e"]);
        strace.arg(format!("trace={CALLS},{}", threads::CALLS));
        strace.arg("-o").arg(home.path().join("trace")).arg(plain.get_program());
        strace.args(plain.get_args()).env_remove("SOFTHSM2_CONF");
        let server = DevServer::ready(Process::start(&mut strace), &directory);
        let ready = std::fs::read_to_string(directory.join("ready.json")).unwrap();
        let ready: serde_json::Value = serde_json::from_str(&ready).unwrap();
        Self { server, pid: ready["pid"].to_string(), home }
    }

    /// Ends the server and reads what it did.
    pub fn end(mut self) -> Trace {
        let root_id = root_id(&self.home.path().join("dev"));
        self.signal("-TERM");
        assert_eq!(self.server.process.await_end(LIMIT).code(), Some(0));
        let text = std::fs::read_to_string(self.home.path().join("trace")).unwrap();
        let (touches, threads) = threads::touches(&text);
        let (calls, connections) = (parse(&for_files(&text)), sockets::connections(&text));
        Trace { calls, connections, touches, threads, root_id }
    }

    /// strace does not pass signals on: they go to the server itself.
    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.pid]).output();
        assert!(sent.unwrap().status.success(), "kill {signal} {}", self.pid);
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // A server outlives a strace that is killed; after `end` there is none any more, and its number is not reused.
        if std::thread::panicking() {
            let _ = Command::new("kill").args(["-KILL", &self.pid]).output();
        }
    }
}

/// Reads the CKA_ID of root `wrap` in a running server's store.
fn root_id(directory: &Path) -> Vec<u8> {
    let store = walk(directory).into_iter().find(|path| path.ends_with("store.db")).unwrap();
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let store = rusqlite::Connection::open_with_flags(store, flags).unwrap();
    store.query_row("SELECT wrap_id FROM roots", [], |row| row.get(0)).unwrap()
}

/// Returns the files below a directory.
fn walk(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

/// Returns the name of the call in a line.
pub fn call_name(line: &str) -> Option<&str> {
    let text = line.trim_start().split_once(' ')?.1.trim_start();
    text.trim_start_matches("<... ").split(['(', ' ']).next().filter(|name| !name.is_empty())
}

/// Blanks the lines that say nothing of what files hold, so that the others keep their numbers.
fn for_files(trace: &str) -> String {
    let other = |line: &str| {
        let call = call_name(line);
        call.is_some_and(|call| {
            threads::CALLS.split(',').chain(sockets::CALLS).any(|it| it == call)
        })
    };
    trace.lines().map(|line| if other(line) { "" } else { line }).collect::<Vec<_>>().join("\n")
}

/// Returns whether a path is a file of the audit log.
pub fn is_log(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "jsonl")
}

/// Returns whether a path is the write-ahead log of the store.
pub fn is_wal(path: &Path) -> bool {
    path.ends_with("store.db-wal")
}

/// Returns whether a path lies in the token's directory.
pub fn is_token(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "tokens")
}

/// Returns how many log lines that are wanted a call writes.
fn lines(call: &Call, wanted: impl Fn(&str) -> bool) -> usize {
    match &call.effect {
        Effect::Write { path, data, .. } if is_log(path) => {
            String::from_utf8_lossy(data).lines().filter(|line| wanted(line)).count()
        }
        _ => 0,
    }
}

/// Returns whether a call writes a log line that is wanted.
pub fn writes(call: &Call, wanted: impl Fn(&str) -> bool) -> bool {
    lines(call, wanted) > 0
}

/// Returns the first answer, or other call, that began while fewer of the wanted log lines were durable than it needs.
///
/// `answers` are ticks with the number of lines that must be covered by a sync which was done before.
pub fn early_answer(
    calls: &[Call],
    wanted: impl Fn(&str) -> bool,
    answers: &[(usize, usize)],
) -> Option<usize> {
    let lines = |until: usize| -> usize {
        calls.iter().filter(|call| call.done < until).map(|call| lines(call, &wanted)).sum()
    };
    let syncs =
        calls.iter().filter(|call| matches!(&call.effect, Effect::Sync { path } if is_log(path)));
    let syncs: Vec<_> = syncs.map(|call| (call.done, lines(call.start))).collect();
    answers.iter().find_map(|(answer, needed)| {
        let done = syncs.iter().filter(|(done, _)| done < answer).map(|(_, lines)| *lines);
        (done.max().unwrap_or(0) < *needed).then_some(*answer)
    })
}

/// Returns the files that were written between two ticks and not synced after it before the second, and the directories
/// that got a name and were not synced.
pub fn unsynced(
    calls: &[Call],
    ours: impl Fn(&Call) -> bool,
    from: usize,
    until: usize,
) -> Vec<std::path::PathBuf> {
    let inside = |call: &&Call| from < call.start && call.start < until;
    let synced = |after: usize, wanted: &Path| {
        calls.iter().any(|call| {
            let done = after < call.start && call.done < until;
            done && matches!(&call.effect, Effect::Sync { path } if path == wanted)
        })
    };
    let mut found = vec![];
    for call in calls.iter().filter(inside).filter(|call| ours(call)) {
        let path = match &call.effect {
            Effect::Write { path, .. } | Effect::SetLength { path, .. } => path.clone(),
            Effect::Open { path, create: true, .. } => path.parent().unwrap().to_owned(),
            _ => continue,
        };
        if !synced(call.done, &path) {
            found.push(path);
        }
    }
    found
}
