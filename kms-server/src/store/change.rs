//! What the store is told to change, in one transaction each.

use kms_core::alias::AliasRow;
use kms_core::clock::Timestamp;
use kms_core::consumer::ConsumerRow;
use kms_core::id::{RequestId, Revision};
use kms_core::import_job::ImportJobRow;
use kms_core::key::{CounterRow, KeyRow, Sealed, VersionRow};
use kms_core::lifecycle::HistoryRow;
use kms_core::manifest::Manifest;
use kms_core::name::TenantName;

use super::Intent;

/// A manifest as it was before and as it becomes, in the same transaction as the rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestChange {
    /// The revision that is expected now; 0 when the tenant has no manifest yet.
    pub expected: Revision,
    /// What it becomes.
    pub manifest: Sealed<Manifest>,
}

/// The memory of a mutation, for AIP-155.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRecord {
    /// Whose rows were changed: the tenant has [`MAX_REMEMBERED_REQUESTS`](super::MAX_REMEMBERED_REQUESTS) at most.
    pub tenant: TenantName,
    /// Who called.
    pub principal: String,
    /// The id that the caller chose.
    pub request_id: RequestId,
    /// Full method name.
    pub method: String,
    /// Hash of the canonical request; the same id with another hash is refused.
    pub request_hash: [u8; 32],
    /// The first result, encoded by the service that made it. Holds no secret.
    pub result: Vec<u8>,
    /// When it was recorded.
    pub time: Timestamp,
}

/// A new key with its first version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewKey {
    /// The key.
    pub key: Sealed<KeyRow>,
    /// Its version 1.
    pub version: Sealed<VersionRow>,
    /// The counter of version 1.
    pub counter: Sealed<CounterRow>,
    /// The import job that is used up by it; it is taken away. [`StoreError::NotFound`](super::StoreError::NotFound) when it is not
    /// there.
    pub import_job: Option<Sealed<ImportJobRow>>,
}

/// A new version in PRE_ACTIVATION, beside the primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Staging {
    /// The revision of the key row that is expected.
    pub expected_key: Revision,
    /// The key row, with one version more and the same primary.
    pub key: Sealed<KeyRow>,
    /// The new version.
    pub version: Sealed<VersionRow>,
    /// Its counter.
    pub counter: Sealed<CounterRow>,
    /// The import job that is used up by it; it is taken away. [`StoreError::NotFound`](super::StoreError::NotFound) when it is not
    /// there.
    pub import_job: Option<Sealed<ImportJobRow>>,
}

/// What becomes of an import job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImportJobEdit {
    /// It is made.
    Add(Sealed<ImportJobRow>),
    /// It is taken away, as it is.
    Remove(Sealed<ImportJobRow>),
}

/// A consumer that comes or goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerChange {
    /// The revision of the key row that is expected.
    pub expected_key: Revision,
    /// The key row, with one consumer more or less.
    pub key: Sealed<KeyRow>,
    /// Which.
    pub edit: ConsumerEdit,
}

/// What becomes of a consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsumerEdit {
    /// It is registered.
    Add(Sealed<ConsumerRow>),
    /// It is taken away, as it is.
    Remove(Sealed<ConsumerRow>),
}

/// An alias that comes, moves or goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AliasChange {
    /// The rows of the keys that it pointed to and points to then, one or two, each with the revision that is expected.
    pub keys: Vec<(Revision, Sealed<KeyRow>)>,
    /// Which.
    pub edit: AliasEdit,
}

/// What becomes of an alias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AliasEdit {
    /// It is made.
    Add(Sealed<AliasRow>),
    /// It points to another key.
    Move {
        /// The row as it is.
        from: Sealed<AliasRow>,
        /// The row as it becomes.
        to: Sealed<AliasRow>,
    },
    /// It is taken away, as it is.
    Remove(Sealed<AliasRow>),
}

/// What takes the place of a primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Successor {
    /// A version made for it.
    New {
        /// The version.
        version: Sealed<VersionRow>,
        /// Its counter.
        counter: Sealed<CounterRow>,
    },
    /// The version that was staged.
    Staged {
        /// The revision of its row that is expected.
        expected: Revision,
        /// Its row.
        version: Sealed<VersionRow>,
    },
}

/// A rollover: the key points to another version, the old one gets its planned deactivation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rollover {
    /// The revision of the key row that is expected.
    pub expected_key: Revision,
    /// The key row, with its new primary.
    pub key: Sealed<KeyRow>,
    /// What becomes the primary.
    pub successor: Successor,
    /// The revision of the old primary's row that is expected.
    pub expected_previous: Revision,
    /// The old primary.
    pub previous: Sealed<VersionRow>,
}

/// What ends with a mutation, in the same transaction as its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closing {
    /// The intent as it becomes: applied, with the stamp of this manifest. [`StoreError::NotFound`](super::StoreError::NotFound) when it is not
    /// there, or applied already.
    pub intent: Sealed<Intent>,
    /// The manifest of the tenant.
    pub manifest: ManifestChange,
    /// What the mutation adds to the history of its key.
    pub history: Vec<Sealed<HistoryRow>>,
    /// The caller's request id and the result; `None` for the reconciler's own changes. [`StoreError::RequestsFull`](super::StoreError::RequestsFull) when
    /// the tenant has [`MAX_REMEMBERED_REQUESTS`](super::MAX_REMEMBERED_REQUESTS).
    pub request: Option<Sealed<RequestRecord>>,
}
