//! RotateKey: a new, independently generated version becomes primary; the old one goes on for the overlap. A staged version
//! is such a version, made before: where there is one, it is the one.

use std::sync::Arc;

use kms_core::canonical::CanonicalWriter;
use kms_core::id::{EventId, KeyVersion, RequestId, RootGeneration};
use kms_core::key::{CounterRow, KeyRow, KeyState, Sealed, VersionRow};
use kms_core::lifecycle::{HistoryRow, Rotation};
use kms_core::name::KeyName;
use kms_core::state::VersionState;
use serde::Serialize;

use super::change::{Change, Failure, RowChanges, moved};
use super::describe_key::{Fresh, describe_key, describe_version};
use super::fields;
use super::kms::{Inner, Kms};
use super::mutation::{Mutation, Subject, Turn};
use super::reconcile::{MAX_ROTATIONS, Reconciled};
use super::trail::Trail;
use super::{RequestContext, RotateKey, Rotated, ServiceError, VersionDescription};
use crate::authz::{self, Target};
use crate::store::{self, DuePosition, IntentKind, VersionChoice};

impl Kms {
    /// Rolls a key over. It goes on when the caller goes away; a repeat with the same request id gets the result.
    ///
    /// # Errors
    /// `FIELD_VIOLATION`, `ACCESS_DENIED`, `KEY_NOT_FOUND`, `REQUEST_ID_REUSED`, `OPERATION_IN_PROGRESS`, and what the
    /// layers below cannot do.
    pub async fn rotate_key(
        &self,
        request: &RequestContext,
        rotate: RotateKey,
    ) -> Result<Rotated, ServiceError> {
        let RotateKey { name, reason, request_id } = rotate;
        let rotation =
            Rollover { name, reason, request_id: Some(request_id), only: None, by_period: false };
        self.mutate(request, rotation).await
    }

    /// Rolls over the keys whose primary has seen 2^31 invocations, as principal `internal`; returns how many.
    pub async fn rotate_due(&self) -> usize {
        let mut rotated = 0;
        for (name, version) in self.inner.keyring.due_rollovers() {
            let reason = "invocation limit".to_owned();
            let rotation =
                Rollover { name, reason, request_id: None, only: Some(version), by_period: false };
            let done = match self.inner.internal_request("internal/RotateKey") {
                Ok(request) => self.mutate(&request, rotation).await,
                Err(error) => Err(error),
            };
            match done {
                Ok(_) => rotated += 1,
                // Somebody else was faster, or wants no use of it; the next lease tells of it again.
                Err(error) if is_over(&error) => {}
                Err(error) => {
                    tracing::error!(alert = "rollover_failed", %error, "tried again with the next lease");
                }
            }
        }
        rotated
    }
}

/// Returns whether a rollover was due and is not any more: the key was rotated, or taken out of use.
const fn is_over(error: &ServiceError) -> bool {
    matches!(
        error,
        ServiceError::RevisionMismatch
            | ServiceError::KeyDisabled
            | ServiceError::KeyDestroyScheduled
            | ServiceError::KeyDestroyed
    )
}

/// A rollover that somebody asked for, or that is due.
struct Rollover {
    name: KeyName,
    reason: String,
    request_id: Option<RequestId>,
    /// The primary that is to be replaced; `None` means whichever it is.
    only: Option<KeyVersion>,
    /// Whether it is done only when the key's period is over.
    by_period: bool,
}

impl Mutation for Rollover {
    type Output = Rotated;
    type Basis = (Turn, Option<Sealed<VersionRow>>);

    fn trail(&self) -> Trail {
        Trail::key(&self.name)
    }

    fn request_id(&self) -> Option<RequestId> {
        self.request_id
    }

    fn reason(&self) -> Option<&str> {
        Some(&*self.reason).filter(|reason| !reason.is_empty())
    }

    fn permit(
        &self,
        inner: &Inner,
        request: &RequestContext,
        trail: &mut Trail,
    ) -> Result<(), ServiceError> {
        inner.permit::<authz::RotateKey>(request, Target::key(&self.name), trail).map(drop)
    }

    fn fields(&self) -> Result<CanonicalWriter, ServiceError> {
        fields::check_reason(&self.reason, 0)?;
        Ok(CanonicalWriter::new(b"fields").text(&self.name.to_string()).text(&self.reason))
    }

    async fn basis(
        &self,
        inner: &Inner,
        _trail: &mut Trail,
    ) -> Result<(Subject, Self::Basis), ServiceError> {
        let turn = inner.turn(&self.name, VersionChoice::Primary).await?;
        let row = &turn.fresh.key.row;
        if self.only.is_some_and(|version| version != row.primary) {
            return Err(ServiceError::RevisionMismatch);
        }
        let now = inner.clock.now();
        if self.by_period && row.rotation.is_none_or(|plan| plan.due > now) {
            return Err(ServiceError::RevisionMismatch);
        }
        if row.state == KeyState::Disabled {
            return Err(ServiceError::KeyDisabled);
        }
        let staged = inner.staged(&turn.fresh.key).await?;
        inner.prove(staged.as_ref()).await?;
        let subject = succession_of(IntentKind::RotateKey, row, staged.as_ref())?;
        Ok((subject, (turn, staged)))
    }

    async fn apply(
        self,
        change: &mut Change<'_>,
        (turn, staged): Self::Basis,
    ) -> Result<Rotated, Failure> {
        let reason = if self.reason.is_empty() { "rotated" } else { &self.reason };
        let previous = change.given_way(&turn.fresh.version.row);
        let succession = Succession { previous, staged, history: Vec::new(), reason };
        change.succeed(&turn.fresh, succession, |rotated, _| rotated).await
    }
}

/// What a change is about that replaces the primary: by the staged version, or by one that is to be made.
pub(super) fn succession_of(
    kind: IntentKind,
    key: &KeyRow,
    staged: Option<&Sealed<VersionRow>>,
) -> Result<Subject, ServiceError> {
    let (next, makes) = if let Some(staged) = staged {
        (staged.row.version, None)
    } else {
        let next = key.latest.next().ok_or(ServiceError::VersionsExhausted)?;
        (next, Some(key.protection))
    };
    let stale = vec![key.primary, next];
    Ok(Subject { makes, stale, ..Subject::of_version(kind, key, next) })
}

/// What becomes of a primary that is replaced.
pub(super) struct Succession<'s> {
    /// Its row.
    pub(super) previous: VersionRow,
    /// The version that takes its place; `None` when one is to be made.
    pub(super) staged: Option<Sealed<VersionRow>>,
    /// What is to be told of it.
    pub(super) history: Vec<HistoryRow>,
    /// Why there is a new version.
    pub(super) reason: &'s str,
}

impl Change<'_> {
    /// Returns the row of a primary that is rolled over: it goes on for the overlap.
    pub(super) fn given_way(&self, primary: &VersionRow) -> VersionRow {
        let mut previous = primary.clone();
        previous.revision = previous.revision.next();
        // A suspended version gets its end too: resumed later, it must not protect for ever.
        if matches!(previous.state, VersionState::Active | VersionState::Suspended) {
            let end = self.inner.clock.now().after(self.inner.keyring.config().overlap);
            previous.deactivate_time =
                previous.deactivate_time.map_or(Some(end), |t| Some(t.min(end)));
        }
        previous
    }

    /// Puts the staged version, or one that it makes, in the place of a key's primary. The result that is remembered is made
    /// of what the rollover did and the description of the old primary.
    pub(super) async fn succeed<T: Serialize>(
        &mut self,
        fresh: &Fresh,
        succession: Succession<'_>,
        result: impl FnOnce(Rotated, VersionDescription) -> T,
    ) -> Result<T, Failure> {
        let Succession { previous, staged, mut history, reason } = succession;
        let Fresh { key: old_key, version: old } = fresh;
        let Next { version, generation, counter, from } = if let Some(staged) = staged {
            self.activated(staged, reason).await?
        } else {
            let (version, counter) = self.generate(reason).await?;
            let generation = self.inner.keyring.config().generation;
            Next { version, generation, counter, from: None }
        };
        let now = version.state_time;
        let key = KeyRow {
            primary: version.version,
            latest: old_key.row.latest.max(version.version),
            revision: old_key.row.revision.next(),
            update_time: now,
            // However many periods were missed, there is one rotation; the next counts from now.
            rotation: old_key
                .row
                .rotation
                .map(|plan| Rotation::plan(plan.period, now, version.key_uid, version.version)),
            ..old_key.row.clone()
        };
        let key_description = describe_key(&key, &version, now);
        history.push(moved(from.as_ref().map(|row| (row.row.state, row.row.revision)), &version));
        let version = self.seal_under(generation, version).await?;
        let previous = self.seal_under(old.generation, previous).await?;
        let mut description = self.described(fresh, &previous).await?;
        description.primary = false;
        let rotated = Rotated {
            version: describe_version(&key, &version, counter.leased, now),
            key: key_description,
        };
        let result = result(rotated, description);
        let key = self.seal(key).await?;
        let mut removed = vec![old_key.mac, old.mac];
        let successor = match from {
            Some(staged) => {
                removed.push(staged.mac);
                store::Successor::Staged { expected: staged.row.revision, version }
            }
            None => store::Successor::New { version, counter: self.seal(counter).await? },
        };
        let (store::Successor::New { version, .. } | store::Successor::Staged { version, .. }) =
            &successor;
        let rows =
            RowChanges { added: &[key.mac, version.mac, previous.mac], removed: &removed, history };
        let closing = self.closing(old_key.row.name.tenant(), rows, &result).await?;
        let rollover = store::Rollover {
            expected_key: old_key.row.revision,
            key,
            successor,
            expected_previous: old.row.revision,
            previous,
        };
        let committed = self.inner.store.roll_over(rollover, closing).await;
        self.settle(committed).await?;
        Ok(result)
    }
}

/// A version that becomes the primary.
pub(super) struct Next {
    pub(super) version: VersionRow,
    /// Of the root that wraps it.
    pub(super) generation: RootGeneration,
    pub(super) counter: CounterRow,
    /// Its row while it was staged.
    pub(super) from: Option<Sealed<VersionRow>>,
}

impl Inner {
    /// Rolls over the keys whose period is over, one after another, at most [`MAX_ROTATIONS`]: those who use keys go first.
    pub(super) async fn rotate_by_period(
        self: &Arc<Self>,
        done: &mut Reconciled,
    ) -> Result<(), ServiceError> {
        let cursor = &self.due.rotations;
        let begun = cursor.after();
        let due = self.store.due_rotations(self.clock.now(), begun, MAX_ROTATIONS).await?;
        cursor.read(&due, MAX_ROTATIONS, |due| {
            due.row.rotation.map(|plan| DuePosition {
                time: plan.due,
                key_uid: due.row.uid,
                version: 0,
            })
        });
        for key in self.readable("rotations", due, done) {
            let (name, only) = (key.row.name, Some(key.row.primary));
            let request = self.internal_request("internal/RotateKey")?;
            let mut trail = Trail::key(&name);
            let reason = "rotation period over".to_owned();
            let rollover =
                Rollover { name: name.clone(), reason, request_id: None, only, by_period: true };
            let rotated = self.mutate(&request, rollover, &mut trail).await;
            match self.record_unless_begun(&request, trail, rotated).await {
                Ok(_) => done.rotated += 1,
                // Rotated, changed or disabled meanwhile.
                Err(error) if is_over(&error) => {}
                Err(error) => {
                    done.rollover_failed(&name, error).inspect_err(|_| cursor.back_to(begun))?;
                }
            }
        }
        Ok(())
    }

    /// Makes the context of something the server does by itself.
    pub(super) fn internal_request(
        &self,
        operation: &'static str,
    ) -> Result<RequestContext, ServiceError> {
        let received = self.clock.monotonic();
        Ok(RequestContext {
            event_id: EventId::from_random(self.draw()?),
            principal: super::kms::internal_principal(),
            source: super::kms::NOWHERE,
            deadline: received + super::kms::INTERNAL_DEADLINE,
            received,
            operation,
            items_before: 0,
        })
    }
}
