//! Verifies a whole audit directory offline, in constant memory.
//!
//! It finds every edited, removed, inserted, moved or cut line. What it cannot see alone is a log that was cut at the
//! end of a line, or whose oldest files were taken away: for that it takes the head that the reader expects, and tells
//! where the log begins.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

use kms_core::audit::AuditRecord;

use super::chain::{Head, LineFault};
use super::files::{LogFile, list};
use super::log::{AuditStartError, LOCK_FILE};
use super::past;
use super::scan::{End, Place, scan};

/// What a verified directory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Number of files.
    pub files: u64,
    /// Number of entries.
    pub entries: u64,
    /// Sequence number of the first entry: 1, unless old files were moved away; `None` when there is none.
    pub first_seq: Option<u64>,
    /// The end of the chain.
    pub head: Head,
}

/// Why a directory does not verify.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A line is wrong.
    #[error("{file}, line {line}: {fault}")]
    Line {
        /// Name of the file.
        file: String,
        /// Number of the line in it, from 1.
        line: u64,
        /// What is wrong with it.
        fault: LineFault,
    },
    /// The file ends with an unfinished write. The server cuts it off when it starts; nothing acknowledged is in it.
    #[error("{file} ends with an unfinished write of {bytes} bytes after line {lines}")]
    Torn {
        /// Name of the file.
        file: String,
        /// Whole lines before it.
        lines: u64,
        /// Its length.
        bytes: u64,
    },
    /// A file of the sequence is not there.
    #[error("{file} is missing")]
    Missing {
        /// Name of the file.
        file: String,
    },
    /// There is no log in the directory.
    #[error("there is no audit file in the directory")]
    Empty,
    /// The log does not reach, or does not contain as its end, the head that was expected.
    #[error(
        "the log ends at entry {found}, not at the expected entry {expected}, or with another hash"
    )]
    Head {
        /// The last entry there is.
        found: u64,
        /// The one that was expected.
        expected: u64,
    },
    /// A file cannot be read.
    #[error("cannot read the log: {0}")]
    Io(#[from] io::Error),
}

/// Keeps servers from writing to the log of a directory as long as the answer lives; nothing is made for it. `None` when
/// there is no lock file, so that no server ever wrote to this copy.
///
/// # Errors
/// [`AuditStartError::Held`] when a server has it open.
pub fn hold(directory: &Path) -> Result<Option<File>, AuditStartError> {
    let file = match File::open(directory.join(LOCK_FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(AuditStartError::Io { what: "open the lock file", error }),
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(AuditStartError::Held),
        Err(TryLockError::Error(error)) => {
            Err(AuditStartError::Io { what: "lock the directory", error })
        }
    }
}

/// Verifies all files of `directory`. With `expected`, the log must end exactly there.
pub fn verify(directory: &Path, expected: Option<Head>) -> Result<Report, VerifyError> {
    let files = list(directory)?;
    let (report, unfinished) = walk(&files, |_| {})?;
    if let Some(torn) = unfinished {
        return Err(torn);
    }
    match expected {
        Some(Head { seq, hash, group: _ })
            if report.head.seq != seq || report.head.hash != hash =>
        {
            Err(VerifyError::Head { found: report.head.seq, expected: seq })
        }
        _ => Ok(report),
    }
}

/// Verifies all files of `directory`, and hands over each record that does not just tell of a call. An unfinished write at
/// the very end is no error: its length is returned. On error, what was handed over is worth nothing.
pub(crate) fn verify_records(
    directory: &Path,
    mut each: impl FnMut(&AuditRecord),
) -> Result<(Report, u64), VerifyError> {
    let (report, unfinished) = walk(&list(directory)?, |line| {
        if let Some(record) = past::record_of(line) {
            each(&record);
        }
    })?;
    let torn_bytes = match unfinished {
        Some(VerifyError::Torn { bytes, .. }) => bytes,
        _ => 0,
    };
    Ok((report, torn_bytes))
}

/// Walks the files; an unfinished write at the end of the last one is told beside the report of what is before it.
fn walk(
    files: &[LogFile],
    mut each: impl FnMut(&[u8]),
) -> Result<(Report, Option<VerifyError>), VerifyError> {
    let (Some(first), Some(last)) = (files.first(), files.last()) else {
        return Err(VerifyError::Empty);
    };
    let mut head = (first.number == 1).then_some(Head::GENESIS);
    let mut report = Report { files: 0, entries: 0, first_seq: None, head: Head::GENESIS };
    let (mut expected_file, mut unfinished) = (Some(first.clone()), None);
    for file in files {
        if expected_file.as_ref() != Some(file) {
            let missing = expected_file.map(|file| file.name()).unwrap_or_default();
            return Err(VerifyError::Missing { file: missing });
        }
        expected_file = file.next();
        let found = scan(&File::open(&file.path)?, Place::default(), head, &mut each)?;
        match found.end {
            End::Clean => {}
            End::Torn(bytes) => {
                let torn = VerifyError::Torn { file: file.name(), lines: found.lines, bytes };
                if file != last {
                    return Err(torn);
                }
                unfinished = Some(torn);
            }
            End::Broken(fault) => {
                let line = found.lines + 1;
                return Err(VerifyError::Line { file: file.name(), line, fault });
            }
        }
        head = found.head;
        report.files += 1;
        report.entries += found.lines;
        report.first_seq = report.first_seq.or(found.first);
    }
    report.head = head.unwrap_or(Head::GENESIS);
    Ok((report, unfinished))
}
