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
use super::super::places::Place;
use super::super::trail::Trail;
use super::super::{RequestContext, ServiceError};
use super::pace::{Pace, Step};
use crate::authz::{self, Target};
use crate::keyring::Calls;
use crate::store::{IntentKind, ListPosition, MAX_LIST_ROWS, OldRows, Resealed, SealedRow};

/// Steps that follow one another in one turn of the tenant, while nobody uses a key: changes of its keys wait for so long.
const STRIDE: u32 = 4;
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
    _held: Arc<Held>,
}

/// The turn of a tenant, and a place among the mutations for those made in it.
struct Held {
    _turn: TenantLock,
    place: Place,
}

/// Rows that were read and sealed anew, to be written.
struct Ready {
    resealed: Vec<Resealed>,
    names: BTreeMap<KeyUid, KeyName>,
    /// Where the next ones begin.
    after: Option<ListPosition>,
    /// Whether the rows of a key were cut: what is left of them can be told only when these are written.
    is_cut: bool,
    is_last: bool,
    /// Keys all of whose rows were looked at.
    keys: u32,
    /// Rows that could not be sealed.
    failed: usize,
}

impl Inner {
    /// Seals the rows of a tenant's keys behind `reached` anew, all but those that are not genuine; then what is left of it.
    pub(super) async fn reseal_tenant(
        self: &Arc<Self>,
        tenant: &TenantName,
        reached: &mut Option<ListPosition>,
        pace: &mut Pace,
    ) -> Result<(), ServiceError> {
        loop {
            let first = pace.step();
            let held = self.held(tenant).await?;
            let mut ready = self.ready(tenant, *reached, first).await?;
            let mut steps = 1;
            let is_last = loop {
                let after = ready.after;
                let (is_cut, is_last) = (ready.is_cut, ready.is_last);
                let write = self.write(tenant, ready, Arc::clone(&held));
                let ahead = pace.further();
                let Some(pace) = ahead.filter(|_| steps < STRIDE && !is_cut && !is_last) else {
                    write.await?;
                    *reached = after;
                    break is_last;
                };
                // The next ones are read and sealed while these are written.
                let (written, next) = tokio::join!(write, self.ready(tenant, after, pace));
                written?;
                *reached = after;
                ready = next?;
                steps += 1;
            };
            drop(held);
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

    /// Takes the place before the turn, as all others do.
    async fn held(&self, tenant: &TenantName) -> Result<Arc<Held>, ServiceError> {
        let place = self.place_of_its_own().await?;
        Ok(Arc::new(Held { _turn: self.lock_tenant(tenant).await?, place }))
    }

    /// Reads rows behind a place, and seals them anew. The caller has the tenant's turn: nobody changes them.
    async fn ready(
        &self,
        tenant: &TenantName,
        after: Option<ListPosition>,
        at: Step,
    ) -> Result<Ready, ServiceError> {
        let current = self.keyring.config().generation;
        let found = self.store.old_rows(tenant.clone(), current, after, at.limit).await;
        let found = self.keyring.stored(found)?;
        if found.damaged > 0 {
            // Only the alert is wanted: the others are sealed.
            let detail = format!("{} rows of `{tenant}` cannot be read", found.damaged);
            drop(self.keyring.integrity(detail));
        }
        let OldRows { rows, damaged, names, keys, whole, cut } = found;
        let is_last = keys < at.limit.keys && cut.is_none();
        let count = rows.len();
        let resealed = self.sealed_anew(rows, at).await?;
        let failed = damaged + count - resealed.len();
        // Rows beyond the limit come next, unless none of those before them could be sealed.
        let (after, left) = match cut {
            Some(cut) if resealed.is_empty() => (Some(cut), 0),
            // It is counted with its last rows.
            Some(_) => (whole, 1),
            None => (whole, 0),
        };
        let keys = keys.saturating_sub(left);
        Ok(Ready { resealed, names, after, is_cut: cut.is_some(), is_last, keys, failed })
    }

    async fn sealed_anew(
        &self,
        rows: Vec<SealedRow>,
        at: Step,
    ) -> Result<Vec<Resealed>, ServiceError> {
        let deadline = self.internal_request(OPERATION)?.deadline;
        let calls = Calls { at_once: at.calls_at_once, rows: at.rows_a_call, deadline };
        Ok(self.keyring.reseal(rows, calls).await?)
    }

    /// Import jobs are of a tenant, and few: the key that one is for may not be there yet. Last comes the manifest, of a tenant
    /// where nothing else was left.
    async fn reseal_import_jobs(self: &Arc<Self>, tenant: &TenantName) -> Result<(), ServiceError> {
        let current = self.keyring.config().generation;
        let held = self.held(tenant).await?;
        let jobs = self.store.list_import_jobs(tenant.clone()).await;
        let mut jobs = self.keyring.stored(jobs)?;
        jobs.retain(|job| job.generation < current);
        let names = jobs.iter().map(|job| (job.row.key_uid, job.row.key.clone())).collect();
        let rows: Vec<_> = jobs.into_iter().map(SealedRow::ImportJob).collect();
        let count = rows.len();
        let resealed = self.sealed_anew(rows, Step::BUSY).await?;
        let failed = count - resealed.len();
        let (after, is_cut, is_last) = (None, false, true);
        let ready = Ready { resealed, names, after, is_cut, is_last, keys: 0, failed };
        self.write(tenant, ready, Arc::clone(&held)).await?;
        let manifest = self.store.manifest(tenant.clone()).await;
        let manifest = self.keyring.stored(manifest)?.filter(|row| row.generation < current);
        let rows = manifest.into_iter().map(SealedRow::Manifest).collect();
        let resealed = self.sealed_anew(rows, Step::BUSY).await?;
        let sealed = self.store.reseal_loose(resealed).await?;
        self.root_rollover.sealed(sealed, 0);
        Ok(())
    }

    /// Writes rows that were sealed anew.
    async fn write(
        self: &Arc<Self>,
        tenant: &TenantName,
        ready: Ready,
        held: Arc<Held>,
    ) -> Result<(), ServiceError> {
        let Ready { resealed, names, keys, failed, .. } = ready;
        let rewrapped = resealed.iter().filter(|row| is_wrapped(&row.row)).count() as u64;
        let (covered, loose): (Vec<_>, Vec<_>) =
            resealed.into_iter().partition(|row| row.row.is_in_manifest());
        let mut sealed = 0;
        if !loose.is_empty() {
            sealed += self.store.reseal_loose(loose).await?;
        }
        if let (Some((uid, name)), false) = (names.first_key_value(), covered.is_empty()) {
            let first = (*uid, name.clone());
            sealed += covered.len() as u64;
            let touched = touched(&covered, &names);
            let generation = self.keyring.config().generation;
            let reason = format!(
                "root generation {generation}: {} rows of {} keys",
                covered.len(),
                names.len()
            );
            let (tenant, rows) = (tenant.clone(), covered);
            let reseal = ResealRows { tenant, first, rows, reason, _held: Arc::clone(&held) };
            let request = self.internal_request(OPERATION)?;
            let mut trail = reseal.trail();
            let result = self.mutate_in(&held.place, &request, reseal, &mut trail).await;
            // Committed or not: what is loaded was made of what was there before.
            for (uid, (name, versions)) in touched {
                self.keyring.invalidate(&name, uid, &versions);
            }
            self.record_unless_begun(&request, trail, result).await?;
        }
        self.root_rollover.sealed(sealed, rewrapped);
        // What failed is looked at again, and counted then.
        self.root_rollover.looked_at(keys, failed);
        Ok(())
    }

    /// Seals remembered requests anew; no manifest covers them.
    pub(super) async fn reseal_requests(
        self: &Arc<Self>,
        pace: &mut Pace,
    ) -> Result<(), ServiceError> {
        let current = self.keyring.config().generation;
        let mut after = None;
        loop {
            let at = pace.step();
            let limit = at.limit.rows.min(MAX_LIST_ROWS);
            let found = self.store.old_requests(current, after, limit).await?;
            let is_last = found.rows.len() + found.damaged < limit as usize;
            after = found.rows.last().map(|last| (last.row.principal.clone(), last.row.request_id));
            let rows: Vec<_> = found.rows.into_iter().map(SealedRow::Request).collect();
            let count = rows.len();
            let resealed = self.sealed_anew(rows, at).await?;
            let failed = found.damaged + count - resealed.len();
            let sealed = self.store.reseal_loose(resealed).await?;
            self.root_rollover.sealed(sealed, 0);
            self.root_rollover.looked_at(0, failed);
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
