//! Invocation accounting, with counters seeded at their limits.

use kms_core::audit::{AuditRecord, CounterStamp, Decision};
use kms_core::id::{KeyVersion, Revision, RootGeneration};
use kms_core::key::{CounterRow, MAX_INVOCATIONS, Sealed};
use kms_server::keyring::{FIRST_LEASE, KeyringConfig, LEASE_OPERATION, ROLLOVER_AT};
use kms_server::service::{ServiceError, UpdateKey};
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

async fn seal(world: &World, row: CounterRow) -> Sealed<CounterRow> {
    let generation = RootGeneration::FIRST;
    let request = world.request(WRAP);
    let macs = world.hsm.mac(generation, vec![row.mac_input(generation)], request.deadline).await;
    Sealed { row, mac: macs.unwrap()[0], generation }
}

async fn seed(world: &World, leased: u64) {
    let old = counter(world).await.row;
    let row = CounterRow { leased, revision: old.revision.next(), ..old };
    let sealed = seal(world, row).await;
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
async fn a_version_that_was_out_of_date_before_it_was_cached_leaves_no_lease_behind() {
    let world = World::new().await;
    world.create(KEY).await;
    let reading = world.faults.stop_next_version();
    let wraps = futures_util::future::join_all((0..3).map(|_| world.wrap(KEY)));
    let changing = async {
        reading.arrivals(1).await;
        let update = UpdateKey {
            name: name(KEY),
            revision: Revision::FIRST,
            owner: Some("others".into()),
            sensitivity: None,
            usage: None,
            cryptoperiod: None,
            recipient_usage_period: None,
            labels: None,
            rotation_period: None,
            allow_recent_use: false,
            request_id: fresh_id(),
        };
        world.kms.update_key(&world.request(WRAP), update).await.unwrap();
        reading.open();
    };
    tokio::join!(wraps, changing);
    assert_eq!(world.kms.loaded().1, 0, "it is not cached");
    assert_eq!(counter(&world).await.row.leased, 1 + 3);
    world.wrap(KEY).await;
    assert_eq!(counter(&world).await.row.leased, 1 + 3 + FIRST_LEASE);
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

fn lease_records(world: &World) -> Vec<AuditRecord> {
    let records = world.records().into_iter();
    records.filter(|record| record.operation == LEASE_OPERATION).collect()
}

#[tokio::test]
async fn each_lease_and_each_return_is_in_the_audit_log() {
    let world = World::new().await;
    world.create(KEY).await;
    assert_eq!(lease_records(&world), [], "a new counter is part of the creation");
    world.wrap(KEY).await;
    world.wrap(KEY).await;
    world.kms.drain().await.unwrap();
    let told = lease_records(&world);
    let stamp = |revision, leased| Some(CounterStamp { revision: Revision::new(revision), leased });
    let counters: Vec<_> = told.iter().map(|record| record.counter).collect();
    assert_eq!(counters, [stamp(2, 1 + FIRST_LEASE), stamp(3, 3)]);
    let row = counter(&world).await.row;
    for record in told {
        assert_eq!(
            (record.principal.as_str(), record.authn_method.as_str()),
            ("internal", "internal")
        );
        assert_eq!((record.tenant.as_str(), record.result.as_str()), ("t", "OK"));
        assert_eq!(record.resource.as_ref().unwrap().as_str(), KEY);
        assert_eq!((record.key_uid, record.key_version), (Some(row.key_uid), Some(row.version)));
        assert_eq!(record.decision, Decision::NotReached);
    }
}

#[tokio::test]
async fn with_an_unwritable_log_no_invocation_is_leased() {
    let world = World::new().await;
    world.create(KEY).await;
    world.sink.refuse(true);
    for _ in 0..10 {
        let refused = world.kms.wrap(&world.request(WRAP), wrap(KEY, b"x")).await.unwrap_err();
        assert_eq!(refused.reason(), "AUDIT_UNAVAILABLE");
    }
    assert_eq!(counter(&world).await.row.leased, 1);
    world.sink.refuse(false);
    world.wrap(KEY).await;
    assert_eq!(counter(&world).await.row.leased, 1 + FIRST_LEASE);
}

/// Makes as many invocations at once.
async fn use_times(world: &World, count: u64) {
    let items = (0..count).map(|_| Ok(wrap(KEY, b"x"))).collect();
    let results = world.kms.batch_wrap(&world.request(WRAP), items).await.unwrap();
    assert!(results.iter().all(Result::is_ok));
}

/// Writes the counter past the store and its triggers.
fn put(world: &World, row: &Sealed<CounterRow>) {
    let database = rusqlite::Connection::open(world.database()).unwrap();
    let Sealed { row, mac, generation: _ } = row;
    database.execute_batch("DROP TRIGGER counters_guard").unwrap();
    let (leased, revision) = (i64::try_from(row.leased), i64::try_from(row.revision.get()));
    let values = (leased.unwrap(), revision.unwrap(), mac.0);
    database.execute("UPDATE counters SET leased = ?1, revision = ?2, mac = ?3", values).unwrap();
}

/// The counter as it may have been, or may become: with a good MAC.
async fn variant(world: &World, revision: u64, leased: u64) -> Sealed<CounterRow> {
    seal(
        world,
        CounterRow { leased, revision: Revision::new(revision), ..counter(world).await.row },
    )
    .await
}

#[tokio::test]
async fn a_counter_that_was_put_back_is_refused_while_its_version_is_cached() {
    let now = (2, 1 + FIRST_LEASE);
    let rows = [
        (1, 1, true),
        (1, now.1, true),
        (now.0, now.1 - 1, true),
        (now.0, now.1 + 1, true),
        (now.0, now.1, false),
        // Another replica wrote.
        (now.0 + 1, 5000, false),
        (now.0 + 1, 1, false),
    ];
    for (revision, leased, refused) in rows {
        let world = World::new().await;
        world.create(KEY).await;
        use_times(&world, 1000).await;
        put(&world, &variant(&world, revision, leased).await);
        use_times(&world, FIRST_LEASE - 1000).await;
        let wrapped = world.kms.wrap(&world.request(WRAP), wrap(KEY, b"x")).await;
        let reason = wrapped.map_err(|error| error.reason()).err();
        assert_eq!(reason, refused.then_some("KEY_INTEGRITY"), "{revision} {leased}");
        let alerts = world.kms.counters().integrity_failures.read();
        assert_eq!(alerts, u64::from(refused), "{revision} {leased}");
    }
}
