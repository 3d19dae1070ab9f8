//! A whole store as plain rows, for backups: what is stored as it is stored, sealed, and nothing judged.

use tokio::sync::mpsc;

use super::StoreError;

/// The tables of a backup, in an order in which rows can be put back. Left out are `requests` and `intents`, which are of a
/// running server, `request_counts`, which follows from `requests`, and `probe`.
pub const BACKUP_TABLES: [&str; 11] = [
    "roots",
    "retired_roots",
    "keys",
    "versions",
    "consumers",
    "aliases",
    "history",
    "counters",
    "usage",
    "manifests",
    "import_jobs",
];

/// One value of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// None.
    Null,
    /// An integer.
    Integer(i64),
    /// A text.
    Text(String),
    /// Bytes.
    Blob(Vec<u8>),
}

/// What a store holds, told before its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportHead {
    /// SHA-256 of the checksums of all migrations.
    pub schema: [u8; 32],
    /// How many rows follow.
    pub rows: u64,
    /// How many keys are among them.
    pub keys: u64,
    /// How many tenants.
    pub tenants: u64,
    /// Intents that are not over, and are left out.
    pub intents: u64,
    /// Remembered requests, which are left out.
    pub requests: u64,
}

/// A part of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exported {
    /// Comes first.
    Head(ExportHead),
    /// The rows of a table follow.
    Table {
        /// Its name, one of [`BACKUP_TABLES`].
        name: &'static str,
        /// Its columns.
        columns: Vec<String>,
    },
    /// A row.
    Row(Vec<Cell>),
    /// All was told.
    End,
}

/// An export on its way: bounded, so that whoever does not take it holds it up. Dropping it ends it.
pub type Exporting = mpsc::Receiver<Result<Vec<Exported>, StoreError>>;
