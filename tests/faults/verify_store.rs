//! `kms-server verify-store` on real databases: what agrees, what does not, and that nothing is written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::{Rig, Server};

/// A server with two keys that were used.
async fn used() -> Server {
    let server = Rig::new().start();
    let client = server.operator().await;
    for key_id in ["first", "second"] {
        let key = client.create(key_id).await.name;
        client.wrap(&key, b"x", &[]).await.unwrap();
    }
    server
}

/// Verifies, and returns the report of an end with `status`.
fn report(rig: &Rig, status: i32) -> Value {
    let output = rig.verify_store();
    assert_eq!(output.status.code(), Some(status), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Returns what is said when nothing could be verified.
fn refusal(rig: &Rig, status: i32) -> String {
    let output = rig.verify_store();
    assert_eq!(output.status.code(), Some(status), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn files(rig: &Rig) -> BTreeMap<PathBuf, Vec<u8>> {
    let list = |directory: &Path| {
        let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.is_file()).collect::<Vec<_>>()
    };
    let paths = list(&rig.path("")).into_iter().chain(list(&rig.path("audit")));
    paths.map(|path| (path.clone(), std::fs::read(&path).unwrap())).collect()
}

fn edit(rig: &Rig, sql: &str) {
    let database = rusqlite::Connection::open(rig.path("store.db")).unwrap();
    database.execute_batch(sql).unwrap();
    database.close().unwrap();
}

#[tokio::test]
async fn a_stopped_and_a_killed_server_leave_what_agrees_and_nothing_is_written() {
    let mut rig = used().await.stop().await;
    for killed in [false, true] {
        if killed {
            let mut server = rig.start();
            let client = server.operator().await;
            client.create("third").await;
            client.wrap("tenants/acme/keys/third", b"x", &[]).await.unwrap();
            server.process.kill();
            rig = server.rig;
            assert!(rig.path("store.db-wal").metadata().unwrap().len() > 0);
        }
        rig.check_config();
        let before = files(&rig);
        let report = report(&rig, 0);
        assert_eq!(files(&rig), before, "killed: {killed}");
        assert_eq!((&report["agrees"], &report["findings"]), (&true.into(), &Value::Array(vec![])));
        let keys = 2 + u64::from(killed);
        for rows in ["keys", "versions", "counters", "requests"] {
            assert_eq!(report[rows], keys, "{rows}");
        }
        assert_eq!((&report["tenants"], &report["tenants_not_in_log"]), (&1.into(), &0.into()));
        assert_eq!(report["log"]["last"], rig.records().len());
    }
}

#[tokio::test]
async fn a_deleted_key_is_found_though_the_server_starts() {
    let rig = used().await.stop().await;
    let uid = "(SELECT uid FROM keys WHERE key_id = 'second')";
    let deletion = format!(
        "PRAGMA foreign_keys = OFF; DROP TRIGGER keys_stay; DROP TRIGGER versions_stay;
         DELETE FROM counters WHERE key_uid = {uid}; DELETE FROM versions WHERE key_uid = {uid};
         DELETE FROM keys WHERE key_id = 'second'"
    );
    edit(&rig, &deletion);
    let report = report(&rig, 65);
    let findings = report["findings"].as_array().unwrap();
    let rows: Vec<_> = findings.iter().map(|finding| &finding["row"]).collect();
    assert_eq!(rows, ["history", "manifest", "version"], "{report}");
    let records = rig.records();
    let created = records.iter().rfind(|record| record["phase"] == "outcome").unwrap();
    assert_eq!(findings[2]["key_uid"], created["key_uid"]);
    assert_eq!((&findings[2]["tenant"], &findings[2]["key_version"]), (&"acme".into(), &1.into()));
    rig.start().stop().await;
}

#[tokio::test]
async fn a_counter_that_was_put_back_is_found() {
    let rig = used().await.stop().await;
    edit(&rig, "CREATE TABLE old AS SELECT * FROM counters");
    let server = rig.start();
    let client = server.operator().await;
    client.wrap("tenants/acme/keys/first", b"x", &[]).await.unwrap();
    let rig = server.stop().await;
    edit(
        &rig,
        "PRAGMA foreign_keys = OFF; DELETE FROM counters;
         INSERT INTO counters SELECT * FROM old; DROP TABLE old",
    );
    let report = report(&rig, 65);
    assert_eq!(report["findings"].as_array().unwrap().len(), 1, "{report}");
    assert_eq!(report["findings"][0]["row"], "counter");
}

#[tokio::test]
async fn an_edited_log_is_found() {
    let rig = used().await.stop().await;
    let log = rig.path("audit/audit-00000001.jsonl");
    let text = std::fs::read_to_string(&log).unwrap();
    std::fs::write(&log, text.replacen("\"result\":\"OK\"", "\"result\":\"NO\"", 1)).unwrap();
    let report = report(&rig, 65);
    assert_eq!((&report["log"], &report["findings"][0]["row"]), (&Value::Null, &"log".into()));
}

/// As a crash leaves it. Nothing acknowledged is in it.
#[tokio::test]
async fn an_unfinished_write_at_the_end_of_the_log_is_told_and_does_not_disagree() {
    let rig = used().await.stop().await;
    let log = rig.path("audit/audit-00000001.jsonl");
    let whole = std::fs::read(&log).unwrap();
    std::fs::write(&log, [&whole[..], b"{\"entry\":"].concat()).unwrap();
    let report = report(&rig, 0);
    assert_eq!(report["log"]["torn_bytes"], 9);
    assert_eq!(report["log"]["last"], rig.records().len());
    rig.start().stop().await;
}

#[tokio::test]
async fn what_a_server_holds_is_not_verified() {
    let server = used().await;
    let said = refusal(&server.rig, 74);
    assert!(said.contains("another process holds the database"), "{said}");
    server.stop().await;
}

#[tokio::test]
async fn without_the_token_nothing_is_verified_and_that_is_said() {
    let mut rig = used().await.stop().await;
    let tokens = rig.path("tokens");
    std::fs::rename(&tokens, rig.path("elsewhere")).unwrap();
    std::fs::create_dir(&tokens).unwrap();
    let said = refusal(&rig, 69);
    assert!(said.contains("nothing was verified: row MACs need root `mac`"), "{said}");
    std::fs::remove_dir(&tokens).unwrap();
    std::fs::rename(rig.path("elsewhere"), &tokens).unwrap();
    rig.pin_file = rig.secret_file("wrong-pin", "canary-wrong-pin");
    let said = refusal(&rig, 69);
    assert!(said.contains("PIN") && !said.contains("canary-wrong-pin"), "{said}");
}
