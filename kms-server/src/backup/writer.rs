//! Writing a backup: frames, and at the end the MAC of all of them.

use std::io::{self, Write};

use aws_lc_rs::digest::{Context, SHA256};
use kms_core::canonical::CanonicalWriter;
use kms_core::domain;
use kms_core::id::RootGeneration;
use kms_core::key::RowMac;

use super::{BackupManifest, MAGIC, MAX_FRAME_BYTES, kind};
use crate::store::Cell;

/// Writes a backup.
pub struct BackupWriter<W> {
    out: W,
    hash: Context,
    frame: Vec<u8>,
}

impl<W> std::fmt::Debug for BackupWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BackupWriter")
    }
}

impl<W: Write> BackupWriter<W> {
    /// Begins a backup.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn begin(out: W, manifest: &BackupManifest) -> io::Result<Self> {
        let mut writer = Self { out, hash: Context::new(&SHA256), frame: Vec::new() };
        writer.hash.update(MAGIC);
        writer.out.write_all(MAGIC)?;
        let text = serde_json::to_vec(manifest).map_err(io::Error::other)?;
        writer.frame(kind::MANIFEST, &text)?;
        Ok(writer)
    }

    /// Begins the rows of a table.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn table(&mut self, name: &str, columns: &[String]) -> io::Result<()> {
        let text = serde_json::to_vec(&(name, columns)).map_err(io::Error::other)?;
        self.frame(kind::TABLE, &text)
    }

    /// Writes a row.
    ///
    /// # Errors
    /// When it cannot be written, or is longer than a frame may be.
    pub fn row(&mut self, cells: &[Cell]) -> io::Result<()> {
        let mut payload = std::mem::take(&mut self.frame);
        payload.clear();
        for cell in cells {
            match cell {
                Cell::Null => payload.push(0),
                Cell::Integer(number) => {
                    payload.push(1);
                    payload.extend_from_slice(&number.to_be_bytes());
                }
                Cell::Text(text) => bytes(&mut payload, 2, text.as_bytes()),
                Cell::Blob(blob) => bytes(&mut payload, 3, blob),
            }
        }
        let written = self.frame(kind::ROW, &payload);
        self.frame = payload;
        written
    }

    /// Ends the backup with its MAC, and returns where it was written to.
    ///
    /// # Errors
    /// When it cannot be written, or `mac` fails.
    pub fn end<E: From<io::Error>>(
        mut self,
        generation: RootGeneration,
        mac: impl FnOnce(Vec<u8>) -> Result<RowMac, E>,
    ) -> Result<W, E> {
        let mac = mac(mac_input(generation, self.hash.clone()))?;
        let payload = [&generation.get().to_be_bytes()[..], &mac.0].concat();
        self.frame(kind::END, &payload)?;
        Ok(self.out)
    }

    fn frame(&mut self, kind: u8, payload: &[u8]) -> io::Result<()> {
        let too_long = || io::Error::other("a part of a backup is longer than it may be");
        let length = u32::try_from(payload.len()).ok().filter(|_| payload.len() <= MAX_FRAME_BYTES);
        let mut head = [kind, 0, 0, 0, 0];
        let [_, prefix @ ..] = &mut head;
        prefix.copy_from_slice(&length.ok_or_else(too_long)?.to_be_bytes());
        for part in [&head[..], payload] {
            self.hash.update(part);
            self.out.write_all(part)?;
        }
        Ok(())
    }
}

fn bytes(payload: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    payload.push(kind);
    payload.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    payload.extend_from_slice(bytes);
}

/// Returns what the MAC of a backup is made over: the hash of all that stands before it.
pub(super) fn mac_input(generation: RootGeneration, hash: Context) -> Vec<u8> {
    CanonicalWriter::new(domain::BACKUP_MAC)
        .number(generation.get().into())
        .bytes(hash.finish().as_ref())
        .finish()
}
