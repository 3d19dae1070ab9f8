//! Request ids (AIP-155): a repeat of a mutation gets the first result, a second one beside it is turned away.

use std::sync::{Arc, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};
use kms_core::canonical::CanonicalWriter;
use kms_core::domain;
use kms_core::id::RequestId;
use kms_core::name::TenantName;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::kms::Inner;
use super::{RequestContext, ServiceError};
use crate::store::RequestRecord;

/// The identity of a request that is being worked on; nobody else works on it as long as this lives.
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
    pub(super) fn remember(
        &self,
        tenant: &TenantName,
        result: &impl Serialize,
    ) -> Result<RequestRecord, ServiceError> {
        let result = serde_json::to_vec(result)
            .map_err(|_| ServiceError::Bug { reason: "a result does not serialize" })?;
        Ok(RequestRecord {
            tenant: tenant.clone(),
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
    /// It is.
    Fresh(Claim),
    /// It was done before, with this result.
    Repeat(T),
}

/// Returns the hash of a request whose fields are written canonically.
fn request_hash(method: &str, fields: CanonicalWriter) -> [u8; 32] {
    let canonical = CanonicalWriter::new(domain::REQUEST_HASH).text(method).bytes(&fields.finish());
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, &canonical.finish()).as_ref());
    hash
}

impl Inner {
    /// Claims a request id for a request with these fields, or returns the first result.
    pub(super) async fn claim<T: DeserializeOwned>(
        self: &Arc<Self>,
        request: &RequestContext,
        request_id: RequestId,
        fields: CanonicalWriter,
    ) -> Result<Claimed<T>, ServiceError> {
        let key = (Arc::clone(&request.principal.id), request_id);
        {
            let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
            if !requests.insert(key.clone()) {
                return Err(ServiceError::OperationInProgress);
            }
        }
        let method = request.operation;
        let hash = request_hash(method, fields);
        let claim = Claim { inner: Arc::clone(self), key, method, hash };
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
        let sealed = self.store.request(principal, request_id).await;
        let Some(sealed) = self.keyring.stored(sealed)? else {
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
}
