//! What the log says of the past, kept small: each tenant's last manifest, and the mutations without an outcome.
//!
//! The database can be put back to what it once was, by an attacker or by a backup; the log only grows. So the log is
//! asked before anything is done that a later state of the database would regret.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use kms_core::audit::{AuditRecord, ManifestStamp, Phase};
use kms_core::id::IntentId;
use serde::{Deserialize, Serialize};

use super::chain::Head;

/// Mutations without an outcome that are remembered: far more than can be under way. What stays is left by databases that
/// were put back without their intents. The oldest are forgotten: of those nothing is undone in the HSM, while a new one that
/// were not remembered could not tell after a kill why the database is ahead.
pub const MAX_PENDING: usize = 65_536;
/// Operation of the record that makes a tenant's manifest, as it is in the database, the last that counts.
pub const ACCEPT_STORE: &str = "internal/AcceptStore";
/// How operations begin that the server does by itself.
const INTERNAL: &str = "internal/";
/// A summary is never longer than this: a million tenants.
pub(super) const MAX_SUMMARY_BYTES: u64 = 256 << 20;

/// What the log says of the past.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    stamps: BTreeMap<String, ManifestStamp>,
    /// The oldest first. A few mostly, so looking through them is cheap.
    pending: VecDeque<IntentId>,
    acceptances: u64,
}

impl Past {
    /// Takes note of a record that is durable.
    pub fn note(&mut self, record: &AuditRecord) {
        match (record.phase, record.intent_id) {
            (Phase::Intent, Some(id)) if !self.awaits_outcome(id) => {
                if self.pending.len() >= MAX_PENDING {
                    self.pending.pop_front();
                }
                self.pending.push_back(id);
            }
            (Phase::Outcome, Some(id)) => self.pending.retain(|pending| *pending != id),
            _ => {}
        }
        let Some(stamp) = &record.manifest else { return };
        if record.phase == Phase::Complete && &*record.operation == ACCEPT_STORE {
            // What the log has seen before no longer counts, however high its revision.
            self.stamps.insert(record.tenant.to_string(), stamp.clone());
            self.acceptances += 1;
        }
        if record.phase == Phase::Outcome {
            // An outcome may be written late: it tells the manifest of its own mutation.
            let newer =
                self.stamps.get(record.tenant.as_str()).is_none_or(|s| s.revision < stamp.revision);
            if newer {
                self.stamps.insert(record.tenant.to_string(), stamp.clone());
            }
        }
    }

    /// Returns whether the log has the intent's record, and no outcome of it.
    pub fn awaits_outcome(&self, intent: IntentId) -> bool {
        self.pending.contains(&intent)
    }

    /// Returns the last manifest of each tenant, by tenant id.
    pub const fn stamps(&self) -> &BTreeMap<String, ManifestStamp> {
        &self.stamps
    }

    /// Returns how often a tenant was accepted as it was in the database.
    pub const fn acceptances(&self) -> u64 {
        self.acceptances
    }

    /// Returns whether a record says anything of the past: most do not.
    pub(super) fn heeds(record: &AuditRecord) -> bool {
        record.phase != Phase::Complete || &*record.operation == ACCEPT_STORE
    }

    /// Takes note of a line of the log that is durable.
    pub(super) fn note_line(&mut self, line: &[u8]) {
        if is_dull(line, ACCEPT_STORE) {
            return;
        }
        // Every line was made by, or verified as, `chain`; one that is not a record says nothing.
        if let Ok(Outer { entry: Inner { record } }) = serde_json::from_slice(line) {
            self.note(&record);
        }
    }
}

/// Reads the record of a line that tells of more than a caller's one call: of a mutation, or of what the server did by
/// itself.
pub(super) fn record_of(line: &[u8]) -> Option<AuditRecord> {
    if is_dull(line, INTERNAL) {
        return None;
    }
    serde_json::from_slice(line).ok().map(|Outer { entry: Inner { record } }| record)
}

#[derive(Deserialize)]
struct Outer {
    entry: Inner,
}

#[derive(Deserialize)]
struct Inner {
    record: AuditRecord,
}

/// Returns whether a line tells of a call that begins otherwise than `operation`, without reading it as JSON: most do.
///
/// Nothing that a caller chooses stands before the operation, so the first phase is the field.
fn is_dull(line: &[u8], operation: &str) -> bool {
    const PHASE: &[u8] = b"\"phase\":\"";
    const CALL: &[u8] = b"complete\",\"operation\":\"";
    let found = line.windows(PHASE.len()).position(|window| window == PHASE);
    let Some(rest) = found.and_then(|start| line.get(start + PHASE.len()..)) else { return true };
    rest.strip_prefix(CALL).is_some_and(|rest| !rest.starts_with(operation.as_bytes()))
}

/// A summary of all files before one: so that a start reads one file, not the whole log.
#[derive(Serialize, Deserialize)]
struct Summary {
    seq: u64,
    hash: String,
    past: Past,
}

/// Writes what the files up to `head` say to `path`. Not needed to be whole: it can be made again from the log.
pub(super) fn write_summary(path: &Path, head: Head, past: &Past) -> io::Result<()> {
    let hash = data_encoding::HEXLOWER.encode(&head.hash);
    let summary = Summary { seq: head.seq, hash, past: past.clone() };
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(&serde_json::to_vec(&summary)?)?;
    file.sync_all()
}

/// Reads a summary; `None` when it is not there, is damaged, or does not end at `head`.
pub(super) fn read_summary(path: &Path, head: Option<Head>) -> Option<Past> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_SUMMARY_BYTES).read_to_end(&mut bytes).ok()?;
    let summary: Summary = serde_json::from_slice(&bytes).ok()?;
    let fits = head.is_none_or(|head| {
        summary.seq == head.seq && summary.hash == data_encoding::HEXLOWER.encode(&head.hash)
    });
    fits.then_some(summary.past)
}

#[cfg(test)]
mod tests {
    use kms_core::id::Revision;

    use super::*;
    use crate::audit::chain::append_line;
    use crate::audit::sample::record;

    fn id(number: u8) -> IntentId {
        IntentId::from_bytes([number; 16])
    }

    fn mutation(phase: Phase, number: u8, revision: Option<u64>) -> AuditRecord {
        let manifest = revision.map(|revision| ManifestStamp {
            revision: Revision::new(revision),
            digest: format!("digest-{revision}"),
        });
        AuditRecord { phase, intent_id: Some(id(number)), manifest, ..record(1) }
    }

    fn read(records: &[AuditRecord]) -> Past {
        let (mut past, mut from_lines) = (Past::default(), Past::default());
        for record in records {
            if Past::heeds(record) {
                past.note(record);
            }
            let mut line = Vec::new();
            append_line(&mut line, Head::GENESIS, 1, record).unwrap();
            from_lines.note_line(&line);
        }
        assert_eq!(past, from_lines, "a line tells what its record tells");
        past
    }

    #[test]
    fn an_intent_awaits_its_outcome_and_no_longer() {
        let begun = read(&[mutation(Phase::Intent, 1, None)]);
        assert!(begun.awaits_outcome(id(1)) && !begun.awaits_outcome(id(2)));
        let ended = read(&[mutation(Phase::Intent, 1, None), mutation(Phase::Outcome, 1, Some(1))]);
        assert!(!ended.awaits_outcome(id(1)));
    }

    #[test]
    fn the_highest_manifest_counts_in_whatever_order_outcomes_come() {
        for revisions in [[1, 2], [2, 1]] {
            let outcomes = revisions.map(|number| mutation(Phase::Outcome, 1, Some(number)));
            let stamp = read(&outcomes).stamps().get("t1").cloned().unwrap();
            assert_eq!((stamp.revision, &*stamp.digest), (Revision::new(2), "digest-2"));
        }
    }

    #[test]
    fn an_accepted_manifest_counts_also_when_it_is_lower() {
        let accepted = AuditRecord {
            intent_id: None,
            operation: ACCEPT_STORE.into(),
            ..mutation(Phase::Complete, 1, Some(2))
        };
        let late = mutation(Phase::Outcome, 2, Some(1));
        let past = read(&[mutation(Phase::Outcome, 1, Some(5)), accepted.clone(), late]);
        assert_eq!(past.stamps().get("t1").map(|stamp| stamp.revision), Some(Revision::new(2)));
        let next = mutation(Phase::Outcome, 3, Some(3));
        assert_eq!(past.acceptances(), 1);
        let past = read(&[mutation(Phase::Outcome, 1, Some(5)), accepted, next]);
        assert_eq!(past.stamps().get("t1").map(|stamp| stamp.revision), Some(Revision::new(3)));
        let other = mutation(Phase::Complete, 1, Some(9));
        assert_eq!(read(&[other]), Past::default(), "only that operation");
    }

    #[test]
    fn what_a_caller_writes_into_a_record_is_not_taken_for_a_phase() {
        let sly = "\"phase\":\"intent\",\"intent_id\":\"01010101-0101-0101-0101-010101010101\"";
        let record = AuditRecord { resource: Some(sly.into()), ..record(1) };
        assert_eq!(read(&[record]), Past::default());
    }

    #[test]
    fn pending_mutations_are_remembered_up_to_the_bound_and_the_oldest_forgotten() {
        let mut past = Past::default();
        let numbered = |number: usize| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&number.to_be_bytes());
            IntentId::from_bytes(bytes)
        };
        // As many as there may be, noted before: noting each looks through all.
        past.pending = (0..MAX_PENDING - 1).map(numbered).collect();
        let begin = |past: &mut Past, number| {
            let intent_id = Some(numbered(number));
            past.note(&AuditRecord { intent_id, ..mutation(Phase::Intent, 1, None) });
        };
        begin(&mut past, MAX_PENDING - 1);
        assert!(past.awaits_outcome(numbered(0)) && past.awaits_outcome(numbered(MAX_PENDING - 1)));
        begin(&mut past, MAX_PENDING);
        assert!(!past.awaits_outcome(numbered(0)), "the oldest");
        assert!(past.awaits_outcome(numbered(1)) && past.awaits_outcome(numbered(MAX_PENDING)));
    }

    #[test]
    fn a_summary_reads_back_and_only_at_its_head() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("summary");
        let past = read(&[mutation(Phase::Intent, 1, None), mutation(Phase::Outcome, 2, Some(5))]);
        let head = Head { seq: 7, group: 7, hash: [9; 32] };
        assert_eq!(read_summary(&path, None), None);
        write_summary(&path, head, &past).unwrap();
        assert_eq!(read_summary(&path, Some(head)), Some(past.clone()));
        assert_eq!(read_summary(&path, None), Some(past));
        assert_eq!(read_summary(&path, Some(Head { seq: 8, ..head })), None);
        assert_eq!(read_summary(&path, Some(Head { hash: [8; 32], ..head })), None);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert_eq!(read_summary(&path, Some(head)), None, "cut");
    }
}
