//! A backup that `kms admin backup` takes of a real server, and `kms-server restore` puts back on an empty node with the same token:
//! what was destroyed or compromised since stays so, everything else opens, and what cannot be trusted is refused.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test program: a failure here is a failed test"
)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::calls::{key_name, new_key, request_id};
use common::{Client, Rig, Server, refusal};
use kms_proto::v1 as proto;
use kms_testkit::process::binary;
use serde_json::Value;
use tonic::Code;

/// A server that answers administrators over TLS.
fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.admin_tls = true;
    rig
}

fn succeed(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Makes an identity, and returns its file and its recipient.
fn identity(rig: &Rig, name: &str) -> (PathBuf, String) {
    let file = rig.path(name);
    succeed(&Command::new("age-keygen").arg("-o").arg(&file).output().unwrap());
    let recipient = succeed(&Command::new("age-keygen").arg("-y").arg(&file).output().unwrap());
    (file, recipient.trim().to_owned())
}

/// Runs `kms admin backup`.
fn backup(server: &Server, recipient: &str, out: &Path) -> Output {
    let rig = &server.rig;
    let mut command = Command::new(binary("kms"));
    command.args(["admin", "backup", "--output", "json", "--recipient", recipient, "--out"]);
    command.arg(out).arg("--server").arg(format!("https://localhost:{}", server.admin.port()));
    command.arg("--ca").arg(rig.pki.ca()).arg("--cert").arg(&rig.operator.certificate);
    command.arg("--key-file").arg(&rig.operator.key).env("HOME", rig.path(""));
    command.env_remove("KMS_CONFIG").env_remove("KMS_CONTEXT").output().unwrap()
}

/// Runs `kms-server restore`.
fn restore(rig: &Rig, backup: &Path, identity: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(binary("kms-server"));
    command.args(["restore", "--output", "json", "--backup"]).arg(backup);
    rig.configured(command.arg("--identity").arg(identity)).args(more).output().unwrap()
}

/// What is left of a node whose disk is lost: the token, and what was copied elsewhere.
fn wipe(rig: &Rig) {
    for name in ["store.db", "store.db-wal", "store.db-shm", "store.db.lock", "journal"] {
        let _ = std::fs::remove_file(rig.path(name));
    }
    std::fs::remove_dir_all(rig.path("audit")).unwrap();
}

fn refused(output: &Output, status: i32, text: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{said}");
    assert!(said.contains(text), "{said}");
}

async fn compromise(client: &Client, version: &str) {
    let request = proto::CompromiseKeyVersionRequest {
        name: version.to_owned(),
        reason: "test".into(),
        request_id: request_id(),
    };
    client.keys().compromise_key_version(request).await.unwrap();
}

async fn stage(client: &Client, key: &str) {
    let request = proto::StageKeyVersionRequest {
        name: key.to_owned(),
        activate_time: None,
        reason: "test".into(),
        request_id: request_id(),
    };
    client.keys().stage_key_version(request).await.unwrap();
}

async fn discard(client: &Client, version: &str) {
    let request = proto::DiscardKeyVersionRequest {
        name: version.to_owned(),
        reason: "test".into(),
        request_id: request_id(),
    };
    client.keys().discard_key_version(request).await.unwrap();
}

async fn state(client: &Client, version: &str) -> proto::VersionState {
    let request = proto::DescribeKeyVersionRequest { name: version.to_owned() };
    client.keys().describe_key_version(request).await.unwrap().into_inner().state()
}

/// A stopped node, a backup of it, and what was done and wrapped since.
struct Lost {
    rig: Rig,
    backup: PathBuf,
    identity: PathBuf,
    /// A copy of the state journal as it was at the end, and one as it was after its first entry.
    journal: PathBuf,
    first_entry: PathBuf,
    wrapped: Vec<(String, Vec<u8>)>,
}

/// Compromises version 1 of `burnt` (its primary) and of `old`, and discards the staged version of `staged`, all after the backup.
async fn lost() -> Lost {
    let server = rig().start();
    let client = server.operator().await;
    let mut wrapped = Vec::new();
    for id in ["calm", "burnt", "staged", "old"] {
        let key = client.create(id).await.name;
        wrapped.push((
            key.clone(),
            client.wrap(&key, b"secret", &[]).await.unwrap().ciphertext.to_vec(),
        ));
    }
    client.rotate(&key_name("old")).await;
    stage(&client, &key_name("staged")).await;
    let mut resident = new_key("resident");
    resident.protection = proto::Protection::HsmResident.into();
    client.keys().create_key(resident).await.unwrap();
    let (identity, recipient) = identity(&server.rig, "identity.txt");
    let file = server.rig.path("backup.age");
    let told: Value = serde_json::from_str(&succeed(&backup(&server, &recipient, &file))).unwrap();
    assert!(told["rows"].as_u64().unwrap() > 10, "{told}");

    compromise(&client, &format!("{}/versions/1", key_name("burnt"))).await;
    let first_entry = server.rig.path("journal-first");
    std::fs::copy(server.rig.path("journal"), &first_entry).unwrap();
    compromise(&client, &format!("{}/versions/1", key_name("old"))).await;
    discard(&client, &format!("{}/versions/2", key_name("staged"))).await;
    client.create("too-late").await;
    drop(client);
    let rig = server.stop().await;
    let journal = rig.path("journal-copy");
    std::fs::copy(rig.path("journal"), &journal).unwrap();
    Lost { rig, backup: file, identity, journal, first_entry, wrapped }
}

#[tokio::test]
async fn what_was_destroyed_or_compromised_stays_so_and_everything_else_opens() {
    let Lost { rig, backup: file, identity, journal, wrapped, .. } = lost().await;
    let age = Command::new("age").arg("-d").arg("-i").arg(&identity).arg(&file).output().unwrap();
    assert!(age.status.success() && age.stdout.starts_with(b"holdfast backup\x01"));
    refused(&restore(&rig, &file, &identity, &[]), 65, "has served");
    wipe(&rig);
    std::fs::copy(&journal, rig.path("journal")).unwrap();
    let told = succeed(&restore(&rig, &file, &identity, &[]));
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["replayed"]["compromised"], 2, "{told}");
    assert_eq!(told["replayed"]["destroyed"], 1, "{told}");
    assert_eq!((&told["journal"], &told["protect_disabled"]), (&3.into(), &false.into()));
    assert_eq!(told["residents_lost"], 0, "{told}");
    refused(&restore(&rig, &file, &identity, &[]), 65, "has served");
    let records = rig.records();
    let restores = records.iter().filter(|record| record["operation"] == "internal/RestoreStore");
    assert_eq!(restores.count(), 2);

    let server = rig.start();
    let client = server.operator().await;
    let version = |id: &str, number: u32| format!("{}/versions/{number}", key_name(id));
    for id in ["burnt", "old"] {
        assert_eq!(state(&client, &version(id, 1)).await, proto::VersionState::Compromised, "{id}");
    }
    assert_eq!(state(&client, &version("staged", 2)).await, proto::VersionState::Destroyed);
    for (key, ciphertext) in &wrapped {
        // Who may unwrap what is compromised still can.
        assert_eq!(client.unwrap(key, ciphertext, &[]).await.unwrap(), b"secret", "{key}");
        let again = client.wrap(key, b"again", &[]).await.unwrap();
        assert_eq!(client.unwrap(key, &again.ciphertext, &[]).await.unwrap(), b"again", "{key}");
    }
    let request = proto::DescribeKeyVersionRequest { name: version("calm", 1) };
    let described = client.keys().describe_key_version(request).await.unwrap().into_inner();
    assert!(
        described.invocation_count >= 1 << 20,
        "raised above what can have been used: {described:?}"
    );
    client.wrap(&key_name("resident"), b"x", &[]).await.unwrap();
    refusal(client.wrap(&key_name("too-late"), b"x", &[]).await)
        .is(Code::NotFound, "KEY_NOT_FOUND");
    drop(client);
    let rig = server.stop().await;
    let report: Value = serde_json::from_slice(&rig.verify_store().stdout).unwrap();
    assert_eq!(report["agrees"], true, "{report}");
}

#[tokio::test]
async fn what_cannot_be_trusted_is_refused_and_the_node_stays_empty() {
    let Lost { rig, backup: file, identity: ours, journal, first_entry, .. } = lost().await;
    wipe(&rig);
    let (other, _) = identity(&rig, "other.txt");
    refused(&restore(&rig, &file, &other, &[]), 65, "cannot be decrypted");
    let whole = std::fs::read(&file).unwrap();
    let edited = rig.path("edited.age");
    for length in [0, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&edited, &whole[..length]).unwrap();
        let output = restore(&rig, &edited, &ours, &[]);
        assert!(!output.status.success(), "cut at {length}");
    }
    for place in [60, whole.len() / 2, whole.len() - 1] {
        let mut flipped = whole.clone();
        flipped[place] ^= 1;
        std::fs::write(&edited, flipped).unwrap();
        let output = restore(&rig, &edited, &ours, &[]);
        assert!(!output.status.success(), "flipped at {place}");
    }
    // Another token, whose roots are others.
    let stranger = Rig::new();
    wipe(&stranger);
    let output = restore(&stranger, &file, &ours, &[]);
    assert_eq!(output.status.code(), Some(69), "{}", String::from_utf8_lossy(&output.stderr));

    // Without the newest journal: neither none, nor an older one.
    refused(&restore(&rig, &file, &ours, &[]), 65, "--accept-journal-gap 1-3");
    std::fs::copy(&first_entry, rig.path("journal")).unwrap();
    refused(&restore(&rig, &file, &ours, &[]), 65, "--accept-journal-gap 2-3");
    let named = ["--accept-journal-gap", "1-3"];
    refused(&restore(&rig, &file, &ours, &named), 65, "2-3 are missing");
    assert!(!rig.path("store.db").exists(), "nothing is there");
    assert!(!rig.path("audit").exists());
    // A log that is there is somebody's.
    std::fs::create_dir(rig.path("audit")).unwrap();
    std::fs::write(rig.path("audit").join("audit-000000.jsonl"), b"{}\n").unwrap();
    refused(&restore(&rig, &file, &ours, &[]), 65, "has an audit log");
    std::fs::remove_dir_all(rig.path("audit")).unwrap();
    // The newest does, whatever a restore that was cut short has left.
    std::fs::copy(&journal, rig.path("journal")).unwrap();
    for left in ["store.db.restoring", "store.db.restoring-wal"] {
        std::fs::write(rig.path(left), b"half").unwrap();
    }
    std::fs::create_dir(rig.path("audit.restoring")).unwrap();
    std::fs::write(rig.path("audit.restoring").join("audit-000000.jsonl"), b"half").unwrap();
    succeed(&restore(&rig, &file, &ours, &[]));
    // And one that was cut short when all was there, before or after its log was in its place, is finished.
    for is_log_in_place in [false, true] {
        std::fs::rename(rig.path("store.db"), rig.path("store.db.restored")).unwrap();
        if !is_log_in_place {
            std::fs::rename(rig.path("audit"), rig.path("audit.restoring")).unwrap();
        }
        let told = succeed(&restore(&rig, &file, &ours, &[]));
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(told["backup"], Value::Null, "{told}");
    }
    let server = rig.start();
    server.operator().await.wrap(&key_name("calm"), b"x", &[]).await.unwrap();
}

#[tokio::test]
async fn after_a_gap_that_was_accepted_a_key_protects_when_it_was_rotated() {
    let Lost { rig, backup: file, identity, first_entry, wrapped, .. } = lost().await;
    wipe(&rig);
    std::fs::copy(&first_entry, rig.path("journal")).unwrap();
    let accept = ["--accept-journal-gap", "2-3"];
    let told = succeed(&restore(&rig, &file, &identity, &accept));
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["protect_disabled"], true, "{told}");
    let server = rig.start();
    let client = server.operator().await;
    let calm = key_name("calm");
    refusal(client.wrap(&calm, b"x", &[]).await).is(Code::FailedPrecondition, "PROTECT_DISABLED");
    for (key, ciphertext) in &wrapped {
        assert_eq!(client.unwrap(key, ciphertext, &[]).await.unwrap(), b"secret", "{key}");
    }
    let (_, metrics) = server.get_over_tls("/metrics").await;
    let line = metrics.lines().find(|line| line.starts_with("holdfast_protect_disabled_keys "));
    assert!(line.is_some_and(|line| !line.ends_with(" 0")), "{line:?}");
    let (status, ready) = server.get_over_tls("/readyz").await;
    let ready: Value = serde_json::from_str(&ready).unwrap();
    assert_eq!((status, &ready["protect_disabled"]), (200, &true.into()), "{ready}");
    client.rotate(&calm).await;
    client.wrap(&calm, b"x", &[]).await.unwrap();
    drop(client);
    // It is in the journal, so it stays.
    let server = server.stop().await.start();
    let client = server.operator().await;
    refusal(client.wrap(&key_name("staged"), b"x", &[]).await)
        .is(Code::FailedPrecondition, "PROTECT_DISABLED");
    client.wrap(&calm, b"x", &[]).await.unwrap();
}

#[tokio::test]
async fn a_backup_is_for_those_who_may_and_for_recipients_that_are_not_ours() {
    let server = rig().start();
    let client = server.operator().await;
    client.create("k").await;
    let (_, recipient) = identity(&server.rig, "identity.txt");
    let out = server.rig.path("none.age");
    let ours = "age1kms1qyp8getnxqmn5cm0vf5hg6txdaehguejvf5kzctn9ekkjmrfvd6x7mf0d3hkzer5yvcrwtf3xsmsaf7u2e";
    let output = backup(&server, ours, &out);
    refused(&output, 5, "RECIPIENT_REFUSED");
    assert!(!out.exists(), "no half file");
    // The public listener has no such method.
    let request =
        prost::Message::encode_to_vec(&proto::BackupStoreRequest { recipient: recipient.clone() });
    let method = "kms.v1.AdminService/BackupStore";
    let answer = common::raw_call(&client.channel, method, request).await;
    refusal(answer.map(drop)).is(Code::Unimplemented, "METHOD_UNKNOWN");
    let good = server.rig.path("good.age");
    succeed(&backup(&server, &recipient, &good));
    refused(&backup(&server, &recipient, &good), 10, "FILE_EXISTS");
    let told: Vec<_> = server.records();
    let told = told.iter().filter(|record| record["operation"] == method);
    let results: Vec<_> = told.map(|record| record["result"].as_str().unwrap()).collect();
    assert_eq!(results, ["RECIPIENT_REFUSED", "METHOD_UNKNOWN", "PENDING", "OK"]);
}
