//! What `kms` says of a change whose answer is lost: that it may have been made, and how to repeat it safely.

use std::time::Duration;

use tonic::Code;

use super::common::Run;
use super::fake::refusal;
use super::online::World;

const CREATE: [&str; 11] = [
    "key",
    "create",
    "k",
    "--owner",
    "o",
    "--sensitivity",
    "low",
    "--usage",
    "u",
    "--cryptoperiod",
    "90d",
];

/// Every kind of command that changes a key.
const CHANGES: [&[&str]; 13] = [
    &CREATE,
    &["key", "rotate", "k"],
    &["key", "update", "k", "--owner", "o"],
    &["key", "rotation", "set", "k", "--off"],
    &["key", "disable", "k", "--reason", "r"],
    &["key", "enable", "k", "--reason", "r"],
    &["key", "suspend", "k", "3", "--reason", "r"],
    &["key", "resume", "k", "3", "--reason", "r"],
    &["key", "deactivate", "k", "3", "--reason", "r"],
    &["key", "compromise", "k", "3", "--reason", "r"],
    &["key", "schedule-destruction", "k", "3", "--reason", "r"],
    &["key", "schedule-destruction", "k", "--whole-key", "--reason", "r"],
    &["key", "cancel-destruction", "k", "--whole-key", "--reason", "r"],
];

fn error(run: &Run) -> serde_json::Value {
    let told: serde_json::Value = serde_json::from_str(&run.stderr).unwrap();
    told["error"].clone()
}

#[test]
fn a_change_without_an_answer_in_time_is_told_with_its_request_id() {
    let world = World::new();
    world.fake.script().silent = true;
    let one = &|words: &[&str]| {
        let run = world.kms(&[words, &["--timeout", "5s", "--output", "json"]].concat(), b"");
        let error = error(&run);
        assert_eq!((run.code, &error["reason"]), (7, &"TIMEOUT".into()), "{words:?}: {error}");
        assert!(error["message"].as_str().unwrap().contains("may have been made"), "{error}");
        error["request_id"].as_str().unwrap().to_owned()
    };
    let mut told: Vec<_> = std::thread::scope(|scope| {
        let runs = CHANGES.map(|words| scope.spawn(move || one(words)));
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    told.sort();
    let mut sent = world.fake.script().request_ids.clone();
    sent.sort();
    assert_eq!(told, sent, "each is asked once");
}

#[test]
fn people_are_told_how_to_repeat_a_change_and_the_repeat_is_the_same_request() {
    let world = World::new();
    world.fake.script().silent = true;
    for (words, more) in [(&["key", "rotate", "k"][..], ""), (CHANGES[2], " --revision 7")] {
        world.fake.script().request_ids.clear();
        let run = world.kms(&[words, &["--timeout", "2s"]].concat(), b"");
        let sent = world.fake.script().request_ids.remove(0);
        let flags = format!("--request-id {sent}{more}");
        let advice = format!("\n  repeat the command with {flags}: within 24 hours");
        assert!(run.stderr.contains("; the change may have been made\n"), "{}", run.stderr);
        assert!(run.stderr.contains(&advice), "{}", run.stderr);
        let flags: Vec<_> = flags.split(' ').chain(["--timeout", "2s"]).collect();
        world.kms(&[words, &flags].concat(), b"");
        assert_eq!(world.fake.script().request_ids, [sent]);
    }
}

#[test]
fn a_change_whose_connection_breaks_is_told_with_its_request_id() {
    let world = World::new();
    world.fake.script().hangs_up = true;
    let run = world.kms(&["key", "rotate", "k", "--output", "json"], b"");
    let error = error(&run);
    assert_eq!((run.code, &error["reason"]), (9, &"UNREACHABLE".into()), "{error}");
    assert_eq!(error["request_id"], *world.fake.script().request_ids[0]);
}

#[test]
fn a_later_refusal_does_not_tell_what_became_of_an_earlier_attempt() {
    let world = World::new();
    let unknown = refusal(Code::Unavailable, "OUTCOME_UNKNOWN", Some(Duration::ZERO));
    let refused = refusal(Code::Unavailable, "HSM_LATCHED", None);
    world.fake.script().errors = vec![refused, unknown];
    let run = world.kms(&["key", "rotate", "k", "--output", "json"], b"");
    let error = error(&run);
    assert_eq!(error["reason"], "HSM_LATCHED", "{error}");
    assert_eq!(error["request_id"], *world.fake.script().request_ids[1]);
}

#[test]
fn what_was_not_sent_or_was_refused_needs_no_repeat() {
    let world = World::new();
    let rotate = ["key", "rotate", "k", "--output", "json"];
    let nowhere = world.kms(&[&rotate[..], &["--server", "127.0.0.1:1"]].concat(), b"");
    world.fake.script().errors = vec![refusal(Code::PermissionDenied, "ACCESS_DENIED", None)];
    let refused = world.kms(&rotate, b"");
    // What fails here is the look at the revision: nothing was asked to change.
    let unseen = refusal(Code::Unavailable, "OUTCOME_UNKNOWN", None);
    world.fake.script().errors = vec![unseen];
    let update = world.kms(&["key", "update", "k", "--owner", "o", "--output", "json"], b"");
    for (run, code) in [(nowhere, 9), (refused, 3), (update, 7)] {
        let error = error(&run);
        assert_eq!((run.code, &error["request_id"]), (code, &serde_json::Value::Null), "{error}");
        assert!(!error["message"].as_str().unwrap().contains("may have been made"), "{error}");
    }
}
