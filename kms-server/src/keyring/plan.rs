//! What is to become of one counter: the changes that wait for it, applied to its row.

use std::sync::Arc;

use kms_core::id::Revision;
use kms_core::journal::{Event, Subject, reached};
use kms_core::key::{CounterRow, MAX_INVOCATIONS};
use kms_core::name::KeyName;
use tokio::sync::oneshot;

use super::KeyringError;
use super::lease::{Id, LARGEST_LEASE, Lease};

type Answer = oneshot::Sender<Result<(), KeyringError>>;
pub(super) type Answered = oneshot::Receiver<Result<(), KeyringError>>;

/// A change that waits for its answer.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) lease: Arc<Lease>,
    pub(super) kind: Kind,
    answer: Answer,
}

/// What a change does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Takes the next block, for all who use the version.
    Block,
    /// Takes one invocation, for one who uses a version that is not cached any more.
    One,
    /// Returns so many.
    Return(u64),
}

impl Change {
    /// Makes a change, and the place where its answer will be.
    pub(super) fn new(lease: &Arc<Lease>, kind: Kind) -> (Self, Answered) {
        let (answer, answered) = oneshot::channel();
        (Self { lease: Arc::clone(lease), kind, answer }, answered)
    }

    pub(super) fn id(&self) -> Id {
        self.lease.id()
    }

    pub(super) fn answer(self, result: Result<(), KeyringError>) {
        // Nobody waits any more when this fails.
        let _ = self.answer.send(result);
    }
}

/// A row, and the changes that made it.
#[derive(Debug)]
pub(super) struct Plan {
    /// The revision that the row takes the place of.
    pub(super) expected: Revision,
    pub(super) row: CounterRow,
    /// What was leased before.
    before: u64,
    /// Each with the invocations that it takes.
    pub(super) changes: Vec<(Change, u64)>,
}

impl Plan {
    /// Applies changes to a row; those that take nothing are answered at once.
    pub(super) fn new(mut row: CounterRow, waiting: Vec<Change>) -> Option<Self> {
        let (expected, before) = (row.revision, row.leased);
        // The store takes more for tampering. What is beyond counts as used.
        let lowest = row.leased.saturating_sub(LARGEST_LEASE);
        let mut changes = Vec::with_capacity(waiting.len());
        for change in waiting {
            let wanted = match change.kind {
                Kind::Block => change.lease.wanted(),
                Kind::One => 1,
                Kind::Return(count) => {
                    row.leased = row.leased.saturating_sub(count).max(lowest);
                    changes.push((change, 0));
                    continue;
                }
            };
            let granted = wanted.min(MAX_INVOCATIONS.saturating_sub(row.leased));
            if granted == 0 {
                // Who wanted nothing looks again: there is some left, or the lease was closed meanwhile.
                change.answer(if wanted == 0 { Ok(()) } else { Err(KeyringError::Exhausted) });
                continue;
            }
            row.leased += granted;
            changes.push((change, granted));
        }
        row.revision = row.revision.next();
        (!changes.is_empty()).then_some(Self { expected, row, before, changes })
    }

    /// Returns what the state journal must be told before the row is written: that a power of two is passed.
    pub(super) fn reached(&self) -> Option<Event> {
        let count = reached(self.before, self.row.leased)?;
        let tenant = self.key()?.tenant().clone();
        let CounterRow { key_uid, version, .. } = self.row;
        Some(Event::CountReached { subject: Subject { tenant, key_uid, version }, count })
    }

    /// Returns the key; `None` never: a plan has changes.
    pub(super) fn key(&self) -> Option<&KeyName> {
        self.changes.first().map(|(change, _)| change.lease.key())
    }

    /// Answers all changes alike, and gives none of them anything.
    pub(super) fn refuse(self, error: &KeyringError) {
        for (change, _) in self.changes {
            change.answer(Err(error.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use kms_core::id::KeyUid;

    use super::*;
    use crate::keyring::FIRST_LEASE;

    fn lease() -> Arc<Lease> {
        let name = "tenants/t/keys/k/versions/1".parse().unwrap();
        Arc::new(Lease::new(KeyUid::from_random([1; 16]), &name))
    }

    /// Plans changes of one lease on a counter; returns what is leased after it, and the places of the answers.
    fn plan(lease: &Arc<Lease>, leased: u64, kinds: &[Kind]) -> (Option<u64>, Vec<Answered>) {
        let (key_uid, version) = lease.id();
        let row = CounterRow { key_uid, version, leased, revision: Revision::FIRST };
        let (changes, answers) = kinds.iter().map(|kind| Change::new(lease, *kind)).unzip();
        (Plan::new(row, changes).map(|plan| plan.row.leased), answers)
    }

    #[test]
    fn one_lease_is_given_back_and_what_is_beyond_counts_as_used() {
        let leased = 10 * LARGEST_LEASE;
        let left = |returns: &[u64]| {
            let kinds: Vec<_> = returns.iter().map(|count| Kind::Return(*count)).collect();
            plan(&lease(), leased, &kinds).0
        };
        assert_eq!(left(&[LARGEST_LEASE]), Some(9 * LARGEST_LEASE));
        assert_eq!(left(&[LARGEST_LEASE + 1]), Some(9 * LARGEST_LEASE));
        assert_eq!(left(&[LARGEST_LEASE - 1, 1]), Some(9 * LARGEST_LEASE));
        assert_eq!(left(&[LARGEST_LEASE, 1]), Some(9 * LARGEST_LEASE), "together");
    }

    #[test]
    fn what_is_returned_can_be_taken_in_the_same_commit() {
        let kinds = [Kind::Return(5), Kind::One, Kind::Block];
        assert_eq!(plan(&lease(), 100, &kinds).0, Some(96 + FIRST_LEASE));
    }

    #[test]
    fn the_last_invocations_are_taken_and_no_more() {
        let (leased, mut answers) = plan(&lease(), MAX_INVOCATIONS - 1, &[Kind::One, Kind::One]);
        assert_eq!(leased, Some(MAX_INVOCATIONS));
        assert!(answers[0].try_recv().is_err(), "answered when it is written");
        assert_eq!(answers[1].try_recv(), Ok(Err(KeyringError::Exhausted)));
    }

    #[test]
    fn a_block_for_a_lease_that_was_closed_meanwhile_is_not_taken() {
        let lease = lease();
        lease.close();
        let (leased, mut answers) = plan(&lease, 100, &[Kind::Block]);
        assert_eq!((leased, answers[0].try_recv()), (None, Ok(Ok(()))));
    }
}
