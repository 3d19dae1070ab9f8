//! Moves of a version between states: suspend, resume, deactivate, schedule and cancel destruction; and what is due.
//!
//! Marking compromised makes a new primary when it must, and stands in `compromise_key_version`; the destruction itself in
//! `destroy_due`.

use std::sync::Arc;
use std::time::Duration;

use kms_core::canonical::CanonicalWriter;
use kms_core::clock::Timestamp;
use kms_core::id::RequestId;
use kms_core::key::{Sealed, VersionRow};
use kms_core::lifecycle::{Destruction, Transition};
use kms_core::name::VersionName;
use kms_core::state::VersionState;
use serde::Serialize;

use super::change::{Change, Failure, RowChanges, moved};
use super::describe_key::Fresh;
use super::fields;
use super::kms::{Inner, Kms};
use super::mutation::{Mutation, Subject, Turn};
use super::trail::Trail;
use super::{
    ChangeVersionState, QUIET_PERIOD, RequestContext, ScheduleDestruction, ServiceError,
    VersionDescription,
};
use crate::authz::{self, Target};
use crate::store::{IntentKind, VersionChoice};

impl Kms {
    /// Suspends an ACTIVE version: it neither protects nor processes until resumed.
    ///
    /// # Errors
    /// `FIELD_VIOLATION`, `ACCESS_DENIED`, `KEY_NOT_FOUND`, `VERSION_NOT_FOUND`, `ILLEGAL_TRANSITION` from any other state,
    /// `REQUEST_ID_REUSED`, `OPERATION_IN_PROGRESS`, and what the layers below cannot do.
    pub async fn suspend_key_version(
        &self,
        request: &RequestContext,
        change: ChangeVersionState,
    ) -> Result<VersionDescription, ServiceError> {
        self.mutate(request, Move::asked(Step::Suspend, change)).await
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
        self.mutate(request, Move::asked(Step::Resume, change)).await
    }

    /// Deactivates an ACTIVE or SUSPENDED version that is not the primary: it goes on processing.
    ///
    /// # Errors
    /// As for [`Kms::suspend_key_version`], and `PRIMARY_VERSION`.
    pub async fn deactivate_key_version(
        &self,
        request: &RequestContext,
        change: ChangeVersionState,
    ) -> Result<VersionDescription, ServiceError> {
        self.mutate(request, Move::asked(Step::Deactivate, change)).await
    }

    /// Plans the destruction of a DEACTIVATED or COMPROMISED version. It does nothing from now on; its material is
    /// destroyed when the window is over.
    ///
    /// # Errors
    /// As for [`Kms::suspend_key_version`], and `RECENTLY_USED` unless that is allowed by name.
    pub async fn schedule_key_version_destruction(
        &self,
        request: &RequestContext,
        schedule: ScheduleDestruction,
    ) -> Result<VersionDescription, ServiceError> {
        let ScheduleDestruction {
            name,
            window,
            allow_recent_use,
            allow_consumers,
            reason,
            request_id,
        } = schedule;
        let change = ChangeVersionState { name, reason, request_id };
        let step = Step::ScheduleDestruction { window, allow_recent_use, allow_consumers };
        self.mutate(request, Move::asked(step, change)).await
    }

    /// Gives a planned destruction up: the version returns to the state it came from.
    ///
    /// # Errors
    /// As for [`Kms::suspend_key_version`], and `DESTRUCTION_BEGUN` once the key of an `HSM_RESIDENT` version may be gone.
    pub async fn cancel_key_version_destruction(
        &self,
        request: &RequestContext,
        change: ChangeVersionState,
    ) -> Result<VersionDescription, ServiceError> {
        self.mutate(request, Move::asked(Step::CancelDestruction, change)).await
    }
}

/// What is done to a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Suspend,
    Resume,
    Deactivate,
    /// Writes down that the overlap after a rollover is over.
    EndOverlap,
    ScheduleDestruction {
        window: Duration,
        /// Whether it may have been used within [`QUIET_PERIOD`]; takes a permission of its own.
        allow_recent_use: bool,
        /// Whether the key may have consumers; takes a permission of its own.
        allow_consumers: bool,
    },
    CancelDestruction,
}

impl Step {
    const fn kind(self) -> IntentKind {
        match self {
            Self::Suspend => IntentKind::SuspendKeyVersion,
            Self::Resume => IntentKind::ResumeKeyVersion,
            Self::Deactivate => IntentKind::DeactivateKeyVersion,
            // The last step of a rollover, so its intent has that kind.
            Self::EndOverlap => IntentKind::RotateKey,
            Self::ScheduleDestruction { .. } => IntentKind::ScheduleKeyVersionDestruction,
            Self::CancelDestruction => IntentKind::CancelKeyVersionDestruction,
        }
    }

    /// Names the gates that are passed by; for the record.
    const fn overrides(self) -> &'static str {
        match self {
            Self::ScheduleDestruction { allow_recent_use, allow_consumers, window: _ } => {
                match (allow_recent_use, allow_consumers) {
                    (false, false) => "",
                    (true, false) => " [allows recent use]",
                    (false, true) => " [allows consumers]",
                    (true, true) => " [allows recent use and consumers]",
                }
            }
            Self::Suspend
            | Self::Resume
            | Self::Deactivate
            | Self::EndOverlap
            | Self::CancelDestruction => "",
        }
    }

    /// Returns where it leads from a row that is in force in a state, or why it leads nowhere.
    fn leads(self, row: &VersionRow, state: VersionState) -> Result<VersionState, ServiceError> {
        let transition = match self {
            Self::Suspend => Transition::Suspend,
            Self::Resume => Transition::Resume,
            Self::Deactivate => Transition::Deactivate,
            Self::ScheduleDestruction { .. } => Transition::ScheduleDestruction,
            Self::CancelDestruction => Transition::CancelDestruction,
            Self::EndOverlap => {
                let due = row.state == VersionState::Active && state == VersionState::Deactivated;
                let illegal = ServiceError::IllegalTransition { from: state, to: state };
                return due.then_some(VersionState::Deactivated).ok_or(illegal);
            }
        };
        let illegal = ServiceError::IllegalTransition { from: state, to: transition.aims_at() };
        transition.leads(state, row.destruction).ok_or(illegal)
    }
}

/// What becomes of a version, and why.
struct Move {
    step: Step,
    name: VersionName,
    reason: String,
    /// The reason as the audit record has it, with the overrides that were asked for.
    told: String,
    request_id: Option<RequestId>,
}

impl Move {
    fn asked(step: Step, change: ChangeVersionState) -> Self {
        let ChangeVersionState { name, reason, request_id } = change;
        let told = format!("{reason}{}", step.overrides());
        Self { step, name, reason, told, request_id: Some(request_id) }
    }
}

impl Mutation for Move {
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
        Some(&self.told)
    }

    fn permit(
        &self,
        inner: &Inner,
        request: &RequestContext,
        trail: &mut Trail,
    ) -> Result<(), ServiceError> {
        let target = Target::key(self.name.key());
        match self.step {
            Step::Suspend => {
                inner.permit::<authz::SuspendKeyVersion>(request, target, trail).map(drop)
            }
            Step::Resume => {
                inner.permit::<authz::ResumeKeyVersion>(request, target, trail).map(drop)
            }
            Step::Deactivate => {
                inner.permit::<authz::DeactivateKeyVersion>(request, target, trail).map(drop)
            }
            Step::EndOverlap => inner.permit::<authz::RotateKey>(request, target, trail).map(drop),
            Step::ScheduleDestruction { window: _, allow_recent_use, allow_consumers } => {
                inner.permit::<authz::ScheduleKeyVersionDestruction>(request, target, trail)?;
                if allow_recent_use {
                    inner.permit::<authz::DestroyRecentlyUsed>(request, target, trail)?;
                }
                if allow_consumers {
                    inner.permit::<authz::DestroyWithConsumers>(request, target, trail)?;
                }
                Ok(())
            }
            Step::CancelDestruction => {
                inner.permit::<authz::CancelKeyVersionDestruction>(request, target, trail).map(drop)
            }
        }
    }

    fn fields(&self) -> Result<CanonicalWriter, ServiceError> {
        fields::check_reason(&self.reason, 1)?;
        let out = CanonicalWriter::new(b"fields").text(&self.name.to_string()).text(&self.reason);
        match self.step {
            Step::ScheduleDestruction { window, allow_recent_use, allow_consumers } => {
                fields::check_destruction_window(window)?;
                let out = out.number(window.as_secs()).number(allow_recent_use.into());
                Ok(out.number(allow_consumers.into()))
            }
            Step::Suspend
            | Step::Resume
            | Step::Deactivate
            | Step::EndOverlap
            | Step::CancelDestruction => Ok(out),
        }
    }

    async fn basis(
        &self,
        inner: &Inner,
        trail: &mut Trail,
    ) -> Result<(Subject, Turn), ServiceError> {
        let number = self.name.version();
        let choice = VersionChoice::Number(number);
        let turn = match self.step {
            // It is in force already; this writes it down.
            Step::EndOverlap => inner.turn_whatever(self.name.key(), choice).await?,
            Step::Suspend
            | Step::Resume
            | Step::Deactivate
            | Step::ScheduleDestruction { .. }
            | Step::CancelDestruction => inner.turn(self.name.key(), choice).await?,
        };
        let Fresh { key, version } = &turn.fresh;
        trail.key_uid = Some(key.row.uid);
        self.step.leads(&version.row, version.row.state_at(inner.clock.now()))?;
        if self.step == Step::CancelDestruction {
            inner.check_is_there(&turn.fresh).await?;
        }
        if self.step == Step::Deactivate && number == key.row.primary {
            return Err(ServiceError::PrimaryVersion);
        }
        if let Step::ScheduleDestruction { allow_recent_use: false, .. } = self.step {
            inner.check_unused(&version.row).await?;
        }
        if let Step::ScheduleDestruction { allow_consumers: false, .. } = self.step
            && key.row.consumers > 0
        {
            return Err(ServiceError::ConsumersRegistered { count: key.row.consumers });
        }
        let subject = Subject::of_version(self.step.kind(), &key.row, number);
        Ok((subject, turn))
    }

    async fn apply(
        self,
        change: &mut Change<'_>,
        turn: Turn,
    ) -> Result<VersionDescription, Failure> {
        let old = &turn.fresh.version;
        let now = change.inner.clock.now();
        let state = old.row.state_at(now);
        let next = self.step.leads(&old.row, state)?;
        let destruction = match self.step {
            Step::ScheduleDestruction { window, allow_consumers, allow_recent_use } => {
                Some(Destruction {
                    time: now.after(window),
                    returns_to: state,
                    // Who knew of none did not decide about those who come later.
                    despite_consumers: allow_consumers && turn.fresh.key.row.consumers > 0,
                    despite_recent_use: allow_recent_use
                        && change.inner.wanted_of_late(&old.row).await?.is_some(),
                })
            }
            Step::Suspend
            | Step::Resume
            | Step::Deactivate
            | Step::EndOverlap
            | Step::CancelDestruction => None,
        };
        let row = VersionRow {
            state: next,
            state_time: now,
            state_reason: self.reason,
            state_actor: (&*change.request.principal.id).into(),
            destruction,
            revision: old.row.revision.next(),
            ..old.row.clone()
        };
        // What the overlap ends is known since the rollover: in force, the version was deactivated before.
        let from = if self.step == Step::EndOverlap { old.row.state } else { state };
        change.replace_version(&turn.fresh, from, row).await
    }
}

impl Change<'_> {
    /// Puts a version row in the place of the old one.
    async fn replace_version(
        &mut self,
        fresh: &Fresh,
        from: VersionState,
        row: VersionRow,
    ) -> Result<VersionDescription, Failure> {
        self.replace_version_as(fresh, from, row, |description| description).await
    }

    /// The same; the result that is remembered is made of the version's description.
    pub(super) async fn replace_version_as<T: Serialize>(
        &mut self,
        fresh: &Fresh,
        from: VersionState,
        row: VersionRow,
        result: impl FnOnce(VersionDescription) -> T,
    ) -> Result<T, Failure> {
        let Fresh { key, version: old } = fresh;
        let row = self.seal_under(old.generation, row).await?;
        // Before the change is made, and with its counter verified.
        let result = result(self.described(fresh, &row).await?);
        let rows = RowChanges {
            added: &[row.mac],
            removed: &[old.mac],
            history: vec![moved(Some((from, old.row.revision)), &row.row)],
        };
        let closing = self.closing(key.row.name.tenant(), rows, &result).await?;
        let committed = self.inner.store.update_version(old.row.revision, row, closing).await;
        self.settle(committed).await?;
        Ok(result)
    }

    /// Describes a version as it becomes.
    pub(super) async fn described(
        &self,
        fresh: &Fresh,
        row: &Sealed<VersionRow>,
    ) -> Result<VersionDescription, ServiceError> {
        let rows = std::slice::from_ref(row);
        let described = self.inner.describe_versions(&fresh.key.row, rows).await?;
        described
            .into_iter()
            .next()
            .ok_or(ServiceError::Bug { reason: "a version was not described" })
    }
}

impl Inner {
    /// Refuses a version that was used within [`QUIET_PERIOD`]: those who used it would lose what it protects.
    async fn check_unused(&self, version: &VersionRow) -> Result<(), ServiceError> {
        match self.wanted_of_late(version).await? {
            Some(last) => Err(ServiceError::RecentlyUsed { last }),
            None => Ok(()),
        }
    }

    /// Returns when somebody used, or wanted, a version last, if that was within [`QUIET_PERIOD`].
    async fn wanted_of_late(
        &self,
        version: &VersionRow,
    ) -> Result<Option<Timestamp>, ServiceError> {
        let last = self.last_wanted(version).await?;
        Ok(last.filter(|last| last.after(QUIET_PERIOD) > self.clock.now()))
    }

    /// Writes down a deactivation that is due, as principal `internal`.
    pub(super) async fn deactivate(
        self: &Arc<Self>,
        request: &RequestContext,
        name: &VersionName,
        trail: &mut Trail,
    ) -> Result<(), ServiceError> {
        let (step, reason) = (Step::EndOverlap, "overlap over".to_owned());
        let told = reason.clone();
        let end = Move { step, name: name.clone(), reason, told, request_id: None };
        match self.mutate(request, end, trail).await {
            // Done meanwhile, or not due any more.
            Ok(_) | Err(ServiceError::IllegalTransition { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
