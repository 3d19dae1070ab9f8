//! Rows that were edited behind the server's back: refused, while all others go on.

use kms_proto::v1 as proto;
use tonic::Code;

use crate::common::{Client, Rig, Server, refusal};

/// Starts a server with two keys, stops it, edits the database, and starts again.
async fn after(edit: &str) -> (Server, Client, [Vec<u8>; 2]) {
    let server = Rig::new().start();
    let client = server.operator().await;
    let mut wrapped = vec![];
    for key_id in ["edited", "untouched"] {
        let key = client.create(key_id).await.name;
        wrapped.push(client.wrap(&key, key_id.as_bytes(), &[]).await.unwrap().ciphertext.to_vec());
    }
    let rig = server.stop().await;
    let database = rusqlite::Connection::open(rig.path("store.db")).unwrap();
    // The guard against revisions that do not grow is passed as an attacker would pass it.
    assert!(database.execute(edit, []).unwrap() > 0, "nothing was edited");
    database.close().unwrap();
    let server = rig.start();
    let client = server.operator().await;
    (server, client, wrapped.try_into().unwrap())
}

const EDITED: &str = "tenants/acme/keys/edited";
const UNTOUCHED: &str = "tenants/acme/keys/untouched";
const ITS_UID: &str = "(SELECT uid FROM keys WHERE key_id = 'edited')";

/// Asserts that the edited key is refused for what it is, that operators are told, and that the other key works.
async fn is_refused(server: &Server, client: &Client, wrapped: &[Vec<u8>; 2]) {
    for refused in [
        refusal(client.wrap(EDITED, b"x", &[]).await),
        refusal(client.unwrap(EDITED, &wrapped[0], &[]).await),
    ] {
        assert!(!refused.is(Code::DataLoss, "KEY_INTEGRITY").retryable);
        assert_eq!(refused.message, "the key failed its integrity check");
    }
    works(client, wrapped).await;
    let told = server.process.stderr();
    assert!(told.lines().any(|line| line.contains("KEY_INTEGRITY")), "{told}");
    let records = server.records();
    assert!(records.iter().any(|record| record["result"] == "KEY_INTEGRITY"));
}

async fn works(client: &Client, wrapped: &[Vec<u8>; 2]) {
    assert_eq!(client.unwrap(UNTOUCHED, &wrapped[1], &[]).await.unwrap(), b"untouched");
    assert!(client.wrap(UNTOUCHED, b"x", &[]).await.is_ok());
}

#[tokio::test]
async fn an_edited_key_row_is_refused() {
    let edit = "UPDATE keys SET owner = 'mallory', revision = revision + 1 WHERE key_id = 'edited'";
    let (server, client, wrapped) = after(edit).await;
    is_refused(&server, &client, &wrapped).await;
    let request = proto::DescribeKeyRequest { name: EDITED.to_owned() };
    refusal(client.keys().describe_key(request).await).is(Code::DataLoss, "KEY_INTEGRITY");
    let request = proto::RotateKeyRequest {
        name: EDITED.to_owned(),
        reason: String::new(),
        request_id: crate::common::request_id(),
    };
    refusal(client.keys().rotate_key(request).await).is(Code::DataLoss, "KEY_INTEGRITY");
    server.stop().await;
}

#[tokio::test]
async fn key_material_swapped_for_another_keys_is_refused() {
    let other = "(SELECT uid FROM keys WHERE key_id = 'untouched')";
    let edit = format!(
        "UPDATE versions SET revision = revision + 1, \
         material = (SELECT material FROM versions WHERE key_uid = {other}), \
         check_blob = (SELECT check_blob FROM versions WHERE key_uid = {other}) \
         WHERE key_uid = {ITS_UID}"
    );
    let (server, client, wrapped) = after(&edit).await;
    is_refused(&server, &client, &wrapped).await;
    server.stop().await;
}

#[tokio::test]
async fn an_edited_counter_is_refused() {
    let edit = format!(
        "UPDATE counters SET leased = 0, revision = revision + 1 WHERE key_uid = {ITS_UID}"
    );
    let (server, client, wrapped) = after(&edit).await;
    refusal(client.wrap(EDITED, b"x", &[]).await).is(Code::DataLoss, "KEY_INTEGRITY");
    works(&client, &wrapped).await;
    server.stop().await;
}
