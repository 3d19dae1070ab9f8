//! What the reconciler must not do on the word of a database that was edited, or put back to what it once was.
//!
//! A key that lives in the token alone has no other copy: destroying it is the one thing that no backup mends.

use std::collections::HashSet;

use kms_core::audit::Phase;
use kms_core::id::{IntentId, RootGeneration};
use kms_core::key::{CkaId, Protection, Sealed};
use kms_server::service::{CreateKey, INTENT_GRACE, Reconciled};
use kms_server::store::{Intent, IntentKind, KeyRef, VersionChoice};

use crate::support::*;

const KEY: &str = "tenants/t/keys/k";
const CREATE: &str = "kms.v1.KeyService/CreateKey";
/// External calls that end a creation, from its commit on: commit, outcome record, close of the intent.
const COMMIT_AND_END: i64 = 3;

fn sql(world: &World, statement: &str) {
    let database = rusqlite::Connection::open(world.database()).unwrap();
    database.execute_batch(&format!("PRAGMA foreign_keys = OFF; {statement}")).unwrap();
}

const UNGUARD: &str =
    "DROP TRIGGER keys_stay; DROP TRIGGER versions_stay; DROP TRIGGER versions_guard;";

fn resident() -> CreateKey {
    CreateKey { protection: Protection::HsmResident, ..create(KEY) }
}

async fn create_resident(world: &World) {
    world.kms.create_key(&world.request(CREATE), resident()).await.unwrap();
}

/// The intent that the last creation left in the log, as it stood in the store before the commit.
fn intent_before_commit(world: &World) -> Intent {
    let record = world.records().into_iter().rfind(|record| record.phase == Phase::Intent).unwrap();
    let id: IntentId = record.intent_id.unwrap();
    Intent {
        id,
        kind: IntentKind::CreateKey,
        principal: ADMIN.into(),
        key_name: name(KEY),
        key_uid: record.key_uid.unwrap(),
        version: record.key_version.unwrap(),
        protection: Protection::HsmResident,
        resident_id: CkaId(*id.as_bytes()),
        time: record.time,
        applied: None,
    }
}

async fn seal(world: &World, row: Intent) -> Sealed<Intent> {
    let generation = RootGeneration::FIRST;
    let deadline = world.request(CREATE).deadline;
    let macs = world.hsm.mac(generation, vec![row.mac_input(generation)], deadline).await.unwrap();
    Sealed { row, mac: macs[0], generation }
}

async fn objects(world: &World) -> HashSet<CkaId> {
    let deadline = world.request(CREATE).deadline;
    world.hsm.list_token_keys(deadline).await.unwrap().residents.into_iter().collect()
}

fn abandoned(world: &World) -> usize {
    world.records().iter().filter(|record| record.result == "ABANDONED").count()
}

/// Creates a key in a process that dies when it commits: the object is there, the rows are not.
async fn create_and_die_at_the_commit(world: &World) {
    let probe = World::new().await;
    create_resident(&probe).await;
    let before = probe.faults.calls();
    let second = CreateKey { name: name("tenants/t/keys/second"), ..resident() };
    probe.kms.create_key(&probe.request(CREATE), second.clone()).await.unwrap();
    world.faults.arm(probe.faults.calls() - before - COMMIT_AND_END, false);
    world.kms.create_key(&world.request(CREATE), second).await.unwrap_err();
    let open = world.store.intents().await.unwrap().rows;
    assert!(open[0].row.applied.is_none());
    assert!(objects(world).await.contains(&open[0].row.resident_id));
}

#[tokio::test]
async fn a_forged_intent_destroys_no_key_and_stays_for_the_operator() {
    let world = World::new().await;
    create_resident(&world).await;
    let before = objects(&world).await;
    let genuine = intent_before_commit(&world);
    // All that is public or in the database: only the MAC cannot be made.
    let other = IntentId::from_bytes([7; 16]);
    let forged = Sealed {
        row: Intent { id: other, ..genuine },
        mac: kms_core::key::RowMac([7; 32]),
        generation: RootGeneration::FIRST,
    };
    world.store.open_intent(forged).await.unwrap();
    sql(&world, &format!("{UNGUARD} UPDATE versions SET state = 'DESTROYED', revision = 9"));
    let world = world.restart();
    let done = world.kms.recover().await.unwrap();
    assert_eq!((done.undone, done.finished, done.failed), (0, 0, 1));
    assert_eq!(objects(&world).await, before);
    assert_eq!(world.kms.counters().integrity_failures.read(), 1);
    assert_eq!(world.kms.stuck_intents(), 1);
    assert_eq!(world.store.intents().await.unwrap().rows.len(), 1);
}

/// The backup was taken between the intent and the commit; the mutation went on and was acknowledged.
#[tokio::test]
async fn a_restored_backup_with_an_open_intent_destroys_no_key() {
    let world = World::new().await;
    create_resident(&world).await;
    let before = objects(&world).await;
    let intent = intent_before_commit(&world);
    let gone =
        "DELETE FROM counters; DELETE FROM versions; DELETE FROM keys; DELETE FROM manifests";
    sql(&world, &format!("{UNGUARD} {gone}"));
    let sealed = seal(&world, intent).await;
    world.store.open_intent(sealed).await.unwrap();
    let world = world.restart();
    let done = world.kms.recover().await.unwrap();
    assert_eq!(done, Reconciled { undone: 1, orphans: 1, ..Reconciled::default() });
    assert_eq!(objects(&world).await, before, "its only copy stays");
    assert_eq!(abandoned(&world), 0, "the log says that it went well, and goes on saying so");
    assert_eq!(world.store.intents().await.unwrap().rows, []);
}

/// A genuine intent of long ago, put back while its key is in use.
#[tokio::test]
async fn a_replayed_intent_destroys_no_key() {
    let world = World::new().await;
    create_resident(&world).await;
    let before = objects(&world).await;
    let intent = intent_before_commit(&world);
    let sealed = seal(&world, intent).await;
    world.store.open_intent(sealed).await.unwrap();
    sql(&world, &format!("{UNGUARD} UPDATE versions SET state = 'DESTROYED', revision = 9"));
    let world = world.restart();
    world.kms.recover().await.unwrap();
    assert_eq!(objects(&world).await, before);
    assert_eq!(abandoned(&world), 0);
}

#[tokio::test]
async fn what_a_crash_left_is_destroyed_when_the_rows_are_whole_and_left_when_they_are_not() {
    for (edit, destroyed) in [("", true), ("UPDATE keys SET owner = 'mallory'", false)] {
        let world = World::new().await;
        create_resident(&world).await;
        let before = objects(&world).await;
        create_and_die_at_the_commit(&world).await;
        sql(&world, &format!("DROP TRIGGER keys_guard; {edit}"));
        let world = world.restart();
        let done = world.kms.recover().await.unwrap();
        let orphans = usize::from(!destroyed);
        assert_eq!(done, Reconciled { undone: 1, orphans, ..Reconciled::default() }, "{edit}");
        assert_eq!(objects(&world).await.len(), before.len() + orphans, "{edit}");
        assert_eq!(abandoned(&world), 1, "{edit}");
        assert_eq!(world.store.intents().await.unwrap().rows, [], "{edit}");
    }
}

/// Rolled back to the moment before its commit, the intent says "not committed" and the row says "in use".
#[tokio::test]
async fn an_open_intent_of_a_key_in_use_is_an_alert_and_destroys_nothing() {
    let world = World::new().await;
    create_resident(&world).await;
    create_and_die_at_the_commit(&world).await;
    let open = world.store.intents().await.unwrap().rows.remove(0);
    let used = world.store.key(KeyRef::Name(name(KEY)), VersionChoice::Primary).await.unwrap();
    let kms_core::key::Material::Resident(used) = used.unwrap().version.unwrap().row.material
    else {
        panic!("the key is resident")
    };
    world.store.close_intent(open.row.id).await.unwrap();
    let row = Intent { resident_id: used, ..open.row };
    let sealed = seal(&world, row).await;
    world.store.open_intent(sealed).await.unwrap();
    let before = objects(&world).await;
    let world = world.restart();
    assert_eq!(world.kms.recover().await.unwrap().undone, 0);
    assert_eq!(objects(&world).await, before);
    assert_eq!(world.kms.counters().integrity_failures.read(), 1);
}

/// One row that cannot be read does not keep the others from being ended.
#[tokio::test]
async fn a_damaged_row_is_counted_and_the_rest_goes_on() {
    let edits = [
        "UPDATE intents SET kind = 'NO_KIND' WHERE sequence = (SELECT min(sequence) FROM intents)",
        "UPDATE versions SET material = x'00', check_blob = x'00'",
    ];
    for edit in edits {
        let world = World::new().await;
        create_resident(&world).await;
        let forged = seal(&world, intent_before_commit(&world)).await;
        world.store.open_intent(forged).await.unwrap();
        create_and_die_at_the_commit(&world).await;
        sql(&world, &format!("PRAGMA ignore_check_constraints = ON; {UNGUARD} {edit}"));
        world.clock.advance(std::time::Duration::from_hours(25));
        let world = world.restart();
        let done = world.kms.reconcile().await.unwrap();
        assert!(done.failed > 0, "{edit}");
        assert_eq!(world.kms.reconcile_failures(), done.failed, "{edit}");
        assert!(world.kms.counters().integrity_failures.read() > 0, "{edit}");
        assert_eq!(done.forgotten, 1, "{edit}: the last step was reached");
        assert_eq!(abandoned(&world), 1, "{edit}: the good intent was ended");
    }
}

/// A commit whose end could not be written may come back from the journal: its object must still be there then.
#[tokio::test]
async fn no_intent_is_ended_while_the_store_cannot_write() {
    let world = World::new().await;
    create_resident(&world).await;
    create_and_die_at_the_commit(&world).await;
    let before = objects(&world).await;
    let world = world.restart();
    world.clock.advance(INTENT_GRACE);
    world.faults.refuse_probes(true);
    for done in [world.kms.reconcile().await.unwrap(), world.kms.recover().await.unwrap()] {
        assert_eq!(done, Reconciled { failed: 1, ..Reconciled::default() });
    }
    assert_eq!(objects(&world).await, before);
    assert_eq!(world.store.intents().await.unwrap().rows.len(), 1);
    world.faults.refuse_probes(false);
    let done = world.kms.reconcile().await.unwrap();
    assert_eq!(done, Reconciled { undone: 1, ..Reconciled::default() });
    assert_eq!(objects(&world).await.len(), before.len() - 1);
}
