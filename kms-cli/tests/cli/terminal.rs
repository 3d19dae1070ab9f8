//! What is different on a terminal: the progress bar, tables and text forms, and what is refused there.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Command, Stdio};

use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::common::command;
use super::online::World;

/// Enough for the bar to be drawn.
const PLAINTEXT_MIB: usize = 32;

/// Items of a file, likewise.
const ITEMS: usize = 3_000;

/// Opens a terminal: our end, and the program's.
fn terminal() -> (File, File) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap().into_string().unwrap();
    let mut options = File::options();
    let no_control = OFlags::NOCTTY.bits().cast_signed();
    let theirs = options.read(true).write(true).custom_flags(no_control).open(name).unwrap();
    (File::from(ours), theirs)
}

/// Runs `kms` on a terminal; returns its exit code and all that the terminal was given.
fn on_terminal(world: &World, args: &[&str], stdin: Option<&str>) -> (Option<i32>, String) {
    let stdin = stdin.map(|name| File::open(world.path(name)).unwrap().into());
    with_stdin(world, args, stdin)
}

/// As [`on_terminal`]; the terminal is stdin, too, where none is given.
fn with_stdin(world: &World, args: &[&str], stdin: Option<Stdio>) -> (Option<i32>, String) {
    let (mut ours, theirs) = terminal();
    let end = || Stdio::from(OwnedFd::from(theirs.try_clone().unwrap()));
    let mut kms: Command = command(world.home.path(), args);
    kms.env("TERM", "xterm").stdout(end()).stderr(end());
    kms.stdin(stdin.unwrap_or_else(end));
    let mut child = kms.spawn().unwrap();
    // Only the program's ends are left: reading fails once it has ended.
    drop((kms, theirs));
    let mut shown = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = ours.read(&mut buffer) {
        shown.extend_from_slice(&buffer[..length]);
    }
    (child.wait().unwrap().code(), String::from_utf8_lossy(&shown).into_owned())
}

#[test]
fn a_seal_on_a_terminal_shows_a_bar_and_a_table() {
    let world = World::new();
    std::fs::write(world.path("plain"), vec![7; PLAINTEXT_MIB << 20]).unwrap();
    let seal = ["seal", "--key", "k", "--in", "plain", "--out", "f.age", "--force"];
    let (code, shown) = on_terminal(&world, &seal, None);
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains(&format!("/{PLAINTEXT_MIB}.00 MiB")), "no bar: {shown:?}");
    assert!(shown.contains("Key version") && !shown.contains('{'), "{shown:?}");
    let (_, shown) = on_terminal(&world, &[&seal[..], &["--quiet"]].concat(), None);
    assert!(!shown.contains("MiB"), "{shown:?}");
}

/// Runs `kms` on a terminal, with what `cat` gives of a file piped in.
fn piped(world: &World, args: &[&str], name: &str) -> (Option<i32>, String) {
    let mut cat = Command::new("cat");
    let mut cat = cat.arg(world.path(name)).stdout(Stdio::piped()).spawn().unwrap();
    let pipe = cat.stdout.take().unwrap();
    let run = with_stdin(world, args, Some(pipe.into()));
    // After a refusal nobody reads on: then it ends by SIGPIPE.
    cat.wait().unwrap();
    run
}

#[test]
fn a_seal_or_open_of_a_pipe_shows_bytes_and_rate_on_a_terminal() {
    let world = World::new();
    std::fs::write(world.path("plain"), vec![7; PLAINTEXT_MIB << 20]).unwrap();
    let seal = &["seal", "--key", "k", "--out", "f.age", "--force"][..];
    let open = &["open", "--out", "opened", "--force"][..];
    for (words, input) in [(seal, "plain"), (open, "f.age")] {
        let (code, shown) = piped(&world, words, input);
        assert_eq!(code, Some(0), "{shown}");
        assert!(shown.contains(" MiB ") && shown.contains(" MiB/s"), "no spinner: {shown:?}");
        assert!(!shown.contains(&format!("/{PLAINTEXT_MIB}.")), "of no length: {shown:?}");
        let (code, shown) = piped(&world, &[words, &["--quiet"]].concat(), input);
        assert!(code == Some(0) && !shown.contains("MiB"), "{shown:?}");
    }
}

#[test]
fn a_ciphertext_is_text_on_a_terminal_and_a_plaintext_is_not_shown_there() {
    let world = World::new();
    std::fs::write(world.path("plain"), "s3cret").unwrap();
    let (code, shown) = on_terminal(&world, &["wrap", "--key", "k"], Some("plain"));
    assert_eq!(code, Some(0));
    assert!(shown.starts_with("hfenv1:"), "{shown:?}");
    std::fs::write(world.path("wrapped"), shown.trim()).unwrap();
    let (code, shown) = on_terminal(&world, &["unwrap", "--key", "k"], Some("wrapped"));
    assert_eq!(code, Some(2));
    assert!(!shown.contains("s3cret"), "{shown:?}");
    let asked = ["unwrap", "--key", "k", "--out", "-"];
    assert_eq!(on_terminal(&world, &asked, Some("wrapped")), (Some(0), "s3cret".into()));
    let (code, shown) = on_terminal(&world, &["seal", "--key", "k"], Some("plain"));
    assert_eq!(code, Some(2));
    assert!(shown.contains("a sealed file is binary"), "{shown:?}");
}

#[test]
fn an_input_is_not_awaited_from_a_terminal_that_nobody_asked_for() {
    let world = World::new();
    for args in [
        &["wrap", "--key", "k", "--out", "f"][..],
        &["seal", "--key", "k", "--out", "f"],
        &["open", "--out", "f"],
    ] {
        let (code, shown) = on_terminal(&world, args, None);
        assert_eq!(code, Some(2), "{args:?}");
        assert!(shown.contains("nothing is piped in"), "{shown:?}");
        assert!(!world.path("f").exists());
    }
}

#[test]
fn a_rewrap_of_a_file_on_a_terminal_shows_a_bar_of_items_and_a_table() {
    let world = World::new();
    let content = super::rewrap_file::text("a", 1) + "\n";
    std::fs::write(world.path("in"), content.repeat(ITEMS)).unwrap();
    let rewrap =
        ["rewrap-file", "--key", "k", "--in", "in", "--format", "lines", "--out", "out", "--force"];
    let (code, shown) = on_terminal(&world, &rewrap, None);
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains(&format!("/{ITEMS} ")), "no bar: {shown:?}");
    assert!(shown.contains("rewrapped") && !shown.contains('{'), "{shown:?}");
    let (_, shown) = on_terminal(&world, &[&rewrap[..], &["--quiet"]].concat(), None);
    assert!(!shown.contains(&format!("/{ITEMS}")), "{shown:?}");
}
