//! `kms-server restore`: a backup, put back on an empty node that has the same token.
//!
//! All of it is made beside the places where a server looks: the database under `.restoring`, the log likewise. When it is whole,
//! verified and replayed, the database is renamed to `.restored`, which is the one step that counts; then both go to their
//! places. A restore that was cut short before that step is begun anew by the next one, and after it is finished by the next one.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kms_core::clock::{Clock, SystemClock};
use kms_core::id::RootGeneration;
use kms_core::import_job::MAX_OPEN_IMPORT_JOBS;
use kms_core::key::{RowMac, Sealed};
use kms_core::root::RetiredRoot;
use kms_core::secret::equal_in_constant_time;
use kms_hsm::pkcs11::Pkcs11Hsm;
use kms_hsm::{Hsm, HsmError};
use serde::Serialize;

use super::error::StartError;
use super::run::close_hsm;
use super::steps::on_a_thread;
use super::{parts, roots};
use crate::audit::{FileSink, SharedAuditSink};
use crate::backup::{BackupError, BackupManifest, BackupReader, Frame, Identity, decrypting};
use crate::config::{Config, Engine, check};
use crate::journal::{
    FileJournal, Gap, Journal as _, JournalStartError, Opening, SharedJournal, read_entries,
};
use crate::service::{Kms, Parts, Replayed, SystemRandomness, Tale};
use crate::store::Store as _;
use crate::store::sqlite::SqliteStore;
use crate::store::sqlite::import::{Import, is_empty, put_in_place};
use crate::store::sqlite::offline::OfflineStore;
use crate::verify_store::{LogSummary, Seen, VerifyStoreError, verify};

/// What is restored, and how.
#[derive(Debug)]
pub struct RestoreOrder {
    /// The backup.
    pub backup: PathBuf,
    /// What opens it.
    pub identity: Identity,
    /// The gap in the state journal that is accepted.
    pub accept_journal_gap: Option<Gap>,
}

/// What was restored, and what is lost.
#[derive(Debug, Serialize)]
pub struct Restored {
    /// What the backup says of itself; `None` when only a restore was finished that had been cut short.
    pub backup: Option<BackupManifest>,
    /// When it was restored.
    pub time: String,
    /// What the state journal has changed.
    pub replayed: Replayed,
    /// Number of the last entry of the state journal.
    pub journal: u64,
    /// Whether keys do not protect until they are rotated.
    pub protect_disabled: bool,
    /// Versions whose material was in a token object that is not there any more.
    pub residents_lost: u64,
}

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// As at a start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The file is no backup that can be put back.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// The node has a database already.
    #[error("{} is a database that has served: a backup is restored onto an empty node only", .0.display())]
    StoreNotEmpty(PathBuf),
    /// The node has an audit log already.
    #[error("{} has an audit log: a backup is restored onto an empty node only; move it away and keep it", .0.display())]
    AuditNotEmpty(PathBuf),
    /// The backup was taken by a release with other tables.
    #[error("the backup is of another release, whose tables are others")]
    OtherSchema,
    /// The token's roots are not those of the backup.
    #[error("the token does not have the root set of the backup: {0}")]
    OtherRoots(HsmError),
    /// The MAC of the whole is wrong.
    #[error("the MAC of the backup is wrong: it was changed, or is not of this token")]
    Mac,
    /// Its rows are not what their MACs and manifests say.
    #[error(
        "the rows of the backup do not agree with each other, {count} disagreements, the first: {first}"
    )]
    Rows {
        /// The first.
        first: String,
        /// How many there are.
        count: u64,
    },
    /// The replay failed.
    #[error("the state journal cannot be replayed: {0}")]
    Replay(#[from] crate::service::ServiceError),
    /// A file cannot be moved.
    #[error("{what} {}: {cause}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        cause: std::io::Error,
    },
}

impl From<crate::store::StoreError> for RestoreError {
    fn from(error: crate::store::StoreError) -> Self {
        Self::Start(error.into())
    }
}

impl From<JournalStartError> for RestoreError {
    fn from(error: JournalStartError) -> Self {
        Self::Start(error.into())
    }
}

impl RestoreError {
    /// Returns the exit status.
    pub const fn exit_status(&self) -> u8 {
        match self {
            Self::Start(error) => error.exit_status(),
            Self::OtherRoots(_) => super::error::EXIT_HSM,
            Self::Backup(BackupError::Io(_)) | Self::Replay(_) | Self::Io { .. } => {
                super::error::EXIT_STATE
            }
            Self::Backup(_)
            | Self::StoreNotEmpty(_)
            | Self::AuditNotEmpty(_)
            | Self::OtherSchema
            | Self::Mac
            | Self::Rows { .. } => super::error::EXIT_DIVERGED,
        }
    }
}

/// Where things are made, and where they go.
struct Places {
    store: PathBuf,
    aside: PathBuf,
    whole: PathBuf,
    audit: PathBuf,
    audit_aside: PathBuf,
}

impl Places {
    fn of(config: &Config) -> Self {
        let beside = |path: &Path, ending: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(ending);
            PathBuf::from(name)
        };
        let (store, audit) = (config.store.path.clone(), config.audit.directory.clone());
        Self {
            aside: beside(&store, ".restoring"),
            whole: beside(&store, ".restored"),
            audit_aside: beside(&audit, ".restoring"),
            store,
            audit,
        }
    }

    /// Refuses a node that has served. Of a restore that is to be finished the log may be in its place already.
    fn require_empty(&self, is_to_be_finished: bool) -> Result<(), RestoreError> {
        if !is_empty(&self.store)? {
            return Err(RestoreError::StoreNotEmpty(self.store.clone()));
        }
        let is_in_place = is_to_be_finished && !self.audit_aside.exists();
        if !is_in_place && has_files(&self.audit)? {
            return Err(RestoreError::AuditNotEmpty(self.audit.clone()));
        }
        Ok(())
    }

    /// Puts what is whole in its place. Whoever finds it half done does it again.
    fn finish(&self) -> Result<(), RestoreError> {
        if self.audit_aside.exists() {
            if self.audit.exists() {
                // It was found to hold nothing.
                let failed = io_error("remove the empty", &self.audit);
                std::fs::remove_dir_all(&self.audit).map_err(failed)?;
            }
            let failed = io_error("put in its place", &self.audit);
            std::fs::rename(&self.audit_aside, &self.audit).map_err(failed)?;
            sync_parent(&self.audit)?;
        }
        Ok(put_in_place(&self.whole, &self.store)?)
    }
}

fn io_error<'p>(
    what: &'static str,
    path: &'p Path,
) -> impl FnOnce(std::io::Error) -> RestoreError + use<'p> {
    move |cause| RestoreError::Io { what, path: path.to_owned(), cause }
}

fn sync_parent(path: &Path) -> Result<(), RestoreError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let synced = File::open(parent).and_then(|directory| directory.sync_all());
    synced.map_err(io_error("sync", parent))
}

/// Whether a directory holds more than a start leaves that wrote nothing: a lock file, and files without content.
fn has_files(directory: &Path) -> Result<bool, RestoreError> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(io_error("look into", directory)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(io_error("look into", directory))?;
        let metadata = entry.metadata().map_err(io_error("look at", directory))?;
        if !metadata.is_file() || metadata.len() > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Restores a backup. Blocks.
///
/// # Errors
/// [`RestoreError`]; then the node is as empty as it was.
pub fn restore(config: &Config, order: RestoreOrder) -> Result<Restored, RestoreError> {
    let problems: Vec<_> = check(config, SystemClock.now())
        .into_iter()
        .filter(|problem| problem.key.starts_with("hsm."))
        .collect();
    if !problems.is_empty() {
        return Err(StartError::Config(problems).into());
    }
    if config.store.engine != Engine::Sqlite {
        return Err(StartError::NotOffline(config.store.place()).into());
    }
    let places = Places::of(config);
    places.require_empty(places.whole.exists())?;
    if places.whole.exists() {
        places.finish()?;
        return Ok(Restored {
            backup: None,
            time: SystemClock.now().to_string(),
            replayed: Replayed::default(),
            journal: 0,
            protect_disabled: false,
            residents_lost: 0,
        });
    }
    if places.audit_aside.exists() {
        let failed = io_error("remove what was left", &places.audit_aside);
        std::fs::remove_dir_all(&places.audit_aside).map_err(failed)?;
    }
    let RestoreOrder { backup, identity, accept_journal_gap } = order;
    let file = File::open(&backup).map_err(io_error("open", &backup))?;
    let content = decrypting(&identity, BufReader::new(file))?;
    let imported = import(content, &places.aside)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(StartError::system("start the threads"))?;
    let restored = with_token(config, &places, imported, accept_journal_gap, &runtime)?;
    std::fs::rename(&places.aside, &places.whole).map_err(io_error("rename", &places.aside))?;
    sync_parent(&places.whole)?;
    places.finish()?;
    Ok(restored)
}

/// What was read of a backup.
struct Imported {
    manifest: BackupManifest,
    generation: RootGeneration,
    mac: RowMac,
    mac_input: Vec<u8>,
}

/// Fills the database beside with the rows of a backup. Nothing of it is believed yet.
fn import(content: impl Read, aside: &Path) -> Result<Imported, RestoreError> {
    let (mut reader, manifest) = BackupReader::begin(content)?;
    let mut import = Import::begin(aside)?;
    if data_encoding::HEXLOWER.encode(&import.schema()?) != manifest.schema {
        return Err(RestoreError::OtherSchema);
    }
    let mut rows = 0;
    loop {
        match reader.next_frame()? {
            Frame::Table { name, columns } => import.table(&name, &columns)?,
            Frame::Row(cells) => {
                import.row(cells)?;
                rows += 1;
            }
            Frame::End { generation, mac, mac_input } => {
                if rows != manifest.rows {
                    let detail = "it has another number of rows than it says";
                    return Err(BackupError::Malformed { detail }.into());
                }
                import.finish()?;
                return Ok(Imported { manifest, generation, mac, mac_input });
            }
        }
    }
}

fn with_token(
    config: &Config,
    places: &Places,
    imported: Imported,
    accept: Option<Gap>,
    runtime: &tokio::runtime::Runtime,
) -> Result<Restored, RestoreError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let offline = OfflineStore::open(&places.aside)?;
    let retired = offline.retired_roots()?;
    let pins = roots::in_use(offline.root_pins()?, &retired)?;
    let serials = pins.iter().map(|(pin, _)| pin.token_serial.clone()).collect();
    let hsm = parts::start_hsm(config, serials, &clock)?.hsm;
    let restoring = Restoring { config, places, clock, hsm: Arc::clone(&hsm), pins, retired };
    let restored = restoring.all(offline, imported, accept, runtime);
    runtime.block_on(close_hsm(hsm));
    restored
}

struct Restoring<'r> {
    config: &'r Config,
    places: &'r Places,
    clock: Arc<dyn Clock>,
    hsm: Arc<Pkcs11Hsm>,
    pins: Vec<roots::Pinned>,
    retired: Vec<Sealed<RetiredRoot>>,
}

impl Restoring<'_> {
    fn all(
        &self,
        offline: OfflineStore,
        imported: Imported,
        accept: Option<Gap>,
        runtime: &tokio::runtime::Runtime,
    ) -> Result<Restored, RestoreError> {
        runtime.block_on(self.open_roots(&imported))?;
        self.verify_rows(&offline, runtime)?;
        drop(offline);
        let covered = imported.manifest.journal;
        let opening = Opening {
            path: self.config.journal_path(),
            hsm: Arc::clone(&self.hsm) as Arc<dyn Hsm>,
            clock: Arc::clone(&self.clock),
            generations: roots::oldest(&self.pins)..=roots::newest(&self.pins),
            accept,
            covered: Some(covered),
        };
        // It waits for the token, as this thread may.
        let journal = FileJournal::open(opening)?;
        let mut tale = Tale::default();
        read_entries(&self.config.journal_path(), |entry| tale.note(entry, covered)).map_err(
            |cause| RestoreError::Io { what: "read", path: self.config.journal_path(), cause },
        )?;
        runtime.block_on(self.replay(imported.manifest, &tale.told(), Arc::new(journal)))
    }

    async fn open_roots(&self, imported: &Imported) -> Result<(), RestoreError> {
        let (hsm, clock) = (&*self.hsm, &*self.clock);
        let wanted = self.pins.iter().map(|(pin, _)| pin.clone()).collect();
        let opened = hsm.open_roots(wanted, roots::deadline(clock)).await;
        opened.map_err(RestoreError::OtherRoots)?;
        // First of all: whatever else is read of it was written by whoever has the token.
        if !self.pins.iter().any(|(pin, _)| pin.generation == imported.generation) {
            return Err(RestoreError::Mac);
        }
        let inputs = vec![imported.mac_input.clone()];
        let macs = hsm.mac(imported.generation, inputs, roots::deadline(clock)).await;
        let macs = macs.map_err(StartError::from)?;
        if !macs.first().is_some_and(|made| equal_in_constant_time(&made.0, &imported.mac.0)) {
            return Err(RestoreError::Mac);
        }
        roots::verify_pins(hsm, clock, &self.pins).await?;
        Ok(roots::verify_retired(hsm, clock, &self.pins, &self.retired).await?)
    }

    fn verify_rows(
        &self,
        offline: &OfflineStore,
        runtime: &tokio::runtime::Runtime,
    ) -> Result<(), RestoreError> {
        let mut macs = |generation, inputs| {
            runtime.block_on(self.hsm.mac(generation, inputs, roots::deadline(&*self.clock)))
        };
        // A log that knows of nothing: the rows are compared with each other alone.
        let none = LogSummary { entries: 0, first: None, last: 0, torn_bytes: 0 };
        let open = roots::oldest(&self.pins)..=roots::newest(&self.pins);
        let verified = verify(offline, Ok((Seen::default(), none)), open, &mut macs);
        let report = verified.map_err(|error| match error {
            VerifyStoreError::Store(error) => StartError::Store(error),
            VerifyStoreError::Hsm(error) => StartError::Unverifiable(error),
            VerifyStoreError::Bug(reason) => StartError::Bug(reason),
        })?;
        match report.findings.first() {
            None => Ok(()),
            Some(first) => Err(RestoreError::Rows {
                first: format!("{}: {}", first.row, first.detail),
                count: report.disagreements(),
            }),
        }
    }

    async fn replay(
        &self,
        manifest: BackupManifest,
        tale: &Tale,
        journal: Arc<FileJournal>,
    ) -> Result<Restored, RestoreError> {
        let store = Arc::new(SqliteStore::open(&self.places.aside)?);
        let audit = FileSink::open(&self.places.audit_aside).map_err(StartError::from)?;
        let audit: SharedAuditSink = Arc::new(audit);
        let (fence, last) = (journal.fence(), journal.progress().last());
        let kms = Kms::new(Parts {
            hsm: Arc::clone(&self.hsm) as Arc<dyn Hsm>,
            store: Arc::clone(&store) as _,
            audit: Arc::clone(&audit),
            journal: Arc::clone(&journal) as SharedJournal,
            clock: Arc::clone(&self.clock),
            policy: parts::policy(self.config)?,
            randomness: Arc::new(SystemRandomness),
            keyring: parts::keyring(
                self.config,
                roots::oldest(&self.pins),
                roots::newest(&self.pins),
            ),
            allow_rsa_oaep_sha1: false,
            max_open_import_jobs: MAX_OPEN_IMPORT_JOBS,
        });
        let restored = self.replay_with(&kms, manifest, tale, fence.is_some(), last).await;
        let drained = kms.drain().await;
        store.close().await;
        let closing = on_a_thread("close", move || {
            journal.close();
            audit.close();
        })?;
        closing.await.map_err(|_| StartError::Bug("the end of a part panicked"))?;
        let restored = restored?;
        drained?;
        Ok(restored)
    }

    async fn replay_with(
        &self,
        kms: &Kms,
        manifest: BackupManifest,
        tale: &Tale,
        protect_disabled: bool,
        journal: u64,
    ) -> Result<Restored, RestoreError> {
        let time = self.clock.now().to_string();
        kms.record_restore(format!(
            "backup of {}, audit event {}, journal {} of {journal}{}",
            manifest.time,
            manifest.audit_event,
            manifest.journal,
            if protect_disabled { ", protection disabled" } else { "" },
        ))
        .await?;
        let replayed = kms.replay(tale).await?;
        let residents_lost = kms.lost_residents().await?;
        kms.record_restore(format!(
            "lost: what changed after {}; {} intents, {} remembered requests; {} versions without their token object; {} of the \
             journal that are in no backup",
            manifest.time,
            manifest.intents_left_out,
            manifest.requests_left_out,
            residents_lost,
            replayed.not_in_backup,
        ))
        .await?;
        Ok(Restored {
            backup: Some(manifest),
            time,
            replayed,
            journal,
            protect_disabled,
            residents_lost,
        })
    }
}
