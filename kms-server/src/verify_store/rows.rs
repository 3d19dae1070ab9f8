//! The walk over the rows: MACs in batches, the set of each tenant's rows beside its manifest, counters beside the log.

use std::collections::{BTreeSet, HashMap};
use std::ops::RangeInclusive;

use kms_core::alias::AliasRow;
use kms_core::audit::ManifestStamp;
use kms_core::id::{KeyUid, KeyVersion, RootGeneration};
use kms_core::import_job::ImportJobRow;
use kms_core::key::{CounterRow, RowMac, Sealed};
use kms_core::lifecycle::HistoryRow;
use kms_core::manifest::RowSet;
use kms_core::secret::equal_in_constant_time;
use kms_core::usage::UsageRow;
use kms_hsm::HsmError;

use super::{Finding, LogSummary, Macs, Report, Seen};
use crate::audit::verify::VerifyError;
use crate::audit::{Comparisons, Divergence};
use crate::keyring::MacInput;
use crate::store::sqlite::offline::{Looked, OfflineStore};
use crate::store::{Intent, StoreError};

/// Rows whose MACs are made in one call of the HSM.
const BATCH: usize = 256;

/// Why a database cannot be verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifyStoreError {
    /// It cannot be read.
    #[error("store: {0}")]
    Store(#[from] StoreError),
    /// The HSM makes no MACs.
    #[error("row MACs need root `mac` in the token, and it cannot be used: {0}")]
    Hsm(#[from] HsmError),
    /// A defect of ours.
    #[error("bug: {0}")]
    Bug(&'static str),
}

/// Verifies all rows of `store`. `log` is what the log has seen, or why it cannot be believed; `open` are the root generations
/// that are pinned and not retired.
///
/// # Errors
/// When rows cannot be read or verified at all. What does not agree is in the report.
pub fn verify(
    store: &OfflineStore,
    log: Result<(Seen, LogSummary), VerifyError>,
    open: RangeInclusive<RootGeneration>,
    macs: &mut Macs<'_>,
) -> Result<Report, VerifyStoreError> {
    let mut report = Report::default();
    let seen = match log {
        Ok((seen, summary)) => {
            report.log = Some(summary);
            Some(seen)
        }
        Err(error) => {
            let detail = format!("{error}: the database is not compared with the log");
            report.add(Finding { detail, ..Place::whole("log").finding() });
            None
        }
    };
    let mut walk = Walk {
        store,
        seen,
        open,
        macs,
        report,
        checks: Vec::new(),
        comparisons: Comparisons::default(),
        is_acceptable: true,
        has_gone_back: false,
    };
    for fault in store.faults()? {
        walk.found(&Place::whole("database"), fault);
    }
    walk.strays()?;
    let applied = walk.intents()?;
    walk.tenants(&applied)?;
    walk.requests()?;
    walk.make_macs()?;
    let mut report = walk.report;
    // Where the first files of the log are not there, a start knows more of it, by their summary.
    let is_whole = report.log.is_some_and(|log| log.first == Some(1));
    if walk.has_gone_back && walk.is_acceptable && is_whole {
        let acceptances = walk.seen.as_ref().map_or(0, Seen::acceptances);
        report.accept_code = Some(walk.comparisons.code(acceptances).to_string());
    }
    report.agrees = report.disagreements() == 0;
    Ok(report)
}

/// Where a row stands.
#[derive(Clone, Debug)]
struct Place {
    tenant: Option<String>,
    row: &'static str,
    key_uid: Option<KeyUid>,
    version: Option<KeyVersion>,
}

impl Place {
    const fn whole(row: &'static str) -> Self {
        Self { tenant: None, row, key_uid: None, version: None }
    }

    fn of(tenant: &str, row: &'static str) -> Self {
        Self { tenant: Some(tenant.to_owned()), ..Self::whole(row) }
    }

    fn at(&self, key_uid: KeyUid, version: Option<KeyVersion>) -> Self {
        Self { key_uid: Some(key_uid), version, ..self.clone() }
    }

    fn finding(&self) -> Finding {
        let Self { tenant, row, key_uid, version } = self.clone();
        Finding { tenant, row, key_uid, key_version: version, detail: String::new() }
    }
}

/// A MAC that is still to be made and compared.
struct Check {
    generation: RootGeneration,
    input: Vec<u8>,
    mac: RowMac,
    place: Place,
}

struct Walk<'w, 'm> {
    store: &'w OfflineStore,
    seen: Option<Seen>,
    open: RangeInclusive<RootGeneration>,
    macs: &'w mut Macs<'m>,
    report: Report,
    checks: Vec<Check>,
    comparisons: Comparisons,
    /// Whether all manifests can be verified: a start goes on with no other.
    is_acceptable: bool,
    /// Whether there is anything that an acceptance makes agree.
    has_gone_back: bool,
}

/// Stamps of applied intents, by tenant.
type Applied = HashMap<String, Vec<ManifestStamp>>;

impl Walk<'_, '_> {
    fn found(&mut self, place: &Place, detail: impl Into<String>) {
        self.report.add(Finding { detail: detail.into(), ..place.finding() });
    }

    /// Takes a row that could be read, and has its MAC checked; tells of one that could not.
    fn take<R: MacInput>(
        &mut self,
        looked: Looked<Sealed<R>>,
        place: impl FnOnce(&R) -> Place,
        unread: &Place,
    ) -> Result<Option<Sealed<R>>, VerifyStoreError> {
        let sealed = match looked {
            Ok(sealed) => sealed,
            Err(damaged) => {
                let place = Place {
                    key_uid: damaged.key_uid.or(unread.key_uid),
                    version: damaged.version,
                    ..unread.clone()
                };
                self.found(&place, damaged.detail);
                return Ok(None);
            }
        };
        let Sealed { row, mac, generation } = &sealed;
        let place = place(row);
        if self.open.contains(generation) {
            let input = row.mac_input(*generation);
            self.checks.push(Check { generation: *generation, input, mac: *mac, place });
        } else {
            self.is_acceptable &= place.row != "manifest";
            self.found(&place, format!("root generation {generation} is not open"));
        }
        if self.checks.len() >= BATCH {
            self.make_macs()?;
        }
        Ok(Some(sealed))
    }

    fn make_macs(&mut self) -> Result<(), VerifyStoreError> {
        let mut checks = std::mem::take(&mut self.checks);
        checks.sort_by_key(|check| check.generation);
        for group in checks.chunk_by_mut(|a, b| a.generation == b.generation) {
            let Some(generation) = group.first().map(|check| check.generation) else { continue };
            let inputs = group.iter_mut().map(|check| std::mem::take(&mut check.input)).collect();
            let made = (self.macs)(generation, inputs)?;
            if made.len() != group.len() {
                return Err(VerifyStoreError::Bug("the hsm gave another number of MACs"));
            }
            for (check, made) in group.iter().zip(made) {
                if !equal_in_constant_time(&check.mac.0, &made.0) {
                    self.is_acceptable &= check.place.row != "manifest";
                    self.found(&check.place, "the MAC does not fit: the row was edited or moved");
                }
            }
        }
        Ok(())
    }

    fn strays(&mut self) -> Result<(), VerifyStoreError> {
        let store = self.store;
        store.strays(|table, stray| {
            let (row, what) = match table {
                "versions" => ("version", "there is no key for it"),
                "history" => ("history", "there is no key for it"),
                "consumers" => ("consumer", "there is no key for it"),
                _ => ("counter", "there is no version for it"),
            };
            let place =
                Place { key_uid: stray.key_uid, version: stray.version, ..Place::whole(row) };
            self.found(&place, what);
            Ok(())
        })
    }

    /// Verifies intents; returns the stamps of those that are genuine and applied, and whose outcome the log awaits.
    fn intents(&mut self) -> Result<Applied, VerifyStoreError> {
        let store = self.store;
        let mut applied = Applied::new();
        store.intents(|looked| {
            self.report.intents += 1;
            let whole = Place::whole("intent");
            let of = |intent: &Intent| {
                let tenant = intent.key_name.tenant().id();
                Place::of(tenant, "intent").at(intent.key_uid, Some(intent.version))
            };
            let before = self.report.disagreements();
            let taken = self.take(looked, of, &whole)?;
            // One by one: only a genuine one tells why a manifest is ahead of the log.
            self.make_macs()?;
            let genuine = self.report.disagreements() == before;
            let awaited =
                |row: &Intent| self.seen.as_ref().is_some_and(|seen| seen.awaits_outcome(row.id));
            if let Some(Sealed { row, .. }) = taken.filter(|sealed| genuine && awaited(&sealed.row))
                && let Some(stamp) = row.applied
            {
                let tenant = row.key_name.tenant().id().to_owned();
                applied.entry(tenant).or_default().push(stamp);
            }
            Ok::<_, VerifyStoreError>(())
        })?;
        Ok(applied)
    }

    fn requests(&mut self) -> Result<(), VerifyStoreError> {
        let store = self.store;
        store.requests(|looked| {
            self.report.requests += 1;
            let whole = Place::whole("request");
            self.take(looked, |_| whole.clone(), &whole).map(drop)
        })
    }

    fn tenants(&mut self, applied: &Applied) -> Result<(), VerifyStoreError> {
        let mut tenants: BTreeSet<String> = self.store.tenants()?.into_iter().collect();
        tenants.extend(self.seen.iter().flat_map(|seen| seen.stamps().keys().cloned()));
        let mut wrong = Vec::new();
        for tenant in tenants {
            self.report.tenants += 1;
            let explained = applied.get(&tenant).map(Vec::as_slice).unwrap_or_default();
            if !self.tenant(&tenant, explained)? {
                wrong.push(tenant);
            }
        }
        for tenant in wrong {
            self.missing_versions(&tenant)?;
        }
        let returned = self.seen.as_ref().map(|seen| seen.returned().to_vec());
        self.has_gone_back |= returned.as_ref().is_some_and(|returned| !returned.is_empty());
        returned.into_iter().flatten().for_each(|finding| self.report.add(finding));
        Ok(())
    }

    /// Walks a tenant; returns whether its rows are those of its manifest, and the manifest is what the log says.
    fn tenant(
        &mut self,
        tenant: &str,
        applied: &[ManifestStamp],
    ) -> Result<bool, VerifyStoreError> {
        let mut rows = RowSet::empty();
        let store = self.store;
        let place = Place::of(tenant, "key");
        store.keys(tenant, |looked| {
            self.report.keys += 1;
            let taken = self.take(looked, |key| place.at(key.uid, None), &place)?;
            let Some(Sealed { row: key, mac, .. }) = taken else { return Ok(()) };
            rows.insert(&mac);
            self.versions(tenant, key.uid, key.latest, &mut rows)?;
            self.history(tenant, key.uid, &mut rows)?;
            self.consumers(tenant, &key, &mut rows)?;
            self.usage(tenant, key.uid)
        })?;
        self.import_jobs(tenant, &mut rows)?;
        self.aliases(tenant, &mut rows)?;
        let place = Place::of(tenant, "manifest");
        let manifest = match store.manifest(tenant)? {
            Some(looked) => {
                let taken = self.take(looked, |_| place.clone(), &place)?;
                self.is_acceptable &= taken.is_some();
                let Some(sealed) = taken else { return Ok(false) };
                Some(sealed.row)
            }
            None => None,
        };
        let told = manifest.as_ref().map_or(RowSet::empty(), |manifest| manifest.rows.clone());
        let whole = rows == told;
        if !whole {
            let detail = match &manifest {
                Some(manifest) => format!(
                    "the rows are not those of revision {}: one was deleted, added or put back",
                    manifest.revision
                ),
                None => "there are rows, and no manifest".to_owned(),
            };
            self.found(&place, detail);
        }
        let Some(seen) = &self.seen else { return Ok(whole) };
        let stored = manifest.map(|manifest| manifest.stamp());
        let stamp = seen.stamps().get(tenant);
        if stamp.is_some() || stored.is_some() {
            self.comparisons.add(tenant, stamp, stored.as_ref());
        }
        let Some(stamp) = stamp else {
            self.report.tenants_not_in_log += 1;
            self.has_gone_back = true;
            return Ok(whole);
        };
        let Some(divergence) = Divergence::find(tenant, stamp, stored.as_ref(), applied) else {
            return Ok(whole);
        };
        self.has_gone_back = true;
        self.found(&place, divergence.to_string());
        Ok(false)
    }

    /// Not in the manifest: only their MACs are checked.
    fn usage(&mut self, tenant: &str, uid: KeyUid) -> Result<(), VerifyStoreError> {
        let store = self.store;
        let place = Place::of(tenant, "usage").at(uid, None);
        store.usage(uid, |looked| {
            self.report.usage += 1;
            let of = |usage: &UsageRow| place.at(uid, Some(usage.version));
            self.take(looked, of, &place).map(drop)
        })
    }

    fn consumers(
        &mut self,
        tenant: &str,
        key: &kms_core::key::KeyRow,
        rows: &mut RowSet,
    ) -> Result<(), VerifyStoreError> {
        let store = self.store;
        let place = Place::of(tenant, "consumer").at(key.uid, None);
        let mut count = 0;
        store.consumers(key.uid, |looked| {
            count += 1;
            if let Some(sealed) = self.take(looked, |_| place.clone(), &place)? {
                rows.insert(&sealed.mac);
            }
            Ok::<_, VerifyStoreError>(())
        })?;
        self.report.consumers += u64::from(count);
        if count != key.consumers {
            let detail = format!("the key has {} consumers, and {count} are there", key.consumers);
            self.found(&place, detail);
        }
        Ok(())
    }

    fn aliases(&mut self, tenant: &str, rows: &mut RowSet) -> Result<(), VerifyStoreError> {
        let store = self.store;
        let place = Place::of(tenant, "alias");
        store.aliases(tenant, |looked| {
            self.report.aliases += 1;
            let of = |alias: &AliasRow| place.at(alias.key_uid, None);
            if let Some(sealed) = self.take(looked, of, &place)? {
                rows.insert(&sealed.mac);
            }
            Ok::<_, VerifyStoreError>(())
        })
    }

    fn import_jobs(&mut self, tenant: &str, rows: &mut RowSet) -> Result<(), VerifyStoreError> {
        let store = self.store;
        let place = Place::of(tenant, "import job");
        store.import_jobs(tenant, |looked| {
            self.report.import_jobs += 1;
            let of = |job: &ImportJobRow| place.at(job.key_uid, None);
            if let Some(sealed) = self.take(looked, of, &place)? {
                rows.insert(&sealed.mac);
            }
            Ok::<_, VerifyStoreError>(())
        })
    }

    fn history(
        &mut self,
        tenant: &str,
        uid: KeyUid,
        rows: &mut RowSet,
    ) -> Result<(), VerifyStoreError> {
        let store = self.store;
        let place = Place::of(tenant, "history").at(uid, None);
        store.history(uid, |looked| {
            self.report.history += 1;
            let of = |entry: &HistoryRow| place.at(uid, KeyVersion::new(entry.version_number()));
            if let Some(sealed) = self.take(looked, of, &place)? {
                rows.insert(&sealed.mac);
            }
            Ok::<_, VerifyStoreError>(())
        })
    }

    fn versions(
        &mut self,
        tenant: &str,
        uid: KeyUid,
        latest: KeyVersion,
        rows: &mut RowSet,
    ) -> Result<(), VerifyStoreError> {
        let store = self.store;
        let place = Place::of(tenant, "version").at(uid, None);
        let (mut count, mut counters) = (0, 0);
        store.versions(uid, |looked| {
            count += 1;
            let of = |version: &kms_core::key::VersionRow| place.at(uid, Some(version.version));
            if let Some(sealed) = self.take(looked, of, &place)? {
                rows.insert(&sealed.mac);
            }
            Ok::<_, VerifyStoreError>(())
        })?;
        self.report.versions += count;
        if count != u64::from(latest.get()) {
            let detail = format!("the key has {latest} versions, and {count} are there");
            self.found(&place, detail);
        }
        let place = Place::of(tenant, "counter").at(uid, None);
        store.counters(uid, |looked| {
            counters += 1;
            let of = |counter: &CounterRow| place.at(uid, Some(counter.version));
            if let Some(sealed) = self.take(looked, of, &place)? {
                self.counter(tenant, &place, &sealed.row);
            }
            Ok::<_, VerifyStoreError>(())
        })?;
        self.report.counters += counters;
        if counters != count {
            self.found(&place, format!("of {count} versions {counters} have a counter"));
        }
        Ok(())
    }

    /// A crash may have come between a row and its record, so a row may be newer than the log, and never older.
    fn counter(&mut self, tenant: &str, place: &Place, row: &CounterRow) {
        let seen = self.seen.as_ref();
        let seen = seen.and_then(|seen| seen.counter(tenant, row.key_uid, row.version));
        let Some(seen) = seen else { return };
        let back = row.revision < seen.revision;
        if back || (row.revision == seen.revision && row.leased != seen.leased) {
            let detail = format!(
                "revision {} has {} invocations, and the log has seen revision {} with {}: an older row was put back",
                row.revision, row.leased, seen.revision, seen.leased
            );
            self.has_gone_back = true;
            self.found(&place.at(row.key_uid, Some(row.version)), detail);
        }
    }

    /// Names the versions that the log tells of and the database does not have.
    fn missing_versions(&mut self, tenant: &str) -> Result<(), VerifyStoreError> {
        let Some(seen) = &self.seen else { return Ok(()) };
        let mut missing = Vec::new();
        for (uid, version) in seen.versions_of(tenant) {
            if !self.store.has_version(uid, version)? {
                missing.push((uid, version));
            }
        }
        missing.sort_unstable();
        for (uid, version) in missing {
            let place = Place::of(tenant, "version").at(uid, Some(version));
            self.found(&place, "the log tells of it, and it is not there");
        }
        Ok(())
    }
}
