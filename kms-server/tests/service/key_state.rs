//! Disabled keys: no use, no rotation, and all of it again once enabled.

use std::time::Duration;

use kms_core::key::{KeyState, Protection};
use kms_server::service::{
    ChangeKeyState, ChangeVersionState, CreateKey, GenerateDataKey, HistoryEntry, KeyDescription,
    ListKeyHistory, Rewrap, RotateKey, ServiceError,
};

use crate::mutations::{KEY, check};
use crate::support::*;

const WRAP: &str = "kms.v1.CryptoService/Wrap";
const PERIOD: Duration = Duration::from_hours(24 * 30);

fn change(reason: &str) -> ChangeKeyState {
    ChangeKeyState { name: name(KEY), reason: reason.into(), request_id: fresh_id() }
}

async fn disable(world: &World) -> Result<KeyDescription, ServiceError> {
    let request = world.request("kms.v1.KeyService/DisableKey");
    world.kms.disable_key(&request, change("is it used?")).await
}

async fn enable(world: &World) -> Result<KeyDescription, ServiceError> {
    let request = world.request("kms.v1.KeyService/EnableKey");
    world.kms.enable_key(&request, change("it is")).await
}

async fn rotate(world: &World) -> Result<(), ServiceError> {
    let rotate = RotateKey { name: name(KEY), reason: String::new(), request_id: fresh_id() };
    world.kms.rotate_key(&world.request("kms.v1.KeyService/RotateKey"), rotate).await.map(drop)
}

/// Uses a key in every way there is.
async fn uses(world: &World, ciphertext: &[u8]) -> [Result<(), ServiceError>; 4] {
    let request = world.request(WRAP);
    let item = Rewrap { key: name(KEY), ciphertext: ciphertext.to_vec(), context: context("/a") };
    let data_key = GenerateDataKey {
        key: KEY.parse().unwrap(),
        length_bytes: 32,
        context: context("/a"),
        with_plaintext: true,
    };
    [
        world.kms.wrap(&request, wrap(KEY, b"x")).await.map(drop),
        world.kms.unwrap(&request, unwrap(KEY, ciphertext)).await.map(drop),
        world.kms.rewrap(&request, item).await.map(drop),
        world.kms.generate_data_key(&request, data_key).await.map(drop),
    ]
}

#[tokio::test]
async fn a_disabled_key_does_nothing_until_it_is_enabled() {
    for protection in [Protection::HsmWrapped, Protection::HsmResident] {
        let world = World::new().await;
        let create = CreateKey { protection, ..create(KEY) };
        let request = world.request("kms.v1.KeyService/CreateKey");
        world.kms.create_key(&request, create).await.unwrap();
        // Of an old version too, and loaded.
        let old = world.wrap(KEY).await.ciphertext;
        rotate(&world).await.unwrap();
        assert!(uses(&world, &old).await.iter().all(Result::is_ok));

        let disabled = disable(&world).await.unwrap();
        assert_eq!((disabled.state, disabled.primary_version), (KeyState::Disabled, None));
        // As well by a server that has nothing loaded.
        let fresh = world.restart();
        for world in [&world, &fresh] {
            for used in uses(world, &old).await {
                assert_eq!(used, Err(ServiceError::KeyDisabled));
            }
            let refused = world.last();
            assert_eq!(&*refused.result, "KEY_DISABLED");
            assert_eq!(&*refused.principal, ADMIN, "who still needs it is on record");
            assert_eq!(world.kms.counters().disabled_key_uses.read(), 4);
            assert_eq!(rotate(world).await, Err(ServiceError::KeyDisabled));
        }
        let enabled = enable(&fresh).await.unwrap();
        assert_eq!(enabled.state, KeyState::Enabled);
        assert_eq!(enabled.primary_version.unwrap().get(), 2);
        assert!(uses(&fresh, &old).await.iter().all(Result::is_ok));
        check(&fresh, "enabled").await;
    }
}

#[tokio::test]
async fn what_is_done_already_is_told_and_changes_nothing() {
    let world = World::new().await;
    world.create(KEY).await;
    assert_eq!(enable(&world).await, Err(ServiceError::KeyEnabled));
    let revision = disable(&world).await.unwrap().revision;
    assert_eq!(disable(&world).await, Err(ServiceError::KeyDisabled));
    let request = world.request("kms.v1.KeyService/DescribeKey");
    assert_eq!(world.kms.describe_key(&request, &name(KEY)).await.unwrap().revision, revision);
    // A repeat is no second change.
    let again = change("it is");
    let request = world.request("kms.v1.KeyService/EnableKey");
    let first = world.kms.enable_key(&request, again.clone()).await.unwrap();
    assert_eq!(world.kms.enable_key(&request, again).await.unwrap(), first);
}

#[tokio::test]
async fn a_reason_must_be_given_and_fit() {
    let world = World::new().await;
    world.create(KEY).await;
    let request = world.request("kms.v1.KeyService/DisableKey");
    let longest = "r".repeat(kms_core::key::MAX_REASON_BYTES);
    for reason in [String::new(), format!("{longest}r")] {
        let refused = world.kms.disable_key(&request, change(&reason)).await.unwrap_err();
        assert_eq!(refused.reason(), "FIELD_VIOLATION");
    }
    world.kms.disable_key(&request, change(&longest)).await.unwrap();
}

#[tokio::test]
async fn the_history_tells_who_disabled_a_key_and_why() {
    let world = World::new().await;
    world.create(KEY).await;
    let before = disable(&world).await.unwrap();
    world.clock.advance(Duration::from_millis(1));
    let after = enable(&world).await.unwrap();
    let list = ListKeyHistory { key: name(KEY), page_size: 0, page_token: String::new() };
    let request = world.request("kms.v1.KeyService/ListKeyHistory");
    let entries: Vec<HistoryEntry> =
        world.kms.list_key_history(&request, list).await.unwrap().items;
    let told: Vec<_> = entries
        .iter()
        .filter(|entry| !entry.detail.is_empty())
        .map(|entry| (&*entry.detail, &*entry.reason, &*entry.actor, entry.revision))
        .collect();
    assert_eq!(
        told,
        [
            (r#"{"state":["ENABLED","DISABLED"]}"#, "is it used?", ADMIN, before.revision),
            (r#"{"state":["DISABLED","ENABLED"]}"#, "it is", ADMIN, after.revision),
        ]
    );
}

#[tokio::test]
async fn a_rotation_that_falls_due_meanwhile_is_made_once_afterwards() {
    let world = World::new().await;
    let create = CreateKey { rotation_period: Some(PERIOD), ..create(KEY) };
    let request = world.request("kms.v1.KeyService/CreateKey");
    world.kms.create_key(&request, create).await.unwrap();
    disable(&world).await.unwrap();
    world.clock.advance(PERIOD * 3);
    let done = world.kms.reconcile().await.unwrap();
    assert_eq!((done.rotated, done.failed), (0, 0));
    enable(&world).await.unwrap();
    assert_eq!(world.kms.reconcile().await.unwrap().rotated, 1);
    assert_eq!(world.kms.reconcile().await.unwrap().rotated, 0);
}

#[tokio::test]
async fn a_compromise_of_a_disabled_key_still_replaces_its_primary() {
    let world = World::new().await;
    world.create(KEY).await;
    disable(&world).await.unwrap();
    let mark = ChangeVersionState {
        name: format!("{KEY}/versions/1").parse().unwrap(),
        reason: "leaked".into(),
        request_id: fresh_id(),
    };
    let request = world.request("kms.v1.KeyService/CompromiseKeyVersion");
    let done = world.kms.compromise_key_version(&request, mark).await.unwrap();
    assert_eq!(done.key.state, KeyState::Disabled, "it is no way to enable a key");
    assert_eq!(done.replacement.unwrap().version.get(), 2);
    let enabled = enable(&world).await.unwrap();
    assert_eq!(enabled.primary_version.unwrap().get(), 2);
    check(&world, "replaced").await;
}
