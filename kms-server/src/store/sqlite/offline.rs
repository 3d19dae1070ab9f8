//! A database that no server has open, looked at without a single write, not even of SQLite's side files.
//!
//! A file without a write-ahead log is opened as immutable. One that a crash left has its log read as well: its index is
//! kept in memory, and nothing is checkpointed. The lock file keeps servers away meanwhile; SQLite's own locks, which
//! need its shared-memory file, are not taken.

use std::fs::{File, TryLockError};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use kms_core::alias::AliasRow;
use kms_core::consumer::ConsumerRow;
use kms_core::id::{KeyUid, KeyVersion};
use kms_core::import_job::ImportJobRow;
use kms_core::key::{CounterRow, KeyRow, RowMac, Sealed, VersionRow};
use kms_core::lifecycle::HistoryRow;
use kms_core::manifest::Manifest;
use kms_core::root::{RetiredRoot, RootPin};
use kms_core::usage::UsageRow;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Params, Row};

use super::migrate::{MIGRATIONS, require_current};
use super::{open, read, reseal};
use crate::store::rows;
use crate::store::{Intent, RequestRecord, StoreError};

/// Faults of the file's own structure that are told: of more, there is one cause.
const MAX_FAULTS: u32 = 100;

/// What a stored row is, or which one cannot be read.
pub type Looked<R> = Result<R, Damaged>;

/// A row with a value outside its type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// Of which key, where that can be read.
    pub key_uid: Option<KeyUid>,
    /// Of which version, where that can be read.
    pub version: Option<KeyVersion>,
    /// What cannot be read.
    pub detail: String,
}

/// A database that is only looked at.
#[derive(Debug)]
pub struct OfflineStore {
    connection: Connection,
    /// Keeps servers away; `None` when there is no lock file, so that none ever ran on this copy.
    _lock: Option<File>,
}

impl OfflineStore {
    /// Opens a database that this release wrote.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when there is none, or a server holds it; [`StoreError::Schema`] when its schema is not
    /// this release's.
    pub fn open(file: &Path) -> Result<Self, StoreError> {
        let lock = hold(&open::lock_path(file))?;
        let file =
            file.canonicalize().map_err(|error| open::unavailable("find the database", &error))?;
        let mut wal = file.as_os_str().to_owned();
        wal.push("-wal");
        let has_log = std::fs::metadata(&wal).is_ok_and(|metadata| metadata.len() > 0);
        let how = if has_log { "vfs=unix-none" } else { "immutable=1" };
        let uri = format!("file:{}?mode=ro&{how}", percent_encoded(&file));
        let connection = open::connect(
            Path::new(&uri),
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI,
        )?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        // Before the first read: then the index of the write-ahead log is in memory and not in a file.
        connection.pragma_update_and_check(None, "locking_mode", "EXCLUSIVE", |_| Ok(()))?;
        connection.pragma_update(None, "query_only", true)?;
        require_current(&connection, MIGRATIONS)?;
        Ok(Self { connection, _lock: lock })
    }

    /// Returns what is wrong with the file itself: damaged B-trees, indexes that do not fit their tables, broken NOT NULL
    /// constraints, [`MAX_FAULTS`] at most. Reads every page. A database that is open for reading only has no CHECK
    /// constraints for SQLite (`sqlite3AddCheckConstraint`): what breaks one is found as a row that cannot be decoded or
    /// does not fit its MAC.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn faults(&self) -> Result<Vec<String>, StoreError> {
        let sql = format!("PRAGMA integrity_check({MAX_FAULTS})");
        let mut statement = self.connection.prepare(&sql)?;
        let told = statement.query_map([], |row| row.get(0))?;
        let told: Vec<String> = told.collect::<Result<_, _>>()?;
        Ok(told.into_iter().filter(|line| line != "ok").collect())
    }

    /// Returns the pinned root sets.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn root_pins(&self) -> Result<Vec<(RootPin, RowMac)>, StoreError> {
        read::root_pins(&self.connection)
    }

    /// Returns the root sets that are retired.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn retired_roots(&self) -> Result<Vec<Sealed<RetiredRoot>>, StoreError> {
        reseal::retired_roots(&self.connection)
    }

    /// Returns the ids of all tenants that have a manifest or a key, as they stand there.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn tenants(&self) -> Result<Vec<String>, StoreError> {
        let sql = "SELECT tenant FROM manifests UNION SELECT tenant FROM keys
            UNION SELECT tenant FROM import_jobs UNION SELECT tenant FROM aliases";
        let mut statement = self.connection.prepare(sql)?;
        let tenants = statement.query_map([], |row| row.get(0))?;
        Ok(tenants.collect::<Result<_, _>>()?)
    }

    /// Returns the manifest of a tenant.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn manifest(&self, tenant: &str) -> Result<Option<Looked<Sealed<Manifest>>>, StoreError> {
        let mut found = None;
        let sql = "SELECT * FROM manifests WHERE tenant = ?1";
        self.each(sql, [tenant], rows::manifest, NOTHING, |row| {
            found = Some(row);
            Ok::<_, StoreError>(())
        })?;
        Ok(found)
    }

    /// Hands over each key of a tenant, with its uid.
    ///
    /// # Errors
    /// When they cannot be read, or `each` fails.
    pub fn keys<E: From<StoreError>>(
        &self,
        tenant: &str,
        each: impl FnMut(Looked<Sealed<KeyRow>>) -> Result<(), E>,
    ) -> Result<(), E> {
        let sql = "SELECT * FROM keys WHERE tenant = ?1 ORDER BY key_id";
        self.each(sql, [tenant], rows::key, ("uid", ""), each)
    }

    /// Hands over each version of a key, by number.
    ///
    /// # Errors
    /// When they cannot be read, or `each` fails.
    pub fn versions<E: From<StoreError>>(
        &self,
        key_uid: KeyUid,
        each: impl FnMut(Looked<Sealed<VersionRow>>) -> Result<(), E>,
    ) -> Result<(), E> {
        let sql = "SELECT * FROM versions WHERE key_uid = ?1 ORDER BY version";
        self.each(sql, [key_uid.as_bytes()], rows::version, ("key_uid", "version"), each)
    }

    /// Hands over the counter of each version of a key.
    ///
    /// # Errors
    /// When they cannot be read, or `each` fails.
    pub fn counters<E: From<StoreError>>(
        &self,
        key_uid: KeyUid,
        each: impl FnMut(Looked<Sealed<CounterRow>>) -> Result<(), E>,
    ) -> Result<(), E> {
        let sql = "SELECT * FROM counters WHERE key_uid = ?1 ORDER BY version";
        self.each(sql, [key_uid.as_bytes()], rows::counter, ("key_uid", "version"), each)
    }

    /// Hands over how each version of a key was used.
    ///
    /// # Errors
    /// When they cannot be read, or `each` fails.
    pub fn usage<E: From<StoreError>>(
        &self,
        key_uid: KeyUid,
        each: impl FnMut(Looked<Sealed<UsageRow>>) -> Result<(), E>,
    ) -> Result<(), E> {
        let sql = "SELECT * FROM usage WHERE key_uid = ?1 ORDER BY version";
        self.each(sql, [key_uid.as_bytes()], rows::usage, ("key_uid", "version"), each)
    }

    /// Hands over the consumers of a key.
    ///
    /// # Errors
    /// When they cannot be read, or `each` fails.
    pub fn consumers<E: From<StoreError>>(
        &self,
        key_uid: KeyUid,
        each: impl FnMut(Looked<Sealed<ConsumerRow>>) -> Result<(), E>,
    ) -> Result<(), E> {
        let sql = "SELECT * FROM consumers WHERE key_uid = ?1 ORDER BY consumer_id";
        self.each(sql, [key_uid.as_bytes()], rows::consumer, NOTHING, each)
    }

    /// Hands over the aliases of a tenant, whatever they point to.
    ///
    /// # Errors
    /// When they cannot be read, or `each` fails.
    pub fn aliases<E: From<StoreError>>(
        &self,
        tenant: &str,
        each: impl FnMut(Looked<Sealed<AliasRow>>) -> Result<(), E>,
    ) -> Result<(), E> {
        let sql = "SELECT * FROM aliases WHERE tenant = ?1 ORDER BY alias_id";
        self.each(sql, [tenant], rows::alias, ("key_uid", ""), each)
    }

    /// Hands over the import jobs of a tenant.
    ///
    /// # Errors
    /// When they cannot be read, or `each` fails.
    pub fn import_jobs<E: From<StoreError>>(
        &self,
        tenant: &str,
        each: impl FnMut(Looked<Sealed<ImportJobRow>>) -> Result<(), E>,
    ) -> Result<(), E> {
        let sql = "SELECT * FROM import_jobs WHERE tenant = ?1 ORDER BY id";
        self.each(sql, [tenant], rows::import_job, ("key_uid", ""), each)
    }

    /// Hands over the history of a key.
    ///
    /// # Errors
    /// When it cannot be read, or `each` fails.
    pub fn history<E: From<StoreError>>(
        &self,
        key_uid: KeyUid,
        each: impl FnMut(Looked<Sealed<HistoryRow>>) -> Result<(), E>,
    ) -> Result<(), E> {
        let sql = "SELECT * FROM history WHERE key_uid = ?1 ORDER BY version, revision";
        self.each(sql, [key_uid.as_bytes()], rows::history, ("key_uid", "version"), each)
    }

    /// Hands over each intent.
    ///
    /// # Errors
    /// When they cannot be read, or `each` fails.
    pub fn intents<E: From<StoreError>>(
        &self,
        each: impl FnMut(Looked<Sealed<Intent>>) -> Result<(), E>,
    ) -> Result<(), E> {
        let sql = "SELECT * FROM intents ORDER BY sequence";
        self.each(sql, [], rows::intent, ("key_uid", "version"), each)
    }

    /// Hands over each remembered request.
    ///
    /// # Errors
    /// When they cannot be read, or `each` fails.
    pub fn requests<E: From<StoreError>>(
        &self,
        each: impl FnMut(Looked<Sealed<RequestRecord>>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.each("SELECT * FROM requests", [], rows::request, NOTHING, each)
    }

    /// Hands over each version, consumer or history row without a key, and each counter without a version, with the name of its table.
    ///
    /// # Errors
    /// When they cannot be read, or `each` fails.
    pub fn strays<E: From<StoreError>>(
        &self,
        mut each: impl FnMut(&'static str, Damaged) -> Result<(), E>,
    ) -> Result<(), E> {
        let without_key = "SELECT key_uid, version FROM versions AS stray
            WHERE NOT EXISTS (SELECT 1 FROM keys WHERE uid = stray.key_uid)";
        let history = "SELECT key_uid, version FROM history AS stray
            WHERE NOT EXISTS (SELECT 1 FROM keys WHERE uid = stray.key_uid)";
        let consumers = "SELECT key_uid, 0 AS version FROM consumers AS stray
            WHERE NOT EXISTS (SELECT 1 FROM keys WHERE uid = stray.key_uid)";
        let without_version = "SELECT key_uid, version FROM counters AS stray
            WHERE NOT EXISTS (SELECT 1 FROM versions AS v
                              WHERE v.key_uid = stray.key_uid AND v.version = stray.version)";
        for (table, sql) in [
            ("versions", without_key),
            ("history", history),
            ("consumers", consumers),
            ("counters", without_version),
        ] {
            let stray = |_: &dyn rows::Row| -> Result<(), StoreError> {
                Err(StoreError::Damaged { detail: "belongs to nothing".into() })
            };
            self.each(sql, [], stray, ("key_uid", "version"), |row| match row {
                Ok(()) => Ok(()),
                Err(stray) => each(table, stray),
            })?;
        }
        Ok(())
    }

    /// Returns whether a version is there.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn has_version(&self, key_uid: KeyUid, version: KeyVersion) -> Result<bool, StoreError> {
        let sql = "SELECT 1 FROM versions WHERE key_uid = ?1 AND version = ?2";
        let mut statement = self.connection.prepare_cached(sql)?;
        Ok(statement.exists((key_uid.as_bytes(), version.get()))?)
    }

    /// Streams rows. `place` names the columns with uid and version, for those that cannot be read.
    fn each<R, E: From<StoreError>>(
        &self,
        sql: &str,
        parameters: impl Params,
        decode: impl Fn(&dyn rows::Row) -> Result<R, StoreError>,
        place: (&str, &str),
        mut each: impl FnMut(Looked<R>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut statement = self.connection.prepare_cached(sql).map_err(StoreError::from)?;
        let mut found = statement.query(parameters).map_err(StoreError::from)?;
        while let Some(row) = found.next().map_err(StoreError::from)? {
            each(match decode(row) {
                Ok(row) => Ok(row),
                Err(StoreError::Damaged { detail }) => Err(damaged(row, place, detail)),
                Err(other) => return Err(other.into()),
            })?;
        }
        Ok(())
    }
}

/// For tables without uid and version.
const NOTHING: (&str, &str) = ("", "");

fn damaged(row: &Row<'_>, (uid, version): (&str, &str), detail: String) -> Damaged {
    let key_uid = row.get::<_, [u8; 16]>(uid).ok().map(KeyUid::from_bytes);
    let version = row.get::<_, u32>(version).ok().and_then(KeyVersion::new);
    Damaged { key_uid, version, detail }
}

/// Takes the lock that a server holds, without making its file.
fn hold(path: &Path) -> Result<Option<File>, StoreError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(open::unavailable("open the lock file", &error)),
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(open::held()),
        Err(TryLockError::Error(error)) => Err(open::unavailable("lock", &error)),
    }
}

/// Writes a path as the path of a URI (RFC 3986 §3.3).
fn percent_encoded(path: &Path) -> String {
    let encode = |byte: &u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' | b'~' => {
            char::from(*byte).to_string()
        }
        other => format!("%{other:02X}"),
    };
    path.as_os_str().as_bytes().iter().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::MetadataExt as _;
    use std::path::PathBuf;

    use super::super::SqliteStore;
    use super::*;
    use crate::store::Store as _;
    use crate::store::suite::{closing, intent, new_key, sealed};

    /// A directory whose name means something in a URI.
    fn directory() -> tempfile::TempDir {
        tempfile::Builder::new().prefix("a?b%20 #").tempdir().unwrap()
    }

    async fn written(file: &Path) -> SqliteStore {
        let store = SqliteStore::open(file).unwrap();
        store.open_intent(sealed(intent(1))).await.unwrap();
        store.create_key(new_key(1), closing(1, 0)).await.unwrap();
        store
    }

    fn content(directory: &Path) -> BTreeMap<PathBuf, (Vec<u8>, i64, i64)> {
        let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let look = |path: PathBuf| {
            let metadata = path.metadata().unwrap();
            let bytes = std::fs::read(&path).unwrap();
            (path, (bytes, metadata.mtime(), metadata.mtime_nsec()))
        };
        files.map(look).collect()
    }

    fn keys(store: &OfflineStore) -> Vec<Looked<Sealed<KeyRow>>> {
        let mut keys = Vec::new();
        let each = |key| {
            keys.push(key);
            Ok::<_, StoreError>(())
        };
        store.keys("t1", each).unwrap();
        keys
    }

    #[tokio::test]
    async fn a_database_is_read_and_not_a_byte_is_written() {
        let directory = directory();
        let file = directory.path().join("store.db");
        written(&file).await.close().await;
        let before = content(directory.path());
        let store = OfflineStore::open(&file).unwrap();
        assert_eq!(keys(&store), [Ok(new_key(1).key)]);
        assert_eq!(store.faults().unwrap(), Vec::<String>::new());
        assert_eq!(store.tenants().unwrap(), ["t1"]);
        let manifest = closing(1, 0).manifest.manifest;
        assert_eq!(store.manifest("t1").unwrap(), Some(Ok(manifest)));
        drop(store);
        assert_eq!(content(directory.path()), before);
    }

    /// As a kill leaves it: the rows are in the write-ahead log alone.
    #[tokio::test]
    async fn what_a_crash_left_in_the_log_is_read_and_left_there() {
        for files in [&["", "-wal", "-shm"][..], &["", "-wal"]] {
            let (alive, directory) = (directory(), directory());
            let (source, file) = (alive.path().join("a.db"), directory.path().join("a.db"));
            let store = written(&source).await;
            let beside = |path: &Path, ending: &str| format!("{}{ending}", path.display());
            for ending in files {
                std::fs::copy(beside(&source, ending), beside(&file, ending)).unwrap();
            }
            store.close().await;
            let before = content(directory.path());
            let store = OfflineStore::open(&file).unwrap();
            assert_eq!(keys(&store), [Ok(new_key(1).key)], "{files:?}");
            drop(store);
            assert_eq!(content(directory.path()), before, "{files:?}");
        }
    }

    #[tokio::test]
    async fn a_database_that_a_server_holds_is_refused_and_held_it_keeps_servers_away() {
        let directory = directory();
        let file = directory.path().join("store.db");
        let server = written(&file).await;
        assert_eq!(OfflineStore::open(&file).unwrap_err(), open::held());
        server.close().await;
        let offline = OfflineStore::open(&file).unwrap();
        assert_eq!(SqliteStore::open(&file).unwrap_err(), open::held());
        drop(offline);
        SqliteStore::open(&file).unwrap();
    }

    #[tokio::test]
    async fn faults_are_told_up_to_their_bound_and_not_one_more() {
        let directory = directory();
        let file = directory.path().join("store.db");
        written(&file).await.close().await;
        // Whoever edits the schema of a database can have a column take NULLs for a while.
        let redefine = |from: &str, to: &str| {
            let editor = Connection::open(&file).unwrap();
            editor.pragma_update(None, "writable_schema", true).unwrap();
            let sql =
                "UPDATE sqlite_schema SET sql = replace(sql, ?1, ?2) WHERE name = 'request_counts'";
            assert_eq!(editor.execute(sql, [from, to]).unwrap(), 1);
        };
        let (strict, lax) = ("remembered INTEGER NOT NULL", "remembered INTEGER");
        for (broken, told) in [(MAX_FAULTS, MAX_FAULTS), (MAX_FAULTS + 1, MAX_FAULTS)] {
            redefine(strict, lax);
            let editor = Connection::open(&file).unwrap();
            editor.execute("DELETE FROM request_counts", []).unwrap();
            for number in 0..broken {
                let sql = "INSERT INTO request_counts (tenant, remembered) VALUES (?1, NULL)";
                editor.execute(sql, [format!("t{number}")]).unwrap();
            }
            drop(editor);
            redefine(lax, strict);
            let faults = OfflineStore::open(&file).unwrap().faults().unwrap();
            assert_eq!(faults.len(), told as usize, "{broken}");
            assert!(faults.iter().all(|fault| fault.contains("request_counts")), "{faults:?}");
        }
    }

    #[test]
    fn what_is_not_our_database_is_refused() {
        let directory = directory();
        let file = directory.path().join("store.db");
        assert!(matches!(OfflineStore::open(&file), Err(StoreError::Unavailable { .. })));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing was made");
        Connection::open(&file).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
        assert!(matches!(OfflineStore::open(&file), Err(StoreError::Schema { .. })));
    }
}
