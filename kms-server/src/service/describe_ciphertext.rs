//! DescribeCiphertext: what the header of an envelope says. Needs no HSM but for row MACs.

use kms_core::envelope::FORMAT;
use kms_core::name::VersionName;
use kms_core::state::VersionState;

use super::kms::{Inner, Kms, decode};
use super::trail::Trail;
use super::{CiphertextDescription, RequestContext, ServiceError};
use crate::authz::{self, ActionKind, Target};
use crate::store::{KeyRef, VersionChoice};

impl Kms {
    /// Describes an envelope. The name is given only to those who may `describe_ciphertext` in the key's tenant; to
    /// others the key looks unknown.
    ///
    /// # Errors
    /// `CIPHERTEXT_INVALID` when it is no envelope, `ENVELOPE_UNSUPPORTED`; `ACCESS_DENIED` to those who may not do
    /// this anywhere.
    pub async fn describe_ciphertext(
        &self,
        request: &RequestContext,
        ciphertext: &[u8],
    ) -> Result<CiphertextDescription, ServiceError> {
        let inner = &*self.inner;
        let mut trail = Trail::unknown();
        let result = inner.describe_ciphertext(request, ciphertext, &mut trail).await;
        inner.record(request, trail, result).await
    }
}

impl Inner {
    async fn describe_ciphertext(
        &self,
        request: &RequestContext,
        ciphertext: &[u8],
        trail: &mut Trail,
    ) -> Result<CiphertextDescription, ServiceError> {
        self.permit::<authz::DescribeCiphertext>(request, Target::ANYWHERE, trail)?;
        let envelope = decode(ciphertext)?;
        let header = envelope.header;
        trail.key_uid = Some(header.key_uid);
        trail.version = Some(header.version);
        let mut description = CiphertextDescription {
            format: FORMAT,
            suite: header.suite,
            key_uid: header.key_uid,
            version: header.version,
            key_version: None,
            plaintext_length_bytes: envelope.plaintext_len(),
            current: false,
        };
        let choice = VersionChoice::Number(header.version);
        let stored = self.store.key(KeyRef::Uid(header.key_uid), choice).await;
        let Some(stored) = self.keyring.stored(stored)? else {
            return Ok(description);
        };
        let tenant = stored.key.row.name.tenant();
        if !self.may(request, ActionKind::DescribeCiphertext, Some(tenant)) {
            return Ok(description);
        }
        let versions: Vec<_> = stored.version.into_iter().collect();
        let keys = [stored.key];
        self.keyring.verify_rows(&keys, &versions, &[]).await?;
        if let ([key], [version]) = (&keys, versions.as_slice()) {
            trail.tenant = key.row.name.tenant().id().into();
            description.key_version =
                Some(VersionName::new(key.row.name.clone(), version.row.version));
            description.current = key.row.primary == version.row.version
                && version.row.state_at(self.clock.now()) == VersionState::Active;
        }
        Ok(description)
    }
}
