//! Staged versions: made in advance, one a key, activated by hand, at their date or by the next rotation.

use std::time::Duration;

use kms_core::clock::{Clock as _, Timestamp};
use kms_core::key::{Protection, Sensitivity};
use kms_core::lifecycle::{MAX_ACTIVATION_DELAY, MAX_ROTATION_JITTER};
use kms_core::state::VersionState;
use kms_server::authz::ActionKind;
use kms_server::service::{
    ChangeKeyState, ChangeVersionState, CreateKey, KeyDescription, RotateKey, Rotated,
    ServiceError, SetRotation, StageKeyVersion, Staged, UpdateKey, VersionDescription,
};

use crate::mutations::{Case, KEY, Kind, check};
use crate::support::*;

const DAY: Duration = Duration::from_hours(24);

async fn world(protection: Protection) -> World {
    let world = World::new().await;
    Case { kind: Kind::Create, protection }.run(&world, fresh_id()).await.unwrap();
    world
}

async fn stage(world: &World, at: Option<Timestamp>) -> Result<Staged, ServiceError> {
    let stage = StageKeyVersion {
        name: name(KEY),
        activate_time: at,
        reason: "next year".into(),
        request_id: fresh_id(),
    };
    world.kms.stage_key_version(&world.request("kms.v1.KeyService/StageKeyVersion"), stage).await
}

fn change(number: u32) -> ChangeVersionState {
    let name = format!("{KEY}/versions/{number}").parse().unwrap();
    ChangeVersionState { name, reason: "test".into(), request_id: fresh_id() }
}

async fn activate(world: &World, number: u32) -> Result<Rotated, ServiceError> {
    let request = world.request("kms.v1.KeyService/ActivateKeyVersion");
    world.kms.activate_key_version(&request, change(number)).await
}

async fn discard(world: &World, number: u32) -> Result<VersionDescription, ServiceError> {
    let request = world.request("kms.v1.KeyService/DiscardKeyVersion");
    world.kms.discard_key_version(&request, change(number)).await
}

async fn rotate(world: &World) -> Result<Rotated, ServiceError> {
    let rotate = RotateKey { name: name(KEY), reason: String::new(), request_id: fresh_id() };
    world.kms.rotate_key(&world.request("kms.v1.KeyService/RotateKey"), rotate).await
}

async fn describe(world: &World) -> KeyDescription {
    let request = world.request("kms.v1.KeyService/DescribeKey");
    world.kms.describe_key(&request, &name(KEY)).await.unwrap()
}

async fn version(world: &World, number: u32) -> VersionDescription {
    let request = world.request("kms.v1.KeyService/DescribeKeyVersion");
    let name = format!("{KEY}/versions/{number}").parse().unwrap();
    world.kms.describe_key_version(&request, &name).await.unwrap()
}

#[tokio::test]
async fn a_staged_version_does_nothing_until_it_is_activated() {
    for protection in [Protection::HsmWrapped, Protection::HsmResident] {
        let world = world(protection).await;
        let old = world.wrap(KEY).await;
        let Staged { key, version: staged } = stage(&world, None).await.unwrap();
        assert_eq!((key.version_count, key.primary_version.unwrap().get()), (2, 1));
        assert_eq!((staged.version.get(), staged.primary), (2, false));
        assert_eq!((staged.state, staged.activate_time), (VersionState::PreActivation, None));
        assert_eq!(&*world.wrap(KEY).await.key_version, format!("{KEY}/versions/1"));
        check(&world, "staged").await;

        world.clock.advance(DAY);
        let fresh = world.restart();
        let Rotated { key, version: active } = activate(&fresh, 2).await.unwrap();
        assert_eq!((key.version_count, key.primary_version.unwrap().get()), (2, 2));
        assert_eq!((active.state, active.primary), (VersionState::Active, true));
        assert_eq!(active.activate_time, Some(fresh.clock.now()));
        assert!(active.create_time < fresh.clock.now());
        assert_eq!(&*fresh.wrap(KEY).await.key_version, format!("{KEY}/versions/2"));
        let request = fresh.request("kms.v1.CryptoService/Unwrap");
        fresh.kms.unwrap(&request, unwrap(KEY, &old.ciphertext)).await.unwrap();
        check(&fresh, "activated").await;
        // The old one goes on for the overlap, as after every rollover.
        assert_eq!(version(&fresh, 1).await.state, VersionState::Active);
        fresh.clock.advance(DAY);
        assert_eq!(version(&fresh, 1).await.state, VersionState::Deactivated);
    }
}

#[tokio::test]
async fn a_key_has_one_staged_version_until_it_is_activated_or_discarded() {
    let world = world(Protection::HsmResident).await;
    stage(&world, None).await.unwrap();
    let refused = stage(&world, None).await.unwrap_err();
    assert_eq!(refused.reason(), "VERSION_STAGED");
    assert_eq!(describe(&world).await.version_count, 2, "nothing was made");
    check(&world, "refused").await;

    let discarded = discard(&world, 2).await.unwrap();
    assert_eq!((discarded.state, discarded.activate_time), (VersionState::Destroyed, None));
    check(&world, "discarded").await;
    let illegal = activate(&world, 2).await.unwrap_err();
    assert_eq!(illegal.reason(), "ILLEGAL_TRANSITION");
    // The number is not used again.
    assert_eq!(stage(&world, None).await.unwrap().version.version.get(), 3);
    activate(&world, 3).await.unwrap();
    assert_eq!(stage(&world, None).await.unwrap().version.version.get(), 4);
    check(&world, "staged again").await;
}

#[tokio::test]
async fn every_rollover_takes_the_staged_version() {
    for protection in [Protection::HsmWrapped, Protection::HsmResident] {
        let world = world(protection).await;
        // By hand, whatever date was planned.
        stage(&world, Some(world.clock.now().after(DAY))).await.unwrap();
        let rotated = rotate(&world).await.unwrap();
        assert_eq!((rotated.version.version.get(), rotated.key.version_count), (2, 2));
        world.clock.advance(DAY * 2);
        assert_eq!(world.kms.reconcile().await.unwrap().activated, 0, "it is done");
        // Because the primary is compromised.
        stage(&world, None).await.unwrap();
        let request = world.request("kms.v1.KeyService/CompromiseKeyVersion");
        let done = world.kms.compromise_key_version(&request, change(2)).await.unwrap();
        let replacement = done.replacement.unwrap();
        assert_eq!((replacement.version.get(), replacement.primary), (3, true));
        assert_eq!(done.version.state, VersionState::Compromised);
        // Without one, a new version is made.
        assert_eq!(rotate(&world).await.unwrap().version.version.get(), 4);
        check(&world, "rolled over").await;
    }
}

#[tokio::test]
async fn a_rotation_that_is_due_takes_the_staged_version() {
    let world = World::new().await;
    let period = Some(DAY * 30);
    let create = CreateKey { rotation_period: period, ..create(KEY) };
    let request = world.request("kms.v1.KeyService/CreateKey");
    world.kms.create_key(&request, create).await.unwrap();
    stage(&world, Some(world.clock.now().after(DAY * 365))).await.unwrap();
    world.clock.advance(DAY * 31);
    let done = world.kms.reconcile().await.unwrap();
    assert_eq!((done.rotated, done.activated, done.failed), (1, 0, 0));
    let key = describe(&world).await;
    assert_eq!((key.version_count, key.primary_version.unwrap().get()), (2, 2));
    let next = key.rotation.unwrap().due;
    assert!(next > world.clock.now().after(DAY * 20), "the period counts from now");
}

#[tokio::test]
async fn a_version_is_activated_at_its_date_once_and_not_a_moment_before() {
    for protection in [Protection::HsmWrapped, Protection::HsmResident] {
        let world = world(protection).await;
        let date = world.clock.now().after(DAY * 7);
        let staged = stage(&world, Some(date)).await.unwrap().version;
        assert_eq!(staged.activate_time, Some(date));
        world.clock.set(Timestamp::from_unix_ms(date.as_unix_ms() - 1));
        assert_eq!(world.kms.reconcile().await.unwrap().activated, 0);
        world.clock.advance(Duration::from_millis(1));
        // However long the server was away; and not before it is ready.
        world.clock.advance(DAY * 365 * 3);
        let world = world.restart();
        assert_eq!(world.kms.recover().await.unwrap().activated, 0);
        let done = world.kms.reconcile().await.unwrap();
        assert_eq!((done.activated, done.failed), (1, 0));
        assert_eq!(world.kms.reconcile().await.unwrap().activated, 0, "once");
        let active = version(&world, 2).await;
        assert_eq!((active.state, active.primary), (VersionState::Active, true));
        assert_eq!(active.activate_time, Some(world.clock.now()), "when it was done");
        assert_eq!(active.state_reason, "activation date");
        assert_ne!(active.state_actor, ADMIN);
        check(&world, "activated").await;
    }
}

#[tokio::test]
async fn a_clock_that_goes_backwards_activates_nothing_twice() {
    let world = world(Protection::HsmWrapped).await;
    stage(&world, Some(world.clock.now().after(DAY))).await.unwrap();
    world.clock.advance(DAY);
    assert_eq!(world.kms.reconcile().await.unwrap().activated, 1);
    world.clock.set(Timestamp::from_unix_ms(0));
    assert_eq!(world.kms.reconcile().await.unwrap().activated, 0);
    assert_eq!(describe(&world).await.version_count, 2);
}

#[tokio::test]
async fn a_disabled_key_is_not_staged_nor_activated_until_it_is_enabled() {
    let world = world(Protection::HsmWrapped).await;
    stage(&world, Some(world.clock.now().after(DAY))).await.unwrap();
    let key_change =
        || ChangeKeyState { name: name(KEY), reason: "test".into(), request_id: fresh_id() };
    let request = world.request("kms.v1.KeyService/DisableKey");
    world.kms.disable_key(&request, key_change()).await.unwrap();
    world.clock.advance(DAY * 2);
    let done = world.kms.reconcile().await.unwrap();
    assert_eq!((done.activated, done.failed), (0, 0));
    assert_eq!(activate(&world, 2).await, Err(ServiceError::KeyDisabled));
    assert_eq!(stage(&world, None).await, Err(ServiceError::KeyDisabled));
    let request = world.request("kms.v1.KeyService/EnableKey");
    world.kms.enable_key(&request, key_change()).await.unwrap();
    assert_eq!(world.kms.reconcile().await.unwrap().activated, 1);
}

#[tokio::test]
async fn dates_are_taken_within_their_bounds_and_a_repeat_after_the_date_gets_its_result() {
    let world = world(Protection::HsmWrapped).await;
    let now = world.clock.now();
    let last = now.after(MAX_ACTIVATION_DELAY);
    for wrong in [now, last.after(Duration::from_millis(1)), Timestamp::from_unix_ms(i64::MIN)] {
        let refused = stage(&world, Some(wrong)).await.unwrap_err();
        assert_eq!(refused.reason(), "FIELD_VIOLATION");
    }
    stage(&world, Some(last)).await.unwrap();
    discard(&world, 2).await.unwrap();
    let once = StageKeyVersion {
        name: name(KEY),
        activate_time: Some(now.after(Duration::from_secs(1))),
        reason: "soon".into(),
        request_id: fresh_id(),
    };
    let request = world.request("kms.v1.KeyService/StageKeyVersion");
    let first = world.kms.stage_key_version(&request, once.clone()).await.unwrap();
    world.clock.advance(Duration::from_hours(1));
    let again = world.kms.stage_key_version(&request, once.clone()).await.unwrap();
    assert_eq!(again, first);
    let other = StageKeyVersion { activate_time: None, ..once };
    let refused = world.kms.stage_key_version(&request, other).await.unwrap_err();
    assert_eq!(refused.reason(), "REQUEST_ID_REUSED");
}

#[tokio::test]
async fn a_staged_version_whose_material_is_gone_never_becomes_the_primary() {
    let world = world(Protection::HsmResident).await;
    stage(&world, Some(world.clock.now().after(DAY))).await.unwrap();
    let deadline = world.request("").deadline;
    let staged = world.store.resident_ids().await.unwrap().rows;
    let second = kms_core::id::KeyVersion::new(2).unwrap();
    let row = world
        .store
        .key(
            kms_server::store::KeyRef::Name(name(KEY)),
            kms_server::store::VersionChoice::Number(second),
        )
        .await
        .unwrap()
        .unwrap()
        .version
        .unwrap()
        .row;
    let kms_core::key::Material::Resident(id) = row.material else { panic!("resident") };
    assert!(staged.contains(&id));
    world.hsm.destroy_resident(id, deadline).await.unwrap();
    for refused in [activate(&world, 2).await, rotate(&world).await] {
        assert_eq!(refused.unwrap_err().reason(), "KEY_INTEGRITY");
    }
    world.clock.advance(DAY);
    let done = world.kms.reconcile().await.unwrap();
    assert_eq!((done.activated, done.failed), (0, 1));
    assert_eq!(&*world.wrap(KEY).await.key_version, format!("{KEY}/versions/1"));
    // The remedy: give it up, and make another.
    discard(&world, 2).await.unwrap();
    assert_eq!(rotate(&world).await.unwrap().version.version.get(), 3);
    check(&world, "another").await;
}

/// What changes of a version's row when it is activated.
type Columns = (String, Option<i64>, i64, String, i64, Vec<u8>);

#[tokio::test]
async fn a_discard_destroys_nothing_on_the_word_of_one_row() {
    let world = world(Protection::HsmResident).await;
    stage(&world, None).await.unwrap();
    let database = rusqlite::Connection::open(world.database()).unwrap();
    let read = "SELECT state, activate_time, state_time, state_reason, revision, mac
                FROM versions WHERE version = 2";
    let row = |row: &rusqlite::Row<'_>| -> rusqlite::Result<Columns> {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?))
    };
    let staged = database.query_row(read, [], row).unwrap();
    activate(&world, 2).await.unwrap();
    let used = world.wrap(KEY).await;
    // The row of when it was staged is put back: its MAC is right.
    database.execute_batch("DROP TRIGGER versions_guard;").unwrap();
    let put = "UPDATE versions SET state = ?1, activate_time = ?2, state_time = ?3,
               state_reason = ?4, revision = ?5, mac = ?6 WHERE version = 2";
    database.execute(put, staged).unwrap();
    let refused = discard(&world, 2).await.unwrap_err();
    assert_eq!(refused.reason(), "KEY_INTEGRITY");
    let request = world.request("kms.v1.CryptoService/Unwrap");
    let opened = world.kms.unwrap(&request, unwrap(KEY, &used.ciphertext)).await.unwrap();
    assert_eq!(opened.plaintext.expose(), b"secret", "what was loaded goes on");
}

#[tokio::test]
async fn a_staged_row_that_is_put_back_brings_no_used_version_back() {
    for then in ["compromised", "discarded"] {
        let world = world(Protection::HsmWrapped).await;
        let date = world.clock.now().after(DAY);
        stage(&world, Some(date)).await.unwrap();
        let database = rusqlite::Connection::open(world.database()).unwrap();
        let copy = "CREATE TABLE old AS SELECT * FROM versions WHERE version = 2;
                    DROP TRIGGER versions_guard;";
        database.execute_batch(copy).unwrap();
        if then == "compromised" {
            activate(&world, 2).await.unwrap();
            let request = world.request("kms.v1.KeyService/CompromiseKeyVersion");
            world.kms.compromise_key_version(&request, change(2)).await.unwrap();
        } else {
            discard(&world, 2).await.unwrap();
        }
        let put = "REPLACE INTO versions SELECT * FROM old";
        database.execute_batch(&format!("PRAGMA foreign_keys = OFF; {put};")).unwrap();
        let world = world.restart();
        assert_eq!(activate(&world, 2).await.unwrap_err().reason(), "KEY_INTEGRITY", "{then}");
        if then == "discarded" {
            assert_eq!(rotate(&world).await.unwrap_err().reason(), "KEY_INTEGRITY");
        }
        world.clock.advance(DAY * 2);
        assert_eq!(world.kms.reconcile().await.unwrap().activated, 0, "{then}");
    }
}

#[tokio::test]
async fn a_date_takes_the_permission_to_activate() {
    let plain: Vec<_> = ActionKind::ALL
        .iter()
        .copied()
        .filter(|action| *action != ActionKind::ActivateKeyVersion)
        .collect();
    let world = world(Protection::HsmWrapped).await;
    let world = world.restart_granting(&[grant("plain", "t", &plain)]);
    let request = world.request_of("plain", "kms.v1.KeyService/StageKeyVersion");
    let stage = |activate_time| StageKeyVersion {
        name: name(KEY),
        activate_time,
        reason: "r".into(),
        request_id: fresh_id(),
    };
    let dated = stage(Some(world.clock.now().after(DAY)));
    let refused = world.kms.stage_key_version(&request, dated.clone()).await;
    assert_eq!(refused, Err(ServiceError::AccessDenied));
    world.kms.stage_key_version(&request, stage(None)).await.unwrap();
    discard(&world, 2).await.unwrap();
    let request = world.request("kms.v1.KeyService/StageKeyVersion");
    world.kms.stage_key_version(&request, dated).await.unwrap();
    let told = world.last().reason.unwrap();
    assert!(told.starts_with("r [activated at "), "{told}");
}

#[tokio::test]
async fn the_cryptoperiod_counts_from_the_activation() {
    let world = World::new().await;
    let create =
        CreateKey { sensitivity: Sensitivity::High, cryptoperiod: DAY * 10, ..create(KEY) };
    let request = world.request("kms.v1.KeyService/CreateKey");
    world.kms.create_key(&request, create).await.unwrap();
    stage(&world, None).await.unwrap();
    world.clock.advance(DAY * 11);
    let request = world.request("kms.v1.CryptoService/Wrap");
    let refused = world.kms.wrap(&request, wrap(KEY, b"x")).await.unwrap_err();
    assert_eq!(refused, ServiceError::CryptoperiodExceeded);
    activate(&world, 2).await.unwrap();
    world.clock.advance(DAY * 9);
    let request = world.request("kms.v1.CryptoService/Wrap");
    world.kms.wrap(&request, wrap(KEY, b"x")).await.unwrap();
    world.clock.advance(DAY);
    let request = world.request("kms.v1.CryptoService/Wrap");
    let refused = world.kms.wrap(&request, wrap(KEY, b"x")).await.unwrap_err();
    assert_eq!(refused, ServiceError::CryptoperiodExceeded);
}

#[tokio::test]
async fn a_staged_version_that_is_compromised_never_comes_into_use() {
    let world = world(Protection::HsmWrapped).await;
    stage(&world, Some(world.clock.now().after(DAY))).await.unwrap();
    let request = world.request("kms.v1.KeyService/CompromiseKeyVersion");
    let done = world.kms.compromise_key_version(&request, change(2)).await.unwrap();
    assert_eq!(done.replacement, None, "it was not the primary");
    assert_eq!(done.version.activate_time, None);
    assert_eq!(done.key.primary_version.unwrap().get(), 1);
    world.clock.advance(DAY * 2);
    assert_eq!(world.kms.reconcile().await.unwrap().activated, 0);
    assert_eq!(rotate(&world).await.unwrap().version.version.get(), 3);
    check(&world, "compromised").await;
}

/// A version that waited for months is not old when it begins to be used.
#[tokio::test]
async fn a_rotation_period_counts_from_the_activation_of_a_staged_version() {
    let world = world(Protection::HsmWrapped).await;
    stage(&world, None).await.unwrap();
    world.clock.advance(DAY * 150);
    activate(&world, 2).await.unwrap();
    let active = world.clock.now();
    let (revision, period) = (describe(&world).await.revision, DAY * 90);
    let update = UpdateKey {
        name: name(KEY),
        revision,
        owner: None,
        sensitivity: None,
        usage: None,
        cryptoperiod: None,
        recipient_usage_period: None,
        labels: None,
        rotation_period: Some(SetRotation::Every(period)),
        allow_recent_use: false,
        request_id: fresh_id(),
    };
    let request = world.request("kms.v1.KeyService/UpdateKey");
    let due = world.kms.update_key(&request, update).await.unwrap().rotation.unwrap().due;
    let earliest = active.after(period.saturating_sub(MAX_ROTATION_JITTER));
    assert!(due >= earliest && due <= active.after(period), "{due} after {active}");
    assert_eq!(world.kms.reconcile().await.unwrap().rotated, 0);
}
