//! Consumers: registered, listed, removed; and as long as there is one, nothing of the key is destroyed.

use std::time::Duration;

use kms_core::consumer::{MAX_CONSUMER_DESCRIPTION_BYTES, MAX_CONSUMERS};
use kms_core::key::Protection;
use kms_core::lifecycle::DEFAULT_DESTRUCTION_WINDOW;
use kms_core::state::VersionState;
use kms_server::authz::ActionKind;
use kms_server::service::{
    ConsumerDescription, ListKeyHistory, RegisterConsumer, RemoveConsumer, ScheduleDestruction,
    ServiceError, VersionDescription,
};

use crate::mutations::{Case, KEY, Kind, check, consumer};
use crate::support::*;

const SCHEDULE: &str = "kms.v1.KeyService/ScheduleKeyVersionDestruction";

async fn register(world: &World, id: &str) -> Result<ConsumerDescription, ServiceError> {
    let request = world.request("kms.v1.KeyService/RegisterConsumer");
    let description = "storage team".to_owned();
    let register = RegisterConsumer { name: consumer(id), description, request_id: fresh_id() };
    world.kms.register_consumer(&request, register).await
}

async fn remove(world: &World, id: &str) -> Result<ConsumerDescription, ServiceError> {
    let request = world.request("kms.v1.KeyService/RemoveConsumer");
    let reason = "moved".to_owned();
    let remove = RemoveConsumer { name: consumer(id), reason, request_id: fresh_id() };
    world.kms.remove_consumer(&request, remove).await
}

async fn list(world: &World) -> Result<Vec<String>, ServiceError> {
    let request = world.request("kms.v1.KeyService/ListConsumers");
    let consumers = world.kms.list_consumers(&request, &name(KEY)).await?;
    Ok(consumers.iter().map(|consumer| consumer.name.consumer_id().to_owned()).collect())
}

async fn schedule(
    world: &World,
    principal: &str,
    allow_consumers: bool,
) -> Result<VersionDescription, ServiceError> {
    let schedule = ScheduleDestruction {
        name: format!("{KEY}/versions/1").parse().unwrap(),
        window: DEFAULT_DESTRUCTION_WINDOW,
        allow_recent_use: false,
        allow_consumers,
        reason: "test".into(),
        request_id: fresh_id(),
    };
    let request = world.request_of(principal, SCHEDULE);
    world.kms.schedule_key_version_destruction(&request, schedule).await
}

async fn state(world: &World) -> VersionState {
    let request = world.request("kms.v1.KeyService/DescribeKeyVersion");
    let version = format!("{KEY}/versions/1").parse().unwrap();
    world.kms.describe_key_version(&request, &version).await.unwrap().state
}

/// A key whose version 1 is DEACTIVATED.
async fn world(protection: Protection) -> World {
    Case { kind: Kind::Schedule, protection }.world().await
}

#[tokio::test]
async fn consumers_are_registered_listed_by_id_and_removed() {
    let world = world(Protection::HsmWrapped).await;
    assert_eq!(list(&world).await.unwrap(), Vec::<String>::new());
    let made = register(&world, "b").await.unwrap();
    assert_eq!((&*made.description, &*made.actor), ("storage team", ADMIN));
    register(&world, "a").await.unwrap();
    let taken = register(&world, "a").await.unwrap_err();
    assert_eq!(taken.reason(), "CONSUMER_EXISTS");
    let fresh = world.restart();
    assert_eq!(list(&fresh).await.unwrap(), ["a", "b"]);
    let request = fresh.request("kms.v1.KeyService/DescribeKey");
    assert_eq!(fresh.kms.describe_key(&request, &name(KEY)).await.unwrap().consumer_count, 2);
    assert_eq!(remove(&fresh, "b").await.unwrap(), made);
    assert_eq!(remove(&fresh, "b").await.unwrap_err().reason(), "CONSUMER_NOT_FOUND");
    assert_eq!(list(&fresh).await.unwrap(), ["a"]);
    register(&fresh, "b").await.unwrap();
    check(&fresh, "consumers").await;
    assert_eq!(fresh.last().resource.unwrap().to_string(), consumer("b").to_string());
}

#[tokio::test]
async fn the_history_of_the_key_tells_of_consumers() {
    let world = world(Protection::HsmWrapped).await;
    world.clock.advance(Duration::from_secs(1));
    register(&world, "a").await.unwrap();
    world.clock.advance(Duration::from_secs(1));
    remove(&world, "a").await.unwrap();
    let list = ListKeyHistory { key: name(KEY), page_size: 0, page_token: String::new() };
    let request = world.request("kms.v1.KeyService/ListKeyHistory");
    let entries = world.kms.list_key_history(&request, list).await.unwrap().items;
    let told: Vec<_> = entries
        .iter()
        .filter(|entry| !entry.detail.is_empty())
        .map(|entry| (&*entry.detail, &*entry.reason, &*entry.actor))
        .collect();
    let came = r#"{"consumers/a":[null,"storage team"]}"#;
    let went = r#"{"consumers/a":["storage team",null]}"#;
    assert_eq!(told, [(came, "", ADMIN), (went, "moved", ADMIN)]);
}

#[tokio::test]
async fn no_destruction_is_planned_as_long_as_there_is_a_consumer() {
    for protection in [Protection::HsmWrapped, Protection::HsmResident] {
        let world = world(protection).await;
        register(&world, "a").await.unwrap();
        let refused = schedule(&world, ADMIN, false).await.unwrap_err();
        assert_eq!(refused, ServiceError::ConsumersRegistered { count: 1 });
        assert_eq!(state(&world).await, VersionState::Deactivated);
        remove(&world, "a").await.unwrap();
        schedule(&world, ADMIN, false).await.unwrap();
        world.clock.advance(DEFAULT_DESTRUCTION_WINDOW);
        assert_eq!(world.kms.reconcile().await.unwrap().destroyed, 1);
        check(&world, "destroyed").await;
    }
}

#[tokio::test]
async fn a_consumer_that_registers_meanwhile_holds_the_destruction() {
    let world = world(Protection::HsmResident).await;
    schedule(&world, ADMIN, false).await.unwrap();
    register(&world, "late").await.unwrap();
    world.clock.advance(DEFAULT_DESTRUCTION_WINDOW * 2);
    let done = world.kms.reconcile().await.unwrap();
    assert_eq!((done.destroyed, done.failed), (0, 0));
    assert_eq!(state(&world).await, VersionState::DestroyScheduled);
    remove(&world, "late").await.unwrap();
    assert_eq!(world.kms.reconcile().await.unwrap().destroyed, 1);
    check(&world, "destroyed").await;
}

#[tokio::test]
async fn who_is_permitted_destroys_despite_consumers_and_nobody_else() {
    let plain: Vec<_> = ActionKind::ALL
        .iter()
        .copied()
        .filter(|action| *action != ActionKind::DestroyWithConsumers)
        .collect();
    let world = world(Protection::HsmWrapped).await;
    register(&world, "a").await.unwrap();
    let world = world.restart_granting(&[grant("plain", "t", &plain)]);
    let refused = schedule(&world, "plain", true).await.unwrap_err();
    assert_eq!(refused, ServiceError::AccessDenied);
    schedule(&world, ADMIN, true).await.unwrap();
    // One more changes nothing: it was decided knowing of some.
    register(&world, "b").await.unwrap();
    world.clock.advance(DEFAULT_DESTRUCTION_WINDOW);
    assert_eq!(world.kms.reconcile().await.unwrap().destroyed, 1);
    assert_eq!(state(&world).await, VersionState::Destroyed);
    check(&world, "destroyed").await;
}

#[tokio::test]
async fn who_knew_of_no_consumer_did_not_decide_about_one_that_comes_later() {
    let world = world(Protection::HsmWrapped).await;
    schedule(&world, ADMIN, true).await.unwrap();
    let told = world.last().reason.unwrap();
    assert_eq!(told, "test [allows consumers]", "the override is on record");
    register(&world, "late").await.unwrap();
    world.clock.advance(DEFAULT_DESTRUCTION_WINDOW);
    assert_eq!(world.kms.reconcile().await.unwrap().destroyed, 0);
}

#[tokio::test]
async fn who_may_not_describe_keys_learns_of_no_consumer() {
    let world = world(Protection::HsmWrapped).await;
    let world = world.restart_granting(&[grant("blind", "t", &[ActionKind::RemoveConsumer])]);
    let remove = |id: &str| RemoveConsumer {
        name: consumer(id),
        reason: "r".into(),
        request_id: fresh_id(),
    };
    let request = world.request_of("blind", "kms.v1.KeyService/RemoveConsumer");
    let refused = world.kms.remove_consumer(&request, remove("none")).await;
    assert_eq!(refused, Err(ServiceError::AccessDenied));
    register(&world, "one").await.unwrap();
    world.kms.remove_consumer(&request, remove("one")).await.unwrap();
}

#[tokio::test]
async fn a_consumer_that_was_edited_or_taken_away_shows() {
    let world = world(Protection::HsmWrapped).await;
    register(&world, "a").await.unwrap();
    register(&world, "b").await.unwrap();
    let database = rusqlite::Connection::open(world.database()).unwrap();
    database
        .execute_batch(
            "DROP TRIGGER consumers_stand;
             UPDATE consumers SET description = 'nobody' WHERE consumer_id = 'a';",
        )
        .unwrap();
    assert_eq!(list(&world).await.unwrap_err().reason(), "KEY_INTEGRITY");
    database.execute_batch("DELETE FROM consumers WHERE consumer_id = 'a';").unwrap();
    assert_eq!(list(&world).await.unwrap_err().reason(), "KEY_INTEGRITY");
    assert_eq!(remove(&world, "b").await.unwrap_err().reason(), "KEY_INTEGRITY");
    let refused = world.kms.verify_manifest(name(KEY).tenant()).await.unwrap_err();
    assert_eq!(refused.reason(), "KEY_INTEGRITY");
    // The count is in the key's row: the destruction is refused all the same.
    database.execute_batch("DELETE FROM consumers;").unwrap();
    let refused = schedule(&world, ADMIN, false).await.unwrap_err();
    assert_eq!(refused, ServiceError::ConsumersRegistered { count: 2 });
}

#[tokio::test]
async fn texts_and_the_number_of_consumers_are_bounded() {
    let world = World::new().await;
    world.create(KEY).await;
    let request = world.request("kms.v1.KeyService/RegisterConsumer");
    let longest = "d".repeat(MAX_CONSUMER_DESCRIPTION_BYTES);
    for description in [String::new(), format!("{longest}d"), "two\nlines".to_owned()] {
        let wrong = RegisterConsumer { name: consumer("a"), description, request_id: fresh_id() };
        let refused = world.kms.register_consumer(&request, wrong).await.unwrap_err();
        assert_eq!(refused.reason(), "FIELD_VIOLATION");
    }
    let right =
        RegisterConsumer { name: consumer("a"), description: longest, request_id: fresh_id() };
    world.kms.register_consumer(&request, right).await.unwrap();
    for number in 1..MAX_CONSUMERS {
        register(&world, &format!("c{number}")).await.unwrap();
    }
    assert_eq!(register(&world, "one-more").await, Err(ServiceError::ConsumersFull));
    assert_eq!(list(&world).await.unwrap().len(), MAX_CONSUMERS as usize);
    remove(&world, "a").await.unwrap();
    register(&world, "one-more").await.unwrap();
}
