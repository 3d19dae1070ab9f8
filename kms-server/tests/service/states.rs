//! Every state against every use, as the published matrix says; rows are seeded in the state.

use kms_core::clock::Timestamp;
use kms_core::id::{IntentId, Randomness as _, Revision};
use kms_core::key::{Sealed, VersionRow};
use kms_core::lifecycle::Destruction;
use kms_core::name::KeyName;
use kms_core::state::{Use, Verdict, VersionState};
use kms_server::authz::ActionKind;
use kms_server::service::{GenerateDataKey, Rewrap, ServiceError, SystemRandomness};
use kms_server::store::{Closing, Intent, IntentKind, KeyRef, ManifestChange, VersionChoice};

use crate::support::*;

const KEY: &str = "tenants/t/keys/k";
const WRAP: &str = "kms.v1.CryptoService/Wrap";

/// Writes a state with good MACs, as a ceremony or a later release would.
async fn seed(world: &World, state: VersionState) {
    let stored = world.store.key(KeyRef::Name(name(KEY)), VersionChoice::Primary).await;
    let stored = stored.unwrap().unwrap();
    let Sealed { row: old, mac: _, generation } = stored.version.unwrap();
    let key: KeyName = name(KEY);
    let intent = Intent {
        id: IntentId::from_random(SystemRandomness.draw().unwrap()),
        kind: IntentKind::SuspendKeyVersion,
        principal: ADMIN.into(),
        key_name: key.clone(),
        key_uid: old.key_uid,
        version: old.version,
        protection: stored.key.row.protection,
        resident_id: kms_core::key::CkaId([0; 16]),
        time: old.create_time,
        applied: None,
    };
    let destruction = (state == VersionState::DestroyScheduled).then_some(Destruction {
        time: Timestamp::from_unix_ms(i64::MAX),
        returns_to: VersionState::Deactivated,
        despite_consumers: false,
        despite_recent_use: false,
    });
    let row = VersionRow { state, destruction, revision: old.revision.next(), ..old.clone() };
    let mut manifest = world.store.manifest(key.tenant().clone()).await.unwrap().unwrap().row;
    let expected = manifest.revision;
    manifest.revision = Revision::new(expected.get() + 1);
    let applied = Intent { applied: Some(manifest.stamp()), ..intent.clone() };
    let inputs = vec![
        row.mac_input(generation),
        manifest.mac_input(generation),
        intent.mac_input(generation),
        applied.mac_input(generation),
    ];
    let macs = world.hsm.mac(generation, inputs, world.request(WRAP).deadline).await.unwrap();
    let manifest = Sealed { row: manifest, mac: macs[1], generation };
    let id = intent.id;
    let intent = Sealed { row: intent, mac: macs[2], generation };
    world.store.open_intent(intent).await.unwrap();
    let closing = Closing {
        intent: Sealed { row: applied, mac: macs[3], generation },
        manifest: ManifestChange { expected, manifest },
        history: Vec::new(),
        request: None,
    };
    let row = Sealed { row, mac: macs[0], generation };
    world.store.update_version(old.revision, row, closing).await.unwrap();
    world.store.close_intent(id).await.unwrap();
}

fn allowed(verdict: Verdict, permitted: bool) -> bool {
    match verdict {
        Verdict::Yes | Verdict::PrimaryOrPinned | Verdict::Metadata => true,
        Verdict::WithPermission => permitted,
        Verdict::No | Verdict::NoWithAlert => false,
    }
}

#[tokio::test]
async fn every_use_is_permitted_exactly_as_the_matrix_says() {
    let plain: Vec<_> = ActionKind::ALL
        .iter()
        .copied()
        .filter(|action| {
            !matches!(action, ActionKind::UnwrapCompromised | ActionKind::RewrapCompromised)
        })
        .collect();
    for state in VersionState::ALL {
        let world = World::with(&[grant("plain", "t", &plain)]).await;
        world.create(KEY).await;
        let sealed = world.wrap(KEY).await.ciphertext;
        seed(&world, state).await;
        for who in [ADMIN, "plain"] {
            // Nothing of the old state may be left in memory.
            let fresh = world.restart_granting(&[grant("plain", "t", &plain)]);
            let (request, permitted) = (fresh.request_of(who, WRAP), who == ADMIN);
            let refused = ServiceError::KeyNotActive { state };
            let cell = format!("{state} by {who}");

            let protect = allowed(state.permits(Use::Protect), permitted);
            let wrapped = fresh.kms.wrap(&request, wrap(KEY, b"x")).await;
            assert_eq!(wrapped.is_ok(), protect, "{cell}: wrap");
            assert!(wrapped.is_ok() || wrapped.unwrap_err() == refused, "{cell}: wrap");
            let item = GenerateDataKey {
                key: KEY.parse().unwrap(),
                length_bytes: 32,
                context: context("/a"),
                with_plaintext: false,
            };
            let made = fresh.kms.generate_data_key(&request, item).await;
            assert_eq!(made.is_ok(), protect, "{cell}: data key");

            let process = allowed(state.permits(Use::Process), permitted);
            let opened = fresh.kms.unwrap(&request, unwrap(KEY, &sealed)).await;
            assert_eq!(opened.is_ok(), process, "{cell}: unwrap");
            assert!(opened.is_ok() || opened.unwrap_err() == refused, "{cell}: unwrap");

            // The only version is source and target: past the source, the target decides.
            let from = allowed(state.permits(Use::RewrapFrom), permitted);
            let item =
                Rewrap { key: name(KEY), ciphertext: sealed.clone(), context: context("/a") };
            let moved = fresh.kms.rewrap(&request, item).await;
            assert_eq!(moved.is_ok(), from && protect, "{cell}: rewrap");

            let version = format!("{KEY}/versions/1").parse().unwrap();
            let described = fresh.kms.describe_key_version(&request, &version).await.unwrap();
            assert_eq!(described.state, state, "{cell}: describe");
            let counters = fresh.kms.counters();
            let alerts = counters.compromised_uses.read() + counters.destroy_scheduled_uses.read();
            let expected = match (state, permitted) {
                (VersionState::Compromised, true) => 2,
                // Wrap and data key, unwrap, rewrap: whatever is wanted of it.
                (VersionState::DestroyScheduled, _) => 4,
                _ => 0,
            };
            assert_eq!(alerts, expected, "{cell}: alerts");
        }
    }
}

#[tokio::test]
async fn a_compromised_version_is_rewrapped_to_the_new_primary_with_permission_only() {
    let grants = [grant("plain", "t", &[ActionKind::Rewrap])];
    let world = World::with(&grants).await;
    world.create(KEY).await;
    let sealed = world.wrap(KEY).await.ciphertext;
    seed(&world, VersionState::Compromised).await;
    let world = world.restart_granting(&grants);
    let rotate = kms_server::service::RotateKey {
        name: name(KEY),
        reason: "compromised".into(),
        request_id: fresh_id(),
    };
    world.kms.rotate_key(&world.request("kms.v1.KeyService/RotateKey"), rotate).await.unwrap();
    let item = || Rewrap { key: name(KEY), ciphertext: sealed.clone(), context: context("/a") };
    let refused = world.kms.rewrap(&world.request_of("plain", WRAP), item()).await.unwrap_err();
    assert_eq!(refused, ServiceError::KeyNotActive { state: VersionState::Compromised });
    let told = world.last().decision;
    assert!(matches!(told, kms_core::audit::Decision::Deny { .. }), "{told:?}");
    let moved = world.kms.rewrap(&world.request(WRAP), item()).await.unwrap();
    assert!(moved.changed);
    match world.last().decision {
        kms_core::audit::Decision::Allow { policies } => assert_eq!(policies.len(), 2),
        other => panic!("{other:?}"),
    }
    let opened = world.kms.unwrap(&world.request(WRAP), unwrap(KEY, &moved.ciphertext)).await;
    assert_eq!(opened.unwrap().plaintext.expose(), b"secret");
}

/// Handlers run on a multi-threaded runtime: every method's future must be `Send`.
#[tokio::test]
async fn every_use_case_can_run_as_a_task() {
    fn sendable<T: Send>(future: T) -> T {
        future
    }
    let world = World::new().await;
    world.create(KEY).await;
    let (kms, request) = (&world.kms, world.request(WRAP));
    let sealed = sendable(kms.wrap(&request, wrap(KEY, b"x"))).await.unwrap().ciphertext;
    let batch = sendable(kms.batch_wrap(&request, vec![Ok(wrap(KEY, b"x"))])).await;
    assert!(batch.unwrap()[0].is_ok());
    let batch = sendable(kms.batch_unwrap(&request, vec![Ok(unwrap(KEY, &sealed))])).await;
    assert!(batch.unwrap()[0].is_ok());
    assert!(sendable(kms.batch_rewrap(&request, vec![])).await.is_err());
    assert!(sendable(kms.batch_generate_data_key(&request, vec![])).await.is_err());
    assert!(sendable(kms.unwrap(&request, unwrap(KEY, &sealed))).await.is_ok());
    assert!(sendable(kms.describe_ciphertext(&request, &sealed)).await.is_ok());
    assert!(sendable(kms.describe_key(&request, &name(KEY))).await.is_ok());
    assert!(sendable(kms.create_key(&request, create("tenants/t/keys/b"))).await.is_ok());
    assert!(sendable(kms.reconcile()).await.is_ok());
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let run = tokio::spawn({
        let kms = kms.clone();
        async move { kms.run(std::time::Duration::from_mins(1), stopped).await }
    });
    stop.send(true).unwrap();
    run.await.unwrap();
    let error = sendable(kms.refuse(&request, ServiceError::field("key", "malformed"))).await;
    assert_eq!(
        (error.reason(), world.last().result.as_str()),
        ("FIELD_VIOLATION", "FIELD_VIOLATION")
    );
}
