//! The life of keys: creation, idempotency, metadata, rollover, lists.

use std::collections::BTreeMap;

use kms_core::audit::Phase;
use kms_core::clock::Clock as _;
use kms_core::id::{KeyVersion, Revision};
use kms_core::key::Protection;
use kms_core::state::VersionState;
use kms_server::authz::ActionKind;
use kms_server::service::{
    CreateKey, ListKeyVersions, ListKeys, RotateKey, ServiceError, UpdateKey,
};
use std::time::Duration;

use crate::support::*;

const KEY: &str = "tenants/t/keys/k";
const CREATE: &str = "kms.v1.KeyService/CreateKey";

fn update(revision: Revision, owner: &str) -> UpdateKey {
    UpdateKey {
        name: name(KEY),
        revision,
        owner: Some(owner.into()),
        sensitivity: None,
        usage: None,
        cryptoperiod: None,
        recipient_usage_period: None,
        labels: None,
        rotation_period: None,
        allow_recent_use: false,
        request_id: fresh_id(),
    }
}

#[tokio::test]
async fn creation_leaves_intent_and_outcome_in_the_log_and_no_open_intent() {
    let world = World::new().await;
    let made = world.kms.create_key(&world.request(CREATE), create(KEY)).await.unwrap();
    assert_eq!((made.primary_version, made.version_count), (Some(KeyVersion::FIRST), 1));
    let records = world.records();
    let phases: Vec<_> = records.iter().map(|record| record.phase).collect();
    assert_eq!(phases, [Phase::Intent, Phase::Outcome]);
    assert_eq!(records[0].intent_id, records[1].intent_id);
    assert!(records[0].manifest.is_none() && records[1].manifest.is_some());
    assert!(world.store.intents().await.unwrap().rows.is_empty());
    let described = world.kms.describe_key(&world.request(CREATE), &name(KEY)).await.unwrap();
    assert_eq!(described, made);
}

#[tokio::test]
async fn a_repeat_gives_the_first_result_and_another_request_is_refused() {
    let world = World::new().await;
    let wanted = create(KEY);
    let first = world.kms.create_key(&world.request(CREATE), wanted.clone()).await.unwrap();
    let again = world.restart().kms.create_key(&world.request(CREATE), wanted.clone()).await;
    assert_eq!(again.unwrap(), first);
    let mut other = wanted.clone();
    other.owner = "someone else".into();
    let reused = world.kms.create_key(&world.request(CREATE), other).await.unwrap_err();
    assert_eq!(reused, ServiceError::RequestIdReused);
    let rotate =
        RotateKey { name: name(KEY), reason: String::new(), request_id: wanted.request_id };
    let request = world.request("kms.v1.KeyService/RotateKey");
    let reused = world.kms.rotate_key(&request, rotate).await.unwrap_err();
    assert_eq!(reused, ServiceError::RequestIdReused);
    let taken = world.kms.create_key(&world.request(CREATE), create(KEY)).await.unwrap_err();
    assert_eq!(taken, ServiceError::ResourceExists { name: name(KEY) });
    world.clock.advance(Duration::from_hours(24));
    let late = world.kms.create_key(&world.request(CREATE), wanted).await.unwrap_err();
    assert_eq!(late, ServiceError::ResourceExists { name: name(KEY) });
}

#[tokio::test]
async fn of_duplicates_in_flight_one_works_and_the_others_are_told_so() {
    let world = World::new().await;
    let wanted = create(KEY);
    let calls = (0..5).map(|_| {
        let (wanted, request) = (wanted.clone(), world.request(CREATE));
        let kms = world.kms.clone();
        async move { kms.create_key(&request, wanted).await }
    });
    let results = futures_util::future::join_all(calls).await;
    assert!(results.iter().any(Result::is_ok));
    for result in results {
        assert!(matches!(result, Ok(_) | Err(ServiceError::OperationInProgress)));
    }
    let request = world.request("kms.v1.KeyService/ListKeys");
    let list = ListKeys::all(name(KEY).tenant().clone());
    assert_eq!(world.kms.list_keys(&request, list).await.unwrap().items.len(), 1);
}

#[tokio::test]
async fn mutations_need_their_action_and_refusals_are_recorded() {
    let others: Vec<_> =
        ActionKind::ALL.iter().copied().filter(|a| *a != ActionKind::CreateKey).collect();
    let world = World::with(&[grant("other", "t", &others)]).await;
    let request = world.request_of("other", CREATE);
    let denied = world.kms.create_key(&request, create(KEY)).await.unwrap_err();
    assert_eq!(denied, ServiceError::AccessDenied);
    let record = world.last();
    assert_eq!((record.phase, record.result.as_str()), (Phase::Complete, "ACCESS_DENIED"));
}

#[tokio::test]
async fn an_update_needs_the_revision_it_is_based_on() {
    let world = World::new().await;
    world.create(KEY).await;
    let request = world.request("kms.v1.KeyService/UpdateKey");
    let updated = world.kms.update_key(&request, update(Revision::FIRST, "new")).await.unwrap();
    assert_eq!((updated.owner.as_str(), updated.revision), ("new", Revision::new(2)));
    let stale = world.kms.update_key(&request, update(Revision::FIRST, "newer")).await.unwrap_err();
    assert_eq!(stale, ServiceError::RevisionMismatch);
    let long = world.kms.update_key(&request, update(Revision::new(2), &"o".repeat(257))).await;
    assert_eq!(long.unwrap_err().reason(), "FIELD_VIOLATION");
}

#[tokio::test]
async fn rollover_makes_a_new_primary_and_ends_the_old_one_after_the_overlap() {
    let world = World::new().await;
    world.create(KEY).await;
    let rotate = RotateKey { name: name(KEY), reason: "yearly".into(), request_id: fresh_id() };
    let request = world.request("kms.v1.KeyService/RotateKey");
    let rotated = world.kms.rotate_key(&request, rotate.clone()).await.unwrap();
    assert_eq!(rotated.key.primary_version, KeyVersion::new(2));
    assert_eq!(world.kms.rotate_key(&request, rotate).await.unwrap(), rotated, "a repeat");
    let old = format!("{KEY}/versions/1").parse().unwrap();
    let state = async || {
        let request = world.request("kms.v1.KeyService/DescribeKeyVersion");
        world.kms.describe_key_version(&request, &old).await.unwrap().state
    };
    assert_eq!(state().await, VersionState::Active);
    world.clock.advance(Duration::from_mins(10) - Duration::from_millis(1));
    assert_eq!(state().await, VersionState::Active);
    world.clock.advance(Duration::from_millis(1));
    assert_eq!(state().await, VersionState::Deactivated);
    assert_eq!(world.kms.reconcile().await.unwrap().deactivated, 1);
    assert_eq!(world.kms.reconcile().await.unwrap().deactivated, 0);
    assert_eq!(state().await, VersionState::Deactivated);
    world.kms.verify_manifest(name(KEY).tenant()).await.unwrap();
}

#[tokio::test]
async fn pages_follow_each_other_and_tokens_are_bound_and_expire() {
    let world = World::with(&[grant("reader", "t", &[ActionKind::ListKeys])]).await;
    for number in 0..5 {
        world.create(&format!("tenants/t/keys/k{number}")).await;
        world.clock.advance(Duration::from_millis(1));
    }
    let list = |page_token: String| ListKeys {
        page_size: 2,
        page_token,
        ..ListKeys::all(name(KEY).tenant().clone())
    };
    let request = world.request("kms.v1.KeyService/ListKeys");
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let page = world.kms.list_keys(&request, list(token)).await.unwrap();
        seen.extend(page.items.into_iter().map(|key| key.name.key_id().to_owned()));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, ["k0", "k1", "k2", "k3", "k4"]);
    let token = world.kms.list_keys(&request, list(String::new())).await.unwrap().next_page_token;
    let reader = world.request_of("reader", "kms.v1.KeyService/ListKeys");
    let stolen = world.kms.list_keys(&reader, list(token.clone())).await.unwrap_err();
    assert_eq!(stolen.reason(), "FIELD_VIOLATION");
    let forged = world.kms.list_keys(&request, list("hft_AAAA".into())).await.unwrap_err();
    assert_eq!(forged.reason(), "FIELD_VIOLATION");
    world.clock.advance(Duration::from_hours(1));
    let request = world.request("kms.v1.KeyService/ListKeys");
    let old = world.kms.list_keys(&request, list(token)).await.unwrap_err();
    assert_eq!(old, ServiceError::PageTokenExpired);
    for (page_size, taken) in [(1000, true), (1001, false)] {
        let list = ListKeys { page_size, ..list(String::new()) };
        assert_eq!(world.kms.list_keys(&request, list).await.is_ok(), taken);
    }
    let versions =
        ListKeyVersions { key: name("tenants/t/keys/k0"), page_size: 0, page_token: String::new() };
    let page = world.kms.list_key_versions(&request, versions).await.unwrap();
    assert_eq!(page.items.len(), 1);
    assert_eq!(page.items[0].invocation_count, 1);
}

#[tokio::test]
async fn a_page_token_is_issue_time_position_and_mac() {
    let world = World::new().await;
    for number in 0..2 {
        world.create(&format!("tenants/t/keys/k{number}")).await;
        world.clock.advance(Duration::from_millis(1));
    }
    let request = world.request("kms.v1.KeyService/ListKeys");
    let list = ListKeys { page_size: 1, ..ListKeys::all(name(KEY).tenant().clone()) };
    let page = world.kms.list_keys(&request, list).await.unwrap();
    let text = page.next_page_token.strip_prefix("hft_").unwrap();
    let bytes = data_encoding::BASE64URL_NOPAD.decode(text.as_bytes()).unwrap();
    // As docs/formats.md has it.
    let times = [world.clock.now(), page.items[0].create_time];
    let [issued, created] = times.map(|time| time.as_unix_ms().to_be_bytes());
    let known = [&issued[..], &created, page.items[0].uid.as_bytes()].concat();
    assert_eq!((bytes.len(), &bytes[..32]), (64, &known[..]));
}

#[tokio::test]
async fn a_reserved_label_with_another_value_is_refused_at_creation_and_update() {
    let world = World::new().await;
    let wrong = BTreeMap::from([("context-audit".to_owned(), "hashed".to_owned())]);
    let request = world.request(CREATE);
    let mut key = create(KEY);
    key.labels = wrong.clone();
    let refused = world.kms.create_key(&request, key).await.unwrap_err();
    assert!(matches!(&refused, ServiceError::FieldViolation { field: "labels", .. }), "{refused}");
    world.kms.create_key(&request, create(KEY)).await.unwrap();
    let labelled = UpdateKey { labels: Some(wrong), ..update(Revision::FIRST, "new") };
    let request = world.request("kms.v1.KeyService/UpdateKey");
    let refused = world.kms.update_key(&request, labelled).await.unwrap_err();
    assert!(matches!(&refused, ServiceError::FieldViolation { field: "labels", .. }), "{refused}");
}

#[tokio::test]
async fn a_resident_key_is_made_only_for_who_knows_that_it_has_no_backup() {
    let world = World::new().await;
    let request = world.request("kms.v1.KeyService/CreateKey");
    let asked = |protection, acknowledge_no_backup| CreateKey {
        protection,
        acknowledge_no_backup,
        ..create(KEY)
    };
    let unaware = asked(Protection::HsmResident, false);
    let refused = world.kms.create_key(&request, unaware).await;
    assert_eq!(refused, Err(ServiceError::NoBackupNotAcknowledged));
    assert_eq!(&*world.last().result, "NO_BACKUP_NOT_ACKNOWLEDGED");
    let aware = world.kms.create_key(&request, asked(Protection::HsmResident, true)).await;
    assert_eq!(aware.unwrap().protection, Protection::HsmResident);
    // A wrapped one is in every backup: nothing is to be known.
    let other =
        CreateKey { name: name("tenants/t/keys/other"), ..asked(Protection::HsmWrapped, false) };
    world.kms.create_key(&request, other).await.unwrap();
}
