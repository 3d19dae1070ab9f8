//! Why the server did not start, and the exit status that says so to a service manager.

use std::net::SocketAddr;

use kms_hsm::HsmError;

use super::missing::MissingRoots;
use crate::audit::AuditStartError;
use crate::config::{Problem, SecretError};
use crate::journal::JournalStartError;
use crate::keyring::KeyringError;
use crate::service::{CompareError, RootChangeError};
use crate::store::StoreError;
use crate::transport::tls::TlsError;

/// A defect of ours (EX_SOFTWARE).
pub const EXIT_INTERNAL: u8 = 70;
/// A socket, a thread or the system refused (EX_OSERR).
pub const EXIT_SOCKET: u8 = 71;
/// Database or audit log cannot be opened (EX_IOERR).
pub const EXIT_STATE: u8 = 74;
/// The database is not the one that the audit log has last seen (EX_DATAERR): an operator must act.
pub const EXIT_DIVERGED: u8 = 65;
/// The HSM module cannot be used at all (EX_UNAVAILABLE). A token that is only absent is waited for, where it has served
/// before.
pub const EXIT_HSM: u8 = 69;
/// Another process holds the dev directory, or others than its owner may use it (EX_NOPERM).
pub const EXIT_HELD: u8 = 77;
/// Told twice to stop: the drain was not finished. As a shell shows a process that SIGTERM ended.
pub const EXIT_AT_ONCE: u8 = 143;
/// The configuration is wrong (EX_CONFIG).
pub const EXIT_CONFIG: u8 = 78;

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error("the configuration is wrong:{}", list(.0))]
    Config(Vec<Problem>),
    /// Certificates cannot be used.
    #[error("tls: {0}")]
    Tls(#[from] TlsError),
    /// The PIN cannot be read.
    #[error("hsm.pin: {0}")]
    Pin(SecretError),
    /// The password of the database cannot be read.
    #[error("store.postgres.password: {0}")]
    Password(SecretError),
    /// The audit log cannot be opened.
    #[error("audit: {0}")]
    Audit(#[from] AuditStartError),
    /// The database cannot be opened.
    #[error("store: {0}")]
    Store(#[from] StoreError),
    /// The HSM cannot be used.
    #[error("hsm: {0}")]
    Hsm(#[from] HsmError),
    /// The token makes no MACs, so that no row can be verified.
    #[error("nothing was verified: row MACs need root `mac`, and the token cannot be used: {0}")]
    Unverifiable(HsmError),
    /// A command that reads the database's file was given a database without one.
    #[error(
        "the database {0} is on a PostgreSQL server, and this command works on the file of a SQLite database: PostgreSQL's \
         own tools back it up and restore it; start the server to have all manifests compared with the audit log, and \
         to be told the code that --accept-restored-store takes; each row is verified whenever it is loaded"
    )]
    NotOffline(String),
    /// No root set is pinned: dev mode must make one.
    #[error(transparent)]
    NoRoots(Box<MissingRoots>),
    /// A pin's MAC is not right: the database was edited, or belongs to another token.
    #[error("the pinned root set of generation {0} fails its integrity check")]
    RootPinIntegrity(u32),
    /// The database is not the one that the audit log has last seen, or that cannot be found out.
    #[error(transparent)]
    Compare(#[from] CompareError),
    /// The state journal cannot be opened, or is not all that the token knows of.
    #[error("state journal: {0}")]
    Journal(#[from] JournalStartError),
    /// A root set was neither made nor retired.
    #[error("nothing was changed: {0}")]
    RootChange(#[from] RootChangeError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {cause}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        cause: std::io::Error,
    },
    /// The system refused something.
    #[error("{what}: {cause}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        cause: std::io::Error,
    },
    /// A defect of ours.
    #[error("bug: {0}")]
    Bug(&'static str),
}

impl StartError {
    /// Returns the exit status.
    pub const fn exit_status(&self) -> u8 {
        match self {
            Self::NoRoots(missing) if missing.is_of_hsm() => EXIT_HSM,
            Self::Config(_)
            | Self::Tls(_)
            | Self::Pin(_)
            | Self::Password(_)
            | Self::NotOffline(_)
            | Self::NoRoots(_)
            | Self::RootChange(
                RootChangeError::NotOpen(_)
                | RootChangeError::NotOldest(_)
                | RootChangeError::Newest(_)
                | RootChangeError::Last(_),
            ) => EXIT_CONFIG,
            Self::Compare(CompareError::Diverged { .. })
            | Self::Journal(
                JournalStartError::Damaged { .. }
                | JournalStartError::Missing { .. }
                | JournalStartError::OtherGap { .. },
            )
            | Self::RootChange(RootChangeError::Unfinished { .. }) => EXIT_DIVERGED,
            Self::Hsm(_)
            | Self::Unverifiable(_)
            | Self::Journal(JournalStartError::Hsm(_))
            | Self::Compare(CompareError::Unverified(KeyringError::Hsm(_))) => EXIT_HSM,
            Self::Audit(_)
            | Self::Journal(JournalStartError::Io { .. })
            | Self::Store(_)
            | Self::RootPinIntegrity(_)
            | Self::RootChange(RootChangeError::Service(_))
            | Self::Compare(CompareError::Unverified(_) | CompareError::Unrecorded(_)) => {
                EXIT_STATE
            }
            Self::Listen { .. } | Self::System { .. } => EXIT_SOCKET,
            Self::Bug(_) | Self::Compare(CompareError::Bug(_)) => EXIT_INTERNAL,
        }
    }

    /// Makes a [`StartError::System`].
    pub fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |cause| Self::System { what, cause }
    }
}

fn list(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(|problem| format!("\n  {problem}")).collect();
    lines.concat()
}
