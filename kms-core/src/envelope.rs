//! The ciphertext envelope: codec, AAD and text form (docs/formats.md, "Envelope").
//!
//! Binary, big-endian: magic `4B 57` | format 1 | suite u8 | key uid 16 | version u32 | IV 12 | ciphertext | tag 16.
//! Decoders refuse an unknown format or suite with a typed error and never try a second key.

use data_encoding::BASE64URL_NOPAD;

use crate::context::EncryptionContext;
use crate::domain;
use crate::id::{KeyUid, KeyVersion};

/// The first two bytes of every envelope.
pub const MAGIC: [u8; 2] = *b"KW";
/// The one format there is.
pub const FORMAT: u8 = 1;
/// Length of the IV: 96 bits, SP 800-38D §8.2.
pub const IV_BYTES: usize = 12;
/// Length of the tag: 128 bits, SP 800-38D §5.2.1.2.
pub const TAG_BYTES: usize = 16;
/// Length of everything before the ciphertext.
pub const HEADER_BYTES: usize = 2 + 1 + 1 + 16 + 4 + IV_BYTES;
/// How much longer an envelope is than its plaintext.
pub const OVERHEAD_BYTES: usize = HEADER_BYTES + TAG_BYTES;
/// The longest plaintext of an envelope.
pub const MAX_PLAINTEXT_BYTES: usize = 64 * 1024;
/// The longest envelope.
pub const MAX_ENVELOPE_BYTES: usize = OVERHEAD_BYTES + MAX_PLAINTEXT_BYTES;
/// Starts the text form.
pub const TEXT_PREFIX: &str = "hfenv1:";

/// The IV of one AES-GCM invocation.
pub type Iv = [u8; IV_BYTES];

/// How the plaintext is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Suite {
    /// AES-256-GCM, computed inside the HSM, random 96-bit IV.
    Aes256Gcm,
}

impl Suite {
    /// Returns the number on the wire.
    pub const fn code(self) -> u8 {
        match self {
            Self::Aes256Gcm => 1,
        }
    }
}

/// Why bytes are not an envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEnvelope {
    /// Shorter than the shortest envelope, longer than the longest, without the magic, or with version 0.
    #[error("not a holdfast envelope")]
    Malformed,
    /// A format that this release does not know.
    #[error("envelope format {0} is not supported")]
    UnsupportedFormat(u8),
    /// A suite that this release does not know.
    #[error("envelope suite {0} is not supported")]
    UnsupportedSuite(u8),
}

/// Everything before the IV: which key and version protects, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Header {
    /// How.
    pub suite: Suite,
    /// The key.
    pub key_uid: KeyUid,
    /// The version.
    pub version: KeyVersion,
}

impl Header {
    /// Returns the AAD of an envelope, still without its IV: the domain, every header byte, the canonical context.
    pub fn aad(&self, context: &EncryptionContext) -> Aad {
        let capacity = domain::WRAP_AAD.len() + HEADER_BYTES + context.canonical_len();
        let mut bytes = Vec::with_capacity(capacity);
        bytes.extend_from_slice(domain::WRAP_AAD);
        self.write(&mut bytes);
        let iv_at = bytes.len();
        bytes.extend_from_slice(&[0; IV_BYTES]);
        context.write_canonical(&mut bytes);
        Aad { bytes, iv_at }
    }

    /// Writes a whole envelope.
    pub fn seal(&self, iv: &Iv, ciphertext_and_tag: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES + ciphertext_and_tag.len());
        self.write(&mut out);
        out.extend_from_slice(iv);
        out.extend_from_slice(ciphertext_and_tag);
        out
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[FORMAT, self.suite.code()]);
        out.extend_from_slice(self.key_uid.as_bytes());
        out.extend_from_slice(&self.version.get().to_be_bytes());
    }
}

/// The AAD of one invocation. The IV is drawn by the HSM worker, so it is filled in last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aad {
    bytes: Vec<u8>,
    iv_at: usize,
}

impl Aad {
    /// Makes an AAD from a domain and fields that already tell everything; the IV is appended.
    pub fn from_prefix(mut prefix: Vec<u8>) -> Self {
        let iv_at = prefix.len();
        prefix.extend_from_slice(&[0; IV_BYTES]);
        Self { bytes: prefix, iv_at }
    }

    /// Fills in the IV and returns the bytes to authenticate.
    pub fn with_iv(&mut self, iv: &Iv) -> &[u8] {
        if let Some(place) = self.bytes.get_mut(self.iv_at..self.iv_at + IV_BYTES) {
            place.copy_from_slice(iv);
        }
        &self.bytes
    }
}

/// A decoded envelope; nothing in it is authenticated yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// Which key and version, and how.
    pub header: Header,
    /// The IV.
    pub iv: Iv,
    /// Ciphertext and tag, as AES-GCM of PKCS#11 gives and takes them.
    pub ciphertext_and_tag: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// Reads an envelope.
    ///
    /// # Errors
    /// [`InvalidEnvelope::UnsupportedFormat`] and [`InvalidEnvelope::UnsupportedSuite`] name what a newer release may
    /// read; everything else is [`InvalidEnvelope::Malformed`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, InvalidEnvelope> {
        let rest = bytes.strip_prefix(&MAGIC).ok_or(InvalidEnvelope::Malformed)?;
        let (&[format, suite], rest) =
            rest.split_first_chunk().ok_or(InvalidEnvelope::Malformed)?;
        if format != FORMAT {
            return Err(InvalidEnvelope::UnsupportedFormat(format));
        }
        if suite != Suite::Aes256Gcm.code() {
            return Err(InvalidEnvelope::UnsupportedSuite(suite));
        }
        let (uid, rest) = rest.split_first_chunk().ok_or(InvalidEnvelope::Malformed)?;
        let (version, rest) = rest.split_first_chunk().ok_or(InvalidEnvelope::Malformed)?;
        let (iv, ciphertext_and_tag) =
            rest.split_first_chunk().ok_or(InvalidEnvelope::Malformed)?;
        let version =
            KeyVersion::new(u32::from_be_bytes(*version)).ok_or(InvalidEnvelope::Malformed)?;
        // An envelope never holds an empty plaintext: Wrap refuses it.
        let longest = MAX_PLAINTEXT_BYTES + TAG_BYTES;
        if !(TAG_BYTES + 1..=longest).contains(&ciphertext_and_tag.len()) {
            return Err(InvalidEnvelope::Malformed);
        }
        let key_uid = KeyUid::from_bytes(*uid);
        let header = Header { suite: Suite::Aes256Gcm, key_uid, version };
        Ok(Self { header, iv: *iv, ciphertext_and_tag })
    }

    /// Returns the length of the plaintext in bytes.
    pub const fn plaintext_len(&self) -> usize {
        self.ciphertext_and_tag.len().saturating_sub(TAG_BYTES)
    }
}

/// Writes the text form: `hfenv1:` and base64url without padding.
pub fn to_text(envelope: &[u8]) -> String {
    let mut text = String::from(TEXT_PREFIX);
    BASE64URL_NOPAD.encode_append(envelope, &mut text);
    text
}

/// Reads the text form. There is one text for each envelope: no padding, no spaces, no stray trailing bits.
///
/// # Errors
/// [`InvalidEnvelope::Malformed`] when the prefix or the alphabet is wrong; the bytes are not decoded further.
pub fn from_text(text: &str) -> Result<Vec<u8>, InvalidEnvelope> {
    let encoded = text.strip_prefix(TEXT_PREFIX).ok_or(InvalidEnvelope::Malformed)?;
    BASE64URL_NOPAD.decode(encoded.as_bytes()).map_err(|_| InvalidEnvelope::Malformed)
}
