//! The SQLite store: one file, one writer thread, a few reader threads.
//!
//! Responsible for the embedded default of [`Store`]. SQLite is called on its own threads only, never on a worker of the
//! runtime. Writers that wait share one commit (`writer`), so a durable mutation costs one fsync however many there are.
//!
//! A commit whose fsync failed is refused and undone for this process. If the machine dies before the next commit writes
//! over it, it may be found committed after all: a refused mutation is in doubt until its request id or intent is read.

mod aliases;
mod error;
mod export;
pub mod import;
mod migrate;
pub mod offline;
mod open;
mod read;
mod reseal;
mod row;
mod sql;
#[cfg(test)]
mod tests;
mod write;
mod write_closing;
mod write_consumers;
mod write_import_jobs;
mod write_rows;
mod write_usage;
mod writer;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::thread;

use async_trait::async_trait;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use kms_core::alias::AliasRow;
use kms_core::clock::Timestamp;
use kms_core::consumer::ConsumerRow;
use kms_core::id::{IntentId, KeyUid, KeyVersion, RequestId, Revision, RootGeneration};
use kms_core::import_job::ImportJobRow;
use kms_core::key::{CkaId, CounterRow, KeyRow, RowMac, Sealed, VersionRow};
use kms_core::lifecycle::HistoryRow;
use kms_core::manifest::Manifest;
use kms_core::name::TenantName;
use kms_core::root::{RetiredRoot, RootPin};
use kms_core::usage::UsageRow;
use rusqlite::Connection;
use tokio::sync::watch;

use self::writer::{Task, WriteJob};
use super::{
    AliasChange, AliasQuery, Closing, ConsumerChange, DuePosition, Exporting, HistoryPosition,
    ImportJobEdit, Intent, JobPosition, KeyRef, ListOrder, ListPlace, ListPosition, Listed,
    MAX_REMEMBERED_REQUESTS, NewKey, OldCounts, OldRows, RequestPosition, RequestRecord, Resealed,
    Rollover, RowsLimit, Staging, Store, StoreError, StoredKey, VersionChoice,
};

/// Reader threads: enough to hide a page read from disk behind another; queries take microseconds.
pub const READERS: usize = 2;
/// Methods that may wait for the writer, and as many for the readers; more are refused with `Saturated`.
pub const QUEUE: usize = 1024;

/// What a store is bounded by.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// Methods that may wait for the writer, and as many for the readers.
    queue: usize,
    /// Requests remembered of one tenant.
    requests: u64,
}

impl Bounds {
    const USUAL: Self = Self { queue: QUEUE, requests: MAX_REMEMBERED_REQUESTS };
}

type ReadJob = Box<dyn FnOnce(&Connection) + Send>;

/// A store in one SQLite file.
pub struct SqliteStore {
    file: PathBuf,
    max_requests: u64,
    queues: RwLock<Option<Queues>>,
    damage: Damage,
    closed: watch::Receiver<bool>,
}

struct Queues {
    writes: Sender<Box<dyn WriteJob>>,
    reads: Sender<ReadJob>,
}

/// What the integrity check found while the store was serving; once set, nothing is answered any more.
type Damage = Arc<OnceLock<StoreError>>;

impl SqliteStore {
    /// Opens the database, creating file and schema when there is none. Blocks: call it before serving.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when another process holds the file, [`StoreError::Schema`] when it was made by a
    /// newer release, [`StoreError::Damaged`] when the integrity check fails.
    pub fn open(file: &Path) -> Result<Self, StoreError> {
        Self::open_with(file, Bounds::USUAL, |_| Ok(()))
    }

    /// `prepare` sees the writer's connection before it serves: tests limit it there.
    fn open_with(
        file: &Path,
        bounds: Bounds,
        prepare: impl FnOnce(&Connection) -> Result<(), StoreError>,
    ) -> Result<Self, StoreError> {
        let open::Opened { writer, lock, check_pending } = open::open(file)?;
        prepare(&writer)?;
        let (writes, write_jobs) = bounded(bounds.queue);
        let (reads, read_jobs) = bounded(bounds.queue);
        let mut threads = Vec::with_capacity(READERS + 1);
        for number in 0..READERS {
            let connection = open::open_reader(file)?;
            let jobs = read_jobs.clone();
            threads.push(spawn(&format!("store-read-{number}"), move || {
                serve_reads(&connection, &jobs);
            })?);
        }
        let damage = Damage::default();
        if check_pending {
            let (connection, damage) = (open::open_reader(file)?, Arc::clone(&damage));
            threads.push(spawn("store-check", move || check(&connection, &damage))?);
        }
        let (closed_sender, closed) = watch::channel(false);
        spawn("store-write", move || {
            writer::serve(&writer, &write_jobs);
            for reader in threads {
                // A reader that panicked is as finished as one that returned.
                let _ = reader.join();
            }
            drop(writer);
            drop(lock);
            let _ = closed_sender.send(true);
        })?;
        let queues = RwLock::new(Some(Queues { writes, reads }));
        let (file, max_requests) = (file.to_owned(), bounds.requests);
        Ok(Self { file, max_requests, queues, damage, closed })
    }

    async fn write<T: Send + 'static>(
        &self,
        body: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (task, answer) = Task::new(body);
        self.enqueue(|queues| {
            queues.writes.try_send(Box::new(task)).map_err(|refused| refusal(&refused))
        })?;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    async fn read<T: Send + 'static>(
        &self,
        body: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (task, answer) = Task::new(move |connection: &Connection| {
            let transaction = connection.unchecked_transaction()?;
            let value = body(&transaction)?;
            transaction.finish()?;
            Ok(value)
        });
        let job: ReadJob = Box::new(move |connection| task.run_and_answer(connection));
        self.enqueue(|queues| queues.reads.try_send(job).map_err(|refused| refusal(&refused)))?;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    fn enqueue(
        &self,
        send: impl FnOnce(&Queues) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        if let Some(damage) = self.damage.get() {
            return Err(damage.clone());
        }
        let queues = self.queues.read().unwrap_or_else(PoisonError::into_inner);
        queues.as_ref().ok_or_else(stopped).and_then(send)
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore").field("file", &self.file).finish_non_exhaustive()
    }
}

fn spawn(
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> Result<thread::JoinHandle<()>, StoreError> {
    thread::Builder::new().name(name.into()).spawn(body).map_err(|error| StoreError::Unavailable {
        detail: format!("cannot start a thread: {error}"),
    })
}

fn serve_reads(connection: &Connection, jobs: &Receiver<ReadJob>) {
    while let Ok(job) = jobs.recv() {
        job(connection);
    }
}

fn check(connection: &Connection, damage: &Damage) {
    if let Err(error) = open::quick_check(connection) {
        tracing::error!(%error, "the integrity check failed; the store refuses from now on");
        let _ = damage.set(error);
    }
}

fn refusal<J>(refused: &TrySendError<J>) -> StoreError {
    match refused {
        TrySendError::Full(_) => StoreError::Saturated,
        TrySendError::Disconnected(_) => stopped(),
    }
}

fn stopped() -> StoreError {
    StoreError::Unavailable { detail: "the store is closed".into() }
}

#[async_trait]
impl Store for SqliteStore {
    async fn root_pins(&self) -> Result<Vec<(RootPin, RowMac)>, StoreError> {
        self.read(read::root_pins).await
    }

    async fn add_root_pin(&self, pin: RootPin, mac: RowMac) -> Result<(), StoreError> {
        self.write(move |db| write::add_root_pin(db, &pin, mac)).await
    }

    async fn key(
        &self,
        key: KeyRef,
        version: VersionChoice,
    ) -> Result<Option<StoredKey>, StoreError> {
        self.read(move |db| read::key(db, &key, version)).await
    }

    async fn list_keys(
        &self,
        tenant: TenantName,
        after: Option<ListPosition>,
        limit: u32,
    ) -> Result<Vec<Sealed<KeyRow>>, StoreError> {
        self.read(move |db| read::list_keys(db, &tenant, after, limit)).await
    }

    async fn list_keys_ordered(
        &self,
        tenant: TenantName,
        order: ListOrder,
        after: Option<ListPlace>,
        limit: u32,
    ) -> Result<Vec<Sealed<KeyRow>>, StoreError> {
        self.read(move |db| read::list_keys_ordered(db, &tenant, order, after, limit)).await
    }

    async fn list_versions(
        &self,
        key_uid: KeyUid,
        after: Option<KeyVersion>,
        limit: u32,
    ) -> Result<Vec<Sealed<VersionRow>>, StoreError> {
        self.read(move |db| read::list_versions(db, key_uid, after, limit)).await
    }

    async fn last_revision(
        &self,
        key_uid: KeyUid,
        version: KeyVersion,
    ) -> Result<Option<Revision>, StoreError> {
        self.read(move |db| read::last_revision(db, key_uid, version)).await
    }

    async fn list_consumers(
        &self,
        key_uid: KeyUid,
    ) -> Result<Vec<Sealed<ConsumerRow>>, StoreError> {
        self.read(move |db| read::list_consumers(db, key_uid)).await
    }

    async fn aliases(&self, query: AliasQuery) -> Result<Vec<Sealed<AliasRow>>, StoreError> {
        self.read(move |db| aliases::aliases(db, &query)).await
    }

    async fn change_alias(&self, change: AliasChange, closing: Closing) -> Result<(), StoreError> {
        let max = self.max_requests;
        self.write(move |db| aliases::change_alias(db, &change, &closing, max)).await
    }

    async fn list_import_jobs(
        &self,
        tenant: TenantName,
    ) -> Result<Vec<Sealed<ImportJobRow>>, StoreError> {
        self.read(move |db| read::list_import_jobs(db, &tenant)).await
    }

    async fn due_import_jobs(
        &self,
        now: Timestamp,
        after: Option<JobPosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<ImportJobRow>>, StoreError> {
        self.read(move |db| read::due_import_jobs(db, now, after, limit)).await
    }

    async fn change_import_jobs(
        &self,
        edit: ImportJobEdit,
        closing: Closing,
    ) -> Result<(), StoreError> {
        let max = self.max_requests;
        self.write(move |db| write_import_jobs::change_import_jobs(db, &edit, &closing, max)).await
    }

    async fn list_history(
        &self,
        key_uid: KeyUid,
        after: Option<HistoryPosition>,
        limit: u32,
    ) -> Result<Vec<Sealed<HistoryRow>>, StoreError> {
        self.read(move |db| read::list_history(db, key_uid, after, limit)).await
    }

    async fn counter(
        &self,
        key_uid: KeyUid,
        version: KeyVersion,
    ) -> Result<Option<Sealed<CounterRow>>, StoreError> {
        self.read(move |db| read::counter(db, key_uid, version)).await
    }

    async fn usage(
        &self,
        key_uid: KeyUid,
        version: KeyVersion,
    ) -> Result<Option<Sealed<UsageRow>>, StoreError> {
        self.read(move |db| read::usage(db, key_uid, version)).await
    }

    async fn update_usage(
        &self,
        changes: Vec<(Revision, Sealed<UsageRow>)>,
    ) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        self.write(move |db| {
            let write = |(expected, usage): &(Revision, Sealed<UsageRow>)| {
                match write_usage::update_usage(db, *expected, usage) {
                    // The database fails, not this row.
                    Err(
                        error @ (StoreError::Unwritable { .. } | StoreError::Unavailable { .. }),
                    ) => Err(error),
                    own => Ok(own),
                }
            };
            changes.iter().map(write).collect()
        })
        .await
    }

    async fn update_counters(
        &self,
        changes: Vec<(Revision, Sealed<CounterRow>)>,
    ) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        self.write(move |db| {
            changes
                .iter()
                .map(|(expected, counter)| {
                    match write::update_counter(db, *expected, counter) {
                        // The database fails, not this row.
                        Err(
                            error
                            @ (StoreError::Unwritable { .. } | StoreError::Unavailable { .. }),
                        ) => Err(error),
                        own => Ok(own),
                    }
                })
                .collect()
        })
        .await
    }

    async fn manifest(&self, tenant: TenantName) -> Result<Option<Sealed<Manifest>>, StoreError> {
        self.read(move |db| read::manifest(db, &tenant)).await
    }

    async fn list_manifests(
        &self,
        after: Option<TenantName>,
        limit: u32,
    ) -> Result<Vec<Sealed<Manifest>>, StoreError> {
        self.read(move |db| read::list_manifests(db, after.as_ref(), limit)).await
    }

    async fn request(
        &self,
        principal: String,
        request_id: RequestId,
    ) -> Result<Option<Sealed<RequestRecord>>, StoreError> {
        self.read(move |db| read::request(db, &principal, request_id)).await
    }

    async fn room_for_request(&self, tenant: TenantName) -> Result<(), StoreError> {
        let remembered = self.read(move |db| read::requests_remembered(db, &tenant)).await?;
        if remembered < self.max_requests { Ok(()) } else { Err(StoreError::RequestsFull) }
    }

    async fn forget_requests(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        self.write(move |db| write_closing::forget_requests(db, before, limit)).await
    }

    async fn open_intent(&self, intent: Sealed<Intent>) -> Result<(), StoreError> {
        self.write(move |db| write_closing::open_intent(db, &intent)).await
    }

    async fn intents(&self) -> Result<Listed<Sealed<Intent>>, StoreError> {
        self.read(read::intents).await
    }

    async fn close_intent(&self, intent: IntentId) -> Result<(), StoreError> {
        self.write(move |db| write_closing::close_intent(db, intent)).await
    }

    async fn create_key(&self, new: NewKey, closing: Closing) -> Result<(), StoreError> {
        let max = self.max_requests;
        self.write(move |db| write::create_key(db, &new, &closing, max)).await
    }

    async fn update_key(
        &self,
        expected: Revision,
        key: Sealed<KeyRow>,
        closing: Closing,
    ) -> Result<(), StoreError> {
        let max = self.max_requests;
        self.write(move |db| write::update_key(db, expected, &key, &closing, max)).await
    }

    async fn stage(&self, staging: Staging, closing: Closing) -> Result<(), StoreError> {
        let max = self.max_requests;
        self.write(move |db| write::stage(db, &staging, &closing, max)).await
    }

    async fn change_consumers(
        &self,
        change: ConsumerChange,
        closing: Closing,
    ) -> Result<(), StoreError> {
        let max = self.max_requests;
        self.write(move |db| write_consumers::change_consumers(db, &change, &closing, max)).await
    }

    async fn roll_over(&self, rollover: Rollover, closing: Closing) -> Result<(), StoreError> {
        let max = self.max_requests;
        self.write(move |db| write::roll_over(db, &rollover, &closing, max)).await
    }

    async fn update_version(
        &self,
        expected: Revision,
        version: Sealed<VersionRow>,
        closing: Closing,
    ) -> Result<(), StoreError> {
        let max = self.max_requests;
        self.write(move |db| write::update_version(db, expected, &version, &closing, max)).await
    }

    async fn retired_roots(&self) -> Result<Vec<Sealed<RetiredRoot>>, StoreError> {
        self.read(reseal::retired_roots).await
    }

    async fn retire_root(&self, retired: Sealed<RetiredRoot>) -> Result<(), StoreError> {
        self.write(move |db| reseal::retire_root(db, &retired)).await
    }

    async fn old_rows(
        &self,
        tenant: TenantName,
        current: RootGeneration,
        after: Option<ListPosition>,
        limit: RowsLimit,
    ) -> Result<OldRows, StoreError> {
        self.read(move |db| reseal::old_rows(db, &tenant, current, after, limit)).await
    }

    async fn old_requests(
        &self,
        current: RootGeneration,
        after: Option<RequestPosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<RequestRecord>>, StoreError> {
        self.read(move |db| reseal::old_requests(db, current, after.as_ref(), limit)).await
    }

    async fn reseal(&self, rows: Vec<Resealed>, closing: Closing) -> Result<(), StoreError> {
        let max = self.max_requests;
        self.write(move |db| reseal::reseal(db, &rows, &closing, max)).await
    }

    async fn reseal_loose(&self, rows: Vec<Resealed>) -> Result<u64, StoreError> {
        self.write(move |db| reseal::reseal_loose(db, &rows)).await
    }

    async fn old_counts(&self, current: RootGeneration) -> Result<OldCounts, StoreError> {
        self.read(move |db| reseal::old_counts(db, current)).await
    }

    async fn resident_ids(&self) -> Result<Listed<CkaId>, StoreError> {
        self.read(read::resident_ids).await
    }

    async fn primaries_made_before(&self, time: Timestamp) -> Result<u64, StoreError> {
        self.read(move |db| read::primaries_made_before(db, time)).await
    }

    async fn due_deactivations(
        &self,
        now: Timestamp,
        after: Option<DuePosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<VersionRow>>, StoreError> {
        self.read(move |db| read::due_deactivations(db, now, after, limit)).await
    }

    async fn due_activations(
        &self,
        now: Timestamp,
        after: Option<DuePosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<VersionRow>>, StoreError> {
        self.read(move |db| read::due_activations(db, now, after, limit)).await
    }

    async fn due_rotations(
        &self,
        now: Timestamp,
        after: Option<DuePosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<KeyRow>>, StoreError> {
        self.read(move |db| read::due_rotations(db, now, after, limit)).await
    }

    async fn due_destructions(
        &self,
        now: Timestamp,
        after: Option<DuePosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<VersionRow>>, StoreError> {
        self.read(move |db| read::due_destructions(db, now, after, limit)).await
    }

    async fn due_key_destructions(
        &self,
        now: Timestamp,
        after: Option<DuePosition>,
        limit: u32,
    ) -> Result<Listed<Sealed<KeyRow>>, StoreError> {
        self.read(move |db| read::due_key_destructions(db, now, after, limit)).await
    }

    async fn export(&self) -> Result<Exporting, StoreError> {
        // As any other method once the store is closed, or damaged.
        self.enqueue(|_| Ok(()))?;
        export::export(&self.file)
    }

    async fn probe(&self, now: Timestamp) -> Result<(), StoreError> {
        self.write(move |db| write::probe(db, now)).await
    }

    async fn close(&self) {
        drop(self.queues.write().unwrap_or_else(PoisonError::into_inner).take());
        let mut closed = self.closed.clone();
        // An error means that the writer thread is gone already.
        let _ = closed.wait_for(|closed| *closed).await;
    }
}
