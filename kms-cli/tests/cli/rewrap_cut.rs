//! `kms rewrap-file` that is killed, or finds what another run left.

use std::fs;
use std::io::Write as _;
use std::process::Child;
use std::time::Duration;

use kms_testkit::deadline::eventually;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::common::{Run, command};
use super::online::World;
use super::rewrap_file::{names, rewrap, text};

/// How long anything may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(30);
/// Items of the file that is cut.
pub(crate) const ITEMS: usize = 200;
/// Batches that are answered before the cut: one checkpoint, and some that it does not know of.
const ANSWERED: usize = 11;
/// Lines of 1 MB, of which no more than some are ever held.
const LONG_LINES: usize = 150;
/// The most memory that they may take, in KiB: four stretches before and after, and the program.
const MAX_RESIDENT_KIB: u64 = 80 << 10;
pub(crate) const ARGS: [&str; 6] = ["--format", "lines", "--out", "out", "--batch-size", "10"];

pub(crate) fn content(version: u32) -> String {
    // Lengths differ, so that a place that is wrong shows.
    let item = |n: usize| text(&"x".repeat(1 + n % 7), version) + "\n";
    (0..ITEMS).map(item).collect()
}

pub(crate) fn checkpoint(world: &World, output: &str) -> Option<Value> {
    let text = fs::read(world.path(&format!("{output}.kms-rewrap.json"))).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Runs until a checkpoint says that some of the file is done.
fn under_way(world: &World, args: &[&str], output: &str) -> Child {
    world.fake.script().answered_batches = Some(ANSWERED);
    let args = [&["rewrap-file", "--key", "k", "--in", "in"], args].concat();
    let child = command(world.home.path(), &args).spawn().unwrap();
    eventually(LIMIT, "a checkpoint", || {
        checkpoint(world, output).is_some_and(|state| state["input_offset"] != json!(0))
    });
    child
}

/// Runs until then, and kills it as kill -9 does.
pub(crate) fn cut(world: &World, args: &[&str], output: &str) {
    fs::write(world.path("in"), content(1)).unwrap();
    let mut child = under_way(world, args, output);
    child.kill().unwrap();
    child.wait().unwrap();
    let mut script = world.fake.script();
    script.answered_batches = None;
    script.batches.clear();
}

pub(crate) fn again(world: &World, args: &[&str]) -> Run {
    world.kms(&[&["rewrap-file", "--key", "k", "--in", "in"], args].concat(), b"")
}

pub(crate) fn reason(run: &Run) -> &str {
    run.stderr.strip_prefix("error: ").unwrap().split(':').next().unwrap()
}

#[test]
fn a_run_that_is_killed_goes_on_and_makes_exactly_the_expected_file() {
    let world = World::new();
    cut(&world, &ARGS, "out");
    assert_eq!(names(&world), ["in", "out.kms-rewrap", "out.kms-rewrap.json"]);
    // What a crash may leave after the last checkpoint.
    let partial = world.path("out.kms-rewrap");
    let mut torn = fs::read(&partial).unwrap();
    torn.extend_from_slice(b"hfenv1:torn");
    fs::write(&partial, torn).unwrap();
    let done = checkpoint(&world, "out").unwrap()["tally"]["items"].as_u64().unwrap();
    let run = again(&world, &[&ARGS[..], &["--resume", "--output", "json"]].concat());
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(fs::read_to_string(world.path("out")).unwrap() == content(2));
    assert_eq!((&run.json()["rewrapped"], &run.json()["resumed"]), (&json!(ITEMS), &json!(true)));
    let sent: usize = world.fake.script().batches.iter().sum();
    assert!(done > 0 && sent as u64 == ITEMS as u64 - done, "{done} were done, {sent} sent");
    assert_eq!(names(&world), ["in", "out"]);
}

#[test]
fn a_run_that_is_interrupted_keeps_what_is_done_and_another_one_waits_for_neither() {
    let world = World::new();
    fs::write(world.path("in"), content(1)).unwrap();
    let child = under_way(&world, &ARGS, "out");
    let busy = again(&world, &ARGS);
    assert_eq!((busy.code, reason(&busy)), (6, "BUSY"), "{}", busy.stderr);
    let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
    assert_eq!(names(&world), ["in", "out.kms-rewrap", "out.kms-rewrap.json"]);
    world.fake.script().answered_batches = None;
    let run = again(&world, &ARGS);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(fs::read_to_string(world.path("out")).unwrap() == content(2));
}

#[test]
fn an_input_that_is_written_to_meanwhile_is_not_replaced() {
    let world = World::new();
    let input = world.path("in");
    let more = text("more", 1) + "\n";
    let mut appended = Some(more.clone());
    world.fake.script().on_batch = Some(Box::new(move || {
        if let Some(more) = appended.take() {
            let mut file = fs::File::options().append(true).open(&input).unwrap();
            file.write_all(more.as_bytes()).unwrap();
        }
    }));
    let args = ["--format", "lines", "--in-place"];
    let run = rewrap(&world, content(1), &args);
    assert_eq!(run.code, 6, "{}", run.stderr);
    assert!(run.stderr.contains("INPUT_CHANGED"), "{}", run.stderr);
    assert!(fs::read_to_string(world.path("in")).unwrap() == content(1) + &more);
    // Nobody writes to it now.
    let run = again(&world, &args);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(fs::read_to_string(world.path("in")).unwrap() == content(2) + &text("more", 2) + "\n");
}

#[test]
fn memory_is_bounded_whatever_the_length_of_file_and_lines() {
    let world = World::new();
    let line = format!("{{\"s\":\"{}\",\"x\":\"{}\"}}\n", text("a", 1), "y".repeat(1_000_000));
    let mut file = fs::File::create(world.path("in")).unwrap();
    (0..LONG_LINES).for_each(|_| file.write_all(line.as_bytes()).unwrap());
    let args = ["--format", "jsonl", "--field", "s", "--out", "out", "--batch-size", "1000"];
    // Five lines are a stretch. It stands still when most of the file is done.
    world.fake.script().answered_batches = Some(LONG_LINES / 5 - 6);
    let all = [&["rewrap-file", "--key", "k", "--in", "in"], &args[..]].concat();
    let mut child = command(world.home.path(), &all).spawn().unwrap();
    eventually(LIMIT, "most of the file", || {
        checkpoint(&world, "out")
            .is_some_and(|state| state["lines"].as_u64() > Some(LONG_LINES as u64 / 2))
    });
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    assert!(peak < MAX_RESIDENT_KIB, "{peak} KiB");
}

#[test]
fn a_run_in_place_that_is_killed_leaves_the_file_and_goes_on() {
    let world = World::new();
    let args = ["--format", "lines", "--in-place", "--batch-size", "10"];
    cut(&world, &args, "in");
    assert!(fs::read_to_string(world.path("in")).unwrap() == content(1));
    let run = again(&world, &args);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(fs::read_to_string(world.path("in")).unwrap() == content(2));
    assert_eq!(names(&world), ["in"]);
}

#[test]
fn a_csv_run_goes_on_with_the_column_that_the_header_names() {
    let world = World::new();
    let csv = |version| {
        let row = |n: usize| format!("\"row\n{n}\",{}\n", text(&format!("{n}"), version));
        format!("id,s\n{}", (0..ITEMS).map(row).collect::<String>())
    };
    let args = ["--format", "csv", "--column", "s", "--out", "out", "--batch-size", "10"];
    fs::write(world.path("in"), csv(1)).unwrap();
    let mut child = under_way(&world, &args, "out");
    child.kill().unwrap();
    child.wait().unwrap();
    world.fake.script().answered_batches = None;
    let run = again(&world, &args);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(fs::read_to_string(world.path("out")).unwrap() == csv(2));
}

#[test]
fn a_checkpoint_of_another_run_input_or_output_is_refused_and_dropped_when_told() {
    let world = World::new();
    cut(&world, &ARGS, "out");
    let before = checkpoint(&world, "out").unwrap();
    for (more, what) in [
        (&["--bind", "a=b"][..], "its --bind is another"),
        (&["--key", "other"], "it is for another key"),
    ] {
        let args: Vec<_> =
            ["rewrap-file", "--in", "in"].iter().chain(&ARGS).chain(more).copied().collect();
        let key: &[&str] = if more.contains(&"--key") { &[] } else { &["--key", "k"] };
        let run = world.kms(&[&args[..], key].concat(), b"");
        assert_eq!((run.code, reason(&run)), (6, "CHECKPOINT_FOREIGN"), "{}", run.stderr);
        assert!(run.stderr.contains(what) && run.stderr.contains("--restart"), "{}", run.stderr);
    }
    // Another input, whose beginning is not what was read.
    let run = rewrap(&world, content(1).replacen("hfenv1:", " hfenv1:", 1), &ARGS);
    assert_eq!((run.code, reason(&run)), (6, "CHECKPOINT_FOREIGN"), "{}", run.stderr);
    assert!(run.stderr.contains("the input is not what was read then"), "{}", run.stderr);
    // A partial file that is not what was written.
    let partial = world.path("out.kms-rewrap");
    let written = fs::read(&partial).unwrap();
    fs::write(&partial, &written[1..]).unwrap();
    let run = rewrap(&world, content(1), &ARGS);
    assert_eq!((run.code, reason(&run)), (6, "CHECKPOINT_FOREIGN"), "{}", run.stderr);
    assert_eq!(checkpoint(&world, "out").unwrap(), before);
    assert!(!world.path("out").exists());

    let run = rewrap(&world, content(1), &[&ARGS[..], &["--restart"]].concat());
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(fs::read_to_string(world.path("out")).unwrap() == content(2));
}

#[test]
fn a_checkpoint_that_is_none_is_refused() {
    let world = World::new();
    for left in ["{", "{}", ""] {
        fs::write(world.path("out.kms-rewrap.json"), left).unwrap();
        let run = rewrap(&world, content(1), &ARGS);
        assert_eq!((run.code, reason(&run)), (10, "CHECKPOINT_BROKEN"), "{}", run.stderr);
    }
    fs::remove_file(world.path("out.kms-rewrap.json")).unwrap();
    std::os::unix::fs::symlink("in", world.path("out.kms-rewrap.json")).unwrap();
    let run = rewrap(&world, content(1), &ARGS);
    assert_eq!(run.code, 10, "{}", run.stderr);
    assert_eq!(world.fake.script().calls, 0);
}

#[test]
fn what_is_appended_while_a_run_stands_still_is_done_when_it_goes_on() {
    let world = World::new();
    cut(&world, &ARGS, "out");
    let more = |version| content(version) + &text("more", version) + "\n";
    let run = rewrap(&world, more(1), &ARGS);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(fs::read_to_string(world.path("out")).unwrap() == more(2));
}

#[test]
fn a_run_that_was_cut_before_its_checkpoint_was_gone_is_finished() {
    let world = World::new();
    for named in ["partial", "both", "named"] {
        let _ = fs::remove_file(world.path("out"));
        complete(&world, &ARGS, "out");
        // The name was given, or not yet, or the file has both names.
        let partial = world.path("out.kms-rewrap");
        match named {
            "partial" => fs::rename(world.path("out"), &partial).unwrap(),
            "both" => fs::hard_link(world.path("out"), &partial).unwrap(),
            _ => {}
        }
        world.fake.script().batches.clear();
        let run = again(&world, &[&ARGS[..], &["--output", "json"]].concat());
        assert_eq!(run.code, 0, "{}", run.stderr);
        assert_eq!(
            (&run.json()["rewrapped"], &run.json()["resumed"]),
            (&json!(ITEMS), &json!(true))
        );
        assert!(world.fake.script().batches.is_empty());
        assert!(fs::read_to_string(world.path("out")).unwrap() == content(2));
        assert_eq!(names(&world), ["in", "out"]);
    }
}

/// Makes a run whose last checkpoint is still there, as it was just before the end.
pub(crate) fn complete(world: &World, args: &[&str], output: &str) {
    cut(world, &ARGS, "out");
    let state = checkpoint(world, "out").unwrap();
    for left in ["out.kms-rewrap", "out.kms-rewrap.json"] {
        fs::remove_file(world.path(left)).unwrap();
    }
    let run = rewrap(world, content(1), args);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let mut state = state;
    let whole = |version: u32| sha256(content(version).as_bytes());
    state["input_offset"] = json!(content(1).len());
    state["input_sha256"] = json!(whole(1));
    state["lines"] = json!(ITEMS);
    state["output_offset"] = json!(content(2).len());
    state["output_sha256"] = json!(whole(2));
    state["complete"] = json!(true);
    state["tally"]["items"] = json!(ITEMS);
    state["tally"]["rewrapped"] = json!(ITEMS);
    let path = world.path(&format!("{output}.kms-rewrap.json"));
    fs::write(path, serde_json::to_vec(&state).unwrap()).unwrap();
}

fn sha256(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    data_encoding::HEXLOWER.encode(digest.as_ref())
}
