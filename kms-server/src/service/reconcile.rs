//! The reconciler: finishes or undoes what a crash left, finds orphans, writes down what is due.
//!
//! It runs at start, before requests are taken, and then periodically. It must never destroy an HSM object that is not
//! named by an intent known to be abandoned, and never touch an intent of a mutation that is being worked on.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use kms_core::audit::{ManifestStamp, Phase};
use kms_core::key::{CkaId, Protection};
use kms_core::name::VersionName;
use kms_hsm::TokenKeys;
use tokio::sync::watch;

use super::kms::{Inner, Kms};
use super::trail::{OK, Trail};
use super::{RequestContext, ServiceError};
use crate::store::{Intent, KeyRef, REQUEST_MEMORY, VersionChoice};

/// How old an intent must be before the periodic run takes it for abandoned: longer than any mutation may take.
pub const INTENT_GRACE: Duration = Duration::from_mins(5);
/// The most deactivations written down in one run; the next run goes on.
pub const MAX_DUE: u32 = 100;
/// `result` of the outcome record of a mutation that was undone.
pub const ABANDONED: &str = "ABANDONED";
/// `result` of the record of an HSM object that nobody knows.
pub const ORPHAN_OBJECT: &str = "ORPHAN_OBJECT";
const OPERATION: &str = "internal/Reconcile";

/// What one run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Mutations that had been committed, whose outcome was missing in the log.
    pub finished: usize,
    /// Mutations that had not been committed, and were undone.
    pub undone: usize,
    /// Deactivations that were due and are written down now.
    pub deactivated: usize,
    /// HSM objects that no row and no intent names.
    pub orphans: usize,
    /// Request ids forgotten.
    pub forgotten: u64,
    /// What could not be done this time; the next run tries again.
    pub failed: usize,
}

impl Kms {
    /// Runs once at start, before any request is taken: every intent there is was left by an earlier process.
    ///
    /// # Errors
    /// When the store cannot be read. What fails one by one is counted instead.
    pub async fn recover(&self) -> Result<Reconciled, ServiceError> {
        self.inner.reconcile(None).await
    }

    /// Runs once while requests are served: takes only intents older than [`INTENT_GRACE`].
    ///
    /// # Errors
    /// When the store cannot be read. What fails one by one is counted instead.
    pub async fn reconcile(&self) -> Result<Reconciled, ServiceError> {
        self.inner.reconcile(Some(INTENT_GRACE)).await
    }

    /// Returns how many HSM objects the last run found that nobody knows.
    pub fn orphans(&self) -> usize {
        self.inner.orphans.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Returns how many abandoned intents the last run could not close.
    pub fn stuck_intents(&self) -> usize {
        self.inner.stuck_intents.load(Ordering::Relaxed)
    }

    /// Reconciles every `interval`, and rolls over what is due, until `stop` says true or its sender is gone.
    pub async fn run(&self, interval: Duration, mut stop: watch::Receiver<bool>) {
        let mut ticks = tokio::time::interval(interval);
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

/// Waits for true, or for the sender to go.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let mut told = *stop.borrow_and_update();
    while !told && stop.changed().await.is_ok() {
        told = *stop.borrow_and_update();
    }
}

impl Inner {
    async fn reconcile(
        self: &Arc<Self>,
        grace: Option<Duration>,
    ) -> Result<Reconciled, ServiceError> {
        let mut done = Reconciled::default();
        let request = self.internal_request(OPERATION)?;
        // The order matters: an object listed here has its intent, or its row, in what is read after.
        let token_keys = self.hsm.list_token_keys(request.deadline).await;
        let intents = self.store.intents().await?;
        let abandoned = self.abandoned(&intents, grace).await?;
        let known: HashSet<CkaId> = self.store.resident_ids().await?.into_iter().collect();
        let now = self.clock.now();
        for intent in &abandoned {
            let result = match &intent.applied {
                Some(stamp) => self.finish(intent, stamp).await.map(|()| done.finished += 1),
                None => self.undo(intent, &known).await.map(|()| done.undone += 1),
            };
            if let Err(error) = result {
                tracing::warn!(%error, intent = %intent.id, "an intent stays open");
                done.failed += 1;
            }
        }
        self.stuck_intents.store(done.failed, Ordering::Relaxed);
        match token_keys {
            Ok(token_keys) => {
                let named = intents.iter().map(|intent| intent.resident_id);
                let known = known.into_iter().chain(named).collect();
                done.orphans = self.report_orphans(&token_keys, &known).await?;
            }
            Err(error) => {
                tracing::warn!(%error, "orphans could not be looked for");
                done.failed += 1;
            }
        }
        self.deactivate_due(&mut done).await?;
        let memory_ms = i64::try_from(REQUEST_MEMORY.as_millis()).unwrap_or(i64::MAX);
        let before = now.as_unix_ms().saturating_sub(memory_ms);
        let before = kms_core::clock::Timestamp::from_unix_ms(before);
        done.forgotten = self.store.forget_requests(before).await?;
        Ok(done)
    }

    /// Returns those of the listed intents that nobody works on, as they are now.
    ///
    /// Invariant: read again after each was seen inactive, as its own task may have applied or closed it since the
    /// listing (`an_intent_that_its_own_task_ends_meanwhile_is_left_alone`).
    async fn abandoned(
        &self,
        listed: &[Intent],
        grace: Option<Duration>,
    ) -> Result<Vec<Intent>, ServiceError> {
        let now = self.clock.now();
        let old = |intent: &&Intent| grace.is_none_or(|grace| intent.time.after(grace) <= now);
        let inactive = listed.iter().filter(old).filter(|intent| !self.is_active(intent.id));
        let inactive: HashSet<_> = inactive.map(|intent| intent.id).collect();
        if inactive.is_empty() {
            return Ok(Vec::new());
        }
        let again = self.store.intents().await?;
        Ok(again.into_iter().filter(|intent| inactive.contains(&intent.id)).collect())
    }

    /// Writes the outcome of a mutation that was committed.
    async fn finish(&self, intent: &Intent, stamp: &ManifestStamp) -> Result<(), ServiceError> {
        let (request, mut trail) = self.trail_of(intent)?;
        // Intents carry no MAC: what this one says may at least not contradict the manifest, which does.
        let manifest = self.keyring.manifest(intent.key_name.tenant()).await?.stamp();
        let later = stamp.revision < manifest.revision;
        if !later && *stamp != manifest {
            let detail = format!("intent {} names a manifest that never was", intent.id);
            return Err(self.keyring.integrity(detail).into());
        }
        trail.manifest = Some(stamp.clone());
        self.record_phase(&request, &trail, Phase::Outcome, OK).await?;
        Ok(self.store.close_intent(intent.id).await?)
    }

    /// Undoes a mutation that was not committed: its object goes, the outcome says so, the intent is closed.
    async fn undo(&self, intent: &Intent, known: &HashSet<CkaId>) -> Result<(), ServiceError> {
        let (request, trail) = self.trail_of(intent)?;
        if intent.protection == Protection::HsmResident {
            if known.contains(&intent.resident_id) {
                return Err(ServiceError::Bug { reason: "an open intent names a key in use" });
            }
            let destroyed = self.hsm.destroy_resident(intent.resident_id, request.deadline).await;
            destroyed.map_err(|error| self.device(error))?;
        }
        self.record_phase(&request, &trail, Phase::Outcome, ABANDONED).await?;
        Ok(self.store.close_intent(intent.id).await?)
    }

    fn trail_of(&self, intent: &Intent) -> Result<(RequestContext, Trail), ServiceError> {
        let mut trail = Trail::key(&intent.key_name);
        trail.intent = Some(intent.id);
        trail.key_uid = Some(intent.key_uid);
        trail.version = Some(intent.version);
        Ok((self.internal_request(OPERATION)?, trail))
    }

    /// Reports objects that nobody knows, each once; destroys none: they may be another system's.
    async fn report_orphans(
        &self,
        token_keys: &TokenKeys,
        known: &HashSet<CkaId>,
    ) -> Result<usize, ServiceError> {
        let found = orphans(token_keys, known);
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

    async fn deactivate_due(self: &Arc<Self>, done: &mut Reconciled) -> Result<(), ServiceError> {
        for due in self.store.due_deactivations(self.clock.now(), MAX_DUE).await? {
            let (uid, number) = (due.row.key_uid, due.row.version);
            let stored = self.store.key(KeyRef::Uid(uid), VersionChoice::Number(number)).await?;
            let Some(stored) = stored else { continue };
            let name = VersionName::new(stored.key.row.name, number);
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

/// Names the objects that nobody knows: `cka-id:HEX`, `no-cka-id:NUMBER` for one without, and `#NUMBER` after an id that
/// stands more than once.
fn orphans(token_keys: &TokenKeys, known: &HashSet<CkaId>) -> HashSet<String> {
    let residents = token_keys.residents.iter().filter(|id| !known.contains(id));
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
            "cka-id:07".to_owned(),
            "no-cka-id:1".to_owned(),
            "no-cka-id:2".to_owned(),
        ];
        assert_eq!(named, expected);
    }
}
