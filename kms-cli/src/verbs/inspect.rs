//! `kms inspect`: what a ciphertext says of itself, without a server. Nothing here is authenticated: only unwrapping
//! checks the header.

use comfy_table::Table;
use kms_core::envelope::{self, Envelope};
use serde::Serialize;

use super::Session;
use crate::args::data::Inspect;
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

/// Shows what the input is.
pub fn run(session: &Session, args: &Inspect) -> Result<(), CliError> {
    let ciphertext = input::ciphertext(args.input.path.as_deref())?;
    show(session.format, &EnvelopeView::of(&ciphertext)?)
}
