//! Golden vectors of what row MACs cover, and for every field an edit that must show.
//!
//! HOLDFAST_WRITE_GOLDEN=1 writes the file anew. A changed line is a format change: rows that are stored no longer
//! verify, so it needs a changelog line.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "test helpers: a failure here is a failed test"
)]

use std::collections::BTreeMap;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use kms_core::alias::AliasRow;
use kms_core::clock::Timestamp;
use kms_core::consumer::ConsumerRow;
use kms_core::id::{KeyUid, KeyVersion, Revision, RootGeneration};
use kms_core::import::{ImportMethod, RsaSize};
use kms_core::import_job::ImportJobRow;
use kms_core::key::{
    CheckBlob, CkaId, CounterRow, KeyRow, KeyState, Material, Origin, Protection, Purpose, RowMac,
    Sensitivity, VersionRow, WrappedKey,
};
use kms_core::lifecycle::{Destruction, HistoryChange, HistoryRow, KeyDestruction, Rotation};
use kms_core::manifest::{Manifest, RowSet};
use kms_core::name::{AliasName, KeyName, TenantName};
use kms_core::root::RootPin;
use kms_core::state::VersionState;
use kms_core::usage::{Tally, UsageRow, Uses};

const GOLDEN_PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/row_macs.json");

fn uid(byte: u8) -> KeyUid {
    KeyUid::from_random([byte; 16])
}

fn time(unix_ms: i64) -> Timestamp {
    Timestamp::from_unix_ms(unix_ms)
}

fn version(number: u32) -> KeyVersion {
    KeyVersion::new(number).unwrap()
}

fn tenant(id: &str) -> TenantName {
    TenantName::from_id(id).unwrap()
}

fn key_name(tenant_id: &str, key_id: &str) -> KeyName {
    KeyName::new(tenant(tenant_id), key_id).unwrap()
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn key_row() -> KeyRow {
    KeyRow {
        uid: uid(1),
        name: key_name("acme", "backups"),
        purpose: Purpose::Wrap,
        protection: Protection::HsmWrapped,
        state: KeyState::Enabled,
        owner: "storage team".into(),
        sensitivity: Sensitivity::Medium,
        usage: "nightly backups".into(),
        cryptoperiod: Duration::from_hours(24 * 90),
        recipient_usage_period: Duration::from_hours(24 * 900),
        labels: labels(&[("env", "prod"), ("site", "")]),
        create_time: time(1_700_000_000_000),
        update_time: time(1_700_000_000_001),
        revision: Revision::new(3),
        primary: version(1),
        latest: version(2),
        consumers: 0,
        rotation: None,
        destruction: None,
    }
}

fn key_destruction(at: i64) -> KeyDestruction {
    let (despite_consumers, despite_recent_use, begun) = (false, false, false);
    KeyDestruction { time: time(at), despite_consumers, despite_recent_use, begun }
}

fn version_row() -> VersionRow {
    VersionRow {
        key_uid: uid(1),
        version: KeyVersion::FIRST,
        state: VersionState::Active,
        material: Material::Wrapped(WrappedKey(vec![2; 40])),
        check: CheckBlob { iv: [3; 12], ciphertext_and_tag: vec![4; 32] },
        origin: Origin::Generated,
        create_time: time(5),
        state_time: time(6),
        state_reason: "created".into(),
        state_actor: "spiffe://td/a".into(),
        activate_time: Some(time(5)),
        deactivate_time: None,
        destruction: None,
        revision: Revision::FIRST,
    }
}

fn counter_row() -> CounterRow {
    CounterRow { key_uid: uid(1), version: version(1), leased: 1024, revision: Revision::new(7) }
}

fn usage_row() -> UsageRow {
    let tally = |count, first, last| Tally { count, span: Some((time(first), time(last))) };
    let uses = Uses {
        protect: tally(1, 2, 3),
        process: tally(4, 5, 6),
        rewrap: tally(7, 8, 9),
        refused: tally(10, 11, 12),
    };
    UsageRow { key_uid: uid(1), version: version(1), uses, revision: Revision::new(7) }
}

fn history_row() -> HistoryRow {
    HistoryRow {
        key_uid: uid(1),
        change: HistoryChange::State {
            version: version(2),
            from: Some(VersionState::Active),
            to: VersionState::Suspended,
        },
        old_revision: Revision::new(4),
        revision: Revision::new(5),
        time: time(1_700_000_000_002),
        actor: "spiffe://td/a".into(),
        reason: "incident 7".into(),
    }
}

fn import_job_row() -> ImportJobRow {
    ImportJobRow {
        id: CkaId([8; 16]),
        key: key_name("acme", "backups"),
        key_uid: uid(1),
        method: ImportMethod::RsaOaepSha256AesKwp,
        size: RsaSize::Bits3072,
        public_key: vec![9; 422],
        create_time: time(1_700_000_000_000),
        expire_time: time(1_700_086_400_000),
        actor: "spiffe://acme/officer".into(),
    }
}

fn alias_row() -> AliasRow {
    AliasRow {
        name: AliasName::new(tenant("acme"), "nightly").unwrap(),
        key: key_name("acme", "backups"),
        key_uid: uid(1),
        create_time: time(1_700_000_000_004),
        update_time: time(1_700_000_000_005),
        actor: "spiffe://td/a".into(),
        reason: "moved to the new key".into(),
        revision: Revision::new(6),
    }
}

fn consumer_row() -> ConsumerRow {
    ConsumerRow {
        key_uid: uid(1),
        consumer_id: "backup.nightly".into(),
        description: "storage team".into(),
        create_time: time(1_700_000_000_003),
        actor: "spiffe://td/a".into(),
        revision: Revision::new(4),
    }
}

fn root_pin() -> RootPin {
    RootPin {
        generation: RootGeneration::FIRST,
        token_serial: "0123456789abcdef".into(),
        wrap_id: CkaId([1; 16]),
        wrap_check: vec![2; 40],
        mac_id: CkaId([3; 16]),
        mac_check: vec![4; 32],
    }
}

fn manifest() -> Manifest {
    let mut rows = RowSet::empty();
    rows.insert(&RowMac([8; 32]));
    Manifest { tenant: tenant("acme"), revision: Revision::new(9), rows }
}

/// Every kind of row, and every form that a row can take.
fn inputs() -> Vec<(&'static str, Vec<u8>)> {
    let first = RootGeneration::FIRST;
    let bare = KeyRow {
        protection: Protection::HsmResident,
        labels: BTreeMap::new(),
        create_time: time(-1),
        ..key_row()
    };
    let resident = VersionRow {
        material: Material::Resident(CkaId([2; 16])),
        deactivate_time: Some(time(0)),
        ..version_row()
    };
    vec![
        ("keys", key_row().mac_input(first)),
        ("keys, resident, without labels, before 1970", bare.mac_input(first)),
        ("keys, rotated by period", {
            KeyRow { rotation: Some(rotation(90 * 86_400, 8)), ..key_row() }.mac_input(first)
        }),
        ("keys, disabled", { KeyRow { state: KeyState::Disabled, ..key_row() }.mac_input(first) }),
        ("keys, destruction scheduled", {
            let state = KeyState::DestroyScheduled;
            let destruction = Some(key_destruction(8));
            KeyRow { state, destruction, ..key_row() }.mac_input(first)
        }),
        ("keys, another generation", key_row().mac_input(RootGeneration::new(2).unwrap())),
        ("aliases", alias_row().mac_input(first)),
        ("consumers", consumer_row().mac_input(first)),
        ("import_jobs", import_job_row().mac_input(first)),
        ("versions, wrapped", version_row().mac_input(first)),
        ("versions, resident, deactivation planned", resident.mac_input(first)),
        ("versions, staged without a date", {
            let row = VersionRow {
                state: VersionState::PreActivation,
                activate_time: None,
                ..version_row()
            };
            row.mac_input(first)
        }),
        ("versions, destruction scheduled", {
            let destruction = Some(destruction(7, VersionState::Compromised));
            let state = VersionState::DestroyScheduled;
            VersionRow { state, destruction, ..version_row() }.mac_input(first)
        }),
        ("history, a state", history_row().mac_input(first)),
        ("history, a version that was generated", {
            let to = VersionState::Active;
            let change = HistoryChange::State { version: version(1), from: None, to };
            HistoryRow { change, old_revision: Revision::new(0), ..history_row() }.mac_input(first)
        }),
        ("history, fields of a key", {
            let change = HistoryChange::Fields { detail: r#"{"owner":["a","b"]}"#.into() };
            HistoryRow { change, ..history_row() }.mac_input(first)
        }),
        ("usage", usage_row().mac_input(first)),
        ("usage, never used", {
            UsageRow { uses: Uses::default(), ..usage_row() }.mac_input(first)
        }),
        ("counters", counter_row().mac_input(first)),
        ("roots", root_pin().mac_input()),
        ("manifests", manifest().mac_input(first)),
        ("manifests, no rows", Manifest::empty(tenant("acme")).mac_input(first)),
    ]
}

#[test]
fn mac_inputs_are_byte_for_byte_those_of_the_golden_file() {
    let made: BTreeMap<_, _> = inputs()
        .into_iter()
        .map(|(name, input)| {
            // The state of a manifest's set hash is 2 KiB: its hash pins it as well.
            let hash = HEXLOWER.encode(digest(&SHA256, &input).as_ref());
            let bytes = if input.len() < 2048 { HEXLOWER.encode(&input) } else { String::new() };
            (name.to_owned(), [hash, bytes])
        })
        .collect();
    if std::env::var_os("HOLDFAST_WRITE_GOLDEN").is_some() {
        let text = serde_json::to_string_pretty(&made).unwrap() + "\n";
        std::fs::write(GOLDEN_PATH, text).unwrap();
    }
    let text = std::fs::read_to_string(GOLDEN_PATH).unwrap();
    let golden: BTreeMap<String, [String; 2]> = serde_json::from_str(&text).unwrap();
    assert_eq!(made, golden);
}

/// Asserts that each edit, and each pair of edits, gives other bytes.
fn assert_all_differ<R: Clone>(row: &R, edits: &[fn(&mut R)], mac_input: impl Fn(&R) -> Vec<u8>) {
    let mut seen = vec![mac_input(row)];
    for (number, edit) in edits.iter().enumerate() {
        let mut edited = row.clone();
        edit(&mut edited);
        let input = mac_input(&edited);
        assert!(!seen.contains(&input), "edit {number} does not show");
        seen.push(input);
    }
}

#[test]
fn every_edit_of_a_key_row_shows() {
    let edits: [fn(&mut KeyRow); 29] = [
        |row| row.uid = uid(9),
        |row| row.name = key_name("other", "backups"),
        |row| row.name = key_name("acme", "other"),
        |row| row.protection = Protection::HsmResident,
        |row| row.state = KeyState::Disabled,
        |row| row.owner = "x".into(),
        |row| row.sensitivity = Sensitivity::High,
        |row| row.usage = "x".into(),
        |row| row.cryptoperiod = Duration::from_hours(24 * 91),
        |row| row.recipient_usage_period = Duration::from_hours(24 * 901),
        |row| row.labels = labels(&[("env", "prod")]),
        |row| row.labels = labels(&[("env", "test"), ("site", "")]),
        |row| row.labels = labels(&[("env", "prod"), ("site", "a")]),
        |row| row.labels = labels(&[("envprod", ""), ("site", "")]),
        |row| row.create_time = time(0),
        |row| row.update_time = time(0),
        |row| row.revision = row.revision.next(),
        |row| row.primary = version(2),
        |row| row.latest = version(3),
        |row| row.consumers = 1,
        |row| row.rotation = Some(rotation(1, 0)),
        |row| row.rotation = Some(rotation(2, 0)),
        |row| row.rotation = Some(rotation(2, 1)),
        |row| row.destruction = Some(key_destruction(1)),
        |row| row.destruction = Some(key_destruction(2)),
        |row| {
            row.destruction =
                Some(KeyDestruction { despite_consumers: true, ..key_destruction(1) });
        },
        |row| {
            row.destruction =
                Some(KeyDestruction { despite_recent_use: true, ..key_destruction(1) });
        },
        |row| row.destruction = Some(KeyDestruction { begun: true, ..key_destruction(1) }),
        // An owner that grows into the next field.
        |row| row.owner = "storage teamMEDIUM".into(),
    ];
    // There is one purpose as yet.
    assert_all_differ(&key_row(), &edits, |row| row.mac_input(RootGeneration::FIRST));
}

#[test]
fn every_edit_of_an_alias_row_shows() {
    let edits: [fn(&mut AliasRow); 10] = [
        |row| row.name = AliasName::new(tenant("other"), "nightly").unwrap(),
        |row| row.name = AliasName::new(tenant("acme"), "other").unwrap(),
        |row| row.key = key_name("other", "backups"),
        |row| row.key = key_name("acme", "other"),
        |row| row.key_uid = uid(9),
        |row| row.create_time = time(0),
        |row| row.update_time = time(0),
        |row| row.actor = "x".into(),
        |row| row.reason = "x".into(),
        |row| row.revision = row.revision.next(),
    ];
    assert_all_differ(&alias_row(), &edits, |row| row.mac_input(RootGeneration::FIRST));
}

#[test]
fn every_edit_of_a_version_row_shows() {
    let edits: [fn(&mut VersionRow); 22] = [
        |row| row.key_uid = uid(9),
        |row| row.version = version(2),
        |row| row.state = VersionState::Deactivated,
        |row| row.material = Material::Wrapped(WrappedKey(vec![9; 40])),
        |row| row.material = Material::Resident(CkaId([2; 16])),
        |row| row.material = Material::Resident(CkaId([9; 16])),
        |row| row.origin = Origin::Imported,
        |row| row.check.iv = [9; 12],
        |row| row.check.ciphertext_and_tag = vec![9; 32],
        |row| row.create_time = time(9),
        |row| row.state_time = time(9),
        |row| row.state_reason = "x".into(),
        |row| row.state_actor = "x".into(),
        |row| row.activate_time = None,
        |row| row.activate_time = Some(time(0)),
        |row| row.deactivate_time = Some(time(0)),
        |row| row.destruction = Some(destruction(0, VersionState::Deactivated)),
        |row| row.destruction = Some(destruction(0, VersionState::Compromised)),
        |row| row.destruction = Some(destruction(1, VersionState::Compromised)),
        |row| {
            let planned = destruction(1, VersionState::Compromised);
            row.destruction = Some(Destruction { despite_consumers: true, ..planned });
        },
        |row| {
            let planned = destruction(1, VersionState::Compromised);
            row.destruction = Some(Destruction { despite_recent_use: true, ..planned });
        },
        |row| row.revision = row.revision.next(),
    ];
    assert_all_differ(&version_row(), &edits, |row| row.mac_input(RootGeneration::FIRST));
}

fn rotation(seconds: u64, due: i64) -> Rotation {
    Rotation { period: Duration::from_secs(seconds), due: time(due) }
}

fn destruction(unix_ms: i64, returns_to: VersionState) -> Destruction {
    Destruction {
        time: time(unix_ms),
        returns_to,
        despite_consumers: false,
        despite_recent_use: false,
    }
}

#[test]
fn every_edit_of_an_import_job_row_shows() {
    let edits: [fn(&mut ImportJobRow); 10] = [
        |row| row.id = CkaId([9; 16]),
        |row| row.key = key_name("x", "backups"),
        |row| row.key = key_name("acme", "x"),
        |row| row.key_uid = uid(2),
        |row| row.method = ImportMethod::RsaOaepSha1,
        |row| row.size = RsaSize::Bits4096,
        |row| row.public_key.push(0),
        |row| row.create_time = time(9),
        |row| row.expire_time = time(9),
        |row| row.actor = "x".into(),
    ];
    assert_all_differ(&import_job_row(), &edits, |row| row.mac_input(RootGeneration::FIRST));
}

#[test]
fn every_edit_of_a_consumer_row_shows() {
    let edits: [fn(&mut ConsumerRow); 6] = [
        |row| row.key_uid = uid(9),
        |row| row.consumer_id = "x".into(),
        |row| row.description = "x".into(),
        |row| row.create_time = time(9),
        |row| row.actor = "x".into(),
        |row| row.revision = row.revision.next(),
    ];
    assert_all_differ(&consumer_row(), &edits, |row| row.mac_input(RootGeneration::FIRST));
}

#[test]
fn every_edit_of_a_history_row_shows() {
    let state = |number, from, to| HistoryChange::State { version: version(number), from, to };
    let (active, suspended) = (VersionState::Active, VersionState::Suspended);
    let changes = [
        state(3, Some(active), suspended),
        state(2, None, suspended),
        state(2, Some(active), VersionState::Compromised),
        HistoryChange::Fields { detail: "{}".into() },
        HistoryChange::Fields { detail: String::new() },
    ];
    let first = RootGeneration::FIRST;
    let mut seen = vec![history_row().mac_input(first)];
    for change in changes {
        let input = HistoryRow { change, ..history_row() }.mac_input(first);
        assert!(!seen.contains(&input));
        seen.push(input);
    }
    let edits: [fn(&mut HistoryRow); 6] = [
        |row| row.key_uid = uid(9),
        |row| row.old_revision = row.old_revision.next(),
        |row| row.revision = row.revision.next(),
        |row| row.time = time(0),
        |row| row.actor = "x".into(),
        |row| row.reason = "x".into(),
    ];
    assert_all_differ(&history_row(), &edits, |row| row.mac_input(first));
}

#[test]
fn every_edit_of_a_counter_row_shows() {
    let edits: [fn(&mut CounterRow); 4] = [
        |row| row.key_uid = uid(9),
        |row| row.version = version(2),
        |row| row.leased = 1023,
        |row| row.revision = row.revision.next(),
    ];
    assert_all_differ(&counter_row(), &edits, |row| row.mac_input(RootGeneration::FIRST));
}

#[test]
fn every_edit_of_a_usage_row_shows() {
    let edits: [fn(&mut UsageRow); 11] = [
        |row| row.key_uid = uid(9),
        |row| row.version = version(2),
        |row| row.revision = row.revision.next(),
        |row| row.uses.protect.count = 2,
        |row| row.uses.process.span = Some((time(4), time(6))),
        |row| row.uses.process.span = Some((time(5), time(7))),
        |row| row.uses.rewrap.count = 8,
        |row| row.uses.rewrap.span = None,
        |row| row.uses.refused.count = 11,
        |row| row.uses.refused.span = Some((time(11), time(13))),
        |row| std::mem::swap(&mut row.uses.protect, &mut row.uses.process),
    ];
    assert_all_differ(&usage_row(), &edits, |row| row.mac_input(RootGeneration::FIRST));
}

#[test]
fn every_edit_of_a_root_pin_shows() {
    let edits: [fn(&mut RootPin); 6] = [
        |pin| pin.generation = RootGeneration::new(2).unwrap(),
        |pin| pin.token_serial = "fedcba9876543210".into(),
        |pin| pin.wrap_id = CkaId([9; 16]),
        |pin| pin.wrap_check = vec![9; 40],
        |pin| pin.mac_id = CkaId([9; 16]),
        |pin| pin.mac_check = vec![9; 32],
    ];
    assert_all_differ(&root_pin(), &edits, RootPin::mac_input);
}

#[test]
fn every_edit_of_a_manifest_shows() {
    let edits: [fn(&mut Manifest); 4] = [
        |manifest| manifest.tenant = tenant("other"),
        |manifest| manifest.revision = manifest.revision.next(),
        |manifest| manifest.rows.insert(&RowMac([9; 32])),
        |manifest| manifest.rows.remove(&RowMac([8; 32])),
    ];
    assert_all_differ(&manifest(), &edits, |row| row.mac_input(RootGeneration::FIRST));
}

#[test]
fn the_generation_of_the_root_shows_in_every_row() {
    let second = RootGeneration::new(2).unwrap();
    let first = RootGeneration::FIRST;
    assert_ne!(key_row().mac_input(first), key_row().mac_input(second));
    assert_ne!(version_row().mac_input(first), version_row().mac_input(second));
    assert_ne!(counter_row().mac_input(first), counter_row().mac_input(second));
    assert_ne!(manifest().mac_input(first), manifest().mac_input(second));
}
