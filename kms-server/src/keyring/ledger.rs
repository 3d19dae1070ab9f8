//! Invocation accounting: at most 2^32 AES-GCM invocations with random IVs a key version (SP 800-38D §8.3).
//!
//! Invocations are counted in blocks leased from the store before they are used, so that a crash can only count too
//! many, never too few. The first lease is 2^10, each later one twice as large, up to 2^20; the unused rest goes back
//! on eviction and drain. One task writes all waiting leases in one commit, then their records in one append.
//!
//! Invariant: what was leased is handed out only when the record of it is durable, so the log knows every counter that
//! was used. Test: `without_its_record_nothing_is_leased_and_nothing_is_lost`.
//!
//! Invariant: the state journal knows of every power of two from 2^20 up before it is passed, so that a counter of an older
//! database can be raised above all that was used. Test: `a_power_of_two_is_journaled_before_it_is_passed`.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kms_core::id::KeyVersion;
use kms_core::key::CounterRow;
use kms_core::name::KeyName;
use tokio::sync::Notify;

use super::KeyringError;
use super::counter_rows::CounterRows;
use super::flight::Flights;
use super::lease::{Id, Lease};
use super::lease_log::LeaseLog;
use super::plan::{Answered, Change, Kind, Plan};
use crate::journal::{Held, SharedJournal};
use crate::store::StoreError;

/// From here on the key wants a rollover: half of what a version may see, so there is time for it.
pub const ROLLOVER_AT: u64 = 1 << 31;
/// How often a lease is asked for again after another replica changed the row.
const ATTEMPTS: u32 = 8;
/// How often one invocation waits for a lease that others use up before it.
const PATIENCE: u32 = 64;
/// The most changes of one commit.
const MAX_CHANGES: usize = 256;

/// The answer when the task that writes leases died.
const GONE: KeyringError = KeyringError::Bug { reason: "the lease writer died" };

type Waiting = HashMap<Id, Vec<Change>>;

#[derive(Debug, Default)]
struct Queue {
    changes: Vec<Change>,
    writing: bool,
}

/// Keeps the counters: takes and returns leases, and says which keys want a rollover.
#[derive(Debug)]
pub(super) struct Ledger {
    rows: CounterRows,
    log: LeaseLog,
    journal: SharedJournal,
    queue: Mutex<Queue>,
    refills: Flights<Id, Result<(), KeyringError>>,
    due: Mutex<BTreeMap<KeyName, KeyVersion>>,
    due_notify: Notify,
}

impl Ledger {
    pub(super) fn new(rows: CounterRows, log: LeaseLog, journal: SharedJournal) -> Self {
        Self {
            rows,
            log,
            journal,
            queue: Mutex::default(),
            refills: Flights::default(),
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
            self.log.check()?;
            if lease.is_closed() {
                return self.change(lease, Kind::One).await.unwrap_or(Err(GONE));
            }
            let start = || {
                let (ledger, lease) = (Arc::clone(self), Arc::clone(lease));
                async move { ledger.change(&lease, Kind::Block).await.unwrap_or(Err(GONE)) }
            };
            self.refills.join(lease.id(), start).await.unwrap_or(Err(GONE))?;
        }
        Err(KeyringError::Store(StoreError::Saturated))
    }

    /// Closes a lease and returns its unused rest, in the background; the answer tells when it is written.
    pub(super) fn give_back(self: &Arc<Self>, lease: &Arc<Lease>) -> Answered {
        match lease.close() {
            0 => {
                let (nothing, done) = Change::new(lease, Kind::Return(0));
                nothing.answer(Ok(()));
                done
            }
            count => self.change(lease, Kind::Return(count)),
        }
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

    fn change(self: &Arc<Self>, lease: &Arc<Lease>, kind: Kind) -> Answered {
        let (change, answered) = Change::new(lease, kind);
        let is_written = {
            let mut queue = self.queue();
            queue.changes.push(change);
            std::mem::replace(&mut queue.writing, true)
        };
        // Not under the lock: a runtime that ends drops the task, and with it the writer, at once.
        if !is_written {
            let writer = Writer { ledger: Arc::clone(self), is_done: false };
            tokio::spawn(writer.write_all());
        }
        answered
    }

    /// Takes what is written next; when there is nothing, the writer is done.
    fn next_batch(&self) -> Option<Waiting> {
        let mut queue = self.queue();
        if queue.changes.is_empty() {
            queue.writing = false;
            return None;
        }
        let count = queue.changes.len().min(MAX_CHANGES);
        let mut by_id = Waiting::new();
        for change in queue.changes.drain(..count) {
            by_id.entry(change.id()).or_default().push(change);
        }
        Some(by_id)
    }

    /// Writes changes, again where another replica was faster. Nothing else is tried again: when the answer to a
    /// return is lost, a second one would give back what another may hold by now.
    async fn write(self: &Arc<Self>, mut waiting: Waiting) {
        for _ in 0..ATTEMPTS {
            if waiting.is_empty() {
                return;
            }
            waiting = self.write_once(waiting).await;
        }
        let faster = KeyringError::Store(StoreError::RevisionMismatch);
        refuse(waiting.into_values().flatten(), &faster);
    }

    async fn write_once(self: &Arc<Self>, waiting: Waiting) -> Waiting {
        let mut plans = Vec::with_capacity(waiting.len());
        for (id, changes) in waiting {
            match self.read(id, &changes).await {
                Ok(row) => plans.extend(Plan::new(row, changes)),
                Err(error) => refuse(changes, &error),
            }
        }
        let (plans, told) = self.tell_reached(plans).await;
        let results = match self.rows.write(&plans).await {
            Ok(results) => results,
            Err(error) => {
                for plan in plans {
                    plan.refuse(&error);
                }
                return Waiting::new();
            }
        };
        let (mut written, mut again) = (Vec::with_capacity(plans.len()), Waiting::new());
        for (plan, result) in plans.into_iter().zip(results) {
            match result {
                Ok(()) => written.push(plan),
                Err(StoreError::RevisionMismatch) => {
                    let changes = plan.changes.into_iter().map(|(change, _)| change);
                    again.insert((plan.row.key_uid, plan.row.version), changes.collect());
                }
                Err(error) => plan.refuse(&KeyringError::Store(error)),
            }
        }
        // Whatever was written: a counter that was told and not raised is restored too high, never too low.
        told.into_iter().for_each(Held::settle);
        self.settle(written).await;
        again
    }

    /// Tells the state journal of the powers of two that are about to be passed; leaves out what it could not be told of.
    async fn tell_reached(&self, plans: Vec<Plan>) -> (Vec<Plan>, Vec<Held>) {
        let (mut left, mut told) = (Vec::with_capacity(plans.len()), Vec::new());
        for plan in plans {
            match plan.reached() {
                None => left.push(plan),
                Some(event) => match self.journal.append(None, event).await {
                    Ok(held) => {
                        told.push(held);
                        left.push(plan);
                    }
                    Err(error) => plan.refuse(&error.into()),
                },
            }
        }
        (left, told)
    }

    /// Reads a row; one that is older than what these leases know was put back.
    async fn read(&self, id: Id, changes: &[Change]) -> Result<CounterRow, KeyringError> {
        let row = self.rows.read(id).await?;
        for change in changes {
            if let Err(known) = change.lease.note(&row) {
                let ((uid, version), found, newest) = (id, row.revision, known.revision);
                return Err(self.rows.integrity(format!(
                    "the counter of key {uid} version {version} was put back: revision {found} with {} leased, \
                     {newest} with {} is known",
                    row.leased, known.leased
                )));
            }
        }
        Ok(row)
    }

    /// Records what was written; only then is it handed out.
    async fn settle(self: &Arc<Self>, written: Vec<Plan>) {
        let rows = written.iter().filter_map(|plan| Some((plan.key()?, &plan.row)));
        let recorded = self.log.record(rows).await;
        for plan in written {
            match &recorded {
                Ok(()) => self.grant(plan),
                Err(error) => self.withdraw(plan, error),
            }
        }
    }

    fn grant(self: &Arc<Self>, plan: Plan) {
        let due = plan.row.leased >= ROLLOVER_AT;
        for (change, granted) in plan.changes {
            let lease = &change.lease;
            // Ours is the newest: nobody else reads it for this lease.
            let _ = lease.note(&plan.row);
            if granted > 0 {
                self.rows.counters.leases.increment();
                if due {
                    self.note_due(lease);
                }
            }
            if change.kind == Kind::Block {
                lease.credit(granted);
                if lease.is_closed() {
                    // Closed between plan and grant: its users take one each.
                    drop(self.give_back(lease));
                }
            }
            change.answer(Ok(()));
        }
    }

    /// Returns what was leased without a record; as nobody has it, nothing is lost by it.
    fn withdraw(self: &Arc<Self>, plan: Plan, error: &KeyringError) {
        for (change, granted) in plan.changes {
            let _ = change.lease.note(&plan.row);
            if granted > 0 {
                drop(self.change(&change.lease, Kind::Return(granted)));
            }
            change.answer(Err(error.clone()));
        }
    }

    fn note_due(&self, lease: &Lease) {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        due.insert(lease.key().clone(), lease.id().1);
        drop(due);
        self.due_notify.notify_one();
    }
}

/// The one task that writes. However it ends, another one can begin.
struct Writer {
    ledger: Arc<Ledger>,
    is_done: bool,
}

impl Writer {
    async fn write_all(mut self) {
        while let Some(batch) = self.ledger.next_batch() {
            self.ledger.write(batch).await;
        }
        self.is_done = true;
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        let left = {
            let mut queue = self.ledger.queue();
            queue.writing = false;
            std::mem::take(&mut queue.changes)
        };
        // Whoever waits is told by it, and need not wait for a later change to have a writer.
        drop(left);
    }
}

fn refuse(changes: impl IntoIterator<Item = Change>, error: &KeyringError) {
    for change in changes {
        change.answer(Err(error.clone()));
    }
}
