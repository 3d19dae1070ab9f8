//! Invocation accounting: at most 2^32 AES-GCM invocations with random IVs a key version (SP 800-38D §8.3).
//!
//! Invocations are counted in blocks leased from the store before they are used, so that a crash can only count too
//! many, never too few. The first lease is 2^10, each later one twice as large, up to 2^20; the unused rest goes back
//! on eviction and drain. One task writes all waiting leases in one commit.
//!
//! Invariant: no invocation without a lease. Tests: `kms-server/tests/service/leases.rs`.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kms_core::clock::Clock;
use kms_core::id::{KeyUid, KeyVersion, Revision, RootGeneration};
use kms_core::key::{CounterRow, MAX_INVOCATIONS, Sealed};
use kms_core::name::{KeyName, VersionName};
use kms_core::secret::equal_in_constant_time;
use kms_hsm::Hsm;
use tokio::sync::{Notify, oneshot};

use super::{Counters, KeyringError};
use crate::store::{Store, StoreError};

/// The first lease of a version: a restart under light use wastes few.
pub const FIRST_LEASE: u64 = 1 << 10;
/// The largest lease: a store write every million invocations; 4,096 lost ones exhaust a version.
pub const LARGEST_LEASE: u64 = 1 << 20;
/// From here on the key wants a rollover: half of what a version may see, so there is time for it.
pub const ROLLOVER_AT: u64 = 1 << 31;
/// How often a lease is asked for again after another replica changed the row.
const ATTEMPTS: u32 = 8;
/// How often one invocation waits for a lease that others use up before it.
const PATIENCE: u32 = 64;
/// The most changes of one commit.
const MAX_CHANGES: usize = 256;

type Id = (KeyUid, KeyVersion);

/// What is left of a leased block.
#[derive(Debug)]
pub(super) struct Lease {
    id: Id,
    key: KeyName,
    left: AtomicU64,
    next_block: AtomicU64,
    closed: AtomicBool,
}

impl Lease {
    pub(super) fn new(uid: KeyUid, name: &VersionName) -> Self {
        Self {
            id: (uid, name.version()),
            key: name.key().clone(),
            left: AtomicU64::new(0),
            next_block: AtomicU64::new(FIRST_LEASE),
            closed: AtomicBool::new(false),
        }
    }

    fn take_one(&self) -> bool {
        self.left
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1))
            .is_ok()
    }

    /// A lease that was given back already takes no blocks any more, only what it needs at once.
    fn wanted(&self) -> u64 {
        if self.closed.load(Ordering::Acquire) {
            1
        } else {
            self.next_block.load(Ordering::Acquire)
        }
    }

    fn credit(&self, granted: u64) {
        self.left.fetch_add(granted, Ordering::AcqRel);
        let next = self.next_block.load(Ordering::Acquire).saturating_mul(2).min(LARGEST_LEASE);
        self.next_block.store(next, Ordering::Release);
    }
}

type Answer = oneshot::Sender<Result<(), KeyringError>>;

#[derive(Debug)]
enum Change {
    Take { lease: Arc<Lease>, answer: Answer },
    Return { id: Id, count: u64, answer: Answer },
}

impl Change {
    fn id(&self) -> Id {
        match self {
            Self::Take { lease, .. } => lease.id,
            Self::Return { id, .. } => *id,
        }
    }

    fn answer(self, result: Result<(), KeyringError>) {
        let (Self::Take { answer, .. } | Self::Return { answer, .. }) = self;
        // Nobody waits any more when this fails.
        let _ = answer.send(result);
    }
}

#[derive(Debug, Default)]
struct Queue {
    changes: Vec<Change>,
    writing: bool,
}

/// Keeps the counters: takes and returns leases, and says which keys want a rollover.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) hsm: Arc<dyn Hsm>,
    pub(super) store: Arc<dyn Store>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) generation: RootGeneration,
    pub(super) timeout: Duration,
    pub(super) counters: Arc<Counters>,
    queue: Mutex<Queue>,
    refills: super::flight::Flights<Id, Result<(), KeyringError>>,
    due: Mutex<BTreeMap<KeyName, KeyVersion>>,
    due_notify: Notify,
}

impl Ledger {
    pub(super) fn new(
        hsm: Arc<dyn Hsm>,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        config: super::KeyringConfig,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            hsm,
            store,
            clock,
            generation: config.generation,
            timeout: config.load_timeout,
            counters,
            queue: Mutex::default(),
            refills: super::flight::Flights::default(),
            due: Mutex::default(),
            due_notify: Notify::new(),
        }
    }

    /// Counts one invocation.
    pub(super) async fn take(self: &Arc<Self>, lease: &Arc<Lease>) -> Result<(), KeyringError> {
        for _ in 0..PATIENCE {
            if lease.take_one() {
                return Ok(());
            }
            let start = || {
                let (ledger, lease) = (Arc::clone(self), Arc::clone(lease));
                async move {
                    let (answer, taken) = oneshot::channel();
                    ledger.enqueue(Change::Take { lease, answer });
                    taken.await.unwrap_or(Err(GONE))
                }
            };
            self.refills.join(lease.id, start).await.unwrap_or(Err(GONE))?;
        }
        Err(KeyringError::Store(StoreError::Saturated))
    }

    /// Returns the unused rest of a lease, in the background; the answer tells when it is written.
    pub(super) fn give_back(
        self: &Arc<Self>,
        lease: &Lease,
    ) -> oneshot::Receiver<Result<(), KeyringError>> {
        let (answer, done) = oneshot::channel();
        lease.closed.store(true, Ordering::Release);
        match lease.left.swap(0, Ordering::AcqRel) {
            0 => {
                // The receiver is alive: it is returned below.
                let _ = answer.send(Ok(()));
            }
            count => self.enqueue(Change::Return { id: lease.id, count, answer }),
        }
        done
    }

    /// Returns the keys that want a rollover, and forgets them.
    pub(super) fn due(&self) -> BTreeMap<KeyName, KeyVersion> {
        std::mem::take(&mut *self.due.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until a key wants a rollover.
    pub(super) async fn wait_due(&self) {
        self.due_notify.notified().await;
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enqueue(self: &Arc<Self>, change: Change) {
        let mut queue = self.queue();
        queue.changes.push(change);
        if !std::mem::replace(&mut queue.writing, true) {
            tokio::spawn(Arc::clone(self).write_all());
        }
    }

    async fn write_all(self: Arc<Self>) {
        loop {
            let batch: Vec<_> = {
                let mut queue = self.queue();
                if queue.changes.is_empty() {
                    queue.writing = false;
                    return;
                }
                let count = queue.changes.len().min(MAX_CHANGES);
                queue.changes.drain(..count).collect()
            };
            let mut by_id: HashMap<Id, Vec<Change>> = HashMap::new();
            for change in batch {
                by_id.entry(change.id()).or_default().push(change);
            }
            self.write(by_id).await;
        }
    }

    /// Writes changes, again where another replica was faster. Nothing else is tried again: when the answer to a
    /// return is lost, a second one would give back what another may hold by now.
    async fn write(&self, mut waiting: HashMap<Id, Vec<Change>>) {
        for _ in 0..ATTEMPTS {
            if waiting.is_empty() {
                return;
            }
            waiting = self.write_once(waiting).await;
        }
        for change in waiting.into_values().flatten() {
            change.answer(Err(KeyringError::Store(StoreError::RevisionMismatch)));
        }
    }

    async fn write_once(&self, waiting: HashMap<Id, Vec<Change>>) -> HashMap<Id, Vec<Change>> {
        let mut plans = Vec::with_capacity(waiting.len());
        for (id, changes) in waiting {
            match self.read(id).await {
                Ok(row) => plans.extend(Plan::new(row, changes)),
                Err(error) => {
                    for change in changes {
                        change.answer(Err(error.clone()));
                    }
                }
            }
        }
        match self.store_plans(&plans).await {
            Err(error) => {
                for change in plans.into_iter().flat_map(|plan| plan.changes) {
                    change.answer(Err(error.clone()));
                }
                HashMap::new()
            }
            Ok(results) => self.settle(plans, results),
        }
    }

    fn settle(
        &self,
        plans: Vec<Plan>,
        results: Vec<Result<(), StoreError>>,
    ) -> HashMap<Id, Vec<Change>> {
        let mut again = HashMap::new();
        for (plan, result) in plans.into_iter().zip(results) {
            match result {
                Ok(()) => self.grant(plan),
                Err(StoreError::RevisionMismatch) => {
                    again.insert((plan.row.key_uid, plan.row.version), plan.changes);
                }
                Err(error) => {
                    for change in plan.changes {
                        change.answer(Err(KeyringError::Store(error.clone())));
                    }
                }
            }
        }
        again
    }

    fn grant(&self, plan: Plan) {
        let leased = plan.row.leased;
        for (change, granted) in plan.changes.into_iter().zip(plan.grants) {
            if let Change::Take { lease, .. } = &change {
                self.counters.leases.increment();
                lease.credit(granted);
                if leased >= ROLLOVER_AT {
                    let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
                    due.insert(lease.key.clone(), lease.id.1);
                    drop(due);
                    self.due_notify.notify_one();
                }
            }
            change.answer(Ok(()));
        }
    }

    async fn read(&self, id: Id) -> Result<CounterRow, KeyringError> {
        let (uid, version) = id;
        let integrity = |detail: String| {
            tracing::error!(
                alert = "key_integrity",
                detail,
                "a counter failed its integrity check"
            );
            self.counters.integrity_failures.increment();
            KeyringError::Integrity { detail }
        };
        let sealed = match self.store.counter(uid, version).await {
            Err(StoreError::Damaged { detail }) => return Err(integrity(detail)),
            other => other?,
        };
        let Some(Sealed { row, mac, generation }) = sealed else {
            return Err(integrity(format!("the counter of key {uid} version {version} is gone")));
        };
        let own = (row.key_uid, row.version) == id && generation <= self.generation;
        let deadline = self.clock.monotonic() + self.timeout;
        let input = row.mac_input(generation);
        let macs =
            if own { self.hsm.mac(generation, vec![input], deadline).await? } else { Vec::new() };
        if !macs.first().is_some_and(|made| equal_in_constant_time(&made.0, &mac.0)) {
            return Err(integrity(format!(
                "the counter of key {uid} version {version} was edited"
            )));
        }
        Ok(row)
    }

    async fn store_plans(
        &self,
        plans: &[Plan],
    ) -> Result<Vec<Result<(), StoreError>>, KeyringError> {
        if plans.is_empty() {
            return Ok(Vec::new());
        }
        let deadline = self.clock.monotonic() + self.timeout;
        let inputs = plans.iter().map(|plan| plan.row.mac_input(self.generation)).collect();
        let macs = self.hsm.mac(self.generation, inputs, deadline).await?;
        if macs.len() != plans.len() {
            return Err(KeyringError::Bug { reason: "the hsm gave another number of MACs" });
        }
        let changes = plans.iter().zip(macs).map(|(plan, mac)| {
            let generation = self.generation;
            (plan.expected, Sealed { row: plan.row.clone(), mac, generation })
        });
        self.counters.lease_writes.increment();
        Ok(self.store.update_counters(changes.collect()).await?)
    }
}

/// The answer when the task that writes leases died.
const GONE: KeyringError = KeyringError::Bug { reason: "the lease writer died" };

/// What is to become of one counter.
#[derive(Debug)]
struct Plan {
    expected: Revision,
    row: CounterRow,
    changes: Vec<Change>,
    grants: Vec<u64>,
}

impl Plan {
    /// Applies changes to a row; those that find nothing left are answered at once.
    fn new(mut row: CounterRow, changes: Vec<Change>) -> Option<Self> {
        let expected = row.revision;
        let (mut kept, mut grants) = (Vec::new(), Vec::new());
        for change in changes {
            let granted = match &change {
                Change::Take { lease, .. } => {
                    let granted = lease.wanted().min(MAX_INVOCATIONS.saturating_sub(row.leased));
                    if granted == 0 {
                        change.answer(Err(KeyringError::Exhausted));
                        continue;
                    }
                    row.leased += granted;
                    granted
                }
                Change::Return { count, .. } => {
                    row.leased = row.leased.saturating_sub(*count);
                    0
                }
            };
            kept.push(change);
            grants.push(granted);
        }
        row.revision = row.revision.next();
        (!kept.is_empty()).then_some(Self { expected, row, changes: kept, grants })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease() -> Lease {
        let name = "tenants/t/keys/k/versions/1".parse().unwrap();
        Lease::new(KeyUid::from_random([1; 16]), &name)
    }

    #[test]
    fn a_lease_gives_what_was_credited_and_not_one_more() {
        let lease = lease();
        assert!(!lease.take_one());
        lease.credit(2);
        assert!(lease.take_one() && lease.take_one());
        assert!(!lease.take_one());
    }

    #[test]
    fn blocks_double_from_2_to_the_10_up_to_2_to_the_20() {
        let lease = lease();
        let blocks: Vec<_> = (0..13)
            .map(|_| {
                let block = lease.wanted();
                lease.credit(block);
                block.ilog2()
            })
            .collect();
        assert_eq!(blocks, [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 20, 20]);
    }

    #[test]
    fn a_closed_lease_takes_no_blocks() {
        let lease = lease();
        lease.closed.store(true, Ordering::Release);
        assert_eq!(lease.wanted(), 1);
    }
}
