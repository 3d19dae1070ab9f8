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
    /// By tenant: an accepted database concerns the versions of one.
    versions: HashMap<String, HashMap<(KeyUid, KeyVersion), VersionSeen>>,
    /// Counters that went back within the log.
    returned: Vec<Finding>,
}

#[derive(Debug, Default)]
struct VersionSeen {
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
        let of_tenant = self.versions.entry(record.tenant.to_string()).or_default();
        let entry = of_tenant.entry((uid, version)).or_default();
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
        let Some(of_tenant) = self.versions.get_mut(&*record.tenant) else { return };
        let baseline = record.manifest.as_ref().map_or(Revision::new(0), |stamp| stamp.revision);
        of_tenant.retain(|_, version| {
            version.counter = None;
            version.made.is_some_and(|made| made <= baseline)
        });
        self.returned.retain(|finding| finding.tenant.as_deref() != Some(&*record.tenant));
    }

    /// Returns each tenant's last manifest.
    pub fn stamps(&self) -> &BTreeMap<String, ManifestStamp> {
        self.past.stamps()
    }

    /// Returns how often a tenant was accepted as it was in the database.
    pub(super) const fn acceptances(&self) -> u64 {
        self.past.acceptances()
    }

    /// Returns whether the log has the intent's record, and no outcome of it.
    pub(super) fn awaits_outcome(&self, intent: IntentId) -> bool {
        self.past.awaits_outcome(intent)
    }

    /// Returns the newest counter of a tenant's version.
    pub(super) fn counter(
        &self,
        tenant: &str,
        uid: KeyUid,
        version: KeyVersion,
    ) -> Option<CounterStamp> {
        self.versions.get(tenant)?.get(&(uid, version))?.counter
    }

    /// Returns the versions of a tenant that the log tells of.
    pub(super) fn versions_of(
        &self,
        tenant: &str,
    ) -> impl Iterator<Item = (KeyUid, KeyVersion)> + '_ {
        let of_tenant = self.versions.get(tenant).into_iter().flatten();
        of_tenant.filter(|(_, seen)| seen.made.is_some()).map(|(id, _)| *id)
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
