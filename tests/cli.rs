//! `kms` end to end against a real server: what it prints, what JSON it writes, how it ends, what memory it takes.
//!
//! Help texts, retries and servers that misbehave are in kms-cli/tests/cli, with a server that follows a script.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test program: a failure here is a failed test"
)]

mod support_cli;
mod support_dev;

use std::io::Write as _;
use std::process::Stdio;

use kms_testkit::Pki;
use kms_testkit::process::binary;
use serde_json::json;
use support_cli::World;

/// How much is sealed to measure memory, in pieces of 1 MiB.
const STREAM_MIB: usize = 1_024;
/// The most memory that sealing may take, in KiB.
const MAX_RESIDENT_KIB: u64 = 64 * 1_024;

#[test]
fn the_commands_that_dev_mode_suggests_work() {
    let mut world = World::new();
    // The last line of the banner: all of it is there.
    world.server.process.await_line("kms wrap", support_dev::LIMIT);
    let banner = world.server.process.stdout();
    let (listen, admin) = (world.server.listen, world.server.admin);
    assert!(banner.contains(&format!("https://{listen}\n")), "{banner}");
    assert!(banner.contains(&format!("http://{admin}/readyz")), "{banner}");
    let (_, next) = banner.split_once("Try next:\n").unwrap();
    let commands: Vec<_> = next.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    assert_eq!(commands.len(), 3, "{banner}");
    // What `kms wrap` prints is opened in the same pipe.
    let open = "kms unwrap --key demo --in - --out -";
    let script = format!("set -e\nunset KMS_CONFIG\n{} | {open}", commands.join("\n"));
    let run = world.run("sh", &["-c", &script], b"");
    assert_eq!(run.code, 0, "{script}: {}", run.stderr);
    assert!(String::from_utf8_lossy(&run.stdout).contains("tenants/dev/keys/demo"), "{run:?}");
    assert!(run.stdout.ends_with(b"secret\n"), "{run:?}");
}

#[test]
fn keys_are_created_listed_described_updated_and_rolled_over() {
    let world = World::new();
    let key = world.create("k", &["--label", "team=a"]);
    assert_eq!(key["name"], "tenants/dev/keys/k");
    assert_eq!(
        (&key["protection"], &key["labels"]),
        (&json!("HSM_WRAPPED"), &json!({"team": "a"}))
    );
    let unaware =
        ["key", "create", "r", "--owner", "tests", "--sensitivity", "low", "--usage", "u"];
    let unaware =
        [&unaware[..], &["--cryptoperiod", "30d", "--protection", "hsm-resident"]].concat();
    let refused = world.kms(&[&unaware[..], &["--output", "json"]].concat());
    assert_eq!(refused.refused(5), "NO_BACKUP_NOT_ACKNOWLEDGED");
    let resident = world.create("r", &["--protection", "hsm-resident", "--acknowledge-no-backup"]);
    assert_eq!(resident["protection"], "HSM_RESIDENT");
    let listed = world.json(&["key", "list"], b"");
    let names: Vec<_> = listed["keys"].as_array().unwrap().iter().map(|key| &key["name"]).collect();
    assert_eq!(names, ["tenants/dev/keys/k", "tenants/dev/keys/r"]);
    let first = world.json(&["key", "list", "--limit", "1"], b"");
    let token = first["next_page_token"].as_str().unwrap();
    let second = world.json(&["key", "list", "--limit", "1", "--page-token", token], b"");
    assert_eq!(second["keys"][0]["name"], "tenants/dev/keys/r");

    let updated = world.json(&["key", "update", "k", "--owner", "other", "--no-labels"], b"");
    assert_eq!((&updated["owner"], &updated["labels"]), (&json!("other"), &json!({})));
    assert_eq!(updated, world.json(&["key", "describe", "k"], b""));
    let stale = key["revision"].to_string();
    let stale = ["key", "update", "k", "--owner", "x", "--revision", &stale, "--output", "json"];
    world.kms(&stale).refused(6);

    let rotated = world.json(&["key", "rotate", "k", "--reason", "test"], b"");
    assert_eq!(rotated["version"]["version"], 2);
    assert_eq!(rotated["key"]["primary_version"], 2);
    let versions = world.json(&["key", "versions", "k"], b"");
    let versions = versions["versions"].as_array().unwrap();
    let primary: Vec<_> = versions.iter().map(|version| &version["primary"]).collect();
    assert_eq!(primary, [false, true]);
    assert_eq!(versions[1], world.json(&["key", "describe", "k/versions/2"], b""));
    let shown = String::from_utf8(world.pipe(&["key", "describe", "k"], b"")).unwrap();
    assert!(shown.contains("primary version") && !shown.contains('{'), "{shown}");
}

#[test]
fn a_repeated_request_id_does_nothing_twice() {
    let world = World::new();
    world.create("k", &[]);
    let rotate = ["key", "rotate", "k", "--request-id", "5a5a5a5a-0000-4000-8000-000000000001"];
    let first = world.json(&rotate, b"");
    assert_eq!(world.json(&rotate, b""), first);
    assert_eq!(world.json(&["key", "describe", "k"], b"")["version_count"], 2);
}

#[test]
fn secrets_are_wrapped_unwrapped_rewrapped_and_inspected() {
    let world = World::new();
    world.create("k", &[]);
    let bind = ["--bind", "app=web", "--bind", "env=test"];
    let wrapped =
        world.pipe(&[&["wrap", "--key", "k", "--form", "text"], &bind[..]].concat(), b"s3cret");
    assert!(wrapped.starts_with(b"hfenv1:"));
    let unwrap = [&["unwrap", "--key", "k"], &bind[..]].concat();
    assert_eq!(world.pipe(&unwrap, &wrapped), b"s3cret");
    let inspected = world.json(&["inspect"], &wrapped);
    assert_eq!(
        (&inspected["version"], &inspected["plaintext_length_bytes"]),
        (&1.into(), &6.into())
    );
    world.pipe(&["key", "rotate", "k"], b"");
    let rewrap = [&["rewrap", "--key", "k"], &bind[..]].concat();
    let rewrapped = world.json(&rewrap, &wrapped);
    assert_eq!(rewrapped["changed"], true);
    assert_eq!(rewrapped["previous_key_version"], "tenants/dev/keys/k/versions/1");
    assert_eq!(rewrapped["key_version"], "tenants/dev/keys/k/versions/2");
    let rewrapped = rewrapped["ciphertext"].as_str().unwrap().as_bytes().to_vec();
    assert_eq!(world.pipe(&unwrap, &rewrapped), b"s3cret");
    assert_eq!(world.json(&rewrap, &rewrapped)["changed"], false);
    assert_eq!(world.pipe(&unwrap, &wrapped), b"s3cret", "the old version still opens");
}

#[test]
fn data_keys_and_random_bytes_are_drawn() {
    let world = World::new();
    world.create("k", &[]);
    let drawn = ["datakey", "--key", "k", "--length", "48", "--plaintext-out", "plain"];
    let drawn = world.json(&drawn, b"");
    assert_eq!(drawn["length_bytes"], 48);
    let ciphertext = drawn["ciphertext"].as_str().unwrap().as_bytes();
    assert_eq!(world.pipe(&["unwrap", "--key", "k"], ciphertext), world.read("plain"));
    assert_eq!(world.read("plain").len(), 48);
    let sealed = world.json(&["datakey", "--key", "k", "--without-plaintext"], b"");
    let sealed = sealed["ciphertext"].as_str().unwrap().as_bytes();
    assert_eq!(world.pipe(&["unwrap", "--key", "k"], sealed).len(), 32);
    let (one, other) = (world.pipe(&["random", "40"], b""), world.pipe(&["random", "40"], b""));
    assert_eq!((one.len(), other.len()), (40, 40));
    assert_ne!(one, other);
}

#[test]
fn an_alias_is_made_used_moved_and_deleted() {
    let world = World::new();
    world.create("k", &[]);
    world.create("other", &[]);
    let alias = |words: &[&str]| world.json(&[&["alias"], words].concat(), b"");
    let made = alias(&["create", "payments", "--key", "k", "--reason", "r"]);
    assert_eq!(
        (&made["name"], &made["key"]),
        (&json!("tenants/dev/aliases/payments"), &json!("tenants/dev/keys/k"))
    );
    let old = world.pipe(&["wrap", "--key", "aliases/payments"], b"s3cret");
    let moved = alias(&["update", "payments", "--key", "other", "--reason", "r"]);
    assert_eq!(moved["key"], "tenants/dev/keys/other");
    let new = world.pipe(&["wrap", "--key", "aliases/payments"], b"s3cret");
    // What was wrapped before stays with its key.
    assert_eq!(world.pipe(&["unwrap", "--key", "k"], &old), b"s3cret");
    assert_eq!(world.pipe(&["unwrap", "--key", "other"], &new), b"s3cret");
    let described = world.json(&["key", "describe", "aliases/payments"], b"");
    assert_eq!(described["name"], "tenants/dev/keys/other");
    let listed = alias(&["list", "--key", "other"]);
    assert_eq!(listed["aliases"][0], moved);
    let stale = made["revision"].to_string();
    let stale = ["alias", "delete", "payments", "--revision", &stale, "--reason", "r"];
    let refused = world.kms(&[&["--output", "json"], &stale[..]].concat()).refused(6);
    assert_eq!(refused, "REVISION_MISMATCH");
    assert_eq!(alias(&["delete", "payments", "--reason", "r"]), moved);
    let gone = world.kms(&["--output", "json", "alias", "describe", "payments"]).refused(4);
    assert_eq!(gone, "ALIAS_NOT_FOUND");
    let history = world.json(&["key", "history", "other"], b"");
    assert!(history.to_string().contains("aliases/payments"), "{history}");
}

#[test]
fn health_and_context_tell_what_is_used() {
    let world = World::new();
    let health = world.json(&["health"], b"");
    assert_eq!((&health["live"], &health["ready"]), (&json!(true), &json!(true)));
    let shown = world.json(&["context", "show"], b"");
    assert_eq!(shown["server"], format!("https://{}", world.server.listen));
    assert_eq!(shown["tenant"], "dev");
    let listed = world.json(&["context", "list"], b"");
    assert_eq!(
        (&listed["contexts"][0]["name"], &listed["contexts"][0]["current"]),
        (&json!("dev"), &json!(true))
    );
}

#[test]
fn each_kind_of_failure_has_its_exit_code() {
    let world = World::new();
    let json = |args: &[&str], stdin: &[u8]| {
        world.run(binary("kms"), &[args, &["--output", "json"]].concat(), stdin)
    };
    world.create("k", &[]);
    let wrapped = world.pipe(&["wrap", "--key", "k"], b"s3cret");
    assert_eq!(json(&["key", "list", "--tenant", "other"], b"").refused(3), "ACCESS_DENIED");
    assert_eq!(json(&["key", "describe", "nope"], b"").refused(4), "KEY_NOT_FOUND");
    let mut flipped = wrapped.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for (key_and_more, ciphertext) in [(&["k"][..], &flipped), (&["k", "--bind", "a=b"], &wrapped)]
    {
        let args = [&["unwrap", "--key"], key_and_more].concat();
        assert_eq!(json(&args, ciphertext).refused(5), "CIPHERTEXT_INVALID");
    }
    let create = ["key", "create", "k", "--owner", "o", "--sensitivity", "low"];
    let create = [&create[..], &["--usage", "u", "--cryptoperiod", "30d"]].concat();
    json(&create, b"").refused(6);
    world.pipe(&["key", "suspend", "k", "1", "--reason", "test"], b"");
    json(&["unwrap", "--key", "k"], &wrapped).refused(6);
    json(&["wrap", "--key", "k"], b"x").refused(6);
    world.pipe(&["key", "resume", "k", "1", "--reason", "test"], b"");
    assert_eq!(world.pipe(&["unwrap", "--key", "k"], &wrapped), b"s3cret");
    json(&["health", "--server", "https://127.0.0.1:1", "--timeout", "2s"], b"").refused(9);
    assert_eq!(world.kms(&["wrap"]).code, 2);
    let missing = world.path("missing");
    let missing = missing.to_str().unwrap();
    json(&["wrap", "--key", "k", "--in", missing], b"").refused(10);
}

#[test]
fn certificates_of_another_authority_do_not_connect() {
    let world = World::new();
    let other = Pki::create(&world.home.path().join("other"));
    let (_, client) = other.usual();
    let ca = other.ca();
    let [ca, cert, key] =
        [&ca, &client.certificate, &client.key].map(|path| path.to_str().unwrap());
    let as_other = ["key", "list", "--cert", cert, "--key-file", key, "--output", "json"];
    world.kms(&as_other).refused(9);
    world.kms(&["key", "list", "--ca", ca, "--output", "json"]).refused(9);
    assert_eq!(world.json(&["key", "list"], b"")["keys"], json!([]));
}

#[test]
fn bench_measures_batches_whose_every_item_went_well() {
    let world = World::new();
    let bench = ["bench", "--op", "batch", "--batch-size", "10", "--concurrency", "1"];
    let report =
        world.json(&[&bench[..], &["--duration", "300ms", "--warmup", "10ms"]].concat(), b"");
    let count = |name: &str| report[name].as_u64().unwrap();
    assert!(count("requests") > 0, "{report}");
    assert_eq!(count("items"), 10 * count("requests"));
    assert_eq!((&report["errors"], &report["connections"]), (&json!({}), &json!(1)));
    // A key of that name that a person made is left alone.
    world.create("payroll-0", &[]);
    let foreign = ["bench", "--op", "rewrap", "--key-prefix", "payroll", "--output", "json"];
    assert_eq!(world.kms(&foreign).refused(6), "FOREIGN_KEY");
    assert_eq!(world.json(&["key", "describe", "payroll-0"], b"")["version_count"], 1);
}

#[test]
fn a_long_stream_is_sealed_in_little_memory() {
    let world = World::new();
    world.create("k", &[]);
    let mut command = world.command(binary("kms"));
    command.args(["seal", "--key", "k", "--out", "-"]).stdout(Stdio::null());
    let mut kms = command.spawn().unwrap();
    let mut stdin = kms.stdin.take().unwrap();
    let zeros = vec![0; 1 << 20];
    for _ in 0..STREAM_MIB {
        stdin.write_all(&zeros).unwrap();
    }
    // All but what the pipe holds was taken; the program lives until its input ends.
    let status = std::fs::read_to_string(format!("/proc/{}/status", kms.id())).unwrap();
    drop(stdin);
    let ended = kms.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    assert!(peak < MAX_RESIDENT_KIB, "{peak} KiB");
}
