//! Wrap, unwrap, rewrap, data keys, random: what works beside what is refused.

use std::collections::BTreeMap;

use kms_core::audit::{Decision, LoggedContext};
use kms_core::secret::Plaintext;
use kms_core::state::VersionState;
use kms_server::authz::ActionKind;
use kms_server::service::{ChangeVersionState, GenerateDataKey, Rewrap, RotateKey, ServiceError};

use crate::support::*;

const KEY: &str = "tenants/t/keys/k";
const WRAP: &str = "kms.v1.CryptoService/Wrap";

fn rewrap(key: &str, ciphertext: &[u8]) -> Rewrap {
    Rewrap { key: name(key), ciphertext: ciphertext.to_vec(), context: context("/a") }
}

fn data_key(length_bytes: usize) -> GenerateDataKey {
    GenerateDataKey {
        key: KEY.parse().unwrap(),
        length_bytes,
        context: context("/a"),
        with_plaintext: true,
    }
}

#[tokio::test]
async fn what_was_wrapped_unwraps_and_both_are_recorded() {
    let world = World::new().await;
    world.create(KEY).await;
    let wrapped = world.wrap(KEY).await;
    assert_eq!(&*wrapped.key_version, "tenants/t/keys/k/versions/1");
    let request = world.request("kms.v1.CryptoService/Unwrap");
    let unwrapped = world.kms.unwrap(&request, unwrap(KEY, &wrapped.ciphertext)).await.unwrap();
    assert_eq!(unwrapped.plaintext, Plaintext::new(b"secret".to_vec()));
    let record = world.last();
    assert_eq!((record.result.as_str(), record.principal.as_str()), ("OK", ADMIN));
    assert_eq!(record.event_id, request.event_id);
    let clear = LoggedContext::Clear(BTreeMap::from([("path".into(), "/a".into())]));
    assert_eq!(record.context, Some(clear));
    let text = serde_json::to_string(&world.records()).unwrap();
    assert!(!text.contains("secret"), "plaintext in a record");
}

#[tokio::test]
async fn wrong_tag_context_key_and_version_are_one_error() {
    let world = World::new().await;
    world.create(KEY).await;
    world.create("tenants/t/keys/other").await;
    let sealed = world.wrap(KEY).await.ciphertext;
    let flipped = |at: usize| {
        let mut bytes = sealed.clone();
        bytes[at] ^= 1;
        bytes
    };
    let mut wrong_context = unwrap(KEY, &sealed);
    wrong_context.context = context("/b");
    let cases = [
        unwrap(KEY, &flipped(sealed.len() - 1)),
        unwrap(KEY, &flipped(5)),
        unwrap(KEY, &flipped(23)),
        unwrap(KEY, &flipped(25)),
        unwrap(KEY, &flipped(0)),
        unwrap(KEY, &sealed[..sealed.len() - 1]),
        unwrap(KEY, &sealed[..10]),
        unwrap("tenants/t/keys/other", &sealed),
        wrong_context,
    ];
    for (number, case) in cases.into_iter().enumerate() {
        let error = world.kms.unwrap(&world.request(WRAP), case).await.unwrap_err();
        assert_eq!(error, ServiceError::CiphertextInvalid, "case {number}");
        assert_eq!(world.last().result, "CIPHERTEXT_INVALID");
    }
    let format = world.kms.unwrap(&world.request(WRAP), unwrap(KEY, &flipped(2))).await;
    assert!(matches!(format, Err(ServiceError::EnvelopeUnsupported { .. })));
}

#[tokio::test]
async fn plaintexts_of_1_byte_to_64_kib_are_wrapped_and_others_refused() {
    let world = World::new().await;
    world.create(KEY).await;
    for (length, taken) in [(0, false), (1, true), (65_536, true), (65_537, false)] {
        let result = world.kms.wrap(&world.request(WRAP), wrap(KEY, &vec![7; length])).await;
        assert_eq!(result.is_ok(), taken, "{length}");
        let reason = if taken { "OK" } else { "FIELD_VIOLATION" };
        assert_eq!(world.last().result, reason);
    }
}

#[tokio::test]
async fn data_keys_of_16_to_1024_bytes_are_made_and_others_refused() {
    let world = World::new().await;
    world.create(KEY).await;
    for (length, taken) in [(15, false), (16, true), (1024, true), (1025, false)] {
        let result = world.kms.generate_data_key(&world.request(WRAP), data_key(length)).await;
        assert_eq!(result.is_ok(), taken, "{length}");
        if let Ok(made) = result {
            let opened =
                world.kms.unwrap(&world.request(WRAP), unwrap(KEY, &made.ciphertext)).await;
            assert_eq!(opened.unwrap().plaintext, made.plaintext.unwrap());
        }
    }
    let hidden = GenerateDataKey { with_plaintext: false, ..data_key(32) };
    let made = world.kms.generate_data_key(&world.request(WRAP), hidden).await.unwrap();
    assert!(made.plaintext.is_none());
}

#[tokio::test]
async fn random_of_1_to_1024_bytes_is_drawn_and_other_lengths_refused() {
    let world = World::new().await;
    let tenant = name(KEY).tenant().clone();
    for (length, taken) in [(0, false), (1, true), (1024, true), (1025, false)] {
        let drawn = world.kms.generate_random(&world.request(WRAP), &tenant, length).await;
        assert_eq!(drawn.is_ok(), taken, "{length}");
        assert!(drawn.is_err() || drawn.unwrap().len() == length);
    }
}

#[tokio::test]
async fn a_batch_of_1000_works_each_item_with_its_own_result_and_1001_are_refused() {
    let world = World::new().await;
    world.create(KEY).await;
    let mut items: Vec<_> = (0..998).map(|_| Ok(wrap(KEY, b"x"))).collect();
    items.push(Ok(wrap("tenants/t/keys/none", b"x")));
    items.push(Err(ServiceError::field("key", "malformed")));
    let before = world.sink.total();
    let results = world.kms.batch_wrap(&world.request(WRAP), items).await.unwrap();
    assert_eq!(results.len(), 1000);
    assert!(results[..998].iter().all(Result::is_ok));
    assert!(matches!(results[998], Err(ServiceError::KeyNotFound { .. })));
    assert!(matches!(results[999], Err(ServiceError::FieldViolation { .. })));
    assert_eq!(world.sink.total() - before, 1000 + 1, "one record an item, and one of their lease");
    assert_eq!(world.last().item, Some(999));
    for length in [0, 1001] {
        let items = (0..length).map(|_| Ok(wrap(KEY, b"x"))).collect();
        let refused = world.kms.batch_wrap(&world.request(WRAP), items).await.unwrap_err();
        assert!(matches!(refused, ServiceError::FieldViolation { field: "items", .. }));
    }
}

#[tokio::test]
async fn batches_of_every_kind_answer_in_order() {
    let world = World::new().await;
    world.create(KEY).await;
    let old = world.wrap(KEY).await.ciphertext;
    rotate(&world).await;
    let new = world.wrap(KEY).await.ciphertext;
    let request = world.request(WRAP);
    let opened = vec![Ok(unwrap(KEY, &old)), Ok(unwrap(KEY, b"junk")), Ok(unwrap(KEY, &new))];
    let opened = world.kms.batch_unwrap(&request, opened).await.unwrap();
    assert_eq!(opened.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
    let moved = vec![Ok(rewrap(KEY, &new)), Ok(rewrap(KEY, &old))];
    let moved = world.kms.batch_rewrap(&request, moved).await.unwrap();
    let changed: Vec<_> = moved.iter().map(|item| item.as_ref().unwrap().changed).collect();
    assert_eq!(changed, [false, true]);
    let made = vec![Ok(data_key(32)), Ok(data_key(15))];
    let made = world.kms.batch_generate_data_key(&request, made).await.unwrap();
    assert!(made[0].is_ok() && made[1].is_err());
}

async fn rotate(world: &World) {
    let rotate = RotateKey { name: name(KEY), reason: String::new(), request_id: fresh_id() };
    world.kms.rotate_key(&world.request("kms.v1.KeyService/RotateKey"), rotate).await.unwrap();
}

#[tokio::test]
async fn rewrap_moves_to_the_primary_and_says_when_nothing_changed() {
    let world = World::new().await;
    world.create(KEY).await;
    let old = world.wrap(KEY).await.ciphertext;
    let same = world.kms.rewrap(&world.request(WRAP), rewrap(KEY, &old)).await.unwrap();
    assert!(!same.changed && same.ciphertext == old);
    rotate(&world).await;
    let moved = world.kms.rewrap(&world.request(WRAP), rewrap(KEY, &old)).await.unwrap();
    assert!(moved.changed);
    assert_eq!(&*moved.previous_key_version, "tenants/t/keys/k/versions/1");
    assert_eq!(&*moved.key_version, "tenants/t/keys/k/versions/2");
    let opened = world.kms.unwrap(&world.request(WRAP), unwrap(KEY, &moved.ciphertext)).await;
    assert_eq!(opened.unwrap().plaintext.expose(), b"secret");
    let opened = world.kms.unwrap(&world.request(WRAP), unwrap(KEY, &old)).await;
    assert_eq!(opened.unwrap().plaintext.expose(), b"secret");
}

#[tokio::test]
async fn a_pinned_version_needs_its_own_permission_and_must_be_active() {
    let grants = [grant("wrapper", "t", &[ActionKind::Wrap])];
    let world = World::with(&grants).await;
    world.create(KEY).await;
    rotate(&world).await;
    let pinned = || wrap("tenants/t/keys/k/versions/1", b"x");
    let denied = world.kms.wrap(&world.request_of("wrapper", WRAP), pinned()).await;
    assert_eq!(denied.unwrap_err(), ServiceError::AccessDenied);
    let wrapped = world.kms.wrap(&world.request(WRAP), pinned()).await.unwrap();
    assert_eq!(&*wrapped.key_version, "tenants/t/keys/k/versions/1");
    world.clock.advance(std::time::Duration::from_mins(10));
    let refused = world.kms.wrap(&world.request(WRAP), pinned()).await.unwrap_err();
    assert_eq!(refused, ServiceError::KeyNotActive { state: VersionState::Deactivated });
    let opened = world.kms.unwrap(&world.request(WRAP), unwrap(KEY, &wrapped.ciphertext)).await;
    assert!(opened.is_ok(), "a deactivated version still processes");
}

#[tokio::test]
async fn a_suspended_version_does_nothing_until_it_is_resumed() {
    let world = World::new().await;
    world.create(KEY).await;
    let sealed = world.wrap(KEY).await.ciphertext;
    let change = || ChangeVersionState {
        name: format!("{KEY}/versions/1").parse().unwrap(),
        reason: "test".into(),
        request_id: fresh_id(),
    };
    let request = world.request("kms.v1.KeyService/SuspendKeyVersion");
    let version = world.kms.suspend_key_version(&request, change()).await.unwrap();
    assert_eq!((version.state, version.primary), (VersionState::Suspended, false));
    let suspended = ServiceError::KeyNotActive { state: VersionState::Suspended };
    let crypto = world.request(WRAP);
    assert_eq!(world.kms.wrap(&crypto, wrap(KEY, b"x")).await.unwrap_err(), suspended);
    assert_eq!(world.kms.unwrap(&crypto, unwrap(KEY, &sealed)).await.unwrap_err(), suspended);
    assert_eq!(world.kms.rewrap(&crypto, rewrap(KEY, &sealed)).await.unwrap_err(), suspended);
    let again = world.kms.suspend_key_version(&request, change()).await.unwrap_err();
    let (from, to) = (VersionState::Suspended, VersionState::Suspended);
    assert_eq!(again, ServiceError::IllegalTransition { from, to });
    let request = world.request("kms.v1.KeyService/ResumeKeyVersion");
    let version = world.kms.resume_key_version(&request, change()).await.unwrap();
    assert_eq!((version.state, version.primary), (VersionState::Active, true));
    assert!(world.kms.unwrap(&crypto, unwrap(KEY, &sealed)).await.is_ok());
}

#[tokio::test]
async fn tenants_do_not_see_each_other_and_strangers_see_nothing() {
    let grants = [
        grant("blind", "t", &[ActionKind::Wrap]),
        grant("seeing", "t", &[ActionKind::Wrap, ActionKind::DescribeKey]),
        grant("elsewhere", "u", ActionKind::ALL),
    ];
    let world = World::with(&grants).await;
    world.create(KEY).await;
    let wrap_as = async |who: &str, key: &str| {
        world.kms.wrap(&world.request_of(who, WRAP), wrap(key, b"x")).await
    };
    assert!(wrap_as("blind", KEY).await.is_ok());
    let none = "tenants/t/keys/none";
    assert_eq!(wrap_as("blind", none).await.unwrap_err(), ServiceError::AccessDenied);
    let seen = wrap_as("seeing", none).await.unwrap_err();
    assert_eq!(seen, ServiceError::KeyNotFound { name: name(none) });
    for key in [KEY, none] {
        assert_eq!(wrap_as("elsewhere", key).await.unwrap_err(), ServiceError::AccessDenied);
        assert_eq!(wrap_as("stranger", key).await.unwrap_err(), ServiceError::AccessDenied);
    }
    let record = world.last();
    assert_eq!(record.decision, Decision::Deny { policies: vec![] });
    let names = LoggedContext::Names(vec!["path".into()]);
    assert_eq!((record.result.as_str(), record.context), ("ACCESS_DENIED", Some(names)));
}

#[tokio::test]
async fn ciphertext_is_described_with_a_name_only_to_those_who_may() {
    let grants = [
        grant("elsewhere", "u", &[ActionKind::DescribeCiphertext]),
        grant("other", "t", &[ActionKind::Wrap]),
    ];
    let world = World::with(&grants).await;
    world.create(KEY).await;
    let sealed = world.wrap(KEY).await.ciphertext;
    let operation = "kms.v1.CryptoService/DescribeCiphertext";
    let own = world.kms.describe_ciphertext(&world.request(operation), &sealed).await.unwrap();
    assert_eq!(own.key_version.unwrap().to_string(), format!("{KEY}/versions/1"));
    assert!(own.current && own.plaintext_length_bytes == 6);
    let request = world.request_of("elsewhere", operation);
    let foreign = world.kms.describe_ciphertext(&request, &sealed).await.unwrap();
    assert!(foreign.key_version.is_none() && !foreign.current);
    let request = world.request_of("other", operation);
    let denied = world.kms.describe_ciphertext(&request, &sealed).await.unwrap_err();
    assert_eq!(denied, ServiceError::AccessDenied);
}

#[tokio::test]
async fn nothing_leaves_when_the_record_cannot_be_written() {
    let world = World::new().await;
    world.create(KEY).await;
    let sealed = world.wrap(KEY).await.ciphertext;
    world.sink.refuse(true);
    let request = world.request(WRAP);
    let unwrapped = world.kms.unwrap(&request, unwrap(KEY, &sealed)).await.unwrap_err();
    assert_eq!(unwrapped.reason(), "AUDIT_UNAVAILABLE");
    let batch = world.kms.batch_unwrap(&request, vec![Ok(unwrap(KEY, &sealed))]).await;
    assert_eq!(batch.unwrap_err().reason(), "AUDIT_UNAVAILABLE");
    let created = world.kms.create_key(&request, create("tenants/t/keys/new")).await;
    assert_eq!(created.unwrap_err().reason(), "AUDIT_UNAVAILABLE");
    world.sink.refuse(false);
    assert!(world.kms.unwrap(&request, unwrap(KEY, &sealed)).await.is_ok());
    let none = world.kms.describe_key(&request, &name("tenants/t/keys/new")).await;
    assert_eq!(none.unwrap_err().reason(), "KEY_NOT_FOUND");
}

#[tokio::test]
async fn a_hashed_context_stands_in_records_as_a_keyed_hash() {
    let world = World::new().await;
    let mut hashed = create(KEY);
    hashed.labels = BTreeMap::from([("context-audit".into(), "HASHED".into())]);
    world.kms.create_key(&world.request("kms.v1.KeyService/CreateKey"), hashed).await.unwrap();
    world.wrap(KEY).await;
    assert!(matches!(world.last().context, Some(LoggedContext::Hashed(hex)) if hex.len() == 64));
}
