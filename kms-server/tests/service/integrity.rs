//! Rows that were edited, swapped or rolled back behind our back.

use kms_core::name::TenantName;

use crate::support::*;

const KEY: &str = "tenants/t/keys/k";
const WRAP: &str = "kms.v1.CryptoService/Wrap";

fn sql(world: &World, statement: &str) {
    let database = rusqlite::Connection::open(world.database()).unwrap();
    database.execute_batch(statement).unwrap();
}

/// Removes what the schema itself guards, as one with write access to the file would.
fn unguard(world: &World) {
    sql(world, "DROP TRIGGER keys_guard; DROP TRIGGER versions_guard; PRAGMA foreign_keys = OFF");
}

#[tokio::test]
async fn an_edited_row_is_refused_with_an_alert() {
    let edits = [
        "UPDATE keys SET owner = 'mallory'",
        "UPDATE keys SET labels = '{\"a\":\"b\"}'",
        "UPDATE keys SET mac = zeroblob(32)",
        "UPDATE versions SET state_reason = 'x'",
        "UPDATE versions SET generation = 2",
        "UPDATE versions SET material = zeroblob(40)",
    ];
    for edit in edits {
        let world = World::new().await;
        world.create(KEY).await;
        unguard(&world);
        sql(&world, edit);
        let refused = world.kms.wrap(&world.request(WRAP), wrap(KEY, b"x")).await.unwrap_err();
        assert_eq!(refused.reason(), "KEY_INTEGRITY", "{edit}");
        assert_eq!(world.kms.counters().integrity_failures.read(), 1, "{edit}");
        assert_eq!(refused.public_text(), "the key failed its integrity check");
        let described = world.kms.describe_key(&world.request(WRAP), &name(KEY)).await;
        assert_eq!(described.unwrap_err().reason(), "KEY_INTEGRITY", "{edit}");
    }
}

#[tokio::test]
async fn swapped_rows_are_refused() {
    let world = World::new().await;
    world.create(KEY).await;
    world.create("tenants/t/keys/other").await;
    unguard(&world);
    sql(
        &world,
        "UPDATE keys SET key_id = 'x' WHERE key_id = 'k';
         UPDATE keys SET key_id = 'k' WHERE key_id = 'other';
         UPDATE keys SET key_id = 'other' WHERE key_id = 'x';",
    );
    let refused = world.kms.wrap(&world.request(WRAP), wrap(KEY, b"x")).await.unwrap_err();
    assert_eq!(refused.reason(), "KEY_INTEGRITY");
}

#[tokio::test]
async fn a_row_that_was_rolled_back_shows_against_the_manifest() {
    let world = World::new().await;
    let tenant = TenantName::from_id("t").unwrap();
    world.create(KEY).await;
    sql(&world, "CREATE TABLE old AS SELECT * FROM versions");
    let change = kms_server::service::ChangeVersionState {
        name: format!("{KEY}/versions/1").parse().unwrap(),
        reason: "test".into(),
        request_id: fresh_id(),
    };
    world.kms.suspend_key_version(&world.request(WRAP), change).await.unwrap();
    let stamp = world.kms.verify_manifest(&tenant).await.unwrap();
    assert_eq!(world.last().manifest, Some(stamp), "the record carries the manifest");
    unguard(&world);
    sql(
        &world,
        "UPDATE versions SET (state, state_time, state_reason, revision, mac) =
            (SELECT state, state_time, state_reason, revision, mac FROM old)",
    );
    let refused = world.kms.verify_manifest(&tenant).await.unwrap_err();
    assert_eq!(refused.reason(), "KEY_INTEGRITY");
}

#[tokio::test]
async fn an_edited_manifest_stops_mutations() {
    let world = World::new().await;
    world.create(KEY).await;
    sql(&world, "UPDATE manifests SET row_set = zeroblob(2048), revision = revision + 1");
    let request = world.request("kms.v1.KeyService/CreateKey");
    let refused = world.kms.create_key(&request, create("tenants/t/keys/new")).await.unwrap_err();
    assert_eq!(refused.reason(), "KEY_INTEGRITY");
    assert!(world.store.intents().await.unwrap().rows.is_empty(), "nothing stays half done");
}

#[tokio::test]
async fn an_edited_result_of_a_request_is_not_answered() {
    let edits = [
        "result = CAST(replace(CAST(result AS TEXT), 'team', 'mallory') AS BLOB)",
        "time = time + 1",
    ];
    for edit in edits {
        let world = World::new().await;
        let request = world.request("kms.v1.KeyService/CreateKey");
        let wanted = create(KEY);
        let first = world.kms.create_key(&request, wanted.clone()).await.unwrap();
        assert_eq!(world.kms.create_key(&request, wanted.clone()).await.unwrap(), first);
        sql(&world, &format!("UPDATE requests SET {edit}"));
        let refused = world.kms.create_key(&request, wanted).await.unwrap_err();
        assert_eq!(refused.reason(), "KEY_INTEGRITY", "{edit}");
    }
}

#[tokio::test]
async fn a_value_outside_its_type_raises_the_alert_wherever_it_is_read() {
    for call in ["describe", "list", "wrap", "rotate", "create"] {
        let world = World::new().await;
        world.create(KEY).await;
        unguard(&world);
        sql(&world, "UPDATE keys SET labels = '[1]'");
        let request = world.request(WRAP);
        let reason = match call {
            "describe" => world.kms.describe_key(&request, &name(KEY)).await.err(),
            "list" => {
                let tenant = TenantName::from_id("t").unwrap();
                let list = kms_server::service::ListKeys::all(tenant);
                world.kms.list_keys(&request, list).await.err()
            }
            "wrap" => world.kms.wrap(&request, wrap(KEY, b"x")).await.err(),
            "rotate" => {
                let rotate = kms_server::service::RotateKey {
                    name: name(KEY),
                    reason: String::new(),
                    request_id: fresh_id(),
                };
                world.kms.rotate_key(&request, rotate).await.err()
            }
            _ => world.kms.create_key(&request, create(KEY)).await.err(),
        };
        assert_eq!(reason.map(|error| error.reason()), Some("KEY_INTEGRITY"), "{call}");
        assert_eq!(world.kms.counters().integrity_failures.read(), 1, "{call}");
    }
}

#[tokio::test]
async fn an_edited_counter_stops_a_change_of_state_and_is_not_told() {
    let world = World::new().await;
    world.create(KEY).await;
    unguard(&world);
    sql(&world, "DROP TRIGGER counters_guard; UPDATE counters SET mac = zeroblob(32)");
    let change = kms_server::service::ChangeVersionState {
        name: format!("{KEY}/versions/1").parse().unwrap(),
        reason: "test".into(),
        request_id: fresh_id(),
    };
    let refused = world.kms.suspend_key_version(&world.request(WRAP), change).await.unwrap_err();
    assert_eq!(refused.reason(), "KEY_INTEGRITY");
    assert!(world.store.intents().await.unwrap().rows.is_empty());
}
