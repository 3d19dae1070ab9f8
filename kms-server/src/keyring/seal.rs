//! Sealing: MACs for rows that are about to be written, and checks of rows that were read in bulk.

use std::time::Instant;

use kms_core::alias::AliasRow;
use kms_core::consumer::ConsumerRow;
use kms_core::id::RootGeneration;
use kms_core::import_job::ImportJobRow;
use kms_core::key::{CounterRow, KeyRow, RowMac, Sealed, VersionRow};
use kms_core::lifecycle::HistoryRow;
use kms_core::manifest::Manifest;
use kms_core::name::TenantName;
use kms_core::usage::UsageRow;

use super::load::Check;
use super::{Keyring, KeyringError};
use crate::store::{Intent, RequestRecord, StoreError};

/// A row that can be sealed.
pub trait MacInput {
    /// Returns the bytes to MAC.
    fn mac_input(&self, generation: RootGeneration) -> Vec<u8>;
}

impl MacInput for KeyRow {
    fn mac_input(&self, generation: RootGeneration) -> Vec<u8> {
        Self::mac_input(self, generation)
    }
}

impl MacInput for VersionRow {
    fn mac_input(&self, generation: RootGeneration) -> Vec<u8> {
        Self::mac_input(self, generation)
    }
}

impl MacInput for ConsumerRow {
    fn mac_input(&self, generation: RootGeneration) -> Vec<u8> {
        Self::mac_input(self, generation)
    }
}

impl MacInput for AliasRow {
    fn mac_input(&self, generation: RootGeneration) -> Vec<u8> {
        Self::mac_input(self, generation)
    }
}

impl MacInput for ImportJobRow {
    fn mac_input(&self, generation: RootGeneration) -> Vec<u8> {
        Self::mac_input(self, generation)
    }
}

impl MacInput for HistoryRow {
    fn mac_input(&self, generation: RootGeneration) -> Vec<u8> {
        Self::mac_input(self, generation)
    }
}

impl MacInput for UsageRow {
    fn mac_input(&self, generation: RootGeneration) -> Vec<u8> {
        Self::mac_input(self, generation)
    }
}

impl MacInput for CounterRow {
    fn mac_input(&self, generation: RootGeneration) -> Vec<u8> {
        Self::mac_input(self, generation)
    }
}

impl MacInput for Manifest {
    fn mac_input(&self, generation: RootGeneration) -> Vec<u8> {
        Self::mac_input(self, generation)
    }
}

impl MacInput for Intent {
    fn mac_input(&self, generation: RootGeneration) -> Vec<u8> {
        Self::mac_input(self, generation)
    }
}

impl MacInput for RequestRecord {
    fn mac_input(&self, generation: RootGeneration) -> Vec<u8> {
        Self::mac_input(self, generation)
    }
}

impl Keyring {
    /// Seals a row under the root of `generation`. A version row must keep the generation that wraps its material.
    ///
    /// # Errors
    /// [`KeyringError::Hsm`] when the HSM cannot MAC.
    pub async fn seal<R: MacInput>(
        &self,
        row: R,
        generation: RootGeneration,
        deadline: Instant,
    ) -> Result<Sealed<R>, KeyringError> {
        let mac = self.mac(row.mac_input(generation), generation, deadline).await?;
        Ok(Sealed { row, mac, generation })
    }

    /// Returns the HMAC under root `mac` of bytes that start with a domain of their own.
    ///
    /// # Errors
    /// [`KeyringError::Hsm`] when the HSM cannot MAC.
    pub async fn mac(
        &self,
        input: Vec<u8>,
        generation: RootGeneration,
        deadline: Instant,
    ) -> Result<RowMac, KeyringError> {
        let macs = self.macs(vec![input], generation, deadline).await?;
        macs.first().copied().ok_or(KeyringError::Bug { reason: "the hsm gave no MAC" })
    }

    /// Returns the HMAC of each input, in one call of the HSM.
    ///
    /// # Errors
    /// [`KeyringError::Hsm`] when the HSM cannot MAC.
    pub async fn macs(
        &self,
        inputs: Vec<Vec<u8>>,
        generation: RootGeneration,
        deadline: Instant,
    ) -> Result<Vec<RowMac>, KeyringError> {
        let count = inputs.len();
        let macs = self.shared.hsm.mac(generation, inputs, deadline).await?;
        if macs.len() != count {
            return Err(KeyringError::Bug { reason: "the hsm gave another number of MACs" });
        }
        Ok(macs)
    }

    /// Verifies one row; `what` names it in the alert.
    ///
    /// # Errors
    /// [`KeyringError::Integrity`], with the alert, when it was edited.
    pub async fn verify_row<R: MacInput>(
        &self,
        sealed: &Sealed<R>,
        what: String,
    ) -> Result<(), KeyringError> {
        let Sealed { row, mac, generation } = sealed;
        let input = row.mac_input(*generation);
        let check = Check { input, mac: *mac, generation: *generation, what };
        self.shared.verify(vec![check]).await
    }

    /// Reads the manifest of a tenant and verifies it; a tenant without keys has an empty one.
    ///
    /// # Errors
    /// [`KeyringError::Integrity`] when it was edited.
    pub async fn manifest(&self, tenant: &TenantName) -> Result<Manifest, KeyringError> {
        let stored = self.shared.store.manifest(tenant.clone()).await;
        let Some(sealed) = self.shared.damaged(stored)? else {
            return Ok(Manifest::empty(tenant.clone()));
        };
        if sealed.row.tenant != *tenant {
            return Err(self.shared.integrity(format!("the manifest of `{tenant}` is another's")));
        }
        self.shared.verify(vec![Check::manifest(&sealed)]).await?;
        Ok(sealed.row)
    }

    /// Reads manifests by tenant id, at most `limit`, after `after`, and verifies them.
    ///
    /// # Errors
    /// [`KeyringError::Integrity`] when one was edited.
    pub async fn list_manifests(
        &self,
        after: Option<TenantName>,
        limit: u32,
    ) -> Result<Vec<Manifest>, KeyringError> {
        let listed = self.shared.store.list_manifests(after, limit).await;
        let listed = self.shared.damaged(listed)?;
        let checks = listed.iter().map(|Sealed { row, mac, generation }| Check {
            input: row.mac_input(*generation),
            mac: *mac,
            generation: *generation,
            what: format!("manifest of `{}`", row.tenant),
        });
        self.shared.verify(checks.collect()).await?;
        Ok(listed.into_iter().map(|sealed| sealed.row).collect())
    }

    /// Verifies rows that were read in bulk.
    ///
    /// # Errors
    /// [`KeyringError::Integrity`] when one was edited.
    pub async fn verify_rows(
        &self,
        keys: &[Sealed<KeyRow>],
        versions: &[Sealed<VersionRow>],
        counters: &[Sealed<CounterRow>],
    ) -> Result<(), KeyringError> {
        let keys = keys.iter().map(Check::key);
        let versions = versions.iter().map(Check::version);
        let counters = counters.iter().map(Check::counter);
        self.shared.verify(keys.chain(versions).chain(counters).collect()).await
    }

    /// Verifies consumers.
    ///
    /// # Errors
    /// [`KeyringError::Integrity`], with the alert, when one was edited.
    pub async fn verify_consumers(
        &self,
        consumers: &[Sealed<ConsumerRow>],
    ) -> Result<(), KeyringError> {
        self.shared.verify(consumers.iter().map(Check::consumer).collect()).await
    }

    /// Verifies aliases.
    ///
    /// # Errors
    /// [`KeyringError::Integrity`], with the alert, when one was edited.
    pub async fn verify_aliases(&self, aliases: &[Sealed<AliasRow>]) -> Result<(), KeyringError> {
        self.shared.verify(aliases.iter().map(Check::alias).collect()).await
    }

    /// Verifies import jobs.
    ///
    /// # Errors
    /// [`KeyringError::Integrity`], with the alert, when one was edited.
    pub async fn verify_import_jobs(
        &self,
        jobs: &[Sealed<ImportJobRow>],
    ) -> Result<(), KeyringError> {
        self.shared.verify(jobs.iter().map(Check::import_job).collect()).await
    }

    /// Verifies entries of a history.
    ///
    /// # Errors
    /// [`KeyringError::Integrity`], with the alert, when one was edited.
    pub async fn verify_history(&self, entries: &[Sealed<HistoryRow>]) -> Result<(), KeyringError> {
        self.shared.verify(entries.iter().map(Check::history).collect()).await
    }

    /// Takes an answer of the store; one that shows an edited or damaged database raises the integrity alert.
    ///
    /// # Errors
    /// [`KeyringError::Integrity`] then, else the store's own.
    pub fn stored<T>(&self, answer: Result<T, StoreError>) -> Result<T, KeyringError> {
        self.shared.damaged(answer)
    }

    /// Raises the integrity alert and makes its error.
    pub fn integrity(&self, detail: String) -> KeyringError {
        self.shared.integrity(detail)
    }
}
