//! Reads the whole file before anything is written or asked of a server: what cannot be done is told first.

use std::collections::BTreeMap;
use std::io::BufRead;

use kms_core::id::{KeyUid, KeyVersion};

use super::error::RunError;
use super::record::{Found, Records};
use super::tally::Tally;

/// The most keys and versions that are counted apart: more in one file is a file of something else.
const MAX_VERSIONS: usize = 1_000;

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Census {
    /// Counts of records, and what is wrong with single ones.
    pub(super) tally: Tally,
    /// Ciphertexts by key and version.
    pub(super) versions: BTreeMap<([u8; 16], KeyVersion), u64>,
    /// Ciphertexts of further keys and versions.
    pub(super) others: u64,
}

impl Census {
    /// Reads all records that are left.
    ///
    /// # Errors
    /// Those of [`Records::next`], and [`RunError::Item`] unless `keep_going`.
    pub(super) fn take<R: BufRead>(
        mut records: Records<R>,
        keep_going: bool,
    ) -> Result<Self, RunError> {
        let (mut census, mut buffer) = (Self::default(), Vec::new());
        loop {
            buffer.clear();
            let Some(record) = records.next(&mut buffer)? else { return Ok(census) };
            match record.found {
                Ok(Found::ColumnNames) => {}
                Ok(Found::Blank) => census.tally.blank += 1,
                Ok(Found::Ciphertext(ciphertext)) => {
                    census.tally.items += 1;
                    census.count(ciphertext.header.key_uid, ciphertext.header.version);
                }
                Err(fault) if keep_going => {
                    census.tally.items += 1;
                    census.tally.fail(record.line, &fault);
                }
                Err(fault) => return Err(RunError::Item { line: record.line, fault }),
            }
        }
    }

    fn count(&mut self, key: KeyUid, version: KeyVersion) {
        let place = (*key.as_bytes(), version);
        let full = self.versions.len() >= MAX_VERSIONS;
        match self.versions.get_mut(&place) {
            Some(count) => *count += 1,
            None if full => self.others += 1,
            None => {
                self.versions.insert(place, 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_versions_as_there_is_room_for_are_counted_apart_and_further_ones_together() {
        let mut census = Census::default();
        let key = KeyUid::from_bytes([1; 16]);
        for version in (1..=1_001).chain([1, 1_001]) {
            census.count(key, KeyVersion::new(version).unwrap());
        }
        assert_eq!((census.versions.len(), census.others), (MAX_VERSIONS, 2));
        assert_eq!(census.versions[&(*key.as_bytes(), KeyVersion::new(1).unwrap())], 2);
    }
}
