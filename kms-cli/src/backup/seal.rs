//! Sealing: a stream in, an age file out, its file key wrapped by the KMS and, when wanted, for native age recipients.

use std::cell::RefCell;
use std::collections::HashSet;
use std::io::{self, Read, Write};

use age::EncryptError;
use age_core::format::{FileKey, Stanza};
use kms_core::id::KeyVersion;
use kms_core::name::KeyName;

use super::error::{BackupError, ServiceError};
use super::service::FileKeyService;
use super::stanza::KmsStanza;

/// The most native recipients beside the KMS: their stanzas stay far below the header's bound.
pub const MAX_EXTRA_RECIPIENTS: usize = 64;
/// How much is read at once: four chunks of the payload, so that a read call is cheap beside the cipher's work.
pub(super) const BUFFER_BYTES: usize = 4 * 64 * 1024;

/// Who shall be able to open the file.
#[derive(Clone)]
pub struct Recipients {
    key: KeyName,
    extra: Vec<age::x25519::Recipient>,
}

impl std::fmt::Debug for Recipients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Recipients({}, {} extra)", self.key, self.extra.len())
    }
}

impl Recipients {
    /// Names the key and the native age recipients for break-glass.
    ///
    /// # Errors
    /// [`BackupError::TooManyRecipients`].
    pub fn new(key: KeyName, extra: Vec<age::x25519::Recipient>) -> Result<Self, BackupError> {
        let (given, max) = (extra.len(), MAX_EXTRA_RECIPIENTS);
        if given > max {
            return Err(BackupError::TooManyRecipients { given, max });
        }
        Ok(Self { key, extra })
    }
}

/// What was sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The version of the key that wraps the file key.
    pub version: KeyVersion,
    /// How many bytes of plaintext.
    pub plaintext_bytes: u64,
}

/// Seals everything `input` gives into `output`, in constant memory.
///
/// The file key is drawn by the age crate and wrapped before the first byte is written. `output` is flushed, not
/// synced; on an error what it holds is not a complete file and does not open as one.
///
/// # Errors
/// [`BackupError::Service`] before anything is written; [`BackupError::Io`].
pub fn seal_stream(
    service: &dyn FileKeyService,
    recipients: &Recipients,
    mut input: impl Read,
    output: impl Write,
) -> Result<Sealed, BackupError> {
    let (encryptor, version) = encryptor(service, recipients)?;
    let mut output = Outlet { inner: output, failed: None };
    let mut writer = match encryptor.wrap_output(&mut output) {
        Ok(writer) => writer,
        Err(error) => {
            return Err(BackupError::io("write the header")(output.failed.unwrap_or(error)));
        }
    };
    let mut sealed = Sealed { version, plaintext_bytes: 0 };
    let mut buffer = zeroize::Zeroizing::new(vec![0; BUFFER_BYTES]);
    loop {
        let length = match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(BackupError::io("read the input")(error)),
        };
        let read = buffer.get(..length).ok_or(BackupError::Bug("a read beyond its buffer"))?;
        writer.write_all(read).map_err(BackupError::io("write the output"))?;
        sealed.plaintext_bytes += length as u64;
    }
    writer.finish().and_then(Write::flush).map_err(BackupError::io("write the output"))?;
    Ok(sealed)
}

/// Keeps the error of a failed write: the age crate turns one within the header into a text of its own.
struct Outlet<W> {
    inner: W,
    failed: Option<io::Error>,
}

impl<W: Write> Write for Outlet<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write(bytes).map_err(|error| {
            let told = io::Error::from(error.kind());
            self.failed = Some(error);
            told
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Makes the age crate's encryptor, whose header has our stanza first.
fn encryptor(
    service: &dyn FileKeyService,
    recipients: &Recipients,
) -> Result<(age::Encryptor, KeyVersion), BackupError> {
    let outcome = RefCell::new(None);
    let ours = KmsRecipient { service, key: &recipients.key, outcome: &outcome };
    let extra = recipients.extra.iter().map(|recipient| recipient as &dyn age::Recipient);
    let all = std::iter::once(&ours as &dyn age::Recipient).chain(extra);
    let encryptor = age::Encryptor::with_recipients(all);
    match (encryptor, outcome.take()) {
        (Ok(encryptor), Some(Ok(version))) => Ok((encryptor, version)),
        (_, Some(Err(error))) => Err(BackupError::Service(error)),
        (Err(EncryptError::Io(error)), _) => Err(BackupError::io("draw a file key")(error)),
        (Ok(_) | Err(_), _) => Err(BackupError::Bug("the age crate refused our recipients")),
    }
}

/// Wraps the file key through the service. What age's trait has no room for is kept aside.
struct KmsRecipient<'a> {
    service: &'a dyn FileKeyService,
    key: &'a KeyName,
    outcome: &'a RefCell<Option<Result<KeyVersion, ServiceError>>>,
}

impl age::Recipient for KmsRecipient<'_> {
    fn wrap_file_key(
        &self,
        file_key: &FileKey,
    ) -> Result<(Vec<Stanza>, HashSet<String>), EncryptError> {
        match self.service.wrap(self.key, file_key) {
            Ok(wrapped) => {
                self.outcome.replace(Some(Ok(wrapped.header().version)));
                Ok((vec![KmsStanza::new(wrapped).to_age()], HashSet::new()))
            }
            Err(error) => {
                self.outcome.replace(Some(Err(error)));
                Err(EncryptError::Io(io::Error::other("the service did not wrap the file key")))
            }
        }
    }
}
