//! Counting uses: in memory on a request's path, written to the store once a minute and at the drain.
//!
//! A crash loses what was not written yet: a minute at most, unless the store is away for longer. That is said wherever
//! counts are shown. The limit of invocations does not rest on them; whether somebody still wants what is to be destroyed does,
//! and asks the leased counter too (`service/last_use.rs`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kms_core::clock::Timestamp;
use kms_core::id::Revision;
use kms_core::key::Sealed;
use kms_core::usage::{Tally, UsageRow, Uses};

use super::lease::Id;
use super::load::Check;
use super::{KeyringError, Shared};

/// The most versions whose uses wait to be written: some ten MiB. What is used beyond waits for its next use, and is lost when
/// the version is evicted before that; `uses_not_noted` says how often.
pub(super) const MAX_UNWRITTEN: usize = 65_536;
/// Rows that are written in one commit.
const BATCH: usize = 256;

/// What a version is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UseKind {
    Protect,
    Process,
    Rewrap,
    /// Refused, as its key is disabled, or its destruction is planned.
    Refused,
}

/// A tally that threads add to. Its span is that of all it ever counted: spans only widen, so that is no less true.
#[derive(Debug)]
struct Running {
    count: AtomicU64,
    first: AtomicI64,
    last: AtomicI64,
}

impl Running {
    const fn new() -> Self {
        let (count, first) = (AtomicU64::new(0), AtomicI64::new(i64::MAX));
        Self { count, first, last: AtomicI64::new(i64::MIN) }
    }

    /// Invariant: the span is widened before the count grows, so a count is never taken without its span.
    fn add(&self, now: Timestamp) {
        self.first.fetch_min(now.as_unix_ms(), Ordering::Relaxed);
        self.last.fetch_max(now.as_unix_ms(), Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Release);
    }

    fn take(&self) -> Tally {
        let count = self.count.swap(0, Ordering::AcqRel);
        if count == 0 {
            return Tally::default();
        }
        let time = |at: &AtomicI64| Timestamp::from_unix_ms(at.load(Ordering::Relaxed));
        Tally { count, span: Some((time(&self.first), time(&self.last))) }
    }
}

/// The uses of one loaded version since they were last written.
#[derive(Debug)]
pub(super) struct LoadedUses {
    id: Id,
    waits: AtomicBool,
    protect: Running,
    process: Running,
    rewrap: Running,
    refused: Running,
}

impl LoadedUses {
    pub(super) fn new(id: Id) -> Arc<Self> {
        Arc::new(Self {
            id,
            waits: AtomicBool::new(false),
            protect: Running::new(),
            process: Running::new(),
            rewrap: Running::new(),
            refused: Running::new(),
        })
    }

    fn take(&self) -> Uses {
        Uses {
            protect: self.protect.take(),
            process: self.process.take(),
            rewrap: self.rewrap.take(),
            refused: self.refused.take(),
        }
    }
}

/// What waits to be written.
#[derive(Debug, Default)]
pub(super) struct UseLog {
    used: Mutex<Vec<Arc<LoadedUses>>>,
    /// What could not be written the last time.
    left: Mutex<BTreeMap<Id, Uses>>,
    /// One writer at a time.
    writing: tokio::sync::Mutex<()>,
}

impl UseLog {
    /// Counts one use; returns whether there was room.
    pub(super) fn count(&self, uses: &Arc<LoadedUses>, kind: UseKind, now: Timestamp) -> bool {
        match kind {
            UseKind::Protect => uses.protect.add(now),
            UseKind::Process => uses.process.add(now),
            UseKind::Rewrap => uses.rewrap.add(now),
            UseKind::Refused => uses.refused.add(now),
        }
        // Invariant: counted first. A writer takes the mark away before it takes the counts, so whoever finds the mark set
        // is counted by that writer, and whoever does not puts the version on the list anew.
        if !uses.waits.swap(true, Ordering::AcqRel) {
            let mut waiting = lock(&self.used);
            if waiting.len() >= MAX_UNWRITTEN {
                // It stays counted, and is written when the version is used again and there is room.
                uses.waits.store(false, Ordering::Release);
                return false;
            }
            waiting.push(Arc::clone(uses));
        }
        true
    }

    /// Counts an attempt to use a version that was refused before it was loaded; returns whether there was room.
    pub(super) fn count_refused(&self, id: Id, now: Timestamp) -> bool {
        let mut left = lock(&self.left);
        if left.len() >= MAX_UNWRITTEN && !left.contains_key(&id) {
            return false;
        }
        let refused = Tally { count: 1, span: Some((now, now)) };
        add(&mut left, id, Uses { refused, ..Uses::default() });
        true
    }

    fn take(&self) -> BTreeMap<Id, Uses> {
        let mut all = std::mem::take(&mut *lock(&self.left));
        for uses in std::mem::take(&mut *lock(&self.used)) {
            uses.waits.store(false, Ordering::Release);
            add(&mut all, uses.id, uses.take());
        }
        all
    }

    fn put_back(&self, uses: impl IntoIterator<Item = (Id, Uses)>) {
        let mut left = lock(&self.left);
        for (id, uses) in uses {
            if left.len() < MAX_UNWRITTEN || left.contains_key(&id) {
                add(&mut left, id, uses);
            }
        }
    }
}

fn add(all: &mut BTreeMap<Id, Uses>, id: Id, uses: Uses) {
    let known = all.entry(id).or_default();
    *known = known.and(uses);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Writes what was counted. What cannot be written waits for the next time.
    pub(super) async fn write_uses(&self) -> Result<(), KeyringError> {
        let _turn = self.uses.writing.lock().await;
        let mut waiting = self.uses.take();
        waiting.retain(|_, uses| *uses != Uses::default());
        while !waiting.is_empty() {
            let rest = waiting.keys().nth(BATCH).copied().map(|end| waiting.split_off(&end));
            let batch = std::mem::replace(&mut waiting, rest.unwrap_or_default());
            if let Err(error) = self.write_batch(&batch).await {
                self.uses.put_back(batch.into_iter().chain(waiting));
                return Err(error);
            }
        }
        Ok(())
    }

    async fn write_batch(&self, batch: &BTreeMap<Id, Uses>) -> Result<(), KeyringError> {
        let known = self.known_uses(batch.keys()).await?;
        let changes = batch.iter().filter_map(|(id, uses)| {
            let row = known.get(id)?;
            let expected = row.as_ref().map_or(Revision::new(0), |row| row.revision);
            let before = row.as_ref().map(|row| row.uses).unwrap_or_default();
            let (key_uid, version) = *id;
            let (uses, revision) = (before.and(*uses), expected.next());
            Some((expected, UsageRow { key_uid, version, uses, revision }))
        });
        let changes: Vec<_> = changes.collect();
        let generation = self.config.generation;
        let inputs = changes.iter().map(|(_, row)| row.mac_input(generation)).collect();
        let macs = self.hsm.mac(generation, inputs, self.load_deadline()).await?;
        if macs.len() != changes.len() {
            return Err(KeyringError::Bug { reason: "the hsm gave another number of MACs" });
        }
        let sealed = changes
            .into_iter()
            .zip(macs)
            .map(|((expected, row), mac)| (expected, Sealed { row, mac, generation }));
        let sealed: Vec<_> = sealed.collect();
        let ids: Vec<Id> = sealed.iter().map(|(_, s)| (s.row.key_uid, s.row.version)).collect();
        let written = self.store.update_usage(sealed).await?;
        // Another server wrote the row meanwhile: added to what it wrote the next time.
        let late = ids.iter().zip(written).filter(|(_, result)| result.is_err());
        let late = late.filter_map(|(id, _)| batch.get(id).map(|uses| (*id, *uses)));
        self.uses.put_back(late);
        Ok(())
    }

    /// Reads what is known of versions, and verifies it in one call. One whose row was edited is told of and left out: the
    /// others must not wait for it.
    async fn known_uses(
        &self,
        ids: impl Iterator<Item = &Id>,
    ) -> Result<BTreeMap<Id, Option<UsageRow>>, KeyringError> {
        let mut known = BTreeMap::new();
        let (mut checks, mut stored) = (Vec::new(), Vec::new());
        for id in ids {
            match self.damaged(self.store.usage(id.0, id.1).await) {
                Ok(None) => drop(known.insert(*id, None)),
                Ok(Some(sealed)) => {
                    checks.push(Check::usage(&sealed));
                    stored.push((*id, sealed));
                }
                Err(KeyringError::Integrity { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let all_good = match self.verify(checks).await {
            Ok(()) => true,
            // Which one, is found out one by one.
            Err(KeyringError::Integrity { .. }) => false,
            Err(error) => return Err(error),
        };
        for (id, sealed) in stored {
            let own = (sealed.row.key_uid, sealed.row.version) == id;
            if all_good && own {
                known.insert(id, Some(sealed.row));
                continue;
            }
            match self.read_uses(id).await {
                Ok(row) => drop(known.insert(id, row)),
                Err(KeyringError::Integrity { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(known)
    }

    /// Reads the row of a version's uses and verifies it; `None` when it was never used.
    pub(super) async fn read_uses(&self, id: Id) -> Result<Option<UsageRow>, KeyringError> {
        Ok(self.read_uses_of(&[id]).await?.pop().flatten())
    }

    /// The same of many, in their order, verified in one call.
    pub(super) async fn read_uses_of(
        &self,
        ids: &[Id],
    ) -> Result<Vec<Option<UsageRow>>, KeyringError> {
        let (mut rows, mut checks) = (Vec::with_capacity(ids.len()), Vec::new());
        for (uid, version) in ids {
            let stored = self.damaged(self.store.usage(*uid, *version).await)?;
            if let Some(sealed) = &stored {
                if (sealed.row.key_uid, sealed.row.version) != (*uid, *version) {
                    let detail = format!("usage of key {uid} version {version} is another's");
                    return Err(self.integrity(detail));
                }
                checks.push(Check::usage(sealed));
            }
            rows.push(stored.map(|sealed| sealed.row));
        }
        self.verify(checks).await?;
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use kms_core::id::{KeyUid, KeyVersion};

    use super::*;

    fn id(number: u32) -> Id {
        (KeyUid::from_random([1; 16]), KeyVersion::new(number).unwrap())
    }

    fn time(ms: i64) -> Timestamp {
        Timestamp::from_unix_ms(ms)
    }

    #[test]
    fn uses_are_counted_once_and_by_kind() {
        let (log, uses) = (UseLog::default(), LoadedUses::new(id(1)));
        assert!(log.count(&uses, UseKind::Protect, time(5)));
        assert!(log.count(&uses, UseKind::Protect, time(9)));
        assert!(log.count(&uses, UseKind::Process, time(7)));
        let taken = log.take();
        let expected = Uses {
            protect: Tally { count: 2, span: Some((time(5), time(9))) },
            process: Tally { count: 1, span: Some((time(7), time(7))) },
            ..Uses::default()
        };
        assert_eq!(taken, BTreeMap::from([(id(1), expected)]));
        assert!(log.take().is_empty());
        assert!(log.count(&uses, UseKind::Rewrap, time(11)), "and again");
        assert!(log.count(&uses, UseKind::Refused, time(12)));
        let taken = log.take()[&id(1)];
        assert_eq!((taken.rewrap.count, taken.refused.count), (1, 1));
    }

    #[test]
    fn what_could_not_be_written_is_added_to_the_next() {
        let (log, uses) = (UseLog::default(), LoadedUses::new(id(1)));
        assert!(log.count(&uses, UseKind::Protect, time(5)));
        log.put_back(log.take());
        assert!(log.count(&uses, UseKind::Protect, time(9)));
        assert_eq!(log.take()[&id(1)].protect, Tally { count: 2, span: Some((time(5), time(9))) });
    }

    #[test]
    fn so_many_versions_wait_and_not_one_more() {
        let log = UseLog::default();
        let numbers = 1..=u32::try_from(MAX_UNWRITTEN).unwrap();
        for number in numbers {
            assert!(log.count(&LoadedUses::new(id(number)), UseKind::Protect, time(1)));
        }
        let beyond = LoadedUses::new(id(u32::MAX));
        assert!(!log.count(&beyond, UseKind::Protect, time(1)));
        assert_eq!(log.take().len(), MAX_UNWRITTEN);
        assert!(log.count(&beyond, UseKind::Protect, time(1)), "there is room again");
    }
}
