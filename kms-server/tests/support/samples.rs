//! Rows and records for tests.

use std::time::Duration;

use kms_core::audit::{AuditRecord, Decision, Phase};
use kms_core::clock::Timestamp;
use kms_core::id::{EventId, IntentId, KeyUid, KeyVersion, RequestId, Revision, RootGeneration};
use kms_core::key::{
    CheckBlob, CkaId, CounterRow, KeyRow, Material, Origin, Protection, Purpose, RowMac, Sealed,
    Sensitivity, VersionRow, WrappedKey,
};
use kms_core::manifest::{Manifest, RowSet};
use kms_core::name::{KeyName, TenantName};
use kms_core::state::VersionState;
use kms_server::store::{Closing, Intent, IntentKind, ManifestChange, NewKey, RequestRecord};

/// Seals a row with a MAC that nobody checks here.
pub fn sealed<R>(row: R) -> Sealed<R> {
    Sealed { row, mac: RowMac([7; 32]), generation: RootGeneration::FIRST }
}

pub fn tenant(number: u8) -> TenantName {
    TenantName::from_id(&format!("t{number}")).unwrap()
}

pub fn key_name(tenant_number: u8, number: u8) -> KeyName {
    KeyName::new(tenant(tenant_number), &format!("k{number}")).unwrap()
}

fn bytes(tenant_number: u8, number: u8) -> [u8; 16] {
    let mut bytes = [0x40; 16];
    bytes[0] = tenant_number;
    bytes[1] = number;
    bytes
}

pub fn key_uid(tenant_number: u8, number: u8) -> KeyUid {
    KeyUid::from_bytes(bytes(tenant_number, number))
}

pub fn counter(tenant_number: u8, number: u8, leased: u64, revision: u64) -> Sealed<CounterRow> {
    sealed(CounterRow {
        key_uid: key_uid(tenant_number, number),
        version: KeyVersion::FIRST,
        leased,
        revision: Revision::new(revision),
    })
}

pub fn new_key(tenant_number: u8, number: u8) -> NewKey {
    let time = Timestamp::from_unix_ms(i64::from(number));
    NewKey {
        key: sealed(KeyRow {
            uid: key_uid(tenant_number, number),
            name: key_name(tenant_number, number),
            purpose: Purpose::Wrap,
            protection: Protection::HsmWrapped,
            state: kms_core::key::KeyState::Enabled,
            owner: "team".into(),
            sensitivity: Sensitivity::High,
            usage: "backups".into(),
            cryptoperiod: Duration::from_hours(24),
            recipient_usage_period: Duration::from_hours(48),
            labels: [("env".to_owned(), "prod".to_owned())].into(),
            create_time: time,
            update_time: time,
            revision: Revision::FIRST,
            primary: KeyVersion::FIRST,
            latest: KeyVersion::FIRST,
            consumers: 0,
            rotation: None,
            destruction: None,
        }),
        version: sealed(VersionRow {
            key_uid: key_uid(tenant_number, number),
            version: KeyVersion::FIRST,
            state: VersionState::Active,
            material: Material::Wrapped(WrappedKey(vec![number; 40])),
            check: CheckBlob { iv: [3; 12], ciphertext_and_tag: vec![4; 32] },
            origin: Origin::Generated,
            create_time: time,
            state_time: time,
            state_reason: "created".into(),
            state_actor: "officer".into(),
            activate_time: Some(time),
            deactivate_time: None,
            destruction: None,
            revision: Revision::FIRST,
        }),
        counter: counter(tenant_number, number, 1, 1),
        import_job: None,
    }
}

pub fn intent(tenant_number: u8, number: u8) -> Sealed<Intent> {
    sealed(Intent {
        id: IntentId::from_bytes(bytes(tenant_number, number)),
        kind: IntentKind::CreateKey,
        principal: "officer".into(),
        key_name: key_name(tenant_number, number),
        key_uid: key_uid(tenant_number, number),
        version: KeyVersion::FIRST,
        protection: Protection::HsmWrapped,
        resident_id: CkaId(bytes(tenant_number, number)),
        time: Timestamp::from_unix_ms(i64::from(number)),
        applied: None,
    })
}

pub fn request_id(tenant_number: u8, number: u8) -> RequestId {
    RequestId::from_bytes(bytes(tenant_number, number))
}

/// Applies the intent of the key, whose number is also the tenant's new manifest revision.
pub fn closing(tenant_number: u8, number: u8) -> Closing {
    let manifest = Manifest {
        tenant: tenant(tenant_number),
        revision: Revision::new(u64::from(number)),
        rows: RowSet::empty(),
    };
    let applied = Some(manifest.stamp());
    Closing {
        intent: sealed(Intent { applied, ..intent(tenant_number, number).row }),
        manifest: ManifestChange {
            expected: Revision::new(u64::from(number) - 1),
            manifest: sealed(manifest),
        },
        history: Vec::new(),
        request: Some(sealed(RequestRecord {
            tenant: tenant(tenant_number),
            principal: "officer".into(),
            request_id: request_id(tenant_number, number),
            method: "kms.v1.KeyService/CreateKey".into(),
            request_hash: [1; 32],
            result: vec![1, 2, 3],
            time: Timestamp::from_unix_ms(i64::from(number)),
        })),
    }
}

/// A record that is told apart by `number`.
pub fn record(number: u64) -> AuditRecord {
    let mut random = [0; 16];
    random[8..].copy_from_slice(&number.to_be_bytes());
    AuditRecord {
        time: Timestamp::from_unix_ms(1_700_000_000_000),
        event_id: EventId::from_random(random),
        item: None,
        phase: Phase::Complete,
        intent_id: None,
        operation: "kms.v1.CryptoService/Wrap".into(),
        principal: "spiffe://holdfast.test/app".into(),
        authn_method: "mtls".into(),
        source: "192.0.2.1:40000".into(),
        tenant: "t1".into(),
        resource: Some("tenants/t1/keys/k1".into()),
        key_uid: Some(key_uid(1, 1)),
        key_version: Some(KeyVersion::FIRST),
        from_version: None,
        context: None,
        decision: Decision::Allow { policies: vec!["static".into()] },
        policy_revision: format!("number-{number}").into(),
        result: "OK".into(),
        reason: None,
        queue_us: 10,
        hsm_us: 20,
        manifest: None,
        counter: None,
        count: None,
    }
}
