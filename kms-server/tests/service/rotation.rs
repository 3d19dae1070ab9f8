//! Rotation by period: due within its bounds, once however long the server was away, and never a suspended primary;
//! and the cryptoperiod, warned of and enforced.

use std::time::Duration;

use kms_core::clock::{Clock as _, Timestamp};
use kms_core::key::{Protection, Sensitivity};
use kms_core::lifecycle::MAX_ROTATION_JITTER;
use kms_server::service::{
    ChangeVersionState, CreateKey, KeyDescription, MAX_DUE, RotateKey, ServiceError, SetRotation,
    UpdateKey,
};

use crate::mutations::{KEY, check};
use crate::support::*;

const DAY: Duration = Duration::from_hours(24);
const PERIOD: Duration = Duration::from_hours(90 * 24);

async fn rotated_every(world: &World, protection: Protection) -> KeyDescription {
    let create = CreateKey { protection, rotation_period: Some(PERIOD), ..create(KEY) };
    world.kms.create_key(&world.request("kms.v1.KeyService/CreateKey"), create).await.unwrap()
}

async fn describe(world: &World) -> KeyDescription {
    let request = world.request("kms.v1.KeyService/DescribeKey");
    world.kms.describe_key(&request, &name(KEY)).await.unwrap()
}

fn due(key: &KeyDescription) -> Timestamp {
    key.rotation.unwrap().due
}

/// Sets the clock.
fn go_to(world: &World, time: Timestamp) {
    let distance = time.as_unix_ms() - world.clock.now().as_unix_ms();
    world.clock.advance(Duration::from_millis(u64::try_from(distance).unwrap()));
}

#[tokio::test]
async fn a_key_is_rotated_when_it_is_due_and_not_a_moment_before() {
    for protection in [Protection::HsmWrapped, Protection::HsmResident] {
        let world = World::new().await;
        let key = rotated_every(&world, protection).await;
        let created = world.clock.now();
        let earliest = created.after(PERIOD.saturating_sub(MAX_ROTATION_JITTER));
        assert!(due(&key) >= earliest && due(&key) <= created.after(PERIOD));
        go_to(&world, due(&key));
        let just_before = Timestamp::from_unix_ms(due(&key).as_unix_ms() - 1);
        world.clock.set(just_before);
        assert_eq!(world.kms.reconcile().await.unwrap().rotated, 0);
        world.clock.advance(Duration::from_millis(1));
        assert_eq!(world.kms.reconcile().await.unwrap().rotated, 1);
        let after = describe(&world).await;
        assert_eq!((after.version_count, after.primary_version.unwrap().get()), (2, 2));
        assert!(due(&after) > world.clock.now(), "the next period has begun");
        assert_eq!(world.kms.reconcile().await.unwrap().rotated, 0, "once");
        assert_eq!(&*world.wrap(KEY).await.key_version, format!("{KEY}/versions/2"));
        check(&world, "rotated").await;
    }
}

#[tokio::test]
async fn after_years_away_a_key_is_rotated_exactly_once() {
    let world = World::new().await;
    rotated_every(&world, Protection::HsmWrapped).await;
    world.clock.advance(DAY * 365 * 3);
    let world = world.restart();
    world.kms.recover().await.unwrap();
    assert_eq!(describe(&world).await.version_count, 1, "not before the server is ready");
    assert_eq!(world.kms.reconcile().await.unwrap().rotated, 1);
    assert_eq!(world.kms.reconcile().await.unwrap().rotated, 0);
    assert_eq!(describe(&world).await.version_count, 2);
}

#[tokio::test]
async fn a_clock_that_goes_backwards_rotates_nothing() {
    let world = World::new().await;
    let key = rotated_every(&world, Protection::HsmWrapped).await;
    go_to(&world, due(&key));
    assert_eq!(world.kms.reconcile().await.unwrap().rotated, 1);
    world.clock.set(Timestamp::from_unix_ms(0));
    assert_eq!(world.kms.reconcile().await.unwrap().rotated, 0);
    assert_eq!(describe(&world).await.version_count, 2);
}

#[tokio::test]
async fn a_suspended_primary_is_not_replaced_behind_the_back_of_who_suspended_it() {
    let world = World::new().await;
    let key = rotated_every(&world, Protection::HsmWrapped).await;
    let change = || ChangeVersionState {
        name: format!("{KEY}/versions/1").parse().unwrap(),
        reason: "incident".into(),
        request_id: fresh_id(),
    };
    let request = world.request("kms.v1.KeyService/SuspendKeyVersion");
    world.kms.suspend_key_version(&request, change()).await.unwrap();
    go_to(&world, due(&key));
    let done = world.kms.reconcile().await.unwrap();
    assert_eq!((done.rotated, done.failed), (0, 0));
    let request = world.request("kms.v1.KeyService/ResumeKeyVersion");
    world.kms.resume_key_version(&request, change()).await.unwrap();
    assert_eq!(world.kms.reconcile().await.unwrap().rotated, 1);
}

fn update(revision: kms_core::id::Revision, rotation: SetRotation) -> UpdateKey {
    UpdateKey {
        name: name(KEY),
        revision,
        owner: None,
        sensitivity: None,
        usage: None,
        cryptoperiod: None,
        recipient_usage_period: None,
        labels: None,
        rotation_period: Some(rotation),
        allow_recent_use: false,
        request_id: fresh_id(),
    }
}

#[tokio::test]
async fn a_period_is_set_changed_and_ended_and_counts_from_the_primary() {
    let world = World::new().await;
    world.create(KEY).await;
    let made = world.clock.now();
    assert_eq!(describe(&world).await.rotation, None);
    world.clock.advance(DAY * 30);
    let request = world.request("kms.v1.KeyService/UpdateKey");
    let set = |rotation| {
        let (kms, request) = (world.kms.clone(), request.clone());
        let key = name(KEY);
        let describing = world.request("kms.v1.KeyService/DescribeKey");
        async move {
            let revision = kms.describe_key(&describing, &key).await.unwrap().revision;
            kms.update_key(&request, update(revision, rotation)).await
        }
    };
    let key = set(SetRotation::Every(PERIOD)).await.unwrap();
    assert!(due(&key) <= made.after(PERIOD), "from when the primary was made");
    let key = set(SetRotation::Every(DAY)).await.unwrap();
    assert!(due(&key) < world.clock.now(), "over already");
    let key = set(SetRotation::Off).await.unwrap();
    assert_eq!(key.rotation, None);
    assert_eq!(world.kms.reconcile().await.unwrap().rotated, 0);
    let too_long = set(SetRotation::Every(Duration::from_hours(3651 * 24))).await.unwrap_err();
    assert_eq!(too_long.reason(), "FIELD_VIOLATION", "longer than the cryptoperiod");
}

/// The rotation is cut off at each of its calls; the next process has one new version at the end, never two.
#[tokio::test]
async fn a_rotation_by_period_survives_a_crash_at_every_step() {
    let mut point = 0;
    loop {
        let world = World::new().await;
        let key = rotated_every(&world, Protection::HsmResident).await;
        go_to(&world, due(&key));
        let before = world.faults.calls();
        world.faults.arm(point, point % 2 == 0);
        let _ = world.kms.reconcile().await;
        let finished = world.faults.calls() - before <= point;
        let world = world.restart();
        let at = format!("step {point}");
        world.kms.recover().await.expect(&at);
        world.kms.reconcile().await.expect(&at);
        assert_eq!(describe(&world).await.version_count, 2, "{at}");
        check(&world, &at).await;
        if finished {
            break;
        }
        point += 1;
    }
    assert!(point > 10, "{point} steps");
}

#[tokio::test]
async fn over_its_cryptoperiod_a_high_key_protects_no_more_and_others_are_told_of() {
    for sensitivity in [Sensitivity::High, Sensitivity::Medium] {
        let world = World::new().await;
        let create = CreateKey { sensitivity, cryptoperiod: DAY * 100, ..create(KEY) };
        let request = world.request("kms.v1.KeyService/CreateKey");
        world.kms.create_key(&request, create).await.unwrap();
        let warned = || world.kms.counters().cryptoperiod_warnings.read();
        world.clock.advance((DAY * 80).saturating_sub(Duration::from_millis(1)));
        let old = world.wrap(KEY).await;
        assert_eq!(warned(), 0, "a moment before 80 %");
        world.clock.advance(Duration::from_millis(1));
        world.wrap(KEY).await;
        world.wrap(KEY).await;
        assert_eq!(warned(), 1, "once");
        world.clock.advance((DAY * 20).saturating_sub(Duration::from_millis(1)));
        world.wrap(KEY).await;
        world.clock.advance(Duration::from_millis(1));
        let request = world.request("kms.v1.CryptoService/Wrap");
        let over = world.kms.wrap(&request, wrap(KEY, b"x")).await;
        match sensitivity {
            Sensitivity::High => {
                assert_eq!(over.unwrap_err(), ServiceError::CryptoperiodExceeded);
            }
            Sensitivity::Low | Sensitivity::Medium => {
                assert!(over.is_ok());
                world.wrap(KEY).await;
                assert_eq!(warned(), 2, "that it is over is told too, once");
            }
        }
        let request = world.request("kms.v1.CryptoService/Unwrap");
        let opened = world.kms.unwrap(&request, unwrap(KEY, &old.ciphertext)).await;
        assert!(opened.is_ok(), "what it protected is processed");
    }
}

#[tokio::test]
async fn near_the_end_of_its_recipient_usage_period_a_version_still_opens_and_is_told_of() {
    let world = World::new().await;
    let (cryptoperiod, recipient) = (DAY * 10, DAY * 100);
    let create = CreateKey {
        sensitivity: Sensitivity::High,
        cryptoperiod,
        recipient_usage_period: Some(recipient),
        ..create(KEY)
    };
    let request = world.request("kms.v1.KeyService/CreateKey");
    let made = world.kms.create_key(&request, create).await.unwrap();
    assert_eq!(made.recipient_usage_period, recipient);
    let old = world.wrap(KEY).await;
    let open = async || {
        let request = world.request("kms.v1.CryptoService/Unwrap");
        world.kms.unwrap(&request, unwrap(KEY, &old.ciphertext)).await.unwrap();
        world.kms.counters().recipient_usage_warnings.read()
    };
    world.clock.advance((DAY * 80).saturating_sub(Duration::from_millis(1)));
    assert_eq!(open().await, 0, "a moment before 80 %");
    world.clock.advance(Duration::from_millis(1));
    assert_eq!((open().await, open().await), (1, 1), "once");
    world.clock.advance((DAY * 20).saturating_sub(Duration::from_millis(1)));
    assert_eq!(open().await, 1, "a moment before its end");
    world.clock.advance(Duration::from_millis(1));
    assert_eq!((open().await, open().await), (2, 2), "that it is over is told too, once");
    world.clock.advance(DAY * 1000);
    assert_eq!(open().await, 2, "what it protected is never lost to a date");
    let request = world.request("kms.v1.KeyService/GetVersionUsage");
    let name = format!("{KEY}/versions/1").parse().unwrap();
    let evidence = world.kms.get_version_usage(&request, &name).await.unwrap().evidence;
    assert!(evidence.iter().any(|line| line.contains("period ended at")), "{evidence:?}");
}

#[tokio::test]
async fn a_recipient_usage_period_is_that_of_the_standard_unless_it_is_said_and_never_too_short() {
    let world = World::new().await;
    let request = world.request("kms.v1.KeyService/CreateKey");
    let create = |period| CreateKey {
        cryptoperiod: DAY * 10,
        recipient_usage_period: period,
        ..create(KEY)
    };
    let second = Duration::from_secs(1);
    let refused =
        world.kms.create_key(&request, create(Some((DAY * 10).saturating_sub(second)))).await;
    assert_eq!(refused.unwrap_err().reason(), "FIELD_VIOLATION");
    let made = world.kms.create_key(&request, create(None)).await.unwrap();
    assert_eq!(made.recipient_usage_period, DAY * (10 + 3 * 365));
    let change = |revision, cryptoperiod, recipient_usage_period| UpdateKey {
        cryptoperiod,
        recipient_usage_period,
        rotation_period: None,
        ..update(revision, SetRotation::Off)
    };
    let request = world.request("kms.v1.KeyService/UpdateKey");
    let shorter = change(made.revision, None, Some(DAY * 10));
    let made = world.kms.update_key(&request, shorter).await.unwrap();
    assert_eq!(made.recipient_usage_period, DAY * 10);
    // A cryptoperiod cannot grow beyond it unless both do.
    let beyond = world.kms.update_key(&request, change(made.revision, Some(DAY * 11), None)).await;
    assert_eq!(beyond.unwrap_err().reason(), "FIELD_VIOLATION");
    let both = change(made.revision, Some(DAY * 11), Some(DAY * 12));
    assert_eq!(world.kms.update_key(&request, both).await.unwrap().cryptoperiod, DAY * 11);
}

/// What cannot be done stays due and at the head of its list: the run after the one that met only such rows goes on behind them.
#[tokio::test]
async fn what_cannot_be_done_keeps_nothing_else_from_being_done() {
    const BROKEN: u32 = MAX_DUE;
    let world = World::new().await;
    let mut names: Vec<_> = (0..BROKEN).map(|number| format!("tenants/t/keys/b{number}")).collect();
    names.push(KEY.to_owned());
    for name in &names {
        world.create(name).await;
        let request = world.request("kms.v1.KeyService/RotateKey");
        let rotate = RotateKey {
            name: name.parse().unwrap(),
            reason: "yearly".into(),
            request_id: fresh_id(),
        };
        world.kms.rotate_key(&request, rotate).await.unwrap();
        world.clock.advance(Duration::from_secs(1));
    }
    let database = rusqlite::Connection::open(world.database()).unwrap();
    let broken = database
        .execute(
            "UPDATE keys SET usage = 'edited', revision = revision + 1 WHERE key_id LIKE 'b%'",
            [],
        )
        .unwrap();
    assert_eq!(broken, BROKEN as usize);
    drop(database);
    let world = world.restart();
    world.clock.advance(DAY * 60);
    let run = async |expected: (usize, usize)| {
        let done = world.kms.reconcile().await.unwrap();
        assert_eq!((done.deactivated, done.failed), expected);
    };
    run((0, BROKEN as usize)).await;
    run((1, 0)).await;
    run((0, BROKEN as usize)).await;
}
