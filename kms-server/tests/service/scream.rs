//! The scream test: while a destruction is planned everybody is refused, told of and counted; of a key of HIGH sensitivity
//! whoever wants the version holds its destruction.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kms_core::clock::Clock as _;
use kms_core::key::Sensitivity;
use kms_core::lifecycle::MIN_DESTRUCTION_WINDOW;
use kms_core::state::VersionState;
use kms_server::service::{
    ChangeVersionState, CreateKey, QUIET_PERIOD, Retirement, Rewrap, RotateKey, SCREAM_PERIOD,
    ScheduleDestruction, ServiceError, VersionDescription, VersionUsage,
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
    let before = world.faults.walks();
    for _ in 0..3 {
        let done = world.kms.reconcile().await.unwrap();
        assert_eq!((done.destroyed, done.failed), (0, 0));
    }
    assert_eq!(world.faults.walks(), before);
    world.clock.advance(SCREAM_PERIOD);
    assert_eq!(world.kms.reconcile().await.unwrap().destroyed, 1);
    assert!(world.faults.walks() > before, "what goes is looked at");
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
