//! Token objects that may be gone: what can be said of a destruction that was cut off.
//!
//! The object of an `HSM_RESIDENT` version goes before its row says so. In between, a crash, a lost answer or a call that still runs
//! leaves a row that is scheduled, and could be given back, of a key that is no more. Nobody may hear that it is back, and the
//! state journal must not hear that it was never destroyed.

use kms_core::key::{CkaId, Material};

use super::ServiceError;
use super::change::Failure;
use super::describe_key::Fresh;
use super::kms::{INTERNAL_DEADLINE, Inner};
use crate::store::{Intent, IntentKind, KeyRef, VersionChoice};

impl Inner {
    /// Returns whether the token has the object of a resident version.
    async fn is_on_token(&self, id: CkaId) -> Result<bool, ServiceError> {
        // Time of its own: what went wrong may be that the other was over.
        let deadline = self.clock.monotonic() + INTERNAL_DEADLINE;
        let listed = self.hsm.list_token_keys(deadline).await;
        let listed = listed.map_err(|error| self.device(error))?;
        Ok(listed.residents.contains(&id))
    }

    /// Says what is known of a destruction in the token that failed: only what is still there can be called undone.
    pub(super) async fn not_destroyed(&self, id: CkaId, error: ServiceError) -> Failure {
        // The call may still be running.
        let runs = error == ServiceError::HsmDeadline;
        if !runs && self.is_on_token(id).await.unwrap_or(false) {
            return Failure::Undo(error);
        }
        in_doubt(error)
    }

    /// Returns whether what an intent was to destroy is gone, although its mutation was not committed.
    pub(super) async fn is_gone(&self, intent: &Intent) -> Result<bool, ServiceError> {
        let destroys =
            matches!(intent.kind, IntentKind::DestroyKeyVersion | IntentKind::DiscardKeyVersion);
        if !destroys {
            return Ok(false);
        }
        let choice = VersionChoice::Number(intent.version);
        let stored = self.store.key(KeyRef::Uid(intent.key_uid), choice).await;
        let stored = self.keyring.stored(stored)?;
        let Some(version) = stored.and_then(|stored| stored.version) else { return Ok(false) };
        self.keyring.verify_rows(&[], std::slice::from_ref(&version), &[]).await?;
        match version.row.material {
            Material::Resident(id) => Ok(!self.is_on_token(id).await?),
            // Its blob goes with the row.
            Material::Wrapped(_) => Ok(false),
        }
    }

    /// Refuses to give up the destruction of a version that may be destroyed already, and proves that its key is there.
    pub(super) async fn check_is_there(&self, fresh: &Fresh) -> Result<(), ServiceError> {
        let row = &fresh.version.row;
        let Material::Resident(id) = row.material else { return Ok(()) };
        let intents = self.keyring.stored(self.store.intents().await)?;
        if intents.damaged > 0 {
            let detail = format!("{} intents cannot be read", intents.damaged);
            return Err(self.keyring.integrity(detail).into());
        }
        let destroys = |intent: &Intent| {
            intent.kind == IntentKind::DestroyKeyVersion
                && (intent.key_uid, intent.version) == (row.key_uid, row.version)
        };
        let is_open = intents.rows.iter().any(|intent| destroys(&intent.row));
        if is_open || !self.is_on_token(id).await? {
            return Err(ServiceError::DestructionBegun);
        }
        Ok(self.keyring.prove_material(&fresh.version).await?)
    }
}

/// Leaves it to the reconciler, which finds out.
fn in_doubt(error: ServiceError) -> Failure {
    match error {
        ServiceError::HsmDeadline | ServiceError::OutcomeUnknown { .. } => Failure::Unknown(error),
        other => Failure::Unknown(ServiceError::OutcomeUnknown { detail: other.to_string() }),
    }
}

impl Failure {
    /// Leaves what comes after a destruction in the token to the reconciler: it cannot be undone.
    pub(super) fn after_destruction(self) -> Self {
        match self {
            Self::Undo(error) | Self::Unknown(error) => in_doubt(error),
        }
    }
}
