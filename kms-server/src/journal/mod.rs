//! The state journal: states that must not come back with an old database, in a file of their own.
//!
//! Responsible for the seam [`Journal`] and its implementations. An entry is on stable storage, and its number in the token,
//! before the change it tells of is made: what was acknowledged is in every copy of the file that the token's number lets pass.
//! It must never acknowledge an entry that the token's number does not cover, and never take one back.

mod error;
mod file;
mod gap;
mod scan;
mod token;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use kms_core::clock::Timestamp;
use kms_core::id::IntentId;
use kms_core::journal::Event;

pub use error::{JournalError, JournalStartError};
pub use file::{FileJournal, MAX_WAITING, Opening};
pub use gap::{Gap, InvalidGap};
pub use scan::read_entries;

/// Where states go that must not come back.
#[async_trait]
pub trait Journal: Send + Sync + fmt::Debug + 'static {
    /// Writes an entry; answers when it is durable and the token's number covers it.
    ///
    /// # Errors
    /// The change must not be made then. The entry may be there: a mutation that is given up says so by [`Event::Abandoned`].
    async fn append(&self, intent: Option<IntentId>, event: Event) -> Result<Held, JournalError>;

    /// Returns until when keys were made that must not protect: a gap was accepted then.
    fn fence(&self) -> Option<Timestamp>;

    /// Returns how far it goes.
    fn progress(&self) -> &Arc<Progress>;

    /// Returns whether it could be written when that was last tried.
    fn healthy(&self) -> bool;

    /// Writes what is queued, then stops.
    fn close(&self);
}

/// A shared journal.
pub type SharedJournal = Arc<dyn Journal>;

/// How far a journal goes, and what of it is not over.
#[derive(Debug, Default)]
pub struct Progress {
    last: AtomicU64,
    open: Mutex<BTreeSet<u64>>,
}

impl Progress {
    fn new(last: u64) -> Self {
        Self { last: AtomicU64::new(last), open: Mutex::default() }
    }

    /// Returns the number of the last entry.
    pub fn last(&self) -> u64 {
        self.last.load(Ordering::Acquire)
    }

    /// Returns up to which number what the entries tell of was made, or given up: a database that is read from now on shows it.
    pub fn settled(&self) -> u64 {
        let open = self.open();
        open.first().map_or_else(|| self.last(), |first| first.saturating_sub(1))
    }

    fn open(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Invariant: never counted as the last before it is known as open.
    fn begin(&self, number: u64) {
        let mut open = self.open();
        open.insert(number);
        self.last.store(number, Ordering::Release);
    }

    fn end(&self, number: u64) {
        self.open().remove(&number);
    }
}

/// An entry whose change is being made. Dropped without [`Held::settle`], what became of the change stays open, and every
/// backup of this process is taken for older than it.
#[derive(Debug)]
#[must_use]
pub struct Held {
    number: u64,
    progress: Arc<Progress>,
}

impl Held {
    /// Says that the change was made, or is not made: either is seen in the database.
    pub fn settle(self) {
        self.progress.end(self.number);
    }

    /// Returns the number of the entry.
    pub const fn number(&self) -> u64 {
        self.number
    }
}

/// A journal that takes nothing: the token that would bear its number is latched.
#[derive(Debug, Default)]
pub struct ClosedJournal(Arc<Progress>);

#[async_trait]
impl Journal for ClosedJournal {
    async fn append(&self, _: Option<IntentId>, _: Event) -> Result<Held, JournalError> {
        Err(JournalError::Closed)
    }

    fn fence(&self) -> Option<Timestamp> {
        None
    }

    fn progress(&self) -> &Arc<Progress> {
        &self.0
    }

    fn healthy(&self) -> bool {
        false
    }

    fn close(&self) {}
}

#[cfg(test)]
mod file_tests;

#[cfg(test)]
pub(crate) mod memory {
    //! A journal in memory, for tests of those who write it.

    use super::*;

    /// Keeps events; fails when told to.
    #[derive(Debug, Default)]
    pub(crate) struct MemoryJournal {
        progress: Arc<Progress>,
        events: Mutex<Vec<Event>>,
        pub(crate) failing: std::sync::atomic::AtomicBool,
    }

    impl MemoryJournal {
        pub(crate) fn events(&self) -> Vec<Event> {
            self.events.lock().unwrap().clone()
        }
    }

    #[async_trait]
    impl Journal for MemoryJournal {
        async fn append(&self, _: Option<IntentId>, event: Event) -> Result<Held, JournalError> {
            if self.failing.load(Ordering::SeqCst) {
                return Err(JournalError::Saturated);
            }
            self.events.lock().unwrap().push(event);
            let number = self.progress.last() + 1;
            self.progress.begin(number);
            Ok(Held { number, progress: Arc::clone(&self.progress) })
        }

        fn fence(&self) -> Option<Timestamp> {
            None
        }

        fn progress(&self) -> &Arc<Progress> {
            &self.progress
        }

        fn healthy(&self) -> bool {
            true
        }

        fn close(&self) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_holds_back_what_counts_as_settled() {
        let progress = Arc::new(Progress::new(4));
        assert_eq!((progress.last(), progress.settled()), (4, 4));
        let held = |number| {
            progress.begin(number);
            Held { number, progress: Arc::clone(&progress) }
        };
        let (five, six) = (held(5), held(6));
        assert_eq!((progress.last(), progress.settled()), (6, 4));
        six.settle();
        assert_eq!(progress.settled(), 4);
        five.settle();
        assert_eq!(progress.settled(), 6);
        drop(held(7));
        assert_eq!(progress.settled(), 6, "what became of it is not known");
    }
}
