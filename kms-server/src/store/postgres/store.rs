//! The methods of [`Store`], each with its transaction.

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

use super::{
    PostgresStore, aliases, read, read_due, reseal, write, write_closing, write_consumers,
    write_import_jobs, write_usage,
};
use crate::store::{
    AliasChange, AliasQuery, Closing, ConsumerChange, DuePosition, Exporting, HistoryPosition,
    ImportJobEdit, Intent, JobPosition, KeyRef, ListOrder, ListPlace, ListPosition, Listed, NewKey,
    OldCounts, OldRows, RequestPosition, RequestRecord, Resealed, Rollover, RowsLimit, Staging,
    Store, StoreError, StoredKey, VersionChoice,
};

#[async_trait]
impl Store for PostgresStore {
    async fn root_pins(&self) -> Result<Vec<(RootPin, RowMac)>, StoreError> {
        self.query(|db| async move { read::root_pins(&db).await }).await
    }

    async fn add_root_pin(&self, pin: RootPin, mac: RowMac) -> Result<(), StoreError> {
        let pin = &pin;
        self.write(|db| async move { write::add_root_pin(&db, pin, mac).await }).await
    }

    async fn key(
        &self,
        key: KeyRef,
        version: VersionChoice,
    ) -> Result<Option<StoredKey>, StoreError> {
        let key = &key;
        self.snapshot(|db| async move { read::key(&db, key, version).await }).await
    }

    async fn list_keys(
        &self,
        tenant: TenantName,
        after: Option<ListPosition>,
        limit: u32,
    ) -> Result<Vec<Sealed<KeyRow>>, StoreError> {
        let tenant = &tenant;
        self.query(|db| async move { read::list_keys(&db, tenant, after, limit).await }).await
    }

    async fn list_keys_ordered(
        &self,
        tenant: TenantName,
        order: ListOrder,
        after: Option<ListPlace>,
        limit: u32,
    ) -> Result<Vec<Sealed<KeyRow>>, StoreError> {
        let (tenant, after) = (&tenant, after.as_ref());
        self.query(
            |db| async move { read::list_keys_ordered(&db, tenant, order, after, limit).await },
        )
        .await
    }

    async fn list_versions(
        &self,
        key_uid: KeyUid,
        after: Option<KeyVersion>,
        limit: u32,
    ) -> Result<Vec<Sealed<VersionRow>>, StoreError> {
        self.query(|db| async move { read::list_versions(&db, key_uid, after, limit).await }).await
    }

    async fn last_revision(
        &self,
        key_uid: KeyUid,
        version: KeyVersion,
    ) -> Result<Option<Revision>, StoreError> {
        self.query(|db| async move { read::last_revision(&db, key_uid, version).await }).await
    }

    async fn list_consumers(
        &self,
        key_uid: KeyUid,
    ) -> Result<Vec<Sealed<ConsumerRow>>, StoreError> {
        self.query(|db| async move { read::list_consumers(&db, key_uid).await }).await
    }

    async fn aliases(&self, query: AliasQuery) -> Result<Vec<Sealed<AliasRow>>, StoreError> {
        let query = &query;
        self.query(|db| async move { aliases::aliases(&db, query).await }).await
    }

    async fn change_alias(&self, change: AliasChange, closing: Closing) -> Result<(), StoreError> {
        let max = self.max_requests;
        let change = &change;
        let closing = &closing;
        self.mutate(
            closing,
            |db| async move { aliases::change_alias(&db, change, closing, max).await },
        )
        .await
    }

    async fn list_import_jobs(
        &self,
        tenant: TenantName,
    ) -> Result<Vec<Sealed<ImportJobRow>>, StoreError> {
        let tenant = &tenant;
        self.query(|db| async move { read::list_import_jobs(&db, tenant).await }).await
    }

    async fn due_import_jobs(
        &self,
        now: Timestamp,
        after: Option<JobPosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<ImportJobRow>>, StoreError> {
        self.query(|db| async move { read_due::due_import_jobs(&db, now, after, limit).await })
            .await
    }

    async fn change_import_jobs(
        &self,
        edit: ImportJobEdit,
        closing: Closing,
    ) -> Result<(), StoreError> {
        let max = self.max_requests;
        let edit = &edit;
        let closing = &closing;
        self.mutate(closing, |db| async move {
            write_import_jobs::change_import_jobs(&db, edit, closing, max).await
        })
        .await
    }

    async fn list_history(
        &self,
        key_uid: KeyUid,
        after: Option<HistoryPosition>,
        limit: u32,
    ) -> Result<Vec<Sealed<HistoryRow>>, StoreError> {
        self.query(|db| async move { read::list_history(&db, key_uid, after, limit).await }).await
    }

    async fn counter(
        &self,
        key_uid: KeyUid,
        version: KeyVersion,
    ) -> Result<Option<Sealed<CounterRow>>, StoreError> {
        self.query(|db| async move { read::counter(&db, key_uid, version).await }).await
    }

    async fn usage(
        &self,
        key_uid: KeyUid,
        version: KeyVersion,
    ) -> Result<Option<Sealed<UsageRow>>, StoreError> {
        self.query(|db| async move { read::usage(&db, key_uid, version).await }).await
    }

    async fn update_usage(
        &self,
        changes: Vec<(Revision, Sealed<UsageRow>)>,
    ) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let changes = &changes;
        self.write(|db| async move { write_usage::update_usage(&db, changes).await }).await
    }

    async fn update_counters(
        &self,
        changes: Vec<(Revision, Sealed<CounterRow>)>,
    ) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let changes = &changes;
        self.write(|db| async move { write_usage::update_counters(&db, changes).await }).await
    }

    async fn manifest(&self, tenant: TenantName) -> Result<Option<Sealed<Manifest>>, StoreError> {
        let tenant = &tenant;
        self.query(|db| async move { read::manifest(&db, tenant).await }).await
    }

    async fn list_manifests(
        &self,
        after: Option<TenantName>,
        limit: u32,
    ) -> Result<Vec<Sealed<Manifest>>, StoreError> {
        let after = after.as_ref();
        self.query(|db| async move { read::list_manifests(&db, after, limit).await }).await
    }

    async fn request(
        &self,
        principal: String,
        request_id: RequestId,
    ) -> Result<Option<Sealed<RequestRecord>>, StoreError> {
        let principal = &principal;
        self.query(|db| async move { read::request(&db, principal, request_id).await }).await
    }

    async fn room_for_request(&self, tenant: TenantName) -> Result<(), StoreError> {
        let tenant = &tenant;
        let remembered =
            self.query(|db| async move { read::requests_remembered(&db, tenant).await }).await?;
        if remembered < self.max_requests { Ok(()) } else { Err(StoreError::RequestsFull) }
    }

    async fn forget_requests(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        self.write_again(
            |db| async move { write_closing::forget_requests(&db, before, limit).await },
        )
        .await
    }

    async fn open_intent(&self, intent: Sealed<Intent>) -> Result<(), StoreError> {
        let intent = &intent;
        self.write(|db| async move { write_closing::open_intent(&db, intent).await }).await
    }

    async fn intents(&self) -> Result<Listed<Sealed<Intent>>, StoreError> {
        self.query(|db| async move { read::intents(&db).await }).await
    }

    async fn close_intent(&self, intent: IntentId) -> Result<(), StoreError> {
        self.write_again(|db| async move { write_closing::close_intent(&db, intent).await }).await
    }

    async fn create_key(&self, new: NewKey, closing: Closing) -> Result<(), StoreError> {
        let max = self.max_requests;
        let new = &new;
        let closing = &closing;
        self.mutate(closing, |db| async move { write::create_key(&db, new, closing, max).await })
            .await
    }

    async fn update_key(
        &self,
        expected: Revision,
        key: Sealed<KeyRow>,
        closing: Closing,
    ) -> Result<(), StoreError> {
        let max = self.max_requests;
        let key = &key;
        let closing = &closing;
        self.mutate(closing, |db| async move {
            write::update_key(&db, expected, key, closing, max).await
        })
        .await
    }

    async fn stage(&self, staging: Staging, closing: Closing) -> Result<(), StoreError> {
        let max = self.max_requests;
        let staging = &staging;
        let closing = &closing;
        self.mutate(closing, |db| async move { write::stage(&db, staging, closing, max).await })
            .await
    }

    async fn change_consumers(
        &self,
        change: ConsumerChange,
        closing: Closing,
    ) -> Result<(), StoreError> {
        let max = self.max_requests;
        let change = &change;
        let closing = &closing;
        self.mutate(closing, |db| async move {
            write_consumers::change_consumers(&db, change, closing, max).await
        })
        .await
    }

    async fn roll_over(&self, rollover: Rollover, closing: Closing) -> Result<(), StoreError> {
        let max = self.max_requests;
        let rollover = &rollover;
        let closing = &closing;
        self.mutate(
            closing,
            |db| async move { write::roll_over(&db, rollover, closing, max).await },
        )
        .await
    }

    async fn update_version(
        &self,
        expected: Revision,
        version: Sealed<VersionRow>,
        closing: Closing,
    ) -> Result<(), StoreError> {
        let max = self.max_requests;
        let version = &version;
        let closing = &closing;
        self.mutate(closing, |db| async move {
            write::update_version(&db, expected, version, closing, max).await
        })
        .await
    }

    async fn retired_roots(&self) -> Result<Vec<Sealed<RetiredRoot>>, StoreError> {
        self.query(|db| async move { reseal::retired_roots(&db).await }).await
    }

    async fn retire_root(&self, retired: Sealed<RetiredRoot>) -> Result<(), StoreError> {
        let retired = &retired;
        self.write(|db| async move { reseal::retire_root(&db, retired).await }).await
    }

    async fn old_rows(
        &self,
        tenant: TenantName,
        current: RootGeneration,
        after: Option<ListPosition>,
        limit: RowsLimit,
    ) -> Result<OldRows, StoreError> {
        let tenant = &tenant;
        self.snapshot(
            |db| async move { reseal::old_rows(&db, tenant, current, after, limit).await },
        )
        .await
    }

    async fn old_requests(
        &self,
        current: RootGeneration,
        after: Option<RequestPosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<RequestRecord>>, StoreError> {
        let after = after.as_ref();
        self.query(|db| async move { reseal::old_requests(&db, current, after, limit).await }).await
    }

    async fn reseal(&self, rows: Vec<Resealed>, closing: Closing) -> Result<(), StoreError> {
        let max = self.max_requests;
        let rows = &rows;
        let closing = &closing;
        self.mutate(closing, |db| async move { reseal::reseal(&db, rows, closing, max).await })
            .await
    }

    async fn reseal_loose(&self, rows: Vec<Resealed>) -> Result<u64, StoreError> {
        let rows = &rows;
        self.write(|db| async move { reseal::reseal_loose(&db, rows).await }).await
    }

    async fn old_counts(&self, current: RootGeneration) -> Result<OldCounts, StoreError> {
        self.snapshot(|db| async move { reseal::old_counts(&db, current).await }).await
    }

    async fn resident_ids(&self) -> Result<Listed<CkaId>, StoreError> {
        self.query(|db| async move { read::resident_ids(&db).await }).await
    }

    async fn primaries_made_before(&self, time: Timestamp) -> Result<u64, StoreError> {
        self.query(|db| async move { read::primaries_made_before(&db, time).await }).await
    }

    async fn due_deactivations(
        &self,
        now: Timestamp,
        after: Option<DuePosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<VersionRow>>, StoreError> {
        self.query(|db| async move { read_due::due_deactivations(&db, now, after, limit).await })
            .await
    }

    async fn due_activations(
        &self,
        now: Timestamp,
        after: Option<DuePosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<VersionRow>>, StoreError> {
        self.query(|db| async move { read_due::due_activations(&db, now, after, limit).await })
            .await
    }

    async fn due_rotations(
        &self,
        now: Timestamp,
        after: Option<DuePosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<KeyRow>>, StoreError> {
        self.query(|db| async move { read_due::due_rotations(&db, now, after, limit).await }).await
    }

    async fn due_destructions(
        &self,
        now: Timestamp,
        after: Option<DuePosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<VersionRow>>, StoreError> {
        self.query(|db| async move { read_due::due_destructions(&db, now, after, limit).await })
            .await
    }

    async fn due_key_destructions(
        &self,
        now: Timestamp,
        after: Option<DuePosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<KeyRow>>, StoreError> {
        self.query(|db| async move { read_due::due_key_destructions(&db, now, after, limit).await })
            .await
    }

    async fn export(&self) -> Result<Exporting, StoreError> {
        // Its rows have other types than those that a backup of ours is restored into.
        let detail = "a PostgreSQL database is backed up by its own tools (pg_dump)".into();
        Err(StoreError::Unavailable { detail })
    }

    async fn probe(&self, now: Timestamp) -> Result<(), StoreError> {
        self.write_again(|db| async move { write::probe(&db, now).await }).await
    }

    async fn close(&self) {
        self.stop().await;
    }
}
