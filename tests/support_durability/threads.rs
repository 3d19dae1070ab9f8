//! Which threads of a traced server touch files: every call that names one, also those that change nothing or fail,
//! because each of them may block.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::{call_name, is_log, is_token};
use crate::strace::unhex;

/// Calls that are traced only to see who makes them. `prctl` is how threads get their names.
pub const CALLS: &str = "prctl,pread64,fcntl,statx,newfstatat,rename,renameat,renameat2";
/// Name of the threads that serve requests.
pub const SERVING: &str = "serve";
/// Threads that write what is no log, store, journal or token: standard output and error.
const SPEAKERS: [&str; 2] = ["log", "banner"];
/// Calls that name their file by a path.
const BY_PATH: [&str; 8] =
    ["openat", "statx", "newfstatat", "unlink", "unlinkat", "rename", "renameat", "renameat2"];
/// Calls that only look.
const LOOKS: [&str; 7] = ["close", "lseek", "read", "pread64", "fcntl", "statx", "newfstatat"];

/// One call that names a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touch {
    /// When it began.
    pub start: usize,
    /// Name of the thread, or its number where it has none.
    pub thread: String,
    /// Name of the call.
    pub call: String,
    /// Whether it changes the file, or opens it to do so.
    pub writes: bool,
    pub path: PathBuf,
}

impl Touch {
    /// Returns whether the thread is one that such files are left to while requests are served.
    pub fn belongs(&self) -> bool {
        let starts = |owner: &str| self.thread.starts_with(owner);
        if is_log(&self.path) {
            starts("audit-write")
        } else if is_store(&self.path) {
            starts("store-")
        } else if is_journal(&self.path) {
            starts("journal-write")
        } else if is_token(&self.path) {
            starts("hsm-")
        } else {
            !self.writes || SPEAKERS.contains(&self.thread.as_str())
        }
    }
}

/// Returns whether a path is the database or one of its companions.
pub fn is_store(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with("store.db"))
}

/// Returns whether a path is the state journal.
pub fn is_journal(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "journal")
}

/// Reads the touches from a trace made with `-f -y -xx`, and the names of all threads that have one.
pub fn touches(trace: &str) -> (Vec<Touch>, Vec<String>) {
    let mut names: HashMap<&str, String> = HashMap::new();
    let mut found = vec![];
    for (start, line) in trace.lines().enumerate() {
        // What a call names stands in its first line.
        let Some(call) = call_name(line).filter(|_| !line.contains("<... ")) else { continue };
        let Some((_, arguments)) = line.split_once('(') else { continue };
        let thread = line.trim_start().split(' ').next().unwrap();
        if call == "prctl" {
            if let Some(name) = arguments.strip_prefix("PR_SET_NAME, ") {
                names.insert(thread, text(name.trim_start_matches('"')));
            }
            continue;
        }
        let Some(path) = path(call, arguments) else { continue };
        let opens =
            call == "openat" && !arguments.contains("O_WRONLY") && !arguments.contains("O_RDWR");
        let writes = !opens && !LOOKS.contains(&call);
        let thread = names.get(thread).cloned().unwrap_or_else(|| thread.to_owned());
        found.push(Touch { start, thread, call: call.to_owned(), writes, path });
    }
    (found, names.into_values().collect())
}

/// Returns the path of what a call works on, when it is a file.
fn path(call: &str, arguments: &str) -> Option<PathBuf> {
    let quoted = arguments.split_once('"').filter(|_| BY_PATH.contains(&call));
    let quoted = quoted.map(|(_, rest)| text(rest)).filter(|path| !path.is_empty());
    let described = || arguments.split_once('<').map(|(_, rest)| text(rest));
    let path = quoted.or_else(described)?;
    path.starts_with('/').then(|| path.into())
}

/// Decodes what stands before the next quote or bracket.
fn text(coded: &str) -> String {
    let coded = coded.split(['"', '>']).next().unwrap();
    String::from_utf8(unhex(coded).unwrap()).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_touch_has_the_name_that_its_thread_has_then() {
        let trace = "\
            7 openat(AT_FDCWD<\\x2f>, \"\\x2f\\x61\", O_RDWR|O_CREAT, 0600) = 3<\\x2f\\x61>\n\
            8 prctl(PR_SET_NAME, \"\\x6c\\x6f\\x67\" <unfinished ...>\n\
            8 <... prctl resumed>) = 0\n\
            8 fdatasync(3<\\x2f\\x61> <unfinished ...>\n\
            7 write(5<socket:[12]>, \"\\x2f\", 1) = 1\n\
            8 <... fdatasync resumed>) = 0\n\
            8 newfstatat(3<\\x2f\\x62>, \"\", 0x7f, AT_EMPTY_PATH) = -1 ENOENT (No such file)\n\
            8 write(6<anon_inode:[eventfd]>, \"\\x01\", 8) = 8\n\
            7 openat(AT_FDCWD<\\x2f>, \"\\x2f\\x61\", O_RDONLY|O_CLOEXEC) = 3<\\x2f\\x61>\n";
        let (found, names) = touches(trace);
        let short = |touch: &Touch| {
            let path = touch.path.to_str().unwrap().to_owned();
            (touch.start, touch.thread.clone(), touch.call.clone(), touch.writes, path)
        };
        let touch = |start, thread: &str, call: &str, writes, path: &str| {
            (start, thread.to_owned(), call.to_owned(), writes, path.to_owned())
        };
        let expected = [
            touch(0, "7", "openat", true, "/a"),
            touch(3, "log", "fdatasync", true, "/a"),
            touch(6, "log", "newfstatat", false, "/b"),
            touch(8, "7", "openat", false, "/a"),
        ];
        assert_eq!(found.iter().map(short).collect::<Vec<_>>(), expected);
        assert_eq!(names, ["log"]);
    }

    #[test]
    fn files_belong_to_their_threads() {
        for (thread, path, writes, belongs) in [
            ("audit-write", "/d/audit/audit-00000001.jsonl", true, true),
            ("store-write", "/d/audit/audit-00000001.jsonl", true, false),
            ("store-read-0", "/d/store.db-shm", false, true),
            ("serve", "/d/store.db-shm", false, false),
            ("hsm-keeper", "/d/tokens/t/k.object", true, true),
            ("serve", "/d/tokens/t/k.object", false, false),
            ("journal-write", "/d/journal", true, true),
            ("store-write", "/d/journal", true, false),
            ("serve", "/d/journal", false, false),
            ("log", "/d/stderr", true, true),
            ("serve", "/d/stderr", true, false),
            ("store-read-0", "/etc/localtime", false, true),
        ] {
            let (thread, call, path) = (thread.to_owned(), "c".to_owned(), PathBuf::from(path));
            let touch = Touch { start: 0, thread, call, writes, path };
            assert_eq!(touch.belongs(), belongs, "{touch:?}");
        }
    }
}
