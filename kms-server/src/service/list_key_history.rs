//! ListKeyHistory: what happened to a key and its versions, oldest first.

use kms_core::clock::Timestamp;
use kms_core::id::Revision;
use kms_core::key::Sealed;
use kms_core::lifecycle::{HistoryChange, HistoryRow};

use super::kms::{Inner, Kms};
use super::list_keys::{MAX_PAGE_BYTES, Position, join, page_size, split};
use super::trail::Trail;
use super::{HistoryEntry, ListKeyHistory, Page, RequestContext, ServiceError};
use crate::authz::{self, Target};
use crate::store::{HistoryPosition, VersionChoice};

/// The most that an entry takes on the wire beside its texts.
const ENTRY_BYTES: usize = 128;

impl Kms {
    /// Lists the history of a key.
    ///
    /// # Errors
    /// As for [`Kms::list_key_versions`].
    pub async fn list_key_history(
        &self,
        request: &RequestContext,
        list: ListKeyHistory,
    ) -> Result<Page<HistoryEntry>, ServiceError> {
        let inner = &*self.inner;
        let mut trail = Trail::key(&list.key);
        let result = inner.list_history(request, &list, &mut trail).await;
        inner.record(request, trail, result).await
    }
}

impl Inner {
    async fn list_history(
        &self,
        request: &RequestContext,
        list: &ListKeyHistory,
        trail: &mut Trail,
    ) -> Result<Page<HistoryEntry>, ServiceError> {
        self.permit::<authz::ListKeyHistory>(request, Target::key(&list.key), trail)?;
        let size = page_size(list.page_size)?;
        let scope = list.key.to_string();
        let after = self.open_token(request, &scope, &list.page_token).await?;
        let key = self.fresh(&list.key, VersionChoice::Primary).await?.key.row;
        trail.key_uid = Some(key.uid);
        let after = after.map(|position| to_place(&position));
        let entries = self.store.list_history(key.uid, after, size + 1).await;
        let mut entries = self.keyring.stored(entries)?;
        let most = fitting(&entries).min(size as usize);
        let more = entries.len() > most;
        entries.truncate(most);
        self.keyring.verify_history(&entries).await?;
        if entries.iter().any(|entry| entry.row.key_uid != key.uid) {
            let detail = format!("the history of `{scope}` has another key's entry");
            return Err(self.keyring.integrity(detail).into());
        }
        let next_page_token = match entries.last().filter(|_| more) {
            Some(end) => self.make_token(request, &scope, &to_position(&end.row)).await?,
            None => String::new(),
        };
        let items = entries.into_iter().map(|entry| HistoryEntry::from(entry.row)).collect();
        Ok(Page { items, next_page_token })
    }
}

impl From<HistoryRow> for HistoryEntry {
    fn from(row: HistoryRow) -> Self {
        let HistoryRow { key_uid: _, change, old_revision, revision, time, actor, reason } = row;
        let (version, from, to, detail) = match change {
            HistoryChange::State { version, from, to } => {
                (Some(version), from, Some(to), String::new())
            }
            HistoryChange::Fields { detail } => (None, None, None, detail),
        };
        Self { version, from, to, detail, old_revision, revision, time, actor, reason }
    }
}

/// Returns how many entries a page has room for; always one.
fn fitting(entries: &[Sealed<HistoryRow>]) -> usize {
    let mut bytes = 0_usize;
    let fits = |entry: &&Sealed<HistoryRow>| {
        let HistoryRow { change, actor, reason, .. } = &entry.row;
        let detail = match change {
            HistoryChange::State { .. } => 0,
            HistoryChange::Fields { detail } => detail.len(),
        };
        bytes += ENTRY_BYTES + actor.len() + reason.len() + detail;
        bytes <= MAX_PAGE_BYTES
    };
    entries.iter().take_while(fits).count().max(1)
}

fn to_position(row: &HistoryRow) -> Position {
    let mut id = [0; 16];
    let (version, revision) = id.split_at_mut(8);
    version.copy_from_slice(&u64::from(row.version_number()).to_be_bytes());
    revision.copy_from_slice(&row.revision.get().to_be_bytes());
    join(row.time.as_unix_ms(), &id)
}

fn to_place(position: &Position) -> HistoryPosition {
    let (time, id) = split(position);
    let (mut version, mut revision) = ([0; 8], [0; 8]);
    let (first, second) = id.as_bytes().split_at(8);
    version.copy_from_slice(first);
    revision.copy_from_slice(second);
    HistoryPosition {
        time: Timestamp::from_unix_ms(time),
        version: u32::try_from(u64::from_be_bytes(version)).unwrap_or(u32::MAX),
        revision: Revision::new(u64::from_be_bytes(revision)),
    }
}

#[cfg(test)]
mod tests {
    use kms_core::id::{KeyUid, KeyVersion};
    use kms_core::state::VersionState;

    use super::*;

    fn entry(version: u32, revision: u64, reason: usize) -> Sealed<HistoryRow> {
        let version = KeyVersion::new(version).unwrap();
        let row = HistoryRow {
            key_uid: KeyUid::from_random([1; 16]),
            change: HistoryChange::State { version, from: None, to: VersionState::Active },
            old_revision: Revision::new(0),
            revision: Revision::new(revision),
            time: Timestamp::from_unix_ms(-7),
            actor: String::new(),
            reason: "r".repeat(reason),
        };
        let generation = kms_core::id::RootGeneration::FIRST;
        Sealed { row, mac: kms_core::key::RowMac([0; 32]), generation }
    }

    #[test]
    fn a_place_reads_back_from_its_token() {
        let row = entry(u32::MAX, u64::MAX, 0).row;
        assert_eq!(to_place(&to_position(&row)), HistoryPosition::of(&row));
    }

    #[test]
    fn a_page_holds_what_fits_and_always_one() {
        let half = MAX_PAGE_BYTES / 2 - ENTRY_BYTES;
        assert_eq!(fitting(&[entry(1, 1, half), entry(1, 2, half), entry(1, 3, 0)]), 2);
        assert_eq!(fitting(&[entry(1, 1, half), entry(1, 2, half + 1)]), 1);
        assert_eq!(fitting(&[entry(1, 1, MAX_PAGE_BYTES)]), 1);
        assert_eq!(fitting(&[]), 1);
    }
}
