//! What is loaded: key rows by name, versions by uid and number, both bounded, least recently used out first.
//!
//! Invariant: a row that was read before an invalidation is never cached after it; `admit` compares the epoch that the
//! reader saw. Test: `what_was_read_before_an_invalidation_is_not_cached`.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kms_core::id::{KeyUid, KeyVersion};
use kms_core::name::KeyName;
use lru::LruCache;

use super::load::{CachedKey, LoadedVersion};

/// Counts invalidations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Epoch(u64);

/// The cache. Its lock is held for a lookup, never across an await.
#[derive(Debug)]
pub(super) struct Cache(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    epoch: u64,
    keys: LruCache<KeyName, Arc<CachedKey>>,
    versions: LruCache<(KeyUid, KeyVersion), Arc<LoadedVersion>>,
}

impl Cache {
    pub(super) fn new(max_keys: NonZeroUsize, max_versions: NonZeroUsize) -> Self {
        Self(Mutex::new(Inner {
            epoch: 0,
            keys: LruCache::new(max_keys),
            versions: LruCache::new(max_versions),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the epoch to show at [`Cache::admit_key`]; read it before the store is read.
    pub(super) fn epoch(&self) -> Epoch {
        Epoch(self.lock().epoch)
    }

    pub(super) fn key(&self, name: &KeyName) -> Option<Arc<CachedKey>> {
        self.lock().keys.get(name).map(Arc::clone)
    }

    pub(super) fn version(&self, id: (KeyUid, KeyVersion)) -> Option<Arc<LoadedVersion>> {
        self.lock().versions.get(&id).map(Arc::clone)
    }

    pub(super) fn admit_key(&self, seen: Epoch, key: &Arc<CachedKey>) {
        let mut inner = self.lock();
        if inner.epoch == seen.0 {
            inner.keys.push(key.row.name.clone(), Arc::clone(key));
        }
    }

    /// Returns the version that had to go: the least recently used one, or this one when it is out of date.
    pub(super) fn admit_version(
        &self,
        seen: Epoch,
        version: &Arc<LoadedVersion>,
    ) -> Option<Arc<LoadedVersion>> {
        let mut inner = self.lock();
        if inner.epoch != seen.0 {
            return Some(Arc::clone(version));
        }
        let id = (version.row.key_uid, version.row.version);
        inner.versions.push(id, Arc::clone(version)).map(|(_, out)| out)
    }

    /// Drops a key row and the given versions of it; returns the versions that were loaded.
    pub(super) fn invalidate(
        &self,
        name: &KeyName,
        uid: KeyUid,
        versions: &[KeyVersion],
    ) -> Vec<Arc<LoadedVersion>> {
        let mut inner = self.lock();
        inner.epoch += 1;
        inner.keys.pop(name);
        versions.iter().filter_map(|number| inner.versions.pop(&(uid, *number))).collect()
    }

    /// Drops everything; returns the versions that were loaded.
    pub(super) fn clear(&self) -> Vec<Arc<LoadedVersion>> {
        let mut inner = self.lock();
        inner.epoch += 1;
        inner.keys.clear();
        std::iter::from_fn(|| inner.versions.pop_lru()).map(|(_, version)| version).collect()
    }

    pub(super) fn len(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.keys.len(), inner.versions.len())
    }
}
