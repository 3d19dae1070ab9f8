//! The header of an age file: bounded reader, our stanza in it, and its MAC (age-encryption.org/v1, "Header").
//!
//! Foreign stanzas are kept as the bytes they are. Strict: what this reader accepts, it writes back byte for byte.

use std::io::{BufRead, Read};
use std::ops::Range;

use age_core::format::FileKey;
use age_core::secrecy::ExposeSecret as _;
use aws_lc_rs::{hkdf, hmac};
use data_encoding::BASE64_NOPAD;

use super::error::{BackupError, FormatError};
use super::stanza::{BODY_LINE_BYTES, KmsStanza, TAG};

/// The longest header that is read: room for some 400 X25519 recipients, or 30 post-quantum ones.
pub const MAX_HEADER_BYTES: usize = 64 * 1024;
/// Starts every age file.
const MAGIC: &[u8] = b"age-encryption.org/";
/// The first line of the version we know.
const FIRST_LINE: &[u8] = b"age-encryption.org/v1\n";
/// Starts every armored age file.
const ARMOR: &[u8] = b"-----BEGIN AGE ENCRYPTED FILE-----";
/// Starts the first line of a stanza.
const STANZA_PREFIX: &[u8] = b"-> ";
/// Starts the last line; the MAC covers everything up to and including these three bytes.
const MAC_MARK: &[u8] = b"---";
/// Length of the MAC: HMAC-SHA-256.
const MAC_BYTES: usize = 32;
/// Label of the HKDF that derives the MAC key from the file key.
const MAC_LABEL: &[u8] = b"header";

/// A header with exactly one stanza of ours. Nothing in it is authenticated before [`Header::verify`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    before: Vec<u8>,
    stanza: KmsStanza,
    after: Vec<u8>,
    mac: [u8; MAC_BYTES],
}

impl Header {
    /// Reads a header and leaves `input` at the first byte of the payload.
    ///
    /// # Errors
    /// [`BackupError::Format`] says what the file is instead; [`BackupError::Io`] when reading fails.
    pub fn read(input: &mut impl BufRead) -> Result<Self, BackupError> {
        let mut lines = Lines { input, bytes: Vec::new(), number: 0 };
        read_first_line(&mut lines)?;
        let mut stanzas = Vec::new();
        let (mac_at, mac) = loop {
            let line = lines.next()?;
            let text = lines.text(&line)?;
            if let Some(args) = text.strip_prefix(STANZA_PREFIX) {
                let args = parse_args(args).ok_or(lines.malformed())?;
                let body = read_body(&mut lines)?;
                stanzas.push(Found { at: line.start..lines.bytes.len(), args, body });
            } else if text.starts_with(MAC_MARK) && !stanzas.is_empty() {
                break (line.start, parse_mac(text).ok_or(lines.malformed())?);
            } else {
                return Err(lines.malformed().into());
            }
        };
        let bytes = lines.bytes;
        assemble(&bytes, &stanzas, mac_at, mac).map_err(BackupError::Format)
    }

    /// Returns our stanza.
    pub const fn stanza(&self) -> &KmsStanza {
        &self.stanza
    }

    /// Writes the header; of one that was read, the bytes that were read.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.authenticated();
        bytes.push(b' ');
        bytes.extend_from_slice(BASE64_NOPAD.encode(&self.mac).as_bytes());
        bytes.push(b'\n');
        bytes
    }

    /// Returns whether both are headers of one file under one key: only version, envelope and MAC may differ.
    pub(super) fn is_reseal_of(&self, other: &Self) -> bool {
        let key = |header: &Self| header.stanza.wrapped().header().key_uid;
        self.before == other.before && self.after == other.after && key(self) == key(other)
    }

    /// Checks the MAC in constant time, which also proves that the file key is this file's.
    ///
    /// # Errors
    /// [`BackupError::HeaderTampered`].
    pub fn verify(&self, file_key: &FileKey) -> Result<(), BackupError> {
        hmac::verify(&mac_key(file_key)?, &self.authenticated(), &self.mac)
            .map_err(|_| BackupError::HeaderTampered)
    }

    /// Returns the header with another stanza of ours and a new MAC; everything else stays as it is.
    ///
    /// # Errors
    /// [`BackupError::Bug`] only.
    pub fn with_stanza(&self, stanza: KmsStanza, file_key: &FileKey) -> Result<Self, BackupError> {
        let mut header = Self { stanza, ..self.clone() };
        let tag = hmac::sign(&mac_key(file_key)?, &header.authenticated());
        header.mac =
            tag.as_ref().try_into().map_err(|_| BackupError::Bug("an HMAC has no 32 bytes"))?;
        Ok(header)
    }

    /// Returns what the MAC covers.
    fn authenticated(&self) -> Vec<u8> {
        let stanza = self.stanza.encode();
        [&self.before[..], &stanza, &self.after, MAC_MARK].concat()
    }
}

/// A stanza as it was found.
struct Found {
    at: Range<usize>,
    args: Vec<String>,
    body: Vec<u8>,
}

/// Derives the MAC key: HKDF-SHA-256 without salt, label "header" (age-encryption.org/v1, "Header MAC").
fn mac_key(file_key: &FileKey) -> Result<hmac::Key, BackupError> {
    let pseudorandom = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(file_key.expose_secret());
    let okm = pseudorandom
        .expand(&[MAC_LABEL], hmac::HMAC_SHA256)
        .map_err(|_| BackupError::Bug("HKDF refused 32 bytes"))?;
    Ok(hmac::Key::from(okm))
}

fn assemble(
    bytes: &[u8],
    stanzas: &[Found],
    mac_at: usize,
    mac: [u8; MAC_BYTES],
) -> Result<Header, FormatError> {
    let ours = |found: &&Found| found.args.first().is_some_and(|tag| tag == TAG);
    let mut of_kms = stanzas.iter().filter(ours);
    let found = of_kms.next().ok_or(FormatError::NoKmsStanza)?;
    let more = of_kms.count();
    if more > 0 {
        return Err(FormatError::SeveralKmsStanzas { count: more + 1 });
    }
    let stanza = KmsStanza::from_parts(found.args.get(1..).unwrap_or_default(), &found.body)?;
    let before = bytes.get(..found.at.start).unwrap_or_default().to_vec();
    let after = bytes.get(found.at.end..mac_at).unwrap_or_default().to_vec();
    Ok(Header { before, stanza, after, mac })
}

fn read_first_line(lines: &mut Lines<'_, impl BufRead>) -> Result<(), BackupError> {
    let end = lines.next();
    let read = &lines.bytes;
    if read.starts_with(ARMOR) {
        return Err(FormatError::Armored.into());
    }
    if read.is_empty() || !(read.starts_with(MAGIC) || MAGIC.starts_with(read)) {
        return match end {
            Err(BackupError::Io { action, source }) => Err(BackupError::Io { action, source }),
            _ => Err(FormatError::NotAge.into()),
        };
    }
    end?;
    if read == FIRST_LINE { Ok(()) } else { Err(FormatError::UnsupportedAgeVersion.into()) }
}

/// Splits the rest of a stanza's first line: one or more arbitrary strings with one space between.
fn parse_args(text: &[u8]) -> Option<Vec<String>> {
    let text = std::str::from_utf8(text).ok()?;
    let arbitrary = |arg: &str| !arg.is_empty() && arg.bytes().all(|byte| byte.is_ascii_graphic());
    text.split(' ').map(|arg| arbitrary(arg).then(|| arg.to_owned())).collect()
}

/// Reads body lines up to and including the first that is not full.
fn read_body(lines: &mut Lines<'_, impl BufRead>) -> Result<Vec<u8>, BackupError> {
    let mut encoded = Vec::new();
    loop {
        let line = lines.next()?;
        let text = lines.text(&line)?;
        if text.len() > BODY_LINE_BYTES {
            return Err(lines.malformed().into());
        }
        encoded.extend_from_slice(text);
        if text.len() < BODY_LINE_BYTES {
            return BASE64_NOPAD.decode(&encoded).map_err(|_| lines.malformed().into());
        }
    }
}

fn parse_mac(text: &[u8]) -> Option<[u8; MAC_BYTES]> {
    let encoded = text.strip_prefix(MAC_MARK)?.strip_prefix(b" ")?;
    BASE64_NOPAD.decode(encoded).ok()?.try_into().ok()
}

/// Reads lines, counts them, and keeps every byte, up to [`MAX_HEADER_BYTES`].
struct Lines<'a, R> {
    input: &'a mut R,
    bytes: Vec<u8>,
    number: usize,
}

impl<R: BufRead> Lines<'_, R> {
    /// Reads one line; the range covers it with its line end.
    fn next(&mut self) -> Result<Range<usize>, BackupError> {
        let start = self.bytes.len();
        self.number += 1;
        let budget = MAX_HEADER_BYTES.saturating_sub(start);
        let mut bounded = self.input.by_ref().take(budget as u64);
        bounded.read_until(b'\n', &mut self.bytes).map_err(BackupError::io("read the header"))?;
        if self.bytes.len() > start && self.bytes.ends_with(b"\n") {
            return Ok(start..self.bytes.len());
        }
        if self.bytes.len() < MAX_HEADER_BYTES {
            return Err(FormatError::HeaderTruncated.into());
        }
        Err(FormatError::HeaderTooLong.into())
    }

    /// Returns a line without its line end.
    fn text(&self, line: &Range<usize>) -> Result<&[u8], FormatError> {
        let text = self.bytes.get(line.clone()).and_then(|line| line.strip_suffix(b"\n"));
        text.ok_or(self.malformed())
    }

    const fn malformed(&self) -> FormatError {
        FormatError::HeaderMalformed { line: self.number }
    }
}
