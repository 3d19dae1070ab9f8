//! Tests of decoding: what is given arrives, and what is odd names its field.

use kms_core::name::KeySelector;

use super::*;

const REQUEST_ID: &str = "11111111-1111-4111-8111-111111111111";

fn field_of<T: std::fmt::Debug>(decoded: Decoded<T>) -> &'static str {
    match decoded.unwrap_err() {
        ServiceError::FieldViolation { field, .. } => field,
        other => panic!("{other:?}"),
    }
}

fn create() -> proto::CreateKeyRequest {
    proto::CreateKeyRequest {
        parent: "tenants/a".into(),
        key_id: "k".into(),
        purpose: proto::Purpose::Wrap.into(),
        protection: proto::Protection::HsmResident.into(),
        owner: "me".into(),
        sensitivity: proto::Sensitivity::High.into(),
        usage: "tests".into(),
        cryptoperiod: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
        recipient_usage_period: Some(prost_types::Duration { seconds: 7200, nanos: 0 }),
        labels: [("x".to_owned(), "y".to_owned())].into(),
        request_id: REQUEST_ID.into(),
        rotation_period: None,
        acknowledge_no_backup: true,
    }
}

fn update(paths: &[&str]) -> proto::UpdateKeyRequest {
    proto::UpdateKeyRequest {
        name: "tenants/a/keys/k".into(),
        revision: 7,
        update_mask: Some(prost_types::FieldMask {
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
        }),
        owner: "you".into(),
        sensitivity: proto::Sensitivity::Low.into(),
        usage: "more tests".into(),
        labels: HashMap::new(),
        cryptoperiod: Some(prost_types::Duration { seconds: 7200, nanos: 0 }),
        recipient_usage_period: None,
        request_id: REQUEST_ID.into(),
        rotation_period: None,
        allow_recent_use: false,
    }
}

#[test]
fn a_date_is_taken_in_whole_milliseconds_that_can_be_counted() {
    let at = |seconds, nanos| {
        stage(proto::StageKeyVersionRequest {
            name: "tenants/a/keys/k".into(),
            activate_time: Some(prost_types::Timestamp { seconds, nanos }),
            reason: "r".into(),
            request_id: REQUEST_ID.into(),
        })
    };
    let taken = |seconds, nanos| at(seconds, nanos).unwrap().activate_time.unwrap().as_unix_ms();
    assert_eq!(taken(1, 0), 1_000);
    assert_eq!(taken(1, 999_000_000), 1_999);
    assert_eq!(taken(-1, 1_000_000), -999);
    let last = i64::MAX / 1000;
    assert_eq!(taken(last, 807_000_000), i64::MAX);
    let too_far = [(last, 808_000_000), (last + 1, 0), (i64::MIN, 0)];
    for (seconds, nanos) in [(1, 1), (1, -1_000_000), (1, 1_000_000_000)].into_iter().chain(too_far)
    {
        assert_eq!(field_of(at(seconds, nanos)), "activate_time", "{seconds} {nanos}");
    }
}

#[test]
fn a_key_a_pinned_version_or_an_alias_can_be_wrapped_under() {
    let message = |key: &str| proto::WrapRequest {
        key: key.into(),
        plaintext: "secret".into(),
        context: [("a".to_owned(), "b".to_owned())].into(),
    };
    let decoded = wrap(message("tenants/a/keys/k")).unwrap();
    assert!(matches!(&decoded.key, KeySelector::Key(_)));
    assert_eq!(decoded.plaintext.expose(), b"secret");
    assert_eq!(decoded.context.iter().collect::<Vec<_>>(), [("a", "b")]);
    let pinned = wrap(message("tenants/a/keys/k/versions/3")).unwrap();
    assert!(matches!(&pinned.key, KeySelector::Version(name) if name.version().get() == 3));
    let alias = wrap(message("tenants/a/aliases/x")).unwrap();
    assert!(matches!(&alias.key, KeySelector::Alias(name) if name.alias_id() == "x"));
    assert_eq!(field_of(wrap(message("tenants/a/aliases/x/versions/3"))), "key");
    assert_eq!(field_of(wrap(message("k"))), "key");
}

#[test]
fn only_a_key_can_be_unwrapped_or_rewrapped_with() {
    for key in ["tenants/a/keys/k/versions/3", "tenants/a/aliases/x"].map(str::to_owned) {
        let message = proto::UnwrapRequest { key: key.clone(), ..Default::default() };
        assert_eq!(field_of(unwrap(message)), "key");
        assert_eq!(field_of(rewrap(proto::RewrapRequest { key, ..Default::default() })), "key");
    }
}

#[test]
fn a_broken_context_names_its_field() {
    let message = proto::UnwrapRequest {
        key: "tenants/a/keys/k".into(),
        ciphertext: "x".into(),
        context: [("kms:x".to_owned(), String::new())].into(),
    };
    assert_eq!(field_of(unwrap(message)), "context");
}

#[test]
fn a_data_key_is_32_bytes_unless_said_otherwise() {
    let message = |length_bytes| proto::GenerateDataKeyRequest {
        key: "tenants/a/keys/k".into(),
        length_bytes,
        ..Default::default()
    };
    assert_eq!(generate_data_key(message(0)).unwrap().length_bytes, 32);
    assert_eq!(generate_data_key(message(64)).unwrap().length_bytes, 64);
    assert!(generate_data_key(message(0)).unwrap().with_plaintext);
}

#[test]
fn every_field_of_a_new_key_arrives() {
    let decoded = create_key(create()).unwrap();
    assert_eq!(decoded.name.to_string(), "tenants/a/keys/k");
    assert_eq!(decoded.protection, Protection::HsmResident);
    assert_eq!(decoded.sensitivity, Sensitivity::High);
    assert_eq!(decoded.cryptoperiod, Duration::from_hours(1));
    assert_eq!(decoded.recipient_usage_period, Some(Duration::from_hours(2)));
    assert!(decoded.acknowledge_no_backup);
    assert_eq!((decoded.owner.as_str(), decoded.usage.as_str()), ("me", "tests"));
    assert_eq!(decoded.labels.get("x").map(String::as_str), Some("y"));
    assert_eq!(decoded.request_id.to_string(), REQUEST_ID);
}

#[test]
fn odd_fields_of_a_new_key_are_named() {
    type Edit = fn(&mut proto::CreateKeyRequest);
    let cases: [(&str, Edit); 10] = [
        ("parent", |m| m.parent = "a".into()),
        ("key_id", |m| m.key_id = "A".into()),
        ("purpose", |m| m.purpose = 0),
        ("purpose", |m| m.purpose = 99),
        ("protection", |m| m.protection = 99),
        ("sensitivity", |m| m.sensitivity = 0),
        ("cryptoperiod", |m| m.cryptoperiod = None),
        ("cryptoperiod", |m| {
            m.cryptoperiod = Some(prost_types::Duration { seconds: -1, nanos: 0 });
        }),
        ("recipient_usage_period", |m| {
            m.recipient_usage_period = Some(prost_types::Duration { seconds: 1, nanos: 1 });
        }),
        ("request_id", |m| m.request_id = "1".into()),
    ];
    for (name, edit) in cases {
        let mut message = create();
        edit(&mut message);
        assert_eq!(field_of(create_key(message)), name);
    }
}

#[test]
fn only_what_the_mask_names_is_changed() {
    let decoded = update_key(update(&["owner", "cryptoperiod"])).unwrap();
    assert_eq!(decoded.owner.as_deref(), Some("you"));
    assert_eq!(decoded.cryptoperiod, Some(Duration::from_hours(2)));
    assert_eq!((decoded.usage, decoded.labels, decoded.sensitivity), (None, None, None));
    assert_eq!(decoded.revision, Revision::new(7));
}

#[test]
fn a_field_named_twice_is_changed_once() {
    let decoded = update_key(update(&["owner", "owner", "labels", "labels"])).unwrap();
    assert_eq!(decoded.owner.as_deref(), Some("you"));
    assert_eq!(decoded.labels, Some(BTreeMap::new()));
}

#[test]
fn an_empty_or_foreign_mask_is_refused() {
    assert_eq!(field_of(update_key(update(&[]))), "update_mask");
    assert_eq!(field_of(update_key(update(&["name"]))), "update_mask");
    let without = proto::UpdateKeyRequest { update_mask: None, ..update(&[]) };
    assert_eq!(field_of(update_key(without)), "update_mask");
}
