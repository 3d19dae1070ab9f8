//! Destroying whole keys whose window is over.
//!
//! The key's row says first that it has begun; from then on there is no way back, and every run goes on: versions one by
//! one, as `destroy_due` destroys them, and when all are tombstones the key is one. So a crash at any point leaves what
//! the next run finishes. It begins only when all rows of the tenant are verified against its manifest, and for a key of HIGH
//! sensitivity only when nobody has wanted it for [`SCREAM_PERIOD`].

use std::sync::Arc;

use kms_core::canonical::CanonicalWriter;
use kms_core::id::{KeyVersion, RequestId};
use kms_core::journal::Event;
use kms_core::key::{KeyRow, KeyState, Sensitivity};
use kms_core::lifecycle::KeyDestruction;
use kms_core::name::{KeyName, VersionName};
use kms_core::state::VersionState;

use super::change::{Change, Failure};
use super::destroy_due::{Destroy, SCREAM_PERIOD, Verified};
use super::key_destruction::told_change;
use super::kms::Inner;
use super::mutation::{Mutation, Subject, Turn};
use super::reconcile::Reconciled;
use super::trail::Trail;
use super::{KeyDescription, MAX_DUE, RequestContext, ServiceError};
use crate::authz::{self, Target};
use crate::store::{DuePosition, IntentKind, VersionChoice};

const OPERATION: &str = "internal/DestroyKey";
const REASON: &str = "window over";
/// Versions that are read at once.
const PAGE: u32 = 100;

impl Inner {
    /// Destroys keys that are due, at most [`MAX_DUE`] versions in one run.
    pub(super) async fn destroy_keys_due(
        self: &Arc<Self>,
        verified: &mut Verified,
        done: &mut Reconciled,
    ) -> Result<(), ServiceError> {
        let cursor = &self.due.key_destructions;
        let now = self.clock.now();
        let due = self.store.due_key_destructions(now, cursor.after(), MAX_DUE).await?;
        cursor.read(&due, MAX_DUE, |due| {
            due.row.destruction.map(|planned| DuePosition {
                time: planned.time,
                key_uid: due.row.uid,
                version: 0,
            })
        });
        let mut left = MAX_DUE;
        for key in self.readable("key destructions", due, done) {
            let name = key.row.name;
            match self.destroy_key(&name, verified, &mut left, done).await {
                // Cancelled, done, or held meanwhile.
                Ok(())
                | Err(
                    ServiceError::KeyNotScheduled
                    | ServiceError::KeyDestroyed
                    | ServiceError::ConsumersRegistered { .. },
                ) => {}
                Err(ServiceError::RecentlyUsed { last }) => tracing::warn!(
                    alert = "destruction_held",
                    key = %name,
                    wanted = %last,
                    "somebody wants it: it is destroyed when nobody has for 7 days"
                ),
                Err(error) => {
                    verified.failed(name.tenant(), &error);
                    tracing::warn!(%error, key = %name, "a destruction of a key is still due");
                    done.failed += 1;
                }
            }
        }
        Ok(())
    }

    /// Destroys a key, as far as `left` goes; the next run goes on. What a few rows say is asked before all rows are walked.
    async fn destroy_key(
        self: &Arc<Self>,
        name: &KeyName,
        verified: &mut Verified,
        left: &mut u32,
        done: &mut Reconciled,
    ) -> Result<(), ServiceError> {
        let key = self.fresh(name, VersionChoice::Primary).await?.key.row;
        let has_begun = key.destruction.is_some_and(|planned| planned.begun);
        if !has_begun {
            self.check_may_begin(&key).await?;
        }
        verified.check(self, name.tenant()).await?;
        if !has_begun {
            self.end_key(name, Step::Begin).await?;
        }
        if self.destroy_versions(&key, left, done).await? {
            self.end_key(name, Step::Finish).await?;
            done.keys_destroyed += 1;
        }
        Ok(())
    }

    /// Destroys the versions of a key whose destruction has begun, as far as `left` goes; returns whether none is left. One that
    /// cannot be destroyed holds up no other.
    ///
    /// # Errors
    /// The first.
    async fn destroy_versions(
        self: &Arc<Self>,
        key: &KeyRow,
        left: &mut u32,
        done: &mut Reconciled,
    ) -> Result<bool, ServiceError> {
        let (mut after, mut first) = (None, None);
        loop {
            let versions = self.store.list_versions(key.uid, after, PAGE).await;
            let versions = self.keyring.stored(versions)?;
            let Some(last) = versions.last() else { break };
            after = Some(last.row.version);
            self.keyring.verify_rows(&[], &versions, &[]).await?;
            for version in versions {
                if version.row.state == VersionState::Destroyed {
                    continue;
                }
                if *left == 0 {
                    return first.map_or(Ok(false), Err);
                }
                *left -= 1;
                let version = VersionName::new(key.name.clone(), version.row.version);
                match self.destroy_with_key(&version).await {
                    Ok(()) => done.destroyed += 1,
                    // The others would wait in vain too.
                    Err(error @ ServiceError::QueueDeadline) => return Err(error),
                    Err(error) => {
                        tracing::warn!(%error, key_version = %version, "it stays for now");
                        first.get_or_insert(error);
                    }
                }
            }
        }
        first.map_or(Ok(true), Err)
    }

    async fn destroy_with_key(self: &Arc<Self>, name: &VersionName) -> Result<(), ServiceError> {
        let request = self.internal_request(OPERATION)?;
        let mut trail = Trail::key(name.key());
        let destroy = Destroy::with_key(name.clone());
        match self.mutate(&request, destroy, &mut trail).await {
            // Done meanwhile.
            Ok(_) | Err(ServiceError::IllegalTransition { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn end_key(self: &Arc<Self>, name: &KeyName, step: Step) -> Result<(), ServiceError> {
        let request = self.internal_request(OPERATION)?;
        let mut trail = Trail::key(name);
        self.mutate(&request, EndKey { name: name.clone(), step }, &mut trail).await.map(drop)
    }

    /// Refuses to begin what is given up, not due, or held.
    async fn check_may_begin(&self, row: &KeyRow) -> Result<(), ServiceError> {
        let planned = row.destruction.filter(|planned| planned.time <= self.clock.now());
        let Some(planned) = planned else { return Err(ServiceError::KeyNotScheduled) };
        if planned.begun {
            return Err(ServiceError::KeyDestroyed);
        }
        // One that registers while the destruction is planned holds it.
        if row.consumers > 0 && !planned.despite_consumers {
            return Err(ServiceError::ConsumersRegistered { count: row.consumers });
        }
        self.check_key_silence(row, planned).await
    }

    /// Refuses a key of HIGH sensitivity that somebody wanted within [`SCREAM_PERIOD`].
    async fn check_key_silence(
        &self,
        row: &KeyRow,
        planned: KeyDestruction,
    ) -> Result<(), ServiceError> {
        if row.sensitivity != Sensitivity::High || planned.despite_recent_use {
            return Ok(());
        }
        let last = self.key_last_wanted(row).await?;
        match last.filter(|last| last.after(SCREAM_PERIOD) > self.clock.now()) {
            Some(last) => Err(ServiceError::RecentlyUsed { last }),
            None => Ok(()),
        }
    }

    /// Refuses a key that has a version which is not destroyed.
    async fn check_all_destroyed(&self, row: &KeyRow) -> Result<(), ServiceError> {
        let mut after: Option<KeyVersion> = None;
        let mut count = 0;
        loop {
            let versions = self.store.list_versions(row.uid, after, PAGE).await;
            let versions = self.keyring.stored(versions)?;
            let Some(last) = versions.last() else { break };
            after = Some(last.row.version);
            self.keyring.verify_rows(&[], &versions, &[]).await?;
            let living = versions.iter().find(|row| row.row.state != VersionState::Destroyed);
            if let Some(living) = living {
                let (from, to) = (living.row.state, VersionState::Destroyed);
                return Err(ServiceError::IllegalTransition { from, to });
            }
            count += versions.len();
        }
        if count == row.latest.get() as usize {
            return Ok(());
        }
        let detail = format!("key {} has {count} versions of {}", row.uid, row.latest);
        Err(self.keyring.integrity(detail).into())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// From now on there is no way back.
    Begin,
    /// All versions are tombstones; the key becomes one.
    Finish,
    /// As [`Step::Finish`], of a key that was destroyed before its store was restored, whatever was planned in the backup.
    Replay,
}

/// Makes the end of a key that the state journal tells of.
pub(super) const fn end_replayed(name: KeyName) -> impl Mutation<Output = KeyDescription> {
    EndKey { name, step: Step::Replay }
}

/// The beginning, or the end, of a key's destruction.
struct EndKey {
    name: KeyName,
    step: Step,
}

impl Mutation for EndKey {
    type Output = KeyDescription;
    type Basis = Turn;

    fn trail(&self) -> Trail {
        Trail::key(&self.name)
    }

    fn request_id(&self) -> Option<RequestId> {
        None
    }

    fn reason(&self) -> Option<&str> {
        Some(REASON)
    }

    fn permit(
        &self,
        inner: &Inner,
        request: &RequestContext,
        trail: &mut Trail,
    ) -> Result<(), ServiceError> {
        // Whoever scheduled it was permitted to; this is the same change, at its time.
        let target = Target::key(&self.name);
        inner.permit::<authz::ScheduleKeyDestruction>(request, target, trail).map(drop)
    }

    fn fields(&self) -> Result<CanonicalWriter, ServiceError> {
        Ok(CanonicalWriter::new(b"fields").text(&self.name.to_string()).text(REASON))
    }

    async fn basis(
        &self,
        inner: &Inner,
        trail: &mut Trail,
    ) -> Result<(Subject, Turn), ServiceError> {
        let turn = inner.turn_whatever(&self.name, VersionChoice::Primary).await?;
        let row = &turn.fresh.key.row;
        trail.key_uid = Some(row.uid);
        match self.step {
            Step::Begin => inner.check_may_begin(row).await?,
            Step::Finish if !row.destruction.is_some_and(|planned| planned.begun) => {
                return Err(ServiceError::KeyNotScheduled);
            }
            Step::Finish | Step::Replay => inner.check_all_destroyed(row).await?,
        }
        let subject = Subject::of_key(IntentKind::DestroyKey, row);
        Ok((subject, turn))
    }

    async fn apply(self, change: &mut Change<'_>, turn: Turn) -> Result<KeyDescription, Failure> {
        let old = &turn.fresh.key.row;
        let key = match self.step {
            Step::Begin => {
                let destruction =
                    old.destruction.map(|planned| KeyDestruction { begun: true, ..planned });
                KeyRow { destruction, ..old.clone() }
            }
            Step::Finish | Step::Replay => {
                let (state, destruction) = (KeyState::Destroyed, None);
                // Nothing is due of a tombstone.
                KeyRow { state, destruction, rotation: None, ..old.clone() }
            }
        };
        let detail = told_change(old, &key);
        if self.step == Step::Finish {
            let (tenant, key_uid) = (key.name.tenant().clone(), key.uid);
            change.journal(Event::KeyDestroyed { tenant, key_uid }).await?;
        }
        change.replace_key(&turn.fresh, key, detail, REASON.to_owned()).await
    }
}
