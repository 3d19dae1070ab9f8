//! The system calls of a child process, as strace saw them: file writes, syncs and what it told the world.
//!
//! Ticks are line numbers of the trace. A call that strace shows in two lines (`unfinished`, `resumed`) begins at the
//! first and is done at the second; one that failed is left out, as it changed nothing (a short write counts as long as
//! it was).

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The calls that are traced.
const CALLS: &str = "openat,close,lseek,read,write,pwrite64,writev,pwritev,sendto,sendmsg,fsync,fdatasync,\
                     ftruncate,fallocate,unlink,unlinkat,rename,renameat,renameat2";

/// One call of the child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// When it began.
    pub start: usize,
    /// When it was done.
    pub done: usize,
    /// What it did.
    pub effect: Effect,
}

/// What a call did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Opened a file, perhaps making it.
    Open { path: PathBuf, create: bool, truncate: bool },
    /// Wrote to a file.
    Write { path: PathBuf, offset: u64, data: Vec<u8> },
    /// Set the length of a file.
    SetLength { path: PathBuf, length: u64 },
    /// Synced a file or directory.
    Sync { path: PathBuf },
    /// Removed a name.
    Unlink { path: PathBuf },
    /// Wrote to standard output.
    Told { data: Vec<u8> },
    /// Sent to a socket: `write`, `writev`, `sendto` or `sendmsg`.
    Sent { bytes: u64 },
}

/// Runs the test `name` of this binary in a child under strace, with `variable` set to `value`.
///
/// Its calls on files, standard output and sockets are returned in the order in which they began.
pub fn trace_test(name: &str, variable: &str, value: &Path) -> Vec<Call> {
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new("strace");
    command
        .args(["-f", "-y", "-xx", "-s", "4000000", "-e"])
        .arg(format!("trace={CALLS}"))
        .arg("-o")
        .arg(log.path());
    run_test(command, name, variable, value);
    parse(&std::fs::read_to_string(log.path()).unwrap())
}

/// Runs a test like [`trace_test`], while calls on the file `path` fail as `fault` says (strace's `inject`).
pub fn fail_test(name: &str, variable: &str, value: &Path, path: &Path, fault: &str) {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-P"]).arg(path).arg("-e");
    command.arg(format!("inject={fault}"));
    run_test(command, name, variable, value);
}

fn run_test(mut strace: Command, name: &str, variable: &str, value: &Path) {
    let output = strace
        .arg(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(variable, value)
        .stdin(Stdio::null())
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            panic!("strace is missing: apt-get install strace (dnf, apk: the same name)")
        }
        Err(error) => panic!("cannot run strace: {error}"),
    };
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success(), "`{name}` failed under strace:\n{text}");
    assert!(text.contains("1 passed"), "no test is called `{name}`:\n{text}");
}

/// Reads a trace made with `-f -y -xx`.
pub fn parse(trace: &str) -> Vec<Call> {
    let mut unfinished: HashMap<(&str, &str), (usize, String)> = HashMap::new();
    let mut positions: HashMap<String, u64> = HashMap::new();
    let mut calls = Vec::new();
    for (tick, line) in trace.lines().enumerate() {
        let Some((thread, rest)) = line.trim_start().split_once(' ') else { continue };
        let rest = rest.trim_start();
        let (start, text) = if let Some(resumed) = rest.strip_prefix("<... ") {
            let (name, tail) = resumed.split_once(" resumed>").unwrap();
            let Some((start, head)) = unfinished.remove(&(thread, name)) else { continue };
            (start, head + tail)
        } else if let Some(head) = rest.strip_suffix(" <unfinished ...>") {
            let name = head.split_once('(').unwrap().0;
            unfinished.insert((thread, name), (tick, head.to_owned()));
            continue;
        } else {
            (tick, rest.to_owned())
        };
        if let Some(effect) = effect(&text, &mut positions) {
            calls.push(Call { start, done: tick, effect });
        }
    }
    calls.sort_by_key(|call| call.start);
    calls
}

fn effect(text: &str, positions: &mut HashMap<String, u64>) -> Option<Effect> {
    let (name, rest) = text.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(" = ")?;
    let arguments = arguments.trim_end().strip_suffix(')')?;
    let result: u64 = result.split(['<', ' ']).next()?.parse().ok()?;
    let parts: Vec<&str> = arguments.split(", ").collect();
    let descriptor = parts.first()?;
    let path = || descriptor_path(descriptor);
    match name {
        "openat" => {
            let path = PathBuf::from(OsStr::new(&utf8(unquote(parts.get(1)?)?)));
            let flags = parts.get(2)?;
            let (create, truncate) = (flags.contains("O_CREAT"), flags.contains("O_TRUNC"));
            Some(Effect::Open { path, create, truncate })
        }
        "close" => {
            positions.remove(*descriptor);
            None
        }
        "lseek" => {
            positions.insert((*descriptor).to_owned(), result);
            None
        }
        "read" => {
            *positions.entry((*descriptor).to_owned()).or_default() += result;
            None
        }
        "write" if is_socket(descriptor) => Some(Effect::Sent { bytes: result }),
        "writev" | "sendto" | "sendmsg" if is_socket(descriptor) => {
            Some(Effect::Sent { bytes: result })
        }
        "write" => {
            let mut data = unquote(parts.get(1)?)?;
            data.truncate(usize::try_from(result).unwrap());
            if descriptor.starts_with("1<") {
                return Some(Effect::Told { data });
            }
            let position = positions.entry((*descriptor).to_owned()).or_default();
            let offset = *position;
            *position += result;
            Some(Effect::Write { path: path()?, offset, data })
        }
        "pwrite64" => {
            let mut data = unquote(parts.get(1)?)?;
            data.truncate(usize::try_from(result).unwrap());
            Some(Effect::Write { path: path()?, offset: parts.get(3)?.parse().ok()?, data })
        }
        "ftruncate" => {
            Some(Effect::SetLength { path: path()?, length: parts.get(1)?.parse().ok()? })
        }
        "fsync" | "fdatasync" => Some(Effect::Sync { path: path()? }),
        "unlink" => Some(Effect::Unlink { path: utf8(unquote(parts.first()?)?).into() }),
        "unlinkat" => Some(Effect::Unlink { path: utf8(unquote(parts.get(1)?)?).into() }),
        other => panic!("the trace has a call that the model does not know: {other}: {text:.200}"),
    }
}

fn is_socket(descriptor: &str) -> bool {
    descriptor_path(descriptor).is_some_and(|path| path.to_string_lossy().contains("socket:["))
}

/// `5<\x2f\x74>` names a path; strace appends `(deleted)` to those that have no name any more.
fn descriptor_path(descriptor: &str) -> Option<PathBuf> {
    let inner = descriptor.split_once('<')?.1.split_once('>')?.0;
    Some(utf8(unhex(inner)?).into())
}

fn unquote(text: &str) -> Option<Vec<u8>> {
    unhex(text.strip_prefix('"')?.strip_suffix('"').expect("strace shortened a string"))
}

/// Decodes a string as `-xx` shows it; one that has no such form is as it stands.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.starts_with("\\x") {
        return Some(text.as_bytes().to_vec());
    }
    text.split("\\x").skip(1).map(|byte| u8::from_str_radix(byte, 16).ok()).collect()
}

fn utf8(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

/// Checks that no answer left while a record that it depends on was not durable.
///
/// `log` says which files are the audit log. It goes through the trace of a server that served one request at a time:
/// `answers` are the ticks at which answers began to leave, in order. Before the n-th, at least n log lines must be
/// covered by a sync that was done. Returns the first answer that was too early.
pub fn answer_before_record(
    calls: &[Call],
    log: impl Fn(&Path) -> bool,
    answers: &[usize],
) -> Option<usize> {
    let mut syncs: Vec<(usize, usize)> = Vec::new();
    for call in calls {
        let Effect::Sync { path } = &call.effect else { continue };
        if log(path) {
            let lines = calls
                .iter()
                .filter(|write| write.done < call.start)
                .map(|write| match &write.effect {
                    Effect::Write { path, data, .. } if log(path) => {
                        data.split(|byte| *byte == b'\n').count() - 1
                    }
                    _ => 0,
                })
                .sum();
            syncs.push((call.done, lines));
        }
    }
    (1..).zip(answers).find_map(|(count, answer)| {
        let durable = syncs.iter().filter(|(done, _)| done < answer).map(|(_, lines)| *lines);
        (durable.max().unwrap_or(0) < count).then_some(*answer)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(start: usize, done: usize, effect: Effect) -> Call {
        Call { start, done, effect }
    }

    fn write(start: usize) -> Call {
        let data = b"one\n".to_vec();
        call(start, start + 1, Effect::Write { path: "log".into(), offset: 0, data })
    }

    fn sync(start: usize, done: usize) -> Call {
        call(start, done, Effect::Sync { path: "log".into() })
    }

    fn is_log(path: &Path) -> bool {
        path == Path::new("log")
    }

    #[test]
    fn an_answer_after_its_sync_is_in_order() {
        let calls = [write(0), sync(2, 4), write(6), sync(8, 10)];
        assert_eq!(answer_before_record(&calls, is_log, &[5, 11]), None);
    }

    #[test]
    fn an_answer_before_or_during_its_sync_is_found() {
        let calls = [write(0), sync(2, 4), write(6), sync(8, 10)];
        for early in [6, 7, 9] {
            assert_eq!(answer_before_record(&calls, is_log, &[5, early]), Some(early));
        }
    }

    #[test]
    fn a_sync_that_began_before_the_write_was_done_does_not_cover_it() {
        let calls = [write(0), sync(1, 4)];
        assert_eq!(answer_before_record(&calls, is_log, &[5]), Some(5));
    }

    #[test]
    fn calls_in_one_line_and_in_two_are_read_and_failed_ones_left_out() {
        let trace = "\
            7 openat(AT_FDCWD</x>, \"\\x2f\\x61\", O_RDWR|O_CREAT, 0600) = 3<\\x2f\\x61>\n\
            7 pwrite64(3<\\x2f\\x61>, \"\\x68\\x69\", 2, 4) = 2\n\
            8 fdatasync(3<\\x2f\\x61> <unfinished ...>\n\
            7 pwrite64(3<\\x2f\\x61>, \"\\x68\\x69\", 2, 6) = -1 ENOSPC (No space left on device)\n\
            8 <... fdatasync resumed>)              = 0\n\
            7 write(5<socket:[12]>, \"\\x00\", 1) = 1\n";
        let path = PathBuf::from("/a");
        let expected = [
            call(0, 0, Effect::Open { path: path.clone(), create: true, truncate: false }),
            call(1, 1, Effect::Write { path: path.clone(), offset: 4, data: b"hi".to_vec() }),
            call(2, 4, Effect::Sync { path }),
            call(5, 5, Effect::Sent { bytes: 1 }),
        ];
        assert_eq!(parse(trace), expected);
    }
}
