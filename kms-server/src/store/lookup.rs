//! What the store is asked for, and the shapes it answers in.

use kms_core::clock::Timestamp;
use kms_core::id::{KeyUid, KeyVersion, Revision};
use kms_core::key::{CkaId, KeyRow, Sealed, VersionRow};
use kms_core::lifecycle::HistoryRow;
use kms_core::name::{AliasName, KeyName, TenantName};

/// A key and those of its versions that were asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredKey {
    /// The key.
    pub key: Sealed<KeyRow>,
    /// The version asked for: the primary, or a given one. `None` when there is no such version.
    pub version: Option<Sealed<VersionRow>>,
}

/// Which version to read with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionChoice {
    /// The one that the key row names primary.
    Primary,
    /// This one.
    Number(KeyVersion),
}

/// A key, by name or by uid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyRef {
    /// By name.
    Name(KeyName),
    /// By uid, as an envelope names it.
    Uid(KeyUid),
}

/// Which aliases to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AliasQuery {
    /// The one of this name.
    Name(AliasName),
    /// The one of a tenant that looks like this.
    Skeleton {
        /// The tenant.
        tenant: TenantName,
        /// As [`kms_core::alias::skeleton`] makes it.
        skeleton: String,
    },
    /// Those of a tenant, or those that point to one of its keys, by revision.
    Of {
        /// The tenant.
        tenant: TenantName,
        /// The key; `None` for all.
        key_uid: Option<KeyUid>,
        /// After the one of this revision; 0 for the first.
        after: Revision,
        /// How many at most.
        limit: u32,
    },
}

/// Rows that were read in bulk, and how many could not be: one that is damaged must not hide the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed<R> {
    /// Those that could be read.
    pub rows: Vec<R>,
    /// How many have a value outside its type. Any is an alert.
    pub damaged: usize,
}

/// A place in the list of keys: after this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListPosition {
    /// Create time of the last key seen.
    pub create_time: Timestamp,
    /// Uid of the last key seen.
    pub uid: KeyUid,
}

/// In which order keys are listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListOrder {
    /// By what.
    pub by: ListBy,
    /// The last first.
    pub descending: bool,
}

/// By what keys are listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ListBy {
    /// When they were created, and those of one time by uid.
    #[default]
    CreateTime,
    /// Their ids.
    KeyId,
}

/// A place in an ordered list of keys: behind this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListPlace {
    /// Where it is by time.
    pub position: ListPosition,
    /// Its id.
    pub key_id: String,
}

/// A place in a list of what is due: after this row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DuePosition {
    /// When it was due.
    pub time: Timestamp,
    /// Its key.
    pub key_uid: KeyUid,
    /// Its version; 0 for a key.
    pub version: u32,
}

/// A place in the list of import jobs that have expired: after this job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobPosition {
    /// When it expired.
    pub time: Timestamp,
    /// Its id.
    pub id: CkaId,
}

/// A place in the history of a key: after this entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryPosition {
    /// Its time.
    pub time: Timestamp,
    /// Its version; 0 for an entry about the key.
    pub version: u32,
    /// Its revision.
    pub revision: Revision,
}

impl HistoryPosition {
    /// Returns the place of an entry.
    pub const fn of(row: &HistoryRow) -> Self {
        Self { time: row.time, version: row.version_number(), revision: row.revision }
    }
}
