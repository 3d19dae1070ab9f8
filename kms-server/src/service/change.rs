//! What a mutation does between its intent and its outcome: seal rows, end with the manifest, and settle the commit.

use std::sync::Arc;

use kms_core::id::{KeyVersion, Revision, RootGeneration};
use kms_core::journal::{Event, Subject};
use kms_core::key::{KeyRow, RowMac, Sealed, VersionRow};
use kms_core::lifecycle::{HistoryChange, HistoryRow};
use kms_core::manifest::Manifest;
use kms_core::name::TenantName;
use kms_core::state::VersionState;
use serde::Serialize;

use super::claim::Claim;
use super::kms::Inner;
use super::trail::Trail;
use super::{RequestContext, ServiceError};
use crate::audit::Divergence;
use crate::journal::Held;
use crate::keyring::MacInput;
use crate::store::{Closing, Intent, ManifestChange, RequestRecord, StoreError};

/// Rows that enter or leave a manifest in one go, some 50 us: a root rollover changes hundreds, and others are to be served in
/// between.
const ROWS_A_TURN: usize = 16;

/// A mutation whose intent is open.
pub(super) struct Change<'c> {
    pub(super) inner: &'c Arc<Inner>,
    pub(super) request: &'c RequestContext,
    pub(super) intent: &'c Intent,
    pub(super) claim: Option<&'c Claim>,
    pub(super) trail: &'c mut Trail,
    /// What of it stands in the state journal; `None` as long as that was told nothing.
    pub(super) journaled: Option<Vec<Held>>,
}

/// Row MACs that a mutation adds to and removes from the manifest.
pub(super) struct RowChanges<'m> {
    pub(super) added: &'m [RowMac],
    pub(super) removed: &'m [RowMac],
    /// What it adds to the history of its key.
    pub(super) history: Vec<HistoryRow>,
}

/// A mutation that failed after its intent.
pub(super) enum Failure {
    /// Nothing was committed: undo what was done.
    Undo(ServiceError),
    /// Perhaps committed: leave everything to the reconciler.
    Unknown(ServiceError),
}

impl Failure {
    /// Leaves it to the reconciler, whatever it was.
    pub(super) fn left(self) -> Self {
        match self {
            Self::Undo(error) | Self::Unknown(error) => Self::Unknown(error),
        }
    }
}

impl From<ServiceError> for Failure {
    fn from(error: ServiceError) -> Self {
        match error {
            // The job may still be running: its object must not appear after we looked.
            ServiceError::HsmDeadline => Self::Unknown(error),
            other => Self::Undo(other),
        }
    }
}

async fn give_way_after(macs: &[RowMac]) {
    if macs.len() == ROWS_A_TURN {
        tokio::task::yield_now().await;
    }
}

/// Makes the history entry of a version row that was changed, or made when `from` is nothing.
pub(super) fn moved(from: Option<(VersionState, Revision)>, row: &VersionRow) -> HistoryRow {
    HistoryRow {
        key_uid: row.key_uid,
        change: HistoryChange::State {
            version: row.version,
            from: from.map(|(state, _)| state),
            to: row.state,
        },
        old_revision: from.map_or(Revision::new(0), |(_, revision)| revision),
        revision: row.revision,
        time: row.state_time,
        actor: row.state_actor.clone(),
        reason: row.state_reason.clone(),
    }
}

impl Inner {
    /// Reads a tenant's manifest for a change that builds on it.
    ///
    /// Invariant: never one that is older than the log has seen. Built upon, a database that was put back while it is
    /// served would grow past the log's last stamp, and the next start would find them agreeing
    /// (`nothing_is_built_on_a_manifest_that_was_put_back_while_it_is_served`).
    async fn current_manifest(&self, tenant: &TenantName) -> Result<Manifest, ServiceError> {
        // Before the manifest: what the log has seen by now was committed before.
        let seen = self.audit.last_manifest(tenant.id());
        let manifest = self.keyring.manifest(tenant).await?;
        if seen.is_some_and(|seen| Divergence::is_behind(&seen, &manifest.stamp())) {
            let detail = format!(
                "the manifest of `{tenant}` at revision {} was put back: the log has seen a later one, or another",
                manifest.revision
            );
            return Err(self.keyring.integrity(detail).into());
        }
        Ok(manifest)
    }
}

impl Change<'_> {
    /// Returns a key's row as it becomes, with a revision and a time of its own, and what the history says of it.
    pub(super) fn key_changed(
        &self,
        old: &KeyRow,
        key: KeyRow,
        detail: String,
        reason: String,
    ) -> (KeyRow, HistoryRow) {
        let (time, revision) = (self.inner.clock.now(), old.revision.next());
        let history = HistoryRow {
            key_uid: old.uid,
            change: HistoryChange::Fields { detail },
            old_revision: old.revision,
            revision,
            time,
            actor: (&*self.request.principal.id).into(),
            reason,
        };
        (KeyRow { update_time: time, revision, ..key }, history)
    }

    /// Tells the state journal what is about to be done. From here on it either is done, or said there to be given up.
    ///
    /// Invariant: before anything of it is done, in the token or the store (`what_is_destroyed_or_compromised_is_journaled_first`).
    pub(super) async fn journal(&mut self, event: Event) -> Result<(), ServiceError> {
        debug_assert!(self.intent.kind.is_journaled(), "the reconciler would not give it up");
        // Told, whatever comes of it: the entry may be there when the answer is an error.
        self.journaled.get_or_insert_default();
        let held = self.inner.journal.append(Some(self.intent.id), event).await?;
        self.journaled.get_or_insert_default().push(held);
        Ok(())
    }

    /// Names a version of the tenant whose turn this is.
    pub(super) fn journal_subject(key: &KeyRow, version: KeyVersion) -> Subject {
        Subject { tenant: key.name.tenant().clone(), key_uid: key.uid, version }
    }

    /// Seals a row under the current root.
    pub(super) async fn seal<R: MacInput>(&self, row: R) -> Result<Sealed<R>, ServiceError> {
        self.seal_under(self.inner.keyring.config().generation, row).await
    }

    /// Seals a version row under the root that wraps its material.
    pub(super) async fn seal_under<R: MacInput>(
        &self,
        generation: RootGeneration,
        row: R,
    ) -> Result<Sealed<R>, ServiceError> {
        Ok(self.inner.keyring.seal(row, generation, self.request.deadline).await?)
    }

    async fn seal_history(
        &self,
        rows: Vec<HistoryRow>,
    ) -> Result<Vec<Sealed<HistoryRow>>, ServiceError> {
        let keyring = &self.inner.keyring;
        let generation = keyring.config().generation;
        let inputs = rows.iter().map(|row| row.mac_input(generation)).collect();
        let macs = keyring.macs(inputs, generation, self.request.deadline).await?;
        let rows = rows.into_iter().zip(macs);
        Ok(rows.map(|(row, mac)| Sealed { row, mac, generation }).collect())
    }

    /// Makes what ends with a mutation: the tenant's manifest with rows added and removed, and the result to remember.
    ///
    /// The caller holds the tenant's lock.
    pub(super) async fn closing<T: Serialize>(
        &mut self,
        tenant: &TenantName,
        rows: RowChanges<'_>,
        result: &T,
    ) -> Result<Closing, ServiceError> {
        let mut manifest = self.inner.current_manifest(tenant).await?;
        let expected = manifest.revision;
        manifest.revision = expected.next();
        for macs in rows.removed.chunks(ROWS_A_TURN) {
            for mac in macs {
                manifest.rows.remove(mac);
            }
            give_way_after(macs).await;
        }
        for macs in rows.added.chunks(ROWS_A_TURN) {
            for mac in macs {
                manifest.rows.insert(mac);
            }
            give_way_after(macs).await;
        }
        let history = self.seal_history(rows.history).await?;
        for entry in &history {
            manifest.rows.insert(&entry.mac);
        }
        self.trail.manifest = Some(manifest.stamp());
        let applied = Some(manifest.stamp());
        let intent = Intent { applied, ..self.intent.clone() };
        let remembered = self.claim.map(|claim| claim.remember(tenant, result)).transpose()?;
        // One call of the HSM for all the rest.
        let keyring = &self.inner.keyring;
        let generation = keyring.config().generation;
        let mut inputs = vec![manifest.mac_input(generation), intent.mac_input(generation)];
        inputs.extend(remembered.as_ref().map(|request| request.mac_input(generation)));
        let macs = keyring.macs(inputs, generation, self.request.deadline).await?;
        let [manifest_mac, intent_mac, request_mac @ ..] = macs.as_slice() else {
            return Err(ServiceError::Bug { reason: "a MAC is missing" });
        };
        let manifest = Sealed { row: manifest, mac: *manifest_mac, generation };
        let seal = |(row, mac): (RequestRecord, &RowMac)| Sealed { row, mac: *mac, generation };
        Ok(Closing {
            intent: Sealed { row: intent, mac: *intent_mac, generation },
            manifest: ManifestChange { expected, manifest },
            history,
            request: remembered.zip(request_mac.first()).map(seal),
        })
    }

    /// Finds out what became of a transaction: an error may hide that it was committed, now or after the next start.
    ///
    /// Invariant: "not committed" is said only after a later write succeeded, as a commit whose end the database could not
    /// write may still come back from its journal
    /// (`a_commit_in_doubt_is_not_undone_before_the_store_writes_again`).
    pub(super) async fn settle(&self, committed: Result<(), StoreError>) -> Result<(), Failure> {
        let error = match committed {
            Ok(()) => return Ok(()),
            Err(error @ (StoreError::Unavailable { .. } | StoreError::Unwritable { .. })) => error,
            Err(error) => {
                let told = self.inner.keyring.stored::<()>(Err(error)).map_err(ServiceError::from);
                return told.map_err(Failure::Undo);
            }
        };
        let unknown = |error: StoreError| {
            let detail = error.to_string();
            Err(Failure::Unknown(ServiceError::OutcomeUnknown { detail }))
        };
        let store = &self.inner.store;
        if store.probe(self.inner.clock.now()).await.is_err() {
            return unknown(error);
        }
        let Ok(intents) = store.intents().await else { return unknown(error) };
        let Some(found) = intents.rows.iter().find(|found| found.row.id == self.intent.id) else {
            // Only another process could have closed it, and it alone knows why.
            return unknown(error);
        };
        let what = format!("intent {}", self.intent.id);
        if self.inner.keyring.verify_row(found, what).await.is_err() {
            return unknown(error);
        }
        match found.row.applied {
            Some(_) => Ok(()),
            None => Err(Failure::Undo(error.into())),
        }
    }
}
