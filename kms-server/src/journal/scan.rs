//! Reading a journal from its beginning: what it holds, how far it goes, and where it is broken.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom};

use kms_core::clock::Timestamp;
use kms_core::journal::{Entry, Event, HEADER, Link, MAX_ENTRY_BYTES, MIN_ENTRY_BYTES};
use kms_core::key::RowMac;

use super::Gap;

/// How much is read at once.
const BUFFER_BYTES: usize = 256 << 10;

/// An entry where it stands.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub(super) entry: Entry,
    pub(super) mac: RowMac,
    /// The link of all before it.
    pub(super) before: Link,
    /// The link with it.
    pub(super) after: Link,
    pub(super) start: u64,
    pub(super) end: u64,
}

/// What a journal holds. Nothing of it is believed before the MAC of its last entry is verified.
#[derive(Debug)]
pub(super) struct Scan {
    /// Whether the header is there.
    pub(super) has_header: bool,
    pub(super) last: Option<Placed>,
    /// The link of all entries up to the number that was asked for, when there is such an entry.
    pub(super) asked: Option<Link>,
    /// Entries that were lost before, by what the journal says.
    pub(super) gaps: Vec<Gap>,
    /// When the last gap was accepted.
    pub(super) fence: Option<Timestamp>,
    /// Where the whole entries end.
    pub(super) end: u64,
    /// The length of the file.
    pub(super) length: u64,
}

impl Scan {
    /// Returns the number of the last entry; 0 when there is none.
    pub(super) fn last_number(&self) -> u64 {
        self.last.as_ref().map_or(0, |last| last.entry.number)
    }

    /// Returns the link of all entries.
    pub(super) fn link(&self) -> Link {
        self.last.as_ref().map_or_else(Link::start, |last| last.after)
    }
}

/// Reads a journal as far as its entries follow each other; `seen` is told each.
pub(super) fn scan(file: &File, asked: u64, mut seen: impl FnMut(&Entry)) -> io::Result<Scan> {
    let length = file.metadata()?.len();
    let mut file = file;
    file.seek(SeekFrom::Start(0))?;
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, file);
    let mut header = [0; HEADER.len()];
    let has_header = read_whole(&mut reader, &mut header)? && header == *HEADER;
    let mut found = Scan {
        has_header,
        last: None,
        asked: (asked == 0).then(Link::start),
        gaps: Vec::new(),
        fence: None,
        end: if has_header { HEADER.len() as u64 } else { 0 },
        length,
    };
    if !has_header {
        return Ok(found);
    }
    let mut bytes = Vec::with_capacity(MAX_ENTRY_BYTES);
    while read_entry(&mut reader, &mut bytes)? {
        let Ok((entry, mac)) = Entry::decode(&bytes) else { break };
        let next = found.last_number().saturating_add(1);
        let skipped = Gap::new(next, entry.number.saturating_sub(1));
        match entry.event.gap_from() {
            _ if entry.number < next => break,
            None if skipped.is_some() => break,
            // One that skips nothing accepts once more what was lost before.
            Some(from) if from == 0 || from > next || from >= entry.number => break,
            None | Some(_) => found.gaps.extend(skipped),
        }
        if matches!(entry.event, Event::GapAccepted { .. }) {
            found.fence = Some(entry.time);
        }
        seen(&entry);
        let (before, start) = (found.link(), found.end);
        let after = before.after(&bytes);
        if entry.number == asked {
            found.asked = Some(after);
        }
        found.end += bytes.len() as u64;
        found.last = Some(Placed { entry, mac, before, after, start, end: found.end });
    }
    Ok(found)
}

/// Tells all entries of a journal that was opened before, so that all of it is genuine.
///
/// # Errors
/// When it cannot be read.
pub fn read_entries(path: &std::path::Path, seen: impl FnMut(&Entry)) -> io::Result<()> {
    scan(&File::open(path)?, 0, seen).map(drop)
}

/// Reads the bytes of one entry; `false` at the end, or when there is no whole one.
fn read_entry(reader: &mut impl Read, bytes: &mut Vec<u8>) -> io::Result<bool> {
    let mut prefix = [0; 2];
    if !read_whole(reader, &mut prefix)? {
        return Ok(false);
    }
    let length = usize::from(u16::from_be_bytes(prefix));
    if !(MIN_ENTRY_BYTES..=MAX_ENTRY_BYTES).contains(&length) {
        return Ok(false);
    }
    bytes.clear();
    bytes.extend_from_slice(&prefix);
    bytes.resize(length, 0);
    match bytes.get_mut(prefix.len()..) {
        Some(rest) => read_whole(reader, rest),
        None => Ok(false),
    }
}

/// Fills a buffer; `false` when there is not enough.
fn read_whole(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}
