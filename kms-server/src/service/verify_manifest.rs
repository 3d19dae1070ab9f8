//! Verifying a tenant's rows against its manifest: shows rows that were rolled back or taken away.
//!
//! A row with a good MAC may still be an old one. Walks all rows of the tenant, so it is for operators and offline
//! checks, not for requests.

use std::collections::HashSet;

use kms_core::audit::ManifestStamp;
use kms_core::id::{KeyUid, Revision};
use kms_core::key::{CkaId, KeyRow, Material};
use kms_core::manifest::RowSet;
use kms_core::name::TenantName;

use super::kms::{Inner, Kms};
use super::{MAX_PAGE_SIZE, ServiceError};
use crate::store::{AliasQuery, HistoryPosition, ListPosition};

impl Kms {
    /// Verifies every row of a tenant, and that together they are what the manifest says.
    ///
    /// # Errors
    /// `KEY_INTEGRITY`, with an alert, when a row was edited, rolled back, added or taken away.
    pub async fn verify_manifest(
        &self,
        tenant: &TenantName,
    ) -> Result<ManifestStamp, ServiceError> {
        Ok(self.inner.walk_verified(tenant).await?.stamp)
    }
}

/// The rows of a tenant, all verified, and together what its manifest says.
pub(super) struct Walked {
    /// The manifest.
    pub(super) stamp: ManifestStamp,
    /// The CKA_IDs that the rows name, of versions in whatever state and of import jobs.
    pub(super) residents: HashSet<CkaId>,
}

impl Inner {
    /// Walks the rows of a tenant.
    ///
    /// # Errors
    /// As [`Kms::verify_manifest`].
    pub(super) async fn walk_verified(&self, tenant: &TenantName) -> Result<Walked, ServiceError> {
        // Nothing may change while the rows are walked.
        let _turn = self.lock_tenant(tenant).await?;
        let manifest = self.keyring.manifest(tenant).await?;
        let (rows, residents) = self.walk(tenant).await?;
        if rows != manifest.rows {
            let revision = manifest.revision;
            let detail = format!("the rows of `{tenant}` are not those of manifest {revision}");
            return Err(self.keyring.integrity(detail).into());
        }
        Ok(Walked { stamp: manifest.stamp(), residents })
    }

    async fn walk(&self, tenant: &TenantName) -> Result<(RowSet, HashSet<CkaId>), ServiceError> {
        let (mut rows, mut residents, mut after) = (RowSet::empty(), HashSet::new(), None);
        self.walk_aliases(tenant, &mut rows).await?;
        for job in self.import_jobs(tenant).await? {
            rows.insert(&job.mac);
            residents.insert(job.row.id);
        }
        loop {
            let keys = self.store.list_keys(tenant.clone(), after, MAX_PAGE_SIZE).await?;
            let Some(end) = keys.last() else { return Ok((rows, residents)) };
            after = Some(ListPosition { create_time: end.row.create_time, uid: end.row.uid });
            self.keyring.verify_rows(&keys, &[], &[]).await?;
            for key in keys {
                rows.insert(&key.mac);
                self.walk_history(key.row.uid, &mut rows).await?;
                self.walk_consumers(&key.row, &mut rows).await?;
                let mut number = None;
                loop {
                    let versions =
                        self.store.list_versions(key.row.uid, number, MAX_PAGE_SIZE).await?;
                    let Some(end) = versions.last() else { break };
                    number = Some(end.row.version);
                    self.keyring.verify_rows(&[], &versions, &[]).await?;
                    for version in versions {
                        rows.insert(&version.mac);
                        if let Material::Resident(id) = version.row.material {
                            residents.insert(id);
                        }
                    }
                }
            }
        }
    }

    async fn walk_aliases(
        &self,
        tenant: &TenantName,
        rows: &mut RowSet,
    ) -> Result<(), ServiceError> {
        let mut after = Revision::new(0);
        loop {
            let tenant = tenant.clone();
            let query = AliasQuery::Of { tenant, key_uid: None, after, limit: MAX_PAGE_SIZE };
            let aliases = self.store.aliases(query).await?;
            let Some(end) = aliases.last() else { return Ok(()) };
            after = end.row.revision;
            self.keyring.verify_aliases(&aliases).await?;
            for alias in &aliases {
                rows.insert(&alias.mac);
            }
        }
    }

    async fn walk_consumers(&self, key: &KeyRow, rows: &mut RowSet) -> Result<(), ServiceError> {
        for consumer in self.consumers(key).await? {
            rows.insert(&consumer.mac);
        }
        Ok(())
    }

    async fn walk_history(&self, uid: KeyUid, rows: &mut RowSet) -> Result<(), ServiceError> {
        let mut after = None;
        loop {
            let entries = self.store.list_history(uid, after, MAX_PAGE_SIZE).await?;
            let Some(end) = entries.last() else { return Ok(()) };
            after = Some(HistoryPosition::of(&end.row));
            self.keyring.verify_history(&entries).await?;
            for entry in &entries {
                rows.insert(&entry.mac);
            }
        }
    }
}
