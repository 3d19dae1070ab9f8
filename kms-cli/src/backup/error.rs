//! What can go wrong with a backup: the file's format, the service, the disk.
//!
//! Texts name the file's fault and what to do, never key bytes or plaintext. The caller adds the path.

use std::io;

use kms_core::envelope::InvalidEnvelope;
use kms_core::name::KeyName;
use tonic::Code;

use super::disk::SIDE_SUFFIX;
use super::header::MAX_HEADER_BYTES;
use super::recipient::InvalidAddress;
use crate::client::ClientError;
use crate::context::ContextError;
use crate::output::OutputError;

/// The reason with which a server refuses an envelope.
const CIPHERTEXT_INVALID: &str = "CIPHERTEXT_INVALID";

/// Why bytes are not a backup that we can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The file does not start as age files do.
    #[error("not an age file")]
    NotAge,
    /// The file is in age's text form, which cannot be resealed in place.
    #[error("an armored age file; remove the armor first: the binary form is needed")]
    Armored,
    /// An age file of another version than v1.
    #[error("this version of the age format is not supported, only v1 is")]
    UnsupportedAgeVersion,
    /// The header does not end within [`MAX_HEADER_BYTES`].
    #[error("the header is longer than {MAX_HEADER_BYTES} bytes")]
    HeaderTooLong,
    /// The file ends within its header, or before its payload begins.
    #[error("the file is cut off within its header")]
    HeaderTruncated,
    /// A line of the header is not what the age format allows there.
    #[error("line {line} of the header is malformed")]
    HeaderMalformed {
        /// Number of the line, from 1.
        line: usize,
    },
    /// No stanza is ours: the file was not sealed with the KMS.
    #[error("the file is not sealed with a KMS key (no `kms` stanza)")]
    NoKmsStanza,
    /// More than one stanza is ours, so it is open which key is meant.
    #[error("the file has {count} `kms` stanzas; only `age` with age-plugin-kms opens such files")]
    SeveralKmsStanzas {
        /// How many.
        count: usize,
    },
    /// Our stanza, but of a version that this release does not know.
    #[error("this version of the `kms` stanza is not supported, only 1 is")]
    UnsupportedStanza,
    /// Our stanza has the wrong shape or width.
    #[error("the `kms` stanza is malformed")]
    StanzaMalformed,
    /// The stanza's arguments and the envelope in its body disagree.
    #[error("the `kms` stanza names another key or version than its envelope")]
    StanzaMismatch,
    /// The body of our stanza is not an envelope that we know.
    #[error("the `kms` stanza holds no usable envelope: {0}")]
    Envelope(InvalidEnvelope),
}

/// Why the service did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The server refused, or cannot be reached.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The configuration does not lead to a server.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// The server's answer breaks the contract.
    #[error("the server's answer cannot be used: {0}")]
    BadAnswer(&'static str),
    /// A defect of ours.
    #[error("internal error: {0}")]
    Bug(&'static str),
}

impl ServiceError {
    /// Returns whether the server refuses the envelope: another key's, changed, or torn.
    pub(super) fn is_invalid_ciphertext(&self) -> bool {
        matches!(self, Self::Client(ClientError::Refused(refusal))
            if refusal.reason == CIPHERTEXT_INVALID)
    }

    /// Returns whether the caller lacks a permission.
    pub(super) fn is_denied(&self) -> bool {
        matches!(self, Self::Client(ClientError::Refused(refusal))
            if refusal.code == Code::PermissionDenied)
    }
}

/// Why a backup was not sealed, opened or resealed.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file is not a backup that we can read.
    #[error("{0}")]
    Format(#[from] FormatError),
    /// The service refused, failed or cannot be reached.
    #[error("{0}")]
    Service(#[from] ServiceError),
    /// The header's MAC is wrong: a stanza was changed, or the header is torn.
    #[error("the header was changed: its MAC does not verify")]
    HeaderTampered,
    /// The header's MAC is wrong and a side file shows why.
    #[error("a reseal of this file was interrupted; `kms reseal` on it finishes or undoes that")]
    ResealInterrupted,
    /// The payload ends before its last chunk, or that last chunk does not verify.
    #[error("the payload is cut off after {verified_bytes} good bytes, or its end was changed")]
    PayloadTruncated {
        /// How many plaintext bytes before that point are verified.
        verified_bytes: u64,
    },
    /// A chunk of the payload does not verify.
    #[error("the payload was changed: {verified_bytes} bytes verify, the next chunk does not")]
    PayloadTampered {
        /// How many plaintext bytes before that point are verified.
        verified_bytes: u64,
    },
    /// The file is sealed with another key than the one asked for.
    #[error("the file is sealed with `{found}`, not with `{asked}`")]
    KeyMismatch {
        /// The key that was named by the caller.
        asked: KeyName,
        /// The key that the server names for the file.
        found: KeyName,
    },
    /// The server does not say which key the file is sealed with.
    #[error("the server does not show which key this file is sealed with; name it with --key")]
    KeyUnknown,
    /// The caller may not ask which key the file is sealed with.
    #[error("you may not ask the server which key this file is sealed with")]
    KeyHidden,
    /// More extra recipients than a header should carry.
    #[error("{given} extra recipients are too many, at most {max} are allowed")]
    TooManyRecipients {
        /// How many were given.
        given: usize,
        /// How many are allowed.
        max: usize,
    },
    /// A text that should be a native age recipient is none.
    #[error("a --recipient is not a native age recipient (`age1…`)")]
    InvalidRecipient,
    /// A text that should be an address of ours is none.
    #[error(transparent)]
    Address(#[from] InvalidAddress),
    /// The output exists and overwriting was not asked for.
    #[error("the output exists; --force overwrites it")]
    OutputExists,
    /// A directory, device or pipe stands where a regular file is needed.
    #[error("not a regular file")]
    NotRegular,
    /// A sealed file is binary and would spoil a terminal.
    #[error("a sealed file is binary; use --out FILE or a pipe")]
    SealedToTerminal,
    /// A plaintext would be shown on a terminal, and nobody asked for that.
    #[error("a plaintext is not shown on a terminal: use --out FILE, a pipe, or --out -")]
    PlaintextToTerminal,
    /// Nothing is piped in, and nobody asked to type the input.
    #[error("nothing is piped in: use --in FILE, or --in - to type it (it is shown)")]
    NothingPiped,
    /// The side file of an interrupted reseal is beside the output.
    #[error("an interrupted reseal left its side file (`{SIDE_SUFFIX}`) beside the output")]
    SideLeft,
    /// Another reseal holds the file.
    #[error("another reseal is working on this file")]
    Busy,
    /// The file was replaced while it was being opened.
    #[error("the file was replaced meanwhile; nothing was changed")]
    Replaced,
    /// A side file is there, but it does not belong to this file.
    #[error("the side file of an interrupted reseal is not this file's; nothing was changed")]
    SideForeign,
    /// Reading or writing failed.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A defect of ours.
    #[error("internal error: {0}")]
    Bug(&'static str),
}

impl From<OutputError> for BackupError {
    fn from(error: OutputError) -> Self {
        match error {
            OutputError::Exists => Self::OutputExists,
            OutputError::NotRegular => Self::NotRegular,
            OutputError::Io { action, source } => Self::Io { action, source },
        }
    }
}

impl BackupError {
    /// Makes the closure that gives an I/O error its action.
    pub(super) fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }
}
