//! `kms rewrap-file` end to end: real ciphertexts, a real server, a rollover, a kill in the middle, and every plaintext
//! compared afterwards.
//!
//! Formats, refusals and counts are in kms-cli/tests/cli, with a server that follows a script.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test program: a failure here is a failed test"
)]

mod support_cli;
mod support_dev;

use std::fs;

use kms_testkit::deadline::eventually;
use kms_testkit::process::binary;
use serde_json::{Value, json};
use support_cli::World;

/// Records of the file: some checkpoints' worth of small batches.
const RECORDS: usize = 6_000;
/// Different ciphertexts among them.
const DIFFERENT: usize = 6;
const ARGS: [&str; 11] = [
    "rewrap-file",
    "--key",
    "k",
    "--in",
    "secrets.csv",
    "--format",
    "csv",
    "--column",
    "secret",
    "--bind",
    "table=secrets",
];

/// Wraps what belongs into the file.
fn ciphertexts(world: &World) -> Vec<String> {
    let wrap = ["wrap", "--key", "k", "--form", "text", "--bind", "table=secrets"];
    let wrapped = (0..DIFFERENT).map(|n| world.pipe(&wrap, format!("secret {n}").as_bytes()));
    wrapped.map(|text| String::from_utf8(text).unwrap().trim().to_owned()).collect()
}

fn csv(ciphertexts: &[String]) -> String {
    let row =
        |n: usize| format!("{n},\"a \"\"{n}\"\"\r\nnote\",{}\r\n", ciphertexts[n % DIFFERENT]);
    format!("id,note,secret\r\n{}", (0..RECORDS).map(row).collect::<String>())
}

/// Takes a record apart, which is one of [`csv`]'s: what stands before the ciphertext, and it.
fn records(text: &str) -> Vec<(&str, &str)> {
    let records = text.split_inclusive("\r\n").collect::<Vec<_>>();
    records
        .iter()
        .filter_map(|line| line.trim_end().rsplit_once(','))
        .filter(|(_, last)| last.starts_with("hfenv1:"))
        .collect()
}

#[test]
fn a_file_that_is_rewrapped_over_a_kill_holds_the_same_plaintexts_under_the_new_version() {
    let world = World::new();
    world.create("k", &[]);
    let before = csv(&ciphertexts(&world));
    world.file("secrets.csv", &before);
    world.json(&["key", "rotate", "k", "--reason", "test"], b"");

    // Small batches, so that there are checkpoints to be killed after. It may be done before that: then there is nothing
    // to go on from, and the rest of the test holds all the same.
    let in_place = [&ARGS[..], &["--in-place", "--batch-size", "10"]].concat();
    let mut child = world.command(binary("kms")).args(&in_place).spawn().unwrap();
    let checkpoint = world.path("secrets.csv.kms-rewrap.json");
    let is_under_way = || {
        let state: Option<Value> =
            fs::read(&checkpoint).ok().and_then(|text| serde_json::from_slice(&text).ok());
        state.is_some_and(|state| state["input_offset"] != json!(0))
    };
    eventually(support_dev::LIMIT, "a checkpoint", || {
        is_under_way() || child.try_wait().unwrap().is_some()
    });
    child.kill().unwrap();
    let cut = !child.wait().unwrap().success();
    if cut {
        assert_eq!(world.read("secrets.csv"), before.as_bytes());
        let done = world.json(&in_place, b"");
        assert_eq!((&done["items"], &done["rewrapped"]), (&json!(RECORDS), &json!(RECORDS)));
        assert_eq!(done["resumed"], json!(true));
    }
    assert!(!checkpoint.exists() && !world.path("secrets.csv.kms-rewrap").exists());

    let after = String::from_utf8(world.read("secrets.csv")).unwrap();
    let (old, new) = (records(&before), records(&after));
    assert_eq!((old.len(), new.len(), before.len()), (RECORDS, RECORDS, after.len()));
    for (record, (old, new)) in old.iter().zip(&new).enumerate() {
        assert!(old.0 == new.0 && old.1 != new.1, "record {record}");
    }
    // One process a plaintext is slow: of each kind one from the beginning, the middle and the end.
    for n in [0, RECORDS / 2 + 1, RECORDS - 1] {
        let unwrap = ["unwrap", "--key", "k", "--bind", "table=secrets", "--out", "-"];
        let plaintext = world.pipe(&unwrap, new[n].1.as_bytes());
        assert_eq!(plaintext, format!("secret {}", n % DIFFERENT).as_bytes());
    }

    let census = world.json(
        &["rewrap-file", "--dry-run", "--in", "secrets.csv", "--format", "csv", "--column", "3"],
        b"",
    );
    assert_eq!(census["versions"][0]["version"], json!(2));
    assert_eq!(census["versions"][0]["items"], json!(RECORDS));
    let again = world.json(&in_place, b"");
    assert_eq!((&again["current"], &again["rewrapped"]), (&json!(RECORDS), &json!(0)));
    assert_eq!(world.read("secrets.csv"), after.as_bytes());
}

#[test]
fn a_ciphertext_that_does_not_open_stops_the_file_and_is_told_by_line() {
    let world = World::new();
    world.create("k", &[]);
    let good = ciphertexts(&world).remove(0);
    // The last character before the tag's end: the header still reads.
    let spoilt = format!("{}{}", good.split_at(good.len() - 9).0, "AAAAAAAAA");
    world.json(&["key", "rotate", "k", "--reason", "test"], b"");
    let content = format!("{good}\n{spoilt}\n{good}\n");
    world.file("secrets", &content);
    let lines = ["rewrap-file", "--key", "k", "--in", "secrets", "--format", "lines"];
    let args =
        [&lines[..], &["--out", "new", "--bind", "table=secrets", "--output", "json"]].concat();
    let run = world.kms(&args);
    assert!(run.stderr.contains("line 2: "), "{}", run.stderr);
    assert_eq!(run.refused(5), "ITEM_FAILED");
    assert!(!world.path("new").exists());
    let run = world.kms(&[&args[..], &["--keep-going"]].concat());
    assert_eq!(run.code, 12, "{}", run.stderr);
    let view: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!((&view["rewrapped"], &view["failed"]), (&json!(2), &json!(1)));
    assert_eq!(view["failures"][0]["reason"], json!("CIPHERTEXT_INVALID"));
    let written = String::from_utf8(world.read("new")).unwrap();
    assert_eq!(written.lines().nth(1), Some(spoilt.as_str()));
}
