//! One step: rows of one tenant, verified, sealed anew, and committed with the manifest.

use std::collections::BTreeMap;
use std::sync::Arc;

use kms_core::canonical::CanonicalWriter;
use kms_core::id::{KeyUid, KeyVersion, RequestId};
use kms_core::key::{Material, Sealed};
use kms_core::name::{KeyName, TenantName};

use super::super::change::{Change, Failure, RowChanges};
use super::super::kms::{Inner, TenantLock};
use super::super::mutation::{Mutation, Subject};
use super::super::trail::Trail;
use super::super::{RequestContext, ServiceError};
use super::pace::Pace;
use crate::authz::{self, Target};
use crate::store::{IntentKind, OldRows, Resealed, SealedRow};

/// What the log calls it.
const OPERATION: &str = "internal/RollOverRoot";

/// Rows of one tenant that get their new seals.
struct ResealRows {
    tenant: TenantName,
    /// The first of the keys, which stands for all in intent and log.
    first: (KeyUid, KeyName),
    rows: Vec<Resealed>,
    reason: String,
    /// Held until they are committed: nobody changes what was read.
    _turn: TenantLock,
}

impl Inner {
    /// Seals the rows of a tenant anew, all but those that are not genuine.
    pub(super) async fn reseal_tenant(
        self: &Arc<Self>,
        tenant: &TenantName,
        pace: &mut Pace,
    ) -> Result<(), ServiceError> {
        let current = self.keyring.config().generation;
        let mut after = None;
        loop {
            let limit = pace.step();
            let turn = self.lock_tenant(tenant).await?;
            let found = self.store.old_rows(tenant.clone(), current, after, limit).await;
            let found = self.keyring.stored(found)?;
            if found.damaged > 0 {
                // Only the alert is wanted: the others are sealed.
                let detail = format!("{} rows of `{tenant}` cannot be read", found.damaged);
                drop(self.keyring.integrity(detail));
            }
            self.root_rollover.looked_at(found.keys, found.damaged);
            let (whole, cut, is_last) =
                (found.whole, found.cut, found.keys < limit.keys && found.cut.is_none());
            let sealed = self.reseal_rows(tenant, found, turn).await?;
            // Rows beyond the limit come next, unless none of those before them could be sealed.
            after = if sealed == 0 { cut.or(whole) } else { whole };
            if is_last {
                break;
            }
            pace.rest().await;
            if pace.is_stopped() {
                return Ok(());
            }
        }
        self.reseal_import_jobs(tenant).await
    }

    /// Import jobs are of a tenant, and few: the key that one is for may not be there yet.
    async fn reseal_import_jobs(self: &Arc<Self>, tenant: &TenantName) -> Result<(), ServiceError> {
        let current = self.keyring.config().generation;
        let turn = self.lock_tenant(tenant).await?;
        let jobs = self.store.list_import_jobs(tenant.clone()).await;
        let mut jobs = self.keyring.stored(jobs)?;
        jobs.retain(|job| job.generation < current);
        let names = jobs.iter().map(|job| (job.row.key_uid, job.row.key.clone())).collect();
        let rows = jobs.into_iter().map(SealedRow::ImportJob).collect();
        let found = OldRows { rows, names, ..OldRows::default() };
        self.reseal_rows(tenant, found, turn).await.map(drop)
    }

    /// Returns how many rows were sealed.
    async fn reseal_rows(
        self: &Arc<Self>,
        tenant: &TenantName,
        found: OldRows,
        turn: TenantLock,
    ) -> Result<u64, ServiceError> {
        let OldRows { rows, names, .. } = found;
        let Some((uid, name)) = names.first_key_value() else { return Ok(0) };
        let first = (*uid, name.clone());
        let request = self.internal_request(OPERATION)?;
        let count = rows.len();
        let resealed = self.keyring.reseal(rows, request.deadline).await?;
        self.root_rollover.looked_at(0, count - resealed.len());
        let rewrapped = resealed.iter().filter(|row| is_wrapped(&row.row)).count() as u64;
        let (covered, loose): (Vec<_>, Vec<_>) =
            resealed.into_iter().partition(|row| row.row.is_in_manifest());
        let mut sealed = 0;
        if !loose.is_empty() {
            sealed += self.store.reseal_loose(loose).await?;
        }
        if !covered.is_empty() {
            sealed += covered.len() as u64;
            let touched = touched(&covered, &names);
            let generation = self.keyring.config().generation;
            let reason = format!(
                "root generation {generation}: {} rows of {} keys",
                covered.len(),
                names.len()
            );
            let reseal =
                ResealRows { tenant: tenant.clone(), first, rows: covered, reason, _turn: turn };
            let mut trail = reseal.trail();
            let result = self.mutate(&request, reseal, &mut trail).await;
            // Committed or not: what is loaded was made of what was there before.
            for (uid, (name, versions)) in touched {
                self.keyring.invalidate(&name, uid, &versions);
            }
            self.record_unless_begun(&request, trail, result).await?;
        }
        self.root_rollover.sealed(sealed, rewrapped);
        Ok(sealed)
    }

    /// Seals remembered requests anew; no manifest covers them.
    pub(super) async fn reseal_requests(
        self: &Arc<Self>,
        pace: &mut Pace,
    ) -> Result<(), ServiceError> {
        let current = self.keyring.config().generation;
        let mut after = None;
        loop {
            let limit = pace.step().rows;
            let found = self.store.old_requests(current, after, limit).await?;
            let is_last = found.rows.len() + found.damaged < limit as usize;
            after = found.rows.last().map(|last| (last.row.principal.clone(), last.row.request_id));
            let count = found.rows.len();
            let rows = found.rows.into_iter().map(SealedRow::Request).collect();
            let deadline = self.internal_request(OPERATION)?.deadline;
            let resealed = self.keyring.reseal(rows, deadline).await?;
            self.root_rollover.looked_at(0, found.damaged + count - resealed.len());
            let sealed = self.store.reseal_loose(resealed).await?;
            self.root_rollover.sealed(sealed, 0);
            if is_last || after.is_none() {
                return Ok(());
            }
            pace.rest().await;
            if pace.is_stopped() {
                return Ok(());
            }
        }
    }
}

/// Returns the keys and versions that must be loaded anew.
fn touched(
    rows: &[Resealed],
    names: &BTreeMap<KeyUid, KeyName>,
) -> BTreeMap<KeyUid, (KeyName, Vec<KeyVersion>)> {
    let mut touched: BTreeMap<KeyUid, (KeyName, Vec<KeyVersion>)> = BTreeMap::new();
    for Resealed { row, .. } in rows {
        let (uid, version) = match row {
            SealedRow::Key(Sealed { row, .. }) => (row.uid, None),
            SealedRow::Version(Sealed { row, .. }) => (row.key_uid, Some(row.version)),
            _ => continue,
        };
        let Some(name) = names.get(&uid) else { continue };
        let entry = touched.entry(uid).or_insert_with(|| (name.clone(), Vec::new()));
        entry.1.extend(version);
    }
    touched
}

fn is_wrapped(row: &SealedRow) -> bool {
    matches!(row, SealedRow::Version(Sealed { row, .. })
        if matches!(&row.material, Material::Wrapped(blob) if !blob.0.is_empty()))
}

impl Mutation for ResealRows {
    type Output = ();
    type Basis = ();

    fn trail(&self) -> Trail {
        Trail::key(&self.first.1)
    }

    fn request_id(&self) -> Option<RequestId> {
        None
    }

    fn reason(&self) -> Option<&str> {
        Some(&self.reason)
    }

    fn permit(
        &self,
        inner: &Inner,
        request: &RequestContext,
        trail: &mut Trail,
    ) -> Result<(), ServiceError> {
        let target = Target::key(&self.first.1);
        inner.permit::<authz::RollOverRoot>(request, target, trail).map(drop)
    }

    fn fields(&self) -> Result<CanonicalWriter, ServiceError> {
        Ok(CanonicalWriter::new(b"fields").text(&self.reason))
    }

    async fn basis(&self, _: &Inner, _: &mut Trail) -> Result<(Subject, ()), ServiceError> {
        let (key_uid, key_name) = self.first.clone();
        let subject = Subject {
            kind: IntentKind::ResealRows,
            key_name,
            key_uid,
            version: KeyVersion::FIRST,
            makes: None,
            stale: Vec::new(),
        };
        Ok((subject, ()))
    }

    async fn apply(self, change: &mut Change<'_>, (): ()) -> Result<(), Failure> {
        let added: Vec<_> = self.rows.iter().map(|row| row.row.mac()).collect();
        let removed: Vec<_> = self.rows.iter().map(|row| row.expected).collect();
        let rows = RowChanges { added: &added, removed: &removed, history: Vec::new() };
        let closing = change.closing(&self.tenant, rows, &()).await?;
        let committed = change.inner.store.reseal(self.rows, closing).await;
        change.settle(committed).await
    }
}
