//! Rewrap: the same plaintext under the current primary of the same key, same context. Does not need `unwrap`.

use std::sync::Arc;

use kms_hsm::CryptoOutput;

use super::crypto::{CryptoCase, Step, other_answer};
use super::kms::{Inner, Kms, decode};
use super::trail::Trail;
use super::{BatchItems, BatchResults, RequestContext, Rewrap, Rewrapped, ServiceError};
use crate::authz::{self, Target};
use crate::keyring::{Moving, Protecting, Rewrapping};

/// What makes an answer of a rewrap.
pub(super) enum Plan {
    Current { ciphertext: Vec<u8>, name: Arc<str> },
    Changed { from: Moving, to: Protecting },
}

impl Kms {
    /// Rewraps one envelope. One under the primary comes back as it was, unopened, with `changed` false.
    ///
    /// # Errors
    /// As for [`Kms::unwrap`] on the envelope and [`Kms::wrap`] on the primary.
    pub async fn rewrap(
        &self,
        request: &RequestContext,
        item: Rewrap,
    ) -> Result<Rewrapped, ServiceError> {
        self.inner.one(request, item).await
    }

    /// Rewraps up to 1,000 envelopes; each has a result of its own.
    ///
    /// # Errors
    /// `FIELD_VIOLATION` when there are none or too many; `AUDIT_UNAVAILABLE`.
    pub async fn batch_rewrap(
        &self,
        request: &RequestContext,
        items: BatchItems<Rewrap>,
    ) -> Result<BatchResults<Rewrapped>, ServiceError> {
        self.inner.many(request, items).await
    }
}

impl CryptoCase for Rewrap {
    type Plan = Plan;
    type Output = Rewrapped;

    fn trail(&self) -> Trail {
        Trail::key(&self.key)
    }

    async fn plan(
        self,
        inner: &Inner,
        request: &RequestContext,
        trail: &mut Trail,
    ) -> Result<Step<Plan>, ServiceError> {
        let Self { key: name, ciphertext, context } = self;
        let target = Target::crypto(&name, &context);
        let permit = inner.permit::<authz::Rewrap>(request, target, trail)?;
        let key = inner.key(request, &name, Some(&context), trail).await?;
        let envelope = decode(&ciphertext)?;
        let compromised = || inner.permit(request, target, trail).ok();
        let ready = inner.keyring.rewrap(&permit, &key, &envelope.header, compromised).await?;
        trail.version = Some(ready.from().version());
        trail.from_version = trail.version;
        match ready {
            Rewrapping::Current(from) => {
                let name = Arc::clone(from.name());
                Ok(Step::Done(Plan::Current { ciphertext, name }))
            }
            Rewrapping::Needed { from, to } => {
                trail.version = Some(to.version());
                let operation = to.reencrypt(&from, &envelope, &context);
                Ok(Step::Hsm(Plan::Changed { from, to }, operation))
            }
        }
    }

    fn finish(plan: Plan, output: Option<CryptoOutput>) -> Result<Rewrapped, ServiceError> {
        match (plan, output) {
            (Plan::Current { ciphertext, name }, None) => {
                let previous_key_version = Arc::clone(&name);
                Ok(Rewrapped {
                    ciphertext,
                    key_version: name,
                    previous_key_version,
                    changed: false,
                })
            }
            (
                Plan::Changed { from, to },
                Some(CryptoOutput::Encrypted { iv, ciphertext_and_tag }),
            ) => {
                let (ciphertext, key_version) = to.seal(&iv, &ciphertext_and_tag);
                let previous_key_version = from.done();
                Ok(Rewrapped { ciphertext, key_version, previous_key_version, changed: true })
            }
            (Plan::Changed { .. } | Plan::Current { .. }, _) => Err(other_answer()),
        }
    }
}
