//! BackupStore: one consistent state of the store, encrypted, in pieces, while the server serves.
//!
//! A thread reads what the store tells, and writes it into an age file whose pieces the caller takes; who takes none holds it up,
//! and is given up after [`PATIENCE`]. The log tells of its beginning before the first piece leaves, and of its end before the
//! caller hears that all is there.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kms_core::audit::Phase;
use kms_hsm::HsmError;
use tokio::runtime::Handle;
use tokio::sync::{OwnedMutexGuard, mpsc};
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use super::kms::{INTERNAL_DEADLINE, Inner, Kms};
use super::trail::{OK, PENDING, Trail};
use super::{RequestContext, ServiceError};
use crate::authz::{self, Target};
use crate::backup::{BackupManifest, BackupWriter, Recipient, encrypting};
use crate::store::{ExportHead, Exported, Exporting, StoreError};

/// How long a piece may wait to be taken, and the store for its next rows.
const PATIENCE: Duration = Duration::from_secs(30);
/// The length of a piece.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces that wait.
const WAITING: usize = 2;

/// What a backup gives, in order.
#[derive(Debug)]
pub enum BackupPart {
    /// The next bytes of the age file.
    Piece {
        /// The bytes.
        data: Bytes,
        /// Rows written so far.
        rows: u64,
        /// Rows there will be.
        total_rows: u64,
    },
    /// All is there. Without it the pieces are no backup.
    Whole,
}

/// A backup on its way. Dropping it gives it up.
pub type BackupParts = mpsc::Receiver<Result<BackupPart, ServiceError>>;

impl Kms {
    /// Takes a backup, encrypted to `recipient`.
    ///
    /// # Errors
    /// `ACCESS_DENIED`, `RECIPIENT_REFUSED`, `BACKUP_IN_PROGRESS`, and what the layers below cannot do; in the middle of it also
    /// `BACKUP_CANCELLED`.
    pub async fn backup_store(
        &self,
        request: &RequestContext,
        recipient: &str,
    ) -> Result<BackupParts, ServiceError> {
        let mut trail = Trail::unknown();
        match self.inner.begin_backup(request, recipient, &mut trail).await {
            Ok(parts) => Ok(parts),
            Err(error) => self.inner.record(request, trail, Err(error)).await,
        }
    }
}

impl Inner {
    async fn begin_backup(
        self: &Arc<Self>,
        request: &RequestContext,
        recipient: &str,
        trail: &mut Trail,
    ) -> Result<BackupParts, ServiceError> {
        self.permit::<authz::BackupStore>(request, Target::ANYWHERE, trail)?;
        let recipient: Recipient = recipient.parse().map_err(|_| ServiceError::RecipientRefused)?;
        let turn = Arc::clone(&self.backup).try_lock_owned();
        let turn = turn.map_err(|_| ServiceError::BackupInProgress)?;
        trail.reason = Some(format!("begins, to {recipient}"));
        self.record_phase(request, trail, Phase::Complete, PENDING).await?;
        // Before the rows are read: what the journal tells up to here, they show.
        let journal = self.journal.progress().settled();
        let exporting = self.store.export().await?;
        let (sender, parts) = mpsc::channel(WAITING);
        let backup = Backup {
            inner: Arc::clone(self),
            request: request.clone(),
            handle: Handle::current(),
            recipient,
            journal,
            exporting,
            sender,
            _turn: turn,
        };
        let thread = std::thread::Builder::new().name("backup".to_owned());
        // Detached: it ends when its caller does, or by its own patience.
        thread
            .spawn(move || backup.run())
            .map_err(|_| ServiceError::Bug { reason: "no thread for a backup" })?;
        Ok(parts)
    }
}

/// One backup, on its thread.
struct Backup {
    inner: Arc<Inner>,
    request: RequestContext,
    handle: Handle,
    recipient: Recipient,
    journal: u64,
    exporting: Exporting,
    sender: mpsc::Sender<Result<BackupPart, ServiceError>>,
    _turn: OwnedMutexGuard<()>,
}

impl Backup {
    fn run(mut self) {
        let written = self.write();
        let (result, reason) = match &written {
            Ok(rows) => (OK, format!("ended, {rows} rows")),
            Err(error) => (error.reason(), "given up".to_owned()),
        };
        let mut trail = Trail::unknown();
        trail.reason = Some(reason);
        let record = self.inner.record_phase(&self.request, &trail, Phase::Complete, result);
        let recorded = self.handle.block_on(record);
        let part = written.and(recorded).map(|()| BackupPart::Whole);
        // Nobody may wait any more.
        let _ = patiently(&self.handle, self.sender.send(part));
    }

    fn write(&mut self) -> Result<u64, ServiceError> {
        let head = self.next_parts()?;
        let mut parts = head.into_iter();
        let Some(Exported::Head(head)) = parts.next() else {
            return Err(ServiceError::Bug { reason: "an export without its head" });
        };
        let pieces = Pieces {
            handle: self.handle.clone(),
            sender: self.sender.clone(),
            buffer: Vec::with_capacity(PIECE_BYTES),
            rows: 0,
            total_rows: head.rows,
        };
        let file = encrypting(&self.recipient, pieces).map_err(|error| cancelled(&error))?;
        let mut writer =
            BackupWriter::begin(file, &self.manifest(&head)).map_err(|error| cancelled(&error))?;
        let mut rows = 0;
        let mut parts: Vec<Exported> = parts.collect();
        'all: loop {
            for part in parts {
                match part {
                    Exported::Table { name, columns } => {
                        writer.table(name, &columns).map_err(|error| cancelled(&error))?;
                    }
                    Exported::Row(cells) => {
                        writer.row(&cells).map_err(|error| cancelled(&error))?;
                        rows += 1;
                    }
                    Exported::End => break 'all,
                    Exported::Head(_) => {
                        return Err(ServiceError::Bug { reason: "an export with two heads" });
                    }
                }
            }
            parts = self.next_parts()?;
        }
        if rows != head.rows {
            return Err(ServiceError::Bug { reason: "an export with another number of rows" });
        }
        let generation = self.inner.keyring.config().generation;
        let file = writer.end(generation, |input| {
            let deadline = self.inner.clock.monotonic() + INTERNAL_DEADLINE;
            let macs = self.inner.hsm.mac(generation, vec![input], deadline).wait();
            macs?.into_iter().next().ok_or(HsmError::Bug { reason: "the hsm gave no MAC" }.into())
        });
        let mut pieces =
            file.map_err(|error: Given| error.0)?.finish().map_err(|error| cancelled(&error))?;
        pieces.rows = rows;
        pieces.give().map_err(|error| cancelled(&error))?;
        Ok(rows)
    }

    fn manifest(&self, head: &ExportHead) -> BackupManifest {
        BackupManifest {
            time: self.inner.clock.now().to_string(),
            audit_event: self.request.event_id.to_string(),
            journal: self.journal,
            root_generation: self.inner.keyring.config().generation.get(),
            schema: data_encoding::HEXLOWER.encode(&head.schema),
            rows: head.rows,
            keys: head.keys,
            tenants: head.tenants,
            intents_left_out: head.intents,
            requests_left_out: head.requests,
        }
    }

    fn next_parts(&mut self) -> Result<Vec<Exported>, ServiceError> {
        let next = patiently(&self.handle, self.exporting.recv());
        let late = StoreError::Unavailable { detail: "the export of the store stopped".into() };
        let parts = match next {
            Ok(Some(parts)) => parts,
            Ok(None) | Err(_) => Err(late),
        };
        Ok(self.inner.keyring.stored(parts)?)
    }
}

/// Waits on this thread, for [`PATIENCE`] at most. The timer is the runtime's, and is made inside it.
fn patiently<T>(handle: &Handle, step: impl Future<Output = T>) -> Result<T, Elapsed> {
    handle.block_on(async { timeout(PATIENCE, step).await })
}

/// What ended the writing: the caller, unless the HSM did.
struct Given(ServiceError);

impl From<io::Error> for Given {
    fn from(error: io::Error) -> Self {
        Self(cancelled(&error))
    }
}

impl From<HsmError> for Given {
    fn from(error: HsmError) -> Self {
        Self(error.into())
    }
}

/// All that a backup is written to is the caller.
fn cancelled(error: &io::Error) -> ServiceError {
    tracing::warn!(%error, "a backup was given up");
    ServiceError::BackupCancelled
}

/// Gives what is written to the caller, piece by piece.
struct Pieces {
    handle: Handle,
    sender: mpsc::Sender<Result<BackupPart, ServiceError>>,
    buffer: Vec<u8>,
    rows: u64,
    total_rows: u64,
}

impl Pieces {
    fn give(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let data =
            Bytes::from(std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE_BYTES)));
        let (rows, total_rows) = (self.rows, self.total_rows);
        let piece = Ok(BackupPart::Piece { data, rows, total_rows });
        match patiently(&self.handle, self.sender.send(piece)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::Error::other("its caller has left")),
            Err(_) => Err(io::Error::other("its caller takes no more")),
        }
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = PIECE_BYTES.saturating_sub(self.buffer.len());
        let (now, _) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
        self.buffer.extend_from_slice(now);
        if self.buffer.len() >= PIECE_BYTES {
            self.give()?;
        }
        Ok(now.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
