//! Invocation accounting, with counters seeded at their limits.

use kms_core::id::{KeyVersion, RootGeneration};
use kms_core::key::{CounterRow, MAX_INVOCATIONS, Sealed};
use kms_server::keyring::{FIRST_LEASE, KeyringConfig, ROLLOVER_AT};
use kms_server::service::ServiceError;
use kms_server::store::{KeyRef, VersionChoice};
use std::num::NonZeroUsize;

use crate::support::*;

const KEY: &str = "tenants/t/keys/k";
const WRAP: &str = "kms.v1.CryptoService/Wrap";

async fn counter(world: &World) -> Sealed<CounterRow> {
    let key = world.store.key(KeyRef::Name(name(KEY)), VersionChoice::Primary).await;
    let uid = key.unwrap().unwrap().key.row.uid;
    world.store.counter(uid, KeyVersion::FIRST).await.unwrap().unwrap()
}

async fn seed(world: &World, leased: u64) {
    let old = counter(world).await.row;
    let row = CounterRow { leased, revision: old.revision.next(), ..old };
    let generation = RootGeneration::FIRST;
    let request = world.request(WRAP);
    let macs = world.hsm.mac(generation, vec![row.mac_input(generation)], request.deadline).await;
    let sealed = Sealed { row, mac: macs.unwrap()[0], generation };
    world.store.update_counters(vec![(old.revision, sealed)]).await.unwrap()[0].clone().unwrap();
}

#[tokio::test]
async fn the_check_value_is_the_first_invocation_and_the_first_lease_is_1024() {
    let world = World::new().await;
    world.create(KEY).await;
    assert_eq!(counter(&world).await.row.leased, 1);
    world.wrap(KEY).await;
    assert_eq!(counter(&world).await.row.leased, 1 + FIRST_LEASE);
}

#[tokio::test]
async fn drain_returns_what_was_not_used() {
    let world = World::new().await;
    world.create(KEY).await;
    world.wrap(KEY).await;
    world.wrap(KEY).await;
    world.kms.drain().await.unwrap();
    assert_eq!(counter(&world).await.row.leased, 3);
}

#[tokio::test]
async fn eviction_returns_what_was_not_used() {
    let world = World::new().await;
    world.create(KEY).await;
    world.create("tenants/t/keys/other").await;
    let one = KeyringConfig { max_versions: NonZeroUsize::MIN, ..KeyringConfig::default() };
    let world = world.restart_with(one);
    world.wrap(KEY).await;
    world.wrap("tenants/t/keys/other").await;
    assert_eq!(world.kms.loaded().1, 1);
    // Waits for the writes that are under way.
    world.kms.drain().await.unwrap();
    assert_eq!(counter(&world).await.row.leased, 2);
}

#[tokio::test]
async fn the_last_invocation_is_made_and_one_more_is_refused() {
    let world = World::new().await;
    world.create(KEY).await;
    seed(&world, MAX_INVOCATIONS - 2).await;
    world.wrap(KEY).await;
    let sealed = world.wrap(KEY).await.ciphertext;
    let refused = world.kms.wrap(&world.request(WRAP), wrap(KEY, b"x")).await.unwrap_err();
    assert_eq!(refused, ServiceError::KeyExhausted);
    assert_eq!(counter(&world).await.row.leased, MAX_INVOCATIONS);
    let opened = world.kms.unwrap(&world.request(WRAP), unwrap(KEY, &sealed)).await;
    assert!(opened.is_ok(), "an exhausted version still processes");
}

#[tokio::test]
async fn at_2_to_the_31_the_key_is_rolled_over_and_one_before_it_is_not() {
    for (leased, rotated) in [(ROLLOVER_AT - FIRST_LEASE - 1, 0), (ROLLOVER_AT - FIRST_LEASE, 1)] {
        let world = World::new().await;
        world.create(KEY).await;
        seed(&world, leased).await;
        world.wrap(KEY).await;
        assert_eq!(world.kms.rotate_due().await, rotated, "{leased}");
        let version = world.wrap(KEY).await.key_version;
        assert_eq!(&*version, format!("{KEY}/versions/{}", 1 + rotated));
    }
}

#[tokio::test]
async fn many_at_once_never_use_more_than_was_leased() {
    let world = World::new().await;
    world.create(KEY).await;
    seed(&world, MAX_INVOCATIONS - 100).await;
    let wraps = (0..150)
        .map(|_| async { world.kms.wrap(&world.request(WRAP), wrap(KEY, b"x")).await.is_ok() });
    let done = futures_util::future::join_all(wraps).await;
    assert_eq!(done.into_iter().filter(|ok| *ok).count(), 100);
}

#[tokio::test]
async fn an_edited_counter_stops_protection() {
    let world = World::new().await;
    world.create(KEY).await;
    let database = rusqlite::Connection::open(world.database()).unwrap();
    database.execute("UPDATE counters SET leased = 0, revision = revision + 1", []).unwrap();
    let refused = world.kms.wrap(&world.request(WRAP), wrap(KEY, b"x")).await.unwrap_err();
    assert_eq!(refused.reason(), "KEY_INTEGRITY");
}
