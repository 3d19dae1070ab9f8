//! What can go wrong with the journal: while it is written, and when it is opened.

use std::path::PathBuf;

use kms_core::fault::{Fault, Retry};
use kms_hsm::HsmError;

use super::Gap;

/// Why an entry was not acknowledged. The change that it tells of is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// The file cannot be written.
    #[error("the state journal cannot be written: {detail}")]
    Unwritable {
        /// For the operator.
        detail: String,
    },
    /// The token did not take the number of the entry.
    #[error("the number of the state journal cannot be put in the token: {0}")]
    Hsm(#[from] HsmError),
    /// More entries wait than may.
    #[error("the queue of the state journal is full")]
    Saturated,
    /// It is closed, or was never opened.
    #[error("the state journal is closed")]
    Closed,
}

impl JournalError {
    /// Returns whose fault it is.
    pub const fn fault(&self) -> Fault {
        match self {
            Self::Hsm(error) => error.fault(),
            Self::Unwritable { .. } | Self::Saturated | Self::Closed => Fault::Store,
        }
    }

    /// Returns whether trying again may help.
    pub const fn retry(&self) -> Retry {
        match self {
            Self::Hsm(error) => error.retry(),
            Self::Unwritable { .. } | Self::Saturated | Self::Closed => Retry::Later,
        }
    }
}

/// Why the journal cannot be opened: the server must not start.
#[derive(Debug, thiserror::Error)]
pub enum JournalStartError {
    /// The system refused.
    #[error("{what} {}: {cause}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        cause: std::io::Error,
    },
    /// The file is not what was written.
    #[error(
        "{} is damaged or another's: {detail}. Put an undamaged copy in its place, or move it away and accept the gap by name",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The token's number says that there were more entries.
    #[error(
        "{} lacks entries that the token knows of ({gap}): what is DESTROYED or COMPROMISED may be missing in the database. Put \
         the newest copy of the file in its place; or accept that they are lost with --accept-journal-gap {gap}: then no key \
         protects until it is rotated",
        path.display()
    )]
    Missing {
        /// The file.
        path: PathBuf,
        /// The entries.
        gap: Gap,
    },
    /// Another gap was accepted than there is.
    #[error("--accept-journal-gap names {accepted}, but {missing} are missing")]
    OtherGap {
        /// What was named.
        accepted: Gap,
        /// What is missing.
        missing: Gap,
    },
    /// The token cannot be used.
    #[error("the number of the state journal cannot be read from the token: {0}")]
    Hsm(#[from] HsmError),
}
