//! Resealing: the same file key, wrapped anew under the key's current primary, and only the header rewritten, in place.
//!
//! Order: finish or undo what an earlier run left; unwrap; verify the old MAC; wrap; unwrap the new envelope and compare;
//! write both headers to the side file; overwrite the header; remove the side file. From the first step to the last the
//! file, or the file with its side file, can be opened.

use std::path::Path;

use age_core::format::FileKey;
use age_core::secrecy::ExposeSecret as _;
use kms_core::id::KeyVersion;
use kms_core::name::KeyName;
use kms_core::secret::equal_in_constant_time;

use super::disk::{Disk, FileDisk};
use super::error::{BackupError, FormatError, ServiceError};
use super::header::{Header, MAX_HEADER_BYTES};
use super::open::{resolve_key, unwrap_named};
use super::service::{FileKeyService, WrappedFileKey};
use super::side::{PAYLOAD_NONCE_BYTES, Progress, Side};
use super::stanza::KmsStanza;
use crate::interrupt::uninterrupted;

/// How a reseal ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The key that the file is sealed with now.
    pub key: KeyName,
    /// What was done.
    pub status: Status,
    /// What an earlier, interrupted run had left, if anything.
    pub recovery: Option<Recovery>,
}

/// What a reseal did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The header was rewritten.
    Resealed {
        /// The version before.
        from: KeyVersion,
        /// The version now.
        to: KeyVersion,
    },
    /// The file was under the primary already; nothing was written.
    AlreadyCurrent {
        /// The version.
        version: KeyVersion,
    },
}

/// What was done about the side file of an interrupted run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// The header was torn or new: the new one is in place now.
    Finished,
    /// The header was still the old one: the side file was dropped.
    Undone,
    /// The side file was incomplete and the header verified: the side file was dropped.
    Discarded,
}

/// Reseals one file in place; see [`reseal`].
///
/// # Errors
/// Those of [`FileDisk::open`] and [`reseal`].
pub fn reseal_file(
    service: &dyn FileKeyService,
    key: Option<&KeyName>,
    path: &Path,
) -> Result<Outcome, BackupError> {
    reseal(service, key, &FileDisk::open(path)?)
}

/// Reseals one file under the current primary of its key. `key` is only needed where the server does not tell it.
///
/// Costs the same however large the file is. Needs permission to unwrap and to wrap, and to describe ciphertexts where no
/// key is named.
///
/// # Errors
/// Everything but [`BackupError::Io`] leaves the file as it was, or as the interrupted run meant it. After an I/O error
/// a later run finishes or undoes.
pub fn reseal(
    service: &dyn FileKeyService,
    key: Option<&KeyName>,
    disk: &dyn Disk,
) -> Result<Outcome, BackupError> {
    let recovered = examine(disk)?;
    let beginning = disk.beginning(MAX_HEADER_BYTES + PAYLOAD_NONCE_BYTES)?;
    let mut rest = beginning.as_slice();
    let header = Header::read(&mut rest)?;
    let payload_nonce: [u8; PAYLOAD_NONCE_BYTES] =
        *rest.first_chunk().ok_or(FormatError::HeaderTruncated)?;

    let wrapped = header.stanza().wrapped();
    let from = wrapped.header().version;
    let (key, current) = resolve_key(service, key, wrapped)?;
    if current && recovered != Found::Incomplete {
        let status = Status::AlreadyCurrent { version: from };
        return Ok(Outcome { key, status, recovery: recovered.into() });
    }
    let file_key = unwrap_named(service, &key, wrapped)?;
    header.verify(&file_key)?;
    if recovered == Found::Incomplete {
        disk.remove_side()?;
    }
    let status = if current {
        Status::AlreadyCurrent { version: from }
    } else {
        let rewrapped = wrap_and_check(service, &key, &file_key, wrapped)?;
        let to = rewrapped.header().version;
        if to == from {
            Status::AlreadyCurrent { version: from }
        } else {
            let new = header.with_stanza(KmsStanza::new(rewrapped), &file_key)?;
            let file_bytes = disk.file_bytes()?;
            let (old, new) = (header.encode(), new.encode());
            let side = Side { file_bytes, payload_nonce, old, new };
            uninterrupted(|| replace_header(disk, &side))?;
            Status::Resealed { from, to }
        }
    };
    Ok(Outcome { key, status, recovery: recovered.into() })
}

/// What there was of an earlier run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    /// A side file that was not completely written, so the header was not touched: dropped once the header verifies.
    Incomplete,
    Done(Recovery),
}

impl From<Found> for Option<Recovery> {
    fn from(found: Found) -> Self {
        match found {
            Found::Nothing => None,
            Found::Incomplete => Some(Recovery::Discarded),
            Found::Done(recovery) => Some(recovery),
        }
    }
}

/// Finishes or undoes what an interrupted run left, without the server; [`reseal`] does this first too. An incomplete
/// side file is left for [`reseal`], which drops it once the header verifies.
///
/// # Errors
/// [`BackupError::SideForeign`], with nothing changed; [`BackupError::Io`].
pub fn recover(disk: &dyn Disk) -> Result<Option<Recovery>, BackupError> {
    match examine(disk)? {
        Found::Done(recovery) => Ok(Some(recovery)),
        Found::Nothing | Found::Incomplete => Ok(None),
    }
}

fn examine(disk: &dyn Disk) -> Result<Found, BackupError> {
    let Some(bytes) = disk.side()? else { return Ok(Found::Nothing) };
    let Some(side) = Side::decode(&bytes) else { return Ok(Found::Incomplete) };
    if !holds_one_reseal(&side) {
        return Err(BackupError::SideForeign);
    }
    let beginning = disk.beginning(side.old.len() + PAYLOAD_NONCE_BYTES)?;
    let recovery = match side.progress(disk.file_bytes()?, &beginning) {
        Progress::Untouched => Recovery::Undone,
        // Also when every byte reads as new: whether they were synced before the crash is not known.
        Progress::Torn | Progress::Written => {
            uninterrupted(|| disk.put_header(&side.new))?;
            Recovery::Finished
        }
        Progress::Foreign => return Err(BackupError::SideForeign),
    };
    disk.remove_side()?;
    Ok(Found::Done(recovery))
}

/// A side file is not authenticated, and what it says is written into the backup: so it must say what a reseal says.
fn holds_one_reseal(side: &Side) -> bool {
    let read = |mut bytes: &[u8]| Header::read(&mut bytes).ok().filter(|_| bytes.is_empty());
    match (read(&side.old), read(&side.new)) {
        (Some(old), Some(new)) => new.is_reseal_of(&old),
        _ => false,
    }
}

/// Wraps the file key anew, and proves that the new envelope opens before the old one is given up.
fn wrap_and_check(
    service: &dyn FileKeyService,
    key: &KeyName,
    file_key: &FileKey,
    old: &WrappedFileKey,
) -> Result<WrappedFileKey, BackupError> {
    let rewrapped = service.wrap(key, file_key)?;
    if rewrapped.header().key_uid != old.header().key_uid {
        return Err(ServiceError::BadAnswer("it wrapped under another key").into());
    }
    let again = service.unwrap(key, &rewrapped)?;
    if !equal_in_constant_time(again.expose_secret(), file_key.expose_secret()) {
        return Err(ServiceError::BadAnswer("the new envelope opens to another file key").into());
    }
    Ok(rewrapped)
}

/// The write sequence; each step is durable before the next begins.
fn replace_header(disk: &dyn Disk, side: &Side) -> Result<(), BackupError> {
    if side.old.len() != side.new.len() {
        return Err(BackupError::Bug("the new header has another length"));
    }
    disk.put_side(&side.encode())?;
    disk.put_header(&side.new)?;
    if disk.beginning(side.new.len())? != side.new {
        return Err(BackupError::HeaderTampered);
    }
    disk.remove_side()
}
