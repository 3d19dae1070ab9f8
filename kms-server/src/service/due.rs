//! Where each list of what is due goes on in the next run.
//!
//! What fails stays due and heads its list. A run that took a whole page is followed by one that goes on behind
//! it, and the end of the list by its head: so what cannot be done never keeps what can from being done.

use std::sync::{Mutex, PoisonError};

use kms_core::clock::Timestamp;
use kms_core::key::VersionRow;

use crate::store::{DuePosition, JobPosition, Listed};

/// The place in one list. It is of this process alone: another one begins at the head.
#[derive(Debug)]
pub(super) struct DueCursor<P = DuePosition>(Mutex<Option<P>>);

impl<P> Default for DueCursor<P> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

/// The places in all lists.
#[derive(Debug, Default)]
pub(super) struct DueCursors {
    pub(super) deactivations: DueCursor,
    pub(super) activations: DueCursor,
    pub(super) rotations: DueCursor,
    pub(super) destructions: DueCursor,
    pub(super) key_destructions: DueCursor,
    pub(super) import_jobs: DueCursor<JobPosition>,
}

impl<P: Copy> DueCursor<P> {
    /// Returns where the next page begins.
    pub(super) fn after(&self) -> Option<P> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a page of at most `limit` rows was read: the next begins behind it when it was whole.
    pub(super) fn read<R>(&self, page: &Listed<R>, limit: u32, place: impl Fn(&R) -> Option<P>) {
        let is_whole = page.rows.len() + page.damaged >= limit as usize;
        let last = page.rows.last().filter(|_| is_whole).and_then(place);
        self.back_to(last);
    }

    /// Has the next page begin here: where one began that was not brought to its end.
    pub(super) fn back_to(&self, place: Option<P>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = place;
    }
}

/// Returns the place of a version that is due at a time.
pub(super) fn place(row: &VersionRow, time: Option<Timestamp>) -> Option<DuePosition> {
    time.map(|time| DuePosition { time, key_uid: row.key_uid, version: row.version.get() })
}

#[cfg(test)]
mod tests {
    use kms_core::id::KeyUid;

    use super::*;

    fn at(number: i64) -> DuePosition {
        let time = Timestamp::from_unix_ms(number);
        DuePosition { time, key_uid: KeyUid::from_bytes([1; 16]), version: 1 }
    }

    #[test]
    fn a_whole_page_is_followed_by_what_is_behind_it_and_a_short_one_by_the_head() {
        let cursor = DueCursor::default();
        assert_eq!(cursor.after(), None);
        for (rows, damaged, next) in [
            (vec![1, 2], 0, Some(2)),
            (vec![3], 1, Some(3)),
            (vec![4], 0, None),
            (vec![5, 6], 0, Some(6)),
            (vec![], 0, None),
        ] {
            cursor.read(&Listed { rows, damaged }, 2, |number| Some(at(*number)));
            assert_eq!(cursor.after(), next.map(at));
        }
    }

    #[test]
    fn a_page_that_was_not_brought_to_its_end_begins_again() {
        let cursor = DueCursor::default();
        let page = Listed { rows: vec![1, 2], damaged: 0 };
        cursor.read(&page, 2, |number| Some(at(*number)));
        let begun = cursor.after();
        cursor.read(&Listed { rows: vec![3, 4], damaged: 0 }, 2, |number| Some(at(*number)));
        cursor.back_to(begun);
        assert_eq!(cursor.after(), Some(at(2)));
    }
}
