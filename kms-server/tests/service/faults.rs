//! Wrappers that fail at the n-th external call, before it or after it (the reply is lost), and stay dead from then on
//! or work again.

use kms_core::audit::AuditRecord;
use kms_core::clock::ManualClock;
use kms_core::id::RootGeneration;
use kms_core::key::{CkaId, RowMac, Sealed, WrappedKey};
use kms_core::root::RootPin;
use kms_core::secret::Plaintext;
use kms_hsm::{
    CryptoOp, Finished, GeneratedKey, Hsm, HsmError, HsmKey, HsmStatus, ImportKeySpec, KeyImport,
    KeySource, KeySpec, Mark, Pending, TokenKeys,
};
use kms_server::audit::{Appended, AuditError, AuditSink, Past, SharedAuditSink};
use kms_server::store::Intent;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// What happens to one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Works,
    Fails,
    ReplyLost,
}

/// Counts down external calls.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    pub(crate) left: AtomicI64,
    pub(crate) armed: AtomicBool,
    pub(crate) reply_lost: AtomicBool,
    pub(crate) unwritable: AtomicBool,
    /// How many calls fail once it has begun.
    pub(crate) failing: AtomicI64,
    pub(crate) calls: AtomicI64,
    /// How often rows of a tenant were listed in the order of a walk.
    pub(crate) walks: AtomicI64,
    pub(crate) stale: Mutex<Option<Vec<Sealed<Intent>>>>,
    pub(crate) slow: Mutex<Option<(Arc<ManualClock>, Duration)>>,
    pub(crate) gate: Mutex<Option<Arc<Gate>>>,
    pub(crate) version_gate: Mutex<Option<Arc<Gate>>>,
    pub(crate) list_gate: Mutex<Option<Arc<Gate>>>,
    pub(crate) undying: Mutex<Option<CkaId>>,
}

/// Where calls of the store stop.
#[derive(Debug)]
pub(crate) struct Gate {
    arrived: Semaphore,
    open: Semaphore,
}

impl Gate {
    fn closed() -> Arc<Self> {
        Arc::new(Self { arrived: Semaphore::new(0), open: Semaphore::new(0) })
    }

    /// Waits until so many more have come.
    pub(crate) async fn arrivals(&self, count: u32) {
        let arrivals = self.arrived.acquire_many(count);
        let arrived = kms_testkit::deadline::within(Duration::from_mins(1), "arrivals", arrivals);
        arrived.await.unwrap().forget();
    }

    /// Lets all pass, for ever.
    pub(crate) fn open(&self) {
        self.open.close();
    }

    pub(crate) async fn pass(&self) {
        self.arrived.add_permits(1);
        // An error means that it is open.
        let _ = self.open.acquire().await;
    }
}

impl Faults {
    /// Answers the next listing of intents with an old one.
    pub(crate) fn list_once(&self, stale: Vec<Sealed<Intent>>) {
        *self.stale.lock().unwrap() = Some(stale);
    }

    /// Stops mutations that are about to begin.
    pub(crate) fn stop_intents(&self) -> Arc<Gate> {
        let gate = Gate::closed();
        *self.gate.lock().unwrap() = Some(Arc::clone(&gate));
        gate
    }

    /// Stops the next read of a numbered version after it was read.
    pub(crate) fn stop_next_version(&self) -> Arc<Gate> {
        let gate = Gate::closed();
        *self.version_gate.lock().unwrap() = Some(Arc::clone(&gate));
        gate
    }

    /// Stops the next list of keys in an order after it was read.
    pub(crate) fn stop_next_list(&self) -> Arc<Gate> {
        let gate = Gate::closed();
        *self.list_gate.lock().unwrap() = Some(Arc::clone(&gate));
        gate
    }

    /// Refuses to destroy a token object.
    pub(crate) fn keep(&self, id: Option<CkaId>) {
        *self.undying.lock().unwrap() = id;
    }

    /// Refuses probes of the store, and nothing else: reads work, writes are in doubt.
    pub(crate) fn refuse_probes(&self, refuse: bool) {
        self.unwritable.store(refuse, Ordering::SeqCst);
    }

    /// Lets the next generation of a key take this long.
    pub(crate) fn slow_generation(&self, clock: &Arc<ManualClock>, span: Duration) {
        *self.slow.lock().unwrap() = Some((Arc::clone(clock), span));
    }

    /// Lets `good` calls pass and kills everything from the next on.
    pub(crate) fn arm(&self, good: i64, reply_lost: bool) {
        self.fail(good, i64::MAX, reply_lost);
    }

    /// Lets `good` calls pass, fails the next `failing`, and lets all others pass. Of the failing ones only the first
    /// can have its effect.
    pub(crate) fn fail(&self, good: i64, failing: i64, reply_lost: bool) {
        self.left.store(good, Ordering::SeqCst);
        self.failing.store(failing, Ordering::SeqCst);
        self.reply_lost.store(reply_lost, Ordering::SeqCst);
        self.armed.store(true, Ordering::SeqCst);
    }

    /// What a start asks is not counted.
    pub(crate) fn forget_calls(&self) {
        self.calls.store(0, Ordering::SeqCst);
    }

    pub(crate) fn calls(&self) -> i64 {
        self.calls.load(Ordering::SeqCst)
    }

    pub(crate) fn next(&self) -> Fate {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if !self.armed.load(Ordering::SeqCst) {
            return Fate::Works;
        }
        match self.left.fetch_sub(1, Ordering::SeqCst) {
            1.. => Fate::Works,
            0 if self.reply_lost.load(Ordering::SeqCst) => Fate::ReplyLost,
            left if -left >= self.failing.load(Ordering::SeqCst) => Fate::Works,
            _ => Fate::Fails,
        }
    }
}

pub(crate) struct FaultyHsm(pub(crate) Arc<dyn Hsm>, pub(crate) Arc<Faults>);

impl fmt::Debug for FaultyHsm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultyHsm")
    }
}

impl FaultyHsm {
    fn through<T: Send + 'static>(&self, call: impl FnOnce(&dyn Hsm) -> Pending<T>) -> Pending<T> {
        let gone = || {
            let error = HsmError::Unavailable {
                detail: "injected".into(),
                retry_after: Duration::from_millis(1),
            };
            Pending::ready(Err(error))
        };
        match self.1.next() {
            Fate::Works => call(&*self.0),
            Fate::Fails => gone(),
            Fate::ReplyLost => {
                drop(call(&*self.0));
                gone()
            }
        }
    }
}

impl Hsm for FaultyHsm {
    fn create_root(&self, generation: RootGeneration, deadline: Instant) -> Pending<RootPin> {
        self.through(|hsm| hsm.create_root(generation, deadline))
    }
    fn open_roots(&self, pins: Vec<RootPin>, deadline: Instant) -> Pending<()> {
        self.through(|hsm| hsm.open_roots(pins, deadline))
    }
    fn mac(
        &self,
        generation: RootGeneration,
        inputs: Vec<Vec<u8>>,
        deadline: Instant,
    ) -> Pending<Vec<RowMac>> {
        self.through(|hsm| hsm.mac(generation, inputs, deadline))
    }
    fn generate_key(&self, spec: KeySpec, deadline: Instant) -> Pending<GeneratedKey> {
        let generated = self.through(|hsm| hsm.generate_key(spec, deadline));
        if let Some((clock, span)) = self.1.slow.lock().unwrap().take() {
            clock.advance(span);
        }
        generated
    }
    fn create_import_key(&self, spec: ImportKeySpec, deadline: Instant) -> Pending<Vec<u8>> {
        self.through(|hsm| hsm.create_import_key(spec, deadline))
    }
    fn import_key(&self, import: KeyImport, deadline: Instant) -> Pending<GeneratedKey> {
        self.through(|hsm| hsm.import_key(import, deadline))
    }
    fn destroy_import_key(&self, id: CkaId, deadline: Instant) -> Pending<()> {
        self.through(|hsm| hsm.destroy_import_key(id, deadline))
    }
    fn load_key(&self, source: KeySource, deadline: Instant) -> Pending<HsmKey> {
        self.through(|hsm| hsm.load_key(source, deadline))
    }
    fn rewrap_keys(
        &self,
        sources: Vec<KeySource>,
        to: RootGeneration,
        deadline: Instant,
    ) -> Pending<Vec<Result<WrappedKey, HsmError>>> {
        self.through(|hsm| hsm.rewrap_keys(sources, to, deadline))
    }
    fn destroy_resident(&self, id: CkaId, deadline: Instant) -> Pending<()> {
        if *self.1.undying.lock().unwrap() == Some(id) {
            return Pending::ready(Err(HsmError::TokenFull { detail: "injected".into() }));
        }
        self.through(|hsm| hsm.destroy_resident(id, deadline))
    }
    fn list_token_keys(&self, deadline: Instant) -> Pending<TokenKeys> {
        self.through(|hsm| hsm.list_token_keys(deadline))
    }
    fn put_mark(&self, mark: Mark, replaced: Vec<Mark>, deadline: Instant) -> Pending<()> {
        self.through(|hsm| hsm.put_mark(mark, replaced, deadline))
    }
    fn marks(&self, deadline: Instant) -> Pending<Vec<Mark>> {
        self.through(|hsm| hsm.marks(deadline))
    }
    fn crypt(&self, operation: CryptoOp, deadline: Instant) -> Pending<Finished> {
        self.through(|hsm| hsm.crypt(operation, deadline))
    }
    fn crypt_batch(
        &self,
        operations: Vec<CryptoOp>,
        deadline: Instant,
    ) -> Pending<Vec<Result<Finished, HsmError>>> {
        self.through(|hsm| hsm.crypt_batch(operations, deadline))
    }
    fn random(&self, length: usize, deadline: Instant) -> Pending<Plaintext> {
        self.through(|hsm| hsm.random(length, deadline))
    }
    fn status(&self) -> HsmStatus {
        self.0.status()
    }
    fn close(&self) {
        self.0.close();
    }
}

#[derive(Debug)]
pub(crate) struct FaultySink(pub(crate) SharedAuditSink, pub(crate) Arc<Faults>);

impl AuditSink for FaultySink {
    fn append(&self, records: Vec<AuditRecord>) -> Appended {
        let gone = || Appended::ready(Err(AuditError::Unwritable { detail: "injected".into() }));
        match self.1.next() {
            Fate::Works => self.0.append(records),
            Fate::Fails => gone(),
            Fate::ReplyLost => {
                drop(self.0.append(records));
                gone()
            }
        }
    }
    fn healthy(&self) -> bool {
        self.0.healthy()
    }
    fn past(&self) -> Past {
        self.0.past()
    }
    fn close(&self) {
        self.0.close();
    }
}
