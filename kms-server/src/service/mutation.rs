//! The protocol of every mutation (design section 3 and 7):
//!
//! intent row -> intent record durable -> effect in the HSM -> rows, manifest and request id in one transaction, which
//! marks the intent applied -> outcome record durable -> intent closed -> answer.
//!
//! After a crash the reconciler reads from the intent what happened: not applied, nothing was committed; applied, only
//! the outcome is missing, and the intent holds the manifest that it must tell.

use std::sync::{Arc, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};
use kms_core::audit::Phase;
use kms_core::canonical::CanonicalWriter;
use kms_core::domain;
use kms_core::id::{IntentId, KeyUid, KeyVersion, RequestId};
use kms_core::key::{CkaId, Protection, RowMac, Sealed};
use kms_core::name::{KeyName, TenantName};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::kms::Inner;
use super::trail::{OK, PENDING, Trail};
use super::{RequestContext, ServiceError};
use crate::store::{Closing, Intent, IntentKind, ManifestChange, RequestRecord, StoreError};

/// The identity of a request, for idempotency (AIP-155).
pub(super) struct Claim {
    inner: Arc<Inner>,
    key: (Arc<str>, RequestId),
    method: &'static str,
    hash: [u8; 32],
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.inner.requests.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

impl Claim {
    /// Makes the record that remembers the result.
    fn remember(&self, result: &impl Serialize) -> Result<RequestRecord, ServiceError> {
        let result = serde_json::to_vec(result)
            .map_err(|_| ServiceError::Bug { reason: "a result does not serialize" })?;
        Ok(RequestRecord {
            principal: (&*self.key.0).into(),
            request_id: self.key.1,
            method: self.method.into(),
            request_hash: self.hash,
            result,
            time: self.inner.clock.now(),
        })
    }
}

/// Whether a request is new.
pub(super) enum Claimed<T> {
    /// It is; nobody else works on it as long as the claim lives.
    Fresh(Claim),
    /// It was done before, with this result.
    Repeat(T),
}

/// An open intent of this process. The reconciler leaves it alone as long as this lives.
pub(super) struct OpenIntent {
    inner: Arc<Inner>,
    pub(super) intent: Intent,
}

impl Drop for OpenIntent {
    fn drop(&mut self) {
        let mut intents = self.inner.intents.lock().unwrap_or_else(PoisonError::into_inner);
        intents.remove(&self.intent.id);
    }
}

/// What a mutation is about.
pub(super) struct Subject {
    pub(super) kind: IntentKind,
    pub(super) key_name: KeyName,
    pub(super) key_uid: KeyUid,
    pub(super) version: KeyVersion,
    pub(super) protection: Protection,
}

/// Returns the hash of a request whose fields are written canonically.
pub(super) fn request_hash(method: &str, fields: CanonicalWriter) -> [u8; 32] {
    let canonical = CanonicalWriter::new(domain::REQUEST_HASH).text(method).bytes(&fields.finish());
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, &canonical.finish()).as_ref());
    hash
}

impl Inner {
    /// Claims a request id, or returns the first result.
    pub(super) async fn claim<T: DeserializeOwned>(
        self: &Arc<Self>,
        request: &RequestContext,
        request_id: RequestId,
        hash: [u8; 32],
    ) -> Result<Claimed<T>, ServiceError> {
        let key = (Arc::clone(&request.principal.id), request_id);
        {
            let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
            if !requests.insert(key.clone()) {
                return Err(ServiceError::OperationInProgress);
            }
        }
        let claim = Claim { inner: Arc::clone(self), key, method: request.operation, hash };
        match self.first_result(&claim).await? {
            Some(result) => Ok(Claimed::Repeat(result)),
            None => Ok(Claimed::Fresh(claim)),
        }
    }

    async fn first_result<T: DeserializeOwned>(
        &self,
        claim: &Claim,
    ) -> Result<Option<T>, ServiceError> {
        let (principal, request_id) = (String::from(&*claim.key.0), claim.key.1);
        let Some(sealed) = self.store.request(principal, request_id).await? else {
            return Ok(None);
        };
        let what = format!("remembered result of request {request_id}");
        self.keyring.verify_row(&sealed, what).await?;
        let first = sealed.row;
        if (first.principal.as_str(), first.request_id) != (&*claim.key.0, request_id) {
            let detail = format!("request {request_id} reads as another");
            return Err(self.keyring.integrity(detail).into());
        }
        let forgotten = first.time.after(crate::store::REQUEST_MEMORY) <= self.clock.now();
        if forgotten {
            return Ok(None);
        }
        if first.method != claim.method || first.request_hash != claim.hash {
            return Err(ServiceError::RequestIdReused);
        }
        let result = serde_json::from_slice(&first.result).map_err(|_| {
            let detail = format!("the remembered result of request {request_id} is damaged");
            ServiceError::from(self.keyring.integrity(detail))
        })?;
        Ok(Some(result))
    }

    /// Opens an intent, and makes the intent record durable.
    pub(super) async fn begin(
        self: &Arc<Self>,
        request: &RequestContext,
        subject: Subject,
        trail: &mut Trail,
    ) -> Result<OpenIntent, ServiceError> {
        let bytes = self.draw()?;
        let id = IntentId::from_bytes(bytes);
        let Subject { kind, key_name, key_uid, version, protection } = subject;
        trail.key_uid = Some(key_uid);
        trail.version = Some(version);
        let intent = Intent {
            id,
            kind,
            principal: (&*request.principal.id).into(),
            key_name,
            key_uid,
            version,
            protection,
            // Random, recorded before the object is made, and as unique as the intent.
            resident_id: CkaId(bytes),
            time: self.clock.now(),
            applied: None,
        };
        // Invariant: known as active before the row can be seen, until nothing more is done to it.
        self.intents.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        let open = OpenIntent { inner: Arc::clone(self), intent };
        let generation = self.keyring.config().generation;
        let sealed = self.keyring.seal(open.intent.clone(), generation, request.deadline).await?;
        self.store.open_intent(sealed).await?;
        trail.intent = Some(id);
        if let Err(error) = self.record_phase(request, trail, Phase::Intent, PENDING).await {
            self.close_intent(id).await;
            trail.intent = None;
            return Err(error);
        }
        Ok(open)
    }

    /// Returns whether a mutation of this process still works on an intent.
    pub(super) fn is_active(&self, id: IntentId) -> bool {
        self.intents.lock().unwrap_or_else(PoisonError::into_inner).contains(&id)
    }

    /// Closes an intent of which nothing is left to do. When the store fails, the reconciler does it.
    async fn close_intent(&self, id: IntentId) {
        if let Err(error) = self.store.close_intent(id).await {
            tracing::warn!(%error, intent = %id, "left to the reconciler");
        }
    }

    /// Makes what ends with a mutation: the tenant's manifest with rows added and removed, and the result to remember.
    ///
    /// The caller holds the tenant's lock.
    pub(super) async fn closing<T: Serialize>(
        &self,
        request: &RequestContext,
        tenant: &TenantName,
        rows: RowChanges<'_>,
        ending: (&OpenIntent, Option<&Claim>, &T),
        trail: &mut Trail,
    ) -> Result<Closing, ServiceError> {
        let (open, claim, result) = ending;
        let mut manifest = self.keyring.manifest(tenant).await?;
        let expected = manifest.revision;
        manifest.revision = expected.next();
        rows.removed.iter().for_each(|mac| manifest.rows.remove(mac));
        rows.added.iter().for_each(|mac| manifest.rows.insert(mac));
        trail.manifest = Some(manifest.stamp());
        let applied = Some(manifest.stamp());
        let intent = Intent { applied, ..open.intent.clone() };
        let remembered = claim.map(|claim| claim.remember(result)).transpose()?;
        let generation = self.keyring.config().generation;
        let mut inputs = vec![manifest.mac_input(generation), intent.mac_input(generation)];
        inputs.extend(remembered.as_ref().map(|request| request.mac_input(generation)));
        let macs = self.keyring.macs(inputs, generation, request.deadline).await?;
        let [manifest_mac, intent_mac, request_mac @ ..] = macs.as_slice() else {
            return Err(ServiceError::Bug { reason: "a MAC is missing" });
        };
        let manifest = Sealed { row: manifest, mac: *manifest_mac, generation };
        let seal = |(row, mac): (RequestRecord, &RowMac)| Sealed { row, mac: *mac, generation };
        Ok(Closing {
            intent: Sealed { row: intent, mac: *intent_mac, generation },
            manifest: ManifestChange { expected, manifest },
            request: remembered.zip(request_mac.first()).map(seal),
        })
    }

    /// Finds out what became of a transaction: an error may hide that it was committed.
    pub(super) async fn settle(
        &self,
        open: &OpenIntent,
        committed: Result<(), StoreError>,
    ) -> Result<(), Unsettled> {
        let error = match committed {
            Ok(()) => return Ok(()),
            Err(error @ (StoreError::Unavailable { .. } | StoreError::Unwritable { .. })) => error,
            Err(error) => return Err(Unsettled::NotCommitted(error)),
        };
        let Ok(intents) = self.store.intents().await else {
            return Err(Unsettled::Unknown(error));
        };
        let Some(found) = intents.rows.iter().find(|intent| intent.row.id == open.intent.id) else {
            // Only another process could have closed it, and it alone knows why.
            return Err(Unsettled::Unknown(error));
        };
        let what = format!("intent {}", open.intent.id);
        if self.keyring.verify_row(found, what).await.is_err() {
            return Err(Unsettled::Unknown(error));
        }
        match found.row.applied {
            Some(_) => Ok(()),
            None => Err(Unsettled::NotCommitted(error)),
        }
    }

    /// Ends a mutation: outcome record durable, intent closed, then the answer.
    pub(super) async fn conclude<T>(
        &self,
        request: &RequestContext,
        open: OpenIntent,
        trail: &mut Trail,
        result: Result<T, Failure>,
    ) -> Result<T, ServiceError> {
        let id = open.intent.id;
        match result {
            Ok(value) => {
                // Without the outcome the intent stays, applied, and the reconciler writes it later.
                self.record_phase(request, trail, Phase::Outcome, OK).await?;
                self.close_intent(id).await;
                Ok(value)
            }
            Err(Failure::Unknown(error)) => Err(error),
            Err(Failure::Undo(error)) => {
                trail.manifest = None;
                if open.intent.protection == Protection::HsmResident {
                    let destroyed =
                        self.hsm.destroy_resident(open.intent.resident_id, request.deadline).await;
                    if let Err(cause) = destroyed {
                        tracing::warn!(%cause, intent = %id, "left to the reconciler");
                        return Err(error);
                    }
                }
                self.record_phase(request, trail, Phase::Outcome, error.reason()).await?;
                self.close_intent(id).await;
                Err(error)
            }
        }
    }
}

/// Row MACs that a mutation adds to and removes from the manifest.
pub(super) struct RowChanges<'m> {
    pub(super) added: &'m [RowMac],
    pub(super) removed: &'m [RowMac],
}

/// A transaction that was not acknowledged.
pub(super) enum Unsettled {
    /// Nothing was changed.
    NotCommitted(StoreError),
    /// The store cannot say; the reconciler will find out.
    Unknown(StoreError),
}

/// A mutation that failed after its intent.
pub(super) enum Failure {
    /// Nothing was committed: undo what was done.
    Undo(ServiceError),
    /// Perhaps committed: leave everything to the reconciler.
    Unknown(ServiceError),
}

impl From<ServiceError> for Failure {
    fn from(error: ServiceError) -> Self {
        match error {
            // The job may still be running: its object must not appear after we looked.
            ServiceError::HsmDeadline => Self::Unknown(error),
            other => Self::Undo(other),
        }
    }
}

impl From<Unsettled> for Failure {
    fn from(unsettled: Unsettled) -> Self {
        match unsettled {
            Unsettled::NotCommitted(error) => Self::Undo(error.into()),
            Unsettled::Unknown(error) => Self::Unknown(error.into()),
        }
    }
}
