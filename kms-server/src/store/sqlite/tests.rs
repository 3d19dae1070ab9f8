//! The suite on SQLite, and what is true of files only: modes, locks, damage, disks that are full.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kms_core::clock::Timestamp;
use rusqlite::Connection;

use super::SqliteStore;
use crate::store::suite::{
    self, applied, closing, intent, listed_intents, new_key, sealed, store_suite,
};
use crate::store::{BACKUP_TABLES, Closing, Exported, KeyRef, Store, StoreError, VersionChoice};

fn fresh() -> (SqliteStore, tempfile::TempDir) {
    let root = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&file(&root)).unwrap();
    (store, root)
}

fn file(root: &tempfile::TempDir) -> PathBuf {
    root.path().join("store").join("kms.db")
}

fn now() -> Timestamp {
    Timestamp::from_unix_ms(1)
}

fn is_unwritable(result: &Result<(), StoreError>) {
    assert!(matches!(result, Err(StoreError::Unwritable { .. })), "{result:?}");
}

/// As the suite wants it.
fn fresh_and_small() -> (SqliteStore, tempfile::TempDir) {
    let root = tempfile::tempdir().unwrap();
    let bounds = super::Bounds { requests: suite::MAX_REQUESTS, ..super::Bounds::USUAL };
    let store = SqliteStore::open_with(&file(&root), bounds, |_| Ok(())).unwrap();
    (store, root)
}

store_suite!(fresh_and_small());

#[tokio::test]
async fn a_store_remembers_a_hundred_thousand_requests_of_a_tenant_and_not_one_more() {
    let (store, root) = fresh();
    let request = |number: u8| Some(sealed(suite::request(number, 100)));
    let database = Connection::open(file(&root)).unwrap();
    let sql = "INSERT INTO request_counts VALUES ('t1', 99999)";
    database.execute(sql, []).unwrap();
    for number in [1, 2] {
        store.open_intent(sealed(intent(number))).await.unwrap();
    }
    let last = Closing { request: request(1), ..closing(1, 0) };
    store.create_key(new_key(1), last).await.unwrap();
    let one_more = Closing { request: request(2), ..closing(2, 1) };
    let refused = store.create_key(new_key(2), one_more).await;
    assert_eq!(refused, Err(StoreError::RequestsFull));
}

#[tokio::test]
async fn files_are_for_the_owner_alone() {
    let (store, root) = fresh();
    store.probe(now()).await.unwrap();
    let path = file(&root);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    for name in ["kms.db", "kms.db-wal", "kms.db-shm", "kms.db.lock"] {
        assert_eq!(mode(&path.with_file_name(name)), 0o600, "{name}");
    }
}

#[tokio::test]
async fn a_file_that_others_can_read_is_refused() {
    let (store, root) = fresh();
    store.close().await;
    fs::set_permissions(file(&root), fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(SqliteStore::open(&file(&root)), Err(StoreError::Unavailable { .. })));
}

#[tokio::test]
async fn a_second_opening_is_refused_until_the_first_closes() {
    let (store, root) = fresh();
    let refused = SqliteStore::open(&file(&root)).unwrap_err();
    assert!(
        matches!(&refused, StoreError::Unavailable { detail } if detail.contains("another process")),
        "{refused}"
    );
    store.close().await;
    SqliteStore::open(&file(&root)).unwrap();
}

#[tokio::test]
async fn what_was_written_is_there_after_reopening() {
    let (store, root) = fresh();
    store.open_intent(sealed(intent(1))).await.unwrap();
    store.create_key(new_key(1), closing(1, 0)).await.unwrap();
    store.close().await;
    let store = SqliteStore::open(&file(&root)).unwrap();
    let name = KeyRef::Name(new_key(1).key.row.name);
    let found = store.key(name, VersionChoice::Primary).await.unwrap().unwrap();
    assert_eq!((found.key, found.version), (new_key(1).key, Some(new_key(1).version)));
}

/// Makes a store with a key and damages all its pages but the first.
async fn damaged() -> tempfile::TempDir {
    let (store, root) = fresh();
    store.open_intent(sealed(intent(1))).await.unwrap();
    store.create_key(new_key(1), closing(1, 0)).await.unwrap();
    store.close().await;
    let mut bytes = fs::read(file(&root)).unwrap();
    let pages = bytes.len() / 4096;
    for page in 1..pages {
        bytes[page * 4096..page * 4096 + 64].fill(0x5a);
    }
    fs::write(file(&root), bytes).unwrap();
    root
}

#[tokio::test]
async fn damage_found_while_serving_refuses_everything_from_then_on() {
    let root = damaged().await;
    let (store, _alive) = fresh();
    store.probe(now()).await.unwrap();
    super::check(&super::open::open_reader(&file(&root)).unwrap(), &store.damage);
    assert!(matches!(store.probe(now()).await, Err(StoreError::Damaged { .. })));
    assert!(matches!(store.intents().await, Err(StoreError::Damaged { .. })));
}

#[tokio::test]
async fn a_sound_database_passes_the_check_while_serving() {
    let (store, root) = fresh();
    super::check(&super::open::open_reader(&file(&root)).unwrap(), &store.damage);
    store.probe(now()).await.unwrap();
}

#[tokio::test]
async fn a_damaged_page_is_refused_at_the_start() {
    let root = damaged().await;
    let refused = SqliteStore::open(&file(&root));
    assert!(matches!(refused, Err(StoreError::Damaged { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("kms.db");
    fs::write(&path, vec![b'x'; 8192]).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(matches!(SqliteStore::open(&path), Err(StoreError::Damaged { .. })));
}

#[tokio::test]
async fn an_edited_value_outside_its_type_is_damage() {
    let (store, root) = fresh();
    store.open_intent(sealed(intent(1))).await.unwrap();
    store.create_key(new_key(1), closing(1, 0)).await.unwrap();
    store.close().await;
    let edit = Connection::open(file(&root)).unwrap();
    edit.execute_batch(
        "PRAGMA ignore_check_constraints = ON; DROP TRIGGER keys_guard;
         UPDATE keys SET key_id = 'Not A Name';",
    )
    .unwrap();
    drop(edit);
    let store = SqliteStore::open(&file(&root)).unwrap();
    let reference = KeyRef::Uid(new_key(1).key.row.uid);
    let refused = store.key(reference, VersionChoice::Primary).await;
    assert!(matches!(refused, Err(StoreError::Damaged { .. })), "{refused:?}");
}

#[tokio::test]
async fn the_writer_runs_with_the_safe_settings() {
    let root = tempfile::tempdir().unwrap();
    let store = SqliteStore::open_with(&file(&root), super::Bounds::USUAL, |connection| {
        let read = |name: &str| -> i64 {
            connection.pragma_query_value(None, name, |row| row.get(0)).unwrap()
        };
        assert_eq!(read("synchronous"), 2);
        assert_eq!(read("foreign_keys"), 1);
        assert_eq!(read("secure_delete"), 1);
        assert_eq!(read("trusted_schema"), 0);
        assert_eq!(read("application_id"), i64::from(super::migrate::APPLICATION_ID));
        Ok(())
    });
    store.unwrap().close().await;
}

/// Opens a store whose file may not grow, as on a full disk.
fn full(root: &tempfile::TempDir) -> SqliteStore {
    SqliteStore::open_with(&file(root), super::Bounds::USUAL, |connection| {
        let pages: i64 = connection.pragma_query_value(None, "page_count", |row| row.get(0))?;
        connection.pragma_update(None, "max_page_count", pages)?;
        Ok(())
    })
    .unwrap()
}

#[tokio::test]
async fn a_full_database_refuses_with_nothing_half_done_and_still_reads() {
    let (store, root) = fresh();
    store.close().await;
    let store = full(&root);
    let mut stored = 0;
    let refused = loop {
        let number = stored + 1;
        if let Err(error) = store.open_intent(sealed(intent(number))).await {
            break error;
        }
        match store.create_key(new_key(number), closing(number, u64::from(stored))).await {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
    };
    is_unwritable(&Err(refused));
    let tenant = new_key(1).key.row.name.tenant().clone();
    let keys = store.list_keys(tenant.clone(), None, 100).await.unwrap();
    assert_eq!(keys.len(), usize::from(stored));
    let manifest = store.manifest(tenant).await.unwrap();
    assert_eq!(manifest.map_or(0, |sealed| sealed.row.revision.get()), u64::from(stored));
    store.close().await;
    let store = SqliteStore::open(&file(&root)).unwrap();
    store.close_intent(intent(stored + 1).id).await.unwrap();
    store.open_intent(sealed(intent(stored + 1))).await.unwrap();
    let end = closing(stored + 1, u64::from(stored));
    store.create_key(new_key(stored + 1), end).await.unwrap();
}

#[tokio::test]
async fn a_read_only_database_refuses_writes_and_still_reads() {
    let root = tempfile::tempdir().unwrap();
    let store = SqliteStore::open_with(&file(&root), super::Bounds::USUAL, |connection| {
        connection.pragma_update(None, "query_only", true)?;
        Ok(())
    })
    .unwrap();
    is_unwritable(&store.probe(now()).await);
    assert_eq!(store.intents().await, Ok(listed_intents(vec![])));
}

/// Keeps the writer busy until the sender is used or dropped.
async fn hold_writer(store: &Arc<SqliteStore>) -> crossbeam_channel::Sender<()> {
    let (release, held) = crossbeam_channel::bounded::<()>(0);
    let (entered_sender, entered) = tokio::sync::oneshot::channel();
    let store = Arc::clone(store);
    tokio::spawn(async move {
        let body = move |_: &Connection| {
            let _ = entered_sender.send(());
            let _ = held.recv();
            Ok(())
        };
        store.write(body).await
    });
    entered.await.unwrap();
    release
}

#[tokio::test]
async fn a_failed_commit_fails_the_whole_group() {
    let (store, _root) = fresh();
    let store = Arc::new(store);
    store.open_intent(sealed(intent(1))).await.unwrap();
    store.create_key(new_key(1), closing(1, 0)).await.unwrap();
    let release = hold_writer(&store).await;
    let good = store.open_intent(sealed(intent(2)));
    let poison = store.write(|db| {
        // The primary does not exist: the deferred reference is found broken at the commit.
        let sql = "UPDATE keys SET primary_version = 5, latest_version = 5, revision = 9";
        Ok(db.execute(sql, [])?)
    });
    let refused = store.create_key(new_key(3), closing(3, 1));
    let (good, poison, refused, ()) = tokio::join!(good, poison, refused, async {
        drop(release);
    });
    for outcome in [good, poison.map(|_| ()), refused] {
        assert!(matches!(outcome, Err(StoreError::Damaged { .. })), "{outcome:?}");
    }
    assert_eq!(store.intents().await, Ok(listed_intents(vec![applied(1, 0)])));
    store.open_intent(sealed(intent(2))).await.unwrap();
}

#[tokio::test]
async fn a_refused_method_does_not_disturb_the_others_of_its_group() {
    let (store, _root) = fresh();
    let store = Arc::new(store);
    let release = hold_writer(&store).await;
    let (first, refused, last, ()) = tokio::join!(
        store.open_intent(sealed(intent(1))),
        store.create_key(new_key(9), closing(9, 0)),
        store.create_key(new_key(1), closing(1, 0)),
        async { drop(release) }
    );
    assert_eq!((first, refused, last), (Ok(()), Err(StoreError::NotFound), Ok(())));
}

#[tokio::test]
async fn a_full_queue_is_saturated_and_empties_again() {
    let root = tempfile::tempdir().unwrap();
    let bounds = super::Bounds { queue: 1, ..super::Bounds::USUAL };
    let store = Arc::new(SqliteStore::open_with(&file(&root), bounds, |_| Ok(())).unwrap());
    let release = hold_writer(&store).await;
    // The writer is busy: the queue takes one method, and refuses the next.
    let (taken, receiver) = super::Task::new(|_: &Connection| Ok(()));
    store
        .enqueue(|queues| {
            queues.writes.try_send(Box::new(taken)).map_err(|refused| super::refusal(&refused))
        })
        .unwrap();
    assert_eq!(store.probe(now()).await, Err(StoreError::Saturated));
    drop(release);
    assert_eq!(receiver.await.unwrap(), Ok(()));
    store.probe(now()).await.unwrap();
}

/// Whoever adds a table decides here whether it is in backups.
#[tokio::test]
async fn every_table_is_in_a_backup_or_left_out_on_purpose() {
    const LEFT_OUT: [&str; 6] =
        ["intents", "migrations", "probe", "request_counts", "requests", "sqlite_sequence"];
    let (store, root) = fresh();
    let database = Connection::open(file(&root)).unwrap();
    let sql = "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name";
    let mut statement = database.prepare(sql).unwrap();
    let tables: Vec<String> =
        statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
    let mut known: Vec<&str> = BACKUP_TABLES.into_iter().chain(LEFT_OUT).collect();
    known.sort_unstable();
    assert_eq!(tables, known);
    drop(store);
}

#[tokio::test]
async fn an_export_is_imported_row_by_row_and_changes_meanwhile_are_not_in_it() {
    let (store, root) = fresh();
    store.open_intent(sealed(intent(1))).await.unwrap();
    store.create_key(new_key(1), closing(1, 0)).await.unwrap();
    let exported = async |store: &SqliteStore, between: Option<u8>| {
        let mut exporting = store.export().await.unwrap();
        let mut parts = exporting.recv().await.unwrap().unwrap();
        if let Some(number) = between {
            store.open_intent(sealed(intent(number))).await.unwrap();
            store.create_key(new_key(number), closing(number, 1)).await.unwrap();
        }
        while let Some(more) = exporting.recv().await {
            parts.extend(more.unwrap());
        }
        assert_eq!(parts.pop(), Some(Exported::End));
        parts
    };
    let parts = exported(&store, Some(2)).await;
    let Exported::Head(head) = &parts[0] else { panic!("{:?}", parts[0]) };
    assert_eq!((head.keys, head.intents), (1, 1));
    let copy = root.path().join("copy.db");
    let mut import = super::import::Import::begin(&copy).unwrap();
    assert_eq!(import.schema().unwrap(), head.schema);
    for part in parts.clone() {
        match part {
            Exported::Table { name, columns } => import.table(name, &columns).unwrap(),
            Exported::Row(cells) => import.row(cells).unwrap(),
            Exported::Head(_) | Exported::End => {}
        }
    }
    import.finish().unwrap();
    let copied = SqliteStore::open(&copy).unwrap();
    let again = exported(&copied, None).await;
    assert_eq!(again[1..], parts[1..], "all but what was left out");
}

#[test]
fn an_import_refuses_what_is_no_row_of_ours() {
    use crate::store::Cell;
    let root = tempfile::tempdir().unwrap();
    let copy = root.path().join("copy.db");
    let mut import = super::import::Import::begin(&copy).unwrap();
    let columns = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let damaged = |result: Result<(), StoreError>| {
        assert!(matches!(result, Err(StoreError::Damaged { .. })), "{result:?}");
    };
    damaged(import.row(vec![Cell::Null]));
    for table in ["requests", "nothing", "keys; DROP TABLE keys"] {
        damaged(import.table(table, &columns(&["tenant"])));
    }
    damaged(import.table("manifests", &columns(&["tenant"])));
    let all = columns(&["tenant", "revision", "row_set", "generation", "mac"]);
    import.table("manifests", &all).unwrap();
    damaged(import.row(vec![Cell::Text("t".into())]));
    damaged(import.row(vec![Cell::Null, Cell::Null, Cell::Null, Cell::Null, Cell::Null]));
    drop(import);
    // What was cut short is begun anew.
    super::import::Import::begin(&copy).unwrap().finish().unwrap();
    assert!(super::import::is_empty(&copy).unwrap());
    assert!(super::import::is_empty(&root.path().join("none.db")).unwrap());
}
