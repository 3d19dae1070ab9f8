//! Root rollover at its edges: tenants without rows, damaged ones, long lists, passes that are broken off.

use kms_core::id::RootGeneration;
use kms_server::keyring::KeyringConfig;
use kms_server::service::{Reached, RolloverState, RootChangeError};

use crate::mutations::{KEY, check};
use crate::root_rollover::{old, second, with_second_root};
use crate::support::*;

const OTHER: &str = "tenants/u/keys/k";

/// An import job came and went, and no key was ever made.
#[tokio::test]
async fn a_tenant_that_has_a_manifest_alone_is_sealed_anew_too() {
    let world = World::new().await;
    let job = crate::import::new_job(&world).await;
    crate::import::cancel(&world, &job).await.unwrap();
    let world = with_second_root(world).await;
    let before = old(&world).await;
    assert_eq!((before.manifests, before.keys, before.import_jobs), (1, 0, 0));
    assert!(world.kms.root_pass().await.unwrap());
    assert_eq!(old(&world).await.total(), 0);
    let config =
        KeyringConfig { generation: second(), oldest: second(), ..KeyringConfig::default() };
    let world = world.restart_with(config);
    world.create(KEY).await;
    check(&world, "goes on with the manifest that it had").await;
}

#[tokio::test]
async fn a_manifest_that_was_edited_holds_up_no_other_tenant() {
    let world = World::new().await;
    for key in [KEY, OTHER] {
        world.create(key).await;
    }
    let database = rusqlite::Connection::open(world.database()).unwrap();
    let edit =
        "UPDATE manifests SET revision = revision + 1, mac = zeroblob(32) WHERE tenant = 't'";
    assert_eq!(database.execute(edit, []).unwrap(), 1);
    drop(database);
    let world = with_second_root(world).await;
    assert!(!world.kms.root_pass().await.unwrap());
    let left = old(&world).await;
    assert_eq!((left.keys, left.manifests), (1, 1), "those of the first tenant: {left:?}");
    let told = world.kms.root_rollover();
    assert_eq!(told.state, RolloverState::Waiting);
    assert!(told.failed > 0);
    world.wrap(OTHER).await;
}

/// Whatever breaks a pass off, the next goes on behind what was done, and counts no key twice.
#[tokio::test]
async fn a_pass_that_was_broken_off_goes_on_where_it_was() {
    for point in 0.. {
        let world = World::new().await;
        for key in [KEY, "tenants/t/keys/other", OTHER] {
            world.create(key).await;
        }
        let world = with_second_root(world).await;
        let mut reached = Reached::default();
        world.faults.fail(point, 1, false);
        let broken = world.kms.root_pass_from(&mut reached).await;
        let is_hit = world.faults.calls() > point;
        world.kms.reconcile().await.unwrap();
        if broken != Ok(true) {
            let done = world.kms.root_pass_from(&mut reached).await;
            assert_eq!(done, Ok(true), "{point}: {broken:?}");
        }
        assert_eq!(old(&world).await.total(), 0, "{point}");
        assert_eq!(world.kms.root_rollover().keys, 3, "{point}: {broken:?}");
        let both = KeyringConfig { generation: second(), ..KeyringConfig::default() };
        let world = world.restart_with(both);
        world.kms.recover().await.unwrap();
        check(&world, &format!("point {point}")).await;
        if !is_hit {
            assert!(point > 30, "{point} steps");
            break;
        }
    }
}

/// Those that are open follow one another: no row can be under one in between that is not.
#[tokio::test]
async fn roots_are_retired_from_the_oldest_on() {
    let world = World::new().await;
    world.create(KEY).await;
    let third = RootGeneration::new(3).unwrap();
    for generation in [second(), third] {
        world.open_root(generation).await;
    }
    let config = KeyringConfig { generation: third, ..KeyringConfig::default() };
    let world = world.restart_with(config);
    assert!(world.kms.root_pass().await.unwrap());
    let refused = world.kms.retire_root(second(), "why").await;
    assert_eq!(refused, Err(RootChangeError::NotOldest(RootGeneration::FIRST)));
    world.kms.retire_root(RootGeneration::FIRST, "why").await.unwrap();
}

#[tokio::test]
async fn what_is_left_is_told_before_the_first_pass_has_ended() {
    let world = World::new().await;
    world.create(KEY).await;
    let world = with_second_root(world).await;
    let (_sender, stop) = tokio::sync::watch::channel(true);
    let before = old(&world).await.total();
    world.kms.roll_over_root(stop).await;
    let told = world.kms.root_rollover();
    assert_eq!(told.left.total(), before);
    assert_eq!(told.remaining, before - told.rows);
    assert!(world.kms.root_pass().await.unwrap());
    assert_eq!(world.kms.root_rollover().remaining, 0);
}
