//! The state journal: what is written there, before what, and what is said of a mutation that was given up.

use kms_core::id::KeyVersion;
use kms_core::journal::{Entry, Event};
use kms_core::key::Protection;
use kms_core::lifecycle::DEFAULT_DESTRUCTION_WINDOW;
use kms_core::state::VersionState;
use kms_server::journal::{Gap, Opening, read_entries};
use kms_server::keyring::KeyringConfig;
use kms_server::service::ServiceError;
use kms_server::store::{KeyRef, VersionChoice};

use crate::mutations::{Case, KEY, Kind};
use crate::support::*;

pub(crate) fn entries(world: &World) -> Vec<Entry> {
    let mut entries = Vec::new();
    read_entries(&world.directory.path().join("journal"), |entry| entries.push(entry.clone()))
        .unwrap();
    entries
}

async fn state(world: &World, number: u32) -> VersionState {
    let choice = VersionChoice::Number(KeyVersion::new(number).unwrap());
    let stored = world.store.key(KeyRef::Name(name(KEY)), choice).await.unwrap();
    stored.unwrap().version.unwrap().row.state
}

#[tokio::test]
async fn what_is_destroyed_or_compromised_is_journaled_and_nothing_else() {
    for protection in [Protection::HsmWrapped, Protection::HsmResident] {
        let world = Case { kind: Kind::Schedule, protection }.world().await;
        assert_eq!(entries(&world), []);
        Case { kind: Kind::Schedule, protection }.run(&world, fresh_id()).await.unwrap();
        world.clock.advance(DEFAULT_DESTRUCTION_WINDOW);
        assert_eq!(world.kms.reconcile().await.unwrap().destroyed, 1);
        Case { kind: Kind::Compromise, protection }.run_on(2, &world, fresh_id()).await.unwrap();
        let [destroyed, compromised] = &entries(&world)[..] else {
            panic!("{:?}", entries(&world))
        };
        let Event::VersionDestroyed(first) = &destroyed.event else { panic!("{destroyed:?}") };
        assert_eq!((first.tenant.id(), first.version.get()), ("t", 1));
        let Event::VersionCompromised(second) = &compromised.event else {
            panic!("{compromised:?}")
        };
        assert_eq!((second.version.get(), second.key_uid), (2, first.key_uid));
        assert!(destroyed.intent.is_some() && destroyed.intent != compromised.intent);
    }
}

/// Whatever fails, and wherever: what the store or the token has of it, the journal has, and its last word is true.
#[tokio::test]
async fn what_is_destroyed_or_compromised_is_journaled_first() {
    let cases = [(Kind::Compromise, 1), (Kind::CompromiseOld, 1), (Kind::Discard, 2)];
    for (kind, number) in cases {
        let case = Case { kind, protection: Protection::HsmResident };
        for (point, lost) in (0..case.steps().await).flat_map(|at| [(at, false), (at, true)]) {
            let at = format!("{kind:?} step {point}, lost {lost}");
            let world = case.world().await;
            world.faults.arm(point, lost);
            let _ = case.run(&world, fresh_id()).await;
            let is_told = |entry: &Entry| !matches!(entry.event, Event::Abandoned);
            let told = entries(&world).iter().any(is_told);
            let objects = world.hsm.list_token_keys(world.request("").deadline).await.unwrap();
            let changed = [VersionState::Compromised, VersionState::Destroyed];
            let is_changed = changed.contains(&state(&world, number).await)
                || (kind == Kind::Discard && objects.residents.len() < 2);
            assert!(told || !is_changed, "{at}: done and not told");
            let world = world.restart();
            world.kms.recover().await.expect(&at);
            let entries = entries(&world);
            let was_told = entries.iter().any(is_told);
            let is_given_up = entries.last().is_some_and(|entry| entry.event == Event::Abandoned);
            // What is gone from the token is told of, although its row does not say so yet.
            let objects = world.hsm.list_token_keys(world.request("").deadline).await.unwrap();
            let is_done = changed.contains(&state(&world, number).await)
                || (kind == Kind::Discard && objects.residents.len() < 2);
            assert_eq!(was_told && !is_given_up, is_done, "{at}: {entries:?}");
        }
    }
}

#[tokio::test]
async fn a_mutation_whose_entry_is_refused_changes_nothing() {
    let case = Case { kind: Kind::Compromise, protection: Protection::HsmWrapped };
    let world = case.world().await;
    world.kms.close_journal();
    let refused = case.run(&world, fresh_id()).await.unwrap_err();
    assert!(matches!(refused, ServiceError::JournalUnavailable { .. }), "{refused:?}");
    assert_eq!(state(&world, 1).await, VersionState::Active);
    // What is not told there goes on.
    world.wrap(KEY).await;
    let world = world.restart();
    world.kms.recover().await.unwrap();
    case.run(&world, fresh_id()).await.unwrap();
}

#[tokio::test]
async fn after_a_gap_was_accepted_a_key_protects_when_it_was_rotated() {
    let world = Case { kind: Kind::Compromise, protection: Protection::HsmWrapped }.world().await;
    let old = world.wrap(KEY).await;
    Case { kind: Kind::Compromise, protection: Protection::HsmWrapped }
        .run(&world, fresh_id())
        .await
        .unwrap();
    let path = world.directory.path().join("journal");
    std::fs::remove_file(&path).unwrap();
    let config = KeyringConfig::default();
    let opening = Opening {
        path,
        hsm: std::sync::Arc::clone(&world.hsm),
        clock: world.clock.clone(),
        generations: config.oldest..=config.generation,
        accept: None,
        covered: None,
    };
    assert!(open_journal(opening.clone()).is_err());
    let accept: Option<Gap> = Some("1-1".parse().unwrap());
    drop(open_journal(Opening { accept, ..opening }).unwrap());
    let world = world.restart();
    let request = world.request("kms.v1.CryptoService/Wrap");
    let refused = world.kms.wrap(&request, wrap(KEY, b"x")).await;
    assert_eq!(refused, Err(ServiceError::ProtectDisabled));
    world.kms.reconcile().await.unwrap();
    assert_eq!(world.kms.disabled_keys(), 1);
    world.clock.advance(std::time::Duration::from_secs(1));
    Case { kind: Kind::Rotate, protection: Protection::HsmWrapped }
        .run(&world, fresh_id())
        .await
        .unwrap();
    assert_ne!(world.wrap(KEY).await.key_version, old.key_version);
    world.kms.reconcile().await.unwrap();
    assert_eq!(world.kms.disabled_keys(), 0);
    // A key that was made since never was in doubt.
    world.create("tenants/t/keys/new").await;
    world.wrap("tenants/t/keys/new").await;
    assert_eq!(world.kms.journal().progress().last(), 2);
}
