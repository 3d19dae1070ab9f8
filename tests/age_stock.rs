//! Stock Debian `age` with age-plugin-kms against a real server, both ways. What the plugin does with recipients,
//! identities and errors of every kind is in kms-cli/tests/plugin_stock_age.rs, with keys in memory; here the file key is
//! wrapped in a token, and its key rolls over.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test program: a failure here is a failed test"
)]

mod support_cli;
mod support_dev;

use support_cli::World;

/// Long enough for several chunks of age's STREAM.
fn plaintext() -> Vec<u8> {
    (0..200_000_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect()
}

/// Makes a key and writes its identity to `identity.txt`. Returns its recipient.
fn key(world: &World, name: &str) -> String {
    world.create(name, &[]);
    world.file("identity.txt", world.pipe(&["age", "identity", "--key", name], b""));
    let recipient = world.json(&["age", "recipient", "--key", name], b"");
    let recipient = recipient["address"].as_str().unwrap().to_owned();
    assert!(recipient.starts_with("age1kms1"), "{recipient}");
    recipient
}

/// Makes a native identity in `native.txt`, and returns its recipient.
fn native(world: &World) -> String {
    let made = world.run("age-keygen", &["-o", "native.txt"], b"");
    assert_eq!(made.code, 0, "{}", made.stderr);
    String::from_utf8(world.run("age-keygen", &["-y", "native.txt"], b"").good())
        .unwrap()
        .trim()
        .to_owned()
}

#[test]
fn what_kms_seals_stock_age_opens_before_and_after_a_reseal() {
    let world = World::new();
    key(&world, "backups");
    let native = native(&world);
    world.file("plain", plaintext());
    let seal = ["seal", "--key", "backups", "-r", &native, "--in", "plain", "--out", "sealed.age"];
    let sealed = world.json(&seal, b"");
    assert_eq!(sealed["key_version"], "tenants/dev/keys/backups/versions/1");
    let opens = |identity: &str| world.age(&["-d", "-i", identity, "sealed.age"], b"");
    assert!(opens("identity.txt") == plaintext());
    assert!(opens("native.txt") == plaintext());

    let before = world.read("sealed.age");
    world.pipe(&["key", "rotate", "backups"], b"");
    let resealed = world.json(&["reseal", "sealed.age"], b"");
    let report = &resealed["files"][0];
    assert_eq!(
        (&report["status"], &report["from_version"], &report["to_version"]),
        (&"resealed".into(), &1.into(), &2.into())
    );
    let after = world.read("sealed.age");
    assert_eq!(after.len(), before.len());
    assert!(after != before, "nothing was resealed");
    assert!(
        after.ends_with(&before[before.len() - plaintext().len()..]),
        "the payload was touched"
    );
    assert!(opens("identity.txt") == plaintext());
    assert!(opens("native.txt") == plaintext());
    let opened = ["open", "--in", "sealed.age", "--out", "opened"];
    let facts = world.json(&opened, b"");
    assert_eq!(facts["key_version"], "tenants/dev/keys/backups/versions/2");
    assert!(world.read("opened") == plaintext());
    let again = world.json(&["reseal", "sealed.age"], b"");
    assert_eq!(again["files"][0]["status"], "current");
    assert!(world.read("sealed.age") == after);
}

#[test]
fn what_stock_age_encrypts_kms_opens() {
    let world = World::new();
    let recipient = key(&world, "backups");
    let encrypted = world.age(&["-r", &recipient], &plaintext());
    assert!(world.pipe(&["open"], &encrypted) == plaintext());
    let armored = world.age(&["-a", "-r", &recipient], &plaintext());
    assert!(armored.starts_with(b"-----BEGIN AGE ENCRYPTED FILE-----"));
    assert!(world.age(&["-d", "-i", "identity.txt"], &armored) == plaintext());
}

#[test]
fn a_suspended_version_does_not_open_until_it_is_resumed() {
    let world = World::new();
    let recipient = key(&world, "backups");
    world.file("sealed.age", world.age(&["-r", &recipient], b"kept"));
    world.pipe(&["key", "suspend", "backups", "1", "--reason", "test"], b"");
    let refused = world.run("age", &["-d", "-i", "identity.txt", "sealed.age"], b"");
    assert_ne!(refused.code, 0);
    assert!(refused.stdout.is_empty());
    assert!(refused.stderr.contains("SUSPENDED"), "{}", refused.stderr);
    world.pipe(&["key", "resume", "backups", "1", "--reason", "test"], b"");
    assert_eq!(world.age(&["-d", "-i", "identity.txt", "sealed.age"], b""), b"kept");
}

#[test]
fn a_server_that_is_gone_is_reported_and_nothing_comes_out() {
    let mut world = World::new();
    let recipient = key(&world, "backups");
    world.file("sealed.age", world.age(&["-r", &recipient], b"kept"));
    assert_eq!(world.server.process.terminate(support_dev::LIMIT).code(), Some(0));
    let refused = world.run("age", &["-d", "-i", "identity.txt", "sealed.age"], b"");
    assert_ne!(refused.code, 0);
    assert!(refused.stdout.is_empty());
    assert!(refused.stderr.contains("connect"), "{}", refused.stderr);
}
