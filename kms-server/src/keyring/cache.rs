//! What is loaded: key rows and aliases by name, versions by uid and number, both bounded, least recently used out first.
//!
//! Invariant: a row that was read before an invalidation is never cached after it; `admit` compares the epoch that the
//! reader saw. Test: `what_was_read_before_an_invalidation_is_not_cached`.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kms_core::alias::AliasRow;
use kms_core::id::{KeyUid, KeyVersion};
use kms_core::name::{AliasName, KeyName};
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
    aliases: LruCache<AliasName, Arc<AliasRow>>,
    versions: LruCache<(KeyUid, KeyVersion), Arc<LoadedVersion>>,
}

impl Cache {
    pub(super) fn new(max_keys: NonZeroUsize, max_versions: NonZeroUsize) -> Self {
        Self(Mutex::new(Inner {
            epoch: 0,
            keys: LruCache::new(max_keys),
            // One a key, as a rule.
            aliases: LruCache::new(max_keys),
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

    pub(super) fn alias(&self, name: &AliasName) -> Option<Arc<AliasRow>> {
        self.lock().aliases.get(name).map(Arc::clone)
    }

    pub(super) fn admit_alias(&self, seen: Epoch, alias: &Arc<AliasRow>) {
        let mut inner = self.lock();
        if inner.epoch == seen.0 {
            inner.aliases.push(alias.name.clone(), Arc::clone(alias));
        }
    }

    /// Drops an alias.
    pub(super) fn invalidate_alias(&self, name: &AliasName) {
        let mut inner = self.lock();
        inner.epoch += 1;
        inner.aliases.pop(name);
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
        inner.aliases.clear();
        std::iter::from_fn(|| inner.versions.pop_lru()).map(|(_, version)| version).collect()
    }

    pub(super) fn len(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.keys.len(), inner.versions.len())
    }
}

#[cfg(test)]
mod tests {
    use kms_core::name::VersionName;

    use super::super::lease::Lease;
    use super::*;
    use crate::store::suite::new_key;

    fn cache() -> Cache {
        Cache::new(NonZeroUsize::MIN, NonZeroUsize::MIN)
    }

    fn key(number: u8) -> Arc<CachedKey> {
        let sealed = new_key(number).key;
        Arc::new(CachedKey {
            name_text: sealed.row.name.to_string().into(),
            context_hashed: false,
            mac: sealed.mac,
            row: sealed.row,
        })
    }

    fn version(number: u8) -> Arc<LoadedVersion> {
        let name = VersionName::new(key(number).row.name.clone(), KeyVersion::FIRST);
        let row = new_key(number).version.row;
        let lease = Arc::new(Lease::new(row.key_uid, &name));
        Arc::new(LoadedVersion {
            row,
            name_text: name.to_string().into(),
            key: None,
            uses: crate::keyring::use_log::LoadedUses::new(lease.id()),
            lease,
            told_of_period: crate::keyring::usage::Told::default(),
            told_of_recipients: crate::keyring::usage::Told::default(),
        })
    }

    /// Whether the key and the version 1 told apart by `number` are cached.
    fn cached(cache: &Cache, number: u8) -> (bool, bool) {
        let row = &key(number).row;
        let id = (row.uid, KeyVersion::FIRST);
        (cache.key(&row.name).is_some(), cache.version(id).is_some())
    }

    #[test]
    fn what_was_read_before_an_invalidation_is_not_cached() {
        let invalidations: [fn(&Cache); 3] = [
            |cache| drop(cache.invalidate(&key(1).row.name, key(1).row.uid, &[KeyVersion::FIRST])),
            // Which key it is for does not matter: the reader's row may be about to be the next.
            |cache| drop(cache.invalidate(&key(2).row.name, key(2).row.uid, &[])),
            |cache| drop(cache.clear()),
        ];
        for invalidate in invalidations {
            let cache = cache();
            let (key, version) = (key(1), version(1));
            let seen = cache.epoch();
            invalidate(&cache);
            cache.admit_key(seen, &key);
            let out = cache.admit_version(seen, &version);
            assert!(out.is_some_and(|out| Arc::ptr_eq(&out, &version)), "it is given back");
            assert_eq!(cached(&cache, 1), (false, false));
            assert_eq!(cache.len(), (0, 0));

            let seen = cache.epoch();
            cache.admit_key(seen, &key);
            assert!(cache.admit_version(seen, &version).is_none());
            assert_eq!(cached(&cache, 1), (true, true), "what was read after it is");
        }
    }

    #[test]
    fn an_alias_is_cached_until_it_is_invalidated() {
        let alias = Arc::new(crate::store::suite::alias("a", 1, 1).row);
        let invalidations: [fn(&Cache, &AliasName); 3] = [
            |cache, name| cache.invalidate_alias(name),
            |cache, _| drop(cache.clear()),
            // Whatever changes meanwhile: the reader's row may be about to be the next.
            |cache, _| drop(cache.invalidate(&key(2).row.name, key(2).row.uid, &[])),
        ];
        for (number, invalidate) in invalidations.into_iter().enumerate() {
            let cache = cache();
            let seen = cache.epoch();
            invalidate(&cache, &alias.name);
            cache.admit_alias(seen, &alias);
            assert_eq!(cache.alias(&alias.name), None, "{number}");
            cache.admit_alias(cache.epoch(), &alias);
            assert_eq!(cache.alias(&alias.name), Some(Arc::clone(&alias)));
            invalidate(&cache, &alias.name);
            assert_eq!(cache.alias(&alias.name).is_some(), number == 2, "{number}");
        }
    }

    #[test]
    fn an_invalidation_drops_what_is_cached_and_nothing_else() {
        let cache =
            Cache::new(NonZeroUsize::MIN.saturating_add(1), NonZeroUsize::MIN.saturating_add(1));
        for number in [1, 2] {
            cache.admit_key(cache.epoch(), &key(number));
            assert!(cache.admit_version(cache.epoch(), &version(number)).is_none());
        }
        let row = key(1).row.clone();
        let dropped = cache.invalidate(&row.name, row.uid, &[KeyVersion::FIRST]);
        assert_eq!(dropped.len(), 1);
        assert_eq!((cached(&cache, 1), cached(&cache, 2)), ((false, false), (true, true)));
    }

    #[test]
    fn the_bound_holds_and_the_version_that_goes_is_given_back() {
        let cache = cache();
        for number in [1, 2] {
            cache.admit_key(cache.epoch(), &key(number));
        }
        let (first, second) = (version(1), version(2));
        assert!(cache.admit_version(cache.epoch(), &first).is_none());
        let out = cache.admit_version(cache.epoch(), &second);
        assert!(out.is_some_and(|out| Arc::ptr_eq(&out, &first)));
        assert_eq!((cached(&cache, 1), cached(&cache, 2)), ((false, false), (true, true)));
        assert_eq!(cache.len(), (1, 1));
    }
}
