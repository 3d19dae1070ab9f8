//! Reading a backup back, frame by frame. Nothing of it is believed before the MAC at its end is verified.

use std::io::{self, Read};

use aws_lc_rs::digest::{Context, SHA256};
use kms_core::id::RootGeneration;
use kms_core::key::RowMac;

use super::writer::mac_input;
use super::{BackupError, BackupManifest, MAGIC, MAX_FRAME_BYTES, kind};
use crate::store::Cell;

/// The most columns of a table.
const MAX_COLUMNS: usize = 64;

/// Reads a backup.
pub struct BackupReader<R> {
    from: R,
    hash: Context,
    payload: Vec<u8>,
}

impl<R> std::fmt::Debug for BackupReader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BackupReader")
    }
}

/// A part of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The rows of a table follow.
    Table {
        /// Its name.
        name: String,
        /// Its columns.
        columns: Vec<String>,
    },
    /// A row.
    Row(Vec<Cell>),
    /// The end, and nothing comes after it.
    End {
        /// The root that made the MAC.
        generation: RootGeneration,
        /// The MAC.
        mac: RowMac,
        /// What it must have been made over.
        mac_input: Vec<u8>,
    },
}

impl<R: Read> BackupReader<R> {
    /// Reads the beginning.
    ///
    /// # Errors
    /// [`BackupError::NotABackup`], and as for [`BackupReader::next_frame`].
    pub fn begin(mut from: R) -> Result<(Self, BackupManifest), BackupError> {
        let mut magic = [0; MAGIC.len()];
        match from.read_exact(&mut magic) {
            Ok(()) if magic == *MAGIC => {}
            Ok(()) => return Err(BackupError::NotABackup),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(BackupError::Truncated);
            }
            Err(error) => return Err(error.into()),
        }
        let mut hash = Context::new(&SHA256);
        hash.update(MAGIC);
        let mut reader = Self { from, hash, payload: Vec::new() };
        let (found, _) = reader.read()?;
        let manifest = serde_json::from_slice(&reader.payload).ok();
        let malformed = BackupError::Malformed { detail: "it does not begin with its manifest" };
        let manifest = manifest.filter(|_| found == kind::MANIFEST).ok_or(malformed)?;
        Ok((reader, manifest))
    }

    /// Reads the next part.
    ///
    /// # Errors
    /// [`BackupError::Truncated`], [`BackupError::Malformed`], [`BackupError::Io`].
    pub fn next_frame(&mut self) -> Result<Frame, BackupError> {
        let (found, before) = self.read()?;
        match found {
            kind::TABLE => {
                let table: Option<(String, Vec<String>)> =
                    serde_json::from_slice(&self.payload).ok();
                let (name, columns) = table
                    .filter(|(_, columns)| columns.len() <= MAX_COLUMNS)
                    .ok_or(BackupError::Malformed { detail: "a table without its columns" })?;
                Ok(Frame::Table { name, columns })
            }
            kind::ROW => {
                let row = row(&self.payload);
                Ok(Frame::Row(row.ok_or(BackupError::Malformed { detail: "a row that is none" })?))
            }
            kind::END => self.end(before),
            _ => Err(BackupError::Malformed { detail: "a part of unknown kind" }),
        }
    }

    fn end(&mut self, before: Context) -> Result<Frame, BackupError> {
        let malformed = || BackupError::Malformed { detail: "an end without its MAC" };
        let (generation, mac) = self.payload.split_first_chunk::<4>().ok_or_else(malformed)?;
        let generation =
            RootGeneration::new(u32::from_be_bytes(*generation)).ok_or_else(malformed)?;
        let mac = RowMac(mac.try_into().map_err(|_| malformed())?);
        if self.from.read(&mut [0])? != 0 {
            return Err(BackupError::Malformed { detail: "something follows its end" });
        }
        Ok(Frame::End { generation, mac, mac_input: mac_input(generation, before) })
    }

    /// Reads a frame; returns its kind, and the hash of all before it.
    fn read(&mut self) -> Result<(u8, Context), BackupError> {
        let truncated = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => BackupError::Truncated,
            _ => BackupError::Io(error),
        };
        let mut head = [0; 5];
        self.from.read_exact(&mut head).map_err(truncated)?;
        let [found, prefix @ ..] = head;
        let length = u32::from_be_bytes(prefix) as usize;
        if length > MAX_FRAME_BYTES {
            return Err(BackupError::Malformed { detail: "a part that is longer than it may be" });
        }
        self.payload.resize(length, 0);
        self.from.read_exact(&mut self.payload).map_err(truncated)?;
        let before = self.hash.clone();
        self.hash.update(&head);
        self.hash.update(&self.payload);
        Ok((found, before))
    }
}

fn row(mut payload: &[u8]) -> Option<Vec<Cell>> {
    let mut cells = Vec::new();
    while let Some((kind, rest)) = payload.split_first() {
        if cells.len() == MAX_COLUMNS {
            return None;
        }
        payload = rest;
        cells.push(match kind {
            0 => Cell::Null,
            1 => Cell::Integer(i64::from_be_bytes(take(&mut payload)?)),
            2 => Cell::Text(String::from_utf8(take_some(&mut payload)?.to_vec()).ok()?),
            3 => Cell::Blob(take_some(&mut payload)?.to_vec()),
            _ => return None,
        });
    }
    Some(cells)
}

fn take<const N: usize>(payload: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = payload.split_first_chunk::<N>()?;
    *payload = rest;
    Some(*first)
}

fn take_some<'p>(payload: &mut &'p [u8]) -> Option<&'p [u8]> {
    let length = u32::from_be_bytes(take(payload)?) as usize;
    let (first, rest) = payload.split_at_checked(length)?;
    *payload = rest;
    Some(first)
}
