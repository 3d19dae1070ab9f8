//! How versions were used: counted by kind, over restarts, with the verdict; and what happens when counts cannot be written.

use std::time::Duration;

use kms_core::clock::Clock as _;
use kms_server::service::{
    QUIET_PERIOD, Retirement, Rewrap, RotateKey, ServiceError, VersionUsage,
};

use crate::mutations::KEY;
use crate::support::*;

async fn usage(world: &World, number: u32) -> VersionUsage {
    let request = world.request("kms.v1.KeyService/GetVersionUsage");
    let name = format!("{KEY}/versions/{number}").parse().unwrap();
    world.kms.get_version_usage(&request, &name).await.unwrap()
}

fn counts(usage: &VersionUsage) -> [u64; 3] {
    [usage.uses.protect.count, usage.uses.process.count, usage.uses.rewrap.count]
}

async fn rotate(world: &World) {
    let rotate = RotateKey { name: name(KEY), reason: String::new(), request_id: fresh_id() };
    world.kms.rotate_key(&world.request("kms.v1.KeyService/RotateKey"), rotate).await.unwrap();
}

async fn rewrap(world: &World, ciphertext: &[u8]) {
    let item = Rewrap { key: name(KEY), ciphertext: ciphertext.to_vec(), context: context("/a") };
    world.kms.rewrap(&world.request("kms.v1.CryptoService/Rewrap"), item).await.unwrap();
}

#[tokio::test]
async fn uses_are_counted_by_kind_and_kept_over_a_restart() {
    let world = World::new().await;
    world.create(KEY).await;
    assert_eq!(counts(&usage(&world, 1).await), [0, 0, 0]);
    let first = world.clock.now();
    let one = world.wrap(KEY).await;
    world.clock.advance(Duration::from_secs(1));
    let two = world.wrap(KEY).await;
    let request = world.request("kms.v1.CryptoService/Unwrap");
    world.kms.unwrap(&request, unwrap(KEY, &one.ciphertext)).await.unwrap();
    // Under the primary already: nothing is opened, nothing is counted.
    rewrap(&world, &one.ciphertext).await;
    let seen = usage(&world, 1).await;
    assert_eq!(counts(&seen), [2, 1, 0]);
    assert_eq!(seen.uses.protect.span, Some((first, world.clock.now())));
    assert_eq!(seen.retirement, Retirement::InUse, "it is the primary");

    rotate(&world).await;
    rewrap(&world, &one.ciphertext).await;
    rewrap(&world, &two.ciphertext).await;
    world.kms.reconcile().await.unwrap();
    let world = world.restart();
    assert_eq!(counts(&usage(&world, 1).await), [2, 1, 2]);
    assert_eq!(counts(&usage(&world, 2).await), [2, 0, 0]);
    world.clock.advance(QUIET_PERIOD);
    assert_eq!(usage(&world, 1).await.retirement, Retirement::Safe);
}

#[tokio::test]
async fn what_was_not_rewrapped_away_keeps_a_version_from_being_safe() {
    let world = World::new().await;
    world.create(KEY).await;
    world.wrap(KEY).await;
    rotate(&world).await;
    world.clock.advance(QUIET_PERIOD);
    let seen = usage(&world, 1).await;
    assert_eq!(seen.retirement, Retirement::Quiet, "{:?}", seen.evidence);
    assert!(!seen.blind_spots.is_empty());
}

/// What failed has moved nothing: to call it rewrapped away would make a version look safe to destroy that is not.
#[tokio::test]
async fn a_rewrap_that_fails_is_not_counted_as_rewrapped_away() {
    let world = World::new().await;
    world.create(KEY).await;
    let ciphertext = world.wrap(KEY).await.ciphertext;
    rotate(&world).await;
    let wrong =
        || Rewrap { key: name(KEY), ciphertext: ciphertext.clone(), context: context("/b") };
    let request = world.request("kms.v1.CryptoService/Rewrap");
    let refused = world.kms.rewrap(&request, wrong()).await.unwrap_err();
    assert_eq!(refused, ServiceError::CiphertextInvalid);
    let request = world.request("kms.v1.CryptoService/BatchRewrap");
    let refused = world.kms.batch_rewrap(&request, vec![Ok(wrong())]).await.unwrap();
    assert_eq!(refused, [Err(ServiceError::CiphertextInvalid)]);
    // Nor is one that the HSM never did.
    world.faults.fail(0, 1, false);
    let right = Rewrap { context: context("/a"), ..wrong() };
    let request = world.request("kms.v1.CryptoService/Rewrap");
    assert!(world.kms.rewrap(&request, right).await.is_err());
    assert_eq!(counts(&usage(&world, 1).await), [1, 3, 0]);
    world.clock.advance(QUIET_PERIOD);
    assert_eq!(usage(&world, 1).await.retirement, Retirement::Quiet);
    rewrap(&world, &ciphertext).await;
    assert_eq!(counts(&usage(&world, 1).await), [1, 3, 1]);
}

/// A crash loses what was not written yet, and nothing else.
#[tokio::test]
async fn a_crash_loses_the_uses_since_the_last_write_and_no_more() {
    let world = World::new().await;
    world.create(KEY).await;
    world.wrap(KEY).await;
    world.kms.reconcile().await.unwrap();
    world.wrap(KEY).await;
    let world = world.restart();
    assert_eq!(counts(&usage(&world, 1).await), [1, 0, 0]);
}

#[tokio::test]
async fn a_drain_writes_all_uses() {
    let world = World::new().await;
    world.create(KEY).await;
    world.wrap(KEY).await;
    world.kms.drain().await.unwrap();
    let world = world.restart();
    assert_eq!(counts(&usage(&world, 1).await), [1, 0, 0]);
}

#[tokio::test]
async fn uses_that_cannot_be_written_wait_and_keep_no_wrap_from_working() {
    let world = World::new().await;
    world.create(KEY).await;
    world.wrap(KEY).await;
    world.faults.arm(0, false);
    assert!(world.kms.reconcile().await.unwrap().failed > 0);
    let world_again = world;
    world_again.faults.arm(i64::MAX, false);
    world_again.wrap(KEY).await;
    assert_eq!(counts(&usage(&world_again, 1).await), [2, 0, 0]);
}

/// One row that was edited keeps no other from being written.
#[tokio::test]
async fn uses_of_other_versions_are_written_beside_an_edited_row() {
    let world = World::new().await;
    world.create(KEY).await;
    world.wrap(KEY).await;
    rotate(&world).await;
    world.wrap(KEY).await;
    world.kms.reconcile().await.unwrap();
    let database = rusqlite::Connection::open(world.database()).unwrap();
    database
        .execute_batch("UPDATE usage SET protects = 9, revision = 2 WHERE version = 1")
        .unwrap();
    let request = world.request("kms.v1.CryptoService/Wrap");
    world.kms.wrap(&request, wrap(&format!("{KEY}/versions/1"), b"x")).await.unwrap();
    world.wrap(KEY).await;
    assert_eq!(counts(&usage(&world, 2).await), [2, 0, 0]);
    assert!(world.kms.counters().integrity_failures.read() > 0);
}

#[tokio::test]
async fn an_edited_row_of_uses_is_refused() {
    let world = World::new().await;
    world.create(KEY).await;
    world.wrap(KEY).await;
    world.kms.reconcile().await.unwrap();
    let database = rusqlite::Connection::open(world.database()).unwrap();
    database.execute_batch("UPDATE usage SET protects = 9, revision = 2").unwrap();
    let request = world.request("kms.v1.KeyService/GetVersionUsage");
    let version = format!("{KEY}/versions/1").parse().unwrap();
    let refused = world.kms.get_version_usage(&request, &version).await.unwrap_err();
    assert_eq!(refused.reason(), "KEY_INTEGRITY");
}

/// Gives a future up when it is polled for the `n`th time; `None` when it was.
async fn given_up_at<F: Future>(n: usize, future: F) -> Option<F::Output> {
    let (mut future, mut polls) = (Box::pin(future), 0);
    std::future::poll_fn(|context| {
        polls += 1;
        if polls == n {
            return std::task::Poll::Ready(None);
        }
        future.as_mut().poll(context).map(Some)
    })
    .await
}

/// What is counted is taken out of memory before it is written: a caller who goes away must not take it along.
#[tokio::test]
async fn a_caller_who_goes_away_loses_no_uses() {
    for n in 1.. {
        let world = World::new().await;
        world.create(KEY).await;
        world.wrap(KEY).await;
        let request = world.request("kms.v1.KeyService/GetVersionUsage");
        let name = format!("{KEY}/versions/1").parse().unwrap();
        let asked = given_up_at(n, world.kms.get_version_usage(&request, &name)).await;
        assert_eq!(counts(&usage(&world, 1).await), [1, 0, 0], "given up at poll {n}");
        if asked.is_some() {
            assert!(n > 3, "it was given up at {n} places");
            return;
        }
    }
}
