//! What a scrape shows of the service, and what it must not show.

use std::sync::{Arc, OnceLock};

use kms_core::key::Protection;
use kms_server::admin::{Gauges, Readiness};
use kms_server::service::Kms;
use prometheus_client::registry::Registry;

use crate::intents::create_without_outcome;
use crate::support::*;

const KEY: &str = "tenants/t/keys/k";

fn scrape(world: &World, kms: Option<Kms>) -> String {
    let late = OnceLock::new();
    if let Some(kms) = kms {
        late.set(kms).unwrap();
    }
    let gauges = Gauges {
        hsm: Arc::clone(&world.hsm),
        readiness: Arc::new(Readiness::default()),
        kms: Arc::new(late),
        public: Arc::default(),
        admin: Arc::default(),
        certificates: vec![],
    };
    let mut registry = Registry::default();
    registry.register_collector(Box::new(gauges));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    text
}

fn shows(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.lines().any(|shown| shown == *line), "{line}\n{text}");
    }
}

#[tokio::test]
async fn a_scrape_shows_loads_caches_and_integrity_failures_without_names() {
    let world = World::new().await;
    world.create(KEY).await;
    world.wrap(KEY).await;
    let text = scrape(&world, Some(world.kms.clone()));
    shows(
        &text,
        &[
            "holdfast_keyring_key_loads_total 1",
            "holdfast_keyring_version_loads_total 1",
            "holdfast_keyring_integrity_failures_total 0",
            "holdfast_keyring_cached_keys 1",
            "holdfast_keyring_cached_versions 1",
            "holdfast_hsm_orphan_objects 0",
            "holdfast_stuck_intents 0",
        ],
    );
    assert!(!text.contains('{') && !text.contains("tenants"), "{text}");
    let database = rusqlite::Connection::open(world.database()).unwrap();
    database.execute_batch("DROP TRIGGER keys_guard; UPDATE keys SET owner = 'x'").unwrap();
    let world = world.restart();
    let request = world.request("kms.v1.CryptoService/Wrap");
    assert!(world.kms.wrap(&request, wrap(KEY, b"x")).await.is_err());
    let text = scrape(&world, Some(world.kms.clone()));
    shows(
        &text,
        &["holdfast_keyring_integrity_failures_total 1", "holdfast_keyring_cached_keys 0"],
    );
}

#[tokio::test]
async fn a_scrape_shows_what_recovery_left() {
    let world = World::new().await;
    create_without_outcome(&world, Protection::HsmResident).await;
    let database = rusqlite::Connection::open(world.database()).unwrap();
    database.execute_batch("UPDATE intents SET applied_revision = 9").unwrap();
    let world = world.restart();
    let spec = kms_hsm::KeySpec {
        key_uid: kms_core::id::KeyUid::from_random([9; 16]),
        version: kms_core::id::KeyVersion::FIRST,
        generation: kms_core::id::RootGeneration::FIRST,
        protection: Protection::HsmResident,
        resident_id: kms_core::key::CkaId([9; 16]),
    };
    world.hsm.generate_key(spec, world.request("").deadline).await.unwrap();
    world.kms.recover().await.unwrap();
    let text = scrape(&world, Some(world.kms.clone()));
    shows(&text, &["holdfast_stuck_intents 1", "holdfast_hsm_orphan_objects 1"]);
    database.execute_batch("UPDATE intents SET applied_revision = 1").unwrap();
    world.kms.recover().await.unwrap();
    shows(&scrape(&world, Some(world.kms.clone())), &["holdfast_stuck_intents 0"]);
}

#[tokio::test]
async fn a_scrape_before_the_service_is_there_shows_the_rest() {
    let world = World::new().await;
    let text = scrape(&world, None);
    shows(&text, &["holdfast_hsm_ready 1", "holdfast_ready 0"]);
    assert!(!text.contains("keyring"), "{text}");
}
