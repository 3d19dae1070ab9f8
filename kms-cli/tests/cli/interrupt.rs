//! SIGINT and SIGTERM in the middle of each kind of work: the exit code, and that nothing is left.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use kms_testkit::deadline::eventually;
use rustix::process::{Pid, Signal, kill_process};

use super::common::command;
use super::online::{World, add_context};

/// How long anything may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(30);

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Sends the signal, awaits the end, and returns the exit code and stderr.
fn interrupted(mut child: Child, signal: Signal) -> (Option<i32>, String) {
    let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
    kill_process(pid, signal).unwrap();
    let stdin = child.stdin.take();
    eventually(LIMIT, "the end of kms", || child.try_wait().unwrap().is_some());
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// Starts `kms` and feeds it `input`, which is more than a pipe holds: when this returns, it has begun to read.
fn fed(world: &World, args: &[&str], input: &[u8]) -> Child {
    let mut child = command(world.home.path(), args).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(input).unwrap();
    child
}

#[test]
fn a_seal_that_is_interrupted_leaves_no_file() {
    let world = World::new();
    fs::write(world.path("old.age"), "before").unwrap();
    let before = names(world.home.path());
    for (signal, out) in [(Signal::INT, "new.age"), (Signal::TERM, "old.age")] {
        let args = ["seal", "--key", "k", "--out", out, "--force"];
        let (code, stderr) = interrupted(fed(&world, &args, &vec![7; 1 << 20]), signal);
        assert_eq!((code, stderr.as_str()), (Some(130), "error: INTERRUPTED: interrupted\n"));
        assert_eq!(names(world.home.path()), before);
        assert_eq!(fs::read(world.path("old.age")).unwrap(), b"before");
    }
}

#[test]
fn an_open_that_is_interrupted_leaves_no_plaintext() {
    let world = World::new();
    assert_eq!(world.kms(&["seal", "--key", "k", "--out", "f.age"], &vec![7; 1 << 20]).code, 0);
    let sealed = fs::read(world.path("f.age")).unwrap();
    let before = names(world.home.path());
    let args = ["open", "--out", "plain", "--output", "json"];
    let (code, stderr) = interrupted(fed(&world, &args, &sealed[..1 << 20]), Signal::TERM);
    assert_eq!(code, Some(130));
    let error: serde_json::Value = serde_json::from_str(&stderr).unwrap();
    assert_eq!(error["error"]["reason"], "INTERRUPTED");
    assert_eq!(names(world.home.path()), before);
}

#[test]
fn a_reader_that_does_not_read_does_not_keep_kms_from_ending() {
    let world = World::new();
    let mut child = command(world.home.path(), &["seal", "--key", "k"]).spawn().unwrap();
    // Both pipes are full when nothing is taken any more, so the input is written by another thread.
    let mut stdin = child.stdin.take().unwrap();
    let feeder = std::thread::spawn(move || {
        // It fails when kms has ended.
        let _ = stdin.write_all(&vec![7; 1 << 24]);
    });
    eventually(LIMIT, "the wrapping of the file key", || world.fake.script().calls > 0);
    let (code, _) = interrupted(child, Signal::INT);
    assert_eq!(code, Some(130));
    feeder.join().unwrap();
}

#[test]
fn an_answer_that_does_not_come_does_not_keep_kms_from_ending() {
    let world = World::new();
    let sealed = world.kms(&["seal", "--key", "k"], b"x").stdout;
    fs::write(world.path("f.age"), &sealed).unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    add_context(world.home.path(), "silent", &world.pki, &silent.local_addr().unwrap().to_string());
    for args in [&["reseal", "f.age"][..], &["random", "9", "--out", "f"]] {
        let args = [args, &["--context", "silent"]].concat();
        let child = command(world.home.path(), &args).spawn().unwrap();
        let (_connection, _) = silent.accept().unwrap();
        let (code, _) = interrupted(child, Signal::TERM);
        assert_eq!(code, Some(130), "{args:?}");
        assert!(!world.path("f").exists());
        assert_eq!(fs::read(world.path("f.age")).unwrap(), sealed);
    }
}

#[test]
fn a_change_that_is_interrupted_is_told_with_how_to_repeat_it() {
    let world = World::new();
    world.fake.script().silent = true;
    let update = &["key", "update", "k", "--owner", "o"][..];
    for (words, more) in [(&["key", "rotate", "k"][..], ""), (update, " --revision 7")] {
        for json in [false, true] {
            world.fake.script().request_ids.clear();
            let form = if json { "json" } else { "table" };
            let words = [words, &["--output", form, "--timeout", "60s"]].concat();
            let child = command(world.home.path(), &words).spawn().unwrap();
            eventually(LIMIT, "the change", || !world.fake.script().request_ids.is_empty());
            let (code, stderr) = interrupted(child, Signal::INT);
            assert_eq!(code, Some(130), "{stderr}");
            let sent = world.fake.script().request_ids.remove(0);
            if json {
                let told: serde_json::Value = serde_json::from_str(&stderr).unwrap();
                assert_eq!(told["error"]["request_id"], *sent, "{stderr}");
                continue;
            }
            let told = format!(
                "error: INTERRUPTED: interrupted; the change may have been made\n  repeat the command \
                 with --request-id {sent}{more}: within 24 hours"
            );
            assert!(stderr.starts_with(&told), "{stderr}");
        }
    }
}
