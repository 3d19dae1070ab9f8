//! `kms key list` with filters and `kms inventory export` against a real server.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failure here is a failed test"
)]

mod support_cli;
mod support_dev;

use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;
use support_cli::World;

fn create(world: &World, key: &str, more: &[&str]) {
    let about = ["--sensitivity", "low", "--usage", "tests", "--cryptoperiod", "90d"];
    let words = [&["key", "create", key][..], &about, more].concat();
    assert_eq!(world.json(&words, b"")["name"], format!("tenants/dev/keys/{key}"));
}

fn world() -> World {
    let world = World::new();
    create(&world, "orders", &["--owner", "blue", "--label", "scope=pci"]);
    create(&world, "logs", &["--owner", "red", "--rotation-period", "24h"]);
    create(
        &world,
        "vault",
        &["--owner", "blue", "--protection", "hsm-resident", "--acknowledge-no-backup"],
    );
    world.pipe(&["key", "rotate", "orders"], b"");
    world.pipe(&["wrap", "--key", "logs", "--in", "-", "--out", "-"], b"a secret");
    world
}

fn ids(listed: &Value) -> Vec<&str> {
    let keys = listed["keys"].as_array().unwrap().iter();
    keys.map(|key| key["name"].as_str().unwrap().rsplit('/').next().unwrap()).collect()
}

#[test]
fn keys_are_found_and_sorted() {
    let world = world();
    for (words, expected) in [
        (&[][..], &["orders", "logs", "vault"][..]),
        (&["--order-by", "name"], &["logs", "orders", "vault"]),
        (&["--order-by", "name desc"], &["vault", "orders", "logs"]),
        (&["--owner", "blue"], &["orders", "vault"]),
        (&["--label", "scope=pci"], &["orders"]),
        (&["--filter", "protection = HSM_RESIDENT OR version_count > 1"], &["orders", "vault"]),
        (&["--rotation-due-before", "2999-01-01T00:00:00Z"], &["logs"]),
        (&["--unused-since", "2999-01-01T00:00:00Z", "--owner", "blue"], &["orders", "vault"]),
        (&["--filter", "last_use_time:*"], &["logs"]),
        (&["--state", "disabled"], &[]),
        (&["--limit", "1", "--order-by", "name"], &["logs"]),
    ] {
        let listed = world.json(&[&["key", "list"], words].concat(), b"");
        assert_eq!(ids(&listed), expected, "{words:?}");
    }
    let refused = world.kms(&["key", "list", "--filter", "owner = "]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("column 9"), "{}", refused.stderr);
}

#[test]
fn the_inventory_has_every_version_in_every_form() {
    let world = world();
    let out = world.path("inventory.json");
    let out = out.to_str().unwrap();
    let export = ["inventory", "export", "--format", "json", "--out", out];
    let said = world.json(&export, b"");
    assert_eq!((&said["keys"], &said["versions"]), (&3.into(), &4.into()));
    let mode = std::fs::metadata(out).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let inventory: Value = serde_json::from_slice(&world.read("inventory.json")).unwrap();
    assert_eq!(ids(&inventory), ["orders", "logs", "vault"]);
    assert_eq!(inventory["keys"][0]["versions"][1]["primary"], true);

    // What is there is not replaced unasked.
    assert_ne!(world.kms(&export).code, 0);
    assert_eq!(world.kms(&[&export[..], &["--force"]].concat()).code, 0);

    let csv = String::from_utf8(world.pipe(&["inventory", "export", "--format", "csv"], b""));
    let csv = csv.unwrap();
    assert_eq!(csv.matches("\r\n").count(), 1 + 4);
    let bom = world.pipe(&["inventory", "export", "--format", "cyclonedx"], b"");
    let bom: Value = serde_json::from_slice(&bom).unwrap();
    assert_eq!(bom["components"].as_array().map(Vec::len), Some(2 + 4));

    let words = ["inventory", "export", "--format", "json", "--filter", "owner = red"];
    let red: Value = serde_json::from_slice(&world.pipe(&words, b"")).unwrap();
    assert_eq!(ids(&red), ["logs"]);
}

#[test]
fn an_inventory_that_is_cut_leaves_no_file() {
    let mut world = world();
    world.server.process.kill();
    let out = world.path("cut.csv");
    let words = ["inventory", "export", "--format", "csv", "--timeout", "2s", "--out"];
    let cut = world.kms(&[&words[..], &[out.to_str().unwrap()]].concat());
    assert_ne!(cut.code, 0);
    let left: Vec<_> = std::fs::read_dir(out.parent().unwrap()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}
