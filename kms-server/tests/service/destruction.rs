//! Destruction: its window, cancelling, the tombstone, crashes, and a row that was put back.

use std::time::Duration;

use kms_core::audit::Phase;
use kms_core::clock::Clock as _;
use kms_core::journal::Event;
use kms_core::key::{Material, Protection, Sealed, VersionRow};
use kms_core::lifecycle::{DEFAULT_DESTRUCTION_WINDOW, MIN_DESTRUCTION_WINDOW};
use kms_core::state::VersionState;
use kms_server::authz::ActionKind;
use kms_server::service::{
    ChangeVersionState, INTENT_GRACE, QUIET_PERIOD, Reconciled, RotateKey, ScheduleDestruction,
    ServiceError,
};
use kms_server::store::{KeyRef, VersionChoice};

use crate::journal;
use crate::mutations::{Case, KEY, Kind, check};
use crate::support::*;

const DAY: Duration = Duration::from_hours(24);
const PROTECTIONS: [Protection; 2] = [Protection::HsmWrapped, Protection::HsmResident];

/// Makes a key whose version 1 is to be destroyed after the usual window.
async fn scheduled(protection: Protection) -> World {
    let world = Case { kind: Kind::Schedule, protection }.world().await;
    Case { kind: Kind::Schedule, protection }.run(&world, fresh_id()).await.unwrap();
    world
}

async fn version(world: &World, number: u32) -> Sealed<VersionRow> {
    let number = VersionChoice::Number(kms_core::id::KeyVersion::new(number).unwrap());
    world.store.key(KeyRef::Name(name(KEY)), number).await.unwrap().unwrap().version.unwrap()
}

async fn objects(world: &World) -> usize {
    world.hsm.list_token_keys(world.request("").deadline).await.unwrap().residents.len()
}

fn change(reason: &str) -> ChangeVersionState {
    let version = format!("{KEY}/versions/1").parse().unwrap();
    ChangeVersionState { name: version, reason: reason.into(), request_id: fresh_id() }
}

#[tokio::test]
async fn a_version_is_destroyed_when_its_window_is_over_and_not_a_moment_before() {
    for protection in PROTECTIONS {
        let world = scheduled(protection).await;
        let before = objects(&world).await;
        world.clock.advance(DEFAULT_DESTRUCTION_WINDOW.saturating_sub(Duration::from_millis(1)));
        assert_eq!(world.kms.reconcile().await.unwrap().destroyed, 0);
        assert_eq!(objects(&world).await, before);
        world.clock.advance(Duration::from_millis(1));
        let done = world.kms.reconcile().await.unwrap();
        assert_eq!((done.destroyed, done.failed, done.orphans), (1, 0, 0));
        let row = version(&world, 1).await.row;
        assert_eq!((row.state, row.destruction), (VersionState::Destroyed, None));
        match row.material {
            Material::Wrapped(blob) => assert!(blob.0.is_empty(), "the blob is gone"),
            Material::Resident(_) => assert_eq!(objects(&world).await, before - 1),
        }
        assert_eq!(world.kms.reconcile().await.unwrap().destroyed, 0, "once");
        check(&world, "destroyed").await;
    }
}

#[tokio::test]
async fn a_destroyed_blob_is_in_no_page_of_the_database() {
    let world = scheduled(Protection::HsmWrapped).await;
    let Material::Wrapped(blob) = version(&world, 1).await.row.material else { panic!() };
    world.clock.advance(DEFAULT_DESTRUCTION_WINDOW);
    assert_eq!(world.kms.reconcile().await.unwrap().destroyed, 1);
    // A writer that ends takes the log into the database.
    world.store.close().await;
    let bytes = std::fs::read(world.database()).unwrap();
    assert!(!bytes.windows(blob.0.len()).any(|window| window == blob.0));
}

#[tokio::test]
async fn a_destruction_that_is_cancelled_in_time_does_not_happen() {
    let world = scheduled(Protection::HsmResident).await;
    world.clock.advance(DEFAULT_DESTRUCTION_WINDOW.saturating_sub(Duration::from_millis(1)));
    let request = world.request("kms.v1.KeyService/CancelKeyVersionDestruction");
    let back = world.kms.cancel_key_version_destruction(&request, change("needed")).await.unwrap();
    assert_eq!((back.state, back.destroy_time), (VersionState::Deactivated, None));
    world.clock.advance(DAY * 365);
    assert_eq!(world.kms.reconcile().await.unwrap().destroyed, 0);
}

#[tokio::test]
async fn a_compromised_version_returns_to_compromised() {
    let case = Case { kind: Kind::CompromiseOld, protection: Protection::HsmWrapped };
    let world = case.world().await;
    case.run(&world, fresh_id()).await.unwrap();
    for kind in [Kind::Schedule, Kind::Cancel] {
        Case { kind, ..case }.run(&world, fresh_id()).await.unwrap();
    }
    assert_eq!(version(&world, 1).await.row.state, VersionState::Compromised);
}

#[tokio::test]
async fn windows_are_taken_at_their_bounds_and_refused_one_past() {
    let case = Case { kind: Kind::Schedule, protection: Protection::HsmWrapped };
    let world = case.world().await;
    let schedule = |window| {
        let ChangeVersionState { name, reason, request_id } = change("test");
        let request = world.request("kms.v1.KeyService/ScheduleKeyVersionDestruction");
        let allow_recent_use = false;
        let schedule = ScheduleDestruction {
            name,
            window,
            allow_recent_use,
            allow_consumers: false,
            reason,
            request_id,
        };
        let kms = world.kms.clone();
        async move { kms.schedule_key_version_destruction(&request, schedule).await }
    };
    let short =
        schedule(MIN_DESTRUCTION_WINDOW.saturating_sub(Duration::from_secs(1))).await.unwrap_err();
    assert_eq!(short.reason(), "FIELD_VIOLATION");
    let made = schedule(MIN_DESTRUCTION_WINDOW).await.unwrap();
    assert_eq!(made.destroy_time, Some(world.clock.now().after(MIN_DESTRUCTION_WINDOW)));
}

/// The destruction is cut off at each of its calls, and what it left is finished by the next process.
#[tokio::test]
async fn a_destruction_survives_a_crash_at_every_step() {
    for protection in PROTECTIONS {
        for reply_lost in [false, true] {
            let mut point = 0;
            loop {
                let at = format!("{protection}, step {point}, reply lost: {reply_lost}");
                let world = scheduled(protection).await;
                world.clock.advance(DEFAULT_DESTRUCTION_WINDOW);
                let before = world.faults.calls();
                world.faults.arm(point, reply_lost);
                let _ = world.kms.reconcile().await;
                let finished = world.faults.calls() - before <= point;
                let world = world.restart();
                world.kms.recover().await.expect(&at);
                world.kms.reconcile().await.expect(&at);
                let row = version(&world, 1).await.row;
                assert_eq!(row.state, VersionState::Destroyed, "{at}");
                check(&world, &at).await;
                if finished {
                    break;
                }
                point += 1;
            }
            assert!(point > 10, "{point} steps");
        }
    }
}

/// The object goes before the row says so: in between nobody may hear that the version is back, nor the journal that it was
/// never destroyed.
#[tokio::test]
async fn what_may_be_destroyed_already_is_not_given_back() {
    let mut refused = 0;
    for (is_restarted, reply_lost) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut point = 0;
        loop {
            let at = format!("step {point}, reply lost: {reply_lost}, restarted: {is_restarted}");
            let world = scheduled(Protection::HsmResident).await;
            let Material::Resident(id) = version(&world, 1).await.row.material else { panic!() };
            world.clock.advance(DEFAULT_DESTRUCTION_WINDOW);
            let before = world.faults.calls();
            world.faults.arm(point, reply_lost);
            let _ = world.kms.reconcile().await;
            let is_finished = world.faults.calls() - before <= point;
            world.faults.arm(i64::MAX, false);
            let world = if is_restarted { world.restart() } else { world };
            if is_restarted {
                world.kms.recover().await.expect(&at);
            }
            let cancel = Case { kind: Kind::Cancel, protection: Protection::HsmResident };
            let cancelled = cancel.run(&world, fresh_id()).await;
            let is_there = async || {
                let deadline = world.request("").deadline;
                world.hsm.list_token_keys(deadline).await.unwrap().residents.contains(&id)
            };
            match &cancelled {
                Ok(_) => assert!(is_there().await, "{at}: given back, and gone"),
                Err(ServiceError::DestructionBegun) => refused += 1,
                Err(ServiceError::IllegalTransition { .. }) => {}
                Err(error) => panic!("{at}: {error}"),
            }
            world.clock.advance(INTENT_GRACE);
            for _ in 0..2 {
                world.kms.reconcile().await.expect(&at);
            }
            let state = version(&world, 1).await.row.state;
            let expected =
                if cancelled.is_ok() { VersionState::Deactivated } else { VersionState::Destroyed };
            assert_eq!((state, is_there().await), (expected, cancelled.is_ok()), "{at}");
            let entries = journal::entries(&world);
            let last = entries.last().map(|entry| &entry.event);
            let is_told = matches!(last, Some(Event::VersionDestroyed(_)));
            assert_eq!(is_told, cancelled.is_err(), "{at}: {entries:?}");
            check(&world, &at).await;
            if is_finished {
                break;
            }
            point += 1;
        }
    }
    assert!(refused > 3, "{refused}");
}

/// An object that was lost otherwise is no key that can be given back.
#[tokio::test]
async fn a_version_whose_object_is_gone_is_not_given_back() {
    let world = scheduled(Protection::HsmResident).await;
    let Material::Resident(id) = version(&world, 1).await.row.material else { panic!() };
    world.hsm.destroy_resident(id, world.request("").deadline).await.unwrap();
    let cancel = Case { kind: Kind::Cancel, protection: Protection::HsmResident };
    assert_eq!(cancel.run(&world, fresh_id()).await, Err(ServiceError::DestructionBegun));
    assert_eq!(version(&world, 1).await.row.state, VersionState::DestroyScheduled);
}

/// The row of a planned destruction, with its good MAC, is put back after the destruction was cancelled.
#[tokio::test]
async fn a_row_that_was_put_back_destroys_nothing() {
    for protection in PROTECTIONS {
        let world = scheduled(protection).await;
        let old = world.database().with_extension("old");
        let database = rusqlite::Connection::open(world.database()).unwrap();
        database.execute("VACUUM INTO ?1", [old.to_str().unwrap()]).unwrap();
        let cancel = Case { kind: Kind::Cancel, protection };
        cancel.run(&world, fresh_id()).await.unwrap();
        database
            .execute_batch(&format!(
                "ATTACH '{}' AS old; DROP TRIGGER versions_guard; PRAGMA foreign_keys = OFF;
                 INSERT OR REPLACE INTO versions SELECT * FROM old.versions WHERE version = 1;",
                old.display()
            ))
            .unwrap();
        drop(database);
        let world = world.restart();
        assert_eq!(version(&world, 1).await.row.state, VersionState::DestroyScheduled);
        let before = objects(&world).await;
        world.clock.advance(DAY * 366);
        let done = world.kms.reconcile().await.unwrap();
        assert_eq!((done.destroyed, done.failed), (0, 1));
        assert_eq!(objects(&world).await, before);
        assert_eq!(version(&world, 1).await.row.state, VersionState::DestroyScheduled);
    }
}

#[tokio::test]
async fn the_destruction_is_in_the_log_as_intent_and_outcome() {
    let world = scheduled(Protection::HsmResident).await;
    world.clock.advance(DEFAULT_DESTRUCTION_WINDOW);
    assert_eq!(
        world.kms.reconcile().await.unwrap(),
        Reconciled { destroyed: 1, forgotten: 4, ..Reconciled::default() }
    );
    let records: Vec<_> = world
        .records()
        .into_iter()
        .filter(|record| record.operation == "internal/DestroyKeyVersion")
        .map(|record| (record.phase, record.result.to_string(), record.principal.to_string()))
        .collect();
    let internal = "internal".to_owned();
    assert_eq!(
        records,
        [
            (Phase::Intent, "PENDING".to_owned(), internal.clone()),
            (Phase::Outcome, "OK".to_owned(), internal)
        ]
    );
}

#[tokio::test]
async fn what_is_in_use_cannot_be_scheduled() {
    let case = Case { kind: Kind::Schedule, protection: Protection::HsmWrapped };
    let world = World::new().await;
    world.create(KEY).await;
    let refused = case.run(&world, fresh_id()).await.unwrap_err();
    let (from, to) = (VersionState::Active, VersionState::DestroyScheduled);
    assert_eq!(refused, ServiceError::IllegalTransition { from, to });
    let rotate = RotateKey { name: name(KEY), reason: String::new(), request_id: fresh_id() };
    world.kms.rotate_key(&world.request("kms.v1.KeyService/RotateKey"), rotate).await.unwrap();
    let refused = case.run(&world, fresh_id()).await.unwrap_err();
    assert_eq!(refused, ServiceError::IllegalTransition { from, to }, "the overlap is not over");
    world.clock.advance(DAY);
    let scheduled = case.run(&world, fresh_id()).await;
    assert!(scheduled.is_ok(), "deactivated by the end of the overlap, written down or not");
}

#[tokio::test]
async fn what_was_used_within_30_days_is_destroyed_only_by_those_who_may_say_so() {
    let actions: Vec<_> = ActionKind::ALL
        .iter()
        .copied()
        .filter(|action| *action != ActionKind::DestroyRecentlyUsed)
        .collect();
    let world = World::new().await;
    let world = world.restart_granting(&[grant("spiffe://td/officer", "t", &actions)]);
    world.create(KEY).await;
    let rotate = RotateKey { name: name(KEY), reason: String::new(), request_id: fresh_id() };
    world.kms.rotate_key(&world.request("kms.v1.KeyService/RotateKey"), rotate).await.unwrap();
    let request = world.request("kms.v1.CryptoService/Wrap");
    let pinned = wrap(&format!("{KEY}/versions/1"), b"secret");
    world.kms.wrap(&request, pinned).await.unwrap();
    let used = world.clock.now();
    let deactivate = Case { kind: Kind::Deactivate, protection: Protection::HsmWrapped };
    deactivate.run(&world, fresh_id()).await.unwrap();
    let schedule = |principal: &str, allow_recent_use| {
        let ChangeVersionState { name, reason, request_id } = change("test");
        let window = DEFAULT_DESTRUCTION_WINDOW;
        let schedule = ScheduleDestruction {
            name,
            window,
            allow_recent_use,
            allow_consumers: false,
            reason,
            request_id,
        };
        let operation = "kms.v1.KeyService/ScheduleKeyVersionDestruction";
        let request = world.request_of(principal, operation);
        let kms = world.kms.clone();
        async move { kms.schedule_key_version_destruction(&request, schedule).await }
    };
    let recent = ServiceError::RecentlyUsed { last: used };
    assert_eq!(schedule(ADMIN, false).await, Err(recent.clone()));
    world.clock.advance(QUIET_PERIOD.saturating_sub(Duration::from_millis(1)));
    assert_eq!(schedule(ADMIN, false).await, Err(recent));
    let denied = schedule("spiffe://td/officer", true).await;
    assert_eq!(denied, Err(ServiceError::AccessDenied));
    assert!(schedule(ADMIN, true).await.is_ok(), "by name");
    Case { kind: Kind::Cancel, ..deactivate }.run(&world, fresh_id()).await.unwrap();
    world.clock.advance(Duration::from_millis(1));
    assert!(schedule("spiffe://td/officer", false).await.is_ok(), "30 days have passed");
}
