//! Mutations that end badly without a crash: what the same process makes of them.

use std::time::Duration;

use kms_core::audit::Phase;
use kms_core::key::Protection;
use kms_server::service::{CreateKey, ServiceError};

use crate::support::*;

const KEY: &str = "tenants/t/keys/k";
const CREATE: &str = "kms.v1.KeyService/CreateKey";

fn resident() -> CreateKey {
    CreateKey { protection: Protection::HsmResident, ..create(KEY) }
}

/// External calls of a creation that come after its commit: the outcome record, and the close of its intent.
const AFTER_COMMIT: i64 = 2;

/// Returns how many external calls a creation makes before its commit.
async fn before_commit() -> i64 {
    let world = World::new().await;
    world.kms.create_key(&world.request(CREATE), resident()).await.unwrap();
    world.faults.calls() - AFTER_COMMIT - 1
}

async fn objects(world: &World) -> usize {
    let deadline = world.request(CREATE).deadline;
    world.hsm.list_token_keys(deadline).await.unwrap().residents.len()
}

#[tokio::test]
async fn a_creation_that_has_begun_goes_on_when_its_caller_has_stopped_waiting() {
    let world = World::new().await;
    world.faults.slow_generation(&world.clock, Duration::from_secs(20));
    let request = world.request(CREATE);
    assert!(request.deadline < world.request(CREATE).received + Duration::from_secs(20));
    world.kms.create_key(&request, resident()).await.unwrap();
    assert!(world.store.intents().await.unwrap().rows.is_empty());
    assert_eq!(objects(&world).await, 1);
}

#[tokio::test]
async fn a_creation_that_takes_too_long_is_undone_at_once() {
    let world = World::new().await;
    world.faults.slow_generation(&world.clock, Duration::from_mins(1));
    let late = world.kms.create_key(&world.request(CREATE), resident()).await.unwrap_err();
    assert_eq!(late, ServiceError::QueueDeadline);
    assert_eq!(objects(&world).await, 0);
    assert!(world.store.intents().await.unwrap().rows.is_empty());
    let outcome = world.last();
    assert_eq!((outcome.phase, outcome.result.as_str()), (Phase::Outcome, "QUEUE_DEADLINE"));
}

#[tokio::test]
async fn a_mutation_whose_deadline_is_over_before_it_begins_leaves_nothing() {
    let world = World::new().await;
    let request = world.request(CREATE);
    world.clock.advance(Duration::from_secs(10));
    let late = world.kms.create_key(&request, resident()).await.unwrap_err();
    assert_eq!(late, ServiceError::QueueDeadline);
    let records = world.records();
    assert_eq!(records.len(), 1);
    assert_eq!((records[0].phase, records[0].intent_id), (Phase::Complete, None));
}

#[tokio::test]
async fn a_commit_in_doubt_is_not_undone_before_the_store_writes_again() {
    for (failing, undone) in [(1, true), (2, false), (3, false)] {
        let world = World::new().await;
        world.faults.fail(before_commit().await, failing, false);
        let wanted = resident();
        let refused = world.kms.create_key(&world.request(CREATE), wanted.clone()).await;
        let refused = refused.unwrap_err();
        let open = world.store.intents().await.unwrap().rows.len();
        if undone {
            assert_eq!(refused.reason(), "STORE_UNAVAILABLE");
            assert_eq!((objects(&world).await, open), (0, 0));
        } else {
            // The commit may come back with the next start, and needs its object then.
            assert_eq!(refused.reason(), "OUTCOME_UNKNOWN");
            assert_eq!((objects(&world).await, open), (1, 1));
        }
        let world = world.restart();
        world.kms.recover().await.unwrap();
        world.kms.create_key(&world.request(CREATE), wanted).await.unwrap();
        assert_eq!(objects(&world).await, 1);
    }
}

#[tokio::test]
async fn a_change_whose_outcome_is_not_in_the_log_is_not_called_undone_and_a_repeat_finds_it() {
    let world = World::new().await;
    world.faults.fail(before_commit().await + 1, 1, false);
    let wanted = resident();
    let unknown = world.kms.create_key(&world.request(CREATE), wanted.clone()).await.unwrap_err();
    assert_eq!(unknown.reason(), "OUTCOME_UNKNOWN");
    assert!(unknown.retry().is_some());
    assert_eq!(
        unknown.public_text(),
        "the change may have happened; repeat it with the same request_id"
    );
    let made = world.kms.create_key(&world.request(CREATE), wanted).await.unwrap();
    let described = world.kms.describe_key(&world.request(CREATE), &name(KEY)).await.unwrap();
    assert_eq!(described, made);
    world.clock.advance(kms_server::service::INTENT_GRACE);
    assert_eq!(world.kms.reconcile().await.unwrap().finished, 1);
    assert_eq!(world.last().phase, Phase::Outcome);
}
