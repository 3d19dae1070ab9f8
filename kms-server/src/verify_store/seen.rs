//! What the log has seen: each tenant's last manifest, which versions were made, and the newest counter of each.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use kms_core::audit::{AuditRecord, CounterStamp, ManifestStamp, Phase};
use kms_core::id::{IntentId, KeyUid, KeyVersion, Revision};

use super::{Finding, LogSummary, MAX_FINDINGS};
use crate::audit::verify::{VerifyError, verify_records};
use crate::audit::{ACCEPT_STORE, Past};

/// What the log has seen. One small entry a version, whatever the number of records.
#[derive(Debug, Default)]
pub struct Seen {
    past: Past,
    numbers: HashMap<String, u32>,
    versions: HashMap<(KeyUid, KeyVersion), VersionSeen>,
    /// Counters that went back within the log.
    returned: Vec<Finding>,
}

#[derive(Debug)]
struct VersionSeen {
    /// Number of the tenant.
    tenant: u32,
    /// The manifest's revision when the version was first told of.
    made: Option<Revision>,
    counter: Option<CounterStamp>,
}

impl Seen {
    /// Reads and verifies the log of a directory.
    ///
    /// # Errors
    /// When its chain is broken, or it cannot be read.
    pub fn read(directory: &Path) -> Result<(Self, LogSummary), VerifyError> {
        let mut seen = Self::default();
        let (report, torn_bytes) = verify_records(directory, |record| seen.note(record))?;
        let (first, last) = (report.first_seq, report.head.seq);
        let log = LogSummary { entries: report.entries, first, last, torn_bytes };
        Ok((seen, log))
    }

    /// Takes note of a record.
    pub fn note(&mut self, record: &AuditRecord) {
        self.past.note(record);
        if record.phase == Phase::Complete && &*record.operation == ACCEPT_STORE {
            self.forget(record);
        }
        let (Some(uid), Some(version)) = (record.key_uid, record.key_version) else { return };
        let made = match (record.phase, &record.manifest) {
            (Phase::Outcome, Some(stamp)) => Some(stamp.revision),
            _ => None,
        };
        if made.is_none() && record.counter.is_none() {
            return;
        }
        let next = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX);
        let tenant = *self.numbers.entry(record.tenant.to_string()).or_insert(next);
        let entry = self.versions.entry((uid, version)).or_insert(VersionSeen {
            tenant,
            made: None,
            counter: None,
        });
        entry.made = entry.made.into_iter().chain(made).min();
        let Some(counter) = record.counter else { return };
        match entry.counter {
            // Revisions only grow, so the log itself shows that an older row was put back and used.
            Some(before) if counter.revision <= before.revision => {
                if self.returned.len() < MAX_FINDINGS {
                    self.returned.push(went_back(record, before, counter));
                }
            }
            _ => entry.counter = Some(counter),
        }
    }

    /// An accepted database has no version that was made after it, and the counters that it has.
    fn forget(&mut self, record: &AuditRecord) {
        let Some(number) = self.numbers.get(&*record.tenant).copied() else { return };
        let baseline = record.manifest.as_ref().map_or(Revision::new(0), |stamp| stamp.revision);
        self.versions.retain(|_, version| {
            if version.tenant != number {
                return true;
            }
            version.counter = None;
            version.made.is_some_and(|made| made <= baseline)
        });
        self.returned.retain(|finding| finding.tenant.as_deref() != Some(&*record.tenant));
    }

    /// Returns each tenant's last manifest.
    pub fn stamps(&self) -> &BTreeMap<String, ManifestStamp> {
        self.past.stamps()
    }

    /// Returns whether the log has the intent's record, and no outcome of it.
    pub(super) fn awaits_outcome(&self, intent: IntentId) -> bool {
        self.past.awaits_outcome(intent)
    }

    /// Returns the newest counter of a version.
    pub(super) fn counter(&self, uid: KeyUid, version: KeyVersion) -> Option<CounterStamp> {
        self.versions.get(&(uid, version)).and_then(|seen| seen.counter)
    }

    /// Returns the versions of a tenant that the log tells of.
    pub(super) fn versions_of(
        &self,
        tenant: &str,
    ) -> impl Iterator<Item = (KeyUid, KeyVersion)> + '_ {
        let number = self.numbers.get(tenant).copied();
        let made = self.versions.iter().filter(|(_, seen)| seen.made.is_some());
        made.filter(move |(_, seen)| Some(seen.tenant) == number).map(|(id, _)| *id)
    }

    /// Returns the counters that went back within the log.
    pub(super) fn returned(&self) -> &[Finding] {
        &self.returned
    }
}

fn went_back(record: &AuditRecord, before: CounterStamp, after: CounterStamp) -> Finding {
    let detail = format!(
        "after revision {} with {} invocations the log has revision {} with {}: an older row was put back and used",
        before.revision, before.leased, after.revision, after.leased
    );
    Finding {
        tenant: Some(record.tenant.to_string()),
        row: "counter",
        key_uid: record.key_uid,
        key_version: record.key_version,
        detail,
    }
}
