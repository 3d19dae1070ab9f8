//! ActivateKeyVersion: a staged version takes the place of the primary, by hand or at its date.

use std::sync::Arc;

use kms_core::canonical::CanonicalWriter;
use kms_core::clock::Timestamp;
use kms_core::id::RequestId;
use kms_core::key::{KeyState, Sealed, VersionRow};
use kms_core::lifecycle::Transition;
use kms_core::name::VersionName;
use kms_core::state::VersionState;

use super::change::{Change, Failure};
use super::due::place;
use super::kms::{Inner, Kms};
use super::mutation::{Mutation, Subject, Turn};
use super::reconcile::{MAX_ROTATIONS, Reconciled};
use super::rotate_key::{Next, Succession, succession_of};
use super::trail::Trail;
use super::{ChangeVersionState, RequestContext, Rotated, ServiceError, fields};
use crate::authz::{self, Target};
use crate::store::{IntentKind, VersionChoice};

const OPERATION: &str = "internal/ActivateKeyVersion";

impl Kms {
    /// Puts a staged version in the place of its key's primary.
    ///
    /// # Errors
    /// As for [`Kms::suspend_key_version`], and `KEY_DISABLED`.
    pub async fn activate_key_version(
        &self,
        request: &RequestContext,
        change: ChangeVersionState,
    ) -> Result<Rotated, ServiceError> {
        let ChangeVersionState { name, reason, request_id } = change;
        let activation = Activation { name, reason, request_id: Some(request_id) };
        self.mutate(request, activation).await
    }
}

struct Activation {
    name: VersionName,
    reason: String,
    /// `None` when it is done because its date has come.
    request_id: Option<RequestId>,
}

impl Mutation for Activation {
    type Output = Rotated;
    type Basis = (Turn, Sealed<VersionRow>);

    fn trail(&self) -> Trail {
        let mut trail = Trail::key(self.name.key());
        trail.version = Some(self.name.version());
        trail
    }

    fn request_id(&self) -> Option<RequestId> {
        self.request_id
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
        let target = Target::key(self.name.key());
        inner.permit::<authz::ActivateKeyVersion>(request, target, trail).map(drop)
    }

    fn fields(&self) -> Result<CanonicalWriter, ServiceError> {
        fields::check_reason(&self.reason, 1)?;
        Ok(CanonicalWriter::new(b"fields").text(&self.name.to_string()).text(&self.reason))
    }

    async fn basis(
        &self,
        inner: &Inner,
        trail: &mut Trail,
    ) -> Result<(Subject, Self::Basis), ServiceError> {
        let (name, number) = (self.name.key(), self.name.version());
        let turn = inner.turn(name, VersionChoice::Primary).await?;
        let key = &turn.fresh.key.row;
        trail.key_uid = Some(key.uid);
        if key.state == KeyState::Disabled {
            return Err(ServiceError::KeyDisabled);
        }
        let staged = inner.fresh(name, VersionChoice::Number(number)).await?.version;
        let now = inner.clock.now();
        let (from, step) = (staged.row.state_at(now), Transition::Activate);
        if step.leads(from, None).is_none() {
            return Err(ServiceError::IllegalTransition { from, to: step.aims_at() });
        }
        if self.request_id.is_none() && !is_due(&staged.row, now) {
            return Err(ServiceError::RevisionMismatch);
        }
        if number != key.latest {
            let detail = format!("key {} has a staged version that is not its latest", key.uid);
            return Err(inner.keyring.integrity(detail).into());
        }
        inner.check_never_used(&staged).await?;
        inner.prove(Some(&staged)).await?;
        let subject = succession_of(IntentKind::ActivateKeyVersion, key, Some(&staged))?;
        Ok((subject, (turn, staged)))
    }

    async fn apply(
        self,
        change: &mut Change<'_>,
        (turn, staged): Self::Basis,
    ) -> Result<Rotated, Failure> {
        let previous = change.given_way(&turn.fresh.version.row);
        let (staged, history) = (Some(staged), Vec::new());
        let succession = Succession { previous, staged, history, reason: &self.reason };
        change.succeed(&turn.fresh, succession, |rotated, _| rotated).await
    }
}

fn is_due(staged: &VersionRow, now: Timestamp) -> bool {
    staged.activate_time.is_some_and(|planned| planned <= now)
}

impl Change<'_> {
    /// Makes the row of a staged version that becomes ACTIVE.
    pub(super) async fn activated(
        &self,
        staged: Sealed<VersionRow>,
        reason: &str,
    ) -> Result<Next, ServiceError> {
        let Sealed { row, generation, mac: _ } = &staged;
        let counter = self.inner.verified_counter(row.key_uid, row.version).await?;
        let now = self.inner.clock.now();
        let version = VersionRow {
            state: VersionState::Active,
            state_time: now,
            state_reason: reason.into(),
            state_actor: (&*self.request.principal.id).into(),
            activate_time: Some(now),
            revision: row.revision.next(),
            ..row.clone()
        };
        Ok(Next { version, generation: *generation, counter, from: Some(staged) })
    }
}

impl Inner {
    /// Loads the key of a version that is to become the primary, before anything is begun: what lay unused for years must not
    /// be the only key that protects, unless it is there and works.
    pub(super) async fn prove(
        &self,
        staged: Option<&Sealed<VersionRow>>,
    ) -> Result<(), ServiceError> {
        match staged {
            Some(staged) => Ok(self.keyring.prove_material(staged).await?),
            None => Ok(()),
        }
    }

    /// Activates the staged versions whose date has come, one after another, at most [`MAX_ROTATIONS`].
    pub(super) async fn activate_due(
        self: &Arc<Self>,
        done: &mut Reconciled,
    ) -> Result<(), ServiceError> {
        let cursor = &self.due.activations;
        let begun = cursor.after();
        let due = self.store.due_activations(self.clock.now(), begun, MAX_ROTATIONS).await?;
        cursor.read(&due, MAX_ROTATIONS, |due| place(&due.row, due.row.activate_time));
        for due in self.readable("activations", due, done) {
            let Some(name) = self.name_of_due(&due.row, done).await? else { continue };
            let request = self.internal_request(OPERATION)?;
            let reason = "activation date".to_owned();
            let activation = Activation { name: name.clone(), reason, request_id: None };
            let mut trail = activation.trail();
            let activated = self.mutate(&request, activation, &mut trail).await;
            match self.record_unless_begun(&request, trail, activated).await {
                Ok(_) => done.activated += 1,
                // Activated, discarded or disabled meanwhile.
                Err(
                    ServiceError::IllegalTransition { .. }
                    | ServiceError::RevisionMismatch
                    | ServiceError::KeyDisabled
                    | ServiceError::KeyDestroyScheduled
                    | ServiceError::KeyDestroyed,
                ) => {}
                Err(error) => {
                    let stopped = done.rollover_failed(name.key(), error);
                    stopped.inspect_err(|_| cursor.back_to(begun))?;
                }
            }
        }
        Ok(())
    }
}
