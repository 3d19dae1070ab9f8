//! What was counted, and the list of what failed.

use serde::{Deserialize, Serialize};

use super::fault::{Failure, Fault};

/// The most failed items that are listed; more are counted only.
pub(super) const MAX_LISTED: usize = 100;

/// Counts of a run, or of a part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tally {
    /// Records that hold, or should hold, a ciphertext.
    pub(super) items: u64,
    /// Ciphertexts that are under the current version now.
    pub(super) rewrapped: u64,
    /// Ciphertexts that were already, and stayed as they were.
    pub(super) current: u64,
    /// Records with nothing in them to rewrap.
    pub(super) blank: u64,
    /// Items that failed, and were copied as they were.
    pub(super) failed: u64,
    /// The first of them.
    pub(super) failures: Vec<Failure>,
}

impl Tally {
    /// Counts an item that failed, and lists it while there is room.
    pub(super) fn fail(&mut self, line: u64, fault: &Fault) {
        self.failed += 1;
        if self.failures.len() < MAX_LISTED {
            self.failures.push(Failure::new(line, fault));
        }
    }

    /// Adds what comes after this; of the failures the first are kept.
    pub(super) fn add(&mut self, mut later: Self) {
        self.items += later.items;
        self.rewrapped += later.rewrapped;
        self.current += later.current;
        self.blank += later.blank;
        self.failed += later.failed;
        later.failures.sort_by_key(|failure| failure.line);
        self.failures.append(&mut later.failures);
        self.failures.truncate(MAX_LISTED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_failures_as_there_is_room_for_are_listed_and_one_more_is_counted() {
        let mut tally = Tally::default();
        for line in 1..=MAX_LISTED as u64 {
            tally.fail(line, &Fault::NotText);
        }
        assert_eq!(tally.failures.len(), MAX_LISTED);
        tally.fail(101, &Fault::NotText);
        let mut later = Tally::default();
        later.fail(102, &Fault::NotText);
        tally.add(later);
        assert_eq!((tally.failed, tally.failures.len()), (102, MAX_LISTED));
        assert_eq!(tally.failures.last().unwrap().line, 100);
    }
}
