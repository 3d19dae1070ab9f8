//! A database that is not the one that the audit log has last seen: not served, unless the operator says that it is meant.

use std::path::Path;

use serde_json::Value;

use crate::common::calls::new_key;
use crate::common::{Grant, LIMIT, OPERATOR, Rig, refusal};

const FLAG: &str = "--accept-restored-store";
/// So many tenants are told of one by one.
const MAX_TOLD: usize = 100;

/// Copies the database of a server that was stopped in an orderly way: everything is in the one file.
fn keep(rig: &Rig) {
    assert!(!rig.path("store.db-wal").exists());
    std::fs::copy(rig.path("store.db"), rig.path("kept.db")).unwrap();
}

fn put_back(rig: &Rig) {
    std::fs::copy(rig.path("kept.db"), rig.path("store.db")).unwrap();
}

/// A stopped server whose database was put back to where it was two changes before.
async fn rolled_back() -> Rig {
    let server = Rig::new().start();
    server.operator().await.create("first").await;
    let rig = server.stop().await;
    keep(&rig);
    let server = rig.start();
    let client = server.operator().await;
    client.create("second").await;
    client.create("third").await;
    let rig = server.stop().await;
    put_back(&rig);
    rig
}

/// Starts, and returns what was said by the time that the process had ended with `status`.
fn refused(rig: &Rig, status: i32) -> String {
    let mut process = rig.spawn();
    assert_eq!(process.await_end(LIMIT).code(), Some(status), "{}", process.stderr());
    assert!(!process.stderr().contains("serving listen="), "{}", process.stderr());
    process.stderr()
}

fn accepted(records: &[Value]) -> Vec<&Value> {
    records.iter().filter(|record| record["operation"] == "internal/AcceptStore").collect()
}

async fn start_and_stop(rig: Rig) -> (Rig, String) {
    let server = rig.start();
    server.operator().await.wrap("tenants/acme/keys/first", b"x", &[]).await.unwrap();
    let said = server.process.stderr();
    (server.stop().await, said)
}

#[tokio::test]
async fn a_database_that_was_rolled_back_is_refused_accepted_once_and_then_agrees() {
    let mut rig = rolled_back().await;
    let before = rig.records().len();
    let said = refused(&rig, 65);
    assert!(said.contains("alert=\"store_rolled_back\""), "{said}");
    let error = said.lines().find(|line| line.starts_with("error: ")).unwrap();
    for part in ["tenant `acme`", "revision 1 in", "seen revision 3", "start once with"] {
        assert!(error.contains(part), "{error}");
    }
    let (_, code) = error.rsplit_once(&format!("{FLAG} ")).unwrap();
    assert_eq!(rig.accepting(), [FLAG, code], "verify-store gives the same");
    rig.arguments = vec![FLAG.into(), "0123456789abcdef".into()];
    let said = refused(&rig, 65);
    assert!(said.contains("the code 0123456789abcdef stands for another database"), "{said}");
    rig.arguments = vec![FLAG.into(), "yes".into()];
    assert!(refused(&rig, 2).contains("a code has 16 hexadecimal digits"));
    assert_eq!(rig.records().len(), before, "nothing was done");

    rig.arguments = vec![FLAG.into(), code.into()];
    let (rig, said) = start_and_stop(rig).await;
    assert!(said.contains("the database was accepted as it is"), "{said}");
    let records = rig.records();
    let [record] = accepted(&records)[..] else { panic!("{records:?}") };
    assert_eq!((&record["tenant"], &record["result"]), (&"acme".into(), &"STORE_ACCEPTED".into()));
    assert_eq!(record["manifest"]["revision"], 1);
    let at = |wanted: &Value| records.iter().position(|record| record == wanted).unwrap();
    let served = records.iter().rfind(|record| record["operation"] == "kms.v1.CryptoService/Wrap");
    assert!(at(record) < at(served.unwrap()), "recorded before anything was served");

    // Left where it was, it does nothing, and is told of.
    let (mut rig, said) = start_and_stop(rig).await;
    assert!(said.contains("--accept-restored-store was not needed"), "{said}");
    rig.arguments = vec![];
    let (rig, said) = start_and_stop(rig).await;
    assert!(!said.contains("alert=") && !said.contains("was not needed"), "{said}");
    assert_eq!(accepted(&rig.records()).len(), 1);
}

/// A latched HSM makes no MACs, so nothing is compared; but nothing is served or recovered either.
#[tokio::test]
async fn a_database_that_was_rolled_back_passes_under_no_latch() {
    passes_under_no_latch(rolled_back().await).await;
}

/// Of an empty database no MAC is asked for. The latch is told all the same, and first.
#[tokio::test]
async fn an_empty_database_passes_under_no_latch() {
    passes_under_no_latch(emptied().await).await;
}

async fn passes_under_no_latch(mut rig: Rig) {
    let right = rig.pin_file.clone();
    rig.pin_file = rig.secret_file("wrong-pin", "canary-wrong-pin");
    let before = rig.records().len();
    let server = rig.start();
    let said = server.process.stderr();
    let at = |part: &str| said.find(part).unwrap_or_else(|| panic!("`{part}` is not in {said}"));
    assert!(
        at("the token refused the PIN")
            < at("the database is not compared with the log: the hsm is latched")
    );
    let client = server.operator().await;
    refusal(client.wrap("tenants/acme/keys/first", b"x", &[]).await);
    let mut rig = server.stop().await;
    let records = rig.records();
    assert!(records[before..].iter().all(|record| record["result"] != "OK"), "{records:?}");
    rig.pin_file = right;
    refused(&rig, 65);
}

/// A stopped server whose database was exchanged for one that is pinned as the right one is, but has no keys.
async fn emptied() -> Rig {
    let server = Rig::new().start();
    let rig = server.stop().await;
    keep(&rig);
    let server = rig.start();
    server.operator().await.create("first").await;
    let rig = server.stop().await;
    put_back(&rig);
    rig
}

#[tokio::test]
async fn another_database_is_refused_and_said_to_be_another() {
    let rig = emptied().await;
    let said = refused(&rig, 65);
    assert!(said.contains("tenant `acme` has no manifest in the database"), "{said}");
    assert!(said.contains("this is another database"), "{said}");
}

#[tokio::test]
async fn disagreements_are_told_up_to_their_bound_and_not_one_more() {
    let mut rig = Rig::new();
    let tenants: Vec<_> = (0..=MAX_TOLD).map(|number| format!("p{number}")).collect();
    rig.grants =
        tenants.iter().map(|tenant| Grant::new(OPERATOR, tenant, &["create_key"])).collect();
    let server = rig.start();
    let client = server.operator().await;
    for tenant in &tenants {
        let mut key = new_key("k");
        key.parent = format!("tenants/{tenant}");
        client.keys().create_key(key).await.unwrap();
    }
    let rig = server.stop().await;
    for (gone, disagreeing) in [("tenant <> 'p0'", MAX_TOLD), ("tenant = 'p0'", MAX_TOLD + 1)] {
        let database = rusqlite::Connection::open(rig.path("store.db")).unwrap();
        database.execute(&format!("DELETE FROM manifests WHERE {gone}"), []).unwrap();
        database.close().unwrap();
        let said = refused(&rig, 65);
        assert_eq!(said.matches("alert=\"store_rolled_back\"").count(), MAX_TOLD, "{disagreeing}");
        assert!(said.contains(&format!("and {} more tenants", disagreeing - 1)), "{said}");
    }
}

#[tokio::test]
async fn a_log_that_begins_anew_is_told_of() {
    let server = Rig::new().start();
    server.operator().await.create("first").await;
    let rig = server.stop().await;
    move_away(&rig.path("audit"));
    let (rig, said) = start_and_stop(rig).await;
    assert!(said.contains("the log has no manifest of some tenants"), "{said}");
    assert_eq!(accepted(&rig.records()), Vec::<&Value>::new());
}

fn move_away(directory: &Path) {
    std::fs::rename(directory, directory.with_extension("old")).unwrap();
}
