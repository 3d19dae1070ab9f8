//! `kms inspect`: what a ciphertext says of itself, without a server. Nothing here is authenticated: only unwrapping
//! checks the header.

use std::io::{BufReader, Read as _};

use comfy_table::Table;
use kms_core::envelope::{self, Envelope};
use serde::Serialize;

use super::Session;
use crate::args::data::Inspect;
use crate::backup::Header;
use crate::error::CliError;
use crate::input;
use crate::output::view::facts;
use crate::output::{View, show};

/// What an envelope says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EnvelopeView {
    /// What it is.
    pub kind: &'static str,
    /// Format number.
    pub format: u8,
    /// Suite number.
    pub suite: u8,
    /// Uid of the key.
    pub key_uid: String,
    /// Number of the version.
    pub version: u32,
    /// Length of the whole envelope.
    pub envelope_length_bytes: usize,
    /// Length of the plaintext.
    pub plaintext_length_bytes: usize,
}

impl EnvelopeView {
    /// Decodes the header of a binary envelope.
    pub fn of(bytes: &[u8]) -> Result<Self, CliError> {
        let envelope = Envelope::decode(bytes)?;
        Ok(Self {
            kind: "envelope",
            format: envelope::FORMAT,
            suite: envelope.header.suite.code(),
            key_uid: envelope.header.key_uid.to_string(),
            version: envelope.header.version.get(),
            envelope_length_bytes: bytes.len(),
            plaintext_length_bytes: envelope.plaintext_len(),
        })
    }
}

impl View for EnvelopeView {
    fn table(&self) -> Table {
        facts(&[
            ("kind", self.kind.into()),
            ("format", self.format.to_string()),
            ("suite", format!("{} (AES-256-GCM in the HSM)", self.suite)),
            ("key uid", self.key_uid.clone()),
            ("version", self.version.to_string()),
            ("envelope", format!("{} bytes", self.envelope_length_bytes)),
            ("plaintext", format!("{} bytes", self.plaintext_length_bytes)),
        ])
    }
}

/// What a sealed file's header says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SealedView {
    /// What it is.
    pub kind: &'static str,
    /// The envelope of the file key.
    pub file_key: EnvelopeView,
    /// Length of the header.
    pub header_length_bytes: usize,
}

impl View for SealedView {
    fn table(&self) -> Table {
        let mut table = self.file_key.table();
        table.add_row(["sealed file", &format!("header of {} bytes", self.header_length_bytes)]);
        table
    }
}

/// Starts every age file.
const AGE_MAGIC: &[u8] = b"age-encryption.org/";

/// Shows what the input is. Of a sealed file only the header is read.
pub fn run(session: &Session, args: &Inspect) -> Result<(), CliError> {
    let (mut source, failed) = input::open(args.input.path.as_deref())?;
    let mut start = Vec::new();
    let limit = AGE_MAGIC.len() as u64;
    source.by_ref().take(limit).read_to_end(&mut start).map_err(&failed)?;
    if start == AGE_MAGIC {
        let mut whole = BufReader::new(start.as_slice().chain(source));
        let header = Header::read(&mut whole)?;
        let view = SealedView {
            kind: "sealed file",
            file_key: EnvelopeView::of(header.stanza().wrapped().as_bytes())?,
            header_length_bytes: header.encode().len(),
        };
        return show(session.format, &view);
    }
    let limit = input::MAX_TEXT_BYTES as u64 + 1;
    source.take(limit).read_to_end(&mut start).map_err(&failed)?;
    if start.is_empty() || start.len() > input::MAX_TEXT_BYTES {
        let (what, max) = ("ciphertext", input::MAX_TEXT_BYTES);
        return Err(CliError::Length { what, length: start.len(), max });
    }
    show(session.format, &EnvelopeView::of(&input::checked_ciphertext(&start)?)?)
}
