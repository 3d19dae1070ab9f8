//! The seam to the KMS: wrapping and unwrapping of age file keys.
//!
//! Synchronous, because age's `Recipient` and `Identity` are. The gRPC implementation runs on a runtime owned by a
//! thread of its own; tests have one in memory. Implementations never log or keep a file key.

use age_core::format::{FILE_KEY_BYTES, FileKey};
use kms_core::context::{EncryptionContext, InvalidContext};
use kms_core::envelope::{Envelope, Header, OVERHEAD_BYTES};
use kms_core::name::KeyName;

use super::error::{FormatError, ServiceError};

/// Length of a wrapped file key: an envelope around 16 bytes.
pub const WRAPPED_FILE_KEY_BYTES: usize = OVERHEAD_BYTES + FILE_KEY_BYTES;

/// The one pair of the encryption context of every file key. Nothing in it varies, so that a file stays readable
/// wherever it is moved; it keeps a file key from being unwrapped as something else.
pub(super) const CONTEXT: [(&str, &str); 1] = [("purpose", "age-file-key")];

/// Returns [`CONTEXT`] as a checked context.
///
/// # Errors
/// None in practice: the pair is within every bound (`the_context_is_valid`).
pub fn file_key_context() -> Result<EncryptionContext, InvalidContext> {
    EncryptionContext::from_caller(CONTEXT.map(|(key, value)| (key.to_owned(), value.to_owned())))
}

/// An envelope around a file key: right length, known format and suite, still unauthenticated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrappedFileKey {
    bytes: [u8; WRAPPED_FILE_KEY_BYTES],
    header: Header,
}

impl WrappedFileKey {
    /// Checks the bytes of an envelope.
    ///
    /// # Errors
    /// [`FormatError::StanzaMalformed`] for another length, [`FormatError::Envelope`] for what is no envelope.
    pub fn new(bytes: &[u8]) -> Result<Self, FormatError> {
        let bytes: [u8; WRAPPED_FILE_KEY_BYTES] =
            bytes.try_into().map_err(|_| FormatError::StanzaMalformed)?;
        let header = Envelope::decode(&bytes).map_err(FormatError::Envelope)?.header;
        Ok(Self { bytes, header })
    }

    /// Returns the envelope.
    pub const fn as_bytes(&self) -> &[u8; WRAPPED_FILE_KEY_BYTES] {
        &self.bytes
    }

    /// Returns which key and version the envelope names.
    pub const fn header(&self) -> &Header {
        &self.header
    }
}

/// What the server says about a wrapped file key, without opening it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The key's name; `None` when the server does not know it or does not tell.
    pub key: Option<KeyName>,
    /// Whether the version is the key's primary now.
    pub current: bool,
}

/// Wraps and unwraps age file keys, always with [`CONTEXT`].
pub trait FileKeyService: Send + Sync {
    /// Wraps a file key under the key's primary.
    ///
    /// # Errors
    /// [`ServiceError`]; nothing was changed then, and trying again is safe.
    fn wrap(&self, key: &KeyName, file_key: &FileKey) -> Result<WrappedFileKey, ServiceError>;

    /// Unwraps a file key; the envelope must name `key`.
    ///
    /// # Errors
    /// [`ServiceError::Client`], also for a wrong key, a wrong tag or a missing permission.
    fn unwrap(&self, key: &KeyName, wrapped: &WrappedFileKey) -> Result<FileKey, ServiceError>;

    /// Says which key a wrapped file key names and whether it is current.
    ///
    /// # Errors
    /// [`ServiceError`].
    fn describe(&self, wrapped: &WrappedFileKey) -> Result<Description, ServiceError>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use kms_core::envelope::{InvalidEnvelope, Suite};
    use kms_core::id::{KeyUid, KeyVersion};

    fn envelope(plaintext_bytes: usize) -> Vec<u8> {
        let header = Header {
            suite: Suite::Aes256Gcm,
            key_uid: KeyUid::from_bytes([7; 16]),
            version: KeyVersion::FIRST,
        };
        header.seal(&[1; 12], &vec![2; plaintext_bytes + 16])
    }

    #[test]
    fn the_context_is_valid() {
        assert_eq!(file_key_context().unwrap().iter().collect::<Vec<_>>(), CONTEXT);
    }

    #[test]
    fn an_envelope_around_16_bytes_is_accepted_and_15_or_17_refused() {
        assert_eq!(WrappedFileKey::new(&envelope(16)).unwrap().as_bytes()[..], envelope(16));
        for length in [15, 17] {
            let refused = WrappedFileKey::new(&envelope(length));
            assert_eq!(refused, Err(FormatError::StanzaMalformed));
        }
    }

    #[test]
    fn an_envelope_of_another_format_is_refused() {
        let mut bytes = envelope(16);
        bytes[2] = 2;
        let refused = FormatError::Envelope(InvalidEnvelope::UnsupportedFormat(2));
        assert_eq!(WrappedFileKey::new(&bytes), Err(refused));
    }
}
