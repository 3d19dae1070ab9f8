//! Filling an empty database with the rows of a backup, in one transaction: it holds all of them, or is no database.
//!
//! The constraints of the schema hold for what comes, as for what is written otherwise. MACs are judged by who asked for it.

use std::path::{Path, PathBuf};

use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

use super::export::schema;
use super::open;
use crate::store::{BACKUP_TABLES, Cell, StoreError};

/// A database that is being filled.
#[derive(Debug)]
pub struct Import {
    opened: open::Opened,
    table: Option<(String, usize)>,
}

impl Import {
    /// Makes an empty database, in the place of whatever an import that was cut short has left there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn begin(file: &Path) -> Result<Self, StoreError> {
        for left in side_files(file) {
            match std::fs::remove_file(left) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(open::unavailable("remove what was left", &error)),
            }
        }
        let opened = open::open(file)?;
        opened.writer.execute_batch("BEGIN IMMEDIATE; PRAGMA defer_foreign_keys = ON")?;
        Ok(Self { opened, table: None })
    }

    /// Returns what tells its schema from others.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn schema(&self) -> Result<[u8; 32], StoreError> {
        schema(&self.opened.writer)
    }

    /// Goes on with the rows of a table.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when there is no such table, or it has other columns.
    pub fn table(&mut self, name: &str, columns: &[String]) -> Result<(), StoreError> {
        let foreign = |what: &str| StoreError::Damaged { detail: format!("table `{name}` {what}") };
        if !BACKUP_TABLES.contains(&name) {
            return Err(foreign("is none of a backup"));
        }
        // Only now: the name stands in the statement.
        let statement = self.opened.writer.prepare(&format!("SELECT * FROM {name} LIMIT 0"))?;
        if !statement.column_names().eq(columns.iter().map(String::as_str)) {
            return Err(foreign("has other columns"));
        }
        let places = vec!["?"; columns.len()].join(", ");
        self.table = Some((format!("INSERT INTO {name} VALUES ({places})"), columns.len()));
        Ok(())
    }

    /// Adds a row.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when it is none of the table, or breaks a constraint.
    pub fn row(&mut self, cells: Vec<Cell>) -> Result<(), StoreError> {
        let damaged = |detail: String| StoreError::Damaged { detail };
        let Some((sql, columns)) = &self.table else {
            return Err(damaged("a row before its table".into()));
        };
        if cells.len() != *columns {
            return Err(damaged("a row with another number of columns".into()));
        }
        let values = cells.into_iter().map(|cell| match cell {
            Cell::Null => Value::Null,
            Cell::Integer(number) => Value::Integer(number),
            Cell::Text(text) => Value::Text(text),
            Cell::Blob(bytes) => Value::Blob(bytes),
        });
        let inserted = self.opened.writer.prepare_cached(sql)?.execute(params_from_iter(values));
        inserted.map(drop).map_err(|error| damaged(format!("a row is refused: {error}")))
    }

    /// Ends: all rows are there, durably.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when rows refer to others that are not there.
    pub fn finish(self) -> Result<(), StoreError> {
        let open::Opened { writer, lock, .. } = self.opened;
        let committed = writer.execute_batch("COMMIT");
        committed.map_err(|error| StoreError::Damaged { detail: error.to_string() })?;
        close(writer)?;
        drop(lock);
        Ok(())
    }
}

fn close(writer: Connection) -> Result<(), StoreError> {
    writer.close().map_err(|(_, error)| StoreError::from(error))
}

/// Returns whether a database holds anything that an import would take the place of. One without a root never served.
///
/// # Errors
/// When it cannot be read, or a server holds it.
pub fn is_empty(file: &Path) -> Result<bool, StoreError> {
    if !file.exists() {
        return Ok(true);
    }
    Ok(super::offline::OfflineStore::open(file)?.root_pins()?.is_empty())
}

/// Puts a database that no one has open in the place of another, durably.
///
/// # Errors
/// When it cannot be done, or the database was not closed.
pub fn put_in_place(from: &Path, to: &Path) -> Result<(), StoreError> {
    let failed = |error: std::io::Error| open::unavailable("put the database in its place", &error);
    let [_, wal, shm, _] = side_files(from);
    if wal.metadata().is_ok_and(|wal| wal.len() > 0) {
        return Err(StoreError::Unavailable { detail: "the database was not closed".into() });
    }
    let [_, old_wal, old_shm, _] = side_files(to);
    let mut left = vec![wal, shm, old_wal, old_shm];
    for file in left.drain(..) {
        match std::fs::remove_file(file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed(error));
            }
            Ok(()) | Err(_) => {}
        }
    }
    std::fs::rename(from, to).map_err(failed)?;
    let _ = std::fs::remove_file(open::lock_path(from));
    open::sync_directory(&open::directory_of(to)).map_err(failed)
}

/// The file, and what SQLite and we keep beside it.
fn side_files(file: &Path) -> [PathBuf; 4] {
    ["", "-wal", "-shm", ".lock"].map(|ending| {
        let mut name = file.as_os_str().to_owned();
        name.push(ending);
        name.into()
    })
}
