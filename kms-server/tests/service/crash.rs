//! Recovery that is itself cut off; orphans; and what the periodic run forgets.

use kms_core::audit::Phase;
use kms_core::key::Protection;
use kms_server::service::{CreateKey, MAX_FORGOTTEN, REQUESTS_RETRY_AFTER, ServiceError};

use crate::mutations::{Case, KEY, Kind, check};
use crate::support::*;

const CREATE: &str = "kms.v1.KeyService/CreateKey";

fn resident() -> CreateKey {
    CreateKey { protection: Protection::HsmResident, ..create(KEY) }
}

/// Recovery itself is cut off, at each of its calls, and run again.
#[tokio::test]
async fn recovery_survives_a_crash_at_every_step() {
    let case = Case { kind: Kind::Create, protection: Protection::HsmResident };
    let steps = case.steps().await;
    for point in 0..steps {
        let at = format!("step {point}");
        let mut cut = 0;
        loop {
            let world = World::new().await;
            world.faults.arm(point, true);
            let wanted = resident();
            let created = world.kms.create_key(&world.request(CREATE), wanted.clone()).await;
            assert!(created.is_err() || point + 1 == steps, "{at}");
            let world = world.restart();
            let before = world.faults.calls();
            world.faults.arm(cut, true);
            let _ = world.kms.recover().await;
            let finished = world.faults.calls() - before <= cut;
            let world = world.restart();
            world.kms.recover().await.expect(&at);
            check(&world, &format!("{at}, cut at {cut}")).await;
            if finished {
                break;
            }
            cut += 1;
        }
    }
}

#[tokio::test]
async fn an_object_that_nobody_knows_is_reported_once_and_left_alone() {
    let world = World::new().await;
    let deadline = world.request(CREATE).deadline;
    let spec = kms_hsm::KeySpec {
        key_uid: kms_core::id::KeyUid::from_random([9; 16]),
        version: kms_core::id::KeyVersion::FIRST,
        generation: kms_core::id::RootGeneration::FIRST,
        protection: Protection::HsmResident,
        resident_id: kms_core::key::CkaId([9; 16]),
    };
    world.hsm.generate_key(spec, deadline).await.unwrap();
    assert_eq!(world.kms.reconcile().await.unwrap().orphans, 1);
    assert_eq!(world.kms.reconcile().await.unwrap().orphans, 1);
    assert_eq!(world.kms.orphans(), 1);
    let reports = world.records().into_iter().filter(|record| record.result == "ORPHAN_OBJECT");
    assert_eq!(reports.count(), 1);
    assert_eq!(world.hsm.list_token_keys(deadline).await.unwrap().residents.len(), 1);
}

#[tokio::test]
async fn request_ids_are_forgotten_after_a_day_and_not_before() {
    let world = World::new().await;
    world.create(KEY).await;
    world.clock.advance(std::time::Duration::from_hours(24));
    assert_eq!(world.kms.reconcile().await.unwrap().forgotten, 0);
    world.clock.advance(std::time::Duration::from_millis(1));
    assert_eq!(world.kms.reconcile().await.unwrap().forgotten, 1);
}

#[tokio::test]
async fn as_many_requests_are_forgotten_in_one_commit_as_the_bound_and_more_in_the_next() {
    let world = World::new().await;
    world.create(KEY).await;
    world.clock.advance(std::time::Duration::from_hours(25));
    let forgetting = async |count: u32| {
        let database = rusqlite::Connection::open(world.database()).unwrap();
        let fill = format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})
             INSERT INTO requests SELECT 't', 'p', randomblob(16), 'm', zeroblob(32), x'', i, 1, zeroblob(32)
             FROM n WHERE {count} > 0"
        );
        database.execute_batch(&fill).unwrap();
        let before = world.faults.calls();
        let forgotten = world.kms.reconcile().await.unwrap().forgotten;
        (forgotten, world.faults.calls() - before)
    };
    assert_eq!(forgetting(0).await.0, 1, "that of the key");
    let (_, none) = forgetting(0).await;
    assert_eq!(forgetting(MAX_FORGOTTEN - 1).await, (u64::from(MAX_FORGOTTEN) - 1, none));
    assert_eq!(forgetting(MAX_FORGOTTEN).await, (MAX_FORGOTTEN.into(), none + 1));
    assert_eq!(forgetting(MAX_FORGOTTEN + 1).await, (u64::from(MAX_FORGOTTEN) + 1, none + 1));
}

#[tokio::test]
async fn a_tenant_that_has_too_many_requests_remembered_is_refused_before_anything_is_done() {
    let world = World::new().await;
    world.create(KEY).await;
    let fill = |sql: &str| {
        let database = rusqlite::Connection::open(world.database()).unwrap();
        assert_eq!(database.execute(sql, []).unwrap(), 1);
    };
    let create_in = async |key: &str| {
        let request = world.request("kms.v1.KeyService/CreateKey");
        world.kms.create_key(&request, create(key)).await
    };
    fill("UPDATE request_counts SET remembered = 99999 WHERE tenant = 't'");
    create_in("tenants/t/keys/last").await.unwrap();
    let before = world.records().len();
    let refused = create_in("tenants/t/keys/more").await.unwrap_err();
    assert_eq!(refused, ServiceError::RequestsFull);
    assert_eq!(refused.retry(), Some(REQUESTS_RETRY_AFTER));
    assert_eq!(refused.public_text(), "the tenant has made 100000 changes within 24 hours");
    let told: Vec<_> = world.records().split_off(before);
    assert_eq!(told.len(), 1, "no intent: {told:?}");
    assert_eq!((told[0].phase, &*told[0].result), (Phase::Complete, "TENANT_QUOTA"));
    create_in("tenants/u/keys/k").await.unwrap();
    assert_eq!(&*world.wrap(KEY).await.key_version, format!("{KEY}/versions/1"));
    world.clock.advance(std::time::Duration::from_hours(25));
    assert_eq!(world.kms.reconcile().await.unwrap().forgotten, 3);
    create_in("tenants/t/keys/more").await.unwrap();
}
