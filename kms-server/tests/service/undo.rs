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

async fn objects(world: &World) -> usize {
    let deadline = world.request(CREATE).deadline;
    world.hsm.list_residents(deadline).await.unwrap().len()
}

#[tokio::test]
async fn a_creation_that_has_begun_goes_on_when_its_caller_has_stopped_waiting() {
    let world = World::new().await;
    world.faults.slow_generation(&world.clock, Duration::from_secs(20));
    let request = world.request(CREATE);
    assert!(request.deadline < world.request(CREATE).received + Duration::from_secs(20));
    world.kms.create_key(&request, resident()).await.unwrap();
    assert!(world.store.intents().await.unwrap().is_empty());
    assert_eq!(objects(&world).await, 1);
}

#[tokio::test]
async fn a_creation_that_takes_too_long_is_undone_at_once() {
    let world = World::new().await;
    world.faults.slow_generation(&world.clock, Duration::from_mins(1));
    let late = world.kms.create_key(&world.request(CREATE), resident()).await.unwrap_err();
    assert_eq!(late, ServiceError::QueueDeadline);
    assert_eq!(objects(&world).await, 0);
    assert!(world.store.intents().await.unwrap().is_empty());
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
