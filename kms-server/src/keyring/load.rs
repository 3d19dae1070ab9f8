//! Loading: rows from the store, verified, and keys into the HSM.

use std::sync::Arc;

use kms_core::alias::AliasRow;
use kms_core::consumer::ConsumerRow;
use kms_core::id::{KeyUid, KeyVersion, RootGeneration};
use kms_core::import_job::ImportJobRow;
use kms_core::key::{CounterRow, KeyRow, RowMac, Sealed, VersionRow};
use kms_core::lifecycle::HistoryRow;
use kms_core::manifest::Manifest;
use kms_core::name::{AliasName, KeyName, VersionName};
use kms_core::secret::equal_in_constant_time;
use kms_core::state::VersionState;
use kms_core::usage::UsageRow;
use kms_hsm::{HsmError, HsmKey, KeySource};

use super::cache::Epoch;
use super::lease::Lease;
use super::usage::Told;
use super::use_log::LoadedUses;
use super::{KeyringError, Shared};
use crate::store::{AliasQuery, KeyRef, VersionChoice};

/// Label and value that ask for the encryption context to be logged as a keyed hash.
pub const CONTEXT_AUDIT_LABEL: (&str, &str) = ("context-audit", "HASHED");

/// A key row that was verified.
#[derive(Debug)]
pub struct CachedKey {
    /// The row.
    pub row: KeyRow,
    /// Full name, for records.
    pub name_text: Arc<str>,
    /// Whether encryption contexts are logged as a keyed hash only.
    pub context_hashed: bool,
    /// As it was stored, for changes that build on it.
    pub(super) mac: RowMac,
}

impl CachedKey {
    fn new(sealed: Sealed<KeyRow>) -> Self {
        let Sealed { row, mac, generation: _ } = sealed;
        let (label, value) = CONTEXT_AUDIT_LABEL;
        let context_hashed = row.labels.get(label).is_some_and(|text| text == value);
        Self { name_text: row.name.to_string().into(), context_hashed, mac, row }
    }

    /// Returns the MAC of the row.
    pub const fn mac(&self) -> RowMac {
        self.mac
    }
}

/// A version row that was verified, with its key loaded when its state can use it.
#[derive(Debug)]
pub(super) struct LoadedVersion {
    pub(super) row: VersionRow,
    pub(super) name_text: Arc<str>,
    pub(super) key: Option<HsmKey>,
    pub(super) lease: Arc<Lease>,
    pub(super) uses: Arc<LoadedUses>,
    /// Whether the log was told that its cryptoperiod is nearly over.
    pub(super) told_of_period: Told,
    /// Whether the log was told that its recipient-usage period is nearly over.
    pub(super) told_of_recipients: Told,
}

/// A row to verify: what its MAC covers, the MAC, whose it is, and what to call it in an alert.
pub(super) struct Check {
    pub(super) input: Vec<u8>,
    pub(super) mac: RowMac,
    pub(super) generation: RootGeneration,
    pub(super) what: String,
}

impl Check {
    pub(super) fn key(sealed: &Sealed<KeyRow>) -> Self {
        let Sealed { row, mac, generation } = sealed;
        let what = format!("row of key {}", row.uid);
        Self { input: row.mac_input(*generation), mac: *mac, generation: *generation, what }
    }

    pub(super) fn version(sealed: &Sealed<VersionRow>) -> Self {
        let Sealed { row, mac, generation } = sealed;
        let what = format!("row of key {} version {}", row.key_uid, row.version);
        Self { input: row.mac_input(*generation), mac: *mac, generation: *generation, what }
    }

    pub(super) fn usage(sealed: &Sealed<UsageRow>) -> Self {
        let Sealed { row, mac, generation } = sealed;
        let what = format!("usage of key {} version {}", row.key_uid, row.version);
        Self { input: row.mac_input(*generation), mac: *mac, generation: *generation, what }
    }

    pub(super) fn history(sealed: &Sealed<HistoryRow>) -> Self {
        let Sealed { row, mac, generation } = sealed;
        let what = format!("history of key {}, revision {}", row.key_uid, row.revision);
        Self { input: row.mac_input(*generation), mac: *mac, generation: *generation, what }
    }

    pub(super) fn consumer(sealed: &Sealed<ConsumerRow>) -> Self {
        let Sealed { row, mac, generation } = sealed;
        let what = format!("consumer `{}` of key {}", row.consumer_id, row.key_uid);
        Self { input: row.mac_input(*generation), mac: *mac, generation: *generation, what }
    }

    pub(super) fn alias(sealed: &Sealed<AliasRow>) -> Self {
        let Sealed { row, mac, generation } = sealed;
        let what = format!("alias `{}`", row.name);
        Self { input: row.mac_input(*generation), mac: *mac, generation: *generation, what }
    }

    pub(super) fn import_job(sealed: &Sealed<ImportJobRow>) -> Self {
        let Sealed { row, mac, generation } = sealed;
        let what = format!("an import job of `{}`", row.key);
        Self { input: row.mac_input(*generation), mac: *mac, generation: *generation, what }
    }

    pub(super) fn manifest(sealed: &Sealed<Manifest>) -> Self {
        let Sealed { row, mac, generation } = sealed;
        let what = format!("manifest of `{}`", row.tenant);
        Self { input: row.mac_input(*generation), mac: *mac, generation: *generation, what }
    }

    pub(super) fn counter(sealed: &Sealed<CounterRow>) -> Self {
        let Sealed { row, mac, generation } = sealed;
        let what = format!("counter of key {} version {}", row.key_uid, row.version);
        Self { input: row.mac_input(*generation), mac: *mac, generation: *generation, what }
    }
}

impl Shared {
    /// Verifies row MACs, with one HSM call a root generation.
    pub(super) async fn verify(&self, mut checks: Vec<Check>) -> Result<(), KeyringError> {
        checks.sort_by_key(|check| check.generation);
        for group in checks.chunk_by_mut(|a, b| a.generation == b.generation) {
            let Some(generation) = group.first().map(|check| check.generation) else { continue };
            if !(self.config.oldest..=self.config.generation).contains(&generation) {
                let what = group.first().map_or("", |check| &*check.what);
                let detail = format!("{what}: root generation {generation} is not open");
                return Err(self.integrity(detail));
            }
            let inputs = group.iter_mut().map(|check| std::mem::take(&mut check.input)).collect();
            let macs = self.hsm.mac(generation, inputs, self.load_deadline()).await?;
            if macs.len() != group.len() {
                return Err(KeyringError::Bug { reason: "the hsm gave another number of MACs" });
            }
            for (check, mac) in group.iter().zip(macs) {
                if !equal_in_constant_time(&check.mac.0, &mac.0) {
                    return Err(self.integrity(format!("{} has another MAC", check.what)));
                }
            }
        }
        Ok(())
    }

    /// Raises the alert and makes the error.
    pub(super) fn integrity(&self, detail: String) -> KeyringError {
        tracing::error!(alert = "key_integrity", detail, "a row or key failed its integrity check");
        self.counters.integrity_failures.increment();
        KeyringError::Integrity { detail }
    }

    pub(super) async fn load_key(&self, name: KeyName) -> Result<Arc<CachedKey>, KeyringError> {
        self.counters.key_loads.increment();
        let seen = self.cache.epoch();
        let stored = self.store.key(KeyRef::Name(name.clone()), VersionChoice::Primary).await;
        let stored = match self.damaged(stored)? {
            Some(stored) => stored.key,
            None => return Err(KeyringError::KeyNotFound(name)),
        };
        if stored.row.name != name {
            return Err(self.integrity(format!("`{name}` reads as `{}`", stored.row.name)));
        }
        self.verify(vec![Check::key(&stored)]).await?;
        let key = Arc::new(CachedKey::new(stored));
        self.cache.admit_key(seen, &key);
        Ok(key)
    }

    pub(super) async fn load_alias(&self, name: AliasName) -> Result<Arc<AliasRow>, KeyringError> {
        self.counters.alias_loads.increment();
        let seen = self.cache.epoch();
        let Sealed { row, .. } = self.read_alias(&name).await?;
        let alias = Arc::new(row);
        self.cache.admit_alias(seen, &alias);
        Ok(alias)
    }

    /// Reads and verifies the row of an alias.
    pub(super) async fn read_alias(
        &self,
        name: &AliasName,
    ) -> Result<Sealed<AliasRow>, KeyringError> {
        let found = self.damaged(self.store.aliases(AliasQuery::Name(name.clone())).await)?;
        let Some(alias) = found.into_iter().next() else {
            return Err(KeyringError::AliasNotFound(name.clone()));
        };
        if alias.row.name != *name || alias.row.key.tenant() != name.tenant() {
            return Err(self.integrity(format!("`{name}` reads as `{}`", alias.row.name)));
        }
        self.verify(vec![Check::alias(&alias)]).await?;
        Ok(alias)
    }

    /// Reads and verifies one version row.
    pub(super) async fn read_version(
        &self,
        key: &KeyName,
        id: (KeyUid, KeyVersion),
    ) -> Result<Sealed<VersionRow>, KeyringError> {
        let (uid, number) = id;
        let stored = self.store.key(KeyRef::Uid(uid), VersionChoice::Number(number)).await;
        let stored = self.damaged(stored)?.ok_or_else(|| {
            // The key row was there a moment ago, and keys are never deleted.
            self.integrity(format!("key {uid} has vanished"))
        })?;
        let Some(version) = stored.version else {
            return Err(KeyringError::VersionNotFound(VersionName::new(key.clone(), number)));
        };
        if (version.row.key_uid, version.row.version) != id {
            return Err(self.integrity(format!("key {uid} version {number} reads as another")));
        }
        self.verify(vec![Check::version(&version)]).await?;
        Ok(version)
    }

    pub(super) async fn load_version(
        self: Arc<Self>,
        key: Arc<CachedKey>,
        number: KeyVersion,
    ) -> Result<Arc<LoadedVersion>, KeyringError> {
        let seen = self.cache.epoch();
        let uid = key.row.uid;
        let stored = self.read_version(&key.row.name, (uid, number)).await;
        let Sealed { row, generation, mac: _ } = match stored {
            // The primary always exists: a row that is gone was taken away.
            Err(KeyringError::VersionNotFound(_)) if number <= key.row.latest => {
                return Err(self.integrity(format!("key {uid} version {number} has vanished")));
            }
            other => other?,
        };
        let hsm_key = match row.state {
            VersionState::Active | VersionState::Deactivated | VersionState::Compromised => {
                Some(self.load_material(&row, generation).await?)
            }
            VersionState::PreActivation
            | VersionState::Suspended
            | VersionState::DestroyScheduled
            | VersionState::Destroyed => None,
        };
        let name = VersionName::new(key.row.name.clone(), number);
        let loaded = Arc::new(LoadedVersion {
            lease: Arc::new(Lease::new(uid, &name)),
            uses: LoadedUses::new((uid, number)),
            name_text: name.to_string().into(),
            key: hsm_key,
            told_of_period: Told::default(),
            told_of_recipients: Told::default(),
            row,
        });
        self.admit_version(seen, &loaded);
        Ok(loaded)
    }

    /// Caches a version, and gives back the lease of the one that has to go. When that is this very one, as it was read
    /// before an invalidation, its lease is closed before it is used: those who wait for it take one invocation each.
    fn admit_version(&self, seen: Epoch, loaded: &Arc<LoadedVersion>) {
        let Some(out) = self.cache.admit_version(seen, loaded) else { return };
        if !Arc::ptr_eq(&out, loaded) {
            self.counters.evictions.increment();
        }
        drop(self.ledger.give_back(&out.lease));
    }

    /// Loads the key of a version and verifies its check value, whatever its state: before it becomes the primary.
    pub(super) async fn prove_material(
        &self,
        version: &Sealed<VersionRow>,
    ) -> Result<(), KeyringError> {
        self.load_material(&version.row, version.generation).await.map(drop)
    }

    async fn load_material(
        &self,
        row: &VersionRow,
        generation: RootGeneration,
    ) -> Result<HsmKey, KeyringError> {
        self.counters.version_loads.increment();
        let source = KeySource {
            key_uid: row.key_uid,
            version: row.version,
            generation,
            material: row.material.clone(),
            check: row.check.clone(),
        };
        let loaded = self.hsm.load_key(source, self.load_deadline()).await;
        loaded.map_err(|error| match error {
            HsmError::KeyIntegrity { detail } => self.integrity(detail),
            HsmError::ResidentMissing => self.integrity(format!(
                "the token object of key {} version {} is missing",
                row.key_uid, row.version
            )),
            other => KeyringError::Hsm(other),
        })
    }
}
