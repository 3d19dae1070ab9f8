//! What the reconciler makes of intents: whose outcome it writes, with which manifest, and whose it leaves alone.

use kms_core::audit::{AuditRecord, Phase};
use kms_core::id::Revision;
use kms_core::key::{Protection, Sealed};
use kms_server::service::{CreateKey, INTENT_GRACE, Reconciled, RotateKey};
use kms_server::store::Intent;

use crate::support::*;

const KEY: &str = "tenants/t/keys/k";
const CREATE: &str = "kms.v1.KeyService/CreateKey";
const ROTATE: &str = "kms.v1.KeyService/RotateKey";
/// External calls that end a creation: its outcome record, and the close of its intent.
const END: i64 = 2;

/// Creates a key in a process that dies before the outcome is in the log; returns the intent it leaves.
pub(crate) async fn create_without_outcome(
    world: &World,
    protection: Protection,
) -> Sealed<Intent> {
    let wanted = CreateKey { protection, ..create(KEY) };
    let probe = World::new().await;
    let before = probe.faults.calls();
    probe.kms.create_key(&probe.request(CREATE), wanted.clone()).await.unwrap();
    world.faults.arm(probe.faults.calls() - before - END, false);
    let died = world.kms.create_key(&world.request(CREATE), wanted).await.unwrap_err();
    assert_eq!(died.reason(), "OUTCOME_UNKNOWN");
    let mut intents = world.store.intents().await.unwrap().rows;
    assert_eq!(intents.len(), 1);
    intents.remove(0)
}

fn outcomes(world: &World) -> Vec<AuditRecord> {
    world.records().into_iter().filter(|record| record.phase == Phase::Outcome).collect()
}

#[tokio::test]
async fn a_missing_outcome_tells_the_manifest_of_its_own_mutation() {
    let world = World::new().await;
    let intent = create_without_outcome(&world, Protection::HsmWrapped).await;
    let stamp = intent.row.applied.clone().expect("it was committed");
    assert_eq!(stamp.revision, Revision::FIRST);
    let world = world.restart();
    let rotate = RotateKey { name: name(KEY), reason: String::new(), request_id: fresh_id() };
    world.kms.rotate_key(&world.request(ROTATE), rotate).await.unwrap();
    let done = world.kms.recover().await.unwrap();
    assert_eq!(done, Reconciled { finished: 1, ..Reconciled::default() });
    let told = outcomes(&world);
    assert_eq!(told.len(), 2, "the rollover's, and the late one");
    let late = told.iter().find(|record| record.intent_id == Some(intent.row.id)).unwrap();
    assert_eq!((late.result.as_str(), &late.manifest), ("OK", &Some(stamp)));
    let rolled = told.iter().find(|record| record.intent_id != Some(intent.row.id)).unwrap();
    assert_eq!(rolled.manifest.as_ref().unwrap().revision, Revision::new(2));
    assert_eq!(world.store.intents().await.unwrap().rows, []);
}

#[tokio::test]
async fn an_intent_that_its_own_task_ends_meanwhile_is_left_alone() {
    for protection in [Protection::HsmWrapped, Protection::HsmResident] {
        let world = World::new().await;
        let applied = create_without_outcome(&world, protection).await;
        let world = world.restart();
        let row = Intent { applied: None, ..applied.row.clone() };
        let listed = Sealed { row, ..applied.clone() };
        // Applied since it was listed: it is finished, not undone.
        world.faults.list_once(vec![listed.clone()]);
        let done = world.kms.recover().await.unwrap();
        assert_eq!(done, Reconciled { finished: 1, ..Reconciled::default() });
        assert_eq!(outcomes(&world).len(), 1);
        // Closed since it was listed: nothing is to be done.
        for stale in [listed, applied] {
            world.faults.list_once(vec![stale]);
            assert_eq!(world.kms.recover().await.unwrap(), Reconciled::default());
        }
        assert_eq!(outcomes(&world).len(), 1);
        world.wrap(KEY).await;
    }
}

#[tokio::test]
async fn a_periodic_run_takes_intents_that_are_old_enough_and_no_younger_ones() {
    let world = World::new().await;
    create_without_outcome(&world, Protection::HsmWrapped).await;
    let world = world.restart();
    world.clock.advance(INTENT_GRACE.saturating_sub(std::time::Duration::from_millis(1)));
    assert_eq!(world.kms.reconcile().await.unwrap(), Reconciled::default());
    world.clock.advance(std::time::Duration::from_millis(1));
    assert_eq!(world.kms.reconcile().await.unwrap().finished, 1);
}

/// What the log says of the manifest must not come from an edited one.
#[tokio::test]
async fn an_intent_that_contradicts_the_manifest_is_not_believed() {
    for edit in ["applied_digest = printf('%064d', 0)", "applied_revision = 2"] {
        let world = World::new().await;
        create_without_outcome(&world, Protection::HsmWrapped).await;
        let database = rusqlite::Connection::open(world.database()).unwrap();
        database.execute_batch(&format!("UPDATE intents SET {edit}")).unwrap();
        let world = world.restart();
        let done = world.kms.recover().await.unwrap();
        assert_eq!(done, Reconciled { failed: 1, ..Reconciled::default() }, "{edit}");
        assert_eq!(world.kms.counters().integrity_failures.read(), 1, "{edit}");
        assert!(outcomes(&world).is_empty(), "{edit}");
        assert_eq!(world.store.intents().await.unwrap().rows.len(), 1, "{edit}");
    }
}
