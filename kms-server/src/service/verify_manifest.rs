//! Verifying a tenant's rows against its manifest: shows rows that were rolled back or taken away.
//!
//! A row with a good MAC may still be an old one. Walks all rows of the tenant, so it is for operators and offline
//! checks, not for requests.

use kms_core::audit::ManifestStamp;
use kms_core::manifest::RowSet;
use kms_core::name::TenantName;

use super::kms::{Inner, Kms};
use super::{MAX_PAGE_SIZE, ServiceError};
use crate::store::ListPosition;

impl Kms {
    /// Verifies every row of a tenant, and that together they are what the manifest says.
    ///
    /// # Errors
    /// `KEY_INTEGRITY`, with an alert, when a row was edited, rolled back, added or taken away.
    pub async fn verify_manifest(
        &self,
        tenant: &TenantName,
    ) -> Result<ManifestStamp, ServiceError> {
        let inner = &*self.inner;
        // Nothing may change while the rows are walked.
        let _turn = inner.lock_tenant(tenant).await?;
        let manifest = inner.keyring.manifest(tenant).await?;
        let rows = inner.walk(tenant).await?;
        let digest = data_encoding::HEXLOWER.encode(&rows.digest());
        if rows != manifest.rows {
            let revision = manifest.revision;
            let detail = format!("the rows of `{tenant}` are not those of manifest {revision}");
            return Err(inner.keyring.integrity(detail).into());
        }
        Ok(ManifestStamp { revision: manifest.revision, digest })
    }
}

impl Inner {
    async fn walk(&self, tenant: &TenantName) -> Result<RowSet, ServiceError> {
        let (mut rows, mut after) = (RowSet::empty(), None);
        loop {
            let keys = self.store.list_keys(tenant.clone(), after, MAX_PAGE_SIZE).await?;
            let Some(end) = keys.last() else { return Ok(rows) };
            after = Some(ListPosition { create_time: end.row.create_time, uid: end.row.uid });
            self.keyring.verify_rows(&keys, &[], &[]).await?;
            for key in keys {
                rows.insert(&key.mac);
                let mut number = None;
                loop {
                    let versions =
                        self.store.list_versions(key.row.uid, number, MAX_PAGE_SIZE).await?;
                    let Some(end) = versions.last() else { break };
                    number = Some(end.row.version);
                    self.keyring.verify_rows(&[], &versions, &[]).await?;
                    for version in versions {
                        rows.insert(&version.mac);
                    }
                }
            }
        }
    }
}
