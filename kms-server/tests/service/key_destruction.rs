//! The end of a whole key: when it may be planned, what it refuses meanwhile, what holds it, and that it survives crashes.

use std::time::Duration;

use kms_core::clock::Clock as _;
use kms_core::key::{KeyState, Material, Protection, Sensitivity};
use kms_core::lifecycle::{
    DEFAULT_DESTRUCTION_WINDOW, MAX_DESTRUCTION_WINDOW, MIN_DESTRUCTION_WINDOW,
};
use kms_core::state::VersionState;
use kms_core::state::VersionState as S;
use kms_server::authz::ActionKind;
use kms_server::service::{
    ChangeKeyState, CreateKey, HistoryEntry, KeyDescription, ListKeyHistory, MAX_DUE, QUIET_PERIOD,
    RotateKey, SCREAM_PERIOD, ScheduleKeyDestruction, ServiceError,
};
use kms_server::store::{KeyRef, VersionChoice};

use crate::mutations::{Case, KEY, Kind, check};
use crate::support::*;

const MOMENT: Duration = Duration::from_millis(1);
const PROTECTIONS: [Protection; 2] = [Protection::HsmWrapped, Protection::HsmResident];
const OFFICER: &str = "spiffe://td/officer";

fn plan() -> ScheduleKeyDestruction {
    ScheduleKeyDestruction {
        name: name(KEY),
        window: DEFAULT_DESTRUCTION_WINDOW,
        allow_recent_use: false,
        allow_consumers: false,
        reason: "retired".into(),
        request_id: fresh_id(),
    }
}

fn change() -> ChangeKeyState {
    ChangeKeyState { name: name(KEY), reason: "test".into(), request_id: fresh_id() }
}

async fn schedule(
    world: &World,
    plan: ScheduleKeyDestruction,
) -> Result<KeyDescription, ServiceError> {
    let request = world.request("kms.v1.KeyService/ScheduleKeyDestruction");
    world.kms.schedule_key_destruction(&request, plan).await
}

async fn cancel(world: &World) -> Result<KeyDescription, ServiceError> {
    let request = world.request("kms.v1.KeyService/CancelKeyDestruction");
    world.kms.cancel_key_destruction(&request, change()).await
}

async fn rotate(world: &World) -> Result<(), ServiceError> {
    let rotate = RotateKey { name: name(KEY), reason: String::new(), request_id: fresh_id() };
    world.kms.rotate_key(&world.request("kms.v1.KeyService/RotateKey"), rotate).await.map(drop)
}

async fn describe(world: &World) -> KeyDescription {
    let request = world.request("kms.v1.KeyService/DescribeKey");
    world.kms.describe_key(&request, &name(KEY)).await.unwrap()
}

/// A disabled key that nobody has used for 30 days, with a ciphertext under its first version.
async fn quiet(protection: Protection, sensitivity: Sensitivity) -> (World, Vec<u8>) {
    let world = World::new().await;
    let create = CreateKey { protection, sensitivity, ..create(KEY) };
    world.kms.create_key(&world.request("kms.v1.KeyService/CreateKey"), create).await.unwrap();
    let ciphertext = world.wrap(KEY).await.ciphertext;
    rotate(&world).await.unwrap();
    disable(&world).await;
    world.clock.advance(QUIET_PERIOD);
    world.kms.reconcile().await.unwrap();
    (world, ciphertext)
}

async fn disable(world: &World) {
    let request = world.request("kms.v1.KeyService/DisableKey");
    world.kms.disable_key(&request, change()).await.unwrap();
}

async fn quiet_medium() -> (World, Vec<u8>) {
    quiet(Protection::HsmWrapped, Sensitivity::Medium).await
}

async fn want(world: &World, ciphertext: &[u8]) -> ServiceError {
    let request = world.request("kms.v1.CryptoService/Unwrap");
    world.kms.unwrap(&request, unwrap(KEY, ciphertext)).await.unwrap_err()
}

async fn details(world: &World) -> Vec<String> {
    let list = ListKeyHistory { key: name(KEY), page_size: 0, page_token: String::new() };
    let request = world.request("kms.v1.KeyService/ListKeyHistory");
    let entries = world.kms.list_key_history(&request, list).await.unwrap().items;
    entries.into_iter().map(|entry| entry.detail).filter(|detail| !detail.is_empty()).collect()
}

async fn states(world: &World) -> Vec<VersionState> {
    let uid = describe(world).await.uid;
    let versions = world.store.list_versions(uid, None, 1000).await.unwrap();
    versions.into_iter().map(|version| version.row.state).collect()
}

async fn objects(world: &World) -> usize {
    world.hsm.list_token_keys(world.request("").deadline).await.unwrap().residents.len()
}

#[tokio::test]
async fn a_key_is_destroyed_with_all_its_versions_when_its_window_is_over() {
    for protection in PROTECTIONS {
        let (world, ciphertext) = quiet(protection, Sensitivity::Medium).await;
        let planned = schedule(&world, plan()).await.unwrap();
        assert_eq!(planned.state, KeyState::DestroyScheduled);
        let destruction = planned.destruction.unwrap();
        assert_eq!(destruction.time, world.clock.now().after(DEFAULT_DESTRUCTION_WINDOW));
        assert!(!destruction.despite_consumers && !destruction.despite_recent_use);
        world.clock.advance(DEFAULT_DESTRUCTION_WINDOW.saturating_sub(MOMENT));
        assert_eq!(world.kms.reconcile().await.unwrap().destroyed, 0, "a moment before");
        world.clock.advance(MOMENT);
        let done = world.kms.reconcile().await.unwrap();
        assert_eq!((done.destroyed, done.keys_destroyed, done.failed), (2, 1, 0));
        assert_eq!(states(&world).await, [VersionState::Destroyed; 2]);
        let key = describe(&world).await;
        assert_eq!((key.state, key.destruction), (KeyState::Destroyed, None));
        assert_eq!(objects(&world).await, 0);
        assert_eq!(want(&world, &ciphertext).await, ServiceError::KeyDestroyed);
        assert_eq!(world.kms.reconcile().await.unwrap().keys_destroyed, 0, "once");
        check(&world, "destroyed").await;
        // Its name is never given again.
        let again = world.request("kms.v1.KeyService/CreateKey");
        let taken = world.kms.create_key(&again, create(KEY)).await.unwrap_err();
        assert_eq!(taken.reason(), "RESOURCE_EXISTS");
        // Nor is anything of it changed.
        assert_eq!(rotate(&world).await, Err(ServiceError::KeyDestroyed));
        assert_eq!(cancel(&world).await, Err(ServiceError::KeyDestroyed));
        assert_eq!(schedule(&world, plan()).await, Err(ServiceError::KeyDestroyed));
        for kind in [
            Kind::Enable,
            Kind::Disable,
            Kind::Update,
            Kind::Stage,
            Kind::Register,
            Kind::CreateJob,
        ] {
            let refused = Case { kind, protection }.run(&world, fresh_id()).await;
            assert_eq!(refused, Err(ServiceError::KeyDestroyed), "{kind:?}");
        }
    }
}

#[tokio::test]
async fn versions_in_whatever_state_end_with_their_key_in_steps_that_are_told() {
    let (world, _) = quiet_medium().await;
    // Version 2 is the primary; version 1 was deactivated; version 3 is staged.
    let enable = world.request("kms.v1.KeyService/EnableKey");
    world.kms.enable_key(&enable, change()).await.unwrap();
    let stage = Case { kind: Kind::Stage, protection: Protection::HsmWrapped };
    stage.run(&world, fresh_id()).await.unwrap();
    let compromise = Case { kind: Kind::CompromiseOld, protection: Protection::HsmWrapped };
    compromise.run_on(1, &world, fresh_id()).await.unwrap();
    disable(&world).await;
    schedule(&world, plan()).await.unwrap();
    world.clock.advance(DEFAULT_DESTRUCTION_WINDOW);
    assert_eq!(world.kms.reconcile().await.unwrap().keys_destroyed, 1);
    let list = ListKeyHistory { key: name(KEY), page_size: 0, page_token: String::new() };
    let request = world.request("kms.v1.KeyService/ListKeyHistory");
    let entries: Vec<HistoryEntry> =
        world.kms.list_key_history(&request, list).await.unwrap().items;
    let ends = |number: u32| -> Vec<_> {
        let of = entries.iter().filter(|entry| entry.version.is_some_and(|v| v.get() == number));
        of.filter(|entry| entry.reason == "destroyed with its key")
            .map(|entry| (entry.from.unwrap(), entry.to.unwrap()))
            .collect()
    };
    let end = [(S::DestroyScheduled, S::Destroyed)];
    assert_eq!(ends(1), [&[(S::Compromised, S::DestroyScheduled)][..], &end].concat());
    let active = [(S::Active, S::Deactivated), (S::Deactivated, S::DestroyScheduled)];
    assert_eq!(ends(2), [&active[..], &end].concat());
    assert_eq!(ends(3), [(S::PreActivation, S::Destroyed)]);
    let told: Vec<_> = entries
        .iter()
        .filter(|entry| entry.detail.contains("DESTROY") || entry.detail.contains("begun"))
        .map(|entry| (entry.detail.clone(), &*entry.reason, &*entry.actor))
        .collect();
    assert!(told[0].0.contains(r#""state":["DISABLED","DESTROY_SCHEDULED"]"#), "{told:?}");
    assert_eq!((told[0].1, told[0].2), ("retired", ADMIN));
    assert_eq!(told[1].0, r#"{"destruction_begun":[false,true]}"#);
    assert!(told[2].0.contains(r#""state":["DESTROY_SCHEDULED","DESTROYED"]"#), "{told:?}");
    assert_eq!((told.len(), told[2].2), (3, "internal"));
    check(&world, "told").await;
}

#[tokio::test]
async fn an_enabled_key_is_refused_and_a_disabled_one_is_taken() {
    let world = World::new().await;
    world.create(KEY).await;
    assert_eq!(schedule(&world, plan()).await, Err(ServiceError::KeyNotDisabled));
    assert_eq!(cancel(&world).await, Err(ServiceError::KeyNotScheduled));
    disable(&world).await;
    assert_eq!(cancel(&world).await, Err(ServiceError::KeyNotScheduled));
    schedule(&world, plan()).await.unwrap();
    assert_eq!(schedule(&world, plan()).await, Err(ServiceError::KeyDestroyScheduled));
}

#[tokio::test]
async fn windows_are_taken_at_their_bounds_and_refused_one_past() {
    let (world, _) = quiet_medium().await;
    let second = Duration::from_secs(1);
    for window in [
        MIN_DESTRUCTION_WINDOW.saturating_sub(second),
        MAX_DESTRUCTION_WINDOW + second,
        MIN_DESTRUCTION_WINDOW + MOMENT,
    ] {
        let refused = schedule(&world, ScheduleKeyDestruction { window, ..plan() }).await;
        assert_eq!(refused.unwrap_err().reason(), "FIELD_VIOLATION", "{window:?}");
    }
    for window in [MIN_DESTRUCTION_WINDOW, MAX_DESTRUCTION_WINDOW] {
        let made = schedule(&world, ScheduleKeyDestruction { window, ..plan() }).await.unwrap();
        assert_eq!(made.destruction.unwrap().time, world.clock.now().after(window));
        assert_eq!(cancel(&world).await.unwrap().state, KeyState::Disabled);
    }
    let reason = String::new();
    let refused = schedule(&world, ScheduleKeyDestruction { reason, ..plan() }).await;
    assert_eq!(refused.unwrap_err().reason(), "FIELD_VIOLATION");
}

#[tokio::test]
async fn while_it_is_planned_the_key_is_neither_used_nor_changed_and_who_wants_it_is_told_of() {
    let (world, ciphertext) = quiet_medium().await;
    schedule(&world, plan()).await.unwrap();
    for world in [&world, &world.restart()] {
        let before = world.kms.counters().destroy_scheduled_uses.read();
        assert_eq!(want(world, &ciphertext).await, ServiceError::KeyDestroyScheduled);
        let request = world.request("kms.v1.CryptoService/Wrap");
        let refused = world.kms.wrap(&request, wrap(KEY, b"x")).await.unwrap_err();
        assert_eq!(refused, ServiceError::KeyDestroyScheduled);
        let record = world.last();
        assert_eq!((&*record.result, &*record.principal), ("KEY_DESTROY_SCHEDULED", ADMIN));
        assert_eq!(world.kms.counters().destroy_scheduled_uses.read(), before + 2);
    }
    assert_eq!(rotate(&world).await, Err(ServiceError::KeyDestroyScheduled));
    let protection = Protection::HsmWrapped;
    for kind in [
        Kind::Enable,
        Kind::Disable,
        Kind::Update,
        Kind::Stage,
        Kind::Suspend,
        Kind::Compromise,
        Kind::CreateJob,
    ] {
        let refused = Case { kind, protection }.run(&world, fresh_id()).await;
        assert_eq!(refused, Err(ServiceError::KeyDestroyScheduled), "{kind:?}");
    }
    let back = cancel(&world).await.unwrap();
    assert_eq!((back.state, back.destruction), (KeyState::Disabled, None));
    Case { kind: Kind::Enable, protection }.run(&world, fresh_id()).await.unwrap();
    let request = world.request("kms.v1.CryptoService/Unwrap");
    assert!(world.kms.unwrap(&request, unwrap(KEY, &ciphertext)).await.is_ok());
    world.clock.advance(MAX_DESTRUCTION_WINDOW);
    assert_eq!(world.kms.reconcile().await.unwrap().keys_destroyed, 0, "it was given up");
}

#[tokio::test]
async fn what_was_wanted_within_30_days_is_destroyed_only_by_those_who_may_say_so() {
    let actions: Vec<_> = ActionKind::ALL
        .iter()
        .copied()
        .filter(|action| *action != ActionKind::DestroyRecentlyUsed)
        .collect();
    let (world, ciphertext) = quiet_medium().await;
    let world = world.restart_granting(&[grant(OFFICER, "t", &actions)]);
    // Who is refused as the key is disabled wants it all the same.
    assert_eq!(want(&world, &ciphertext).await, ServiceError::KeyDisabled);
    let last = world.clock.now();
    let recent = Err(ServiceError::RecentlyUsed { last });
    assert_eq!(schedule(&world, plan()).await, recent);
    world.clock.advance(QUIET_PERIOD.saturating_sub(MOMENT));
    assert_eq!(schedule(&world, plan()).await, recent);
    let named = || ScheduleKeyDestruction { allow_recent_use: true, ..plan() };
    let officer = world.request_of(OFFICER, "kms.v1.KeyService/ScheduleKeyDestruction");
    let denied = world.kms.schedule_key_destruction(&officer, named()).await;
    assert_eq!(denied, Err(ServiceError::AccessDenied));
    let planned = schedule(&world, named()).await.unwrap();
    assert!(planned.destruction.unwrap().despite_recent_use);
    let told = details(&world).await;
    assert!(
        told.last().unwrap().contains(r#""destroy_despite":[null,["recent use"]]"#),
        "{told:?}"
    );
    let reasons: Vec<_> = world.records().into_iter().filter_map(|record| record.reason).collect();
    assert!(reasons.iter().any(|reason| reason.contains("[allows recent use]")), "{reasons:?}");
    cancel(&world).await.unwrap();
    world.clock.advance(MOMENT);
    let planned = world.kms.schedule_key_destruction(&officer, plan()).await.unwrap();
    assert!(!details(&world).await.last().unwrap().contains("despite"), "nothing was");
    assert!(!planned.destruction.unwrap().despite_recent_use, "30 days have passed");
}

#[tokio::test]
async fn consumers_hold_it_unless_they_are_overridden_by_name() {
    let actions: Vec<_> = ActionKind::ALL
        .iter()
        .copied()
        .filter(|action| *action != ActionKind::DestroyWithConsumers)
        .collect();
    let (world, _) = quiet_medium().await;
    let world = world.restart_granting(&[grant(OFFICER, "t", &actions)]);
    let protection = Protection::HsmWrapped;
    let (register, remove) =
        (Case { kind: Kind::Register, protection }, Case { kind: Kind::Remove, protection });
    register.run(&world, fresh_id()).await.unwrap();
    let registered = Err(ServiceError::ConsumersRegistered { count: 1 });
    assert_eq!(schedule(&world, plan()).await, registered);
    let named = || ScheduleKeyDestruction { allow_consumers: true, ..plan() };
    let officer = world.request_of(OFFICER, "kms.v1.KeyService/ScheduleKeyDestruction");
    let denied = world.kms.schedule_key_destruction(&officer, named()).await;
    assert_eq!(denied, Err(ServiceError::AccessDenied));
    remove.run(&world, fresh_id()).await.unwrap();
    // One that comes while it is planned holds it; so does it when the override was of none.
    assert!(!schedule(&world, named()).await.unwrap().destruction.unwrap().despite_consumers);
    register.run(&world, fresh_id()).await.unwrap();
    world.clock.advance(DEFAULT_DESTRUCTION_WINDOW);
    let done = world.kms.reconcile().await.unwrap();
    assert_eq!((done.keys_destroyed, done.failed), (0, 0), "held");
    cancel(&world).await.unwrap();
    assert!(schedule(&world, named()).await.unwrap().destruction.unwrap().despite_consumers);
    world.clock.advance(DEFAULT_DESTRUCTION_WINDOW);
    assert_eq!(world.kms.reconcile().await.unwrap().keys_destroyed, 1);
    assert_eq!(remove.run(&world, fresh_id()).await, Err(ServiceError::KeyDestroyed));
    check(&world, "overridden").await;
}

#[tokio::test]
async fn whoever_wants_a_high_key_holds_its_destruction_for_seven_days() {
    let (world, ciphertext) = quiet(Protection::HsmWrapped, Sensitivity::High).await;
    let shortest = ScheduleKeyDestruction { window: MIN_DESTRUCTION_WINDOW, ..plan() };
    schedule(&world, shortest).await.unwrap();
    world.clock.advance(MIN_DESTRUCTION_WINDOW.saturating_sub(MOMENT));
    assert_eq!(want(&world, &ciphertext).await, ServiceError::KeyDestroyScheduled);
    world.clock.advance(MOMENT);
    let walks = world.walks();
    let done = world.kms.reconcile().await.unwrap();
    assert_eq!((done.destroyed, done.failed), (0, 0), "held, and nothing has failed");
    assert_eq!(world.walks(), walks, "nor were all rows of the tenant looked at");
    // Another process, that has not heard the scream.
    let world = world.restart();
    world.clock.advance(SCREAM_PERIOD.saturating_sub(MOMENT * 2));
    assert_eq!(world.kms.reconcile().await.unwrap().destroyed, 0, "a moment before the end");
    world.clock.advance(MOMENT);
    assert_eq!(world.kms.reconcile().await.unwrap().keys_destroyed, 1);
}

#[tokio::test]
async fn a_key_of_more_versions_than_one_run_takes_is_ended_by_several_and_cannot_be_cancelled() {
    let world = World::new().await;
    world.create(KEY).await;
    for _ in 0..MAX_DUE {
        rotate(&world).await.unwrap();
    }
    disable(&world).await;
    world.clock.advance(QUIET_PERIOD);
    schedule(&world, plan()).await.unwrap();
    world.clock.advance(DEFAULT_DESTRUCTION_WINDOW);
    let done = world.kms.reconcile().await.unwrap();
    assert_eq!((done.destroyed, done.keys_destroyed, done.failed), (MAX_DUE as usize, 0, 0));
    assert!(describe(&world).await.destruction.unwrap().begun);
    assert_eq!(cancel(&world).await, Err(ServiceError::KeyDestroyed), "there is no way back");
    let register = Case { kind: Kind::Register, protection: Protection::HsmWrapped };
    assert_eq!(register.run(&world, fresh_id()).await, Err(ServiceError::KeyDestroyed));
    let done = world.kms.reconcile().await.unwrap();
    assert_eq!((done.destroyed, done.keys_destroyed, done.failed), (1, 1, 0));
    check(&world, "several runs").await;
}

#[tokio::test]
async fn a_repeat_is_no_second_change_and_another_content_is_refused() {
    let (world, _) = quiet_medium().await;
    let first = plan();
    let made = schedule(&world, first.clone()).await.unwrap();
    assert_eq!(schedule(&world, first.clone()).await.unwrap(), made);
    let other = ScheduleKeyDestruction { window: MIN_DESTRUCTION_WINDOW, ..first };
    assert_eq!(schedule(&world, other).await, Err(ServiceError::RequestIdReused));
}

/// A version has no way back alone while its key is pending, so it does not go alone either.
#[tokio::test]
async fn a_version_waits_for_the_end_of_its_key_or_for_its_being_given_up() {
    let protection = Protection::HsmWrapped;
    let (old, moment) = (Case { kind: Kind::Schedule, protection }, MIN_DESTRUCTION_WINDOW);
    for is_given_up in [false, true] {
        let (world, _) = quiet_medium().await;
        old.run(&world, fresh_id()).await.unwrap();
        schedule(&world, ScheduleKeyDestruction { window: MAX_DESTRUCTION_WINDOW, ..plan() })
            .await
            .unwrap();
        world.clock.advance(DEFAULT_DESTRUCTION_WINDOW + moment);
        let walks = world.walks();
        let done = world.kms.reconcile().await.unwrap();
        assert_eq!((done.destroyed, done.failed), (0, 0), "it is due, and waits");
        assert_eq!(world.walks(), walks);
        if is_given_up {
            cancel(&world).await.unwrap();
            let cancelled = Case { kind: Kind::Cancel, protection }.run(&world, fresh_id()).await;
            assert!(cancelled.is_ok(), "what was given up can be: {cancelled:?}");
            old.run(&world, fresh_id()).await.unwrap();
            world.clock.advance(DEFAULT_DESTRUCTION_WINDOW);
            assert_eq!(world.kms.reconcile().await.unwrap().destroyed, 1);
        } else {
            world.clock.advance(MAX_DESTRUCTION_WINDOW);
            let done = world.kms.reconcile().await.unwrap();
            assert_eq!((done.destroyed, done.keys_destroyed), (2, 1));
        }
        check(&world, "waited").await;
    }
}

#[tokio::test]
async fn a_version_that_cannot_be_destroyed_holds_up_no_other_of_its_key() {
    let (world, _) = quiet(Protection::HsmResident, Sensitivity::Medium).await;
    rotate_enabled(&world).await;
    schedule(&world, ScheduleKeyDestruction { allow_recent_use: true, ..plan() }).await.unwrap();
    world.clock.advance(DEFAULT_DESTRUCTION_WINDOW);
    let uid = describe(&world).await.uid;
    let first = world.store.list_versions(uid, None, 1).await.unwrap().remove(0).row;
    let Material::Resident(id) = first.material else { panic!() };
    world.faults.keep(Some(id));
    for destroyed in [2, 0] {
        let done = world.kms.reconcile().await.unwrap();
        assert_eq!((done.destroyed, done.keys_destroyed), (destroyed, 0));
        assert!(done.failed > 0);
        let [one, others @ ..] = &states(&world).await[..] else { panic!() };
        assert_ne!(*one, VersionState::Destroyed);
        assert_eq!(others, [VersionState::Destroyed; 2]);
    }
    world.faults.keep(None);
    let done = world.kms.reconcile().await.unwrap();
    assert_eq!((done.destroyed, done.keys_destroyed, done.failed), (1, 1, 0));
    check(&world, "held up").await;
}

async fn rotate_enabled(world: &World) {
    world.kms.enable_key(&world.request("kms.v1.KeyService/EnableKey"), change()).await.unwrap();
    rotate(world).await.unwrap();
    disable(world).await;
}

/// The destruction is cut off at each of its calls, and what it left is finished by the next process.
#[tokio::test]
async fn a_destruction_of_a_key_survives_a_crash_at_every_step() {
    for protection in PROTECTIONS {
        for reply_lost in [false, true] {
            let mut point = 0;
            loop {
                let at = format!("{protection}, step {point}, reply lost: {reply_lost}");
                let (world, _) = quiet(protection, Sensitivity::High).await;
                schedule(&world, plan()).await.unwrap();
                world.clock.advance(DEFAULT_DESTRUCTION_WINDOW);
                let before = world.faults.calls();
                world.faults.arm(point, reply_lost);
                let _ = world.kms.reconcile().await;
                let finished = world.faults.calls() - before <= point;
                let world = world.restart();
                world.kms.recover().await.expect(&at);
                world.kms.reconcile().await.expect(&at);
                assert_eq!(describe(&world).await.state, KeyState::Destroyed, "{at}");
                assert_eq!(states(&world).await, [VersionState::Destroyed; 2], "{at}");
                check(&world, &at).await;
                if finished {
                    break;
                }
                point += 1;
            }
            assert!(point > 30, "{point} steps");
        }
    }
}

/// The row of a planned destruction, with its good MAC, is put back after the destruction was cancelled.
#[tokio::test]
async fn a_row_that_was_put_back_destroys_nothing() {
    for protection in PROTECTIONS {
        let (world, _) = quiet(protection, Sensitivity::Low).await;
        schedule(&world, plan()).await.unwrap();
        let old = world.database().with_extension("old");
        let database = rusqlite::Connection::open(world.database()).unwrap();
        database.execute("VACUUM INTO ?1", [old.to_str().unwrap()]).unwrap();
        cancel(&world).await.unwrap();
        database
            .execute_batch(&format!(
                "ATTACH '{}' AS old; DROP TRIGGER keys_guard; DROP TRIGGER keys_stay;
                 PRAGMA foreign_keys = OFF; INSERT OR REPLACE INTO keys SELECT * FROM old.keys;",
                old.display()
            ))
            .unwrap();
        drop(database);
        let world = world.restart();
        assert_eq!(describe(&world).await.state, KeyState::DestroyScheduled);
        let before = objects(&world).await;
        world.clock.advance(MAX_DESTRUCTION_WINDOW);
        let done = world.kms.reconcile().await.unwrap();
        assert_eq!((done.destroyed, done.keys_destroyed, done.failed), (0, 0, 1));
        assert_eq!(objects(&world).await, before);
    }
}

#[tokio::test]
async fn a_destroyed_key_has_no_blob_in_any_page_of_the_database() {
    let (world, _) = quiet_medium().await;
    let stored = world.store.key(KeyRef::Name(name(KEY)), VersionChoice::Primary).await.unwrap();
    let Material::Wrapped(blob) = stored.unwrap().version.unwrap().row.material else { panic!() };
    schedule(&world, plan()).await.unwrap();
    world.clock.advance(DEFAULT_DESTRUCTION_WINDOW);
    assert_eq!(world.kms.reconcile().await.unwrap().keys_destroyed, 1);
    world.store.close().await;
    let bytes = std::fs::read(world.database()).unwrap();
    assert!(!bytes.windows(blob.0.len()).any(|window| window == blob.0));
}
