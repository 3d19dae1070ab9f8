//! Crashes at every external call of create and rotate, with and without the reply; then another process recovers.

use std::collections::HashMap;

use kms_core::audit::Phase;
use kms_core::key::Protection;
use kms_server::service::{CreateKey, RotateKey};
use kms_server::store::{KeyRef, VersionChoice};

use crate::support::*;

const KEY: &str = "tenants/t/keys/k";
const CREATE: &str = "kms.v1.KeyService/CreateKey";
const ROTATE: &str = "kms.v1.KeyService/RotateKey";

fn resident() -> CreateKey {
    CreateKey { protection: Protection::HsmResident, ..create(KEY) }
}

/// What must hold after recovery, whatever happened before.
async fn check(world: &World, point: &str) {
    assert!(world.store.intents().await.unwrap().rows.is_empty(), "{point}: an intent stays open");
    let deadline = world.request(CREATE).deadline;
    let mut objects = world.hsm.list_residents(deadline).await.unwrap();
    let mut rows = world.store.resident_ids().await.unwrap().rows;
    objects.sort();
    rows.sort();
    assert_eq!(objects, rows, "{point}: objects and rows differ");
    world.kms.verify_manifest(name(KEY).tenant()).await.expect(point);
    let mut outcomes: HashMap<_, (usize, usize)> = HashMap::new();
    let mut told: HashMap<_, bool> = HashMap::new();
    for record in world.records() {
        if record.phase == Phase::Outcome {
            let made = (record.key_uid.unwrap(), record.key_version.unwrap());
            *told.entry(made).or_default() |= record.result == "OK";
        }
        match (record.phase, record.intent_id) {
            (Phase::Intent, Some(id)) => outcomes.entry(id).or_default().0 += 1,
            (Phase::Outcome, Some(id)) => outcomes.entry(id).or_default().1 += 1,
            _ => {}
        }
    }
    for ((uid, number), ok) in told {
        let stored = world.store.key(KeyRef::Uid(uid), VersionChoice::Number(number)).await;
        let there = stored.unwrap().is_some_and(|stored| stored.version.is_some());
        assert_eq!(ok, there, "{point}: the log tells another story");
    }
    for (id, (intents, outcomes)) in outcomes {
        assert!(intents <= 1 && outcomes >= 1, "{point}: {id} has {intents} and {outcomes}");
    }
}

async fn calls(protection: CreateKey, rotate: bool) -> i64 {
    let world = World::new().await;
    if rotate {
        world.kms.create_key(&world.request(CREATE), protection.clone()).await.unwrap();
    }
    let before = world.faults.calls();
    if rotate {
        let rotate = RotateKey { name: name(KEY), reason: String::new(), request_id: fresh_id() };
        world.kms.rotate_key(&world.request(ROTATE), rotate).await.unwrap();
    } else {
        world.kms.create_key(&world.request(CREATE), protection).await.unwrap();
    }
    world.faults.calls() - before
}

#[tokio::test]
async fn creation_survives_a_crash_at_every_step() {
    for wanted in [create(KEY), resident()] {
        let steps = calls(wanted.clone(), false).await;
        assert!(steps > 8, "{steps}");
        for (point, lost) in (0..steps).flat_map(|point| [(point, false), (point, true)]) {
            let at = format!("{} step {point}, lost {lost}", wanted.protection);
            let world = World::new().await;
            world.faults.arm(point, lost);
            let first = world.kms.create_key(&world.request(CREATE), wanted.clone()).await;
            let world = world.restart();
            world.kms.recover().await.expect(&at);
            check(&world, &at).await;
            let again = world.kms.create_key(&world.request(CREATE), wanted.clone()).await;
            let again = again.expect(&at);
            assert!(first.is_err() || first.unwrap() == again, "{at}");
            check(&world, &at).await;
            world.wrap(KEY).await;
        }
    }
}

/// Recovery itself is cut off, at each of its calls, and run again.
#[tokio::test]
async fn recovery_survives_a_crash_at_every_step() {
    let steps = calls(resident(), false).await;
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
async fn rollover_survives_a_crash_at_every_step() {
    for wanted in [create(KEY), resident()] {
        let steps = calls(wanted.clone(), true).await;
        for (point, lost) in (0..steps).flat_map(|point| [(point, false), (point, true)]) {
            let at = format!("{} step {point}, lost {lost}", wanted.protection);
            let world = World::new().await;
            world.kms.create_key(&world.request(CREATE), wanted.clone()).await.unwrap();
            let old = world.wrap(KEY).await.ciphertext;
            let rotate =
                RotateKey { name: name(KEY), reason: String::new(), request_id: fresh_id() };
            world.faults.arm(point, lost);
            let first = world.kms.rotate_key(&world.request(ROTATE), rotate.clone()).await;
            let world = world.restart();
            world.kms.recover().await.expect(&at);
            check(&world, &at).await;
            let again = world.kms.rotate_key(&world.request(ROTATE), rotate).await.expect(&at);
            assert_eq!(again.key.version_count, 2, "{at}");
            assert!(first.is_err() || first.unwrap() == again, "{at}");
            check(&world, &at).await;
            let request = world.request("kms.v1.CryptoService/Unwrap");
            world.kms.unwrap(&request, unwrap(KEY, &old)).await.expect(&at);
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
    assert_eq!(world.hsm.list_residents(deadline).await.unwrap().len(), 1);
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
