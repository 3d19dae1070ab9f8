//! What can be wrong with one item. The rest of the file is not touched by it.

use kms_core::envelope::InvalidEnvelope;
use serde::{Deserialize, Serialize};

use crate::client::Refusal;
use crate::exit::Exit;

/// Why an item cannot be rewrapped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// The line is not UTF-8.
    #[error("the line is not UTF-8")]
    NotText,
    /// The line is not JSON.
    #[error("the line is not valid JSON, from column {0}")]
    NotJson(usize),
    /// Something else than an object stands where one must be.
    #[error("{} is not a JSON object", shown(.0.as_ref()))]
    NotObject(Option<String>),
    /// The field is not there.
    #[error("there is no field `{0}`")]
    FieldMissing(String),
    /// The field is there twice; readers would differ in which of them counts.
    #[error("the field `{0}` is there twice")]
    FieldTwice(String),
    /// The field holds something else than a string.
    #[error("the field `{0}` is not a string")]
    FieldNotString(String),
    /// The record is too short.
    #[error("the record has {fields} fields, and no column {column}")]
    ColumnMissing {
        /// The column asked for, from 1.
        column: usize,
        /// How many there are.
        fields: usize,
    },
    /// What is there is no envelope.
    #[error("{0}")]
    Envelope(#[from] InvalidEnvelope),
    /// The server refuses the item.
    #[error("{}", .0.message)]
    Refused(Box<Refusal>),
}

fn shown(field: Option<&String>) -> String {
    field.map_or_else(|| "the line".into(), |field| format!("`{field}`"))
}

impl Fault {
    /// Returns the reason, for programs: the server's own where it gave one.
    pub(super) fn reason(&self) -> &str {
        match self {
            Self::NotText => "NOT_TEXT",
            Self::NotJson(_) | Self::NotObject(_) => "NOT_JSON",
            Self::FieldMissing(_) => "FIELD_MISSING",
            Self::FieldTwice(_) => "FIELD_TWICE",
            Self::FieldNotString(_) => "FIELD_NOT_STRING",
            Self::ColumnMissing { .. } => "COLUMN_MISSING",
            Self::Envelope(InvalidEnvelope::Malformed) => "CIPHERTEXT_INVALID",
            Self::Envelope(_) => "ENVELOPE_UNSUPPORTED",
            Self::Refused(refusal) if refusal.reason.is_empty() => refusal.code.description(),
            Self::Refused(refusal) => &refusal.reason,
        }
    }

    /// Says how the process ends when this stops it.
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Refused(refusal) => Exit::of_refusal(&refusal.reason, refusal.code),
            _ => Exit::BadInput,
        }
    }

    /// Says whether only this item is concerned. What is not so stops the run, whatever the caller wants to leave out.
    pub(super) fn is_of_the_item(&self) -> bool {
        matches!(self.exit(), Exit::BadInput | Exit::Denied | Exit::NotFound | Exit::Precondition)
    }
}

/// A listed item that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Failure {
    /// The line that it begins on, from 1.
    pub(super) line: u64,
    /// The reason, for programs.
    pub(super) reason: String,
    /// The text for people.
    pub(super) message: String,
}

impl Failure {
    /// Describes a fault.
    pub(super) fn new(line: u64, fault: &Fault) -> Self {
        Self { line, reason: fault.reason().to_owned(), message: fault.to_string() }
    }
}
