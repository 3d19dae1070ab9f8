//! How PostgreSQL is reached, when the database is there.
//!
//! It holds no secret: the password's place stands here, never the password. Nothing is read from the variables of libpq
//! (PGHOST and the like): a server must not serve another database because of its environment.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::SecretPlace;
use crate::store::postgres::MAX_POOL_SIZE;
use crate::transport::tls_client::ClientTlsFiles;

/// The most connections to the database: PostgreSQL serves a hundred, of all its clients, unless told otherwise.
pub const MAX_POOL: usize = MAX_POOL_SIZE;
/// The longest wait for the database that may be configured: ten minutes.
pub const MAX_DATABASE_WAIT_MS: u64 = 10 * 60 * 1000;
/// The longest name of a database or a role: PostgreSQL cuts off the rest, and would take another one of that beginning.
pub const MAX_DATABASE_NAME_BYTES: usize = 63;
/// The longest name of a host (RFC 1035 §2.3.4), or path of a socket directory.
pub const MAX_HOST_BYTES: usize = 253;

/// How PostgreSQL is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PostgresSection {
    /// Name or address of the machine, or the absolute path of the directory that has the server's socket.
    pub host: String,
    /// The port; of a socket, the number in its name.
    pub port: u16,
    /// The database.
    pub database: String,
    /// The role.
    pub user: String,
    /// Where the password comes from; nowhere when the role proves itself by certificate or socket.
    #[serde(deserialize_with = "password_place")]
    pub password: Option<SecretPlace>,
    /// Whether the connection is TLS.
    pub tls: PostgresTls,
    /// PEM certificates of the CAs that issue the database server's.
    pub server_ca: PathBuf,
    /// PEM chain of this client, leaf first.
    pub certificate: Option<PathBuf>,
    /// PEM private key of this client.
    pub private_key: Option<PathBuf>,
    /// Connections that are kept.
    pub pool_size: usize,
    /// How long a connection may take to be made.
    pub connect_timeout_ms: u64,
    /// How long the database may take for one statement.
    pub statement_timeout_ms: u64,
}

impl Default for PostgresSection {
    fn default() -> Self {
        Self {
            host: "localhost".to_owned(),
            port: 5432,
            database: "holdfast".to_owned(),
            user: "holdfast".to_owned(),
            password: None,
            tls: PostgresTls::Required,
            server_ca: "/etc/holdfast/tls/postgres-ca.pem".into(),
            certificate: None,
            private_key: None,
            pool_size: 8,
            connect_timeout_ms: 5_000,
            statement_timeout_ms: 10_000,
        }
    }
}

/// Whether the connection to PostgreSQL is TLS. One to a socket of this machine never is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PostgresTls {
    /// TLS 1.3, and the server's certificate names the host.
    #[default]
    Required,
    /// None, to a loopback address.
    DisabledOnLoopback,
}

/// What stands there instead may be the password: the error does not show it.
fn password_place<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SecretPlace>, D::Error> {
    SecretPlace::deserialize(from).map(Some).map_err(|_| {
        D::Error::custom(
            "store.postgres.password takes one place where the password is, never the password: \
             `password = { file = \"/path\" }`, `{ credential = \"name\" }` or `{ descriptor = 3 }`",
        )
    })
}

impl PostgresSection {
    /// Returns whether the host is the directory of a socket.
    pub fn is_socket(&self) -> bool {
        self.host.starts_with('/')
    }

    /// Returns whether the host is this machine whatever a resolver says.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    }

    /// Returns which database it is, for people.
    pub fn place(&self) -> String {
        let Self { host, port, database, .. } = self;
        match host.parse() {
            Ok(IpAddr::V6(_)) => format!("`{database}` at [{host}]:{port}"),
            _ => format!("`{database}` at {host}:{port}"),
        }
    }

    /// Returns whether the connection is TLS.
    pub fn is_encrypted(&self) -> bool {
        !self.is_socket() && self.tls == PostgresTls::Required
    }

    /// Returns the files of a connection over TLS; `None` of another.
    pub fn tls_files(&self) -> Option<ClientTlsFiles> {
        self.is_encrypted().then(|| ClientTlsFiles {
            server_ca: self.server_ca.clone(),
            identity: self.certificate.clone().zip(self.private_key.clone()),
        })
    }

    /// Returns how long a connection may take to be made.
    pub const fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    /// Returns how long a statement may take.
    pub const fn statement_timeout(&self) -> Duration {
        Duration::from_millis(self.statement_timeout_ms)
    }

    /// Returns the directory of the socket, when it is one.
    pub fn socket_directory(&self) -> Option<&Path> {
        self.is_socket().then(|| Path::new(&self.host))
    }
}
