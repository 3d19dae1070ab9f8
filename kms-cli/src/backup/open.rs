//! Opening: an age file in, its plaintext out, every byte verified before it is written.
//!
//! The payload is verified in chunks of 64 KiB, so a stream's reader may get a good beginning of a file whose end is
//! cut off or changed: the error says so, and an output file is only put in place after the last chunk has verified.

use std::io::{self, BufRead, Cursor, Read, Write};

use age::{DecryptError, Decryptor, Identity};
use age_core::format::{FileKey, Stanza};
use age_core::secrecy::ExposeSecret as _;
use kms_core::name::KeyName;

use super::error::{BackupError, FormatError};
use super::header::Header;
use super::seal::BUFFER_BYTES;
use super::service::{Description, FileKeyService, WrappedFileKey};

/// What was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The key that the file is sealed with.
    pub key: KeyName,
    /// Its version.
    pub version: kms_core::id::KeyVersion,
    /// How many bytes of plaintext.
    pub plaintext_bytes: u64,
}

/// Opens the age file that `input` gives into `output`, in constant memory.
///
/// Without `key` the server is asked which key the file names, which needs a permission of its own. The header's MAC is
/// verified before the first byte is written. `output` is flushed, not synced.
///
/// # Errors
/// [`BackupError::Format`], [`BackupError::Service`], [`BackupError::KeyMismatch`], [`BackupError::KeyUnknown`] and
/// [`BackupError::HeaderTampered`] before anything is written; [`BackupError::PayloadTruncated`] and
/// [`BackupError::PayloadTampered`] after the bytes they count.
pub fn open_stream(
    service: &dyn FileKeyService,
    key: Option<&KeyName>,
    mut input: impl BufRead,
    mut output: impl Write,
) -> Result<Opened, BackupError> {
    let header = Header::read(&mut input)?;
    let wrapped = header.stanza().wrapped();
    let key = match key {
        Some(key) => key.clone(),
        None => resolve_key(service, None, wrapped)?.0,
    };
    let file_key = unwrap_named(service, &key, wrapped)?;
    header.verify(&file_key)?;
    let version = wrapped.header().version;
    let mut opened = Opened { key, version, plaintext_bytes: 0 };

    let mut ended = false;
    let whole = Cursor::new(header.encode()).chain(EndSeen { inner: input, ended: &mut ended });
    let decryptor = Decryptor::new_buffered(whole).map_err(from_age)?;
    let identity = Known(file_key);
    let mut reader =
        decryptor.decrypt(std::iter::once(&identity as &dyn Identity)).map_err(from_age)?;
    let result = copy(&mut reader, &mut output, &mut opened.plaintext_bytes);
    drop(reader);
    match result {
        Ok(()) => Ok(opened),
        Err(CopyError::Other(error)) => Err(error),
        Err(CopyError::Payload) => {
            let verified_bytes = opened.plaintext_bytes;
            Err(if ended {
                BackupError::PayloadTruncated { verified_bytes }
            } else {
                BackupError::PayloadTampered { verified_bytes }
            })
        }
    }
}

/// Finds out which key to ask for, and whether the envelope is current. Who names the key need not be allowed to describe:
/// then nothing is known to be current.
///
/// # Errors
/// [`BackupError::KeyMismatch`] when the server names another key than the caller; [`BackupError::KeyUnknown`] or
/// [`BackupError::KeyHidden`] when neither names one.
pub(super) fn resolve_key(
    service: &dyn FileKeyService,
    asked: Option<&KeyName>,
    wrapped: &WrappedFileKey,
) -> Result<(KeyName, bool), BackupError> {
    let Description { key: found, current } = match (service.describe(wrapped), asked) {
        (Err(error), Some(_)) if error.is_denied() => Description { key: None, current: false },
        (Err(error), None) if error.is_denied() => return Err(BackupError::KeyHidden),
        (described, _) => described?,
    };
    match (asked.cloned(), found) {
        (Some(asked), Some(found)) if asked != found => {
            Err(BackupError::KeyMismatch { asked, found })
        }
        (Some(key), _) | (None, Some(key)) => Ok((key, current)),
        (None, None) => Err(BackupError::KeyUnknown),
    }
}

/// Unwraps with a named key. The server has one error for another key's envelope and a changed one, so it is asked for
/// the difference, where the caller may ask.
///
/// # Errors
/// [`BackupError::KeyMismatch`], [`BackupError::Service`].
pub(super) fn unwrap_named(
    service: &dyn FileKeyService,
    key: &KeyName,
    wrapped: &WrappedFileKey,
) -> Result<FileKey, BackupError> {
    let refused = match service.unwrap(key, wrapped) {
        Ok(file_key) => return Ok(file_key),
        Err(error) if !error.is_invalid_ciphertext() => return Err(error.into()),
        Err(error) => error,
    };
    match service.describe(wrapped) {
        Ok(Description { key: Some(found), .. }) if found != *key => {
            Err(BackupError::KeyMismatch { asked: key.clone(), found })
        }
        Ok(_) | Err(_) => Err(refused.into()),
    }
}

enum CopyError {
    Payload,
    Other(BackupError),
}

fn copy(
    reader: &mut impl Read,
    output: &mut impl Write,
    written: &mut u64,
) -> Result<(), CopyError> {
    let mut buffer = zeroize::Zeroizing::new(vec![0; BUFFER_BYTES]);
    loop {
        let length = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted => continue,
                // What the age crate answers for a chunk that does not verify, and for a missing last one.
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                    return Err(CopyError::Payload);
                }
                _ => return Err(CopyError::Other(BackupError::io("read the input")(error))),
            },
        };
        let read = buffer.get(..length).unwrap_or_default();
        output.write_all(read).map_err(write_failed)?;
        *written += length as u64;
    }
    output.flush().map_err(write_failed)
}

fn write_failed(error: io::Error) -> CopyError {
    CopyError::Other(BackupError::io("write the output")(error))
}

/// The header was read and verified before, so what is left is a file that ends before its payload.
fn from_age(error: DecryptError) -> BackupError {
    match error {
        DecryptError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            BackupError::Format(FormatError::HeaderTruncated)
        }
        DecryptError::Io(error) => BackupError::io("read the input")(error),
        DecryptError::InvalidMac => BackupError::HeaderTampered,
        _ => BackupError::Bug("the age crate refused a verified header"),
    }
}

/// An identity that holds the one file key, already unwrapped and verified against the header.
struct Known(FileKey);

impl Known {
    fn file_key(&self) -> FileKey {
        FileKey::init_with_mut(|copy| copy.copy_from_slice(self.0.expose_secret()))
    }
}

impl Identity for Known {
    fn unwrap_stanza(&self, _: &Stanza) -> Option<Result<FileKey, DecryptError>> {
        Some(Ok(self.file_key()))
    }
}

/// Notes whether the input has ended, which tells a cut-off payload from a changed one.
struct EndSeen<'a, R> {
    inner: R,
    ended: &'a mut bool,
}

impl<R: Read> Read for EndSeen<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        *self.ended |= length == 0 && !buffer.is_empty();
        Ok(length)
    }
}

impl<R: BufRead> BufRead for EndSeen<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let buffer = self.inner.fill_buf()?;
        *self.ended |= buffer.is_empty();
        Ok(buffer)
    }

    fn consume(&mut self, amount: usize) {
        self.inner.consume(amount);
    }
}
