//! The use-cases, one file each. Stands between authz and the keyring.
//!
//! Responsible for the order of things: decide, check, record, do, record, answer. It must never answer before the
//! audit record is durable, and never touch a key without a permit.
//!
//! Methods of `Kms` (all `async fn(&self, &RequestContext, Request) -> Result<_, ServiceError>`):
//! `wrap(Wrap) -> Wrapped`, `unwrap(Unwrap) -> Unwrapped`, `rewrap(Rewrap) -> Rewrapped`,
//! `generate_data_key(GenerateDataKey) -> DataKey`, each with `batch_*(BatchItems<_>) -> BatchResults<_>`;
//! `describe_ciphertext(&[u8]) -> CiphertextDescription`, `generate_random(&TenantName, usize) -> Plaintext`,
//! `create_key(CreateKey) -> KeyDescription`, `describe_key(&KeyName) -> KeyDescription`,
//! `list_keys(ListKeys) -> Page<KeyDescription>`, `update_key(UpdateKey) -> KeyDescription`,
//! `rotate_key(RotateKey) -> Rotated`, `describe_key_version(&VersionName) -> VersionDescription`,
//! `list_key_versions(ListKeyVersions) -> Page<VersionDescription>`,
//! `suspend_key_version(ChangeVersionState) -> VersionDescription`, `resume_key_version(ChangeVersionState) -> ..`;
//! `refuse(&RequestContext, ServiceError) -> ServiceError` audits what was refused before (decoding, limits).

mod error;
mod types;

pub use error::{RETRY_AFTER, ServiceError};
pub use types::*;
