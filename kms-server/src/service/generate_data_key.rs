//! GenerateDataKey: a fresh data key, wrapped, and in the clear when asked for.

use kms_core::name::KeyOrAlias;
use kms_hsm::CryptoOutput;

use super::crypto::{CryptoCase, Step, other_answer};
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
        self.inner.one(request, item).await
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
        self.inner.many(request, items).await
    }
}

impl CryptoCase for GenerateDataKey {
    type Plan = Protecting;
    type Output = DataKey;

    fn trail(&self) -> Trail {
        Trail::key_or_alias(&self.key)
    }

    async fn plan(
        self,
        inner: &Inner,
        request: &RequestContext,
        trail: &mut Trail,
    ) -> Result<Step<Protecting>, ServiceError> {
        let Self { key, length_bytes, context, with_plaintext } = self;
        let name = match key {
            KeyOrAlias::Key(name) => name,
            KeyOrAlias::Alias(alias) => {
                inner.resolve::<authz::GenerateDataKey>(request, &alias, trail).await?
            }
        };
        let target = Target::crypto(&name, &context);
        let permit = inner.permit::<authz::GenerateDataKey>(request, target, trail)?;
        if !(MIN_DATA_KEY_BYTES..=MAX_DATA_KEY_BYTES).contains(&length_bytes) {
            let text = format!("must be {MIN_DATA_KEY_BYTES} to {MAX_DATA_KEY_BYTES}");
            return Err(ServiceError::field("length_bytes", text));
        }
        let key = inner.key(request, &name, Some(&context), trail).await?;
        let ready = inner.keyring.protect(&permit, &key, None).await?;
        trail.version = Some(ready.version());
        let operation = ready.generate_data_key(&context, length_bytes, with_plaintext);
        Ok(Step::Hsm(ready, operation))
    }

    fn finish(ready: Protecting, output: Option<CryptoOutput>) -> Result<DataKey, ServiceError> {
        match output {
            Some(CryptoOutput::DataKey { plaintext, iv, ciphertext_and_tag }) => {
                let (ciphertext, key_version) = ready.seal(&iv, &ciphertext_and_tag);
                Ok(DataKey { plaintext, ciphertext, key_version })
            }
            Some(CryptoOutput::Encrypted { .. } | CryptoOutput::Decrypted(_)) | None => {
                Err(other_answer())
            }
        }
    }
}
