//! Destroying versions: those whose window is over, those of a key that is destroyed as a whole, and staged ones that are
//! given up (DiscardKeyVersion).
//!
//! Irreversible, so it is never done on the word of one row: all rows of the tenant are verified against its manifest, and
//! that against the log's last stamp of it, before anything goes. An old row that was put back, of a destruction that was
//! cancelled since, shows there although its MAC is right. That walk takes the tenant's turn for a while, so what a few rows
//! say is asked first: a destruction that is held for a year makes no walk a minute.
//!
//! What is left is a tombstone: the row without material. For a token object: destroyed in the token first, then the row
//! is written; a crash between the two leaves a row that is still due, and the next run finds nothing to destroy. Until then it
//! cannot be given back (`gone`).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use kms_core::canonical::CanonicalWriter;
use kms_core::clock::Timestamp;
use kms_core::id::RequestId;
use kms_core::journal::Event;
use kms_core::key::{KeyState, Material, Sensitivity, VersionRow, WrappedKey};
use kms_core::lifecycle::HistoryRow;
use kms_core::name::{TenantName, VersionName};
use kms_core::state::VersionState;

use super::change::{Change, Failure, RowChanges, moved};
use super::describe_key::Fresh;
use super::due::place;
use super::kms::{Inner, Kms};
use super::mutation::{Mutation, Subject, Turn};
use super::reconcile::Reconciled;
use super::trail::Trail;
use super::{
    ChangeVersionState, MAX_DUE, RequestContext, ServiceError, VersionDescription, fields,
};
use crate::authz::{self, Target};
use crate::store::{IntentKind, VersionChoice};

const OPERATION: &str = "internal/DestroyKeyVersion";
/// How long nobody may have wanted a version of a key of HIGH sensitivity before it is destroyed. Its destruction is planned
/// for longer than this at least, and everybody is refused meanwhile: who depends on it is heard, and it waits.
pub const SCREAM_PERIOD: Duration = Duration::from_hours(7 * 24);

impl Kms {
    /// Gives a staged version up. It was never used, so there is no window.
    ///
    /// # Errors
    /// As for [`Kms::suspend_key_version`]; `KEY_INTEGRITY` when the rows of the tenant are not what its manifest says.
    pub async fn discard_key_version(
        &self,
        request: &RequestContext,
        change: ChangeVersionState,
    ) -> Result<VersionDescription, ServiceError> {
        let ChangeVersionState { name, reason, request_id } = change;
        self.mutate(request, Destroy { name, reason, cause: Cause::Discarded(request_id) }).await
    }
}

impl Inner {
    /// Destroys what is due, at most [`MAX_DUE`] versions.
    pub(super) async fn destroy_due(
        self: &Arc<Self>,
        verified: &mut Verified,
        done: &mut Reconciled,
    ) -> Result<(), ServiceError> {
        let cursor = &self.due.destructions;
        let due = self.store.due_destructions(self.clock.now(), cursor.after(), MAX_DUE).await?;
        cursor.read(&due, MAX_DUE, |due| {
            place(&due.row, due.row.destruction.map(|planned| planned.time))
        });
        for due in self.readable("destructions", due, done) {
            let Some(name) = self.name_of_due(&due.row, done).await? else { continue };
            match self.destroy(&name, verified).await {
                // Done, by this run or meanwhile.
                Ok(()) | Err(ServiceError::IllegalTransition { .. }) => done.destroyed += 1,
                // Held: by a consumer that came meanwhile, or by the plan for the whole key.
                Err(
                    ServiceError::ConsumersRegistered { .. } | ServiceError::KeyDestroyScheduled,
                ) => {}
                Err(ServiceError::RecentlyUsed { last }) => tracing::warn!(
                    alert = "destruction_held",
                    key_version = %name,
                    wanted = %last,
                    "somebody wants it: it is destroyed when nobody has for 7 days"
                ),
                Err(error) => {
                    verified.failed(name.key().tenant(), &error);
                    tracing::warn!(%error, key_version = %name, "a destruction is still due");
                    done.failed += 1;
                }
            }
        }
        Ok(())
    }

    async fn destroy(
        self: &Arc<Self>,
        name: &VersionName,
        verified: &mut Verified,
    ) -> Result<(), ServiceError> {
        let destroy = Destroy {
            name: name.clone(),
            reason: "window over".to_owned(),
            cause: Cause::WindowOver,
        };
        let choice = VersionChoice::Number(name.version());
        let there = self.fresh(name.key(), choice).await?;
        destroy.check(self, &there).await?;
        verified.check(self, name.key().tenant()).await?;
        let request = self.internal_request(OPERATION)?;
        let mut trail = Trail::key(name.key());
        self.mutate(&request, destroy, &mut trail).await.map(drop)
    }

    /// Refuses a version of a key of HIGH sensitivity that somebody wanted within [`SCREAM_PERIOD`].
    async fn check_silence(&self, fresh: &Fresh) -> Result<(), ServiceError> {
        let Fresh { key, version } = fresh;
        let despite = version.row.destruction.is_none_or(|planned| planned.despite_recent_use);
        if key.row.sensitivity != Sensitivity::High || despite {
            return Ok(());
        }
        let last = self.last_wanted(&version.row).await?;
        match last.filter(|last| last.after(SCREAM_PERIOD) > self.clock.now()) {
            Some(last) => Err(ServiceError::RecentlyUsed { last }),
            None => Ok(()),
        }
    }
}

/// The tenants whose rows were looked at in one run.
#[derive(Default)]
pub(super) struct Verified {
    whole: HashSet<TenantName>,
    /// Why nothing of a tenant is destroyed in this run.
    spared: HashMap<TenantName, ServiceError>,
}

impl Verified {
    /// Refuses a tenant whose rows are not what its manifest says; looks once, and remembers why not when it could not.
    pub(super) async fn check(
        &mut self,
        inner: &Inner,
        tenant: &TenantName,
    ) -> Result<(), ServiceError> {
        if !self.whole.contains(tenant) && !self.spared.contains_key(tenant) {
            match inner.walk_verified(tenant).await {
                Ok(_) => drop(self.whole.insert(tenant.clone())),
                Err(error) => drop(self.spared.insert(tenant.clone(), error)),
            }
        }
        self.spared.get(tenant).map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Notes what went wrong with something of a tenant: who waited for its turn in vain does not wait again in this run.
    pub(super) fn failed(&mut self, tenant: &TenantName, error: &ServiceError) {
        if *error == ServiceError::QueueDeadline {
            self.spared.insert(tenant.clone(), error.clone());
        }
    }
}

/// Why a version is destroyed.
#[derive(Clone, Copy)]
enum Cause {
    /// Its own window is over.
    WindowOver,
    /// The destruction of its whole key has begun.
    WithKey,
    /// It is staged, and given up; with the caller's id of the request.
    Discarded(RequestId),
}

/// The destruction of a version.
pub(super) struct Destroy {
    name: VersionName,
    reason: String,
    cause: Cause,
}

impl Destroy {
    /// Makes the destruction of a version of a key whose destruction has begun.
    pub(super) fn with_key(name: VersionName) -> Self {
        Self { name, reason: "destroyed with its key".to_owned(), cause: Cause::WithKey }
    }

    /// Refuses what is not due, and what is held.
    async fn check(&self, inner: &Inner, fresh: &Fresh) -> Result<(), ServiceError> {
        self.leads(fresh, inner.clock.now())?;
        self.check_unwanted(inner, fresh).await
    }

    /// Returns the states that it goes through, in order; the last is DESTROYED. They begin at the state that is written down:
    /// an end of an overlap that is not yet is a step of the history too.
    fn leads(
        &self,
        fresh: &Fresh,
        now: Timestamp,
    ) -> Result<&'static [VersionState], ServiceError> {
        let row = &fresh.version.row;
        let state = row.state_at(now);
        let is_due = match self.cause {
            Cause::WindowOver => row.destruction.is_some_and(|planned| planned.time <= now),
            Cause::WithKey => fresh.key.row.destruction.is_some_and(|planned| planned.begun),
            Cause::Discarded(_) => state == VersionState::PreActivation,
        };
        let illegal = ServiceError::IllegalTransition { from: state, to: VersionState::Destroyed };
        let path = row.state.to_destroyed();
        if is_due && !path.is_empty() { Ok(path) } else { Err(illegal) }
    }

    const fn discards(&self) -> Option<RequestId> {
        match self.cause {
            Cause::Discarded(id) => Some(id),
            Cause::WindowOver | Cause::WithKey => None,
        }
    }

    /// Refuses what is wanted: who depends on a version is heard. Of a whole key that was decided when it began.
    async fn check_unwanted(&self, inner: &Inner, fresh: &Fresh) -> Result<(), ServiceError> {
        let Fresh { key, version } = fresh;
        let has_begun = key.row.destruction.is_some_and(|planned| planned.begun);
        match self.cause {
            Cause::WithKey => return Ok(()),
            // Whoever cancels the plan for the whole key gets back what there was when it was made.
            Cause::WindowOver if key.row.state == KeyState::DestroyScheduled && !has_begun => {
                return Err(ServiceError::KeyDestroyScheduled);
            }
            Cause::WindowOver | Cause::Discarded(_) => {}
        }
        // One that registers while the destruction is planned holds it.
        let despite = version.row.destruction.is_none_or(|planned| planned.despite_consumers);
        if key.row.consumers > 0 && !despite {
            return Err(ServiceError::ConsumersRegistered { count: key.row.consumers });
        }
        match self.cause {
            Cause::WindowOver => inner.check_silence(fresh).await,
            Cause::WithKey | Cause::Discarded(_) => Ok(()),
        }
    }
}

impl Mutation for Destroy {
    type Output = VersionDescription;
    type Basis = Turn;

    fn trail(&self) -> Trail {
        let mut trail = Trail::key(self.name.key());
        trail.version = Some(self.name.version());
        trail
    }

    fn request_id(&self) -> Option<RequestId> {
        self.discards()
    }

    fn reason(&self) -> Option<&str> {
        self.discards().map(|_| &*self.reason)
    }

    fn permit(
        &self,
        inner: &Inner,
        request: &RequestContext,
        trail: &mut Trail,
    ) -> Result<(), ServiceError> {
        let target = Target::key(self.name.key());
        if self.discards().is_some() {
            return inner.permit::<authz::DiscardKeyVersion>(request, target, trail).map(drop);
        }
        // Whoever scheduled it was permitted to; this is the same change, at its time.
        inner.permit::<authz::ScheduleKeyVersionDestruction>(request, target, trail).map(drop)
    }

    fn fields(&self) -> Result<CanonicalWriter, ServiceError> {
        fields::check_reason(&self.reason, 1)?;
        Ok(CanonicalWriter::new(b"fields").text(&self.name.to_string()).text(&self.reason))
    }

    async fn basis(
        &self,
        inner: &Inner,
        trail: &mut Trail,
    ) -> Result<(Subject, Turn), ServiceError> {
        let number = self.name.version();
        if self.discards().is_some() {
            // Before the walk, which takes a while and the tenant's turn: most mistakes show in one row.
            let choice = VersionChoice::Number(number);
            let there = inner.fresh(self.name.key(), choice).await?;
            self.check(inner, &there).await?;
            // Of what is due this was done for all at once.
            inner.walk_verified(self.name.key().tenant()).await?;
        }
        let choice = VersionChoice::Number(number);
        let (turn, kind) = match self.cause {
            Cause::Discarded(_) => {
                (inner.turn(self.name.key(), choice).await?, IntentKind::DiscardKeyVersion)
            }
            Cause::WindowOver | Cause::WithKey => {
                (inner.turn_whatever(self.name.key(), choice).await?, IntentKind::DestroyKeyVersion)
            }
        };
        trail.key_uid = Some(turn.fresh.key.row.uid);
        self.check(inner, &turn.fresh).await?;
        let subject = Subject::of_version(kind, &turn.fresh.key.row, number);
        Ok((subject, turn))
    }

    async fn apply(
        self,
        change: &mut Change<'_>,
        turn: Turn,
    ) -> Result<VersionDescription, Failure> {
        let Fresh { key, version: old } = &turn.fresh;
        let now = change.inner.clock.now();
        let path = self.leads(&turn.fresh, now)?;
        let is_used = old.row.state != VersionState::PreActivation;
        let resident = match old.row.material {
            Material::Resident(id) => Some(id),
            Material::Wrapped(_) => None,
        };
        let row = VersionRow {
            state: VersionState::Destroyed,
            material: match &old.row.material {
                Material::Resident(id) => Material::Resident(*id),
                Material::Wrapped(_) => Material::Wrapped(WrappedKey(Vec::new())),
            },
            state_time: now,
            state_reason: self.reason,
            state_actor: (&*change.request.principal.id).into(),
            // What never was in use has no time when it came into use.
            activate_time: old.row.activate_time.filter(|_| is_used),
            destruction: None,
            // A revision for each step of the way.
            revision: path.iter().fold(old.row.revision, |revision, _| revision.next()),
            ..old.row.clone()
        };
        let history = steps(&old.row, path, &row);
        let row = change.seal_under(old.generation, row).await?;
        let description = change.described(&turn.fresh, &row).await?;
        let rows = RowChanges { added: &[row.mac], removed: &[old.mac], history };
        // Before the object goes: this compares the manifest with the log.
        let closing = change.closing(key.row.name.tenant(), rows, &description).await?;
        let subject = Change::journal_subject(&key.row, old.row.version);
        change.journal(Event::VersionDestroyed(subject)).await?;
        if let Some(id) = resident {
            let destroyed = change.inner.hsm.destroy_resident(id, change.request.deadline).await;
            if let Err(error) = destroyed {
                let error = change.inner.device(error);
                return Err(change.inner.not_destroyed(id, error).await);
            }
        }
        let committed = change.inner.store.update_version(old.row.revision, row, closing).await;
        let settled = change.settle(committed).await;
        settled.map_err(|failure| match resident {
            Some(_) => failure.after_destruction(),
            None => failure,
        })?;
        Ok(description)
    }
}

/// Makes the history entry of each step of the way of a version to its end.
pub(super) fn steps(
    old: &VersionRow,
    path: &[VersionState],
    ended: &VersionRow,
) -> Vec<HistoryRow> {
    let mut from = (old.state, old.revision);
    let step = |state: &VersionState| {
        let row = VersionRow { state: *state, revision: from.1.next(), ..ended.clone() };
        let entry = moved(Some(from), &row);
        from = (row.state, row.revision);
        entry
    };
    path.iter().map(step).collect()
}

#[cfg(test)]
mod tests {
    use kms_core::lifecycle::{HistoryChange, KeyDestruction};

    use super::*;
    use crate::store::{NewKey, suite};

    /// An end of an overlap is in force before it is written down: it is a step of the history all the same.
    #[test]
    fn every_step_of_a_history_is_one_of_the_matrix() {
        let now = Timestamp::from_unix_ms(10_000);
        for state in VersionState::ALL {
            let NewKey { mut key, mut version, .. } = suite::new_key(1);
            let (despite_consumers, despite_recent_use, begun) = (false, false, true);
            let destruction =
                KeyDestruction { time: now, despite_consumers, despite_recent_use, begun };
            (key.row.state, key.row.destruction) = (KeyState::DestroyScheduled, Some(destruction));
            version.row.state = state;
            version.row.deactivate_time = Some(now);
            let name = VersionName::new(key.row.name.clone(), version.row.version);
            let fresh = Fresh { key, version };
            let Ok(path) = Destroy::with_key(name).leads(&fresh, now) else {
                assert_eq!(state, VersionState::Destroyed);
                continue;
            };
            let mut at = state;
            for entry in steps(&fresh.version.row, path, &fresh.version.row) {
                let HistoryChange::State { from, to, .. } = entry.change else { panic!() };
                assert_eq!(from, Some(at));
                assert!(at.can_become(to), "{at} to {to}");
                at = to;
            }
            assert_eq!(at, VersionState::Destroyed);
        }
    }

    #[test]
    fn a_tenant_whose_turn_is_not_to_be_had_is_spared_and_no_other() {
        let [t, u] = ["t", "u"].map(|id| TenantName::from_id(id).unwrap());
        let mut verified = Verified::default();
        verified.failed(&u, &ServiceError::HsmDeadline);
        verified.failed(&t, &ServiceError::QueueDeadline);
        assert_eq!(verified.spared.get(&t), Some(&ServiceError::QueueDeadline));
        assert_eq!(verified.spared.get(&u), None);
    }
}
