//! Contexts: which server, as whom, and for which tenant.
//!
//! [`mod@file`] reads and writes the TOML file of named contexts, [`resolve`] lays flags over it. Nothing here connects, and
//! nothing here reads a private key: it only knows where the key stands.

pub mod file;
pub mod resolve;
pub mod server;

pub use file::{Context, ContextFile};
pub use resolve::{Overrides, ResolvedContext};
pub use server::ServerAddress;

use std::path::PathBuf;

/// Why there is no usable context.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// The file cannot be read or written.
    #[error("cannot {action} `{}`: {cause}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        cause: std::io::Error,
    },
    /// The file that `--config` or `KMS_CONFIG` names is not there.
    #[error("there is no context file `{}`", .0.display())]
    NoFile(PathBuf),
    /// The file is not TOML of the documented shape.
    #[error("`{}` is not a valid context file: {cause}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong and where.
        cause: String,
    },
    /// The file is longer than [`file::MAX_FILE_BYTES`].
    #[error("`{}` is longer than 1 MiB", .0.display())]
    TooLong(PathBuf),
    /// No context has this name.
    #[error("there is no context `{name}` in `{}`", path.display())]
    Unknown {
        /// The name asked for.
        name: String,
        /// The file.
        path: PathBuf,
    },
    /// A context with this name is there already.
    #[error("there is a context `{0}` already")]
    Exists(String),
    /// The name of a context is empty, too long, or has a character that is not allowed.
    #[error("`{0}` is no name for a context: 1 to 63 of a-z, A-Z, 0-9, `-`, `_`, `.`")]
    Name(String),
    /// Neither a flag nor the context says it.
    #[error("no {what} is given: use `{flag}`, or a context that has it")]
    Missing {
        /// What is missing.
        what: &'static str,
        /// The flag that gives it.
        flag: &'static str,
    },
    /// The server is not an address we connect to.
    #[error("`{address}` is not a server address: {cause}")]
    Server {
        /// What was given.
        address: String,
        /// Why not.
        cause: &'static str,
    },
    /// The tenant is not a name.
    #[error("`{0}` is not a tenant: give its id, or `tenants/ID`")]
    Tenant(String),
    /// An argument names no key.
    #[error(
        "`{0}` is no key: give its id, as in `backups`, or its full name, as in \
         `tenants/payments/keys/backups`; ids are 1 to 63 of a-z, 0-9, `-`, `_`, `.`"
    )]
    Key(String),
    /// What an argument names is no alias.
    #[error(
        "`{0}` is no alias: give its id, as in `payments`, or its full name, as in \
         `tenants/shop/aliases/payments`; ids are 1 to 63 of a-z, 0-9, `-`, `_`, `.`"
    )]
    Alias(String),
    /// An argument names a version where a whole key is meant.
    #[error(
        "`{0}` names a version, here a key is expected: without `/versions/...`, as in `backups`"
    )]
    KeyWithVersion(String),
    /// An argument names a key where one of its versions is meant.
    #[error(
        "`{0}` names no version, here one is expected: as in `backups/versions/3` or `backups 3`"
    )]
    VersionMissing(String),
    /// What an argument names is no version.
    #[error("`{0}` is no version: they are numbered from 1, as in `backups/versions/3`")]
    Version(String),
    /// Neither HOME nor XDG_CONFIG_HOME says where the file stands.
    #[error("cannot tell where the context file is: set KMS_CONFIG, or HOME")]
    NoHome,
}
