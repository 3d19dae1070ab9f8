//! A lease: invocations of one key version that were counted before they are used.
//!
//! Invariant: no invocation without a lease. Tests: `kms-server/tests/service/leases.rs`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use kms_core::audit::CounterStamp;
use kms_core::id::{KeyUid, KeyVersion};
use kms_core::key::CounterRow;
use kms_core::name::{KeyName, VersionName};

/// The first lease of a version: a restart under light use wastes few.
pub const FIRST_LEASE: u64 = 1 << 10;
/// The largest lease: a store write every million invocations; 4,096 lost ones exhaust a version. The store lets a counter
/// go down by no more than this at once.
pub const LARGEST_LEASE: u64 = 1 << 20;

/// Names a counter.
pub(super) type Id = (KeyUid, KeyVersion);

/// What is left of a leased block, and what is known of the counter that it came from.
#[derive(Debug)]
pub(super) struct Lease {
    id: Id,
    key: KeyName,
    left: AtomicU64,
    next_block: AtomicU64,
    closed: AtomicBool,
    /// The newest row of the counter that was read or written for this lease.
    newest: Mutex<Option<CounterStamp>>,
}

impl Lease {
    pub(super) fn new(uid: KeyUid, name: &VersionName) -> Self {
        Self {
            id: (uid, name.version()),
            key: name.key().clone(),
            left: AtomicU64::new(0),
            next_block: AtomicU64::new(FIRST_LEASE),
            closed: AtomicBool::new(false),
            newest: Mutex::default(),
        }
    }

    pub(super) const fn id(&self) -> Id {
        self.id
    }

    pub(super) const fn key(&self) -> &KeyName {
        &self.key
    }

    pub(super) fn take_one(&self) -> bool {
        self.left
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1))
            .is_ok()
    }

    /// Returns how many invocations to ask for: none while some are left, so that no more than one block is ever held,
    /// and none once the lease is closed.
    pub(super) fn wanted(&self) -> u64 {
        if self.is_closed() || self.left.load(Ordering::Acquire) > 0 {
            0
        } else {
            self.next_block.load(Ordering::Acquire)
        }
    }

    pub(super) fn credit(&self, granted: u64) {
        self.left.fetch_add(granted, Ordering::AcqRel);
        let next = self.next_block.load(Ordering::Acquire).saturating_mul(2).min(LARGEST_LEASE);
        self.next_block.store(next, Ordering::Release);
    }

    /// Whether the version is not cached any more: what is credited from now on, nobody gives back by itself.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Closes the lease; returns what was left of it.
    pub(super) fn close(&self) -> u64 {
        self.closed.store(true, Ordering::Release);
        self.left.swap(0, Ordering::AcqRel)
    }

    /// Takes note of a verified row of the counter. Revisions only grow, whoever writes them, and each is of one row only.
    ///
    /// # Errors
    /// The newest row known, when this one is older than it or another of the same revision.
    pub(super) fn note(&self, row: &CounterRow) -> Result<(), CounterStamp> {
        let stamp = CounterStamp { revision: row.revision, leased: row.leased };
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        match *newest {
            Some(known) if stamp.revision <= known.revision && stamp != known => Err(known),
            _ => {
                *newest = Some(stamp);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kms_core::id::Revision;

    use super::*;

    fn lease() -> Lease {
        let name = "tenants/t/keys/k/versions/1".parse().unwrap();
        Lease::new(KeyUid::from_random([1; 16]), &name)
    }

    #[test]
    fn a_lease_gives_what_was_credited_and_not_one_more() {
        let lease = lease();
        assert!(!lease.take_one());
        lease.credit(2);
        assert!(lease.take_one() && lease.take_one());
        assert!(!lease.take_one());
    }

    #[test]
    fn blocks_double_from_2_to_the_10_up_to_2_to_the_20() {
        let lease = lease();
        let blocks: Vec<_> = (0..13)
            .map(|_| {
                let block = lease.wanted();
                lease.credit(block);
                lease.left.store(0, Ordering::Release);
                block.ilog2()
            })
            .collect();
        assert_eq!(blocks, [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 20, 20]);
    }

    #[test]
    fn a_block_is_asked_for_only_when_nothing_is_left() {
        let lease = lease();
        lease.credit(1);
        assert_eq!(lease.wanted(), 0);
        assert!(lease.take_one());
        assert_eq!(lease.wanted(), 2 * FIRST_LEASE);
    }

    #[test]
    fn a_closed_lease_takes_no_blocks() {
        let lease = lease();
        lease.credit(7);
        assert_eq!(lease.close(), 7);
        assert_eq!((lease.wanted(), lease.close()), (0, 0));
        assert!(!lease.take_one());
    }

    #[test]
    fn revisions_grow_and_each_is_of_one_row() {
        let lease = lease();
        let note = |revision, leased| {
            let (key_uid, version) = lease.id();
            lease.note(&CounterRow { key_uid, version, leased, revision: Revision::new(revision) })
        };
        let known = Err(CounterStamp { revision: Revision::new(7), leased: 50 });
        assert_eq!(note(7, 50), Ok(()));
        assert_eq!(note(7, 50), Ok(()), "read twice");
        assert_eq!(note(6, 50), known, "an older row");
        assert_eq!((note(7, 49), note(7, 51)), (known, known), "another of the same revision");
        assert_eq!(note(8, 49), Ok(()), "something was given back");
        assert_eq!(note(20, 90), Ok(()), "others may write too");
    }
}
