//! Ending an abandoned intent: its outcome is written, or what it left in the HSM is undone.
//!
//! The only place that destroys an HSM object nobody asked to destroy. A key that lives in the token alone has no other
//! copy, so it must never be destroyed on the word of the database: the intent has a MAC, the audit log says that it was
//! begun and has not ended, and the tenant's rows are those of its manifest and do not name the object. What fails one of
//! these stays in the token and is reported as an orphan.

use kms_core::audit::{ManifestStamp, Phase};
use kms_core::key::{Protection, Sealed};

use super::kms::Inner;
use super::trail::{OK, Trail};
use super::{ABANDONED, RequestContext, ServiceError};
use crate::audit::Past;
use crate::store::Intent;

/// How an intent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Its mutation had been committed.
    Finished,
    /// It had not, and nothing of it is left.
    Undone,
    /// It had not, and its object, if there is one, stays in the token.
    ObjectLeft,
}

impl Inner {
    /// Ends an intent that nobody works on. On error it stays open.
    pub(super) async fn end(
        &self,
        sealed: &Sealed<Intent>,
        past: &Past,
    ) -> Result<Ended, ServiceError> {
        let intent = &sealed.row;
        self.keyring.verify_row(sealed, format!("intent {}", intent.id)).await?;
        match &intent.applied {
            Some(stamp) => self.finish(intent, stamp, past).await.map(|()| Ended::Finished),
            None => self.undo(intent, past).await,
        }
    }

    /// Writes the outcome of a mutation that was committed.
    async fn finish(
        &self,
        intent: &Intent,
        stamp: &ManifestStamp,
        past: &Past,
    ) -> Result<(), ServiceError> {
        let (request, mut trail) = self.trail_of(intent)?;
        let manifest = self.keyring.manifest(intent.key_name.tenant()).await?.stamp();
        let earlier = stamp.revision < manifest.revision;
        if !earlier && *stamp != manifest {
            let detail = format!("intent {} names a manifest that is not there", intent.id);
            return Err(self.keyring.integrity(detail).into());
        }
        // A log that began anew knows of no later mutation, and had this one's manifest for the last: the next start would
        // find the database ahead of it (`a_late_outcome_in_a_new_log_is_no_reason_to_refuse`).
        let known = past.stamps().contains_key(intent.key_name.tenant().id());
        trail.manifest = Some(if known { stamp.clone() } else { manifest });
        self.record_phase(&request, &trail, Phase::Outcome, OK).await?;
        Ok(self.store.close_intent(intent.id).await?)
    }

    /// Undoes a mutation that was not committed: its object goes, the outcome says so, the intent is closed.
    async fn undo(&self, intent: &Intent, past: &Past) -> Result<Ended, ServiceError> {
        // Without its own record nothing was made; with an outcome it ended in another life of the database.
        let awaited = past.awaits_outcome(intent.id);
        let resident = intent.protection == Protection::HsmResident;
        let destroys = resident && awaited && self.is_unnamed(intent).await?;
        let (request, trail) = self.trail_of(intent)?;
        if destroys {
            let destroyed = self.destroy_object(intent, request.deadline).await;
            destroyed.map_err(|error| self.device(error))?;
        }
        if intent.kind.is_journaled() && !self.is_gone(intent).await? {
            self.abandon(intent).await?;
        }
        if awaited {
            self.record_phase(&request, &trail, Phase::Outcome, ABANDONED).await?;
        }
        self.store.close_intent(intent.id).await?;
        Ok(if resident && !destroys { Ended::ObjectLeft } else { Ended::Undone })
    }

    /// Returns whether all rows of the tenant are what its manifest says, and none names the object. `false` when the
    /// rows were tampered with: then they prove nothing.
    async fn is_unnamed(&self, intent: &Intent) -> Result<bool, ServiceError> {
        let walked = match self.walk_verified(intent.key_name.tenant()).await {
            Err(ServiceError::KeyIntegrity { .. }) => return Ok(false),
            walked => walked?,
        };
        if walked.residents.contains(&intent.resident_id) {
            let detail = format!("intent {} is open, and names a key in use", intent.id);
            return Err(self.keyring.integrity(detail).into());
        }
        Ok(true)
    }

    fn trail_of(&self, intent: &Intent) -> Result<(RequestContext, Trail), ServiceError> {
        let mut trail = Trail::key(&intent.key_name);
        trail.intent = Some(intent.id);
        trail.key_uid = Some(intent.key_uid);
        trail.version = intent.kind.is_of_version().then_some(intent.version);
        Ok((self.internal_request(super::reconcile::OPERATION)?, trail))
    }
}
