//! Why there is no summary.

use std::path::PathBuf;

use kms_cli::bench::BenchError;
use kms_cli::client::ClientError;
use kms_cli::context::ContextError;

/// Why there is no summary.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A binary is not built.
    #[error("{} is not there: cargo build --release", .0.display())]
    Binary(PathBuf),
    /// A child process ended or said something else than it should.
    #[error("{what} is not ready: {detail}")]
    Child {
        /// Which.
        what: &'static str,
        /// What was seen.
        detail: String,
    },
    /// The system refused something.
    #[error("cannot {action}: {cause}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        cause: std::io::Error,
    },
    /// The token refused something.
    #[error("the token: {0}")]
    Token(#[from] cryptoki::error::Error),
    /// No context.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// No connection.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// No load.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// Calls failed while they were measured: the numbers would say nothing.
    #[error("{failed} calls of {what} failed: {reasons}")]
    Failed {
        /// Which measurement.
        what: String,
        /// How many.
        failed: u64,
        /// By reason.
        reasons: String,
    },
    /// A figure that cannot be right: it would pass for a good one.
    #[error("`{name}` was not measured: {value}")]
    Figure {
        /// Which.
        name: String,
        /// What came instead.
        value: f64,
    },
    /// The system does not say what was asked.
    #[error("the system does not tell {0}")]
    Untold(&'static str),
    /// No rounds, or rounds of nothing.
    #[error("--rounds, --round-ms and --seal-mib must be at least 1")]
    Nothing,
    /// A backup was not sealed.
    #[error("{0}")]
    Seal(String),
    /// A defect of ours.
    #[error("{0}")]
    Bug(&'static str),
}

/// Names the action of an I/O error.
pub fn io(action: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |cause| Error::Io { action, cause }
}
