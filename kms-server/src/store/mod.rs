//! The store: keys, versions, counters, manifests, intents and request ids, in a database.
//!
//! Responsible for the seam [`Store`] and its implementations; the only module that holds SQL. Every method is one
//! transaction with its precondition (the revision it expects): either all of it happened, durably, when it answers, or
//! nothing. The store moves sealed rows and never judges a MAC: the keyring does, on load.

mod change;
mod error;
mod export;
mod intent;
mod lookup;
pub mod postgres;
mod reseal;
mod rows;
mod seal;
pub mod sqlite;
#[cfg(test)]
pub(crate) mod suite;

use std::fmt;

use async_trait::async_trait;
use kms_core::alias::AliasRow;
use kms_core::clock::Timestamp;
use kms_core::consumer::ConsumerRow;
use kms_core::id::{IntentId, KeyUid, KeyVersion, RequestId, Revision, RootGeneration};
use kms_core::import_job::ImportJobRow;
use kms_core::key::{CkaId, CounterRow, KeyRow, RowMac, Sealed, VersionRow};
use kms_core::lifecycle::HistoryRow;
use kms_core::manifest::Manifest;
use kms_core::name::TenantName;
use kms_core::root::{RetiredRoot, RootPin};
use kms_core::usage::UsageRow;

pub use change::{
    AliasChange, AliasEdit, Closing, ConsumerChange, ConsumerEdit, ImportJobEdit, ManifestChange,
    NewKey, RequestRecord, Rollover, Staging, Successor,
};
pub use error::StoreError;
pub use export::{BACKUP_TABLES, Cell, ExportHead, Exported, Exporting};
pub use intent::{Intent, IntentKind};
pub use lookup::{
    AliasQuery, DuePosition, HistoryPosition, JobPosition, KeyRef, ListBy, ListOrder, ListPlace,
    ListPosition, Listed, StoredKey, VersionChoice,
};

pub use reseal::{OldCounts, OldRows, RequestPosition, Resealed, RowsLimit, SealedRow};

/// How long a `request_id` is remembered (AIP-155).
pub const REQUEST_MEMORY: std::time::Duration = std::time::Duration::from_hours(24);

/// The most requests remembered of one tenant: more than one change a second, all day long, or some hundred MiB. Without a
/// bound one tenant could fill the disk of all.
pub const MAX_REMEMBERED_REQUESTS: u64 = 100_000;

/// The most rows of one list, whatever limit was asked for: the longest page of the API, and one to see that more follow.
pub const MAX_LIST_ROWS: u32 = 1001;

/// The store. Implementations: SQLite and PostgreSQL; one conformance suite for both (`store/suite.rs`).
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug + 'static {
    /// Returns all pinned root sets with their MACs, by generation.
    async fn root_pins(&self) -> Result<Vec<(RootPin, RowMac)>, StoreError>;

    /// Pins a root set. Fails with [`StoreError::RevisionMismatch`] when the generation is pinned already.
    async fn add_root_pin(&self, pin: RootPin, mac: RowMac) -> Result<(), StoreError>;

    /// Returns the root sets that nothing depends on any more, by generation.
    async fn retired_roots(&self) -> Result<Vec<Sealed<RetiredRoot>>, StoreError>;

    /// Retires a root set: it is never opened again. Fails with [`StoreError::NotFound`] when it is not pinned, and with
    /// [`StoreError::RevisionMismatch`] when it is retired already, or rows are sealed under it or an older one.
    async fn retire_root(&self, retired: Sealed<RetiredRoot>) -> Result<(), StoreError>;

    /// Lists rows of a tenant's keys that are sealed under a generation before `current`, key by key in the order of
    /// [`Store::list_keys`], after `after`; those of requests are not among them.
    async fn old_rows(
        &self,
        tenant: TenantName,
        current: RootGeneration,
        after: Option<ListPosition>,
        limit: RowsLimit,
    ) -> Result<OldRows, StoreError>;

    /// Lists remembered requests that are sealed under a generation before `current`, after `after`, at most `limit`.
    async fn old_requests(
        &self,
        current: RootGeneration,
        after: Option<RequestPosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<RequestRecord>>, StoreError>;

    /// Seals rows anew, and marks the intent applied. All are covered by the manifest; one that has not its expected MAC any
    /// more fails with [`StoreError::RevisionMismatch`], and nothing is written.
    async fn reseal(&self, rows: Vec<Resealed>, closing: Closing) -> Result<(), StoreError>;

    /// Seals rows anew that no manifest covers; returns how many had their expected MAC. The others are left.
    async fn reseal_loose(&self, rows: Vec<Resealed>) -> Result<u64, StoreError>;

    /// Counts what is sealed under a generation before `current`, and the keys there are. Slow: it looks at all rows.
    async fn old_counts(&self, current: RootGeneration) -> Result<OldCounts, StoreError>;

    /// Reads a key with one of its versions.
    async fn key(
        &self,
        key: KeyRef,
        version: VersionChoice,
    ) -> Result<Option<StoredKey>, StoreError>;

    /// Lists keys of a tenant by (create_time, uid), at most `limit`, after `after`.
    async fn list_keys(
        &self,
        tenant: TenantName,
        after: Option<ListPosition>,
        limit: u32,
    ) -> Result<Vec<Sealed<KeyRow>>, StoreError>;

    /// Lists keys of a tenant in an order, at most `limit`, behind `after`.
    async fn list_keys_ordered(
        &self,
        tenant: TenantName,
        order: ListOrder,
        after: Option<ListPlace>,
        limit: u32,
    ) -> Result<Vec<Sealed<KeyRow>>, StoreError>;

    /// Lists versions of a key by number, at most `limit`, after `after`.
    async fn list_versions(
        &self,
        key_uid: KeyUid,
        after: Option<KeyVersion>,
        limit: u32,
    ) -> Result<Vec<Sealed<VersionRow>>, StoreError>;

    /// Reads the revision of the last history entry of a version; `None` when it has none.
    async fn last_revision(
        &self,
        key_uid: KeyUid,
        version: KeyVersion,
    ) -> Result<Option<Revision>, StoreError>;

    /// Lists the consumers of a key by id, all of them: there are at most [`kms_core::consumer::MAX_CONSUMERS`].
    async fn list_consumers(&self, key_uid: KeyUid)
    -> Result<Vec<Sealed<ConsumerRow>>, StoreError>;

    /// Reads aliases, at most [`MAX_LIST_ROWS`].
    async fn aliases(&self, query: AliasQuery) -> Result<Vec<Sealed<AliasRow>>, StoreError>;

    /// Inserts, replaces or deletes an alias, replaces the rows of its keys, and marks the intent applied. Fails with
    /// [`StoreError::NameTaken`] when one of this id or skeleton, or a key of this id, is there; with
    /// [`StoreError::NotFound`] when the one to replace or delete is not there as it was.
    async fn change_alias(&self, change: AliasChange, closing: Closing) -> Result<(), StoreError>;

    /// Lists the import jobs of a tenant by id, all of them: there are at most
    /// [`kms_core::import_job::MAX_IMPORT_JOBS`].
    async fn list_import_jobs(
        &self,
        tenant: TenantName,
    ) -> Result<Vec<Sealed<ImportJobRow>>, StoreError>;

    /// Lists import jobs that have expired at `now`, at most `limit`, those that expired first first, after `after`.
    async fn due_import_jobs(
        &self,
        now: Timestamp,
        after: Option<JobPosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<ImportJobRow>>, StoreError>;

    /// Inserts or deletes an import job, and marks the intent applied. Fails with [`StoreError::NameTaken`] when one of this
    /// id is there, with [`StoreError::NotFound`] when it is not.
    async fn change_import_jobs(
        &self,
        edit: ImportJobEdit,
        closing: Closing,
    ) -> Result<(), StoreError>;

    /// Lists the history of a key by (time, version, revision), at most `limit`, after `after`.
    async fn list_history(
        &self,
        key_uid: KeyUid,
        after: Option<HistoryPosition>,
        limit: u32,
    ) -> Result<Vec<Sealed<HistoryRow>>, StoreError>;

    /// Reads the counter of a version.
    async fn counter(
        &self,
        key_uid: KeyUid,
        version: KeyVersion,
    ) -> Result<Option<Sealed<CounterRow>>, StoreError>;

    /// Reads how a version was used; `None` when it never was.
    async fn usage(
        &self,
        key_uid: KeyUid,
        version: KeyVersion,
    ) -> Result<Option<Sealed<UsageRow>>, StoreError>;

    /// Writes how versions were used, each at its expected revision, 0 where there is no row yet; one result each, one
    /// commit for all. A count never goes back.
    async fn update_usage(
        &self,
        changes: Vec<(Revision, Sealed<UsageRow>)>,
    ) -> Result<Vec<Result<(), StoreError>>, StoreError>;

    /// Replaces counters, each at its expected revision; one result each, one commit for all.
    async fn update_counters(
        &self,
        changes: Vec<(Revision, Sealed<CounterRow>)>,
    ) -> Result<Vec<Result<(), StoreError>>, StoreError>;

    /// Reads the manifest of a tenant.
    async fn manifest(&self, tenant: TenantName) -> Result<Option<Sealed<Manifest>>, StoreError>;

    /// Lists manifests by tenant id, at most `limit`, after `after`.
    async fn list_manifests(
        &self,
        after: Option<TenantName>,
        limit: u32,
    ) -> Result<Vec<Sealed<Manifest>>, StoreError>;

    /// Reads a remembered request.
    async fn request(
        &self,
        principal: String,
        request_id: RequestId,
    ) -> Result<Option<Sealed<RequestRecord>>, StoreError>;

    /// Looks whether one more request of a tenant can be remembered, before anything is done in vain. The mutation itself
    /// decides.
    ///
    /// # Errors
    /// [`StoreError::RequestsFull`] when not.
    async fn room_for_request(&self, tenant: TenantName) -> Result<(), StoreError>;

    /// Forgets requests recorded before `before`, the oldest first and `limit` at most; returns how many. Who is told
    /// `limit` asks again: others are served in between.
    async fn forget_requests(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError>;

    /// Records an intent, durably, before its effect. It is not applied yet, whatever `applied` says.
    async fn open_intent(&self, intent: Sealed<Intent>) -> Result<(), StoreError>;

    /// Lists the intents that are not closed, oldest first.
    async fn intents(&self) -> Result<Listed<Sealed<Intent>>, StoreError>;

    /// Forgets an intent: it was undone, or its outcome is in the log. Closing what is not there succeeds.
    async fn close_intent(&self, intent: IntentId) -> Result<(), StoreError>;

    /// Inserts a key with its first version and marks the intent applied. Fails with [`StoreError::NameTaken`] when a key, or an
    /// alias, of this id is there.
    async fn create_key(&self, new: NewKey, closing: Closing) -> Result<(), StoreError>;

    /// Replaces a key row at its expected revision and marks the intent applied.
    async fn update_key(
        &self,
        expected: Revision,
        key: Sealed<KeyRow>,
        closing: Closing,
    ) -> Result<(), StoreError>;

    /// Inserts or deletes a consumer, replaces the key row, and marks the intent applied. Fails with
    /// [`StoreError::NameTaken`] when one of this id is there, with [`StoreError::NotFound`] when it is not.
    async fn change_consumers(
        &self,
        change: ConsumerChange,
        closing: Closing,
    ) -> Result<(), StoreError>;

    /// Inserts a staged version, replaces the key row, and marks the intent applied. Fails with
    /// [`StoreError::RevisionMismatch`] when the key has a staged version already.
    async fn stage(&self, staging: Staging, closing: Closing) -> Result<(), StoreError>;

    /// Inserts or activates a version, moves the primary to it, replaces the old one's row, and marks the intent applied.
    async fn roll_over(&self, rollover: Rollover, closing: Closing) -> Result<(), StoreError>;

    /// Replaces a version row at its expected revision and marks the intent applied.
    async fn update_version(
        &self,
        expected: Revision,
        version: Sealed<VersionRow>,
        closing: Closing,
    ) -> Result<(), StoreError>;

    /// Lists the CKA_IDs of all import jobs, and of all resident versions that are not DESTROYED. Their MACs are not
    /// checked: good enough to tell what is not an orphan, never to decide what may be destroyed.
    async fn resident_ids(&self) -> Result<Listed<CkaId>, StoreError>;

    /// Counts keys that are not DESTROYED and whose primary was made at `time` or before. Slow: it looks at all of them.
    async fn primaries_made_before(&self, time: Timestamp) -> Result<u64, StoreError>;

    /// Lists versions whose planned deactivation is due at `now` and not written down yet, at most `limit`, those due first
    /// first, after `after`.
    async fn due_deactivations(
        &self,
        now: Timestamp,
        after: Option<DuePosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<VersionRow>>, StoreError>;

    /// Lists staged versions of enabled keys whose activation is due at `now`, at most `limit`, those due first first,
    /// after `after`.
    async fn due_activations(
        &self,
        now: Timestamp,
        after: Option<DuePosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<VersionRow>>, StoreError>;

    /// Lists keys whose primary is ACTIVE and due to give way at `now`, at most `limit`, those due first first, after `after`. A
    /// suspended primary is left: whoever suspended it did not ask for a new one.
    async fn due_rotations(
        &self,
        now: Timestamp,
        after: Option<DuePosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<KeyRow>>, StoreError>;

    /// Lists versions whose planned destruction is due at `now` and not held by a consumer of the key, at most `limit`, those
    /// due first first, after `after`.
    async fn due_destructions(
        &self,
        now: Timestamp,
        after: Option<DuePosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<VersionRow>>, StoreError>;

    /// Lists keys whose planned destruction is due at `now` and begun already, or not held by a consumer, at most `limit`,
    /// those due first first, after `after`.
    async fn due_key_destructions(
        &self,
        now: Timestamp,
        after: Option<DuePosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<KeyRow>>, StoreError>;

    /// Tells all rows of [`BACKUP_TABLES`], as they are stored, of one moment after the call; with [`Exported::End`] at the end.
    async fn export(&self) -> Result<Exporting, StoreError>;

    /// Writes and reads a row of its own, to prove that the database can be written. For readiness.
    async fn probe(&self, now: Timestamp) -> Result<(), StoreError>;

    /// Finishes what is queued and closes.
    async fn close(&self);
}

/// The generation that a new database starts with.
pub const FIRST_GENERATION: RootGeneration = RootGeneration::FIRST;
