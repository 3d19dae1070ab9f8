//! Replaying the state journal on a database that is older: states move forward, whatever they were, and nothing else changes.

use kms_core::clock::Timestamp;
use kms_core::id::{IntentId, KeyUid, KeyVersion, RootGeneration};
use kms_core::journal::{Entry, Event, FIRST_COUNT, Subject};
use kms_core::key::{KeyState, Protection};
use kms_core::name::TenantName;
use kms_core::state::VersionState;
use kms_server::service::{RESTORE_OPERATION, Replayed, ServiceError, Tale};
use kms_server::store::{KeyRef, StoredKey, VersionChoice};

use crate::mutations::{Case, KEY, Kind, check};
use crate::support::*;

const PROTECTIONS: [Protection; 2] = [Protection::HsmWrapped, Protection::HsmResident];

/// Makes the tale of these events, of which those up to `covered` are in the backup.
fn tale(events: Vec<(Option<u8>, Event)>, covered: u64) -> Tale {
    let mut tale = Tale::default();
    for (number, (intent, event)) in (1..).zip(events) {
        let entry = Entry {
            number,
            time: Timestamp::from_unix_ms(0),
            generation: RootGeneration::FIRST,
            intent: intent.map(|byte| IntentId::from_bytes([byte; 16])),
            event,
        };
        tale.note(&entry, covered);
    }
    tale.told()
}

async fn stored(world: &World, number: u32) -> StoredKey {
    let choice = VersionChoice::Number(KeyVersion::new(number).unwrap());
    world.store.key(KeyRef::Name(name(KEY)), choice).await.unwrap().unwrap()
}

async fn state(world: &World, number: u32) -> VersionState {
    stored(world, number).await.version.unwrap().row.state
}

async fn of(world: &World, number: u32) -> Subject {
    let key_uid = stored(world, number).await.key.row.uid;
    let version = KeyVersion::new(number).unwrap();
    Subject { tenant: TenantName::from_id("t").unwrap(), key_uid, version }
}

async fn leased(world: &World, number: u32) -> u64 {
    let Subject { key_uid, version, .. } = of(world, number).await;
    world.store.counter(key_uid, version).await.unwrap().unwrap().row.leased
}

#[tokio::test]
async fn states_move_forward_once_and_a_primary_gets_a_successor() {
    for protection in PROTECTIONS {
        // Version 1 gives way, version 2 is the primary.
        let world = Case { kind: Kind::Deactivate, protection }.world().await;
        let events = vec![
            (Some(1), Event::VersionCompromised(of(&world, 1).await)),
            (Some(2), Event::VersionDestroyed(of(&world, 1).await)),
            (Some(3), Event::VersionCompromised(of(&world, 2).await)),
        ];
        let done = world.kms.replay(&tale(events.clone(), 0)).await.unwrap();
        assert_eq!((done.destroyed, done.compromised, done.keys_destroyed), (1, 1, 0));
        assert_eq!(state(&world, 1).await, VersionState::Destroyed);
        assert_eq!(state(&world, 2).await, VersionState::Compromised);
        assert_eq!(stored(&world, 3).await.key.row.primary.get(), 3);
        check(&world, "replayed").await;
        let again = world.kms.replay(&tale(events, 0)).await.unwrap();
        assert_eq!((again.destroyed, again.compromised), (0, 0));
        world.wrap(KEY).await;
        check(&world, "replayed twice").await;
    }
}

#[tokio::test]
async fn a_destroyed_primary_gets_a_successor_whatever_the_key_is() {
    for protection in PROTECTIONS {
        for before in [Kind::Disable, Kind::Suspend, Kind::ScheduleKey] {
            let case = Case { kind: before, protection };
            let world = case.world().await;
            case.run(&world, fresh_id()).await.unwrap();
            let key = stored(&world, 1).await.key.row.state;
            let events = vec![(None, Event::VersionDestroyed(of(&world, 1).await))];
            let done = world.kms.replay(&tale(events, 0)).await.unwrap();
            assert_eq!(done.destroyed, 1, "{before:?}");
            let row = stored(&world, 2).await.key.row;
            assert_eq!((row.primary.get(), row.state), (2, key), "{before:?}");
            check(&world, "replayed").await;
        }
    }
}

#[tokio::test]
async fn a_version_whose_destruction_was_planned_can_be_compromised() {
    for protection in PROTECTIONS {
        let case = Case { kind: Kind::Schedule, protection };
        let world = case.world().await;
        case.run(&world, fresh_id()).await.unwrap();
        let events = vec![(None, Event::VersionCompromised(of(&world, 1).await))];
        assert_eq!(world.kms.replay(&tale(events, 0)).await.unwrap().compromised, 1);
        let row = stored(&world, 1).await.version.unwrap().row;
        assert_eq!((row.state, row.destruction), (VersionState::Compromised, None));
        check(&world, "replayed").await;
    }
}

#[tokio::test]
async fn a_whole_key_is_destroyed_with_all_that_the_backup_has_of_it() {
    for protection in PROTECTIONS {
        let world = Case { kind: Kind::Deactivate, protection }.world().await;
        let Subject { tenant, key_uid, .. } = of(&world, 1).await;
        let events = vec![
            (Some(1), Event::VersionDestroyed(of(&world, 1).await)),
            (Some(2), Event::KeyDestroyed { tenant, key_uid }),
        ];
        let done = world.kms.replay(&tale(events.clone(), 0)).await.unwrap();
        assert_eq!((done.destroyed, done.keys_destroyed), (2, 1));
        assert_eq!(stored(&world, 2).await.key.row.state, KeyState::Destroyed);
        assert_eq!(state(&world, 2).await, VersionState::Destroyed);
        let again = world.kms.replay(&tale(events, 0)).await.unwrap();
        assert_eq!((again.destroyed, again.keys_destroyed), (0, 0));
        let deadline = world.request("").deadline;
        assert_eq!(world.hsm.list_token_keys(deadline).await.unwrap().residents, []);
        check(&world, "replayed").await;
        let refused = world.kms.wrap(&world.request("x"), wrap(KEY, b"x")).await;
        assert_eq!(refused, Err(ServiceError::KeyDestroyed));
    }
}

#[tokio::test]
async fn what_was_given_up_or_is_covered_or_is_not_there_changes_nothing() {
    let world = Case { kind: Kind::Rotate, protection: Protection::HsmWrapped }.world().await;
    let there = of(&world, 1).await;
    let events = vec![
        // In the backup, which says otherwise: it was given up before, or is of another life of the key.
        (Some(1), Event::VersionDestroyed(there.clone())),
        (Some(2), Event::VersionCompromised(there.clone())),
        (Some(2), Event::Abandoned),
        (
            Some(3),
            Event::VersionDestroyed(Subject {
                version: KeyVersion::new(9).unwrap(),
                ..there.clone()
            }),
        ),
        (
            Some(4),
            Event::VersionDestroyed(Subject { key_uid: KeyUid::from_random([9; 16]), ..there }),
        ),
    ];
    let done = world.kms.replay(&tale(events, 1)).await.unwrap();
    let Replayed { destroyed, compromised, not_in_backup, .. } = done;
    assert_eq!((destroyed, compromised, not_in_backup), (0, 0, 2));
    assert_eq!(state(&world, 1).await, VersionState::Active);
}

#[tokio::test]
async fn counters_are_raised_above_all_that_can_have_been_used() {
    let world = Case { kind: Kind::Stage, protection: Protection::HsmWrapped }.world().await;
    Case { kind: Kind::Stage, protection: Protection::HsmWrapped }
        .run(&world, fresh_id())
        .await
        .unwrap();
    let told = Event::CountReached { subject: of(&world, 1).await, count: 4 * FIRST_COUNT };
    let done = world.kms.replay(&tale(vec![(None, told)], 0)).await.unwrap();
    assert_eq!(done.counters_raised, 2);
    assert_eq!(leased(&world, 1).await, 8 * FIRST_COUNT);
    assert_eq!(
        leased(&world, 2).await,
        FIRST_COUNT,
        "a staged one may have been activated and used"
    );
    world.wrap(KEY).await;
    assert!(leased(&world, 1).await > 8 * FIRST_COUNT);
}

#[tokio::test]
async fn a_restore_is_recorded_and_lost_objects_are_counted() {
    let world = Case { kind: Kind::Rotate, protection: Protection::HsmResident }.world().await;
    assert_eq!(world.kms.lost_residents().await.unwrap(), 0);
    let deadline = world.request("").deadline;
    let id = world.hsm.list_token_keys(deadline).await.unwrap().residents[0];
    world.hsm.destroy_resident(id, deadline).await.unwrap();
    assert_eq!(world.kms.lost_residents().await.unwrap(), 1);
    world.kms.record_restore("backup of then".into()).await.unwrap();
    let last = world.last();
    assert_eq!((&*last.operation, &*last.principal), (RESTORE_OPERATION, "internal"));
    assert_eq!(last.reason.as_deref(), Some("backup of then"));
}
