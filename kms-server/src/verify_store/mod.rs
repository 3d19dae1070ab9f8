//! Verifying a database offline: every row against its MAC, the rows against their manifests, and manifests and counters
//! against the audit log.
//!
//! Stands beside the path of requests. It finds what a start does not look at: single rows that were deleted, added or put
//! back. It never writes, and memory grows with tenants and versions in the log, not with rows.

mod print;
mod rows;
mod seen;

use kms_core::id::{KeyUid, KeyVersion, RootGeneration};
use kms_core::key::RowMac;
use kms_hsm::HsmError;
use serde::Serialize;

pub use self::print::table;
pub use self::rows::{VerifyStoreError, verify};
pub use self::seen::Seen;

/// Disagreements that are listed; more are counted. A database that has a thousand is not mended row by row.
pub const MAX_FINDINGS: usize = 1_000;

/// Makes HMACs under root `mac` of a generation.
pub type Macs<'m> = dyn FnMut(RootGeneration, Vec<Vec<u8>>) -> Result<Vec<RowMac>, HsmError> + 'm;

/// One disagreement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The tenant, when it is known.
    pub tenant: Option<String>,
    /// What kind of row, or `log` or `database` as a whole.
    pub row: &'static str,
    /// The key, when it is one key's.
    pub key_uid: Option<KeyUid>,
    /// The version, when it is one version's.
    pub key_version: Option<KeyVersion>,
    /// What is wrong.
    pub detail: String,
}

/// What was verified of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LogSummary {
    /// Number of entries.
    pub entries: u64,
    /// Sequence number of the first; not 1 when older files were moved away.
    pub first: Option<u64>,
    /// Sequence number of the last.
    pub last: u64,
    /// Length of an unfinished write at its end, as a crash leaves it: nothing acknowledged is in it, and the next start cuts
    /// it off.
    pub torn_bytes: u64,
}

/// What was verified, and what does not agree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether everything agrees.
    pub agrees: bool,
    /// The log; `None` when its chain is broken, so that nothing was compared with it.
    pub log: Option<LogSummary>,
    /// Tenants.
    pub tenants: u64,
    /// Tenants of which the log has no manifest: compared with nothing.
    pub tenants_not_in_log: u64,
    /// Has the next start take manifests and counters as they are: what `--accept-restored-store` takes. `None` when they
    /// agree, and when it cannot be told: the log is not whole, or a manifest fails its MAC, which is never accepted.
    pub accept_code: Option<String>,
    /// Key rows.
    pub keys: u64,
    /// Version rows.
    pub versions: u64,
    /// Counter rows.
    pub counters: u64,
    /// Rows of uses walked.
    pub usage: u64,
    /// Consumers looked at.
    pub consumers: u64,
    /// Aliases looked at.
    pub aliases: u64,
    /// Import jobs looked at.
    pub import_jobs: u64,
    /// Entries of histories walked.
    pub history: u64,
    /// Intents.
    pub intents: u64,
    /// Remembered requests.
    pub requests: u64,
    /// What does not agree, the first [`MAX_FINDINGS`].
    pub findings: Vec<Finding>,
    /// How many more there are.
    pub findings_left_out: u64,
}

impl Report {
    /// Returns how many disagreements there are, listed and left out.
    pub fn disagreements(&self) -> u64 {
        self.findings_left_out.saturating_add(self.findings.len() as u64)
    }

    fn add(&mut self, finding: Finding) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding);
        } else {
            self.findings_left_out += 1;
        }
    }
}
