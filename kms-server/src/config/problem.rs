//! What can be wrong with a configuration, and what the operator is to do about it.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::postgres::MAX_DATABASE_NAME_BYTES;
use super::secret_source::SecretError;
use crate::authz::InvalidPolicy;
use crate::transport::tls::TlsError;

/// Something an operator must mend.
#[derive(Debug)]
pub struct Problem {
    /// The key in the file.
    pub key: &'static str,
    /// What is wrong with it.
    pub cause: Cause,
}

/// What is wrong with a key.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// Both listeners want one port of one address.
    #[error("takes the port of listen.address ({0}); give it another port")]
    ListenersOverlap(SocketAddr),
    /// Plain text would leave the machine.
    #[error("may be false only when admin.address is a loopback address")]
    PlainTextExposed,
    /// Nobody could connect.
    #[error("must name a network, else nobody can connect")]
    NoNetworks,
    /// Certificates, keys, CAs or revocation lists do not do.
    #[error(transparent)]
    Tls(TlsError),
    /// There is no such file.
    #[error("{} is not a file", .0.display())]
    NotAFile(PathBuf),
    /// There is no such directory.
    #[error("{} is no directory", .0.display())]
    NotADirectory(PathBuf),
    /// SoftHSM, and nobody says where its files are.
    #[error(
        "give the directory of SoftHSM's tokens: it does not sync its files, so the server must"
    )]
    TokenDirNeeded,
    /// No token is named.
    #[error("give the serial number or the label of the token")]
    NoToken,
    /// PIN or password cannot be read, or others can.
    #[error(transparent)]
    Secret(SecretError),
    /// A credential is a file of one directory.
    #[error("the credential must be a plain file name")]
    CredentialName,
    /// The database cannot be made.
    #[error("its directory does not exist")]
    NoStoreDirectory,
    /// No machine is called so. It is not shown: some write a URL there, with a password in it.
    #[error(
        "must be the name or address of a machine, or the absolute path of a socket's directory"
    )]
    HostName,
    /// No database or role is called so.
    #[error("must have 1 to {MAX_DATABASE_NAME_BYTES} bytes and no control characters")]
    DatabaseName,
    /// Plain text would leave the machine.
    #[error(
        "may be \"disabled_on_loopback\" only when store.postgres.host is `localhost` or a loopback address"
    )]
    DatabaseExposed,
    /// A certificate without its key, or the other way round.
    #[error("give store.postgres.certificate and store.postgres.private_key, or neither")]
    HalfAnIdentity,
    /// A certificate that is never shown.
    #[error("is shown over TLS only, and this connection has none")]
    IdentityWithoutTls,
    /// The database could not tell this server from anybody else.
    #[error("give a password, or store.postgres.certificate with its private key")]
    NothingProven,
    /// Others than its owner could read what is in it, or put another file in its place.
    #[error(
        "the directory {} is open to its group or others (mode {mode:04o}); run `chmod 0700` on it",
        .path.display()
    )]
    DirectoryExposed {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The audit log cannot be made.
    #[error("neither it nor its parent exists")]
    NoAuditDirectory,
    /// The table of grants is refused.
    #[error(transparent)]
    Policy(InvalidPolicy),
    /// A number is out of its bounds.
    #[error("must be {least} to {most}")]
    OutOfBounds {
        /// The least.
        least: u64,
        /// The most.
        most: u64,
    },
}

impl Problem {
    /// Returns whether a server may start all the same, with a warning.
    ///
    /// Dates are judged by the clock of this machine, which may not be set yet when it boots; and a server whose
    /// certificate ran out overnight still has to say so on its admin listener.
    pub const fn is_tolerable(&self) -> bool {
        matches!(self.cause, Cause::Tls(TlsError::Expired { .. } | TlsError::NotYetValid { .. }))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.cause)
    }
}
