//! The database beside the audit log at start: one that was put back, emptied, exchanged or edited is not served.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use kms_core::audit::{AuditRecord, Phase};
use kms_hsm::HsmError;
use kms_hsm_soft::{SoftDevice, SoftToken};
use kms_server::audit::{ACCEPT_STORE, AcceptCode, AuditSink as _, MemorySink};
use kms_server::authz::ActionKind;
use kms_server::keyring::KeyringError;
use kms_server::service::{CompareError, Compared, Reconciled, STORE_ACCEPTED};
use kms_server::store::sqlite::SqliteStore;

use crate::support::*;

const KEY: &str = "tenants/t/keys/k";
const OTHER: &str = "tenants/u/keys/k";
const CREATE: &str = "kms.v1.KeyService/CreateKey";

fn sql(world: &World, statement: &str) {
    let database = rusqlite::Connection::open(world.database()).unwrap();
    database.execute_batch(&format!("PRAGMA foreign_keys = OFF; {statement}")).unwrap();
}

/// Takes a backup of the database, and returns the store that is restored from it.
fn backup(world: &World, name: &str) -> Arc<SqliteStore> {
    let path = world.directory.path().join(name);
    sql(world, &format!("VACUUM INTO '{}'", path.display()));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    Arc::new(SqliteStore::open(&path).unwrap())
}

/// Starts again on another database.
fn restored(world: &World, store: Arc<SqliteStore>) -> World {
    let mut world = world.restart();
    world.store = store;
    world.restart()
}

/// Starts again on a log that holds these records.
async fn on_log(world: &World, records: Vec<AuditRecord>) -> World {
    let mut world = world.restart();
    world.sink = Arc::new(MemorySink::new(100_000));
    world.sink.append(records).await.unwrap();
    world.restart()
}

async fn refusal(world: &World) -> String {
    let refused = world.kms.compare_store(None).await.unwrap_err();
    assert!(matches!(refused, CompareError::Diverged { given: None, .. }), "{refused:?}");
    refused.to_string()
}

/// Returns the code of a refusal.
async fn code(world: &World) -> AcceptCode {
    match world.kms.compare_store(None).await {
        Err(CompareError::Diverged { code, .. }) => code,
        other => panic!("{other:?}"),
    }
}

/// Accepts what there is, as an operator does who has looked at it.
async fn accept(world: &World) -> Compared {
    let code = code(world).await;
    world.kms.compare_store(Some(code)).await.unwrap()
}

async fn agrees(world: &World, tenants: usize) {
    let compared = world.kms.compare_store(None).await;
    assert_eq!(compared, Ok(Compared { agreeing: tenants, ..Compared::default() }));
}

fn accepted(world: &World) -> Vec<AuditRecord> {
    let records = world.records().into_iter();
    records.filter(|record| &*record.operation == ACCEPT_STORE).collect()
}

/// Two tenants, of which `t` has one key in the backup that is returned, and two in the end.
async fn world_with_backup() -> (World, Arc<SqliteStore>) {
    let world = World::new().await;
    world.create(KEY).await;
    world.create(OTHER).await;
    let backup = backup(&world, "backup.db");
    world.create("tenants/t/keys/later").await;
    (world, backup)
}

#[tokio::test]
async fn what_the_log_has_last_seen_agrees() {
    let world = World::new().await;
    agrees(&world, 0).await;
    world.create(KEY).await;
    world.create(OTHER).await;
    agrees(&world.restart(), 2).await;
}

#[tokio::test]
async fn an_older_copy_is_refused_until_it_is_accepted_and_that_is_recorded() {
    let (world, backup) = world_with_backup().await;
    let world = restored(&world, backup);
    let told = refusal(&world).await;
    for part in ["tenant `t`", "revision 1 in", "seen revision 2", "--accept-restored-store"] {
        assert!(told.contains(part), "{told}");
    }
    assert!(!told.contains("more tenants"), "{told}");
    let compared = accept(&world).await;
    assert_eq!(compared, Compared { agreeing: 1, unknown: 0, accepted: 2 });
    let records = accepted(&world);
    let tenants: Vec<_> = records.iter().map(|r| (&*r.tenant, r.reason.is_some())).collect();
    assert_eq!(tenants, [("t", true), ("u", false)], "what differed, and the others");
    let stored = world.store.manifest(name(KEY).tenant().clone()).await.unwrap().unwrap();
    assert_eq!(records[0].manifest, Some(stored.row.stamp()));
    assert_eq!((&*records[0].tenant, &*records[0].result), ("t", STORE_ACCEPTED));
    assert_eq!(records[0].phase, Phase::Complete);
    agrees(&world.restart(), 2).await;
    // The new history goes on from there, and the old one is refused in its turn.
    world.create("tenants/t/keys/again").await;
    agrees(&world.restart(), 2).await;
}

/// What a unit file goes on giving after the start that it was meant for.
#[tokio::test]
async fn a_code_accepts_what_it_was_made_of_and_nothing_later() {
    let (world, first) = world_with_backup().await;
    let second = backup(&world, "second.db");
    world.create("tenants/u/keys/later").await;
    let world = restored(&world, first);
    let stale = code(&world).await;
    let compared = world.kms.compare_store(Some(stale)).await.unwrap();
    assert_eq!(compared.accepted, 2);
    let records = world.records();
    // Nothing differs: the code that is still there stands in nobody's way, and accepts nothing.
    let world = world.restart();
    let compared = world.kms.compare_store(Some(stale)).await;
    assert_eq!(compared, Ok(Compared { agreeing: 2, ..Compared::default() }));
    // Another database: the same code is of no use.
    let world = restored(&world, second);
    let refused = world.kms.compare_store(Some(stale)).await.unwrap_err();
    let CompareError::Diverged { code: fresh, given, .. } = refused else { panic!("{refused}") };
    assert_eq!((given, fresh == stale), (Some(stale), false));
    let told = refused.to_string();
    for part in [
        format!("the code {stale} stands for another database, or was used before"),
        format!("start once with --accept-restored-store {fresh}"),
    ] {
        assert!(told.contains(&part), "{told}");
    }
    assert_eq!(world.records(), records, "nothing was recorded");
    world.kms.compare_store(Some(fresh)).await.unwrap();
    agrees(&world.restart(), 2).await;
}

/// A start that would go on without a code goes on with a wrong one, and records nothing by it.
#[tokio::test]
async fn a_stale_code_keeps_no_server_from_starting_on_a_new_log() {
    let (world, backup) = world_with_backup().await;
    let stale = code(&restored(&world, backup)).await;
    let world = on_log(&world, vec![]).await;
    let compared = world.kms.compare_store(Some(stale)).await;
    assert_eq!(compared, Ok(Compared { unknown: 2, ..Compared::default() }));
    assert_eq!(accepted(&world), []);
}

#[tokio::test]
async fn other_rows_at_the_same_revision_are_refused() {
    let (world, restored_copy) = world_with_backup().await;
    let newest = backup(&world, "newest.db");
    let world = restored(&world, restored_copy);
    accept(&world).await;
    world.create("tenants/t/keys/another").await;
    agrees(&world, 2).await;
    let told = refusal(&restored(&world, newest)).await;
    assert!(told.contains("other rows at this revision"), "{told}");
}

#[tokio::test]
async fn an_empty_database_is_refused_and_accepted_for_good() {
    let (world, _backup) = world_with_backup().await;
    let path = world.directory.path().join("new.db");
    let world = restored(&world, Arc::new(SqliteStore::open(&path).unwrap()));
    let told = refusal(&world).await;
    for part in ["tenant `t` has no manifest", "another database", "and 1 more tenants"] {
        assert!(told.contains(part), "{told}");
    }
    let compared = accept(&world).await;
    assert_eq!(compared, Compared { agreeing: 0, unknown: 0, accepted: 2 });
    agrees(&world.restart(), 0).await;
    world.create(KEY).await;
    agrees(&world.restart(), 1).await;
}

#[tokio::test]
async fn a_manifest_that_was_taken_away_is_refused() {
    let (world, _backup) = world_with_backup().await;
    sql(&world, "DELETE FROM manifests WHERE tenant = 'u'");
    assert!(refusal(&world.restart()).await.contains("tenant `u` has no manifest"));
}

/// No MAC, no word: neither is it compared, nor can it be accepted.
#[tokio::test]
async fn an_edited_manifest_is_refused_whatever_is_accepted() {
    let (world, backup) = world_with_backup().await;
    let code = code(&restored(&world, backup)).await;
    sql(&world, "UPDATE manifests SET revision = revision + 1 WHERE tenant = 't'");
    let world = world.restart();
    for accept in [None, Some(code)] {
        let refused = world.kms.compare_store(accept).await.unwrap_err();
        let unverified = CompareError::Unverified(KeyringError::Integrity {
            detail: "manifest of `tenants/t` has another MAC".into(),
        });
        assert_eq!(refused, unverified);
    }
    assert_eq!(accepted(&world), []);
}

#[tokio::test]
async fn a_commit_whose_outcome_is_not_in_the_log_yet_is_no_rollback() {
    for crash_before in [1, 2] {
        let world = World::new().await;
        world.create(KEY).await;
        let before = world.faults.calls();
        world.create("tenants/t/keys/probe").await;
        let calls = world.faults.calls() - before;
        // Dies at the outcome's record, or at the close of the intent behind it.
        world.faults.arm(calls - crash_before, false);
        let request = world.request(CREATE);
        let _ = world.kms.create_key(&request, create("tenants/t/keys/crashed")).await;
        assert_eq!(world.store.intents().await.unwrap().rows.len(), 1, "{crash_before}");
        let world = world.restart();
        agrees(&world, 1).await;
        let done = world.kms.recover().await.unwrap();
        assert_eq!(done.finished, 1, "{crash_before}");
        agrees(&world.restart(), 1).await;
    }
}

#[tokio::test]
async fn a_database_that_is_ahead_of_the_log_is_refused_when_no_intent_tells_why() {
    let (world, _backup) = world_with_backup().await;
    let mut records = world.records();
    let end =
        records.iter().position(|r| r.manifest.as_ref().is_some_and(|m| m.revision.get() == 2));
    records.truncate(end.unwrap());
    let world = on_log(&world, records).await;
    let told = refusal(&world).await;
    assert!(told.contains("revision 2 in") && told.contains("lost its end"), "{told}");
    accept(&world).await;
    agrees(&world.restart(), 2).await;
}

/// Who cuts the log and keeps the intents cannot make them tell of what the log has not begun.
#[tokio::test]
async fn an_intent_that_the_log_does_not_know_explains_nothing() {
    let world = World::new().await;
    world.create(KEY).await;
    let before = world.faults.calls();
    world.create("tenants/t/keys/probe").await;
    let cut_here = world.records().len();
    world.faults.arm(world.faults.calls() - before - 2, false);
    let _ = world.kms.create_key(&world.request(CREATE), create("tenants/t/keys/crashed")).await;
    let records = world.records();
    assert!(records[cut_here..].iter().any(|record| record.phase == Phase::Intent));
    agrees(&on_log(&world, records.clone()).await, 1).await;
    let cut = on_log(&world, records[..cut_here].to_vec()).await;
    assert!(refusal(&cut).await.contains("lost its end"));
}

#[tokio::test]
async fn a_new_log_knows_nothing() {
    let (world, _backup) = world_with_backup().await;
    let world = on_log(&world, vec![]).await;
    let compared = world.kms.compare_store(None).await;
    assert_eq!(compared, Ok(Compared { agreeing: 0, unknown: 2, accepted: 0 }));
    assert_eq!(accepted(&world), []);
}

/// The outcome of an earlier mutation is the first that a new log hears of a tenant.
#[tokio::test]
async fn a_late_outcome_in_a_new_log_is_no_reason_to_refuse() {
    let world = World::new().await;
    world.create(KEY).await;
    let before = world.faults.calls();
    world.create("tenants/t/keys/probe").await;
    world.faults.arm(world.faults.calls() - before - 2, false);
    let _ = world.kms.create_key(&world.request(CREATE), create("tenants/t/keys/late")).await;
    let world = world.restart();
    world.create("tenants/t/keys/after").await;
    assert_eq!(world.store.intents().await.unwrap().rows.len(), 1);
    let world = on_log(&world, vec![]).await;
    let compared = world.kms.compare_store(None).await;
    assert_eq!(compared, Ok(Compared { unknown: 1, ..Compared::default() }));
    assert_eq!(world.kms.recover().await.unwrap().finished, 1);
    agrees(&world.restart(), 1).await;
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_accepted() {
    let (world, backup) = world_with_backup().await;
    let world = restored(&world, backup);
    let code = code(&world).await;
    world.sink.refuse(true);
    let refused = world.kms.compare_store(Some(code)).await.unwrap_err();
    assert!(matches!(refused, CompareError::Unrecorded(_)), "{refused:?}");
    world.sink.refuse(false);
    refusal(&world.restart()).await;
}

/// Else the new history would overtake the log's last word, and the next start would find that they agree.
#[tokio::test]
async fn nothing_is_built_on_a_manifest_that_was_put_back_while_it_is_served() {
    let (world, _backup) = world_with_backup().await;
    sql(&world, "CREATE TABLE kept AS SELECT * FROM manifests WHERE tenant = 't'");
    world.create("tenants/t/keys/third").await;
    let third = "(SELECT uid FROM keys WHERE key_id = 'third')";
    sql(
        &world,
        &format!(
            "DROP TRIGGER keys_stay; DROP TRIGGER versions_stay;
             DELETE FROM manifests WHERE tenant = 't'; INSERT INTO manifests SELECT * FROM kept;
             DELETE FROM counters WHERE key_uid = {third}; DELETE FROM versions WHERE key_uid = {third};
             DELETE FROM keys WHERE key_id = 'third'; DROP TABLE kept;"
        ),
    );
    for attempt in 0..2 {
        let request = world.request(CREATE);
        let refused = world.kms.create_key(&request, create("tenants/t/keys/fourth")).await;
        assert_eq!(refused.unwrap_err().reason(), "KEY_INTEGRITY", "{attempt}");
    }
    world.create("tenants/u/keys/other").await;
    let told = refusal(&world.restart()).await;
    assert!(told.contains("revision 2 in") && told.contains("seen revision 3"), "{told}");
}

/// Runs recovery and the periodic run, and asserts that both leave everything as it is.
async fn is_left_alone(world: &World) {
    let before = (world.records().len(), world.faults.calls());
    let nothing = Reconciled { failed: 1, ..Reconciled::default() };
    assert_eq!(world.kms.recover().await.unwrap(), nothing);
    assert_eq!(world.kms.reconcile().await.unwrap(), nothing);
    assert_eq!(world.kms.reconcile_failures(), 1);
    assert_eq!((world.records().len(), world.faults.calls()), before, "no part was asked");
}

/// A server with a latched HSM lives on, so that the operator can read why; its database was never compared.
#[tokio::test]
async fn nothing_is_recovered_while_a_latch_keeps_the_database_from_being_compared() {
    let world = World::new().await;
    world.create(KEY).await;
    world.clock.advance(Duration::from_hours(25));
    let mut latched = world.restart();
    latched.hsm = Arc::new(SoftToken::new(SoftDevice::new("another"), world.clock.clone()));
    let pins = world.store.root_pins().await.unwrap().into_iter().map(|(pin, _)| pin).collect();
    let deadline = world.request(CREATE).deadline;
    assert!(latched.hsm.open_roots(pins, deadline).await.is_err());
    let latched = latched.restart();
    let compared = latched.kms.compare_store(None).await;
    let refused = matches!(
        compared,
        Err(CompareError::Unverified(KeyringError::Hsm(HsmError::Latched { .. })))
    );
    assert!(refused, "{compared:?}");
    is_left_alone(&latched).await;
    let world = world.restart();
    agrees(&world, 1).await;
    assert_eq!(world.kms.reconcile().await.unwrap().forgotten, 1);
}

/// No MAC of an empty database is asked for: it must not look as if it had been compared, nor be accepted.
#[tokio::test]
async fn a_latch_is_told_before_an_empty_database_which_is_not_accepted_under_it() {
    let world = World::new().await;
    let empty = backup(&world, "empty.db");
    world.create(KEY).await;
    let world = restored(&world, empty);
    let code = code(&world).await;
    let mut latched = world.restart();
    latched.hsm = Arc::new(SoftToken::new(SoftDevice::new("another"), world.clock.clone()));
    let pins = world.store.root_pins().await.unwrap().into_iter().map(|(pin, _)| pin).collect();
    let deadline = world.request(CREATE).deadline;
    assert!(latched.hsm.open_roots(pins, deadline).await.is_err());
    let latched = latched.restart();
    for accept in [None, Some(code)] {
        let compared = latched.kms.compare_store(accept).await;
        let refused = matches!(
            compared,
            Err(CompareError::Unverified(KeyringError::Hsm(HsmError::Latched { .. })))
        );
        assert!(refused, "{compared:?}");
    }
    assert!(accepted(&latched).is_empty());
    is_left_alone(&latched).await;
    refusal(&world.restart()).await;
}

#[tokio::test]
async fn nothing_is_recovered_of_a_database_that_was_put_back_before_it_is_accepted() {
    let (world, backup) = world_with_backup().await;
    world.clock.advance(Duration::from_hours(25));
    let world = restored(&world, backup);
    refusal(&world).await;
    is_left_alone(&world).await;
    accept(&world).await;
    let done = world.kms.reconcile().await.unwrap();
    assert_eq!(done.failed, 0);
    assert_ne!(done.forgotten, 0);
}

/// One more than are written at a time, of a log that knows more than the database.
#[tokio::test]
async fn as_many_tenants_as_there_are_are_accepted() {
    for count in [1_024, 1_025] {
        let world = World::new().await;
        world.create(KEY).await;
        let outcome = world.records().into_iter().find(|record| record.manifest.is_some()).unwrap();
        let tenants = (0..count).map(|number| AuditRecord {
            tenant: format!("gone-{number}").into(),
            ..outcome.clone()
        });
        let world = on_log(&world, tenants.collect()).await;
        sql(&world, "DELETE FROM manifests");
        let world = world.restart();
        let compared = accept(&world).await;
        assert_eq!(compared, Compared { accepted: count, ..Compared::default() });
        assert_eq!(accepted(&world).len(), count);
        agrees(&world.restart(), 0).await;
    }
}

/// Whatever fails, it is refused, and what was acknowledged as accepted is accepted.
#[tokio::test]
async fn a_comparison_that_fails_anywhere_is_no_agreement() {
    for reply_is_lost in [false, true] {
        let mut refused = 0;
        loop {
            let (world, backup) = world_with_backup().await;
            let world = restored(&world, backup);
            let code = code(&world).await;
            world.faults.arm(refused, reply_is_lost);
            let compared = world.kms.compare_store(Some(code)).await;
            if let Ok(compared) = compared {
                assert_eq!(compared.accepted, 2);
                break;
            }
            let again = world.restart().kms.compare_store(None).await;
            assert_eq!(again.is_ok(), !accepted(&world).is_empty(), "call {refused}");
            refused += 1;
        }
        assert!(refused >= 3, "manifests, their MACs, the record: {refused}");
    }
}

/// One more tenant than are read at a time.
#[tokio::test]
async fn tenants_of_every_page_are_compared() {
    let tenants: Vec<String> = (0..257).map(|number| format!("p{number}")).collect();
    let grants: Vec<_> =
        tenants.iter().map(|tenant| grant(ADMIN, tenant, ActionKind::ALL)).collect();
    let world = World::with(&grants).await;
    for tenant in &tenants {
        world.create(&format!("tenants/{tenant}/keys/k")).await;
    }
    agrees(&world.restart(), 257).await;
    sql(&world, "DELETE FROM manifests WHERE tenant IN ('p0', 'p256', 'p99')");
    let told = refusal(&world.restart()).await;
    assert!(told.contains("`p0`") && told.contains("and 2 more tenants"), "{told}");
}
