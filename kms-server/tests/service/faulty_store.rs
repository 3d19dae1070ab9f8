//! A store that fails on purpose, as the other parts do.

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
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::faults::{Fate, Faults};

#[derive(Debug)]
pub(crate) struct FaultyStore(pub(crate) Arc<dyn Store>, pub(crate) Arc<Faults>);

macro_rules! through {
    ($self:ident . $method:ident ( $($argument:expr),* )) => {{
        let gone = || StoreError::Unavailable { detail: "injected".into() };
        match $self.1.next() {
            Fate::Works => $self.0.$method($($argument),*).await,
            Fate::Fails => Err(gone()),
            Fate::ReplyLost => {
                let _ = $self.0.$method($($argument),*).await;
                Err(gone())
            }
        }
    }};
}

#[async_trait]
impl Store for FaultyStore {
    async fn root_pins(&self) -> Result<Vec<(RootPin, RowMac)>, StoreError> {
        through!(self.root_pins())
    }
    async fn add_root_pin(&self, pin: RootPin, mac: RowMac) -> Result<(), StoreError> {
        through!(self.add_root_pin(pin, mac))
    }
    async fn key(&self, key: KeyRef, v: VersionChoice) -> Result<Option<StoredKey>, StoreError> {
        let numbered = matches!(v, VersionChoice::Number(_));
        let gate = numbered.then(|| self.1.version_gate.lock().unwrap().take()).flatten();
        let read = through!(self.key(key, v));
        if let Some(gate) = gate {
            gate.pass().await;
        }
        read
    }
    async fn list_keys(
        &self,
        tenant: TenantName,
        after: Option<ListPosition>,
        limit: u32,
    ) -> Result<Vec<Sealed<KeyRow>>, StoreError> {
        self.1.walks.fetch_add(1, Ordering::SeqCst);
        through!(self.list_keys(tenant, after, limit))
    }
    async fn list_keys_ordered(
        &self,
        tenant: TenantName,
        order: ListOrder,
        after: Option<ListPlace>,
        limit: u32,
    ) -> Result<Vec<Sealed<KeyRow>>, StoreError> {
        let gate = self.1.list_gate.lock().unwrap().take();
        let read = through!(self.list_keys_ordered(tenant, order, after, limit));
        if let Some(gate) = gate {
            gate.pass().await;
        }
        read
    }
    async fn list_versions(
        &self,
        key_uid: KeyUid,
        after: Option<KeyVersion>,
        limit: u32,
    ) -> Result<Vec<Sealed<VersionRow>>, StoreError> {
        through!(self.list_versions(key_uid, after, limit))
    }
    async fn last_revision(
        &self,
        key_uid: KeyUid,
        version: KeyVersion,
    ) -> Result<Option<Revision>, StoreError> {
        through!(self.last_revision(key_uid, version))
    }

    async fn list_consumers(
        &self,
        key_uid: KeyUid,
    ) -> Result<Vec<Sealed<ConsumerRow>>, StoreError> {
        through!(self.list_consumers(key_uid))
    }

    async fn list_import_jobs(
        &self,
        tenant: TenantName,
    ) -> Result<Vec<Sealed<ImportJobRow>>, StoreError> {
        through!(self.list_import_jobs(tenant))
    }
    async fn due_import_jobs(
        &self,
        now: Timestamp,
        after: Option<JobPosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<ImportJobRow>>, StoreError> {
        through!(self.due_import_jobs(now, after, limit))
    }
    async fn aliases(&self, query: AliasQuery) -> Result<Vec<Sealed<AliasRow>>, StoreError> {
        through!(self.aliases(query))
    }
    async fn change_alias(&self, change: AliasChange, closing: Closing) -> Result<(), StoreError> {
        through!(self.change_alias(change, closing))
    }
    async fn change_import_jobs(
        &self,
        edit: ImportJobEdit,
        closing: Closing,
    ) -> Result<(), StoreError> {
        through!(self.change_import_jobs(edit, closing))
    }
    async fn list_history(
        &self,
        key_uid: KeyUid,
        after: Option<HistoryPosition>,
        limit: u32,
    ) -> Result<Vec<Sealed<HistoryRow>>, StoreError> {
        through!(self.list_history(key_uid, after, limit))
    }
    async fn counter(
        &self,
        key_uid: KeyUid,
        version: KeyVersion,
    ) -> Result<Option<Sealed<CounterRow>>, StoreError> {
        through!(self.counter(key_uid, version))
    }
    async fn usage(
        &self,
        key_uid: KeyUid,
        version: KeyVersion,
    ) -> Result<Option<Sealed<UsageRow>>, StoreError> {
        through!(self.usage(key_uid, version))
    }
    async fn update_usage(
        &self,
        changes: Vec<(Revision, Sealed<UsageRow>)>,
    ) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        through!(self.update_usage(changes))
    }
    async fn update_counters(
        &self,
        changes: Vec<(Revision, Sealed<CounterRow>)>,
    ) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        through!(self.update_counters(changes))
    }
    async fn manifest(&self, tenant: TenantName) -> Result<Option<Sealed<Manifest>>, StoreError> {
        through!(self.manifest(tenant))
    }
    async fn list_manifests(
        &self,
        after: Option<TenantName>,
        limit: u32,
    ) -> Result<Vec<Sealed<Manifest>>, StoreError> {
        through!(self.list_manifests(after, limit))
    }
    async fn request(
        &self,
        principal: String,
        id: RequestId,
    ) -> Result<Option<Sealed<RequestRecord>>, StoreError> {
        through!(self.request(principal, id))
    }
    async fn room_for_request(&self, tenant: TenantName) -> Result<(), StoreError> {
        through!(self.room_for_request(tenant))
    }
    async fn forget_requests(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        through!(self.forget_requests(before, limit))
    }
    async fn open_intent(&self, intent: Sealed<Intent>) -> Result<(), StoreError> {
        let gate = self.1.gate.lock().unwrap().clone();
        if let Some(gate) = gate {
            gate.pass().await;
        }
        through!(self.open_intent(intent))
    }
    async fn intents(&self) -> Result<Listed<Sealed<Intent>>, StoreError> {
        if let Some(stale) = self.1.stale.lock().unwrap().take() {
            return Ok(Listed { rows: stale, damaged: 0 });
        }
        through!(self.intents())
    }
    async fn close_intent(&self, intent: IntentId) -> Result<(), StoreError> {
        through!(self.close_intent(intent))
    }
    async fn create_key(&self, new: NewKey, closing: Closing) -> Result<(), StoreError> {
        through!(self.create_key(new, closing))
    }
    async fn update_key(
        &self,
        expected: Revision,
        key: Sealed<KeyRow>,
        closing: Closing,
    ) -> Result<(), StoreError> {
        through!(self.update_key(expected, key, closing))
    }
    async fn stage(&self, staging: Staging, closing: Closing) -> Result<(), StoreError> {
        through!(self.stage(staging, closing))
    }

    async fn change_consumers(
        &self,
        change: ConsumerChange,
        closing: Closing,
    ) -> Result<(), StoreError> {
        through!(self.change_consumers(change, closing))
    }

    async fn roll_over(&self, rollover: Rollover, closing: Closing) -> Result<(), StoreError> {
        through!(self.roll_over(rollover, closing))
    }
    async fn update_version(
        &self,
        expected: Revision,
        version: Sealed<VersionRow>,
        closing: Closing,
    ) -> Result<(), StoreError> {
        through!(self.update_version(expected, version, closing))
    }
    async fn resident_ids(&self) -> Result<Listed<CkaId>, StoreError> {
        through!(self.resident_ids())
    }
    async fn retired_roots(&self) -> Result<Vec<Sealed<RetiredRoot>>, StoreError> {
        through!(self.retired_roots())
    }
    async fn retire_root(&self, retired: Sealed<RetiredRoot>) -> Result<(), StoreError> {
        through!(self.retire_root(retired))
    }
    async fn old_rows(
        &self,
        tenant: TenantName,
        current: RootGeneration,
        after: Option<ListPosition>,
        limit: RowsLimit,
    ) -> Result<OldRows, StoreError> {
        through!(self.old_rows(tenant, current, after, limit))
    }
    async fn old_requests(
        &self,
        current: RootGeneration,
        after: Option<RequestPosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<RequestRecord>>, StoreError> {
        through!(self.old_requests(current, after, limit))
    }
    async fn reseal(&self, rows: Vec<Resealed>, closing: Closing) -> Result<(), StoreError> {
        through!(self.reseal(rows, closing))
    }
    async fn reseal_loose(&self, rows: Vec<Resealed>) -> Result<u64, StoreError> {
        through!(self.reseal_loose(rows))
    }
    async fn old_counts(&self, current: RootGeneration) -> Result<OldCounts, StoreError> {
        through!(self.old_counts(current))
    }
    async fn due_activations(
        &self,
        now: Timestamp,
        after: Option<DuePosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<VersionRow>>, StoreError> {
        through!(self.due_activations(now, after, limit))
    }

    async fn due_rotations(
        &self,
        now: Timestamp,
        after: Option<DuePosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<KeyRow>>, StoreError> {
        through!(self.due_rotations(now, after, limit))
    }
    async fn due_destructions(
        &self,
        now: Timestamp,
        after: Option<DuePosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<VersionRow>>, StoreError> {
        through!(self.due_destructions(now, after, limit))
    }
    async fn due_key_destructions(
        &self,
        now: Timestamp,
        after: Option<DuePosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<KeyRow>>, StoreError> {
        through!(self.due_key_destructions(now, after, limit))
    }
    async fn export(&self) -> Result<Exporting, StoreError> {
        through!(self.export())
    }
    async fn primaries_made_before(&self, time: Timestamp) -> Result<u64, StoreError> {
        through!(self.primaries_made_before(time))
    }
    async fn due_deactivations(
        &self,
        now: Timestamp,
        after: Option<DuePosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<VersionRow>>, StoreError> {
        through!(self.due_deactivations(now, after, limit))
    }
    async fn probe(&self, now: Timestamp) -> Result<(), StoreError> {
        if self.1.unwritable.load(Ordering::SeqCst) {
            return Err(StoreError::Unwritable { detail: "injected".into() });
        }
        through!(self.probe(now))
    }
    async fn close(&self) {
        self.0.close().await;
    }
}
