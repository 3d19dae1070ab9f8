//! The open end of the log: appends groups durably, and mends itself after a failure.
//!
//! Invariant: bytes after `durable_bytes` were never acknowledged. After a failed write or fdatasync the file is opened
//! again, its last line compared with the head, cut back to `durable_bytes` and synced before anything new is written:
//! a later fsync may well succeed without the lost pages ("fsyncgate"), so they are never relied on.

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use kms_core::audit::AuditRecord;

use super::chain::{Head, LineFault};
use super::files::{LogFile, list, make_directory, sync_directory};
use super::mark::{Mark, Marks};
use super::past::{Past, read_summary, write_summary};
use super::scan::{End, Place, head_at, scan};

pub(super) const LOCK_FILE: &str = "audit.lock";
/// Written and removed again to see that there is room, before the log calls itself mended.
const TRIAL: [u8; 4096] = [0; 4096];

/// Why the log cannot be opened. The server does not start.
#[derive(Debug, thiserror::Error)]
pub enum AuditStartError {
    /// Another process has it open.
    #[error("another process holds the audit directory (its audit.lock is locked)")]
    Held,
    /// A line is damaged or was edited.
    #[error("{file}, line {line}: {fault}: keep the directory as evidence and start with another")]
    Damaged {
        /// Name of the file.
        file: String,
        /// Number of the line in it, from 1.
        line: u64,
        /// What is wrong with it.
        fault: LineFault,
    },
    /// A file between the first and the last is not there, or ends without a whole line.
    #[error("{file} is missing or has no whole last line")]
    Gap {
        /// Name of the file.
        file: String,
    },
    /// The directory or a file cannot be read or written.
    #[error("cannot {what}: {error}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

/// The last file of the log, open for appending.
#[derive(Debug)]
pub(super) struct Log {
    file: LogFile,
    handle: File,
    identity: (u64, u64),
    head: Head,
    durable_bytes: u64,
    rotate_bytes: u64,
    suspect: bool,
    /// How many lines the file has.
    lines: u64,
    marks: Marks,
    /// What the durable lines say.
    past: Arc<Mutex<Past>>,
    /// Held as long as the log is open; the kernel releases it when the process dies.
    _lock: File,
}

impl Log {
    /// Locks the directory, verifies the last file, from its mark on or, without one, whole and with its link to the one
    /// before, and cuts off a torn end.
    pub(super) fn open(directory: &Path, rotate_bytes: u64) -> Result<Self, AuditStartError> {
        make_directory(directory).map_err(failed("make the directory"))?;
        let lock = lock(directory)?;
        let files = list(directory).map_err(failed("list the directory"))?;
        for (before, after) in files.iter().zip(files.iter().skip(1)) {
            if before.next().as_ref() != Some(after) {
                let missing = before.next().map(|file| file.name()).unwrap_or_default();
                return Err(AuditStartError::Gap { file: missing });
            }
        }
        let (file, handle, start) = match files.as_slice() {
            [] => {
                let file = LogFile::new(directory, 1);
                let handle = file.create().map_err(failed("create the first file"))?;
                (file, handle, Some(Head::GENESIS))
            }
            [only] => {
                let start = (only.number == 1).then_some(Head::GENESIS);
                (only.clone(), only.open().map_err(failed("open the last file"))?, start)
            }
            [.., before, last] => {
                let start = last_head(before)?;
                (last.clone(), last.open().map_err(failed("open the last file"))?, Some(start))
            }
        };
        let marked = Mark::read(&file, &handle);
        let (from, start, mut past) = if let Some(Mark { place, head, past }) = marked {
            (place, Some(head), past)
        } else {
            let past = past_before(&files, &file, start).map_err(failed("read the older files"))?;
            (Place::default(), start, past)
        };
        let found = scan(&handle, from, start, |line| past.note_line(line))
            .map_err(failed("read the last file"))?;
        match found.end {
            End::Clean => {}
            End::Broken(fault) => {
                let line = found.lines + 1;
                return Err(AuditStartError::Damaged { file: file.name(), line, fault });
            }
            End::Torn(bytes) => {
                tracing::warn!(file = file.name(), bytes, "cutting off an unfinished write");
                handle.set_len(found.good_bytes).map_err(failed("cut the last file"))?;
            }
        }
        // A process that was killed may have left its last group, and the name of the file, unsynced. They must be
        // durable before a group is begun behind them: a later one proves that what stands before it was synced.
        handle.sync_all().map_err(failed("sync the last file"))?;
        sync_directory(directory).map_err(failed("sync the directory"))?;
        let head = found.head.ok_or_else(|| AuditStartError::Gap { file: file.name() })?;
        let identity = identity(&handle.metadata().map_err(failed("look at the last file"))?);
        Ok(Self {
            file,
            handle,
            identity,
            head,
            durable_bytes: found.good_bytes,
            rotate_bytes,
            suspect: false,
            lines: found.lines,
            marks: Marks::default(),
            past: Arc::new(Mutex::new(past)),
            _lock: lock,
        })
    }

    /// Returns what the next line is chained to.
    pub(super) const fn head(&self) -> Head {
        self.head
    }

    /// Returns what the log says of the past; it is kept current.
    pub(super) fn past(&self) -> Arc<Mutex<Past>> {
        Arc::clone(&self.past)
    }

    /// Writes the lines of a group and returns when they are durable. `head` is the head after them, `heeded` those of its
    /// records that say something of the past.
    ///
    /// # Errors
    /// None of the lines is in the log, now or after a restart that follows a successful [`Log::mend`].
    pub(super) fn append(
        &mut self,
        lines: &[u8],
        head: Head,
        heeded: &[AuditRecord],
    ) -> io::Result<()> {
        self.mend()?;
        if self.durable_bytes >= self.rotate_bytes {
            self.rotate()?;
        }
        self.suspect = true;
        self.handle.write_all_at(lines, self.durable_bytes)?;
        self.handle.sync_data()?;
        self.suspect = false;
        self.durable_bytes += lines.len() as u64;
        self.lines += head.seq.saturating_sub(self.head.seq);
        self.head = head;
        if !heeded.is_empty() {
            let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
            for record in heeded {
                past.note(record);
            }
        }
        if self.marks.is_due(self.durable_bytes) {
            let place = Place { bytes: self.durable_bytes, lines: self.lines };
            // A copy: nobody who asks for the past must wait for the disk.
            let past = self.past.lock().unwrap_or_else(PoisonError::into_inner).clone();
            self.marks.take(&self.file, Mark { place, head, past });
        }
        Ok(())
    }

    /// Checks that the file is still where and what it was, and repairs it after a failure.
    pub(super) fn mend(&mut self) -> io::Result<()> {
        if !self.suspect {
            let checked = self.check_in_place();
            self.suspect = checked.is_err();
            return checked;
        }
        let handle = self.file.open()?;
        let metadata = handle.metadata()?;
        if identity(&metadata) != self.identity || metadata.len() < self.durable_bytes {
            return Err(replaced());
        }
        if self.durable_bytes > 0 && head_at(&handle, self.durable_bytes)? != Some(self.head) {
            return Err(io::Error::other(
                "the last line of the audit file is not what was written",
            ));
        }
        cut(&handle, self.durable_bytes)?;
        handle.write_all_at(&TRIAL, self.durable_bytes)?;
        handle.sync_data()?;
        cut(&handle, self.durable_bytes)?;
        self.handle = handle;
        self.suspect = false;
        Ok(())
    }

    fn check_in_place(&self) -> io::Result<()> {
        let metadata = std::fs::metadata(&self.file.path)?;
        if identity(&metadata) == self.identity && metadata.len() == self.durable_bytes {
            return Ok(());
        }
        Err(replaced())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let Some(next) = self.file.next() else {
            return Err(io::Error::other("the numbers of audit files are used up"));
        };
        // A copy: nobody who asks for the past must wait for the disk.
        let past = self.past.lock().unwrap_or_else(PoisonError::into_inner).clone();
        write_summary(&next.summary(), self.head, &past)?;
        let handle = match next.create() {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => adopt_empty(&next)?,
            created => created?,
        };
        self.identity = identity(&handle.metadata()?);
        self.handle = handle;
        // The next one stands for them; one that stays does no harm.
        let _ = std::fs::remove_file(self.file.summary());
        let _ = std::fs::remove_file(self.file.mark());
        self.file = next;
        (self.durable_bytes, self.lines) = (0, 0);
        self.marks = Marks::default();
        Ok(())
    }
}

/// Takes the file that an earlier rotation made before it failed.
fn adopt_empty(file: &LogFile) -> io::Result<File> {
    let handle = file.open()?;
    if handle.metadata()?.len() > 0 {
        return Err(io::Error::other("the next audit file is there already and not empty"));
    }
    cut(&handle, 0)?;
    // Its name may not be durable: the rotation that made it failed, or was killed.
    file.path.parent().map_or(Ok(()), sync_directory)?;
    Ok(handle)
}

/// Returns what the files before `last` say, from their summary or, when it is lost, from themselves.
fn past_before(files: &[LogFile], last: &LogFile, start: Option<Head>) -> io::Result<Past> {
    if last.number == 1 {
        return Ok(Past::default());
    }
    if let Some(past) = read_summary(&last.summary(), start) {
        return Ok(past);
    }
    tracing::warn!(
        file = last.name(),
        "the summary of the older audit files is lost; reading them"
    );
    let mut past = Past::default();
    for file in files.iter().filter(|file| file.number < last.number) {
        let found = scan(&file.open()?, Place::default(), None, |line| past.note_line(line))?;
        if found.end != End::Clean {
            tracing::error!(
                alert = "audit_file_damaged",
                file = file.name(),
                lines = found.lines,
                "an older audit file is damaged behind these lines: verify the log"
            );
        }
    }
    Ok(past)
}

fn cut(handle: &File, bytes: u64) -> io::Result<()> {
    handle.set_len(bytes)?;
    handle.sync_all()
}

fn last_head(file: &LogFile) -> Result<Head, AuditStartError> {
    let read = file.open().and_then(|handle| head_at(&handle, handle.metadata()?.len()));
    read.map_err(failed("read the file before the last"))?
        .ok_or_else(|| AuditStartError::Gap { file: file.name() })
}

fn lock(directory: &Path) -> Result<File, AuditStartError> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(directory.join(LOCK_FILE))
        .map_err(failed("create the lock file"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(AuditStartError::Held),
        Err(TryLockError::Error(error)) => Err(failed("lock the directory")(error)),
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn replaced() -> io::Error {
    io::Error::other("the audit file was moved, replaced or changed by someone else")
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> AuditStartError {
    move |error| AuditStartError::Io { what, error }
}
