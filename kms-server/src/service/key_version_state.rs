//! SuspendKeyVersion and ResumeKeyVersion; and writing down deactivations that are due.

use std::sync::Arc;

use kms_core::canonical::CanonicalWriter;
use kms_core::id::RequestId;
use kms_core::key::VersionRow;
use kms_core::name::VersionName;
use kms_core::state::VersionState;

use super::change::{Change, Failure, RowChanges};
use super::describe_key::Fresh;
use super::fields;
use super::kms::{Inner, Kms};
use super::mutation::{Mutation, Subject, Turn};
use super::trail::Trail;
use super::{ChangeVersionState, RequestContext, ServiceError, VersionDescription};
use crate::authz::{self, Target};
use crate::store::{IntentKind, VersionChoice};

impl Kms {
    /// Suspends an ACTIVE version: it neither protects nor processes until resumed.
    ///
    /// # Errors
    /// `FIELD_VIOLATION`, `ACCESS_DENIED`, `KEY_NOT_FOUND`, `VERSION_NOT_FOUND`, `KEY_NOT_ACTIVE` from any other state,
    /// `REQUEST_ID_REUSED`, `OPERATION_IN_PROGRESS`, and what the layers below cannot do.
    pub async fn suspend_key_version(
        &self,
        request: &RequestContext,
        change: ChangeVersionState,
    ) -> Result<VersionDescription, ServiceError> {
        self.mutate(request, Transition::asked(Move::Suspend, change)).await
    }

    /// Resumes a SUSPENDED version.
    ///
    /// # Errors
    /// As for [`Kms::suspend_key_version`].
    pub async fn resume_key_version(
        &self,
        request: &RequestContext,
        change: ChangeVersionState,
    ) -> Result<VersionDescription, ServiceError> {
        self.mutate(request, Transition::asked(Move::Resume, change)).await
    }
}

/// From which state to which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    Suspend,
    Resume,
    /// Writes down that the overlap after a rollover is over.
    Deactivate,
}

impl Move {
    const fn next(self) -> VersionState {
        match self {
            Self::Suspend => VersionState::Suspended,
            Self::Resume => VersionState::Active,
            Self::Deactivate => VersionState::Deactivated,
        }
    }

    const fn kind(self) -> IntentKind {
        match self {
            Self::Suspend => IntentKind::SuspendKeyVersion,
            Self::Resume => IntentKind::ResumeKeyVersion,
            // The last step of a rollover, so its intent has that kind.
            Self::Deactivate => IntentKind::RotateKey,
        }
    }

    /// Returns whether a version may be moved that is written down in one state and is in another by now.
    fn is_possible(self, written: VersionState, state: VersionState) -> bool {
        match self {
            Self::Suspend => state == VersionState::Active && state.can_become(self.next()),
            Self::Resume => state == VersionState::Suspended && state.can_become(self.next()),
            Self::Deactivate => {
                written == VersionState::Active && state == VersionState::Deactivated
            }
        }
    }
}

/// What becomes of a version, and why.
struct Transition {
    step: Move,
    name: VersionName,
    reason: String,
    request_id: Option<RequestId>,
}

impl Transition {
    fn asked(step: Move, change: ChangeVersionState) -> Self {
        let ChangeVersionState { name, reason, request_id } = change;
        Self { step, name, reason, request_id: Some(request_id) }
    }
}

impl Mutation for Transition {
    type Output = VersionDescription;
    type Basis = Turn;

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
        match self.step {
            Move::Suspend => {
                inner.permit::<authz::SuspendKeyVersion>(request, target, trail).map(drop)
            }
            Move::Resume => {
                inner.permit::<authz::ResumeKeyVersion>(request, target, trail).map(drop)
            }
            Move::Deactivate => inner.permit::<authz::RotateKey>(request, target, trail).map(drop),
        }
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
        let turn = inner.turn(self.name.key(), VersionChoice::Number(number)).await?;
        let Fresh { key, version } = &turn.fresh;
        trail.key_uid = Some(key.row.uid);
        let state = version.row.state_at(inner.clock.now());
        if !self.step.is_possible(version.row.state, state) {
            return Err(ServiceError::KeyNotActive { state });
        }
        let subject = Subject {
            kind: self.step.kind(),
            key_name: key.row.name.clone(),
            key_uid: key.row.uid,
            version: number,
            makes: None,
            stale: vec![number],
        };
        Ok((subject, turn))
    }

    async fn apply(
        self,
        change: &mut Change<'_>,
        turn: Turn,
    ) -> Result<VersionDescription, Failure> {
        let Fresh { key, version: old } = &turn.fresh;
        let now = change.inner.clock.now();
        let row = VersionRow {
            state: self.step.next(),
            state_time: now,
            state_reason: self.reason,
            state_actor: (&*change.request.principal.id).into(),
            revision: old.row.revision.next(),
            ..old.row.clone()
        };
        let row = change.seal_under(old.generation, row).await?;
        // Before the change is made, and with its counter verified.
        let described =
            change.inner.describe_versions(&key.row, std::slice::from_ref(&row)).await?;
        let description = described
            .into_iter()
            .next()
            .ok_or(ServiceError::Bug { reason: "a version was not described" })?;
        let rows = RowChanges { added: &[row.mac], removed: &[old.mac] };
        let closing = change.closing(key.row.name.tenant(), rows, &description).await?;
        let committed = change.inner.store.update_version(old.row.revision, row, closing).await;
        change.settle(committed).await?;
        Ok(description)
    }
}

impl Inner {
    /// Writes down a deactivation that is due, as principal `internal`.
    pub(super) async fn deactivate(
        self: &Arc<Self>,
        request: &RequestContext,
        name: &VersionName,
        trail: &mut Trail,
    ) -> Result<(), ServiceError> {
        let (step, reason) = (Move::Deactivate, "overlap over".to_owned());
        let transition = Transition { step, name: name.clone(), reason, request_id: None };
        match self.mutate(request, transition, trail).await {
            // Done meanwhile, or not due any more.
            Ok(_) | Err(ServiceError::KeyNotActive { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
