//! Wrap: a small secret under a key.

use kms_core::envelope::MAX_PLAINTEXT_BYTES;
use kms_hsm::{CryptoOp, CryptoOutput, Finished};

use super::kms::{Inner, Kms};
use super::trail::Trail;
use super::{BatchItems, BatchResults, RequestContext, ServiceError, Wrap, Wrapped};
use crate::authz::{self, Target};
use crate::keyring::Protecting;

impl Kms {
    /// Wraps one plaintext under the primary, or a pinned version with `wrap_pinned`.
    ///
    /// # Errors
    /// `FIELD_VIOLATION`, `ACCESS_DENIED`, `KEY_NOT_FOUND`, `KEY_NOT_ACTIVE`, `KEY_EXHAUSTED`, and what the layers
    /// below cannot do.
    pub async fn wrap(
        &self,
        request: &RequestContext,
        item: Wrap,
    ) -> Result<Wrapped, ServiceError> {
        let inner = &*self.inner;
        let mut trail = Trail::key(&item.key.key);
        let result = inner.wrap(request, item, &mut trail).await;
        inner.record(request, trail, result).await
    }

    /// Wraps up to 1,000 plaintexts; each has a result of its own.
    ///
    /// # Errors
    /// `FIELD_VIOLATION` when there are none or too many; `AUDIT_UNAVAILABLE`.
    pub async fn batch_wrap(
        &self,
        request: &RequestContext,
        items: BatchItems<Wrap>,
    ) -> Result<BatchResults<Wrapped>, ServiceError> {
        let inner = &*self.inner;
        let mut batch = inner.start_batch(request, items.len()).await?;
        for item in items {
            match item {
                Err(error) => batch.refuse(error),
                Ok(item) => {
                    let mut trail = Trail::key(&item.key.key);
                    let step = inner.plan_wrap(request, item, &mut trail).await;
                    batch.push(trail, step);
                }
            }
        }
        inner.finish_batch(request, batch, finish).await
    }
}

impl Inner {
    async fn wrap(
        &self,
        request: &RequestContext,
        item: Wrap,
        trail: &mut Trail,
    ) -> Result<Wrapped, ServiceError> {
        let (ready, operation) = self.plan_wrap(request, item, trail).await?;
        let finished = self.hsm.crypt(operation, request.deadline).await;
        let finished = finished.map_err(|error| self.device(error))?;
        trail.timing = finished.timing;
        finish(ready, Some(finished))
    }

    async fn plan_wrap(
        &self,
        request: &RequestContext,
        item: Wrap,
        trail: &mut Trail,
    ) -> Result<(Protecting, CryptoOp), ServiceError> {
        let Wrap { key: selector, plaintext, context } = item;
        let target = Target::crypto(&selector.key, &context);
        let permit = self.permit::<authz::Wrap>(request, target, trail)?;
        let pinned = match selector.version {
            Some(number) => Some((number, self.permit(request, target, trail)?)),
            None => None,
        };
        trail.version = selector.version;
        check_plaintext(plaintext.len())?;
        let key = self.key(request, &selector.key, Some(&context), trail).await?;
        let pinned = pinned.as_ref().map(|(number, permit)| (*number, permit));
        let ready = self.keyring.protect(&permit, &key, pinned).await?;
        trail.version = Some(ready.version());
        let operation = ready.encrypt(&context, plaintext);
        Ok((ready, operation))
    }
}

fn check_plaintext(length: usize) -> Result<(), ServiceError> {
    if (1..=MAX_PLAINTEXT_BYTES).contains(&length) {
        return Ok(());
    }
    Err(ServiceError::field("plaintext", format!("must be 1 to {MAX_PLAINTEXT_BYTES} bytes")))
}

fn finish(ready: Protecting, finished: Option<Finished>) -> Result<Wrapped, ServiceError> {
    match finished.map(|finished| finished.output) {
        Some(CryptoOutput::Encrypted { iv, ciphertext_and_tag }) => {
            let (ciphertext, key_version) = ready.seal(&iv, &ciphertext_and_tag);
            Ok(Wrapped { ciphertext, key_version })
        }
        Some(CryptoOutput::Decrypted(_) | CryptoOutput::DataKey { .. }) | None => {
            Err(ServiceError::Bug { reason: "the hsm answered a wrap with something else" })
        }
    }
}
