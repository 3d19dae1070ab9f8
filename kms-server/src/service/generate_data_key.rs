//! GenerateDataKey: a fresh data key, wrapped, and in the clear when asked for.

use kms_hsm::{CryptoOp, CryptoOutput, Finished};

use super::kms::{Inner, Kms};
use super::trail::Trail;
use super::{
    BatchItems, BatchResults, DataKey, GenerateDataKey, MAX_DATA_KEY_BYTES, MIN_DATA_KEY_BYTES,
    RequestContext, ServiceError,
};
use crate::authz::{self, Target};
use crate::keyring::Protecting;

impl Kms {
    /// Generates one data key. It is drawn in the HSM, never stored, and wiped after the answer.
    ///
    /// # Errors
    /// As for [`Kms::wrap`].
    pub async fn generate_data_key(
        &self,
        request: &RequestContext,
        item: GenerateDataKey,
    ) -> Result<DataKey, ServiceError> {
        let inner = &*self.inner;
        let mut trail = Trail::key(&item.key);
        let result = inner.data_key(request, item, &mut trail).await;
        inner.record(request, trail, result).await
    }

    /// Generates up to 1,000 data keys; each has a result of its own.
    ///
    /// # Errors
    /// `FIELD_VIOLATION` when there are none or too many; `AUDIT_UNAVAILABLE`.
    pub async fn batch_generate_data_key(
        &self,
        request: &RequestContext,
        items: BatchItems<GenerateDataKey>,
    ) -> Result<BatchResults<DataKey>, ServiceError> {
        let inner = &*self.inner;
        let mut batch = inner.start_batch(request, items.len()).await?;
        for item in items {
            match item {
                Err(error) => batch.refuse(error),
                Ok(item) => {
                    let mut trail = Trail::key(&item.key);
                    let step = inner.plan_data_key(request, item, &mut trail).await;
                    batch.push(trail, step);
                }
            }
        }
        inner.finish_batch(request, batch, finish).await
    }
}

impl Inner {
    async fn data_key(
        &self,
        request: &RequestContext,
        item: GenerateDataKey,
        trail: &mut Trail,
    ) -> Result<DataKey, ServiceError> {
        let (ready, operation) = self.plan_data_key(request, item, trail).await?;
        let finished = self.hsm.crypt(operation, request.deadline).await;
        let finished = finished.map_err(|error| self.device(error))?;
        trail.timing = finished.timing;
        finish(ready, Some(finished))
    }

    async fn plan_data_key(
        &self,
        request: &RequestContext,
        item: GenerateDataKey,
        trail: &mut Trail,
    ) -> Result<(Protecting, CryptoOp), ServiceError> {
        let GenerateDataKey { key: name, length_bytes, context, with_plaintext } = item;
        let target = Target::crypto(&name, &context);
        let permit = self.permit::<authz::GenerateDataKey>(request, target, trail)?;
        if !(MIN_DATA_KEY_BYTES..=MAX_DATA_KEY_BYTES).contains(&length_bytes) {
            let text = format!("must be {MIN_DATA_KEY_BYTES} to {MAX_DATA_KEY_BYTES}");
            return Err(ServiceError::field("length_bytes", text));
        }
        let key = self.key(request, &name, Some(&context), trail).await?;
        let ready = self.keyring.protect(&permit, &key, None).await?;
        trail.version = Some(ready.version());
        let operation = ready.generate_data_key(&context, length_bytes, with_plaintext);
        Ok((ready, operation))
    }
}

fn finish(ready: Protecting, finished: Option<Finished>) -> Result<DataKey, ServiceError> {
    match finished.map(|finished| finished.output) {
        Some(CryptoOutput::DataKey { plaintext, iv, ciphertext_and_tag }) => {
            let (ciphertext, key_version) = ready.seal(&iv, &ciphertext_and_tag);
            Ok(DataKey { plaintext, ciphertext, key_version })
        }
        Some(CryptoOutput::Encrypted { .. } | CryptoOutput::Decrypted(_)) | None => {
            Err(ServiceError::Bug { reason: "the hsm answered a data key with something else" })
        }
    }
}
