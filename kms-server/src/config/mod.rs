//! Configuration: one TOML file, a few flags above it, defaults below.
//!
//! Responsible for reading and judging what the operator wrote. Unknown keys are refused: a misspelt bound must not be
//! no bound. It holds no secret: the places of PIN and password stand here, never what is there. `holdfast.sample.toml` explains every key.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::authz::GrantConfig;
use crate::transport::limits::ConnectionLimits;
use crate::transport::network::Network;
use crate::transport::tls::TlsFiles;

mod check;
mod flags;
mod load;
mod postgres;
mod postgres_check;
mod problem;
mod secret_source;

pub use check::{
    MAX_COUNT, MAX_HSM_QUEUE, MAX_HSM_WORKERS, MAX_SPAN_MS, MAX_WORKER_THREADS, check,
};
pub use flags::Flags;
pub use load::{ConfigError, MAX_CONFIG_BYTES};
pub use postgres::{
    MAX_DATABASE_NAME_BYTES, MAX_DATABASE_WAIT_MS, MAX_HOST_BYTES, MAX_POOL, PostgresSection,
    PostgresTls,
};
pub use problem::{Cause, Problem};
pub use secret_source::{
    CREDENTIALS_VARIABLE, MAX_SECRET_BYTES, SecretError, SecretKind, SecretPlace, SecretSource,
};

/// The port of the gRPC listener.
pub const DEFAULT_PORT: u16 = 8443;
/// The port of the admin listener.
pub const DEFAULT_ADMIN_PORT: u16 = 9443;

/// Everything that can be configured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The gRPC listener.
    pub listen: Listen,
    /// Certificates of both listeners.
    pub tls: Tls,
    /// The admin listener.
    pub admin: Admin,
    /// The token.
    pub hsm: HsmSection,
    /// The database.
    pub store: StoreSection,
    /// The audit log.
    pub audit: AuditSection,
    /// The state journal.
    pub journal: JournalSection,
    /// Who may do what.
    pub authz: Authz,
    /// Import of keys.
    pub import: ImportSection,
    /// Bounds.
    pub limits: Limits,
    /// Logging.
    pub log: Log,
}

impl Config {
    /// Returns the file of the state journal: `journal` beside the database, or beside the directory of the audit log when
    /// the database is no file, unless another is named.
    pub fn journal_path(&self) -> PathBuf {
        let beside = match self.store.engine {
            Engine::Sqlite => &self.store.path,
            Engine::Postgres => &self.audit.directory,
        };
        self.journal.path.clone().unwrap_or_else(|| beside.with_file_name("journal"))
    }
}

/// The gRPC listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Listen {
    /// Address and port; port 0 takes a free one.
    pub address: SocketAddr,
}

impl Default for Listen {
    fn default() -> Self {
        Self { address: ([127, 0, 0, 1], DEFAULT_PORT).into() }
    }
}

/// Certificates of both listeners.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// PEM chain of the server, leaf first.
    pub certificate: PathBuf,
    /// PEM private key.
    pub private_key: PathBuf,
    /// PEM certificates of the CAs that issue client certificates.
    pub client_ca: PathBuf,
    /// PEM revocation lists.
    pub crls: Vec<PathBuf>,
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            certificate: "/etc/holdfast/tls/server.pem".into(),
            private_key: "/etc/holdfast/tls/server.key".into(),
            client_ca: "/etc/holdfast/tls/client-ca.pem".into(),
            crls: Vec::new(),
        }
    }
}

impl Tls {
    /// Returns the files as the TLS store takes them.
    pub fn files(&self) -> TlsFiles {
        let Self { certificate, private_key, client_ca, crls } = self.clone();
        TlsFiles { certificate, private_key, client_ca, crls }
    }
}

/// The admin listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// Address and port; port 0 takes a free one.
    pub address: SocketAddr,
    /// Whether it wants TLS with a client certificate. `false` only on a loopback address.
    pub tls: bool,
    /// From where it may be reached; checked before TLS.
    pub allowed_networks: Vec<Network>,
}

impl Default for Admin {
    fn default() -> Self {
        let loopback = ["127.0.0.0/8", "::1/128"];
        Self {
            address: ([127, 0, 0, 1], DEFAULT_ADMIN_PORT).into(),
            tls: true,
            allowed_networks: loopback.iter().filter_map(|text| text.parse().ok()).collect(),
        }
    }
}

/// The token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HsmSection {
    /// The PKCS#11 module.
    pub module: PathBuf,
    /// Serial number of the token; wins over the label.
    pub token_serial: Option<String>,
    /// Label of the token.
    pub token_label: Option<String>,
    /// Where the user PIN comes from.
    #[serde(deserialize_with = "pin_place")]
    pub pin: SecretPlace,
    /// Worker threads with a session each; 0 takes two, or as many as the token has sessions for.
    pub workers: usize,
    /// Whether each encryption is decrypted again before it is answered; data keys and rewraps always are.
    pub verify_encrypt: bool,
    /// Jobs that may wait.
    pub queue_capacity: usize,
    /// Where a file-based token keeps its files: they are synced before a new token object is acknowledged.
    pub token_dir: Option<PathBuf>,
}

impl Default for HsmSection {
    fn default() -> Self {
        Self {
            module: "/usr/lib/softhsm/libsofthsm2.so".into(),
            token_serial: None,
            token_label: Some("holdfast".to_owned()),
            pin: SecretPlace::Credential("hsm-pin".to_owned()),
            workers: 0,
            verify_encrypt: false,
            queue_capacity: 2048,
            token_dir: None,
        }
    }
}

/// What stands there instead may be the PIN: the error does not show it.
fn pin_place<'de, D: Deserializer<'de>>(from: D) -> Result<SecretPlace, D::Error> {
    SecretPlace::deserialize(from).map_err(|_| {
        D::Error::custom(
            "hsm.pin takes one place where the PIN is, never the PIN: `pin = { file = \"/path\" }`, \
             `{ credential = \"name\" }` or `{ descriptor = 3 }`",
        )
    })
}

/// The database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreSection {
    /// Which database it is.
    pub engine: Engine,
    /// The SQLite file. Its directory is locked by the process that has it open.
    pub path: PathBuf,
    /// How PostgreSQL is reached.
    pub postgres: PostgresSection,
}

impl Default for StoreSection {
    fn default() -> Self {
        Self {
            engine: Engine::Sqlite,
            path: "/var/lib/holdfast/store.db".into(),
            postgres: PostgresSection::default(),
        }
    }
}

impl StoreSection {
    /// Returns which database it is, for people.
    pub fn place(&self) -> String {
        match self.engine {
            Engine::Sqlite => self.path.display().to_string(),
            Engine::Postgres => self.postgres.place(),
        }
    }

    /// Returns the key of the configuration that names it.
    pub const fn key(&self) -> &'static str {
        match self.engine {
            Engine::Sqlite => "store.path",
            Engine::Postgres => "store.postgres",
        }
    }
}

/// Which database it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// A file of this machine.
    Sqlite,
    /// A server, which other machines back up and fail over.
    Postgres,
}

/// The audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuditSection {
    /// The directory of its files.
    pub directory: PathBuf,
}

impl Default for AuditSection {
    fn default() -> Self {
        Self { directory: "/var/lib/holdfast/audit".into() }
    }
}

/// The state journal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JournalSection {
    /// Its file; `journal` beside the database when not given, with PostgreSQL beside the directory of the audit log.
    pub path: Option<PathBuf>,
}

/// Who may do what. Nobody may anything that is not here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Authz {
    /// The grants.
    pub grants: Vec<GrantConfig>,
}

/// Import of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImportSection {
    /// Whether keys may be sealed with RSA-OAEP and SHA-1.
    pub allow_rsa_oaep_sha1: bool,
}

/// Bounds. Those of the domain are fixed and stand in the documentation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Threads that serve requests; 0 takes one a core but one, at least one.
    pub worker_threads: usize,
    /// Connections at a time.
    pub max_connections: usize,
    /// Connections at a time from one address.
    pub max_connections_per_source: usize,
    /// Handshakes at a time.
    pub max_handshakes: usize,
    /// How long a handshake may take, and then the first request.
    pub handshake_timeout_ms: u64,
    /// Requests at a time on one connection.
    pub max_streams: u32,
    /// Silence after which a connection is asked for a sign of life.
    pub keepalive_interval_ms: u64,
    /// How long the sign of life may take.
    pub keepalive_timeout_ms: u64,
    /// How old a connection may get.
    pub max_connection_age_ms: u64,
    /// How long requests may go on after their connection is told to end.
    pub connection_grace_ms: u64,
    /// The longest deadline of a request; also taken when the caller gives none.
    pub max_request_ms: u64,
    /// How long requests in flight may take after SIGTERM.
    pub drain_ms: u64,
    /// Key versions that are kept loaded.
    pub max_loaded_keys: usize,
    /// How long a rolled-over version keeps protecting when pinned: longer than clients cache.
    pub overlap_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        let connection = ConnectionLimits::default();
        let ms = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        Self {
            worker_threads: 0,
            max_connections: connection.max_connections,
            max_connections_per_source: connection.max_connections_per_source,
            max_handshakes: connection.max_handshakes,
            handshake_timeout_ms: ms(connection.handshake_timeout),
            max_streams: connection.max_streams,
            keepalive_interval_ms: ms(connection.keepalive_interval),
            keepalive_timeout_ms: ms(connection.keepalive_timeout),
            max_connection_age_ms: ms(connection.max_age),
            connection_grace_ms: ms(connection.age_grace),
            max_request_ms: 30_000,
            drain_ms: 20_000,
            max_loaded_keys: 10_000,
            overlap_ms: 600_000,
        }
    }
}

impl Limits {
    /// Returns the bounds of a listener.
    pub const fn connection(&self) -> ConnectionLimits {
        ConnectionLimits {
            max_connections: self.max_connections,
            max_connections_per_source: self.max_connections_per_source,
            max_handshakes: self.max_handshakes,
            handshake_timeout: Duration::from_millis(self.handshake_timeout_ms),
            max_streams: self.max_streams,
            keepalive_interval: Duration::from_millis(self.keepalive_interval_ms),
            keepalive_timeout: Duration::from_millis(self.keepalive_timeout_ms),
            max_age: Duration::from_millis(self.max_connection_age_ms),
            age_grace: Duration::from_millis(self.connection_grace_ms),
        }
    }

    /// Returns the longest deadline of a request.
    pub const fn max_request(&self) -> Duration {
        Duration::from_millis(self.max_request_ms)
    }

    /// Returns how long a drain may take.
    pub const fn drain(&self) -> Duration {
        Duration::from_millis(self.drain_ms)
    }
}

/// Logging, to standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Text for people, JSON for machines.
    pub format: LogFormat,
    /// What is worth a line.
    pub level: LogLevel,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One line of text an event.
    #[default]
    Text,
    /// One JSON object an event.
    Json,
}

/// What is worth a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// What an operator must act on.
    Error,
    /// What may need an operator.
    Warn,
    /// Starts, stops, changes.
    #[default]
    Info,
    /// Each request and handshake.
    Debug,
    /// What libraries tell of themselves, too.
    Trace,
}

#[cfg(test)]
mod postgres_tests;
#[cfg(test)]
mod tests;
