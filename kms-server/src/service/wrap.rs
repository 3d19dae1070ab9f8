//! Wrap: a small secret under a key.

use kms_core::envelope::MAX_PLAINTEXT_BYTES;
use kms_core::name::KeySelector;
use kms_hsm::CryptoOutput;

use super::crypto::{CryptoCase, Step, other_answer};
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
        self.inner.one(request, item).await
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
        self.inner.many(request, items).await
    }
}

impl CryptoCase for Wrap {
    type Plan = Protecting;
    type Output = Wrapped;

    fn trail(&self) -> Trail {
        match &self.key {
            KeySelector::Key(name) => Trail::key(name),
            KeySelector::Version(name) => Trail::key(name.key()),
            KeySelector::Alias(name) => Trail::alias(name),
        }
    }

    async fn plan(
        self,
        inner: &Inner,
        request: &RequestContext,
        trail: &mut Trail,
    ) -> Result<Step<Protecting>, ServiceError> {
        let Self { key: selector, plaintext, context } = self;
        let (name, version) = match selector {
            KeySelector::Key(name) => (name, None),
            KeySelector::Version(name) => (name.key().clone(), Some(name.version())),
            KeySelector::Alias(alias) => {
                (inner.resolve::<authz::Wrap>(request, &alias, trail).await?, None)
            }
        };
        let target = Target::crypto(&name, &context);
        let permit = inner.permit::<authz::Wrap>(request, target, trail)?;
        let pinned = match version {
            Some(number) => Some((number, inner.permit(request, target, trail)?)),
            None => None,
        };
        trail.version = version;
        check_plaintext(plaintext.len())?;
        let key = inner.key(request, &name, Some(&context), trail).await?;
        let pinned = pinned.as_ref().map(|(number, permit)| (*number, permit));
        let ready = inner.keyring.protect(&permit, &key, pinned).await?;
        trail.version = Some(ready.version());
        let operation = ready.encrypt(&context, plaintext);
        Ok(Step::Hsm(ready, operation))
    }

    fn finish(ready: Protecting, output: Option<CryptoOutput>) -> Result<Wrapped, ServiceError> {
        match output {
            Some(CryptoOutput::Encrypted { iv, ciphertext_and_tag }) => {
                let (ciphertext, key_version) = ready.seal(&iv, &ciphertext_and_tag);
                Ok(Wrapped { ciphertext, key_version })
            }
            Some(CryptoOutput::Decrypted(_) | CryptoOutput::DataKey { .. }) | None => {
                Err(other_answer())
            }
        }
    }
}

fn check_plaintext(length: usize) -> Result<(), ServiceError> {
    if (1..=MAX_PLAINTEXT_BYTES).contains(&length) {
        return Ok(());
    }
    Err(ServiceError::field("plaintext", format!("must be 1 to {MAX_PLAINTEXT_BYTES} bytes")))
}
