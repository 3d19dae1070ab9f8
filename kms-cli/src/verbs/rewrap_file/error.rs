//! Why a whole run stops, and what to do then.

use std::io;
use std::path::{Path, PathBuf};

use super::csv::BadQuoting;
use super::fault::Fault;
use super::record::MAX_RECORD_BYTES;
use crate::error::CliError;
use crate::exit::Exit;

/// Why a run stops. Nothing is published then; what was done stays in the partial file for the next run.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    /// A record is longer than [`MAX_RECORD_BYTES`].
    #[error("line {0}: the record is longer than {MAX_RECORD_BYTES} bytes")]
    RecordTooLong(u64),
    /// The quoting of a CSV file is broken.
    #[error("the CSV quoting is broken: {0}")]
    Quoting(#[from] BadQuoting),
    /// The header does not name the column, or names it twice.
    #[error("the header has {} column `{column}`", if *twice { "more than one" } else { "no" })]
    Column {
        /// The column.
        column: String,
        /// Whether it is there twice.
        twice: bool,
    },
    /// An item cannot be rewrapped.
    #[error("line {line}: {fault}")]
    Item {
        /// The line.
        line: u64,
        /// Why.
        fault: Fault,
    },
    /// The run is done, but some items failed.
    #[error("{failed} of {items} items failed and were left as they were")]
    ItemsFailed {
        /// How many failed.
        failed: u64,
        /// How many there are.
        items: u64,
    },
    /// Input or output is no regular file.
    #[error("`{}` is not a regular file", .0.display())]
    NotRegular(PathBuf),
    /// A partial file or a checkpoint is somebody else's.
    #[error("`{}` belongs to another user", .0.display())]
    OtherOwner(PathBuf),
    /// The output is the input.
    #[error("`{}` is read and written", .0.display())]
    SameFile(PathBuf),
    /// The input stands where this run keeps what it is writing.
    #[error("`{}` is the input, and this run would write to it", .0.display())]
    InputIsOurs(PathBuf),
    /// Another run holds the partial file.
    #[error("another run is writing `{}`", .0.display())]
    Busy(PathBuf),
    /// The input changed under our hands.
    #[error("`{}` was changed meanwhile", .0.display())]
    InputChanged(PathBuf),
    /// `--resume`, and nothing to go on from.
    #[error("there is no checkpoint `{}`", .0.display())]
    NoCheckpoint(PathBuf),
    /// The checkpoint cannot be read.
    #[error("`{}` is not a checkpoint of this release: {cause}", path.display())]
    CheckpointBroken {
        /// The checkpoint.
        path: PathBuf,
        /// Why not.
        cause: String,
    },
    /// The checkpoint is of another run.
    #[error("the checkpoint `{}` is of another run: {difference}", path.display())]
    CheckpointForeign {
        /// The checkpoint.
        path: PathBuf,
        /// What is not the same.
        difference: &'static str,
    },
    /// The file system refused.
    #[error("cannot {action} `{}`: {cause}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// The connection, the server, or the command line.
    #[error(transparent)]
    Other(Box<CliError>),
}

impl RunError {
    /// Makes the closure that gives an I/O error its action and file.
    pub(super) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |cause| Self::File { action, path, cause }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::RecordTooLong(_) | Self::Quoting(_) | Self::Column { .. } => Exit::BadInput,
            Self::Item { fault, .. } => fault.exit(),
            Self::ItemsFailed { .. } => Exit::Partial,
            Self::SameFile(_) | Self::InputIsOurs(_) => Exit::Usage,
            Self::Busy(_) | Self::InputChanged(_) | Self::CheckpointForeign { .. } => {
                Exit::Precondition
            }
            Self::NotRegular(_)
            | Self::OtherOwner(_)
            | Self::NoCheckpoint(_)
            | Self::CheckpointBroken { .. }
            | Self::File { .. } => Exit::Local,
            Self::Other(error) => error.exit(),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::RecordTooLong(_) => "RECORD_TOO_LONG",
            Self::Quoting(_) => "CSV_QUOTING",
            Self::Column { .. } => "COLUMN_MISSING",
            Self::Item { .. } => "ITEM_FAILED",
            Self::ItemsFailed { .. } => "ITEMS_FAILED",
            Self::NotRegular(_) | Self::OtherOwner(_) | Self::File { .. } | Self::Other(_) => {
                "FILE"
            }
            Self::SameFile(_) | Self::InputIsOurs(_) => "USAGE",
            Self::Busy(_) => "BUSY",
            Self::InputChanged(_) => "INPUT_CHANGED",
            Self::NoCheckpoint(_) => "NO_CHECKPOINT",
            Self::CheckpointBroken { .. } => "CHECKPOINT_BROKEN",
            Self::CheckpointForeign { .. } => "CHECKPOINT_FOREIGN",
        }
    }

    fn advice(&self) -> Option<&'static str> {
        Some(match self {
            Self::Item { .. } => {
                "put it right and run the same again, which goes on from there; or use --keep-going"
            }
            Self::ItemsFailed { .. } => {
                "they are listed by line, with reasons; put them right and run again"
            }
            Self::SameFile(_) => "use --in-place",
            Self::OtherOwner(_) => "let its owner finish that run, or remove it",
            Self::InputIsOurs(_) => "name another output, or give the input another name only",
            Self::Busy(_) => "wait for it, or end it",
            Self::InputChanged(_) => "nothing was published; run again when nobody writes to it",
            Self::NoCheckpoint(_) => "begin without --resume",
            Self::CheckpointBroken { .. } | Self::CheckpointForeign { .. } => {
                "finish that run with its own arguments and input, or drop it with --restart"
            }
            Self::Quoting(_) | Self::RecordTooLong(_) => {
                "nothing was published; is the --format right?"
            }
            Self::Column { .. } => "name a column of the header, or give its number from 1",
            Self::NotRegular(_) | Self::File { .. } | Self::Other(_) => return None,
        })
    }
}

impl From<CliError> for RunError {
    fn from(error: CliError) -> Self {
        Self::Other(Box::new(error))
    }
}

impl From<RunError> for CliError {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Other(error) => *error,
            RunError::File { action, path, cause } => Self::File { action, path, cause },
            error => Self::Part {
                exit: error.exit(),
                reason: error.reason(),
                message: error.to_string(),
                advice: error.advice().map(str::to_owned),
            },
        }
    }
}
