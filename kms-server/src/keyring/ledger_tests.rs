//! Tests of the ledger over a software token, a real store, and a log that fails or waits when told.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use kms_core::audit::{AuditRecord, CounterStamp};
use kms_core::clock::{Clock as _, SystemClock};
use kms_core::id::{KeyVersion, Randomness, Revision, RootGeneration};
use kms_core::journal::{Event, FIRST_COUNT};
use kms_core::key::{CounterRow, Sealed};
use kms_core::name::VersionName;
use kms_hsm::Hsm;
use kms_hsm_soft::{SoftDevice, SoftToken};
use kms_testkit::deadline::within;
use tokio::sync::{Semaphore, oneshot};

use super::counter_rows::CounterRows;
use super::lease::Lease;
use super::lease_log::LeaseLog;
use super::ledger::Ledger;
use super::{Counters, FIRST_LEASE, KeyringError, LARGEST_LEASE, LEASE_OPERATION};
use crate::audit::{Appended, AuditError, AuditSink, Past};
use crate::journal::memory::MemoryJournal;
use crate::journal::{Journal as _, JournalError};
use crate::store::Store as _;
use crate::store::sqlite::SqliteStore;
use crate::store::suite::{closing, intent, key_row, new_key, sealed};

const GENERATION: RootGeneration = RootGeneration::FIRST;
const LIMIT: Duration = Duration::from_mins(1);

/// Keeps groups of records.
#[derive(Debug)]
struct Log {
    groups: Mutex<Vec<Vec<AuditRecord>>>,
    failing: AtomicBool,
    /// Whether answers are lost: the records are there, and nobody knows.
    losing: AtomicBool,
    unhealthy: AtomicBool,
    /// Whether answers wait, and those that do.
    holding: AtomicBool,
    held: Mutex<Vec<oneshot::Sender<Result<(), AuditError>>>>,
    arrived: Semaphore,
}

impl Log {
    fn new() -> Self {
        Self {
            groups: Mutex::default(),
            failing: AtomicBool::new(false),
            losing: AtomicBool::new(false),
            unhealthy: AtomicBool::new(false),
            holding: AtomicBool::new(false),
            held: Mutex::default(),
            arrived: Semaphore::new(0),
        }
    }

    fn groups(&self) -> Vec<Vec<AuditRecord>> {
        self.groups.lock().unwrap().clone()
    }

    /// Lets those pass that wait.
    fn release(&self) {
        for held in self.held.lock().unwrap().drain(..) {
            held.send(Ok(())).unwrap();
        }
    }
}

impl AuditSink for Log {
    fn append(&self, records: Vec<AuditRecord>) -> Appended {
        if self.failing.load(Ordering::SeqCst) {
            return Appended::ready(Err(AuditError::Saturated));
        }
        self.groups.lock().unwrap().push(records);
        if self.losing.load(Ordering::SeqCst) {
            return Appended::ready(Err(AuditError::Saturated));
        }
        if !self.holding.load(Ordering::SeqCst) {
            return Appended::ready(Ok(()));
        }
        let (sender, appended) = Appended::channel();
        self.held.lock().unwrap().push(sender);
        self.arrived.add_permits(1);
        appended
    }

    fn healthy(&self) -> bool {
        !self.unhealthy.load(Ordering::SeqCst)
    }

    fn past(&self) -> Past {
        Past::default()
    }

    fn close(&self) {}
}

/// One id for all.
#[derive(Debug)]
struct NoRandomness;

impl Randomness for NoRandomness {
    fn draw(&self) -> Option<[u8; 16]> {
        Some([7; 16])
    }
}

/// A ledger over three keys.
struct World {
    ledger: Arc<Ledger>,
    store: Arc<SqliteStore>,
    log: Arc<Log>,
    journal: Arc<MemoryJournal>,
    counters: Arc<Counters>,
    _root: tempfile::TempDir,
}

impl World {
    /// Counters at revision 2 with `leased`.
    async fn new(leased: u64) -> Self {
        let root = tempfile::tempdir().unwrap();
        let clock = Arc::new(SystemClock);
        let hsm = Arc::new(SoftToken::new(SoftDevice::new("soft-1"), clock.clone()));
        let deadline = clock.monotonic() + LIMIT;
        let pin = hsm.create_root(GENERATION, deadline).await.unwrap();
        hsm.open_roots(vec![pin], deadline).await.unwrap();
        let store = Arc::new(SqliteStore::open(&root.path().join("kms.db")).unwrap());
        for number in 1..=3 {
            store.open_intent(sealed(intent(number))).await.unwrap();
            let manifest = u64::from(number) - 1;
            store.create_key(new_key(number), closing(number, manifest)).await.unwrap();
            let row = new_key(number).counter.row;
            let row = CounterRow { leased, revision: Revision::new(2), ..row };
            let macs = hsm.mac(GENERATION, vec![row.mac_input(GENERATION)], deadline).await;
            let sealed = Sealed { row, mac: macs.unwrap()[0], generation: GENERATION };
            let written = store.update_counters(vec![(Revision::FIRST, sealed)]).await.unwrap();
            assert_eq!(written, [Ok(())]);
        }
        let (log, counters) = (Arc::new(Log::new()), Arc::new(Counters::default()));
        let rows = CounterRows {
            hsm,
            store: Arc::clone(&store) as _,
            clock: clock.clone(),
            generations: GENERATION..=GENERATION,
            timeout: LIMIT,
            counters: Arc::clone(&counters),
        };
        let randomness = Arc::new(NoRandomness);
        let lease_log = LeaseLog { audit: Arc::clone(&log) as _, clock, randomness };
        let journal = Arc::new(MemoryJournal::default());
        let ledger = Arc::new(Ledger::new(rows, lease_log, Arc::clone(&journal) as _));
        Self { ledger, store, log, journal, counters, _root: root }
    }

    async fn row(&self, number: u8) -> CounterRow {
        let uid = key_row(number).uid;
        self.store.counter(uid, KeyVersion::FIRST).await.unwrap().unwrap().row
    }

    async fn take(&self, lease: &Arc<Lease>) -> Result<(), KeyringError> {
        within(LIMIT, "a lease", self.ledger.take(lease)).await
    }

    async fn give_back(&self, lease: &Arc<Lease>) -> Result<(), KeyringError> {
        within(LIMIT, "a return", self.ledger.give_back(lease)).await.unwrap()
    }
}

fn lease(number: u8) -> Arc<Lease> {
    let row = key_row(number);
    Arc::new(Lease::new(row.uid, &VersionName::new(row.name, KeyVersion::FIRST)))
}

fn closed(number: u8) -> Arc<Lease> {
    let lease = lease(number);
    lease.close();
    lease
}

#[tokio::test]
async fn what_is_taken_and_returned_has_a_record_each() {
    let world = World::new(100).await;
    let lease = lease(1);
    world.take(&lease).await.unwrap();
    world.take(&lease).await.unwrap();
    world.give_back(&lease).await.unwrap();
    let records: Vec<_> = world.log.groups().concat();
    let stamp = |revision, leased| Some(CounterStamp { revision: Revision::new(revision), leased });
    let stamps: Vec<_> = records.iter().map(|record| record.counter).collect();
    assert_eq!(stamps, [stamp(3, 100 + FIRST_LEASE), stamp(4, 102)]);
    let row = world.row(1).await;
    assert_eq!((row.revision, row.leased), (Revision::new(4), 102));
    for record in records {
        assert_eq!(record.operation, LEASE_OPERATION);
        assert_eq!((record.principal.as_str(), record.result.as_str()), ("internal", "OK"));
        assert_eq!(record.resource.unwrap().as_str(), key_row(1).name.to_string());
        assert_eq!(record.key_uid, Some(key_row(1).uid));
        assert_eq!(record.key_version, Some(KeyVersion::FIRST));
    }
}

#[tokio::test]
async fn nothing_is_handed_out_before_its_record_is_durable() {
    let world = World::new(100).await;
    let lease = lease(1);
    world.log.holding.store(true, Ordering::SeqCst);
    let taking = {
        let (ledger, lease) = (Arc::clone(&world.ledger), Arc::clone(&lease));
        tokio::spawn(async move { ledger.take(&lease).await })
    };
    within(LIMIT, "a record", world.log.arrived.acquire()).await.unwrap().forget();
    assert_eq!(world.row(1).await.leased, 100 + FIRST_LEASE, "the row is written");
    assert!(!lease.take_one() && !taking.is_finished());
    world.log.release();
    assert_eq!(within(LIMIT, "the lease", taking).await.unwrap(), Ok(()));
    assert!(lease.take_one());
}

#[tokio::test]
async fn the_records_of_one_commit_are_one_group() {
    let world = World::new(100).await;
    world.log.holding.store(true, Ordering::SeqCst);
    let first = tokio::spawn({
        let (ledger, lease) = (Arc::clone(&world.ledger), closed(1));
        async move { ledger.take(&lease).await }
    });
    within(LIMIT, "a record", world.log.arrived.acquire()).await.unwrap().forget();
    // They wait for the writer, which waits for the log.
    let (second, third) = (lease(2), lease(3));
    second.credit(3);
    third.credit(4);
    let returned = [second, third].map(|lease| world.ledger.give_back(&lease));
    world.log.holding.store(false, Ordering::SeqCst);
    world.log.release();
    assert_eq!(within(LIMIT, "a lease", first).await.unwrap(), Ok(()));
    for returned in returned {
        assert_eq!(within(LIMIT, "a return", returned).await.unwrap(), Ok(()));
    }
    let sizes: Vec<_> = world.log.groups().iter().map(Vec::len).collect();
    assert_eq!(sizes, [1, 2]);
    assert_eq!((world.row(2).await.leased, world.row(3).await.leased), (97, 96));
}

#[tokio::test]
async fn without_its_record_nothing_is_leased_and_nothing_is_lost() {
    let faults: [fn(&Log) -> &AtomicBool; 2] = [|log| &log.failing, |log| &log.losing];
    for fault in faults {
        let world = World::new(100).await;
        let (open, closed) = (lease(1), closed(2));
        fault(&world.log).store(true, Ordering::SeqCst);
        for lease in [&open, &closed].into_iter().cycle().take(20) {
            let refused = world.take(lease).await.unwrap_err();
            assert_eq!(refused, KeyringError::Audit(AuditError::Saturated));
        }
        fault(&world.log).store(false, Ordering::SeqCst);
        world.take(&open).await.unwrap();
        world.take(&closed).await.unwrap();
        assert_eq!(world.row(1).await.leased, 100 + FIRST_LEASE);
        assert_eq!(world.row(2).await.leased, 101);
        let known = world.log.groups().concat().pop().unwrap().counter.unwrap();
        assert_eq!(known.revision, world.row(2).await.revision, "the log knows the row in use");
    }
}

#[tokio::test]
async fn while_the_log_is_known_to_be_unwritable_no_row_is_touched() {
    let world = World::new(100).await;
    let (open, closed) = (lease(1), closed(2));
    world.log.unhealthy.store(true, Ordering::SeqCst);
    for lease in [&open, &closed] {
        let refused = world.take(lease).await.unwrap_err();
        assert!(matches!(refused, KeyringError::Audit(AuditError::Unwritable { .. })));
    }
    assert_eq!((world.row(1).await.revision, world.row(2).await.revision).0, Revision::new(2));
    open.credit(1);
    assert_eq!(world.take(&open).await, Ok(()), "what was leased before can be used");
}

#[tokio::test]
async fn many_who_wait_on_a_closed_lease_get_one_each() {
    const WAITERS: u64 = 256;
    let world = World::new(100).await;
    let lease = closed(1);
    let taken = join_all((0..WAITERS).map(|_| world.take(&lease))).await;
    assert!(taken.iter().all(Result::is_ok), "{taken:?}");
    assert_eq!(world.row(1).await.leased, 100 + WAITERS);
    assert!(world.counters.lease_writes.read() < WAITERS / 4, "many share a commit");
}

#[tokio::test]
async fn a_block_that_comes_for_a_lease_closed_meanwhile_goes_back() {
    let world = World::new(100).await;
    let lease = lease(1);
    world.log.holding.store(true, Ordering::SeqCst);
    let closing = async {
        within(LIMIT, "a record", world.log.arrived.acquire()).await.unwrap().forget();
        assert_eq!(world.give_back(&lease).await, Ok(()), "there is nothing to return yet");
        world.log.holding.store(false, Ordering::SeqCst);
        world.log.release();
    };
    assert_eq!(tokio::join!(world.take(&lease), closing).0, Ok(()));
    assert_eq!(world.row(1).await.leased, 101);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_closed_under_its_users_loses_nothing() {
    const USERS: u64 = 8;
    const USES: u64 = 400;
    let world = World::new(100).await;
    for number in 1..=3 {
        let (lease, before) = (lease(number), world.counters.lease_writes.read());
        let users: Vec<_> = (0..USERS)
            .map(|_| {
                let (ledger, lease) = (Arc::clone(&world.ledger), Arc::clone(&lease));
                tokio::spawn(async move {
                    for _ in 0..USES {
                        ledger.take(&lease).await.unwrap();
                    }
                })
            })
            .collect();
        // Closed before its first block comes, with it, and with its second.
        let closing = before + u64::from(number) - 1;
        let written = async {
            while world.counters.lease_writes.read() < closing {
                tokio::task::yield_now().await;
            }
        };
        within(LIMIT, "blocks", written).await;
        let returned = world.ledger.give_back(&lease);
        within(LIMIT, "the users", join_all(users)).await.into_iter().for_each(Result::unwrap);
        assert_eq!(within(LIMIT, "a return", returned).await.unwrap(), Ok(()));
        // One more comes after all that wait.
        world.take(&lease).await.unwrap();
        assert_eq!(world.row(number).await.leased, 100 + USERS * USES + 1);
    }
}

#[tokio::test]
async fn the_largest_lease_goes_back_whole_and_more_raises_no_alarm() {
    for (left, returned) in [(LARGEST_LEASE, LARGEST_LEASE), (LARGEST_LEASE + 1, LARGEST_LEASE)] {
        let leased = 10 * LARGEST_LEASE;
        let world = World::new(leased).await;
        let lease = lease(1);
        lease.credit(left);
        assert_eq!(world.give_back(&lease).await, Ok(()));
        assert_eq!(world.row(1).await.leased, leased - returned, "{left}");
        assert_eq!(world.counters.integrity_failures.read(), 0);
    }
}

/// As at the end of a runtime; a panic of the task ends it alike.
#[test]
fn a_writer_that_is_dropped_answers_those_who_wait_and_the_next_change_is_written() {
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let first = runtime();
    let (world, taking, waiting) = first.block_on(async {
        let world = World::new(100).await;
        world.log.holding.store(true, Ordering::SeqCst);
        let (ledger, taken) = (Arc::clone(&world.ledger), closed(1));
        let taking = tokio::spawn(async move { ledger.take(&taken).await });
        within(LIMIT, "a record", world.log.arrived.acquire()).await.unwrap().forget();
        let second = lease(2);
        second.credit(3);
        let waiting = world.ledger.give_back(&second);
        (world, taking, waiting)
    });
    first.shutdown_background();
    runtime().block_on(async {
        assert!(within(LIMIT, "an end", taking).await.unwrap_err().is_cancelled());
        assert!(within(LIMIT, "an answer", waiting).await.is_err(), "nobody writes it any more");
        world.log.holding.store(false, Ordering::SeqCst);
        assert_eq!(world.take(&closed(3)).await, Ok(()));
        assert_eq!((world.row(2).await.leased, world.row(3).await.leased), (100, 101));
    });
}

#[tokio::test]
async fn a_power_of_two_is_journaled_before_it_is_passed() {
    let world = World::new(FIRST_COUNT - 2).await;
    let one = closed(1);
    world.take(&one).await.unwrap();
    assert_eq!(world.journal.events(), [], "below the first");
    world.journal.failing.store(true, Ordering::SeqCst);
    let refused = world.take(&one).await;
    assert_eq!(refused, Err(KeyringError::Journal(JournalError::Saturated)));
    assert_eq!(world.row(1).await.leased, FIRST_COUNT - 1, "nothing is leased that is not told");
    world.journal.failing.store(false, Ordering::SeqCst);
    world.take(&one).await.unwrap();
    world.take(&one).await.unwrap();
    assert_eq!(world.row(1).await.leased, FIRST_COUNT + 1);
    let [Event::CountReached { subject, count: FIRST_COUNT }] = &world.journal.events()[..] else {
        panic!("{:?}", world.journal.events())
    };
    assert_eq!((subject.key_uid, subject.version), one.id());
    assert_eq!(world.journal.progress().settled(), 1);
}
