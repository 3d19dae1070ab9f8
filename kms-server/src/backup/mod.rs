//! Backups of the store: their bytes, and who may open them.
//!
//! Stands beside the path of requests: `service` takes them, `assembly` puts them back. A backup holds rows as they are stored,
//! sealed under the roots of the token, with a MAC over the whole, inside an age file. It must never be encrypted to a key of
//! this server, and never be believed before its MAC is verified.

mod error;
mod reader;
mod seal;
mod writer;

use serde::{Deserialize, Serialize};

pub use error::BackupError;
pub use reader::{BackupReader, Frame};
pub use seal::{Identity, Recipient, decrypting, encrypting};
pub use writer::BackupWriter;

/// The first bytes of a backup inside its age file: magic, and format 1.
pub const MAGIC: &[u8; 16] = b"holdfast backup\x01";
/// The longest frame: a row with the longest history detail fits four times.
pub const MAX_FRAME_BYTES: usize = 1 << 20;

/// Kinds of frames.
mod kind {
    pub(super) const MANIFEST: u8 = 1;
    pub(super) const TABLE: u8 = 2;
    pub(super) const ROW: u8 = 3;
    pub(super) const END: u8 = 4;
}

/// What a backup says of itself, before its rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupManifest {
    /// When it was taken, RFC 3339.
    pub time: String,
    /// The audit record that tells of its beginning: how far the log had come.
    pub audit_event: String,
    /// The state journal's number up to which what it tells is in these rows.
    pub journal: u64,
    /// The newest root generation, whose `mac` makes the MAC of the whole.
    pub root_generation: u32,
    /// The schema of the rows, in hexadecimal.
    pub schema: String,
    /// Rows that follow.
    pub rows: u64,
    /// Keys among them.
    pub keys: u64,
    /// Tenants; the digest of each one's rows is in the table `manifests`.
    pub tenants: u64,
    /// Mutations that were under way, and are left out.
    pub intents_left_out: u64,
    /// Requests that were remembered for repeats, and are left out.
    pub requests_left_out: u64,
}

#[cfg(test)]
mod tests;
