//! When a version, or any version of a key, was used or wanted last.
//!
//! Destruction rests on it, so what nobody knows is no silence: invocations that were leased beyond what the check value took,
//! without a row of uses, were lost by a crash, and count as wanted now.

use kms_core::clock::Timestamp;
use kms_core::id::KeyVersion;
use kms_core::key::{KeyRow, VersionRow};
use kms_core::state::VersionState;
use kms_core::usage::Uses;

use super::kms::Inner;
use super::{RequestContext, ServiceError};

/// Versions whose rows are read, and verified in one call, at a time.
const STEP: u32 = 100;

impl Inner {
    /// Returns when somebody used, or wanted, a version last.
    pub(super) async fn last_wanted(
        &self,
        version: &VersionRow,
    ) -> Result<Option<Timestamp>, ServiceError> {
        self.keyring.write_uses().await?;
        self.last_wanted_of(&[version]).await
    }

    /// Returns when somebody used, or wanted, any version of a key last.
    pub(super) async fn key_last_wanted(
        &self,
        key: &KeyRow,
    ) -> Result<Option<Timestamp>, ServiceError> {
        self.keyring.write_uses().await?;
        let (mut last, mut after) = (None, None);
        loop {
            let versions = self.store.list_versions(key.uid, after, STEP).await;
            let versions = self.keyring.stored(versions)?;
            let Some(end) = versions.last() else { return Ok(last) };
            after = Some(end.row.version);
            self.keyring.verify_rows(&[], &versions, &[]).await?;
            let rows: Vec<_> = versions.iter().map(|version| &version.row).collect();
            last = last.max(self.last_wanted_of(&rows).await?);
        }
    }

    async fn last_wanted_of(
        &self,
        rows: &[&VersionRow],
    ) -> Result<Option<Timestamp>, ServiceError> {
        let ids: Vec<_> = rows.iter().map(|row| (row.key_uid, row.version)).collect();
        let uses = self.keyring.uses_of(&ids).await?;
        let last = uses.iter().flatten().filter_map(Uses::last_wanted).max();
        let (mut unknown, mut counters) = (Vec::new(), Vec::new());
        for (row, uses) in rows.iter().zip(&uses) {
            // Of what is gone nobody wants anything.
            if uses.is_none() && row.state != VersionState::Destroyed {
                unknown.push(row);
                counters.push(self.stored_counter(row.key_uid, row.version).await?);
            }
        }
        self.keyring.verify_rows(&[], &[], &counters).await?;
        let mut pairs = unknown.iter().zip(&counters);
        let is_lost =
            pairs.any(|(row, counter)| counter.row.leased > row.origin.check_invocations());
        Ok(if is_lost { Some(self.clock.now()) } else { last })
    }

    /// Returns when any version of a key was used last, as far as is written down, within the request's time.
    pub(super) async fn last_use(
        &self,
        request: &RequestContext,
        key: &KeyRow,
    ) -> Result<Option<Timestamp>, ServiceError> {
        let (mut last, mut next) = (None, Some(KeyVersion::FIRST));
        while let Some(first) = next.filter(|first| *first <= key.latest) {
            if self.clock.monotonic() >= request.deadline {
                return Err(ServiceError::QueueDeadline);
            }
            let end = first.get().saturating_add(STEP - 1).min(key.latest.get());
            let numbers = (first.get()..=end).filter_map(KeyVersion::new);
            let ids: Vec<_> = numbers.map(|number| (key.uid, number)).collect();
            let uses = self.keyring.uses_of(&ids).await?;
            last = last.max(uses.iter().flatten().filter_map(Uses::last).max());
            next = end.checked_add(1).and_then(KeyVersion::new);
        }
        Ok(last)
    }
}
