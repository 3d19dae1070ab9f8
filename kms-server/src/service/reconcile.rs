//! The reconciler: finishes or undoes what a crash left, finds orphans, writes down what is due.
//!
//! It runs at start, before requests are taken, and then periodically. It must never touch an intent of a mutation that
//! is being worked on. What may be destroyed in the HSM, `recover` decides.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use kms_core::audit::Phase;
use kms_core::clock::Timestamp;
use kms_core::key::{CkaId, Sealed, VersionRow};
use kms_core::name::{KeyName, VersionName};
use kms_hsm::TokenKeys;
use tokio::sync::watch;

use super::ServiceError;
use super::destroy_due::Verified;
use super::due::place;
use super::kms::{Inner, Kms};
use super::recover::Ended;
use super::trail::Trail;
use crate::audit::Past;
use crate::store::{Intent, KeyRef, Listed, REQUEST_MEMORY, StoreError, VersionChoice};

/// How old an intent must be before the periodic run takes it for abandoned: longer than any mutation may take.
pub const INTENT_GRACE: Duration = Duration::from_mins(5);
/// The most deactivations, and the most destructions, done in one run; the next run goes on.
pub const MAX_DUE: u32 = 100;
/// The most keys rolled over by period in one run, and the most staged versions activated: at a few milliseconds each, a run stays shorter than its interval.
pub const MAX_ROTATIONS: u32 = 1000;
/// The most requests forgotten in one commit: changes wait for it, and a tenant's 100,000 at once would take seconds.
pub const MAX_FORGOTTEN: u32 = 1_000;
/// `result` of the outcome record of a mutation that was undone.
pub const ABANDONED: &str = "ABANDONED";
/// `result` of the record of an HSM object that nobody knows.
pub const ORPHAN_OBJECT: &str = "ORPHAN_OBJECT";
pub(super) const OPERATION: &str = "internal/Reconcile";

/// What one run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Mutations that had been committed, whose outcome was missing in the log.
    pub finished: usize,
    /// Mutations that had not been committed, and were undone.
    pub undone: usize,
    /// Deactivations that were due and are written down now.
    pub deactivated: usize,
    /// Staged versions whose date has come, and that are primaries now.
    pub activated: usize,
    /// Keys whose period was over, and that have a new primary now.
    pub rotated: usize,
    /// Versions whose window was over, and that are destroyed now.
    pub destroyed: usize,
    /// Keys that are destroyed as a whole now.
    pub keys_destroyed: usize,
    /// Import jobs that have expired, and are gone now.
    pub import_jobs: usize,
    /// HSM objects that no row and no intent names.
    pub orphans: usize,
    /// Request ids forgotten.
    pub forgotten: u64,
    /// What could not be done this time; the next run tries again.
    pub failed: usize,
}

impl Kms {
    /// Runs once at start, before any request is taken: every intent there is was left by an earlier process. What may be
    /// much (rotations, destructions, requests to forget) is left to [`Kms::reconcile`].
    ///
    /// # Errors
    /// When there is no randomness for ids. What fails one by one is counted instead.
    pub async fn recover(&self) -> Result<Reconciled, ServiceError> {
        self.inner.reconcile(None).await
    }

    /// Runs once while requests are served: takes only intents older than [`INTENT_GRACE`].
    ///
    /// # Errors
    /// When there is no randomness for ids. What fails one by one is counted instead.
    pub async fn reconcile(&self) -> Result<Reconciled, ServiceError> {
        self.inner.reconcile(Some(INTENT_GRACE)).await
    }

    /// Returns how many HSM objects the last run found that nobody knows.
    pub fn orphans(&self) -> usize {
        self.inner.orphans.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Returns how many keys did not protect when that was last counted, as they were not rotated since a gap in the state
    /// journal was accepted.
    pub fn disabled_keys(&self) -> u64 {
        self.inner.disabled_keys.load(Ordering::Relaxed)
    }

    /// Returns how many abandoned intents the last run could not close.
    pub fn stuck_intents(&self) -> usize {
        self.inner.stuck_intents.load(Ordering::Relaxed)
    }

    /// Returns how much the last run could not do; see the log.
    pub fn reconcile_failures(&self) -> usize {
        self.inner.reconcile_failures.load(Ordering::Relaxed)
    }

    /// Reconciles every `interval`, and rolls over what is due, until `stop` says true or its sender is gone.
    pub async fn run(&self, interval: Duration, mut stop: watch::Receiver<bool>) {
        // The start has just recovered: a first round at once would do the same again, beside the first requests.
        let mut ticks = tokio::time::interval(interval);
        ticks.reset();
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stopped(&mut stop) => return,
                () = self.inner.keyring.wait_due_rollover() => {
                    self.rotate_due().await;
                }
                _ = ticks.tick() => {
                    if let Err(error) = self.reconcile().await {
                        tracing::warn!(%error, "reconciling failed, tried again later");
                    }
                }
            }
        }
    }
}

impl Reconciled {
    /// Notes a rollover that was due and failed; it stays due.
    ///
    /// # Errors
    /// The error, when it helps none to try the others. Who waited in vain for a turn waited for one tenant's.
    pub(super) fn rollover_failed(
        &mut self,
        key: &KeyName,
        error: ServiceError,
    ) -> Result<(), ServiceError> {
        self.failed += 1;
        if error.retry().is_some() && error != ServiceError::QueueDeadline {
            return Err(error);
        }
        tracing::error!(alert = "rollover_failed", %error, %key, "tried again later");
        Ok(())
    }
}

/// Waits for true, or for the sender to go.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    let mut told = *stop.borrow_and_update();
    while !told && stop.changed().await.is_ok() {
        told = *stop.borrow_and_update();
    }
}

impl Inner {
    /// Each step by itself: one that fails must not keep the others from running.
    async fn reconcile(
        self: &Arc<Self>,
        grace: Option<Duration>,
    ) -> Result<Reconciled, ServiceError> {
        let mut done = Reconciled::default();
        // Invariant: no row is acted upon, and none forgotten, of a database that may not be the right one (`rollback.rs`).
        if self.is_doubtful.load(Ordering::Acquire) {
            tracing::warn!("nothing is recovered: the database is not compared with the log");
            done.failed = 1;
            self.reconcile_failures.store(done.failed, Ordering::Relaxed);
            return Ok(done);
        }
        let deadline = self.internal_request(OPERATION)?.deadline;
        // The order matters: an object listed here has its intent, or its row, in what is read after.
        let token_keys = self.hsm.list_token_keys(deadline).await;
        let named = self.end_abandoned(grace, &mut done).await;
        let named = note("intents", named, &mut done);
        if let (Some(token_keys), Some(named)) = (note("token", token_keys, &mut done), named) {
            let orphans = self.report_orphans(&token_keys, named, &mut done).await;
            done.orphans = note("orphans", orphans, &mut done).unwrap_or_default();
        }
        let deactivated = self.deactivate_due(&mut done).await;
        note("deactivations", deactivated, &mut done);
        // Not before a server is ready: they may be many, and nobody is worse off a minute later.
        if grace.is_some() {
            let mut verified = Verified::default();
            let destroyed = self.destroy_due(&mut verified, &mut done).await;
            note("destructions", destroyed, &mut done);
            let destroyed = self.destroy_keys_due(&mut verified, &mut done).await;
            note("key destructions", destroyed, &mut done);
            let expired = self.expire_import_jobs(&mut done).await;
            note("import jobs", expired, &mut done);
            // Before the rotations: what is planned for a key takes the place of what would be made.
            let activated = self.activate_due(&mut done).await;
            note("activations", activated, &mut done);
            let rotated = self.rotate_by_period(&mut done).await;
            note("rotations", rotated, &mut done);
            let memory_ms = i64::try_from(REQUEST_MEMORY.as_millis()).unwrap_or(i64::MAX);
            let before = self.clock.now().as_unix_ms().saturating_sub(memory_ms);
            let before = Timestamp::from_unix_ms(before);
            let forgotten = self.forget_requests(before, &mut done).await;
            note("requests", forgotten, &mut done);
        }
        let written = self.keyring.write_uses().await;
        note("uses", written, &mut done);
        let counted = self.count_disabled().await;
        note("keys that do not protect", counted, &mut done);
        self.reconcile_failures.store(done.failed, Ordering::Relaxed);
        Ok(done)
    }

    /// Counts the keys that wait to be rotated since a gap in the state journal was accepted.
    async fn count_disabled(&self) -> Result<(), ServiceError> {
        let Some(fence) = self.journal.fence() else { return Ok(()) };
        let count = self.store.primaries_made_before(fence).await?;
        if self.disabled_keys.swap(count, Ordering::Relaxed) != count {
            tracing::warn!(
                alert = "protect_disabled",
                count,
                "keys do not protect until they are rotated"
            );
        }
        Ok(())
    }

    /// Forgets all that is of age, a commit at a time.
    async fn forget_requests(
        &self,
        before: Timestamp,
        done: &mut Reconciled,
    ) -> Result<(), StoreError> {
        loop {
            let forgotten = self.store.forget_requests(before, MAX_FORGOTTEN).await?;
            done.forgotten += forgotten;
            if forgotten < u64::from(MAX_FORGOTTEN) {
                return Ok(());
            }
        }
    }

    /// Ends the intents that nobody works on; returns the objects that the listed ones name and that may stay.
    async fn end_abandoned(
        &self,
        grace: Option<Duration>,
        done: &mut Reconciled,
    ) -> Result<HashSet<CkaId>, ServiceError> {
        let listed = self.store.intents().await?;
        let listed = self.readable("intents", listed, done);
        let mut named: HashSet<CkaId> =
            listed.iter().map(|intent| intent.row.resident_id).collect();
        let abandoned = self.abandoned(&listed, grace).await?;
        let past = if abandoned.is_empty() { Past::default() } else { self.audit.past() };
        let mut stuck = 0;
        for intent in &abandoned {
            match self.end(intent, &past).await {
                Ok(Ended::Finished) => done.finished += 1,
                Ok(Ended::Undone) => done.undone += 1,
                Ok(Ended::ObjectLeft) => {
                    done.undone += 1;
                    named.remove(&intent.row.resident_id);
                }
                Err(error) => {
                    tracing::warn!(%error, intent = %intent.row.id, "an intent stays open");
                    stuck += 1;
                }
            }
        }
        done.failed += stuck;
        self.stuck_intents.store(stuck, Ordering::Relaxed);
        Ok(named)
    }

    /// Returns the rows that could be read, and raises the alert for those that could not.
    pub(super) fn readable<R>(
        &self,
        what: &str,
        listed: Listed<R>,
        done: &mut Reconciled,
    ) -> Vec<R> {
        if listed.damaged > 0 {
            // Only the alert is wanted, not the error: the other rows are served.
            let _ = self.keyring.integrity(format!("{} {what} cannot be read", listed.damaged));
            done.failed += listed.damaged;
        }
        listed.rows
    }

    /// Returns those of the listed intents that nobody works on, as they are now.
    ///
    /// Invariant: read again after each was seen inactive, as its own task may have applied or closed it since the
    /// listing (`an_intent_that_its_own_task_ends_meanwhile_is_left_alone`); and read after the store could write, as a
    /// commit in doubt may still come back before that (`no_intent_is_ended_while_the_store_cannot_write`).
    async fn abandoned(
        &self,
        listed: &[Sealed<Intent>],
        grace: Option<Duration>,
    ) -> Result<Vec<Sealed<Intent>>, ServiceError> {
        let now = self.clock.now();
        let listed = listed.iter().map(|intent| &intent.row);
        let old = |intent: &&Intent| grace.is_none_or(|grace| intent.time.after(grace) <= now);
        let inactive = listed.filter(old).filter(|intent| !self.is_active(intent.id));
        let inactive: HashSet<_> = inactive.map(|intent| intent.id).collect();
        if inactive.is_empty() {
            return Ok(Vec::new());
        }
        self.store.probe(now).await?;
        let again = self.store.intents().await?.rows;
        Ok(again.into_iter().filter(|intent| inactive.contains(&intent.row.id)).collect())
    }

    /// Reports objects that nobody knows, each once; destroys none: they may be another system's.
    async fn report_orphans(
        &self,
        token_keys: &TokenKeys,
        named: HashSet<CkaId>,
        done: &mut Reconciled,
    ) -> Result<usize, ServiceError> {
        let rows = self.store.resident_ids().await?;
        let mut known = named;
        known.extend(self.readable("versions", rows, done));
        // Those of retired roots, too: they stay as long as backups need them.
        let pins = self.store.root_pins().await?;
        known.extend(pins.iter().flat_map(|(pin, _)| [pin.wrap_id, pin.mac_id]));
        let mut found = orphans(token_keys, &known);
        if !found.is_empty() {
            // A mutation that failed meanwhile took its object along with its intent.
            let deadline = self.internal_request(OPERATION)?.deadline;
            let again = self.hsm.list_token_keys(deadline).await;
            let again = orphans(&again.map_err(|error| self.device(error))?, &known);
            found.retain(|object| again.contains(object));
        }
        let reported = self.orphans.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for object in found.difference(&reported) {
            tracing::error!(
                alert = "orphan_object",
                object,
                "the token has a key that no row names"
            );
            let mut trail = Trail::unknown();
            trail.resource = Some(object.clone().into());
            let request = self.internal_request(OPERATION)?;
            self.record_phase(&request, &trail, Phase::Complete, ORPHAN_OBJECT).await?;
        }
        let count = found.len();
        *self.orphans.lock().unwrap_or_else(PoisonError::into_inner) = found;
        Ok(count)
    }

    /// Names a version that was listed as due; `None` when it has gone, or is of a row that cannot be read, which counts.
    pub(super) async fn name_of_due(
        &self,
        due: &VersionRow,
        done: &mut Reconciled,
    ) -> Result<Option<VersionName>, ServiceError> {
        let choice = VersionChoice::Number(due.version);
        match self.store.key(KeyRef::Uid(due.key_uid), choice).await {
            Ok(stored) => {
                Ok(stored.map(|stored| VersionName::new(stored.key.row.name, due.version)))
            }
            Err(StoreError::Damaged { detail }) => {
                // Only the alert is wanted: what is due of others is done.
                let _ = self.keyring.integrity(detail);
                done.failed += 1;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn deactivate_due(self: &Arc<Self>, done: &mut Reconciled) -> Result<(), ServiceError> {
        let cursor = &self.due.deactivations;
        let due = self.store.due_deactivations(self.clock.now(), cursor.after(), MAX_DUE).await?;
        cursor.read(&due, MAX_DUE, |due| place(&due.row, due.row.deactivate_time));
        for due in self.readable("deactivations", due, done) {
            let Some(name) = self.name_of_due(&due.row, done).await? else { continue };
            let request = self.internal_request("internal/DeactivateKeyVersion")?;
            let mut trail = Trail::key(name.key());
            let result = self.deactivate(&request, &name, &mut trail).await;
            match result {
                Ok(()) => done.deactivated += 1,
                Err(error) => {
                    tracing::warn!(%error, key_version = %name, "a deactivation is still due");
                    done.failed += 1;
                }
            }
        }
        Ok(())
    }
}

/// Notes a step that failed; the next run tries it again.
fn note<T, E: std::fmt::Display>(
    step: &'static str,
    result: Result<T, E>,
    done: &mut Reconciled,
) -> Option<T> {
    result
        .inspect_err(|error| {
            tracing::warn!(%error, step, "a step of reconciling failed, tried again later");
            done.failed += 1;
        })
        .ok()
}

/// Names the objects that nobody knows: `cka-id:HEX`, `no-cka-id:NUMBER` for one without, and `#NUMBER` after an id that
/// stands more than once.
fn orphans(token_keys: &TokenKeys, known: &HashSet<CkaId>) -> HashSet<String> {
    let named = token_keys.residents.iter().chain(&token_keys.import_keys);
    let residents = named.filter(|id| !known.contains(id));
    let residents = residents.map(|id| &id.0[..]);
    let strays = token_keys.strays.iter().map(|stray| stray.id.as_slice());
    let mut seen: HashMap<&[u8], usize> = HashMap::new();
    let mut named = HashSet::new();
    for id in residents.chain(strays) {
        let number = seen.entry(id).or_default();
        *number += 1;
        let hex = data_encoding::HEXLOWER.encode(id);
        named.insert(match (id.is_empty(), *number) {
            (true, number) => format!("no-cka-id:{number}"),
            (false, 1) => format!("cka-id:{hex}"),
            (false, number) => format!("cka-id:{hex}#{number}"),
        });
    }
    named
}

#[cfg(test)]
mod tests {
    use kms_hsm::Stray;

    use super::*;

    #[test]
    fn every_orphan_has_a_name_of_its_own() {
        let id = |byte| CkaId([byte; 16]);
        let stray = |id: &[u8]| Stray { id: id.to_vec() };
        let keys = TokenKeys {
            residents: vec![id(1), id(2)],
            import_keys: vec![id(1), id(3)],
            strays: vec![stray(&[]), stray(&[]), stray(&[7]), stray(&[2; 16]), stray(&[1; 16])],
        };
        let mut named: Vec<_> = orphans(&keys, &HashSet::from([id(1)])).into_iter().collect();
        named.sort();
        let twos = "02".repeat(16);
        let expected = [
            // Of an id that a row names there is one object too many.
            format!("cka-id:{}", "01".repeat(16)),
            format!("cka-id:{twos}"),
            format!("cka-id:{twos}#2"),
            format!("cka-id:{}", "03".repeat(16)),
            "cka-id:07".to_owned(),
            "no-cka-id:1".to_owned(),
            "no-cka-id:2".to_owned(),
        ];
        assert_eq!(named, expected);
    }
}
