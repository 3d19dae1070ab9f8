//! DisableKey and EnableKey: whether a key may be used at all. The states of its versions stay as they are.

use kms_core::canonical::CanonicalWriter;
use kms_core::id::RequestId;
use kms_core::key::{KeyRow, KeyState};
use kms_core::name::KeyName;

use super::change::{Change, Failure};
use super::fields;
use super::kms::{Inner, Kms};
use super::mutation::{Mutation, Subject, Turn};
use super::trail::Trail;
use super::{ChangeKeyState, KeyDescription, RequestContext, ServiceError};
use crate::authz::{self, Target};
use crate::store::{IntentKind, VersionChoice};

impl Kms {
    /// Disables a key: none of its versions protects, processes or is rotated until it is enabled.
    ///
    /// # Errors
    /// `FIELD_VIOLATION`, `ACCESS_DENIED`, `KEY_NOT_FOUND`, `KEY_DISABLED` when it is, `REQUEST_ID_REUSED`,
    /// `OPERATION_IN_PROGRESS`, and what the layers below cannot do.
    pub async fn disable_key(
        &self,
        request: &RequestContext,
        change: ChangeKeyState,
    ) -> Result<KeyDescription, ServiceError> {
        self.mutate(request, Switch::to(Wanted::Disabled, change)).await
    }

    /// Enables a disabled key.
    ///
    /// # Errors
    /// As for [`Kms::disable_key`], with `KEY_ENABLED` when it is.
    pub async fn enable_key(
        &self,
        request: &RequestContext,
        change: ChangeKeyState,
    ) -> Result<KeyDescription, ServiceError> {
        self.mutate(request, Switch::to(Wanted::Enabled, change)).await
    }
}

#[derive(Clone, Copy)]
enum Wanted {
    Disabled,
    Enabled,
}

impl Wanted {
    const fn state(self) -> KeyState {
        match self {
            Self::Disabled => KeyState::Disabled,
            Self::Enabled => KeyState::Enabled,
        }
    }
}

/// What becomes of a key, and why.
struct Switch {
    to: Wanted,
    name: KeyName,
    reason: String,
    request_id: RequestId,
}

impl Switch {
    fn to(to: Wanted, change: ChangeKeyState) -> Self {
        let ChangeKeyState { name, reason, request_id } = change;
        Self { to, name, reason, request_id }
    }
}

impl Mutation for Switch {
    type Output = KeyDescription;
    type Basis = Turn;

    fn trail(&self) -> Trail {
        Trail::key(&self.name)
    }

    fn request_id(&self) -> Option<RequestId> {
        Some(self.request_id)
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
        let target = Target::key(&self.name);
        match self.to {
            Wanted::Disabled => inner.permit::<authz::DisableKey>(request, target, trail).map(drop),
            Wanted::Enabled => inner.permit::<authz::EnableKey>(request, target, trail).map(drop),
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
        let turn = inner.turn(&self.name, VersionChoice::Primary).await?;
        let row = &turn.fresh.key.row;
        trail.key_uid = Some(row.uid);
        let kind = match (self.to, row.state) {
            (Wanted::Disabled, KeyState::Disabled) => return Err(ServiceError::KeyDisabled),
            (Wanted::Enabled, KeyState::Enabled) => return Err(ServiceError::KeyEnabled),
            (_, KeyState::DestroyScheduled) => return Err(ServiceError::KeyDestroyScheduled),
            (_, KeyState::Destroyed) => return Err(ServiceError::KeyDestroyed),
            (Wanted::Disabled, KeyState::Enabled) => IntentKind::DisableKey,
            (Wanted::Enabled, KeyState::Disabled) => IntentKind::EnableKey,
        };
        let subject = Subject::of_key(kind, row);
        Ok((subject, turn))
    }

    async fn apply(self, change: &mut Change<'_>, turn: Turn) -> Result<KeyDescription, Failure> {
        let old = &turn.fresh.key.row;
        let detail = serde_json::json!({ "state": [old.state.as_str(), self.to.state().as_str()] });
        let key = KeyRow { state: self.to.state(), ..old.clone() };
        change.replace_key(&turn.fresh, key, detail.to_string(), self.reason).await
    }
}
