//! Root rollover: rows and blobs change from one root to the next while keys are used, whatever happens on the way.

use kms_core::id::{KeyUid, KeyVersion, RootGeneration};
use kms_core::key::{Protection, RowMac, Sealed};
use kms_core::root::RetiredRoot;
use kms_core::state::VersionState;
use kms_server::keyring::KeyringConfig;
use kms_server::service::{
    ChangeVersionState, CreateKey, RolloverState, RootChangeError, RotateKey, StageKeyVersion,
};
use kms_server::store::{KeyRef, OldCounts, VersionChoice};

use crate::mutations::{KEY, check};
use crate::support::*;

const OTHER: &str = "tenants/t/keys/other";
const RESIDENT: &str = "tenants/t/keys/resident";

pub(crate) fn second() -> RootGeneration {
    RootGeneration::new(2).unwrap()
}

/// Restarts with a second root beside the first.
pub(crate) async fn with_second_root(world: World) -> World {
    world.open_root(second()).await;
    world.restart_with(KeyringConfig { generation: second(), ..KeyringConfig::default() })
}

/// Restarts as after the first root was retired.
fn without_first_root(world: &World) -> World {
    let config =
        KeyringConfig { generation: second(), oldest: second(), ..KeyringConfig::default() };
    world.restart_with(config)
}

pub(crate) async fn old(world: &World) -> OldCounts {
    world.store.old_counts(second()).await.unwrap()
}

async fn rotate(world: &World, key: &str) {
    let rotate = RotateKey { name: name(key), reason: "x".into(), request_id: fresh_id() };
    let request = world.request("kms.v1.KeyService/RotateKey");
    world.kms.rotate_key(&request, rotate).await.unwrap();
}

/// Three keys with versions, uses and an old ciphertext of each.
async fn lived_in() -> (World, Vec<(&'static str, Vec<u8>)>) {
    let world = World::new().await;
    let mut ciphertexts = Vec::new();
    for (key, protection) in [
        (KEY, Protection::HsmWrapped),
        (OTHER, Protection::HsmWrapped),
        (RESIDENT, Protection::HsmResident),
    ] {
        let create = CreateKey { protection, ..create(key) };
        world.kms.create_key(&world.request("kms.v1.KeyService/CreateKey"), create).await.unwrap();
        ciphertexts.push((key, world.wrap(key).await.ciphertext));
        rotate(&world, key).await;
    }
    world.kms.reconcile().await.unwrap();
    (world, ciphertexts)
}

async fn opens(world: &World, key: &str, ciphertext: &[u8]) -> bool {
    let request = world.request("kms.v1.CryptoService/Unwrap");
    world.kms.unwrap(&request, unwrap(key, ciphertext)).await.is_ok()
}

#[tokio::test]
async fn everything_changes_to_the_newest_root_and_what_was_sealed_opens() {
    let (world, ciphertexts) = lived_in().await;
    assert!(world.kms.root_pass().await.unwrap(), "with one root there is nothing to do");
    let world = with_second_root(world).await;
    let before = old(&world).await;
    assert!(before.keys == 3 && before.versions == 6 && before.history >= 6, "{before:?}");
    assert!(before.counters == 6 && before.usage >= 3 && before.requests == 6, "{before:?}");
    for (key, ciphertext) in &ciphertexts {
        assert!(opens(&world, key, ciphertext).await, "before");
    }
    assert!(world.kms.root_pass().await.unwrap());
    assert_eq!(old(&world).await, OldCounts::default());
    let told = world.kms.root_rollover();
    assert_eq!((told.state, told.keys, told.rewrapped), (RolloverState::Complete, 3, 4));
    assert_eq!((told.failed, told.generation, told.oldest), (0, second(), RootGeneration::FIRST));
    check(&world, "after").await;
    for (key, ciphertext) in &ciphertexts {
        assert!(opens(&world, key, ciphertext).await, "after");
    }
    // Nothing needs the first root any more.
    let world = without_first_root(&world);
    check(&world, "alone").await;
    for (key, ciphertext) in &ciphertexts {
        assert!(opens(&world, key, ciphertext).await, "without the first root");
        world.wrap(key).await;
        rotate(&world, key).await;
    }
    assert!(world.kms.root_pass().await.unwrap());
}

#[tokio::test]
async fn revisions_of_keys_stay_and_the_log_tells_of_every_step() {
    let (world, _) = lived_in().await;
    let world = with_second_root(world).await;
    let revision = |world: &World| {
        let store = world.store.clone();
        async move {
            let stored = store.key(KeyRef::Name(name(KEY)), VersionChoice::Primary).await;
            stored.unwrap().unwrap().key.row.revision
        }
    };
    let before = revision(&world).await;
    world.kms.root_pass().await.unwrap();
    assert_eq!(revision(&world).await, before, "who holds a revision can still change the key");
    let told: Vec<_> = world
        .records()
        .into_iter()
        .filter(|record| record.operation == "internal/RollOverRoot")
        .map(|record| (record.result, record.reason.unwrap_or_default(), record.manifest.is_some()))
        .collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!((&*told[0].0, told[0].2), ("PENDING", false));
    assert_eq!((&*told[1].0, told[1].2), ("OK", true));
    assert!(told[1].1.starts_with("root generation 2: "), "{told:?}");
    // The next start compares the database with the log.
    let world = world.restart_with(KeyringConfig { generation: second(), ..Default::default() });
    check(&world, "compared").await;
}

#[tokio::test]
async fn keys_are_used_and_changed_while_rows_change() {
    let (world, ciphertexts) = lived_in().await;
    let world = with_second_root(world).await;
    // Half is done: one key was changed under the new root before the pass.
    rotate(&world, OTHER).await;
    let sealed = world.wrap(OTHER).await.ciphertext;
    let (pass, ()) = tokio::join!(world.kms.root_pass(), async {
        for round in 0..20 {
            let (key, ciphertext) = &ciphertexts[round % ciphertexts.len()];
            assert!(opens(&world, key, ciphertext).await);
            world.wrap(key).await;
            if round % 5 == 0 {
                rotate(&world, key).await;
            }
            tokio::task::yield_now().await;
        }
    });
    pass.unwrap();
    assert!(world.kms.root_pass().await.unwrap());
    check(&world, "used meanwhile").await;
    let world = without_first_root(&world);
    assert!(opens(&world, OTHER, &sealed).await);
}

/// Every call of HSM, store and log fails once, with and without its effect; the next pass, or the next start, goes on.
#[tokio::test]
async fn a_root_rollover_survives_a_crash_at_every_step() {
    for reply_lost in [false, true] {
        for point in 0.. {
            let (world, ciphertexts) = lived_in().await;
            let world = with_second_root(world).await;
            world.faults.arm(point, reply_lost);
            let passed = world.kms.root_pass().await;
            let reached = world.faults.calls() > point;
            let world = world
                .restart_with(KeyringConfig { generation: second(), ..KeyringConfig::default() });
            world.kms.recover().await.unwrap();
            assert!(world.kms.root_pass().await.unwrap(), "{point} {passed:?}");
            check(&world, &format!("point {point}, reply lost: {reply_lost}")).await;
            let world = without_first_root(&world);
            for (key, ciphertext) in &ciphertexts {
                assert!(opens(&world, key, ciphertext).await, "{point}: {key}");
            }
            if !reached {
                assert!(point > 15, "{point} steps");
                break;
            }
        }
    }
}

/// Nobody makes a row genuine that is not.
#[tokio::test]
async fn an_edited_row_stays_under_its_root_and_holds_up_no_other() {
    let (world, ciphertexts) = lived_in().await;
    let uid = uid_of(&world, OTHER).await;
    let database = rusqlite::Connection::open(world.database()).unwrap();
    let edits = [
        "UPDATE versions SET state_reason = 'edited', revision = revision + 1
         WHERE key_uid = ?1 AND version = 1",
        "UPDATE counters SET leased = leased + 1, revision = revision + 1
         WHERE key_uid = ?1 AND version = 2",
    ];
    for edit in edits {
        assert_eq!(database.execute(edit, [uid.as_bytes()]).unwrap(), 1);
    }
    drop(database);
    let world = with_second_root(world).await;
    for _ in 0..2 {
        assert!(!world.kms.root_pass().await.unwrap());
        let left = old(&world).await;
        let expected = OldCounts { versions: 1, counters: 1, ..OldCounts::default() };
        assert_eq!(left, expected);
        let told = world.kms.root_rollover();
        assert_eq!((told.state, told.failed, told.left), (RolloverState::Waiting, 2, expected));
        assert_eq!(told.detail, "2 rows are left under an older root");
    }
    assert!(opens(&world, ciphertexts[0].0, &ciphertexts[0].1).await, "others are served");
}

#[tokio::test]
async fn rows_of_a_retired_root_are_not_believed() {
    let (world, ciphertexts) = lived_in().await;
    let world = with_second_root(world).await;
    // Nothing was sealed anew: as if a copy of before was put back.
    let world = without_first_root(&world);
    let request = world.request("kms.v1.CryptoService/Unwrap");
    let (key, ciphertext) = &ciphertexts[0];
    let refused = world.kms.unwrap(&request, unwrap(key, ciphertext)).await.unwrap_err();
    assert_eq!(refused.reason(), "KEY_INTEGRITY");
    let retired = Sealed {
        row: RetiredRoot {
            retired: RootGeneration::FIRST,
            time: kms_core::clock::Timestamp::from_unix_ms(1),
            actor: "a".into(),
            reason: "r".into(),
        },
        mac: RowMac([0; 32]),
        generation: second(),
    };
    assert!(world.store.retire_root(retired).await.is_err(), "rows are still under it");
}

/// One is staged, and one was discarded: of that the row alone is left.
#[tokio::test]
async fn a_staged_version_is_wrapped_anew_and_of_a_destroyed_one_there_is_nothing_to_wrap() {
    let world = World::new().await;
    world.create(KEY).await;
    let change = |number: u32| ChangeVersionState {
        name: format!("{KEY}/versions/{number}").parse().unwrap(),
        reason: "test".into(),
        request_id: fresh_id(),
    };
    let stage = async || {
        let stage = StageKeyVersion {
            name: name(KEY),
            activate_time: None,
            reason: "next".into(),
            request_id: fresh_id(),
        };
        let request = world.request("kms.v1.KeyService/StageKeyVersion");
        world.kms.stage_key_version(&request, stage).await.unwrap();
    };
    stage().await;
    let request = world.request("kms.v1.KeyService/DiscardKeyVersion");
    world.kms.discard_key_version(&request, change(2)).await.unwrap();
    stage().await;
    let uid = uid_of(&world, KEY).await;
    let world = with_second_root(world).await;
    assert!(world.kms.root_pass().await.unwrap());
    assert_eq!(world.kms.root_rollover().rewrapped, 2);
    for (number, state) in
        [(1, VersionState::Active), (2, VersionState::Destroyed), (3, VersionState::PreActivation)]
    {
        let choice = VersionChoice::Number(KeyVersion::new(number).unwrap());
        let stored = world.store.key(KeyRef::Uid(uid), choice).await.unwrap().unwrap();
        let version = stored.version.unwrap();
        assert_eq!((version.generation, version.row.state), (second(), state));
    }
    let world = without_first_root(&world);
    let request = world.request("kms.v1.KeyService/ActivateKeyVersion");
    world.kms.activate_key_version(&request, change(3)).await.unwrap();
    assert_eq!(&*world.wrap(KEY).await.key_version, format!("{KEY}/versions/3"));
}

/// From stage to retirement, and every refusal on the way.
#[tokio::test]
async fn a_root_is_staged_when_the_last_is_done_and_retired_when_nothing_is_under_it() {
    let (world, _) = lived_in().await;
    let refused = world.kms.retire_root(RootGeneration::FIRST, "why").await;
    assert_eq!(refused, Err(RootChangeError::Newest(RootGeneration::FIRST)));
    assert_eq!(world.kms.stage_root().await, Ok(second()));
    let pins: Vec<_> = world.store.root_pins().await.unwrap();
    assert_eq!(pins.iter().map(|(pin, _)| pin.generation.get()).collect::<Vec<_>>(), [1, 2]);
    let both = KeyringConfig { generation: second(), ..KeyringConfig::default() };
    let world = world.restart_with(both);
    let left = old(&world).await.total();
    let unfinished = RootChangeError::Unfinished { left };
    assert_eq!(world.kms.stage_root().await, Err(RootChangeError::Unfinished { left }));
    assert_eq!(world.kms.retire_root(RootGeneration::FIRST, "why").await, Err(unfinished));
    assert!(world.kms.root_pass().await.unwrap());
    for (generation, reason, expected) in [
        (second(), "why", RootChangeError::Newest(second())),
        (
            RootGeneration::new(3).unwrap(),
            "why",
            RootChangeError::NotOpen(RootGeneration::new(3).unwrap()),
        ),
    ] {
        assert_eq!(world.kms.retire_root(generation, reason).await, Err(expected));
    }
    for reason in ["", &"x".repeat(257)] {
        let refused = world.kms.retire_root(RootGeneration::FIRST, reason).await.unwrap_err();
        let RootChangeError::Service(refused) = refused else { panic!("{refused}") };
        assert_eq!(refused.reason(), "FIELD_VIOLATION");
    }
    world.kms.retire_root(RootGeneration::FIRST, "rolled over").await.unwrap();
    let again = world.kms.retire_root(RootGeneration::FIRST, "rolled over").await;
    assert_eq!(again, Err(RootChangeError::NotOpen(RootGeneration::FIRST)));
    let retired = world.store.retired_roots().await.unwrap();
    let [Sealed { row, generation, .. }] = retired.as_slice() else { panic!("{retired:?}") };
    assert_eq!((row.retired, *generation), (RootGeneration::FIRST, second()));
    assert_eq!((&*row.actor, &*row.reason), ("internal", "rolled over"));
    let told: Vec<_> = world
        .records()
        .into_iter()
        .filter(|record| record.operation == "internal/RetireRoot")
        .map(|record| record.result)
        .collect();
    assert_eq!(told[..2], ["PENDING", "OK"]);
    check(&without_first_root(&world), "retired").await;
}

async fn uid_of(world: &World, key: &str) -> KeyUid {
    let stored = world.store.key(KeyRef::Name(name(key)), VersionChoice::Primary).await;
    stored.unwrap().unwrap().key.row.uid
}

#[tokio::test]
async fn an_open_import_job_is_sealed_anew_and_still_takes_its_key() {
    let world = World::new().await;
    let job = crate::import::new_job(&world).await;
    let world = with_second_root(world).await;
    assert_eq!(old(&world).await.import_jobs, 1);
    assert!(world.kms.root_pass().await.unwrap());
    assert_eq!(old(&world).await, OldCounts::default());
    let world = without_first_root(&world);
    let sealed = crate::import::seal(&job, &crate::import::OWNERS_KEY);
    crate::import::import(&world, sealed).await.unwrap();
    world.wrap(KEY).await;
    check(&world, "imported").await;
}

#[tokio::test]
async fn a_root_rollover_that_is_told_to_stop_ends_after_its_step() {
    let (world, _) = lived_in().await;
    world.create("tenants/u/keys/k").await;
    let world = with_second_root(world).await;
    let (_sender, stop) = tokio::sync::watch::channel(true);
    world.kms.roll_over_root(stop).await;
    let left = old(&world).await;
    assert_eq!((left.keys, left.manifests, left.intents), (1, 1, 0), "the tenant after it");
    assert!(world.kms.root_pass().await.unwrap());
    check(&world, "gone on").await;
}

/// More keys, and more rows, than one step takes.
#[tokio::test]
async fn more_than_one_step_takes_is_sealed_and_walked_once() {
    const KEYS: usize = 260;
    let world = World::new().await;
    for number in 0..KEYS {
        world.create(&format!("tenants/t/keys/k{number}")).await;
    }
    world.create(KEY).await;
    let world = with_second_root(world).await;
    let before = old(&world).await;
    assert!(before.keys > 256 && before.total() - before.requests > 1024, "{before:?}");
    assert!(world.kms.root_pass().await.unwrap());
    assert_eq!(world.kms.root_rollover().rewrapped, KEYS as u64 + 1);
    check(&world, "all").await;
    // What is done is only walked.
    let begun = world.records().len();
    assert!(world.kms.root_pass().await.unwrap());
    assert_eq!(world.kms.root_rollover().keys, KEYS as u64 + 1);
    assert_eq!(world.records().len(), begun);
}

#[tokio::test]
async fn there_is_no_generation_after_the_last() {
    let world = World::new().await;
    let last = RootGeneration::new(u32::MAX).unwrap();
    world.open_root(last).await;
    let config = KeyringConfig { generation: last, ..KeyringConfig::default() };
    let world = world.restart_with(config);
    assert_eq!(world.kms.stage_root().await, Err(RootChangeError::Last(last)));
}

#[tokio::test]
async fn a_rollover_is_told_from_the_start_on() {
    let world = World::new().await;
    assert_eq!(world.kms.root_rollover().state, RolloverState::NotNeeded);
    let world = with_second_root(world).await;
    assert_eq!(world.kms.root_rollover().state, RolloverState::Running);
}
