//! What can go wrong in the store.

use kms_core::fault::{Fault, Retry};

/// What can go wrong in the store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The row is not at the revision that was expected; read it again.
    #[error("the row was changed by another request")]
    RevisionMismatch,
    /// A key of this name exists.
    #[error("the name is taken")]
    NameTaken,
    /// The principal used this request id before: read its first result. Nothing was changed.
    #[error("the request id was used before")]
    RequestIdTaken,
    /// The tenant has as many requests remembered as it may have. Nothing was changed.
    #[error("the tenant has made too many changes to remember")]
    RequestsFull,
    /// The row to change is not there.
    #[error("no such row")]
    NotFound,
    /// A stored value is outside its type: the file was edited or is damaged.
    #[error("a stored row is damaged: {detail}")]
    Damaged {
        /// For the operator.
        detail: String,
    },
    /// The database refuses to write: full or read-only disk. Nothing was changed.
    #[error("the database cannot be written: {detail}")]
    Unwritable {
        /// For the operator.
        detail: String,
    },
    /// The database cannot be read or reached.
    #[error("the database is unavailable: {detail}")]
    Unavailable {
        /// For the operator.
        detail: String,
    },
    /// More methods wait than the queue holds.
    #[error("the store queue is full")]
    Saturated,
    /// The database was made by a newer release, or its migrations were edited.
    #[error("the schema does not fit this release: {detail}")]
    Schema {
        /// For the operator.
        detail: String,
    },
}

impl StoreError {
    /// Returns whose fault it is.
    pub const fn fault(&self) -> Fault {
        match self {
            Self::RevisionMismatch
            | Self::NameTaken
            | Self::RequestIdTaken
            | Self::RequestsFull
            | Self::NotFound => Fault::Caller,
            Self::Damaged { .. }
            | Self::Unwritable { .. }
            | Self::Unavailable { .. }
            | Self::Saturated
            | Self::Schema { .. } => Fault::Store,
        }
    }

    /// Returns whether the same call may succeed later by itself.
    pub const fn retry(&self) -> Retry {
        match self {
            Self::RevisionMismatch
            | Self::RequestsFull
            | Self::Unwritable { .. }
            | Self::Unavailable { .. }
            | Self::Saturated => Retry::Later,
            Self::NameTaken
            | Self::RequestIdTaken
            | Self::NotFound
            | Self::Damaged { .. }
            | Self::Schema { .. } => Retry::Never,
        }
    }
}
