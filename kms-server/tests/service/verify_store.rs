//! Verifying the database offline: what agrees, and how each disagreement is named.

use std::ops::RangeInclusive;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kms_core::audit::{AuditRecord, CounterStamp};
use kms_core::id::{KeyUid, RootGeneration};
use kms_hsm::Hsm as _;
use kms_hsm_soft::SoftToken;
use kms_server::audit::verify::VerifyError;
use kms_server::audit::{AcceptCode, MemorySink};
use kms_server::keyring::LEASE_OPERATION;
use kms_server::service::{ChangeVersionState, RotateKey};
use kms_server::store::sqlite::SqliteStore;
use kms_server::store::sqlite::offline::OfflineStore;
use kms_server::verify_store::{Finding, LogSummary, MAX_FINDINGS, Report, Seen, verify};

use crate::support::*;

const KEY: &str = "tenants/t/keys/k";
const CALL: &str = "kms.v1.KeyService/Call";
const LOG: LogSummary = LogSummary { entries: 1, first: Some(1), last: 1, torn_bytes: 0 };

/// What the schema guards against its own server; who writes the file passes it.
const UNGUARD: &str = "PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON;
    DROP TRIGGER keys_guard; DROP TRIGGER versions_guard; DROP TRIGGER counters_guard;
    DROP TRIGGER manifests_guard; DROP TRIGGER keys_stay; DROP TRIGGER versions_stay;";

/// A key with two versions, another in another tenant, both used.
async fn world() -> World {
    let world = World::new().await;
    world.create(KEY).await;
    world.create("tenants/u/keys/k").await;
    let rotate = RotateKey { name: name(KEY), reason: "test".into(), request_id: fresh_id() };
    world.kms.rotate_key(&world.request(CALL), rotate).await.unwrap();
    world.wrap(KEY).await;
    world.wrap("tenants/u/keys/k").await;
    world
}

fn sql(world: &World, statement: &str) {
    let database = rusqlite::Connection::open(world.database()).unwrap();
    database.execute_batch(statement).unwrap();
}

fn uid(world: &World) -> KeyUid {
    let record = world.records().into_iter().find(|record| record.key_uid.is_some()).unwrap();
    record.key_uid.unwrap()
}

/// Makes a copy of the database as it is, as the server in this process holds the database itself.
fn copy(world: &World, name: &str) -> PathBuf {
    let copy = world.directory.path().join(name);
    let _ = std::fs::remove_file(&copy);
    sql(world, &format!("VACUUM INTO '{}'", copy.display()));
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o600)).unwrap();
    copy
}

fn seen(records: &[AuditRecord]) -> (Seen, LogSummary) {
    let mut seen = Seen::default();
    for record in records {
        seen.note(record);
    }
    (seen, LOG)
}

fn accept_code(report: &Report) -> AcceptCode {
    report.accept_code.as_ref().unwrap().parse().unwrap()
}

fn report_on(
    world: &World,
    database: &Path,
    log: Result<(Seen, LogSummary), VerifyError>,
) -> Report {
    report_of(world, database, log, RootGeneration::FIRST..=RootGeneration::FIRST)
}

fn report_of(
    world: &World,
    database: &Path,
    log: Result<(Seen, LogSummary), VerifyError>,
    open: RangeInclusive<RootGeneration>,
) -> Report {
    let store = OfflineStore::open(database).unwrap();
    let token = SoftToken::new(world.device.clone(), world.clock.clone());
    let deadline = world.request(CALL).deadline;
    let pins = store.root_pins().unwrap().into_iter().map(|(pin, _)| pin).collect();
    // On a thread of its own, as the command is: it blocks on the token.
    let work = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(token.open_roots(pins, deadline)).unwrap();
        let mut macs =
            |generation, inputs| runtime.block_on(token.mac(generation, inputs, deadline));
        verify(&store, log, open, &mut macs).unwrap()
    };
    std::thread::spawn(work).join().unwrap()
}

fn report(world: &World) -> Report {
    report_on(world, &copy(world, "copy.db"), Ok(seen(&world.records())))
}

/// Asserts that exactly these are found: kind of row, version, and a part of what is said.
fn assert_finds(report: &Report, wanted: &[(&str, Option<u32>, &str)]) {
    assert!(!report.agrees);
    assert_eq!(report.findings.len(), wanted.len(), "{:#?}", report.findings);
    for (row, version, part) in wanted {
        let fits = |finding: &&Finding| {
            finding.row == *row
                && finding.key_version.map(kms_core::id::KeyVersion::get) == *version
                && finding.detail.contains(part)
        };
        assert!(report.findings.iter().any(|finding| fits(&finding)), "{row} {part}: {report:#?}");
    }
}

#[tokio::test]
async fn a_database_that_nobody_touched_agrees() {
    let world = world().await;
    let report = report(&world);
    let expected = Report {
        agrees: true,
        log: Some(LOG),
        tenants: 2,
        keys: 2,
        versions: 3,
        counters: 3,
        history: 3,
        requests: 3,
        ..Report::default()
    };
    assert_eq!(report, expected);
}

#[tokio::test]
async fn every_edited_row_is_named() {
    let edits = [
        ("UPDATE keys SET owner = 'mallory'", "key", None, "MAC"),
        ("UPDATE versions SET state_reason = 'x' WHERE version = 2", "version", Some(2), "MAC"),
        ("UPDATE counters SET leased = 9 WHERE version = 2", "counter", Some(2), "MAC"),
        ("UPDATE manifests SET revision = 9 WHERE tenant = 'u'", "manifest", None, "MAC"),
        ("UPDATE keys SET labels = '[1]'", "key", None, "labels has no valid value"),
        ("UPDATE versions SET state = 'x' WHERE version = 2", "version", Some(2), "state has no"),
        ("UPDATE keys SET generation = 2", "key", None, "generation 2 is not open"),
        ("UPDATE requests SET time = 1", "request", None, "MAC"),
        (
            "DROP TRIGGER history_stands; UPDATE history SET reason = 'x' WHERE version = 2",
            "history",
            Some(2),
            "MAC",
        ),
        (
            "DROP TRIGGER history_stands; UPDATE history SET to_state = 'x' WHERE version = 2",
            "history",
            Some(2),
            "to_state has no",
        ),
    ];
    for (edit, row, version, part) in edits {
        let world = world().await;
        sql(&world, &format!("{UNGUARD} {edit}"));
        let report = report(&world);
        assert!(!report.agrees, "{edit}");
        let found = report.findings.iter().find(|finding| finding.detail.contains(part));
        let found = found.unwrap_or_else(|| panic!("{edit}: {report:#?}"));
        assert_eq!(found.row, row, "{edit}");
        assert_eq!(found.key_version.map(kms_core::id::KeyVersion::get), version, "{edit}");
        let of_key = !["manifest", "request"].contains(&row);
        assert_eq!(found.key_uid.is_some(), of_key, "{edit}");
        assert_eq!(found.tenant.is_some(), row != "request", "{edit}");
    }
}

#[tokio::test]
async fn import_jobs_are_verified_with_the_rest() {
    let world = world().await;
    let job = crate::import::job(name("tenants/t/keys/later"), fresh_id());
    let job = crate::import::create_job(&world, job).await.unwrap();
    let agreeing = report(&world);
    assert!(agreeing.agrees, "{agreeing:#?}");
    assert_eq!(agreeing.import_jobs, 1);
    sql(&world, "CREATE TABLE old AS SELECT * FROM import_jobs");
    sql(&world, "DROP TRIGGER import_jobs_stand; UPDATE import_jobs SET actor = 'mallory'");
    assert_finds(&report(&world), &[("import job", None, "MAC")]);
    sql(&world, "UPDATE import_jobs SET method = 'x'");
    let wanted = [
        ("import job", None, "method has no valid value"),
        ("manifest", None, "one was deleted, added or put back"),
    ];
    assert_finds(&report(&world), &wanted);
    sql(&world, "DELETE FROM import_jobs");
    let gone = [("manifest", None, "one was deleted, added or put back")];
    assert_finds(&report(&world), &gone);
    // Put back after it was given up.
    sql(&world, "INSERT INTO import_jobs SELECT * FROM old");
    crate::import::cancel(&world, &job).await.unwrap();
    assert!(report(&world).agrees);
    sql(&world, "INSERT INTO import_jobs SELECT * FROM old");
    assert_finds(&report(&world), &gone);
}

#[tokio::test]
async fn aliases_are_verified_with_the_rest() {
    let world = world().await;
    let create = kms_server::service::CreateAlias {
        name: "tenants/t/aliases/a".parse().unwrap(),
        key: name(KEY),
        reason: "made".into(),
        request_id: fresh_id(),
    };
    world.kms.create_alias(&world.request(CALL), create).await.unwrap();
    let agreeing = report(&world);
    assert!(agreeing.agrees, "{agreeing:#?}");
    assert_eq!(agreeing.aliases, 1);
    sql(&world, "DROP TRIGGER aliases_guard; UPDATE aliases SET actor = 'mallory'");
    assert_finds(&report(&world), &[("alias", None, "MAC")]);
    sql(&world, "UPDATE aliases SET skeleton = 'x'");
    let wanted = [
        ("alias", None, "skeleton has no valid value"),
        ("manifest", None, "one was deleted, added or put back"),
    ];
    assert_finds(&report(&world), &wanted);
    sql(&world, "DELETE FROM aliases");
    let gone = [("manifest", None, "one was deleted, added or put back")];
    assert_finds(&report(&world), &gone);
}

#[tokio::test]
async fn a_deleted_key_is_found_and_named_by_what_the_log_tells() {
    let world = world().await;
    let of = "(SELECT uid FROM keys WHERE tenant = 't')";
    sql(
        &world,
        &format!(
            "{UNGUARD} DELETE FROM counters WHERE key_uid = {of};
             DELETE FROM versions WHERE key_uid = {of}; DELETE FROM keys WHERE tenant = 't'"
        ),
    );
    let report = report(&world);
    assert_finds(
        &report,
        &[
            ("history", Some(1), "there is no key for it"),
            ("history", Some(2), "there is no key for it"),
            ("manifest", None, "the rows are not those of revision 2"),
            ("version", Some(1), "the log tells of it"),
            ("version", Some(2), "the log tells of it"),
        ],
    );
    let named = report.findings.iter().filter(|finding| finding.key_uid == Some(uid(&world)));
    assert_eq!(named.count(), 4);
    let told = report.findings.iter().filter(|finding| finding.row != "history");
    assert!(told.into_iter().all(|finding| finding.tenant.as_deref() == Some("t")));
}

#[tokio::test]
async fn deleted_versions_and_counters_are_found() {
    let world_1 = world().await;
    sql(&world_1, &format!("{UNGUARD} DELETE FROM versions WHERE version = 2"));
    assert_finds(
        &report(&world_1),
        &[
            ("counter", Some(2), "there is no version for it"),
            ("version", None, "the key has 2 versions, and 1 are there"),
            ("counter", None, "of 1 versions 2 have a counter"),
            ("manifest", None, "one was deleted, added or put back"),
            ("version", Some(2), "the log tells of it"),
        ],
    );
    let world_2 = world().await;
    sql(&world_2, &format!("{UNGUARD} DELETE FROM counters WHERE version = 2"));
    let found = report(&world_2);
    assert_finds(&found, &[("counter", None, "of 2 versions 1 have a counter")]);
}

#[tokio::test]
async fn a_row_that_was_put_back_is_found_though_its_mac_is_right() {
    let world = world().await;
    sql(&world, "CREATE TABLE old AS SELECT * FROM versions");
    let change = ChangeVersionState {
        name: format!("{KEY}/versions/2").parse().unwrap(),
        reason: "test".into(),
        request_id: fresh_id(),
    };
    world.kms.suspend_key_version(&world.request(CALL), change).await.unwrap();
    assert!(report(&world).agrees);
    sql(
        &world,
        &format!(
            "{UNGUARD} DELETE FROM versions; INSERT INTO versions SELECT * FROM old; DROP TABLE old"
        ),
    );
    let found = report(&world);
    assert_finds(&found, &[("manifest", None, "the rows are not those of revision 3")]);
}

#[tokio::test]
async fn a_counter_that_was_put_back_is_found() {
    let world = world().await;
    sql(&world, "CREATE TABLE old AS SELECT * FROM counters");
    // Another process takes another lease.
    let world = world.restart();
    world.wrap(KEY).await;
    assert!(report(&world).agrees);
    let back = format!(
        "{UNGUARD} DELETE FROM counters; INSERT INTO counters SELECT * FROM old; DROP TABLE old"
    );
    sql(&world, &back);
    let found = report(&world);
    assert_finds(&found, &[("counter", Some(2), "an older row was put back")]);
    assert_eq!(found.findings[0].key_uid, Some(uid(&world)));
    // Used again, the row is as new as the log, which shows that it went back.
    let world = world.restart();
    world.wrap(KEY).await;
    let found = report(&world);
    assert_finds(&found, &[("counter", Some(2), "an older row was put back and used")]);
    // A start compares no counters, and takes them with the rest by the code that is told here.
    let code = accept_code(&found);
    let compared = world.kms.compare_store(Some(code)).await.unwrap();
    assert_eq!((compared.agreeing, compared.accepted), (2, 2));
    assert!(report(&world).agrees, "accepted with the database");
    let again = world.kms.compare_store(Some(code)).await.unwrap();
    assert_eq!(again.accepted, 0, "once");
}

/// A crash comes between a row and its record, never the other way round.
#[tokio::test]
async fn a_counter_may_be_newer_than_the_log_but_not_another_of_the_same_revision() {
    let world = world().await;
    let mut records = world.records();
    let last = records.iter().rposition(|r| &*r.operation == LEASE_OPERATION).unwrap();
    let newest = records.remove(last);
    assert!(report_on(&world, &copy(&world, "copy.db"), Ok(seen(&records))).agrees);
    let CounterStamp { revision, leased } = newest.counter.unwrap();
    let counter = Some(CounterStamp { revision, leased: leased + 1 });
    records.push(AuditRecord { counter, ..newest });
    let found = report_on(&world, &copy(&world, "copy.db"), Ok(seen(&records)));
    assert_finds(&found, &[("counter", Some(1), "the log has seen revision")]);
}

#[tokio::test]
async fn an_older_database_and_one_without_its_log_are_told_apart() {
    let world = world().await;
    let (older, accepted) = (copy(&world, "older.db"), copy(&world, "accepted.db"));
    world.create("tenants/t/keys/later").await;
    let records = world.records();
    let found = report_on(&world, &older, Ok(seen(&records)));
    let wanted = [
        ("manifest", None, "is at revision 2 in the database"),
        ("version", Some(1), "the log tells of it"),
    ];
    assert_finds(&found, &wanted);
    let broken = report_on(&world, &older, Err(VerifyError::Empty));
    assert_finds(&broken, &[("log", None, "not compared with the log")]);
    assert_eq!(broken.accept_code, None);
    let tail = LogSummary { first: Some(2), ..LOG };
    assert_eq!(report_on(&world, &older, Ok((seen(&records).0, tail))).accept_code, None);
    let unknown = report_on(&world, &older, Ok(seen(&[])));
    assert!(unknown.agrees);
    assert_eq!(unknown.tenants_not_in_log, 2);
    // Accepted, it is what the log has last seen, and what was made after it is no longer missed.
    let mut world = world.restart();
    world.store = Arc::new(SqliteStore::open(&accepted).unwrap());
    let world = world.restart();
    let code = accept_code(&found);
    assert_eq!(world.kms.compare_store(Some(code)).await.unwrap().accepted, 2);
    let found = report_on(&world, &older, Ok(seen(&world.records())));
    assert!(found.agrees, "{found:#?}");
    assert_eq!(found.accept_code, None);
}

/// Both ways to a code lead to the same one, also where only the start or only the verification finds something.
#[tokio::test]
async fn a_log_that_began_anew_is_caught_up_with_by_the_code() {
    let world = world().await;
    let mut world = world.restart();
    world.sink = Arc::new(MemorySink::new(100));
    let world = world.restart();
    let unknown = report(&world);
    assert_eq!((unknown.agrees, unknown.tenants_not_in_log), (true, 2));
    let code = accept_code(&unknown);
    assert_eq!(world.kms.compare_store(Some(code)).await.unwrap().accepted, 2);
    let known = report(&world);
    assert_eq!((known.agrees, known.tenants_not_in_log, known.accept_code), (true, 0, None));
}

/// A start takes it with no code.
#[tokio::test]
async fn there_is_no_code_for_a_manifest_that_was_edited() {
    let world = world().await;
    sql(&world, "DELETE FROM manifests WHERE tenant = 'u'");
    assert!(report(&world).accept_code.is_some());
    for edit in ["revision = 9", "generation = 2", "row_set = x'00'"] {
        let copy = copy(&world, "edited.db");
        let database = rusqlite::Connection::open(&copy).unwrap();
        database.execute_batch(&format!("{UNGUARD} UPDATE manifests SET {edit}")).unwrap();
        drop(database);
        let found = report_on(&world, &copy, Ok(seen(&world.records())));
        assert_eq!(found.accept_code, None, "{edit}: {found:#?}");
    }
}

#[tokio::test]
async fn a_commit_without_its_outcome_agrees_as_long_as_its_intent_is_genuine() {
    let world = world().await;
    let before = world.faults.calls();
    world.create("tenants/t/keys/probe").await;
    let calls = world.faults.calls() - before;
    // Dies at the outcome's record.
    world.faults.arm(calls - 2, false);
    let _ = world.kms.create_key(&world.request(CALL), create("tenants/t/keys/crashed")).await;
    let found = report(&world);
    assert!(found.agrees, "{found:#?}");
    assert_eq!(found.intents, 1);
    sql(&world, "UPDATE intents SET principal = 'mallory'");
    let found = report(&world);
    assert_finds(&found, &[("intent", Some(1), "MAC"), ("manifest", None, "lost its end")]);
}

/// Whether a change is brought to its end or taken back follows from its intent.
#[tokio::test]
async fn every_edited_field_of_an_intent_is_named() {
    let world = world().await;
    let before = world.faults.calls();
    world.create("tenants/t/keys/probe").await;
    let calls = world.faults.calls() - before;
    world.faults.arm(calls - 2, false);
    let _ = world.kms.create_key(&world.request(CALL), create("tenants/t/keys/crashed")).await;
    assert!(report(&world).agrees);
    for edit in [
        "id = zeroblob(16)",
        "kind = 'x'",
        "principal = 'mallory'",
        "tenant = 'u'",
        "key_id = 'x'",
        "key_uid = zeroblob(16)",
        "version = 2",
        "protection = 'HSM_RESIDENT'",
        "resident_id = x'000102030405060708090a0b0c0d0e0f'",
        "time = time + 1",
        "applied_revision = applied_revision + 1",
        "applied_digest = printf('%064d', 0)",
        "applied_revision = NULL, applied_digest = NULL",
        "mac = zeroblob(32)",
    ] {
        let copy = copy(&world, "edited.db");
        let database = rusqlite::Connection::open(&copy).unwrap();
        assert_eq!(database.execute(&format!("UPDATE intents SET {edit}"), []).unwrap(), 1);
        drop(database);
        let found = report_on(&world, &copy, Ok(seen(&world.records())));
        let named = |finding: &Finding| {
            finding.row == "intent"
                && (finding.detail.contains("MAC")
                    || (edit.starts_with("kind") && finding.detail.contains("kind has no")))
        };
        assert!(found.findings.iter().any(named), "{edit}: {found:#?}");
    }
}

/// More rows than have their MACs made at a time.
#[tokio::test]
async fn rows_of_every_batch_are_verified() {
    let world = World::new().await;
    for number in 0..90 {
        world.create(&format!("tenants/t/keys/k{number:02}")).await;
    }
    let clean = report(&world);
    assert!(clean.agrees);
    assert_eq!(clean.keys + clean.versions + clean.counters, 270);
    let edit = "UPDATE keys SET owner = 'x' WHERE key_id IN ('k00', 'k86', 'k89')";
    sql(&world, &format!("{UNGUARD} {edit}"));
    assert_finds(&report(&world), &[("key", None, "MAC"); 3]);
}

#[tokio::test]
async fn as_many_disagreements_are_listed_as_the_bound_and_one_more_is_counted() {
    for (count, left_out) in [(MAX_FINDINGS, 0), (MAX_FINDINGS + 1, 1)] {
        let world = World::new().await;
        sql(
            &world,
            &format!(
                "PRAGMA foreign_keys = OFF;
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})
                 INSERT INTO counters SELECT randomblob(16), i, 0, 1, 1, zeroblob(32) FROM n"
            ),
        );
        let report = report(&world);
        assert_eq!((report.findings.len(), report.findings_left_out), (MAX_FINDINGS, left_out));
        assert_eq!(report.disagreements(), count as u64);
        let told = kms_server::verify_store::table(&report);
        assert_eq!(told.contains("1 more are left out"), left_out > 0);
        assert!(told.ends_with(&format!("does not agree: {count} disagreements\n")));
    }
}

/// Whoever puts an old row back must not blind the one tool that is to find it.
#[tokio::test]
async fn a_row_of_a_retired_root_is_found_where_it_stands() {
    let world = world().await;
    let second = RootGeneration::new(2).unwrap();
    let log = Ok(seen(&world.records()));
    let report = report_of(&world, &copy(&world, "copy.db"), log, second..=second);
    assert!(!report.agrees);
    let of = |row: &str| report.findings.iter().filter(|finding| finding.row == row).count();
    assert_eq!((of("key"), of("version"), of("manifest")), (2, 3, 2), "{report:#?}");
    let told = |finding: &Finding| finding.detail == "root generation 1 is not open";
    assert!(report.findings.iter().any(told), "{report:#?}");
    assert_eq!(report.accept_code, None, "a start goes on with no such manifest");
}
