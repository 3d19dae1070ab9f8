//! The keyring: keys ready for use. Stands between service and { hsm | store | audit }.
//!
//! Responsible for what is loaded: rows are verified (MAC under root `mac`, check value) on first use, kept in a bounded
//! LRU, and dropped on every write; keys that are not there are never remembered as absent. It checks states, chooses
//! versions, binds the AAD, writes and reads envelopes and counts invocations. A loaded key never leaves it: callers
//! get operations, and only against a permit. It must never try a second key.

mod cache;
mod counter_rows;
mod counters;
mod error;
mod flight;
mod lease;
mod lease_log;
mod ledger;
mod load;
mod plan;
mod reseal;
mod seal;
mod usage;
mod use_log;

#[cfg(test)]
mod ledger_tests;

pub use counters::{Counter, Counters};
pub use error::KeyringError;
pub use lease::{FIRST_LEASE, LARGEST_LEASE};
pub use lease_log::LEASE_OPERATION;
pub use ledger::ROLLOVER_AT;
pub use load::{CONTEXT_AUDIT_LABEL, CachedKey};
pub use reseal::Calls;
pub use seal::MacInput;
pub use usage::{Moving, Processing, Protecting, Rewrapping};

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kms_core::alias::AliasRow;
use kms_core::clock::Clock;
use kms_core::id::{KeyUid, KeyVersion, Randomness, RootGeneration};
use kms_core::key::{Sealed, VersionRow};
use kms_core::name::{AliasName, KeyName, VersionName};
use kms_core::usage::Uses;
use kms_hsm::Hsm;

use crate::audit::SharedAuditSink;
use crate::journal::SharedJournal;
use crate::store::{Store, StoreError};
use cache::Cache;
use counter_rows::CounterRows;
use flight::Flights;
use lease_log::LeaseLog;
use ledger::Ledger;
use load::LoadedVersion;
use use_log::UseLog;

/// How much the keyring keeps, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyringConfig {
    /// The root generation that new rows are sealed with: the highest that is pinned.
    pub generation: RootGeneration,
    /// The lowest generation that is open: rows of an older one are not believed.
    pub oldest: RootGeneration,
    /// The most key rows kept: about 1 KiB each.
    pub max_keys: NonZeroUsize,
    /// The most versions kept loaded: one HSM session object each.
    pub max_versions: NonZeroUsize,
    /// How long one load may take; longer than one caller's deadline, as many may wait for it.
    pub load_timeout: Duration,
    /// How long a version goes on after a rollover, so that callers who pin it can follow.
    pub overlap: Duration,
}

impl Default for KeyringConfig {
    fn default() -> Self {
        Self {
            generation: RootGeneration::FIRST,
            oldest: RootGeneration::FIRST,
            max_keys: NonZeroUsize::MIN.saturating_add(9_999),
            max_versions: NonZeroUsize::MIN.saturating_add(9_999),
            load_timeout: Duration::from_secs(10),
            overlap: Duration::from_mins(10),
        }
    }
}

/// The keyring; clones share it.
#[derive(Clone, Debug)]
pub struct Keyring {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    hsm: Arc<dyn Hsm>,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    config: KeyringConfig,
    cache: Cache,
    counters: Arc<Counters>,
    ledger: Arc<Ledger>,
    uses: UseLog,
    journal: SharedJournal,
    key_flights: Flights<KeyName, Result<Arc<CachedKey>, KeyringError>>,
    alias_flights: Flights<AliasName, Result<Arc<AliasRow>, KeyringError>>,
    version_flights: Flights<(KeyUid, KeyVersion), Result<Arc<LoadedVersion>, KeyringError>>,
}

impl Shared {
    fn load_deadline(&self) -> Instant {
        self.clock.monotonic() + self.config.load_timeout
    }

    /// A stored value outside its type was edited or is damaged, and rows do not vanish: the same alert as for a wrong
    /// MAC.
    fn damaged<T>(&self, read: Result<T, StoreError>) -> Result<T, KeyringError> {
        read.map_err(|error| match error {
            StoreError::Damaged { detail } => self.integrity(detail),
            StoreError::NotFound => self.integrity("a row has vanished".into()),
            other => KeyringError::Store(other),
        })
    }
}

/// The answer when a task that loads died.
const GONE: KeyringError = KeyringError::Bug { reason: "a load died" };

impl Keyring {
    /// Makes an empty keyring.
    pub fn new(
        hsm: Arc<dyn Hsm>,
        store: Arc<dyn Store>,
        audit: SharedAuditSink,
        clock: Arc<dyn Clock>,
        randomness: Arc<dyn Randomness>,
        journal: SharedJournal,
        config: KeyringConfig,
    ) -> Self {
        let counters = Arc::new(Counters::default());
        let rows = CounterRows {
            hsm: Arc::clone(&hsm),
            store: Arc::clone(&store),
            clock: Arc::clone(&clock),
            generations: config.oldest..=config.generation,
            timeout: config.load_timeout,
            counters: Arc::clone(&counters),
        };
        let log = LeaseLog { audit, clock: Arc::clone(&clock), randomness };
        let shared = Shared {
            hsm,
            store,
            clock,
            config,
            cache: Cache::new(config.max_keys, config.max_versions),
            counters,
            ledger: Arc::new(Ledger::new(rows, log, Arc::clone(&journal))),
            uses: UseLog::default(),
            journal,
            key_flights: Flights::default(),
            alias_flights: Flights::default(),
            version_flights: Flights::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Returns the configuration.
    pub fn config(&self) -> &KeyringConfig {
        &self.shared.config
    }

    /// Returns the counters.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.shared.counters
    }

    /// Returns how many key rows and versions are loaded.
    pub fn loaded(&self) -> (usize, usize) {
        self.shared.cache.len()
    }

    /// Returns the verified row of a key.
    ///
    /// # Errors
    /// [`KeyringError::KeyNotFound`] when there is none, [`KeyringError::Integrity`] when it was edited.
    pub async fn key(&self, name: &KeyName) -> Result<Arc<CachedKey>, KeyringError> {
        if let Some(key) = self.shared.cache.key(name) {
            return Ok(key);
        }
        let start = || {
            let (shared, name) = (Arc::clone(&self.shared), name.clone());
            async move { shared.load_key(name).await }
        };
        self.shared.key_flights.join(name.clone(), start).await.unwrap_or(Err(GONE))
    }

    /// Returns the verified row of an alias.
    ///
    /// # Errors
    /// [`KeyringError::AliasNotFound`] when there is none, [`KeyringError::Integrity`] when it was edited.
    pub async fn alias(&self, name: &AliasName) -> Result<Arc<AliasRow>, KeyringError> {
        if let Some(alias) = self.shared.cache.alias(name) {
            return Ok(alias);
        }
        let start = || {
            let (shared, name) = (Arc::clone(&self.shared), name.clone());
            async move { shared.load_alias(name).await }
        };
        self.shared.alias_flights.join(name.clone(), start).await.unwrap_or(Err(GONE))
    }

    /// Reads the verified row of an alias, fresh from the store.
    ///
    /// # Errors
    /// As for [`Keyring::alias`].
    pub async fn alias_row(&self, name: &AliasName) -> Result<Sealed<AliasRow>, KeyringError> {
        self.shared.read_alias(name).await
    }

    /// Forgets an alias: to be called after every write of it.
    pub fn invalidate_alias(&self, name: &AliasName) {
        self.shared.cache.invalidate_alias(name);
        self.shared.alias_flights.forget(name);
    }

    /// Reads the verified row of a version, fresh from the store; its key is not loaded.
    ///
    /// # Errors
    /// [`KeyringError::VersionNotFound`] when there is none, [`KeyringError::Integrity`] when it was edited.
    pub async fn version_row(
        &self,
        key: &CachedKey,
        number: KeyVersion,
    ) -> Result<Sealed<VersionRow>, KeyringError> {
        if number > key.row.latest {
            let name = VersionName::new(key.row.name.clone(), number);
            return Err(KeyringError::VersionNotFound(name));
        }
        self.shared.read_version(&key.row.name, (key.row.uid, number)).await
    }

    async fn version(
        &self,
        key: &Arc<CachedKey>,
        number: KeyVersion,
    ) -> Result<Arc<LoadedVersion>, KeyringError> {
        let id = (key.row.uid, number);
        if let Some(version) = self.shared.cache.version(id) {
            return Ok(version);
        }
        if number > key.row.latest {
            let name = VersionName::new(key.row.name.clone(), number);
            return Err(KeyringError::VersionNotFound(name));
        }
        let start = || Arc::clone(&self.shared).load_version(Arc::clone(key), number);
        self.shared.version_flights.join(id, start).await.unwrap_or(Err(GONE))
    }

    /// Forgets a key row and some of its versions: to be called after every write of them.
    pub fn invalidate(&self, name: &KeyName, uid: KeyUid, versions: &[KeyVersion]) {
        let dropped = self.shared.cache.invalidate(name, uid, versions);
        self.shared.key_flights.forget(name);
        for number in versions {
            self.shared.version_flights.forget(&(uid, *number));
        }
        for version in dropped {
            self.shared.ledger.give_back(&version.lease);
        }
    }

    /// Returns the keys whose primary has seen 2^31 invocations, and that version; each is told once a lease.
    pub fn due_rollovers(&self) -> BTreeMap<KeyName, KeyVersion> {
        self.shared.ledger.due()
    }

    /// Loads the key of a version and verifies its check value, whatever its state.
    ///
    /// # Errors
    /// [`KeyringError::Integrity`] when it is not there or another; and what the HSM cannot do.
    pub async fn prove_material(&self, version: &Sealed<VersionRow>) -> Result<(), KeyringError> {
        self.shared.prove_material(version).await
    }

    /// Waits until [`Keyring::due_rollovers`] may have something.
    pub async fn wait_due_rollover(&self) {
        self.shared.ledger.wait_due().await;
    }

    /// Writes down how versions were used since the last time.
    ///
    /// # Errors
    /// When the store or the HSM fails; what was counted waits for the next time.
    pub async fn write_uses(&self) -> Result<(), KeyringError> {
        // A task of its own: what is taken out of memory must not go with a caller who goes away.
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move { shared.write_uses().await }).await.unwrap_or(Err(GONE))
    }

    /// Returns how a version was used, until now as far as this server knows.
    ///
    /// # Errors
    /// As for [`Keyring::write_uses`]; [`KeyringError::Integrity`] when the row was edited.
    pub async fn uses(&self, uid: KeyUid, version: KeyVersion) -> Result<Uses, KeyringError> {
        self.write_uses().await?;
        let row = self.shared.read_uses((uid, version)).await?;
        Ok(row.map(|row| row.uses).unwrap_or_default())
    }

    /// Returns how versions were used as far as is written down, in their order; `None` of one that never was.
    ///
    /// # Errors
    /// [`KeyringError::Integrity`] when a row was edited.
    pub async fn uses_of(
        &self,
        versions: &[(KeyUid, KeyVersion)],
    ) -> Result<Vec<Option<Uses>>, KeyringError> {
        let rows = self.shared.read_uses_of(versions).await?;
        Ok(rows.into_iter().map(|row| row.map(|row| row.uses)).collect())
    }

    /// Drops everything, writes down all uses, and returns the unused rests of all leases to the store.
    ///
    /// # Errors
    /// The first rest that could not be returned; it counts as used then.
    pub async fn drain(&self) -> Result<(), KeyringError> {
        let returns: Vec<_> = self
            .shared
            .cache
            .clear()
            .iter()
            .map(|version| self.shared.ledger.give_back(&version.lease))
            .collect();
        self.write_uses().await?;
        for returned in returns {
            returned.await.unwrap_or(Err(GONE))?;
        }
        Ok(())
    }
}
