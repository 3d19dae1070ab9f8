//! Unwrap: the inverse of wrap, with the version that the envelope names.

use std::sync::Arc;

use kms_hsm::{CryptoOp, CryptoOutput, Finished};

use super::kms::{Inner, Kms, decode};
use super::trail::Trail;
use super::{BatchItems, BatchResults, RequestContext, ServiceError, Unwrap, Unwrapped};
use crate::authz::{self, Target, authorize};

impl Kms {
    /// Unwraps one envelope. A COMPROMISED version needs `unwrap_compromised` too.
    ///
    /// # Errors
    /// `CIPHERTEXT_INVALID` alike for a wrong tag, context or key, another key's envelope and a damaged one;
    /// `ENVELOPE_UNSUPPORTED`, `ACCESS_DENIED`, `KEY_NOT_FOUND`, `KEY_NOT_ACTIVE`.
    pub async fn unwrap(
        &self,
        request: &RequestContext,
        item: Unwrap,
    ) -> Result<Unwrapped, ServiceError> {
        let inner = &*self.inner;
        let mut trail = Trail::key(&item.key);
        let result = inner.unwrap(request, item, &mut trail).await;
        inner.record(request, trail, result).await
    }

    /// Unwraps up to 1,000 envelopes; each has a result of its own.
    ///
    /// # Errors
    /// `FIELD_VIOLATION` when there are none or too many; `AUDIT_UNAVAILABLE`.
    pub async fn batch_unwrap(
        &self,
        request: &RequestContext,
        items: BatchItems<Unwrap>,
    ) -> Result<BatchResults<Unwrapped>, ServiceError> {
        let inner = &*self.inner;
        let mut batch = inner.start_batch(request, items.len()).await?;
        for item in items {
            match item {
                Err(error) => batch.refuse(error),
                Ok(item) => {
                    let mut trail = Trail::key(&item.key);
                    let step = inner.plan_unwrap(request, item, &mut trail).await;
                    batch.push(trail, step);
                }
            }
        }
        inner.finish_batch(request, batch, finish).await
    }
}

impl Inner {
    async fn unwrap(
        &self,
        request: &RequestContext,
        item: Unwrap,
        trail: &mut Trail,
    ) -> Result<Unwrapped, ServiceError> {
        let (name, operation) = self.plan_unwrap(request, item, trail).await?;
        let finished = self.hsm.crypt(operation, request.deadline).await;
        let finished = finished.map_err(|error| self.device(error))?;
        trail.timing = finished.timing;
        finish(name, Some(finished))
    }

    async fn plan_unwrap(
        &self,
        request: &RequestContext,
        item: Unwrap,
        trail: &mut Trail,
    ) -> Result<(Arc<str>, CryptoOp), ServiceError> {
        let Unwrap { key: name, ciphertext, context } = item;
        let target = Target::crypto(&name, &context);
        let permit = self.permit::<authz::Unwrap>(request, target, trail)?;
        let key = self.key(request, &name, Some(&context), trail).await?;
        let envelope = decode(&ciphertext)?;
        let compromised =
            || authorize(&*self.policy, &request.principal, request.source, target).ok();
        let ready = self.keyring.process(&permit, &key, &envelope.header, compromised).await?;
        trail.version = Some(ready.version());
        Ok((Arc::clone(ready.name()), ready.decrypt(&envelope, &context)))
    }
}

fn finish(key_version: Arc<str>, finished: Option<Finished>) -> Result<Unwrapped, ServiceError> {
    match finished.map(|finished| finished.output) {
        Some(CryptoOutput::Decrypted(plaintext)) => Ok(Unwrapped { plaintext, key_version }),
        Some(CryptoOutput::Encrypted { .. } | CryptoOutput::DataKey { .. }) | None => {
            Err(ServiceError::Bug { reason: "the hsm answered an unwrap with something else" })
        }
    }
}
