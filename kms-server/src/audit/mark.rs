//! A mark in the last file of the log, so that a start reads its end and not all of it.
//!
//! A mark says what the log says of the past up to a place in the file. It stands [`MARK_BYTES`] or more before the end, so
//! that a start always verifies the newest lines; what is before it, `kms audit verify` verifies, as it does the older files.
//! It is not synced: one that a loss of power spoiled, or that does not fit the file, is not used, and the whole file is read.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

use serde::{Deserialize, Serialize};

use super::chain::Head;
use super::files::LogFile;
use super::past::{MAX_SUMMARY_BYTES, Past};
use super::scan::{Place, head_at};

/// From one mark to the next, at least, and from the last to the end: verified at start in some milliseconds.
pub(super) const MARK_BYTES: u64 = 1 << 20;
/// A mark is written when the file has grown by so many times its length: with many tenants it is long.
const GROWTH: u64 = 8;

/// A place in the file, and what the log says up to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) place: Place,
    pub(super) head: Head,
    pub(super) past: Past,
}

#[derive(Serialize, Deserialize)]
struct Content {
    bytes: u64,
    lines: u64,
    seq: u64,
    group: u64,
    hash: String,
    past: Past,
}

impl Mark {
    /// Reads the mark of a file; `None` when there is none that fits it.
    pub(super) fn read(file: &LogFile, handle: &File) -> Option<Self> {
        let mut bytes = Vec::new();
        File::open(file.mark()).ok()?.take(MAX_SUMMARY_BYTES).read_to_end(&mut bytes).ok()?;
        let content: Content = serde_json::from_slice(&bytes).ok()?;
        if content.bytes > handle.metadata().ok()?.len() {
            return None;
        }
        let head = head_at(handle, content.bytes).ok()??;
        let fits = (content.seq, content.group) == (head.seq, head.group)
            && content.hash == data_encoding::HEXLOWER.encode(&head.hash);
        let place = Place { bytes: content.bytes, lines: content.lines };
        fits.then_some(Self { place, head, past: content.past })
    }

    /// Puts the mark in the place of the one before, whole; returns its length.
    fn write(&self, file: &LogFile) -> io::Result<u64> {
        let content = Content {
            bytes: self.place.bytes,
            lines: self.place.lines,
            seq: self.head.seq,
            group: self.head.group,
            hash: data_encoding::HEXLOWER.encode(&self.head.hash),
            past: self.past.clone(),
        };
        let text = serde_json::to_vec(&content)?;
        let side = file.mark().with_extension("mark.new");
        let mut options = std::fs::OpenOptions::new();
        let mut handle = options.write(true).create(true).truncate(true).mode(0o600).open(&side)?;
        handle.write_all(&text)?;
        std::fs::rename(side, file.mark())?;
        Ok(text.len() as u64)
    }
}

/// The marks of the file that is written: the last that was taken, which is written when the next one is.
#[derive(Debug, Default)]
pub(super) struct Marks {
    taken: Option<Mark>,
    /// The length of the last one that was written.
    length: u64,
}

impl Marks {
    /// Returns whether the file has grown enough for another mark.
    pub(super) fn is_due(&self, bytes: u64) -> bool {
        let last = self.taken.as_ref().map_or(0, |mark| mark.place.bytes);
        bytes.saturating_sub(last) >= MARK_BYTES.max(self.length.saturating_mul(GROWTH))
    }

    /// Takes a mark, and writes the one before. That one cannot be written harms nothing: a start reads more.
    pub(super) fn take(&mut self, file: &LogFile, mark: Mark) {
        if let Some(before) = self.taken.replace(mark) {
            match before.write(file) {
                Ok(length) => self.length = length,
                Err(error) => tracing::debug!(%error, "a mark of the audit file is not written"),
            }
        }
    }
}
