//! The database beside the audit log, before anything is served: a database that was put back, emptied or exchanged is
//! refused, unless the operator says that it is meant.
//!
//! Reads the manifests, never the rows, so it costs as much as there are tenants. What the rows are, `verify-store` finds
//! out. It must run before recovery, which acts on what the database says.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;

use kms_core::audit::{ManifestStamp, Phase};
use kms_core::name::TenantName;
use kms_core::text::Text;
use kms_hsm::{HsmError, HsmHealth};

use super::ServiceError;
use super::kms::{Inner, Kms};
use super::trail::Trail;
use crate::audit::{ACCEPT_STORE, AcceptCode, AuditError, Comparisons, Divergence, Past};
use crate::keyring::KeyringError;

/// Manifests that are read and verified at a time: half a MiB of them.
const PAGE: u32 = 256;
/// Records that are written at a time: far less than the log's queue holds.
const RECORDS: usize = 1_024;
/// Disagreements that are told one by one; of more, there is one cause.
const MAX_TOLD: usize = 100;
/// `result` of the record of a tenant whose database was accepted.
pub const STORE_ACCEPTED: &str = "STORE_ACCEPTED";

/// What the comparison found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Tenants whose manifest is what the log says.
    pub agreeing: usize,
    /// Tenants of the database of which the log has no manifest: nothing to compare.
    pub unknown: usize,
    /// Tenants that were accepted as they are in the database.
    pub accepted: usize,
}

/// Why the database is not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompareError {
    /// It is not the one that the log has last seen.
    #[error(
        "the database does not agree with the audit log: {first}{}; nothing is served: {}bring back the database that \
         belongs to this log ([store], audit.directory), or, when this one is meant, as after a restore, start once \
         with --accept-restored-store {code}",
        and_more(*.others), of_another(*.given)
    )]
    Diverged {
        /// The first tenant, by name.
        first: Divergence,
        /// How many more there are.
        others: usize,
        /// Accepts the database as it is.
        code: AcceptCode,
        /// The code that was given, of another database or another log.
        given: Option<AcceptCode>,
    },
    /// A manifest cannot be read or verified.
    #[error(transparent)]
    Unverified(#[from] KeyringError),
    /// What was accepted cannot be recorded.
    #[error("what was accepted cannot be recorded: {0}")]
    Unrecorded(#[from] AuditError),
    /// A defect of ours.
    #[error("bug: {0}")]
    Bug(&'static str),
}

fn and_more(count: usize) -> String {
    if count == 0 { String::new() } else { format!(", and {count} more tenants") }
}

fn of_another(given: Option<AcceptCode>) -> String {
    let told = |given| {
        format!(
            "the code {given} stands for another database, or was used before, and accepts nothing: "
        )
    };
    given.map_or_else(String::new, told)
}

impl Kms {
    /// Compares each tenant's manifest with what the log has last seen. When `accept` is the code of what there is, what is
    /// in the database counts from now on: that is recorded, durably, when this returns. From the first call on, nothing is
    /// recovered or reconciled until one has returned without an error.
    ///
    /// # Errors
    /// [`CompareError::Diverged`], with an alert, when they do not agree and that is not accepted;
    /// [`CompareError::Unverified`] when a manifest was edited, which nothing makes acceptable, and while the HSM is latched:
    /// an empty database, of which no MAC is asked for, is no exception.
    pub async fn compare_store(
        &self,
        accept: Option<AcceptCode>,
    ) -> Result<Compared, CompareError> {
        // Before, not after, so that a comparison that is cut off counts as failed.
        self.inner.is_doubtful.store(true, Ordering::Release);
        if let HsmHealth::Latched(reason) = self.inner.hsm.status().health {
            return Err(KeyringError::Hsm(HsmError::Latched { reason }).into());
        }
        let compared = self.inner.compare_store(accept).await?;
        self.inner.is_doubtful.store(false, Ordering::Release);
        Ok(compared)
    }
}

#[derive(Default)]
struct Found {
    agreeing: usize,
    unknown: usize,
    diverged: Vec<Divergence>,
    comparisons: Comparisons,
    /// Each tenant's manifest in the database; only when it may be accepted.
    stored: Vec<(TenantName, ManifestStamp)>,
}

/// Stamps of applied intents, by tenant.
type Applied = HashMap<String, Vec<ManifestStamp>>;

impl Inner {
    async fn compare_store(&self, accept: Option<AcceptCode>) -> Result<Compared, CompareError> {
        let past = self.audit.past();
        let Found { agreeing, unknown, mut diverged, comparisons, stored } =
            self.compare_manifests(&past, accept.is_some()).await?;
        diverged.sort_by(|a, b| a.tenant.cmp(&b.tenant));
        let code = comparisons.code(past.acceptances());
        // Also when nothing differs here: counters may, which `verify-store` finds.
        let is_accepted = accept == Some(code);
        for divergence in diverged.iter().take(MAX_TOLD) {
            alert(divergence, is_accepted);
        }
        let compared = Compared { agreeing, unknown, accepted: 0 };
        if is_accepted {
            let accepted = self.accept(&diverged, stored).await?;
            return Ok(Compared { accepted, ..compared });
        }
        let others = diverged.len().saturating_sub(1);
        match diverged.into_iter().next() {
            Some(first) => Err(CompareError::Diverged { first, others, code, given: accept }),
            None => Ok(compared),
        }
    }

    async fn compare_manifests(&self, past: &Past, keep: bool) -> Result<Found, CompareError> {
        let mut missing: BTreeMap<&str, &ManifestStamp> =
            past.stamps().iter().map(|(tenant, stamp)| (tenant.as_str(), stamp)).collect();
        let (mut found, mut after, mut applied) = (Found::default(), None, None);
        loop {
            let page = self.keyring.list_manifests(after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.tenant.clone());
            for manifest in page {
                let stored = manifest.stamp();
                let seen = missing.remove(manifest.tenant.id());
                found.comparisons.add(manifest.tenant.id(), seen, Some(&stored));
                if keep {
                    found.stored.push((manifest.tenant.clone(), stored.clone()));
                }
                let Some(seen) = seen else {
                    found.unknown += 1;
                    continue;
                };
                if applied.is_none() && stored.revision > seen.revision {
                    applied = Some(self.applied_intents(past).await?);
                }
                let tenant = manifest.tenant.id();
                let applied = applied.as_ref().and_then(|applied: &Applied| applied.get(tenant));
                let applied = applied.map(Vec::as_slice).unwrap_or_default();
                match Divergence::find(tenant, seen, Some(&stored), applied) {
                    Some(divergence) => found.diverged.push(divergence),
                    None => found.agreeing += 1,
                }
            }
        }
        for (tenant, seen) in missing {
            found.comparisons.add(tenant, Some(seen), None);
            found.diverged.extend(Divergence::find(tenant, seen, None, &[]));
        }
        Ok(found)
    }

    /// Reads the intents that are applied, and that the log has begun and not ended. One that was edited tells nothing, and
    /// is left to recovery; neither does one that was put back.
    async fn applied_intents(&self, past: &Past) -> Result<Applied, CompareError> {
        let listed = self.keyring.stored(self.store.intents().await)?;
        let mut applied = Applied::new();
        for sealed in listed.rows {
            let Some(stamp) = &sealed.row.applied else { continue };
            if !past.awaits_outcome(sealed.row.id) {
                continue;
            }
            let what = format!("intent {}", sealed.row.id);
            match self.keyring.verify_row(&sealed, what).await {
                Ok(()) => {}
                Err(KeyringError::Integrity { .. }) => continue,
                Err(error) => return Err(error.into()),
            }
            let tenant = sealed.row.key_name.tenant().id().to_owned();
            applied.entry(tenant).or_default().push(stamp.clone());
        }
        Ok(applied)
    }

    /// Records what the database says of each tenant, also of those where it agrees: their counters, which no manifest has,
    /// are accepted with it.
    async fn accept(
        &self,
        diverged: &[Divergence],
        stored: Vec<(TenantName, ManifestStamp)>,
    ) -> Result<usize, CompareError> {
        let reasons: HashMap<&str, String> =
            diverged.iter().map(|found| (found.tenant.as_str(), found.to_string())).collect();
        let reason = |tenant: &str| reasons.get(tenant).cloned();
        let gone = diverged.iter().filter(|found| found.stored.is_none()).map(|found| {
            let tenant: Text = found.tenant.clone().into();
            (tenant, found.baseline(), reason(&found.tenant))
        });
        let stored = stored.into_iter().map(|(tenant, stamp)| {
            let reason = reason(tenant.id());
            (tenant.shared_id().into(), stamp, reason)
        });
        let mut records = Vec::new();
        for (tenant, stamp, reason) in gone.chain(stored) {
            let request = self.internal_request(ACCEPT_STORE);
            let request = request.map_err(|_: ServiceError| CompareError::Bug("no randomness"))?;
            let mut trail = Trail::unknown();
            trail.tenant = tenant;
            trail.manifest = Some(stamp);
            trail.reason = reason;
            records.push(self.entry(&request, trail, Phase::Complete, STORE_ACCEPTED));
        }
        let accepted = records.len();
        while !records.is_empty() {
            let rest = records.split_off(records.len().min(RECORDS));
            self.audit.append(std::mem::replace(&mut records, rest)).await?;
        }
        Ok(accepted)
    }
}

fn alert(divergence: &Divergence, accepted: bool) {
    let Divergence { tenant, seen, stored: _ } = divergence;
    tracing::error!(
        alert = "store_rolled_back",
        tenant,
        log_revision = seen.revision.get(),
        store_revision = divergence.stored_revision().get(),
        accepted,
        "{divergence}"
    );
}
