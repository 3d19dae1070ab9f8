//! Unwrap: the inverse of wrap, with the version that the envelope names.

use std::sync::Arc;

use kms_hsm::CryptoOutput;

use super::crypto::{CryptoCase, Step, other_answer};
use super::kms::{Inner, Kms, decode};
use super::trail::Trail;
use super::{BatchItems, BatchResults, RequestContext, ServiceError, Unwrap, Unwrapped};
use crate::authz::{self, Target};

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
        self.inner.one(request, item).await
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
        self.inner.many(request, items).await
    }
}

impl CryptoCase for Unwrap {
    /// Name of the version.
    type Plan = Arc<str>;
    type Output = Unwrapped;

    fn trail(&self) -> Trail {
        Trail::key(&self.key)
    }

    async fn plan(
        self,
        inner: &Inner,
        request: &RequestContext,
        trail: &mut Trail,
    ) -> Result<Step<Arc<str>>, ServiceError> {
        let Self { key: name, ciphertext, context } = self;
        let target = Target::crypto(&name, &context);
        let permit = inner.permit::<authz::Unwrap>(request, target, trail)?;
        let key = inner.key(request, &name, Some(&context), trail).await?;
        let envelope = decode(&ciphertext)?;
        let compromised = || inner.permit(request, target, trail).ok();
        let ready = inner.keyring.process(&permit, &key, &envelope.header, compromised).await?;
        trail.version = Some(ready.version());
        Ok(Step::Hsm(Arc::clone(ready.name()), ready.decrypt(&envelope, &context)))
    }

    fn finish(
        key_version: Arc<str>,
        output: Option<CryptoOutput>,
    ) -> Result<Unwrapped, ServiceError> {
        match output {
            Some(CryptoOutput::Decrypted(plaintext)) => Ok(Unwrapped { plaintext, key_version }),
            Some(CryptoOutput::Encrypted { .. } | CryptoOutput::DataKey { .. }) | None => {
                Err(other_answer())
            }
        }
    }
}
