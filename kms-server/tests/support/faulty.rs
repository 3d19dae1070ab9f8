//! A store that fails on purpose: at its n-th call, before or after the effect.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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
use kms_server::store::{
    AliasChange, AliasQuery, Closing, ConsumerChange, DuePosition, Exporting, HistoryPosition,
    ImportJobEdit, Intent, JobPosition, KeyRef, ListOrder, ListPlace, ListPosition, Listed, NewKey,
    OldCounts, OldRows, RequestPosition, RequestRecord, Resealed, Rollover, RowsLimit, Staging,
    Store, StoreError, StoredKey, VersionChoice,
};

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreFault {
    /// The call has no effect and gives this error.
    Refuse(StoreError),
    /// The call has its effect, and the caller is told that the store is unavailable.
    LoseReply,
}

/// A store around another one.
#[derive(Debug)]
pub struct FaultyStore {
    inner: Arc<dyn Store>,
    fault: StoreFault,
    /// Calls until the fault; the call that counts it down from 1 is the one that fails.
    countdown: AtomicU64,
}

impl FaultyStore {
    /// Fails the `n`-th call, counted from 1, and no other; 0 fails none.
    pub fn new(inner: Arc<dyn Store>, n: u64, fault: StoreFault) -> Self {
        Self { inner, fault, countdown: AtomicU64::new(n) }
    }

    /// Returns whether the fault has happened.
    pub fn has_failed(&self) -> bool {
        self.countdown.load(Ordering::SeqCst) == 0
    }

    async fn call<T>(
        &self,
        effect: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let step = |left: u64| left.checked_sub(1);
        let left = self.countdown.fetch_update(Ordering::SeqCst, Ordering::SeqCst, step);
        match (left, &self.fault) {
            (Ok(1), StoreFault::Refuse(error)) => Err(error.clone()),
            (Ok(1), StoreFault::LoseReply) => {
                let _ = effect.await;
                Err(StoreError::Unavailable { detail: "the reply was lost".into() })
            }
            _ => effect.await,
        }
    }
}

/// Forwards each method through [`FaultyStore::call`].
macro_rules! forward {
    ($($name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)+) => {
        #[async_trait]
        impl Store for FaultyStore {
            $(
                async fn $name(&self, $($argument: $type),*) -> Result<$answer, StoreError> {
                    self.call(self.inner.$name($($argument),*)).await
                }
            )+

            async fn close(&self) {
                self.inner.close().await;
            }
        }
    };
}

forward! {
    root_pins() -> Vec<(RootPin, RowMac)>;
    add_root_pin(pin: RootPin, mac: RowMac) -> ();
    key(key: KeyRef, version: VersionChoice) -> Option<StoredKey>;
    list_keys(tenant: TenantName, after: Option<ListPosition>, limit: u32) -> Vec<Sealed<KeyRow>>;
    list_keys_ordered(tenant: TenantName, order: ListOrder, after: Option<ListPlace>, limit: u32) -> Vec<Sealed<KeyRow>>;
    list_versions(key_uid: KeyUid, after: Option<KeyVersion>, limit: u32) -> Vec<Sealed<VersionRow>>;
    last_revision(key_uid: KeyUid, version: KeyVersion) -> Option<Revision>;
    list_consumers(key_uid: KeyUid) -> Vec<Sealed<ConsumerRow>>;
    aliases(query: AliasQuery) -> Vec<Sealed<AliasRow>>;
    change_alias(change: AliasChange, closing: Closing) -> ();
    list_import_jobs(tenant: TenantName) -> Vec<Sealed<ImportJobRow>>;
    due_import_jobs(now: Timestamp, after: Option<JobPosition>, limit: u32) -> Listed<Sealed<ImportJobRow>>;
    change_import_jobs(edit: ImportJobEdit, closing: Closing) -> ();
    list_history(key_uid: KeyUid, after: Option<HistoryPosition>, limit: u32) -> Vec<Sealed<HistoryRow>>;
    counter(key_uid: KeyUid, version: KeyVersion) -> Option<Sealed<CounterRow>>;
    usage(key_uid: KeyUid, version: KeyVersion) -> Option<Sealed<UsageRow>>;
    update_usage(changes: Vec<(Revision, Sealed<UsageRow>)>) -> Vec<Result<(), StoreError>>;
    update_counters(changes: Vec<(Revision, Sealed<CounterRow>)>) -> Vec<Result<(), StoreError>>;
    manifest(tenant: TenantName) -> Option<Sealed<Manifest>>;
    list_manifests(after: Option<TenantName>, limit: u32) -> Vec<Sealed<Manifest>>;
    request(principal: String, request_id: RequestId) -> Option<Sealed<RequestRecord>>;
    room_for_request(tenant: TenantName) -> ();
    forget_requests(before: Timestamp, limit: u32) -> u64;
    open_intent(intent: Sealed<Intent>) -> ();
    intents() -> Listed<Sealed<Intent>>;
    close_intent(intent: IntentId) -> ();
    create_key(new: NewKey, closing: Closing) -> ();
    update_key(expected: Revision, key: Sealed<KeyRow>, closing: Closing) -> ();
    stage(staging: Staging, closing: Closing) -> ();
    change_consumers(change: ConsumerChange, closing: Closing) -> ();
    roll_over(rollover: Rollover, closing: Closing) -> ();
    update_version(expected: Revision, version: Sealed<VersionRow>, closing: Closing) -> ();
    resident_ids() -> Listed<CkaId>;
    primaries_made_before(time: Timestamp) -> u64;
    due_deactivations(now: Timestamp, after: Option<DuePosition>, limit: u32) -> Listed<Sealed<VersionRow>>;
    due_activations(now: Timestamp, after: Option<DuePosition>, limit: u32) -> Listed<Sealed<VersionRow>>;
    due_rotations(now: Timestamp, after: Option<DuePosition>, limit: u32) -> Listed<Sealed<KeyRow>>;
    due_destructions(now: Timestamp, after: Option<DuePosition>, limit: u32) -> Listed<Sealed<VersionRow>>;
    due_key_destructions(now: Timestamp, after: Option<DuePosition>, limit: u32) -> Listed<Sealed<KeyRow>>;
    retired_roots() -> Vec<Sealed<RetiredRoot>>;
    retire_root(retired: Sealed<RetiredRoot>) -> ();
    old_rows(tenant: TenantName, current: RootGeneration, after: Option<ListPosition>, limit: RowsLimit) -> OldRows;
    old_requests(current: RootGeneration, after: Option<RequestPosition>, limit: u32) -> Listed<Sealed<RequestRecord>>;
    reseal(rows: Vec<Resealed>, closing: Closing) -> ();
    reseal_loose(rows: Vec<Resealed>) -> u64;
    old_counts(current: RootGeneration) -> OldCounts;
    export() -> Exporting;
    probe(now: Timestamp) -> ();
}
