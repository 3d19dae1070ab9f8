//! One line of the audit log: its bytes, and the hash that chains it to the line before.
//!
//! The format is docs/audit-format.md. This is the only file that makes or takes lines apart.

use aws_lc_rs::digest::{Context, SHA256};
use data_encoding::HEXLOWER;
use kms_core::audit::AuditRecord;
use kms_core::domain;
use serde::Serialize;

/// An entry is shorter than this: 64 KiB.
pub const MAX_ENTRY_BYTES: usize = 64 << 10;
/// The longest line, with its line feed.
pub const MAX_LINE_BYTES: usize = MAX_ENTRY_BYTES - 1 + OPEN.len() + SUFFIX_BYTES;

const HASH_BYTES: usize = 32;
const HEX_BYTES: usize = 2 * HASH_BYTES;
const OPEN: &[u8] = b"{\"entry\":";
const PREV: &[u8] = b",\"prev\":\"";
const HASH: &[u8] = b"\",\"hash\":\"";
const CLOSE: &[u8] = b"\"}\n";
const SUFFIX_BYTES: usize = PREV.len() + HEX_BYTES + HASH.len() + HEX_BYTES + CLOSE.len();

/// The end of the chain: what the next line is chained to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Sequence number of the last entry; 0 before the first.
    pub seq: u64,
    /// Its group: the sequence number of the first entry that was written together with it.
    pub group: u64,
    /// Its hash; zeros before the first.
    pub hash: [u8; HASH_BYTES],
}

impl Head {
    /// The head of an empty log.
    pub const GENESIS: Self = Self { seq: 0, group: 0, hash: [0; HASH_BYTES] };
}

impl std::fmt::Debug for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Head({}, {})", self.seq, HEXLOWER.encode(&self.hash))
    }
}

/// Why a line does not belong where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineFault {
    /// Not of the form of a line.
    #[error("not an audit line")]
    Shape,
    /// Longer than a line can be.
    #[error("longer than a line can be")]
    TooLong,
    /// The hash is not that of the entry and the previous hash.
    #[error("the hash does not match the entry: the line was edited")]
    Hash,
    /// The previous hash is not that of the line before.
    #[error("the line is not chained to the one before: a line was removed, inserted or moved")]
    Prev,
    /// The sequence number does not follow.
    #[error("the sequence number does not follow")]
    Sequence,
    /// The line ends before its line feed.
    #[error("the line is incomplete")]
    Incomplete,
}

/// A record does not fit an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the record is 64 KiB or longer")]
pub struct EntryTooLong;

#[derive(Serialize)]
struct Entry<'a> {
    seq: u64,
    group: u64,
    record: &'a AuditRecord,
}

/// Appends the line of a record to `out` and returns the new head. On error `out` is as it was.
pub(super) fn append_line(
    out: &mut Vec<u8>,
    head: Head,
    group: u64,
    record: &AuditRecord,
) -> Result<Head, EntryTooLong> {
    let start = out.len();
    let seq = head.seq.saturating_add(1);
    out.extend_from_slice(OPEN);
    let entry_start = out.len();
    let written = serde_json::to_writer(&mut *out, &Entry { seq, group, record });
    let entry = out.get(entry_start..).unwrap_or_default();
    if written.is_err() || entry.len() >= MAX_ENTRY_BYTES {
        out.truncate(start);
        return Err(EntryTooLong);
    }
    let hash = chain(&head.hash, entry);
    out.extend_from_slice(PREV);
    append_hex(out, &head.hash);
    out.extend_from_slice(HASH);
    append_hex(out, &hash);
    out.extend_from_slice(CLOSE);
    Ok(Head { seq, group, hash })
}

/// A line taken apart; nothing is checked yet but its form.
#[derive(Debug)]
pub(super) struct Line<'a> {
    entry: &'a [u8],
    prev: [u8; HASH_BYTES],
    /// What the chain's head is after this line.
    pub(super) head: Head,
}

impl<'a> Line<'a> {
    /// Takes apart a line, with its line feed.
    pub(super) fn parse(line: &'a [u8]) -> Result<Self, LineFault> {
        if line.len() > MAX_LINE_BYTES {
            return Err(LineFault::TooLong);
        }
        Self::split(line).ok_or(LineFault::Shape)
    }

    fn split(line: &'a [u8]) -> Option<Self> {
        let body = line.strip_prefix(OPEN)?.strip_suffix(CLOSE)?;
        let (body, hash) = split_hex(body)?;
        let (body, prev) = split_hex(body.strip_suffix(HASH)?)?;
        let entry = body.strip_suffix(PREV)?;
        let (seq, rest) = number(entry.strip_prefix(b"{\"seq\":")?)?;
        let (group, rest) = number(rest.strip_prefix(b",\"group\":")?)?;
        let in_form = rest.starts_with(b",\"record\":{") && entry.len() < MAX_ENTRY_BYTES;
        in_form.then_some(Self { entry, prev, head: Head { seq, group, hash } })
    }

    /// Returns the head before this line, as the line itself tells it.
    pub(super) fn own_previous(&self) -> Head {
        let seq = self.head.seq.saturating_sub(1);
        Head { seq, group: self.head.group.min(seq), hash: self.prev }
    }

    /// Returns whether the line is whole in itself, wherever it stands.
    pub(super) fn is_whole(&self) -> bool {
        chain(&self.prev, self.entry) == self.head.hash
    }

    /// Checks that this line follows `head`.
    pub(super) fn follows(&self, head: Head) -> Result<(), LineFault> {
        if !self.is_whole() {
            return Err(LineFault::Hash);
        }
        if self.prev != head.hash {
            return Err(LineFault::Prev);
        }
        let same_group = self.head.group == head.group && head.seq != 0;
        if Some(self.head.seq) != head.seq.checked_add(1)
            || !(same_group || self.head.group == self.head.seq)
        {
            return Err(LineFault::Sequence);
        }
        Ok(())
    }
}

/// SHA-256 over the domain, the previous hash and the bytes of the entry.
fn chain(prev: &[u8; HASH_BYTES], entry: &[u8]) -> [u8; HASH_BYTES] {
    let mut context = Context::new(&SHA256);
    context.update(domain::AUDIT_CHAIN);
    context.update(prev);
    context.update(entry);
    let mut hash = [0; HASH_BYTES];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

fn append_hex(out: &mut Vec<u8>, hash: &[u8; HASH_BYTES]) {
    let mut hex = [0; HEX_BYTES];
    HEXLOWER.encode_mut(hash, &mut hex);
    out.extend_from_slice(&hex);
}

fn split_hex(bytes: &[u8]) -> Option<(&[u8], [u8; HASH_BYTES])> {
    let (rest, hex) = bytes.split_last_chunk::<HEX_BYTES>()?;
    let mut hash = [0; HASH_BYTES];
    HEXLOWER.decode_mut(hex, &mut hash).ok()?;
    Some((rest, hash))
}

/// Reads a decimal number in its one text form.
fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let end = bytes.iter().position(|byte| !byte.is_ascii_digit())?;
    let (digits, rest) = bytes.split_at_checked(end)?;
    if digits.is_empty() || (digits.len() > 1 && digits.first() == Some(&b'0')) {
        return None;
    }
    Some((std::str::from_utf8(digits).ok()?.parse().ok()?, rest))
}
