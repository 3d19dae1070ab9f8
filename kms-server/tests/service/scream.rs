//! The scream test: while a destruction is planned everybody is refused, told of and counted; of a key of HIGH sensitivity
//! whoever wants the version holds its destruction.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kms_core::clock::Clock as _;
use kms_core::id::{KeyVersion, Revision};
use kms_core::key::Sensitivity;
use kms_core::lifecycle::MIN_DESTRUCTION_WINDOW;
use kms_core::state::VersionState;
use kms_server::authz::ActionKind;
use kms_server::service::{
    ChangeKeyState, ChangeVersionState, CreateKey, QUIET_PERIOD, Retirement, Rewrap, RotateKey,
    SCREAM_PERIOD, ScheduleDestruction, ScheduleKeyDestruction, ServiceError, UpdateKey,
    VersionDescription, VersionUsage,
};

use crate::mutations::KEY;
use crate::support::*;

const MOMENT: Duration = Duration::from_millis(1);

/// A key whose version 1 is deactivated and quiet, and a ciphertext under it.
async fn quiet(sensitivity: Sensitivity) -> (World, Vec<u8>) {
    let world = World::new().await;
    let create = CreateKey { sensitivity, ..create(KEY) };
    world.kms.create_key(&world.request("kms.v1.KeyService/CreateKey"), create).await.unwrap();
    let ciphertext = world.wrap(KEY).await.ciphertext;
    let rotate = RotateKey { name: name(KEY), reason: String::new(), request_id: fresh_id() };
    world.kms.rotate_key(&world.request("kms.v1.KeyService/RotateKey"), rotate).await.unwrap();
    world.clock.advance(QUIET_PERIOD);
    assert_eq!(world.kms.reconcile().await.unwrap().deactivated, 1);
    (world, ciphertext)
}

async fn schedule(
    world: &World,
    allow_recent_use: bool,
) -> Result<VersionDescription, ServiceError> {
    let schedule = ScheduleDestruction {
        name: format!("{KEY}/versions/1").parse().unwrap(),
        window: MIN_DESTRUCTION_WINDOW,
        allow_recent_use,
        allow_consumers: false,
        reason: "test".into(),
        request_id: fresh_id(),
    };
    let request = world.request("kms.v1.KeyService/ScheduleKeyVersionDestruction");
    world.kms.schedule_key_version_destruction(&request, schedule).await
}

async fn want(world: &World, ciphertext: &[u8]) {
    let request = world.request("kms.v1.CryptoService/Unwrap");
    let error = world.kms.unwrap(&request, unwrap(KEY, ciphertext)).await.unwrap_err();
    assert!(matches!(error, ServiceError::KeyNotActive { .. }), "{error:?}");
}

async fn usage(world: &World) -> VersionUsage {
    let request = world.request("kms.v1.KeyService/GetVersionUsage");
    let name = format!("{KEY}/versions/1").parse().unwrap();
    world.kms.get_version_usage(&request, &name).await.unwrap()
}

async fn state(world: &World) -> VersionState {
    usage(world).await.state
}

#[tokio::test]
async fn whoever_wants_a_version_of_a_high_key_holds_its_destruction_for_seven_days() {
    let (world, ciphertext) = quiet(Sensitivity::High).await;
    schedule(&world, false).await.unwrap();
    world.clock.advance(MIN_DESTRUCTION_WINDOW.saturating_sub(MOMENT));
    want(&world, &ciphertext).await;
    world.clock.advance(MOMENT);
    for _ in 0..2 {
        let done = world.kms.reconcile().await.unwrap();
        assert_eq!((done.destroyed, done.failed), (0, 0), "held, and nothing has failed");
    }
    // A second scream, and another process that has not heard the first.
    let world = world.restart();
    world.clock.advance(SCREAM_PERIOD.saturating_sub(MOMENT * 2));
    assert_eq!(world.kms.reconcile().await.unwrap().destroyed, 0);
    want(&world, &ciphertext).await;
    world.clock.advance(SCREAM_PERIOD.saturating_sub(MOMENT));
    assert_eq!(world.kms.reconcile().await.unwrap().destroyed, 0, "a moment before the end");
    world.clock.advance(MOMENT);
    assert_eq!(world.kms.reconcile().await.unwrap().destroyed, 1);
    assert_eq!(state(&world).await, VersionState::Destroyed);
}

/// All rows of the tenant are walked under its turn: not every minute, for as long as somebody wants it.
#[tokio::test]
async fn a_destruction_that_is_held_makes_no_walk() {
    let (world, ciphertext) = quiet(Sensitivity::High).await;
    schedule(&world, false).await.unwrap();
    world.clock.advance(MIN_DESTRUCTION_WINDOW);
    want(&world, &ciphertext).await;
    let before = world.walks();
    for _ in 0..3 {
        let done = world.kms.reconcile().await.unwrap();
        assert_eq!((done.destroyed, done.failed), (0, 0));
    }
    assert_eq!(world.walks(), before);
    world.clock.advance(SCREAM_PERIOD);
    assert_eq!(world.kms.reconcile().await.unwrap().destroyed, 1);
    assert!(world.walks() > before, "what goes is looked at");
}

#[tokio::test]
async fn a_high_key_that_nobody_wants_is_destroyed_when_its_window_is_over() {
    let (world, _) = quiet(Sensitivity::High).await;
    schedule(&world, false).await.unwrap();
    world.clock.advance(MIN_DESTRUCTION_WINDOW);
    assert_eq!(world.kms.reconcile().await.unwrap().destroyed, 1);
}

#[tokio::test]
async fn other_keys_are_destroyed_in_time_whoever_wants_them() {
    for sensitivity in [Sensitivity::Low, Sensitivity::Medium] {
        let (world, ciphertext) = quiet(sensitivity).await;
        schedule(&world, false).await.unwrap();
        world.clock.advance(MIN_DESTRUCTION_WINDOW.saturating_sub(MOMENT));
        want(&world, &ciphertext).await;
        world.clock.advance(MOMENT);
        assert_eq!(world.kms.reconcile().await.unwrap().destroyed, 1);
    }
}

#[tokio::test]
async fn who_is_permitted_destroys_what_is_wanted_and_that_is_told() {
    let (world, ciphertext) = quiet(Sensitivity::High).await;
    let planned = schedule(&world, true).await.unwrap();
    assert!(!planned.destroy_despite_recent_use, "there was nothing to override");
    want(&world, &ciphertext).await;
    let cancel = ChangeVersionState {
        name: planned_name(),
        reason: "wanted".into(),
        request_id: fresh_id(),
    };
    let request = world.request("kms.v1.KeyService/CancelKeyVersionDestruction");
    let back = world.kms.cancel_key_version_destruction(&request, cancel).await.unwrap();
    assert!(!back.destroy_despite_recent_use);
    // What was wanted of late is not planned again unasked.
    let refused = schedule(&world, false).await.unwrap_err();
    assert!(matches!(refused, ServiceError::RecentlyUsed { .. }), "{refused:?}");
    let planned = schedule(&world, true).await.unwrap();
    assert!(planned.destroy_despite_recent_use && !planned.destroy_despite_consumers);
    world.clock.advance(MIN_DESTRUCTION_WINDOW.saturating_sub(MOMENT));
    want(&world, &ciphertext).await;
    world.clock.advance(MOMENT);
    assert_eq!(world.kms.reconcile().await.unwrap().destroyed, 1);
}

fn planned_name() -> kms_core::name::VersionName {
    format!("{KEY}/versions/1").parse().unwrap()
}

#[tokio::test]
async fn attempts_are_counted_by_whatever_they_want_and_are_evidence() {
    let (world, ciphertext) = quiet(Sensitivity::Low).await;
    schedule(&world, false).await.unwrap();
    assert_eq!(usage(&world).await.uses.refused.count, 0);
    want(&world, &ciphertext).await;
    let first = world.clock.now();
    world.clock.advance(Duration::from_secs(1));
    let item = Rewrap { key: name(KEY), ciphertext, context: context("/a") };
    let request = world.request("kms.v1.CryptoService/Rewrap");
    world.kms.rewrap(&request, item).await.unwrap_err();
    let pinned = wrap(&format!("{KEY}/versions/1"), b"x");
    let request = world.request("kms.v1.CryptoService/Wrap");
    world.kms.wrap(&request, pinned).await.unwrap_err();
    let usage = usage(&world).await;
    assert_eq!(usage.uses.refused.count, 3);
    assert_eq!(usage.uses.refused.span, Some((first, world.clock.now())));
    assert_eq!(usage.uses.process.count, 0, "what is refused is no use");
    assert_eq!(usage.retirement, Retirement::InUse);
    assert!(usage.evidence.iter().any(|line| line.contains("wanted 3 times")), "{usage:?}");
}

/// What a crash lost is not known, and what is not known is no silence.
#[tokio::test]
async fn a_version_whose_uses_were_lost_by_a_crash_counts_as_wanted() {
    let world = World::new().await;
    world.create(KEY).await;
    world.wrap(KEY).await;
    // The counter was leased from; the use was not written down.
    let world = world.restart();
    let rotate = RotateKey { name: name(KEY), reason: String::new(), request_id: fresh_id() };
    world.kms.rotate_key(&world.request("kms.v1.KeyService/RotateKey"), rotate).await.unwrap();
    world.clock.advance(QUIET_PERIOD * 2);
    world.kms.reconcile().await.unwrap();
    let last = world.clock.now();
    assert_eq!(schedule(&world, false).await, Err(ServiceError::RecentlyUsed { last }));
    // Of the whole key too, though its primary was never used.
    let request = world.request("kms.v1.KeyService/DisableKey");
    let change = ChangeKeyState { name: name(KEY), reason: "x".into(), request_id: fresh_id() };
    world.kms.disable_key(&request, change).await.unwrap();
    let plan = ScheduleKeyDestruction {
        name: name(KEY),
        window: MIN_DESTRUCTION_WINDOW,
        allow_recent_use: false,
        allow_consumers: false,
        reason: "x".into(),
        request_id: fresh_id(),
    };
    let request = world.request("kms.v1.KeyService/ScheduleKeyDestruction");
    let refused = world.kms.schedule_key_destruction(&request, plan).await;
    assert_eq!(refused, Err(ServiceError::RecentlyUsed { last }));
    let planned = schedule(&world, true).await.unwrap();
    assert!(planned.destroy_despite_recent_use, "by name");
}

/// A row of uses that goes while the destruction is planned holds it too.
#[tokio::test]
async fn uses_that_were_taken_away_hold_a_destruction() {
    let (world, _) = quiet(Sensitivity::High).await;
    schedule(&world, false).await.unwrap();
    let database = rusqlite::Connection::open(world.database()).unwrap();
    assert_eq!(database.execute("DELETE FROM usage WHERE version = 1", []).unwrap(), 1);
    world.clock.advance(MIN_DESTRUCTION_WINDOW);
    let done = world.kms.reconcile().await.unwrap();
    assert_eq!((done.destroyed, done.failed), (0, 0));
}

fn lower(revision: Revision, allow_recent_use: bool) -> UpdateKey {
    UpdateKey {
        name: name(KEY),
        revision,
        owner: None,
        sensitivity: Some(Sensitivity::Low),
        usage: None,
        cryptoperiod: None,
        recipient_usage_period: None,
        labels: None,
        rotation_period: None,
        allow_recent_use,
        request_id: fresh_id(),
    }
}

/// Another sensitivity would end the wait for those who still want it, without the permission that this takes.
#[tokio::test]
async fn the_sensitivity_is_lowered_while_a_version_waits_only_by_those_who_may_say_so() {
    const OFFICER: &str = "spiffe://td/officer";
    let actions: Vec<_> = ActionKind::ALL
        .iter()
        .copied()
        .filter(|action| *action != ActionKind::DestroyRecentlyUsed)
        .collect();
    let (world, _) = quiet(Sensitivity::High).await;
    schedule(&world, false).await.unwrap();
    let world = world.restart_granting(&[grant(OFFICER, "t", &actions)]);
    let describe = world.request("kms.v1.KeyService/DescribeKey");
    let revision = world.kms.describe_key(&describe, &name(KEY)).await.unwrap().revision;
    let update = |principal, allow| {
        let request = world.request_of(principal, "kms.v1.KeyService/UpdateKey");
        let kms = world.kms.clone();
        async move { kms.update_key(&request, lower(revision, allow)).await }
    };
    let planned = Err(ServiceError::DestructionPlanned { version: KeyVersion::FIRST });
    assert_eq!(update(OFFICER, false).await, planned);
    assert_eq!(update(ADMIN, false).await, planned, "not unasked either");
    assert_eq!(update(OFFICER, true).await, Err(ServiceError::AccessDenied));
    // What lowers nothing is not asked about.
    let owner = UpdateKey { sensitivity: None, owner: Some("x".into()), ..lower(revision, false) };
    let request = world.request_of(OFFICER, "kms.v1.KeyService/UpdateKey");
    let revision = world.kms.update_key(&request, owner).await.unwrap().revision;
    let high = UpdateKey { sensitivity: Some(Sensitivity::High), ..lower(revision, false) };
    let revision = world.kms.update_key(&request, high).await.unwrap().revision;
    let request = world.request("kms.v1.KeyService/UpdateKey");
    let made = world.kms.update_key(&request, lower(revision, true)).await.unwrap();
    assert_eq!(made.sensitivity, Sensitivity::Low);
    assert_eq!(world.last().reason.as_deref(), Some("[allows recent use]"));
    // Of what is not HIGH nothing is taken.
    let medium =
        UpdateKey { sensitivity: Some(Sensitivity::Medium), ..lower(made.revision, false) };
    assert!(world.kms.update_key(&request, medium).await.is_ok());
}

#[tokio::test]
async fn the_sensitivity_of_a_key_without_a_planned_destruction_is_lowered_freely() {
    let (world, _) = quiet(Sensitivity::High).await;
    let describe = world.request("kms.v1.KeyService/DescribeKey");
    let revision = world.kms.describe_key(&describe, &name(KEY)).await.unwrap().revision;
    let request = world.request("kms.v1.KeyService/UpdateKey");
    assert!(world.kms.update_key(&request, lower(revision, false)).await.is_ok());
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The alert says who, from where, and what was wanted of which version.
#[tokio::test]
async fn an_attempt_raises_an_alert_that_names_the_caller() {
    let (world, ciphertext) = quiet(Sensitivity::High).await;
    schedule(&world, false).await.unwrap();
    let log = Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let guard = tracing::subscriber::set_default(subscriber);
    want(&world, &ciphertext).await;
    world.clock.advance(MIN_DESTRUCTION_WINDOW);
    want(&world, &ciphertext).await;
    world.kms.reconcile().await.unwrap();
    drop(guard);
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let line = text.lines().find(|line| line.contains("destroy_scheduled_use")).unwrap();
    for part in [ADMIN, "127.0.0.1:4711", "unwrap", &format!("{KEY}/versions/1")] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert_eq!(text.matches("destroy_scheduled_use").count(), 2);
    assert_eq!(text.matches("destruction_held").count(), 1, "{text}");
}
