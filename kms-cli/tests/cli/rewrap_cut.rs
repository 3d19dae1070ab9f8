//! `kms rewrap-file` that is killed, or finds what another run left.

use std::fs;
use std::time::Duration;

use kms_testkit::deadline::eventually;
use serde_json::{Value, json};

use super::common::{Run, command};
use super::online::World;
use super::rewrap_file::{names, rewrap, text};

/// How long anything may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(30);
/// Items of the file that is cut.
const ITEMS: usize = 200;
/// Batches that are answered before the cut: one checkpoint, and some that it does not know of.
const ANSWERED: usize = 11;
const ARGS: [&str; 6] = ["--format", "lines", "--out", "out", "--batch-size", "10"];

fn content(version: u32) -> String {
    // Lengths differ, so that a place that is wrong shows.
    let item = |n: usize| text(&"x".repeat(1 + n % 7), version) + "\n";
    (0..ITEMS).map(item).collect()
}

fn checkpoint(world: &World, output: &str) -> Option<Value> {
    let text = fs::read(world.path(&format!("{output}.kms-rewrap.json"))).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Runs until a checkpoint says that some of the file is done, and then kills it as kill -9 does.
fn cut(world: &World, args: &[&str], output: &str) {
    fs::write(world.path("in"), content(1)).unwrap();
    world.fake.script().answered_batches = Some(ANSWERED);
    let args = [&["rewrap-file", "--key", "k", "--in", "in"], args].concat();
    let mut child = command(world.home.path(), &args).spawn().unwrap();
    eventually(LIMIT, "a checkpoint", || {
        checkpoint(world, output).is_some_and(|state| state["input_offset"] != json!(0))
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let mut script = world.fake.script();
    script.answered_batches = None;
    script.batches.clear();
}

fn again(world: &World, args: &[&str]) -> Run {
    world.kms(&[&["rewrap-file", "--key", "k", "--in", "in"], args].concat(), b"")
}

fn reason(run: &Run) -> &str {
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
    world.fake.script().answered_batches = Some(ANSWERED);
    fs::write(world.path("in"), csv(1)).unwrap();
    let all = [&["rewrap-file", "--key", "k", "--in", "in"], &args[..]].concat();
    let mut child = command(world.home.path(), &all).spawn().unwrap();
    eventually(LIMIT, "a checkpoint", || {
        checkpoint(&world, "out").is_some_and(|state| state["input_offset"] != json!(0))
    });
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
    for (args, output, named) in [
        (&ARGS[..], "out", "partial"),
        (&ARGS[..], "out", "both"),
        (&ARGS[..], "out", "named"),
        (&["--format", "lines", "--in-place"], "in", "named"),
    ] {
        let _ = fs::remove_file(world.path("out"));
        complete(&world, args, output);
        // The name was given, or not yet, or the file has both names.
        let partial = world.path(&format!("{output}.kms-rewrap"));
        match named {
            "partial" => fs::rename(world.path(output), &partial).unwrap(),
            "both" => fs::hard_link(world.path(output), &partial).unwrap(),
            _ => {}
        }
        world.fake.script().batches.clear();
        let run = again(&world, &[args, &["--output", "json"]].concat());
        assert_eq!(run.code, 0, "{}", run.stderr);
        assert_eq!(
            (&run.json()["rewrapped"], &run.json()["resumed"]),
            (&json!(ITEMS), &json!(true))
        );
        assert!(world.fake.script().batches.is_empty());
        assert!(fs::read_to_string(world.path(output)).unwrap() == content(2));
        assert!(!world.path(&format!("{output}.kms-rewrap.json")).exists());
        assert!(!partial.exists());
    }
}

/// Makes a run whose last checkpoint is still there, as it was just before the end.
fn complete(world: &World, args: &[&str], output: &str) {
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
