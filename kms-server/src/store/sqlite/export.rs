//! All rows in one read transaction: what they are does not change while they are told, whatever is written meanwhile.
//!
//! The write-ahead log grows as long as the transaction lasts; whoever takes the rows has deadlines.

use std::path::Path;

use aws_lc_rs::digest::{Context, SHA256};
use rusqlite::Connection;
use rusqlite::types::ValueRef;
use tokio::sync::mpsc;

use super::{open, spawn};
use crate::store::{BACKUP_TABLES, Cell, ExportHead, Exported, Exporting, StoreError};

/// How many bytes of rows travel together.
const BATCH_BYTES: usize = 64 << 10;
/// Batches that wait to be taken.
const WAITING: usize = 4;

type Sender = mpsc::Sender<Result<Vec<Exported>, StoreError>>;

/// Begins an export, on a thread and a connection of its own.
pub(super) fn export(file: &Path) -> Result<Exporting, StoreError> {
    let (sender, exporting) = mpsc::channel(WAITING);
    let file = file.to_owned();
    spawn("store-export", move || {
        if let Err(error) =
            open::open_reader(&file).and_then(|connection| tell(&connection, &sender))
        {
            // Nobody may listen any more.
            let _ = sender.blocking_send(Err(error));
        }
    })?;
    Ok(exporting)
}

fn tell(connection: &Connection, sender: &Sender) -> Result<(), StoreError> {
    let transaction = connection.unchecked_transaction()?;
    let mut batch = Batch { sender, parts: vec![Exported::Head(head(&transaction)?)], bytes: 0 };
    for name in BACKUP_TABLES {
        let mut statement = transaction.prepare(&format!("SELECT * FROM {name}"))?;
        let columns: Vec<String> = statement.column_names().map(Into::into).collect();
        let count = columns.len();
        if !batch.add(Exported::Table { name, columns }, 0) {
            return Ok(());
        }
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (mut cells, mut bytes) = (Vec::with_capacity(count), 0);
            for column in 0..count {
                let cell = cell(row.get_ref(column)?)?;
                bytes += size(&cell);
                cells.push(cell);
            }
            if !batch.add(Exported::Row(cells), bytes) {
                return Ok(());
            }
        }
    }
    batch.add(Exported::End, BATCH_BYTES);
    Ok(())
}

fn head(connection: &Connection) -> Result<ExportHead, StoreError> {
    let count = |sql: &str| -> Result<u64, StoreError> {
        let count: i64 = connection.query_row(sql, [], |row| row.get(0))?;
        Ok(u64::try_from(count).unwrap_or(0))
    };
    let of = |table: &str| count(&format!("SELECT count(*) FROM {table}"));
    let mut rows = 0;
    for table in BACKUP_TABLES {
        rows += of(table)?;
    }
    Ok(ExportHead {
        schema: schema(connection)?,
        rows,
        keys: of("keys")?,
        tenants: of("manifests")?,
        intents: of("intents")?,
        requests: of("requests")?,
    })
}

/// Returns what tells one schema from another: the checksums of its migrations.
pub(super) fn schema(connection: &Connection) -> Result<[u8; 32], StoreError> {
    let mut statement = connection.prepare("SELECT checksum FROM migrations ORDER BY number")?;
    let mut rows = statement.query([])?;
    let mut hash = Context::new(&SHA256);
    while let Some(row) = rows.next()? {
        let checksum: Vec<u8> = row.get(0)?;
        hash.update(&checksum);
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(hash.finish().as_ref());
    Ok(digest)
}

fn cell(value: ValueRef<'_>) -> Result<Cell, StoreError> {
    Ok(match value {
        ValueRef::Null => Cell::Null,
        ValueRef::Integer(number) => Cell::Integer(number),
        ValueRef::Text(text) => {
            let text = std::str::from_utf8(text);
            let damaged = |_| StoreError::Damaged { detail: "a text is not UTF-8".into() };
            Cell::Text(text.map_err(damaged)?.to_owned())
        }
        ValueRef::Blob(bytes) => Cell::Blob(bytes.to_vec()),
        // No column of a STRICT table of ours takes one.
        ValueRef::Real(_) => {
            return Err(StoreError::Damaged { detail: "a number is not an integer".into() });
        }
    })
}

fn size(cell: &Cell) -> usize {
    match cell {
        Cell::Null => 1,
        Cell::Integer(_) => 9,
        Cell::Text(text) => text.len() + 5,
        Cell::Blob(bytes) => bytes.len() + 5,
    }
}

struct Batch<'s> {
    sender: &'s Sender,
    parts: Vec<Exported>,
    bytes: usize,
}

impl Batch<'_> {
    /// Adds a part; returns whether anybody takes them still.
    fn add(&mut self, part: Exported, bytes: usize) -> bool {
        self.parts.push(part);
        self.bytes += bytes;
        if self.bytes < BATCH_BYTES {
            return true;
        }
        self.bytes = 0;
        self.sender.blocking_send(Ok(std::mem::take(&mut self.parts))).is_ok()
    }
}
