//! Rows and databases that were changed behind the server's back.

use kms_testkit::Postgres;
use kms_testkit::postgres::Database;
use tonic::Code;

use crate::common::{LIMIT, Rig, refusal};

#[tokio::test]
async fn an_edited_row_is_refused_and_the_others_go_on() {
    let database = Postgres::shared().fresh_database();
    let server = Rig::on_postgres(&database).start();
    let client = server.operator().await;
    let mut wrapped = vec![];
    for key_id in ["edited", "untouched"] {
        let key = client.create(key_id).await.name;
        let ciphertext = client.wrap(&key, b"secret", &[]).await.unwrap().ciphertext;
        wrapped.push((key, ciphertext));
    }
    let rig = server.stop().await;
    database
        .sql("UPDATE keys SET owner = 'mallory', revision = revision + 1 WHERE key_id = 'edited'");
    let server = rig.start();
    let client = server.operator().await;
    let (key, ciphertext) = &wrapped[0];
    for refused in [
        refusal(client.wrap(key, b"x", &[]).await),
        refusal(client.unwrap(key, ciphertext, &[]).await),
    ] {
        assert!(!refused.is(Code::DataLoss, "KEY_INTEGRITY").retryable);
    }
    let (key, ciphertext) = &wrapped[1];
    assert_eq!(client.unwrap(key, ciphertext, &[]).await.unwrap(), b"secret");
    server.stop().await;
}

/// Copies a database that nobody uses.
fn copy(database: &Database, name: &str) -> Database {
    database.sql_outside(&format!("CREATE DATABASE {name} TEMPLATE {}", database.name));
    database.sql_outside(&format!("ALTER DATABASE {name} OWNER TO {}", database.user));
    let mut copy = database.clone();
    name.clone_into(&mut copy.name);
    copy
}

#[tokio::test]
async fn a_database_that_was_put_back_is_refused_and_accepted_once() {
    let database = Postgres::shared().fresh_database();
    let server = Rig::on_postgres(&database).start();
    server.operator().await.create("first").await;
    let mut rig = server.stop().await;
    let kept = copy(&database, "kept");
    let server = rig.start();
    server.operator().await.create("second").await;
    rig = server.stop().await;
    rig.postgres = Some(kept.toml());
    let mut process = rig.spawn();
    assert_eq!(process.await_end(LIMIT).code(), Some(65), "{}", process.stderr());
    let said = process.stderr();
    assert!(said.contains("alert=\"store_rolled_back\""), "{said}");
    let (_, code) = said.trim_end().rsplit_once("--accept-restored-store ").unwrap();
    rig.arguments = vec!["--accept-restored-store".into(), code.into()];
    let server = rig.start();
    assert!(server.process.stderr().contains("the database was accepted as it is"));
    assert!(server.operator().await.wrap("tenants/acme/keys/first", b"x", &[]).await.is_ok());
    server.stop().await;
}
