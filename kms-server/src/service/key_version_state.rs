//! SuspendKeyVersion and ResumeKeyVersion; and writing down deactivations that are due.

use std::sync::Arc;

use kms_core::canonical::CanonicalWriter;
use kms_core::key::VersionRow;
use kms_core::name::VersionName;
use kms_core::state::VersionState;

use super::describe_key::{Fresh, describe_version};
use super::fields;
use super::kms::{Inner, Kms};
use super::mutation::{Claim, Claimed, Failure, OpenIntent, RowChanges, Subject, request_hash};
use super::trail::Trail;
use super::{ChangeVersionState, RequestContext, ServiceError, VersionDescription};
use crate::authz::{self, Action, ResumeKeyVersion, SuspendKeyVersion, Target};
use crate::store::{IntentKind, VersionChoice};

/// What becomes of a version, and why.
pub(super) struct Transition<'t> {
    pub(super) kind: IntentKind,
    pub(super) next: VersionState,
    pub(super) reason: &'t str,
}

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
        let transition = (IntentKind::SuspendKeyVersion, VersionState::Suspended);
        self.change_state::<SuspendKeyVersion>(request, change, transition).await
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
        let transition = (IntentKind::ResumeKeyVersion, VersionState::Active);
        self.change_state::<ResumeKeyVersion>(request, change, transition).await
    }

    async fn change_state<A: Action>(
        &self,
        request: &RequestContext,
        change: ChangeVersionState,
        (kind, next): (IntentKind, VersionState),
    ) -> Result<VersionDescription, ServiceError> {
        let (inner, request) = (Arc::clone(&self.inner), request.clone());
        let mut trail = Trail::key(change.name.key());
        trail.version = Some(change.name.version());
        let decided =
            inner.permit::<A>(&request, Target::key(change.name.key()), &mut trail).map(|_| ());
        super::kms::detached(async move {
            let result = match decided {
                Ok(()) => inner.change_state(&request, &change, (kind, next), &mut trail).await,
                Err(error) => Err(error),
            };
            inner.record_unless_begun(&request, trail, result).await
        })
        .await
    }
}

impl Inner {
    async fn change_state(
        self: &Arc<Self>,
        request: &RequestContext,
        change: &ChangeVersionState,
        (kind, next): (IntentKind, VersionState),
        trail: &mut Trail,
    ) -> Result<VersionDescription, ServiceError> {
        fields::check_reason(&change.reason, 1)?;
        let ChangeVersionState { name, reason, request_id } = change;
        let canonical = CanonicalWriter::new(b"fields").text(&name.to_string()).text(reason);
        let hash = request_hash(request.operation, canonical);
        let claim = match self.claim(request, *request_id, hash).await? {
            Claimed::Repeat(first) => return Ok(first),
            Claimed::Fresh(claim) => claim,
        };
        let _turn = self.lock_tenant(name.key().tenant()).await?;
        let fresh = self.fresh(name.key(), VersionChoice::Number(name.version())).await?;
        trail.key_uid = Some(fresh.key.row.uid);
        let state = fresh.version.row.state_at(self.clock.now());
        let from = match next {
            VersionState::Active => VersionState::Suspended,
            _ => VersionState::Active,
        };
        if state != from || !state.can_become(next) {
            return Err(ServiceError::KeyNotActive { state });
        }
        let transition = Transition { kind, next, reason };
        self.transition(request, fresh, transition, Some(&claim), trail).await
    }

    /// Moves a version to another state. The caller holds the tenant's lock and has checked that it may.
    pub(super) async fn transition(
        self: &Arc<Self>,
        request: &RequestContext,
        fresh: Fresh,
        transition: Transition<'_>,
        claim: Option<&Claim>,
        trail: &mut Trail,
    ) -> Result<VersionDescription, ServiceError> {
        let (name, version) = (fresh.key.row.name.clone(), fresh.version.row.version);
        let uid = fresh.key.row.uid;
        let subject = Subject {
            kind: transition.kind,
            key_name: name.clone(),
            key_uid: uid,
            version,
            // Nothing is made in the HSM, so there is nothing to undo there.
            protection: kms_core::key::Protection::HsmWrapped,
        };
        let open = self.begin(request, subject, trail).await?;
        let result = self.replace_version(request, fresh, transition, (&open, claim), trail).await;
        self.keyring.invalidate(&name, uid, &[version]);
        self.conclude(request, open, trail, result).await
    }

    async fn replace_version(
        &self,
        request: &RequestContext,
        fresh: Fresh,
        transition: Transition<'_>,
        (open, claim): (&OpenIntent, Option<&Claim>),
        trail: &mut Trail,
    ) -> Result<VersionDescription, Failure> {
        let Fresh { key, version: old } = fresh;
        let now = self.clock.now();
        let row = VersionRow {
            state: transition.next,
            state_time: now,
            state_reason: transition.reason.into(),
            state_actor: (&*request.principal.id).into(),
            revision: old.row.revision.next(),
            ..old.row.clone()
        };
        // Its material stays under the root that wrapped it.
        let row = self.keyring.seal(row, old.generation, request.deadline).await;
        let row = row.map_err(ServiceError::from)?;
        let counter = self.store.counter(old.row.key_uid, old.row.version).await;
        let leased = counter.map_err(ServiceError::from)?.map_or(0, |counter| counter.row.leased);
        let description = describe_version(&key.row, &row, leased, now);
        let rows = RowChanges { added: &[row.mac], removed: &[old.mac] };
        let tenant = key.row.name.tenant();
        let closing =
            self.closing(request, tenant, rows, (open, claim, &description), trail).await?;
        let committed = self.store.update_version(old.row.revision, row, closing).await;
        self.settle(open, committed).await?;
        Ok(description)
    }

    /// Writes down a deactivation that is due, as principal `internal`.
    pub(super) async fn deactivate(
        self: &Arc<Self>,
        request: &RequestContext,
        name: &VersionName,
        trail: &mut Trail,
    ) -> Result<(), ServiceError> {
        self.permit::<authz::RotateKey>(request, Target::key(name.key()), trail)?;
        let _turn = self.lock_tenant(name.key().tenant()).await?;
        let fresh = self.fresh(name.key(), VersionChoice::Number(name.version())).await?;
        let row = &fresh.version.row;
        if row.state != VersionState::Active
            || row.state_at(self.clock.now()) != VersionState::Deactivated
        {
            return Ok(());
        }
        // The last step of a rollover, so its intent has that kind.
        let transition = Transition {
            kind: IntentKind::RotateKey,
            next: VersionState::Deactivated,
            reason: "overlap over",
        };
        self.transition(request, fresh, transition, None, trail).await.map(|_| ())
    }
}
