//! Rewrap: the same plaintext under the current primary of the same key, same context. Does not need `unwrap`.

use std::sync::Arc;

use kms_hsm::{CryptoOutput, Finished};

use super::batch::Step;
use super::kms::{Inner, Kms, decode};
use super::trail::Trail;
use super::{BatchItems, BatchResults, RequestContext, Rewrap, Rewrapped, ServiceError};
use crate::authz::{self, Target, authorize};
use crate::keyring::{Protecting, Rewrapping};

/// What makes an answer of a rewrap.
enum Plan {
    Current { ciphertext: Vec<u8>, name: Arc<str> },
    Changed { from: Arc<str>, to: Protecting },
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
        let inner = &*self.inner;
        let mut trail = Trail::key(&item.key);
        let result = inner.rewrap(request, item, &mut trail).await;
        inner.record(request, trail, result).await
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
        let inner = &*self.inner;
        let mut batch = inner.start_batch(request, items.len()).await?;
        for item in items {
            match item {
                Err(error) => batch.refuse(error),
                Ok(item) => {
                    let mut trail = Trail::key(&item.key);
                    let step = inner.plan_rewrap(request, item, &mut trail).await;
                    batch.push(trail, step);
                }
            }
        }
        inner.finish_batch(request, batch, finish).await
    }
}

impl Inner {
    async fn rewrap(
        &self,
        request: &RequestContext,
        item: Rewrap,
        trail: &mut Trail,
    ) -> Result<Rewrapped, ServiceError> {
        match self.plan_rewrap(request, item, trail).await? {
            Step::Done(plan) => finish(plan, None),
            Step::Hsm(plan, operation) => {
                let finished = self.hsm.crypt(operation, request.deadline).await;
                let finished = finished.map_err(|error| self.device(error))?;
                trail.timing = finished.timing;
                finish(plan, Some(finished))
            }
        }
    }

    async fn plan_rewrap(
        &self,
        request: &RequestContext,
        item: Rewrap,
        trail: &mut Trail,
    ) -> Result<Step<Plan>, ServiceError> {
        let Rewrap { key: name, ciphertext, context } = item;
        let target = Target::crypto(&name, &context);
        let permit = self.permit::<authz::Rewrap>(request, target, trail)?;
        let key = self.key(request, &name, Some(&context), trail).await?;
        let envelope = decode(&ciphertext)?;
        let compromised =
            || authorize(&*self.policy, &request.principal, request.source, target).ok();
        let ready = self.keyring.rewrap(&permit, &key, &envelope.header, compromised).await?;
        trail.version = Some(ready.from().version());
        match ready {
            Rewrapping::Current(from) => {
                let name = Arc::clone(from.name());
                Ok(Step::Done(Plan::Current { ciphertext, name }))
            }
            Rewrapping::Needed { from, to } => {
                trail.version = Some(to.version());
                let operation = to.reencrypt(&from, &envelope, &context);
                Ok(Step::Hsm(Plan::Changed { from: Arc::clone(from.name()), to }, operation))
            }
        }
    }
}

fn finish(plan: Plan, finished: Option<Finished>) -> Result<Rewrapped, ServiceError> {
    match (plan, finished.map(|finished| finished.output)) {
        (Plan::Current { ciphertext, name }, None) => {
            let previous_key_version = Arc::clone(&name);
            Ok(Rewrapped { ciphertext, key_version: name, previous_key_version, changed: false })
        }
        (Plan::Changed { from, to }, Some(CryptoOutput::Encrypted { iv, ciphertext_and_tag })) => {
            let (ciphertext, key_version) = to.seal(&iv, &ciphertext_and_tag);
            Ok(Rewrapped { ciphertext, key_version, previous_key_version: from, changed: true })
        }
        (Plan::Changed { .. } | Plan::Current { .. }, _) => {
            Err(ServiceError::Bug { reason: "the hsm answered a rewrap with something else" })
        }
    }
}
