//! What the product is for, with its keys in PostgreSQL.

use kms_proto::v1 as proto;
use kms_testkit::Postgres;

use crate::common::calls::{new_key, pairs, request_id};
use crate::common::{Client, Rig};

const CONTEXT: &[(&str, &str)] = &[("backup", "nightly")];

async fn rewrap(client: &Client, key: &str, ciphertext: &[u8]) -> proto::RewrapResponse {
    let request = proto::RewrapRequest {
        key: key.to_owned(),
        ciphertext: ciphertext.to_vec().into(),
        context: pairs(CONTEXT),
    };
    client.crypto().rewrap(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn a_key_is_made_used_rotated_and_rewrapped_and_is_there_after_a_restart() {
    let database = Postgres::shared().fresh_database();
    let server = Rig::on_postgres(&database).start();
    let client = server.operator().await;
    let mut kept = vec![];
    for protection in [proto::Protection::HsmWrapped, proto::Protection::HsmResident] {
        let id = format!("main-{}", protection as i32);
        let request = proto::CreateKeyRequest { protection: protection.into(), ..new_key(&id) };
        let key = client.keys().create_key(request).await.unwrap().into_inner().name;
        let first = client.wrap(&key, b"secret", CONTEXT).await.unwrap();
        assert_eq!(client.rotate(&key).await.version.unwrap().version, 2);
        let second = rewrap(&client, &key, &first.ciphertext).await;
        for ciphertext in [&first.ciphertext, &second.ciphertext] {
            assert_eq!(client.unwrap(&key, ciphertext, CONTEXT).await.unwrap(), b"secret");
        }
        kept.push((key, [first.ciphertext, second.ciphertext]));
    }
    let rig = server.stop().await;
    assert!(!rig.path("store.db").exists(), "nothing is in a file");
    assert_eq!(database.sql("SELECT count(*) FROM versions"), "4");

    let server = rig.start();
    let client = server.operator().await;
    for (key, ciphertexts) in &kept {
        for ciphertext in ciphertexts {
            assert_eq!(client.unwrap(key, ciphertext, CONTEXT).await.unwrap(), b"secret");
        }
        assert_eq!(client.rotate(key).await.version.unwrap().version, 3);
    }
    server.stop().await;
}

/// The first answer is remembered in the database, so it is given again after a restart.
#[tokio::test]
async fn a_repeated_change_is_made_once_over_a_restart() {
    let database = Postgres::shared().fresh_database();
    let server = Rig::on_postgres(&database).start();
    let request = proto::CreateKeyRequest { request_id: request_id(), ..new_key("once") };
    let first = server.operator().await.keys().create_key(request.clone()).await.unwrap();
    let server = server.stop().await.start();
    let again = server.operator().await.keys().create_key(request).await.unwrap();
    assert_eq!(again.into_inner().uid, first.into_inner().uid);
    assert_eq!(database.sql("SELECT count(*) FROM keys"), "1");
    server.stop().await;
}
