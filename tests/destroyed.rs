//! A version whose key material is gone: nothing opens with it, and what it was is still told.
//!
//! A destruction comes seven days after it was asked for, at the soonest, so the row is written through the store with good
//! MACs, as its last step leaves it. That takes the token, whose module reads SOFTHSM2_CONF from the environment: the test
//! runs itself once more with it set (ADR 0006).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failure in a test's helper is a failed test"
)]

mod common;

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use common::{Client, Refusal, Rig, refusal};
use kms_core::clock::{Clock as _, SystemClock};
use kms_core::id::{IntentId, KeyVersion, Revision};
use kms_core::key::{CkaId, Material, Sealed, VersionRow, WrappedKey};
use kms_core::name::KeyName;
use kms_core::state::VersionState;
use kms_hsm::Hsm as _;
use kms_hsm::pkcs11::{Pkcs11Config, Pkcs11Hsm, TokenSelector};
use kms_proto::v1 as proto;
use kms_server::config::SecretSource;
use kms_server::store::sqlite::SqliteStore;
use kms_server::store::{
    Closing, Intent, IntentKind, KeyRef, ManifestChange, Store as _, VersionChoice,
};
use tonic::{Code, Response};

const TEST: &str = "a_destroyed_version_is_refused_for_everything_and_described";
/// Set in the child: the dev directory.
const CHILD_VARIABLE: &str = "HOLDFAST_DESTROYED_ROOT";
const KEY_ID: &str = "destroyed";

/// Destroys version 1 in the child.
fn destroy(rig: &Rig) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([TEST, "--exact", "--nocapture"])
        .env("SOFTHSM2_CONF", rig.path("softhsm2.conf"))
        .env(CHILD_VARIABLE, rig.path(""))
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.contains("1 passed"), "{output:?}");
}

async fn destroy_here(directory: &Path) {
    let clock = Arc::new(SystemClock);
    let deadline = || SystemClock.monotonic() + Duration::from_secs(30);
    let store = SqliteStore::open(&directory.join("store.db")).unwrap();
    let serial = std::fs::read_to_string(directory.join("token-serial")).unwrap();
    let token = TokenSelector::Serial(serial.trim().to_owned());
    let mut config = Pkcs11Config::new(kms_testkit::softhsm::module(), token);
    config.token_dir = Some(directory.join("tokens"));
    let pin = SecretSource::File(directory.join("user-pin")).read_pin().unwrap();
    let hsm = Pkcs11Hsm::start(config, pin, clock.clone()).unwrap();
    let pins = store.root_pins().await.unwrap().into_iter().map(|(pin, _)| pin).collect();
    hsm.open_roots(pins, deadline()).await.unwrap();

    let key: KeyName = common::calls::key_name(KEY_ID).parse().unwrap();
    let choice = VersionChoice::Number(KeyVersion::FIRST);
    let stored = store.key(KeyRef::Name(key.clone()), choice).await.unwrap().unwrap();
    let Sealed { row: old, mac: old_mac, generation } = stored.version.unwrap();
    let row = VersionRow {
        state: VersionState::Destroyed,
        material: Material::Wrapped(WrappedKey(vec![])),
        state_time: clock.now(),
        state_reason: "the window is over".into(),
        revision: old.revision.next(),
        ..old.clone()
    };
    let mac = hsm.mac(generation, vec![row.mac_input(generation)], deadline()).await.unwrap()[0];
    let mut manifest = store.manifest(key.tenant().clone()).await.unwrap().unwrap().row;
    let expected = manifest.revision;
    manifest.revision = Revision::new(expected.get() + 1);
    manifest.rows.remove(&old_mac);
    manifest.rows.insert(&mac);
    let intent = Intent {
        id: IntentId::from_random([0x40; 16]),
        kind: IntentKind::SuspendKeyVersion,
        principal: common::OPERATOR.into(),
        key_name: key,
        key_uid: old.key_uid,
        version: old.version,
        protection: stored.key.row.protection,
        resident_id: CkaId([0; 16]),
        time: clock.now(),
        applied: None,
    };
    let applied = Intent { applied: Some(manifest.stamp()), ..intent.clone() };
    let inputs = vec![
        manifest.mac_input(generation),
        intent.mac_input(generation),
        applied.mac_input(generation),
    ];
    let macs = hsm.mac(generation, inputs, deadline()).await.unwrap();
    let id = intent.id;
    store.open_intent(Sealed { row: intent, mac: macs[1], generation }).await.unwrap();
    let closing = Closing {
        intent: Sealed { row: applied, mac: macs[2], generation },
        manifest: ManifestChange {
            expected,
            manifest: Sealed { row: manifest, mac: macs[0], generation },
        },
        history: Vec::new(),
        request: None,
    };
    let row = Sealed { row, mac, generation };
    store.update_version(old.revision, row, closing).await.unwrap();
    store.close_intent(id).await.unwrap();
    store.close().await;
    hsm.close();
}

fn is_destroyed(refused: &Refusal) {
    refuses_the_destroyed(refused, "KEY_NOT_ACTIVE");
}

fn leads_nowhere(refused: &Refusal) {
    refuses_the_destroyed(refused, "ILLEGAL_TRANSITION");
}

fn refuses_the_destroyed(refused: &Refusal, reason: &str) {
    refused.is(Code::FailedPrecondition, reason);
    assert_eq!(refused.facts.get("state").map(String::as_str), Some("DESTROYED"), "{refused:?}");
    assert!(!refused.retryable, "{refused:?}");
}

async fn described(client: &Client, version: &str) -> proto::KeyVersion {
    let request = proto::DescribeKeyVersionRequest { name: version.to_owned() };
    client.keys().describe_key_version(request).await.unwrap().into_inner()
}

#[test]
fn a_destroyed_version_is_refused_for_everything_and_described() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    match std::env::var_os(CHILD_VARIABLE) {
        Some(directory) => runtime.block_on(destroy_here(directory.as_ref())),
        None => runtime.block_on(refused_and_described()),
    }
}

async fn refused_and_described() {
    let server = Rig::new().start();
    let client = server.operator().await;
    let key = client.create(KEY_ID).await.name;
    let old = client.wrap(&key, b"old", &[]).await.unwrap().ciphertext;
    client.rotate(&key).await;
    let version = format!("{key}/versions/1");
    let before = described(&client, &version).await;
    let mut rig = server.stop().await;
    destroy(&rig);
    // The audit log knows nothing of what was written beside the server.
    rig.arguments = rig.accepting();
    let server = rig.start();
    let client = server.operator().await;

    is_destroyed(&refusal(client.unwrap(&key, &old, &[]).await));
    is_destroyed(&refusal(client.wrap(&version, b"x", &[]).await));
    let context = HashMap::default();
    let rewrap = proto::RewrapRequest { key: key.clone(), ciphertext: old.clone(), context };
    is_destroyed(&refusal(client.crypto().rewrap(rewrap).await));
    let (name, reason) = (version.clone(), "an incident".to_owned());
    let request_id = common::request_id();
    let suspend = proto::SuspendKeyVersionRequest { name, reason, request_id };
    leads_nowhere(&refusal(client.keys().suspend_key_version(suspend).await));
    let (name, reason) = (version.clone(), "regret".to_owned());
    let request_id = common::request_id();
    let resume = proto::ResumeKeyVersionRequest { name, reason, request_id };
    leads_nowhere(&refusal(client.keys().resume_key_version(resume).await));

    let after = described(&client, &version).await;
    assert_eq!((after.state(), after.primary), (proto::VersionState::Destroyed, false));
    assert_eq!(after.state_reason, "the window is over");
    assert_eq!(
        (&after.name, after.version, after.create_time, after.revision),
        (&before.name, 1, before.create_time, before.revision + 1)
    );
    let list = proto::ListKeyVersionsRequest { parent: key.clone(), ..Default::default() };
    let listed = client.keys().list_key_versions(list).await.map(Response::into_inner).unwrap();
    assert_eq!(listed.versions.len(), 2);
    // What the envelope says needs no key.
    let describe = proto::DescribeCiphertextRequest { ciphertext: old };
    let told = client.crypto().describe_ciphertext(describe).await.unwrap().into_inner();
    assert_eq!((told.key_version, told.current), (version, false));

    let new = client.wrap(&key, b"new", &[]).await.unwrap();
    assert_eq!(client.unwrap(&key, &new.ciphertext, &[]).await.unwrap(), b"new");
    server.stop().await;
}
