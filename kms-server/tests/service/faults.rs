//! Wrappers that fail at the n-th external call, before it or after it (the reply is lost), and stay dead from then on
//! or work again.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use kms_core::audit::AuditRecord;
use kms_core::clock::{ManualClock, Timestamp};
use kms_core::consumer::ConsumerRow;
use kms_core::id::{IntentId, KeyUid, KeyVersion, RequestId, Revision, RootGeneration};
use kms_core::import_job::ImportJobRow;
use kms_core::key::{CkaId, CounterRow, KeyRow, RowMac, Sealed, VersionRow, WrappedKey};
use kms_core::lifecycle::HistoryRow;
use kms_core::manifest::Manifest;
use kms_core::name::TenantName;
use kms_core::root::{RetiredRoot, RootPin};
use kms_core::secret::Plaintext;
use kms_core::usage::UsageRow;
use kms_hsm::{
    CryptoOp, Finished, GeneratedKey, Hsm, HsmError, HsmKey, HsmStatus, ImportKeySpec, KeyImport,
    KeySource, KeySpec, Mark, Pending, TokenKeys,
};
use kms_server::audit::{Appended, AuditError, AuditSink, Past, SharedAuditSink};
use kms_server::store::{
    Closing, ConsumerChange, DuePosition, Exporting, HistoryPosition, ImportJobEdit, Intent,
    JobPosition, KeyRef, ListOrder, ListPlace, ListPosition, Listed, NewKey, OldCounts, OldRows,
    RequestPosition, RequestRecord, Resealed, Rollover, RowsLimit, Staging, Store, StoreError,
    StoredKey, VersionChoice,
};
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
    left: AtomicI64,
    armed: AtomicBool,
    reply_lost: AtomicBool,
    unwritable: AtomicBool,
    /// How many calls fail once it has begun.
    failing: AtomicI64,
    calls: AtomicI64,
    /// How often rows of a tenant were listed in the order of a walk.
    pub(crate) walks: AtomicI64,
    stale: Mutex<Option<Vec<Sealed<Intent>>>>,
    slow: Mutex<Option<(Arc<ManualClock>, Duration)>>,
    gate: Mutex<Option<Arc<Gate>>>,
    version_gate: Mutex<Option<Arc<Gate>>>,
    list_gate: Mutex<Option<Arc<Gate>>>,
    undying: Mutex<Option<CkaId>>,
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

    async fn pass(&self) {
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

    fn next(&self) -> Fate {
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

#[derive(Debug)]
pub(crate) struct FaultyStore(pub(crate) Arc<dyn Store>, pub(crate) Arc<Faults>);

macro_rules! through {
    ($self:ident . $method:ident ( $($argument:expr),* )) => {{
        let gone = || StoreError::Unavailable { detail: "injected".into() };
        match $self.1.next() {
            Fate::Works => $self.0.$method($($argument),*).await,
            Fate::Fails => Err(gone()),
            Fate::ReplyLost => {
                let _ = $self.0.$method($($argument),*).await;
                Err(gone())
            }
        }
    }};
}

#[async_trait]
impl Store for FaultyStore {
    async fn root_pins(&self) -> Result<Vec<(RootPin, RowMac)>, StoreError> {
        through!(self.root_pins())
    }
    async fn add_root_pin(&self, pin: RootPin, mac: RowMac) -> Result<(), StoreError> {
        through!(self.add_root_pin(pin, mac))
    }
    async fn key(&self, key: KeyRef, v: VersionChoice) -> Result<Option<StoredKey>, StoreError> {
        let numbered = matches!(v, VersionChoice::Number(_));
        let gate = numbered.then(|| self.1.version_gate.lock().unwrap().take()).flatten();
        let read = through!(self.key(key, v));
        if let Some(gate) = gate {
            gate.pass().await;
        }
        read
    }
    async fn list_keys(
        &self,
        tenant: TenantName,
        after: Option<ListPosition>,
        limit: u32,
    ) -> Result<Vec<Sealed<KeyRow>>, StoreError> {
        self.1.walks.fetch_add(1, Ordering::SeqCst);
        through!(self.list_keys(tenant, after, limit))
    }
    async fn list_keys_ordered(
        &self,
        tenant: TenantName,
        order: ListOrder,
        after: Option<ListPlace>,
        limit: u32,
    ) -> Result<Vec<Sealed<KeyRow>>, StoreError> {
        let gate = self.1.list_gate.lock().unwrap().take();
        let read = through!(self.list_keys_ordered(tenant, order, after, limit));
        if let Some(gate) = gate {
            gate.pass().await;
        }
        read
    }
    async fn list_versions(
        &self,
        key_uid: KeyUid,
        after: Option<KeyVersion>,
        limit: u32,
    ) -> Result<Vec<Sealed<VersionRow>>, StoreError> {
        through!(self.list_versions(key_uid, after, limit))
    }
    async fn last_revision(
        &self,
        key_uid: KeyUid,
        version: KeyVersion,
    ) -> Result<Option<Revision>, StoreError> {
        through!(self.last_revision(key_uid, version))
    }
    async fn list_consumers(
        &self,
        key_uid: KeyUid,
    ) -> Result<Vec<Sealed<ConsumerRow>>, StoreError> {
        through!(self.list_consumers(key_uid))
    }
    async fn list_import_jobs(
        &self,
        tenant: TenantName,
    ) -> Result<Vec<Sealed<ImportJobRow>>, StoreError> {
        through!(self.list_import_jobs(tenant))
    }
    async fn due_import_jobs(
        &self,
        now: Timestamp,
        after: Option<JobPosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<ImportJobRow>>, StoreError> {
        through!(self.due_import_jobs(now, after, limit))
    }
    async fn change_import_jobs(
        &self,
        edit: ImportJobEdit,
        closing: Closing,
    ) -> Result<(), StoreError> {
        through!(self.change_import_jobs(edit, closing))
    }
    async fn list_history(
        &self,
        key_uid: KeyUid,
        after: Option<HistoryPosition>,
        limit: u32,
    ) -> Result<Vec<Sealed<HistoryRow>>, StoreError> {
        through!(self.list_history(key_uid, after, limit))
    }
    async fn counter(
        &self,
        key_uid: KeyUid,
        version: KeyVersion,
    ) -> Result<Option<Sealed<CounterRow>>, StoreError> {
        through!(self.counter(key_uid, version))
    }
    async fn usage(
        &self,
        key_uid: KeyUid,
        version: KeyVersion,
    ) -> Result<Option<Sealed<UsageRow>>, StoreError> {
        through!(self.usage(key_uid, version))
    }
    async fn update_usage(
        &self,
        changes: Vec<(Revision, Sealed<UsageRow>)>,
    ) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        through!(self.update_usage(changes))
    }
    async fn update_counters(
        &self,
        changes: Vec<(Revision, Sealed<CounterRow>)>,
    ) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        through!(self.update_counters(changes))
    }
    async fn manifest(&self, tenant: TenantName) -> Result<Option<Sealed<Manifest>>, StoreError> {
        through!(self.manifest(tenant))
    }
    async fn list_manifests(
        &self,
        after: Option<TenantName>,
        limit: u32,
    ) -> Result<Vec<Sealed<Manifest>>, StoreError> {
        through!(self.list_manifests(after, limit))
    }
    async fn request(
        &self,
        principal: String,
        id: RequestId,
    ) -> Result<Option<Sealed<RequestRecord>>, StoreError> {
        through!(self.request(principal, id))
    }
    async fn room_for_request(&self, tenant: TenantName) -> Result<(), StoreError> {
        through!(self.room_for_request(tenant))
    }
    async fn forget_requests(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        through!(self.forget_requests(before, limit))
    }
    async fn open_intent(&self, intent: Sealed<Intent>) -> Result<(), StoreError> {
        let gate = self.1.gate.lock().unwrap().clone();
        if let Some(gate) = gate {
            gate.pass().await;
        }
        through!(self.open_intent(intent))
    }
    async fn intents(&self) -> Result<Listed<Sealed<Intent>>, StoreError> {
        if let Some(stale) = self.1.stale.lock().unwrap().take() {
            return Ok(Listed { rows: stale, damaged: 0 });
        }
        through!(self.intents())
    }
    async fn close_intent(&self, intent: IntentId) -> Result<(), StoreError> {
        through!(self.close_intent(intent))
    }
    async fn create_key(&self, new: NewKey, closing: Closing) -> Result<(), StoreError> {
        through!(self.create_key(new, closing))
    }
    async fn update_key(
        &self,
        expected: Revision,
        key: Sealed<KeyRow>,
        closing: Closing,
    ) -> Result<(), StoreError> {
        through!(self.update_key(expected, key, closing))
    }
    async fn stage(&self, staging: Staging, closing: Closing) -> Result<(), StoreError> {
        through!(self.stage(staging, closing))
    }
    async fn change_consumers(
        &self,
        change: ConsumerChange,
        closing: Closing,
    ) -> Result<(), StoreError> {
        through!(self.change_consumers(change, closing))
    }
    async fn roll_over(&self, rollover: Rollover, closing: Closing) -> Result<(), StoreError> {
        through!(self.roll_over(rollover, closing))
    }
    async fn update_version(
        &self,
        expected: Revision,
        version: Sealed<VersionRow>,
        closing: Closing,
    ) -> Result<(), StoreError> {
        through!(self.update_version(expected, version, closing))
    }
    async fn resident_ids(&self) -> Result<Listed<CkaId>, StoreError> {
        through!(self.resident_ids())
    }
    async fn retired_roots(&self) -> Result<Vec<Sealed<RetiredRoot>>, StoreError> {
        through!(self.retired_roots())
    }
    async fn retire_root(&self, retired: Sealed<RetiredRoot>) -> Result<(), StoreError> {
        through!(self.retire_root(retired))
    }
    async fn old_rows(
        &self,
        tenant: TenantName,
        current: RootGeneration,
        after: Option<ListPosition>,
        limit: RowsLimit,
    ) -> Result<OldRows, StoreError> {
        through!(self.old_rows(tenant, current, after, limit))
    }
    async fn old_requests(
        &self,
        current: RootGeneration,
        after: Option<RequestPosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<RequestRecord>>, StoreError> {
        through!(self.old_requests(current, after, limit))
    }
    async fn reseal(&self, rows: Vec<Resealed>, closing: Closing) -> Result<(), StoreError> {
        through!(self.reseal(rows, closing))
    }
    async fn reseal_loose(&self, rows: Vec<Resealed>) -> Result<u64, StoreError> {
        through!(self.reseal_loose(rows))
    }
    async fn old_counts(&self, current: RootGeneration) -> Result<OldCounts, StoreError> {
        through!(self.old_counts(current))
    }
    async fn due_activations(
        &self,
        now: Timestamp,
        after: Option<DuePosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<VersionRow>>, StoreError> {
        through!(self.due_activations(now, after, limit))
    }
    async fn due_rotations(
        &self,
        now: Timestamp,
        after: Option<DuePosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<KeyRow>>, StoreError> {
        through!(self.due_rotations(now, after, limit))
    }
    async fn due_destructions(
        &self,
        now: Timestamp,
        after: Option<DuePosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<VersionRow>>, StoreError> {
        through!(self.due_destructions(now, after, limit))
    }
    async fn due_key_destructions(
        &self,
        now: Timestamp,
        after: Option<DuePosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<KeyRow>>, StoreError> {
        through!(self.due_key_destructions(now, after, limit))
    }
    async fn export(&self) -> Result<Exporting, StoreError> {
        through!(self.export())
    }
    async fn primaries_made_before(&self, time: Timestamp) -> Result<u64, StoreError> {
        through!(self.primaries_made_before(time))
    }
    async fn due_deactivations(
        &self,
        now: Timestamp,
        after: Option<DuePosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<VersionRow>>, StoreError> {
        through!(self.due_deactivations(now, after, limit))
    }
    async fn probe(&self, now: Timestamp) -> Result<(), StoreError> {
        if self.1.unwritable.load(Ordering::SeqCst) {
            return Err(StoreError::Unwritable { detail: "injected".into() });
        }
        through!(self.probe(now))
    }
    async fn close(&self) {
        self.0.close().await;
    }
}
