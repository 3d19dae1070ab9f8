//! The PKCS#11 provider of [`Hsm`].
//!
//! Request path: [`Pkcs11Hsm`] queues -> `worker` (one thread, one session) -> `crypt` -> `token` -> the module. What
//! needs objects, login or recovery goes to the one `keeper`. `lane` generates RSA key pairs. `gate` keeps C_Finalize and calls apart, `health` is
//! breaker and latch, `watchdog` answers for threads that hang, `staff` counts the workers, `ckr` decides what a code means.

mod canary;
pub(crate) mod ckr;
mod config;
mod continuous;
mod crypt;
mod durable;
mod fatal;
mod gate;
mod health;
mod inbox;
mod iv;
mod job;
mod keeper;
mod key;
mod lane;
mod mechanism;
mod seat;
mod shared;
mod staff;
mod template;
mod token;
mod token_file;
mod watchdog;
mod worker;

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use cryptoki::context::Pkcs11;
use kms_core::clock::Clock;
use kms_core::id::RootGeneration;
use kms_core::key::{CkaId, Material, RowMac, WrappedKey};
use kms_core::root::RootPin;
use kms_core::secret::{Pin, Plaintext};

pub use config::{
    Budgets, DEFAULT_WORKERS, FatalHook, MAX_QUEUE, MAX_RESIDENTS, MAX_WORKERS, Pkcs11Config,
    TokenSelector,
};
pub use fatal::{EXIT_HSM_HUNG, FatalReason, exit_at_once, exit_process, log_fatal};

use crate::error::HsmError;
use crate::hsm::{
    CryptoOp, Finished, GeneratedKey, Hsm, HsmKey, HsmStatus, ImportKeySpec, KeyImport, KeySource,
    KeySpec, MAX_BATCH, MAX_RANDOM_BYTES, MAX_REWRAPS, Mark, Pending, TokenKeys,
};
use crate::pending::To;
use job::{Job, KeeperMessage, KeeperWork, Reply, Ticket, Work};
use keeper::Keeper;
use lane::LaneTicket;
use shared::Shared;

/// The shortest data key.
const MIN_DATA_KEY_BYTES: usize = 16;

/// How long the end of the threads is waited for once they have closed everything: one that hangs stays.
const JOIN_LIMIT: std::time::Duration = std::time::Duration::from_secs(1);

/// A PKCS#11 token as an [`Hsm`].
pub struct Pkcs11Hsm {
    shared: Arc<Shared>,
    /// Hears of each worker that has ended.
    ended: Receiver<()>,
    /// Dropped to stop the watchdog.
    watchdog: Mutex<Option<Sender<()>>>,
}

impl Pkcs11Hsm {
    /// Loads the module, starts the threads, and connects once.
    ///
    /// A token that is absent, or a PIN that is refused, is no error here: it shows in [`Hsm::status`], and a token
    /// that comes is connected by itself. The call blocks until the first attempt is over.
    ///
    /// # Errors
    /// [`HsmError::Unavailable`] when the module cannot be loaded or a thread not started, [`HsmError::Bug`] when the
    /// configuration is out of bounds.
    pub fn start(config: Pkcs11Config, pin: Pin, clock: Arc<dyn Clock>) -> Result<Self, HsmError> {
        config.check()?;
        let context = Pkcs11::new(&config.module).map_err(|error| {
            no_start(format!("module {}: {}", config.module.display(), ckr::describe(&error)))
        })?;
        let (ended_in, ended) = bounded(2 * MAX_WORKERS);
        let shared = Arc::new(Shared::new(config, clock, ended_in));
        let (watchdog, stop) = bounded(0);
        let watched = Arc::clone(&shared);
        drop(spawn("hsm-watchdog", move || watchdog::run(&watched, &stop))?);
        let (tried, first) = bounded(1);
        let of_keeper = Keeper::new(Arc::clone(&shared), context, pin);
        shared.keep_thread(spawn("hsm-keeper", move || of_keeper.run(&tried))?);
        let of_lane = Arc::clone(&shared);
        shared.keep_thread(spawn("hsm-lane", move || lane::run(&of_lane))?);
        let this = Self { shared, ended, watchdog: Mutex::new(Some(watchdog)) };
        // A keeper that hangs in its first connect is the watchdog's to end. It starts the workers when it is connected,
        // as only then it knows how many the token bears.
        let _ = first.recv();
        Ok(this)
    }

    fn submit<T>(&self, work: Work, deadline: Instant, reply: fn(To<T>) -> Reply) -> Pending<T> {
        let (sender, pending) = Pending::channel();
        let queued_at = self.shared.now();
        let reply = Some(reply(sender));
        self.shared.submit(Box::new(Job { work, reply, deadline, queued_at, retried: false }));
        pending
    }

    fn keep<T>(
        &self,
        work: KeeperWork,
        deadline: Instant,
        reply: fn(To<T>) -> Reply,
    ) -> Pending<T> {
        let (sender, pending) = Pending::channel();
        self.shared.submit_keeper(work, reply(sender), deadline);
        pending
    }
}

impl Hsm for Pkcs11Hsm {
    fn create_root(&self, generation: RootGeneration, deadline: Instant) -> Pending<RootPin> {
        self.keep(KeeperWork::CreateRoot(generation), deadline, Reply::Pin)
    }

    fn open_roots(&self, pins: Vec<RootPin>, deadline: Instant) -> Pending<()> {
        self.keep(KeeperWork::OpenRoots(pins), deadline, Reply::Done)
    }

    fn mac(
        &self,
        generation: RootGeneration,
        inputs: Vec<Vec<u8>>,
        deadline: Instant,
    ) -> Pending<Vec<RowMac>> {
        self.submit(Work::Mac { generation, inputs }, deadline, Reply::Macs)
    }

    fn generate_key(&self, spec: KeySpec, deadline: Instant) -> Pending<GeneratedKey> {
        self.keep(KeeperWork::Generate(spec), deadline, Reply::Generated)
    }

    fn create_import_key(&self, spec: ImportKeySpec, deadline: Instant) -> Pending<Vec<u8>> {
        let (sender, pending) = Pending::channel();
        self.shared.submit_lane(spec, Reply::PublicKey(sender), deadline);
        pending
    }

    fn import_key(&self, import: KeyImport, deadline: Instant) -> Pending<GeneratedKey> {
        self.keep(KeeperWork::Import(Box::new(import)), deadline, Reply::Generated)
    }

    fn destroy_import_key(&self, id: CkaId, deadline: Instant) -> Pending<()> {
        self.keep(KeeperWork::DestroyImportKey(id), deadline, Reply::Done)
    }

    fn load_key(&self, source: KeySource, deadline: Instant) -> Pending<HsmKey> {
        self.keep(KeeperWork::Load(source), deadline, Reply::Key)
    }

    fn rewrap_keys(
        &self,
        sources: Vec<KeySource>,
        to: RootGeneration,
        deadline: Instant,
    ) -> Pending<Vec<Result<WrappedKey, HsmError>>> {
        match check_rewraps(&sources) {
            Ok(()) => self.keep(KeeperWork::Rewrap { sources, to }, deadline, Reply::Rewrapped),
            Err(error) => Pending::ready(Err(error)),
        }
    }

    fn destroy_resident(&self, id: CkaId, deadline: Instant) -> Pending<()> {
        self.keep(KeeperWork::DestroyResident(id), deadline, Reply::Done)
    }

    fn list_token_keys(&self, deadline: Instant) -> Pending<TokenKeys> {
        self.keep(KeeperWork::ListTokenKeys, deadline, Reply::TokenKeys)
    }

    fn put_mark(&self, mark: Mark, replaced: Vec<Mark>, deadline: Instant) -> Pending<()> {
        if !mark.is_in_bounds() {
            return Pending::ready(Err(HsmError::Bug { reason: "a mark out of bounds" }));
        }
        self.keep(KeeperWork::PutMark { mark, replaced }, deadline, Reply::Done)
    }

    fn marks(&self, deadline: Instant) -> Pending<Vec<Mark>> {
        self.keep(KeeperWork::ListMarks, deadline, Reply::Marks)
    }

    fn crypt(&self, operation: CryptoOp, deadline: Instant) -> Pending<Finished> {
        match check_bounds(&operation) {
            Ok(()) => self.submit(Work::Crypt(operation), deadline, Reply::Crypt),
            Err(error) => Pending::ready(Err(error)),
        }
    }

    fn crypt_batch(
        &self,
        operations: Vec<CryptoOp>,
        deadline: Instant,
    ) -> Pending<Vec<Result<Finished, HsmError>>> {
        if operations.len() > MAX_BATCH {
            return Pending::ready(Err(HsmError::Bug { reason: "a batch over its bound" }));
        }
        if let Some(error) = operations.iter().find_map(|operation| check_bounds(operation).err()) {
            return Pending::ready(Err(error));
        }
        let done = Vec::with_capacity(operations.len());
        self.submit(Work::Batch { operations, done }, deadline, Reply::Batch)
    }

    fn random(&self, length: usize, deadline: Instant) -> Pending<Plaintext> {
        if length > MAX_RANDOM_BYTES {
            return Pending::ready(Err(HsmError::Bug { reason: "random bytes over their bound" }));
        }
        self.submit(Work::Random(length), deadline, Reply::Random)
    }

    fn status(&self) -> HsmStatus {
        let shared = &self.shared;
        HsmStatus {
            health: shared.health.report(),
            token_serial: shared.serial.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            queue_length: shared.queue_out.len(),
            workers: shared.workers.load(Ordering::Acquire),
            loaded_keys: shared.loaded.load(Ordering::Acquire),
            unwrapped_keys: shared.unwrapped.load(Ordering::Relaxed),
            reconnects: shared.reconnects.load(Ordering::Acquire),
        }
    }

    fn close(&self) {
        let shared = &self.shared;
        if !shared.health.close() {
            return;
        }
        let budget = shared.config.budgets.close;
        for _ in 0..shared.workers.load(Ordering::Acquire) {
            if shared.queue_in.send_timeout(Ticket::Stop, budget).is_err() {
                tracing::error!("closing while the HSM queue does not move");
                break;
            }
        }
        let until = shared.now() + budget;
        while shared.workers.load(Ordering::Acquire) > 0 {
            let left = until.saturating_duration_since(shared.now());
            if left.is_zero() || self.ended.recv_timeout(left).is_err() {
                break;
            }
        }
        shared.refuse_waiting();
        if shared.lane_in.send_timeout(LaneTicket::Stop, budget).is_err() {
            tracing::error!("closing while the HSM lane does not move");
        }
        let (done, closed) = bounded(1);
        shared.tell_keeper(KeeperMessage::Close(done));
        if closed.recv_timeout(budget).is_err() {
            tracing::error!("closing while the HSM keeper hangs");
        }
        shared.refuse_waiting_for_lane();
        drop(self.watchdog.lock().unwrap_or_else(PoisonError::into_inner).take());
        shared.join_threads(shared.now() + JOIN_LIMIT);
    }
}

impl Drop for Pkcs11Hsm {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Pkcs11Hsm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pkcs11Hsm").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

/// Refuses lengths that the layers above must not let through.
fn check_bounds(operation: &CryptoOp) -> Result<(), HsmError> {
    match operation {
        CryptoOp::GenerateDataKey { length_bytes, .. }
            if !(MIN_DATA_KEY_BYTES..=MAX_RANDOM_BYTES).contains(length_bytes) =>
        {
            Err(HsmError::Bug { reason: "a data key out of bounds" })
        }
        _ => Ok(()),
    }
}

/// Refuses what the layers above must not ask for.
fn check_rewraps(sources: &[KeySource]) -> Result<(), HsmError> {
    if sources.len() > MAX_REWRAPS {
        return Err(HsmError::Bug { reason: "re-wraps over their bound" });
    }
    if sources.iter().any(|source| matches!(source.material, Material::Resident(_))) {
        return Err(HsmError::Bug { reason: "a re-wrap of what is not wrapped" });
    }
    Ok(())
}

fn no_start(detail: String) -> HsmError {
    HsmError::Unavailable { detail, retry_after: std::time::Duration::from_secs(1) }
}

fn spawn(
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> Result<thread::JoinHandle<()>, HsmError> {
    let thread = thread::Builder::new().name(name.into()).spawn(body);
    thread.map_err(|error| no_start(error.to_string()))
}
