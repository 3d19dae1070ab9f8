//! Opening the files: lock, modes, pragmas, integrity.
//!
//! The only place that touches the store's files besides SQLite itself. Opening blocks and belongs before serving.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::migrate::{MIGRATIONS, migrate};
use crate::store::StoreError;

/// Prepared statements kept a connection: all of them, there are about forty.
const STATEMENT_CACHE: usize = 64;
/// How long a connection waits for another of this process: they collide only while the WAL is reset.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Files up to this size are checked before the store opens (a few hundred ms at most); larger ones while it serves.
const CHECK_FIRST_BYTES: u64 = 16 << 20;

/// What [`open`] gives.
#[derive(Debug)]
pub(super) struct Opened {
    /// The connection that writes.
    pub(super) writer: Connection,
    /// Held as long as the store is open; the kernel releases it when the process dies.
    pub(super) lock: File,
    /// Whether the integrity check is still to be done.
    pub(super) check_pending: bool,
}

/// Locks, creates when missing, checks, and migrates the database `file`.
pub(super) fn open(file: &Path) -> Result<Opened, StoreError> {
    let directory = directory_of(file);
    make_directory(&directory).map_err(|error| unwritable("make the directory", &error))?;
    let lock = lock(&lock_path(file))?;
    make_file(file)?;
    let mut writer = connect(file, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    prepare_writer(&writer)?;
    let size = std::fs::metadata(file).map_err(|error| unavailable("measure", &error))?.len();
    let check_pending = size > CHECK_FIRST_BYTES;
    if !check_pending {
        quick_check(&writer)?;
    }
    migrate(&mut writer, MIGRATIONS)?;
    sync_directory(&directory).map_err(|error| unwritable("sync the directory", &error))?;
    Ok(Opened { writer, lock, check_pending })
}

/// Opens a connection that cannot write.
pub(super) fn open_reader(file: &Path) -> Result<Connection, StoreError> {
    let connection = connect(file, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

/// Reads every page; finds damaged B-trees, broken NOT NULL constraints and, where the connection may write, broken CHECK
/// constraints (SQLite does not read these on others).
pub(super) fn quick_check(connection: &Connection) -> Result<(), StoreError> {
    let mut statement = connection.prepare("PRAGMA quick_check(1)")?;
    let verdict: String = statement.query_row([], |row| row.get(0))?;
    if verdict == "ok" {
        return Ok(());
    }
    Err(StoreError::Damaged { detail: format!("integrity check: {verdict}: restore a backup") })
}

pub(super) fn connect(file: &Path, access: OpenFlags) -> Result<Connection, StoreError> {
    let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(file, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENT_CACHE);
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    Ok(connection)
}

fn prepare_writer(connection: &Connection) -> Result<(), StoreError> {
    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        return Err(StoreError::Unavailable { detail: format!("journal mode is {mode}, not wal") });
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "secure_delete", true)?;
    Ok(())
}

fn make_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    DirBuilder::new().mode(0o700).create(directory)?;
    sync_directory(&directory_of(directory))
}

/// SQLite gives its side files the mode of the main file, so that is what has to be right.
fn make_file(file: &Path) -> Result<(), StoreError> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(file) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => require_private(file),
        Err(error) => Err(unwritable("create the file", &error)),
    }
}

fn require_private(file: &Path) -> Result<(), StoreError> {
    let metadata = std::fs::metadata(file).map_err(|error| unavailable("look at", &error))?;
    let for_others = metadata.permissions().mode() & 0o077;
    if for_others == 0 {
        return Ok(());
    }
    Err(StoreError::Unavailable {
        detail: "the database file is open to others: chmod 600 it".into(),
    })
}

/// Another process has it open.
pub(super) fn held() -> StoreError {
    let detail = "another process holds the database (its .lock file is locked)".into();
    StoreError::Unavailable { detail }
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| unwritable("create the lock file", &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(held()),
        Err(TryLockError::Error(error)) => Err(unavailable("lock", &error)),
    }
}

pub(super) fn lock_path(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

pub(super) fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn unwritable(what: &str, error: &io::Error) -> StoreError {
    StoreError::Unwritable { detail: format!("cannot {what}: {error}") }
}

pub(super) fn unavailable(what: &str, error: &io::Error) -> StoreError {
    StoreError::Unavailable { detail: format!("cannot {what}: {error}") }
}
