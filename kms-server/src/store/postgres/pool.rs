//! Connections: how they are made, set up, lent and bounded.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{
    Connect, Hook, HookError, Manager, ManagerConfig, PoolError, RecyclingMethod, Runtime,
    TimeoutType,
};
use kms_core::secret::Password;
use rustls::ClientConfig;
use tokio::task::JoinHandle;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error::{Failure, with_cause};
use super::session::Session;
use crate::store::StoreError;

/// The port that PostgreSQL has unless told otherwise.
pub const DEFAULT_PORT: u16 = 5432;
/// Connections for methods: a method takes a few round trips and one fsync, and those of one tenant wait for each other.
pub const DEFAULT_POOL_SIZE: usize = 8;
/// The most connections: PostgreSQL's own default is 100 for everybody, and each is a process.
pub const MAX_POOL_SIZE: usize = 64;
/// How long a connection may take to be made.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a statement may take. The slowest counts the rows of all keys.
pub const DEFAULT_STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);

/// Everything of ours is in this schema of the database.
pub(super) const SCHEMA: &str = "holdfast";
/// How long a silent connection is left alone, and how often the other side is then asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// How a database is reached.
#[derive(Clone)]
pub struct PostgresSettings {
    /// Name or address of the server, or the absolute path of its socket's directory.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Name of the database.
    pub database: String,
    /// The role.
    pub user: String,
    /// The role's password; `None` when the server takes a certificate or the peer's user instead.
    pub password: Option<Password>,
    /// With this the connection is TLS or is not made. `None`: a socket, or TCP in the clear.
    pub tls: Option<Arc<ClientConfig>>,
    /// Connections for methods; one more holds the database. Between 1 and [`MAX_POOL_SIZE`].
    pub pool_size: usize,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How long a statement may take, and a method wait for a connection. It waits half as long for a lock.
    pub statement_timeout: Duration,
}

impl PostgresSettings {
    /// Returns the usual settings: port 5432, no password, no TLS.
    pub fn new(host: String, database: String, user: String) -> Self {
        Self {
            host,
            port: DEFAULT_PORT,
            database,
            user,
            password: None,
            tls: None,
            pool_size: DEFAULT_POOL_SIZE,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            statement_timeout: DEFAULT_STATEMENT_TIMEOUT,
        }
    }

    fn config(&self) -> Config {
        let mut config = Config::new();
        config
            .host(&self.host)
            .port(self.port)
            .dbname(&self.database)
            .user(&self.user)
            .application_name("holdfast")
            .connect_timeout(self.connect_timeout)
            .tcp_user_timeout(self.statement_timeout)
            .keepalives_idle(KEEPALIVE)
            .keepalives_interval(KEEPALIVE)
            .ssl_mode(if self.tls.is_some() { SslMode::Require } else { SslMode::Disable });
        if let Some(password) = &self.password {
            config.password(password.expose());
        }
        config
    }

    /// What every connection is told first. No value of it comes from a caller.
    fn setup(&self) -> String {
        let statement = self.statement_timeout.as_millis();
        // Without an order of its own the schema of temporary tables would come first.
        format!(
            "SET search_path = {SCHEMA}, pg_temp;
             SET statement_timeout = {statement};
             SET lock_timeout = {lock};
             SET idle_in_transaction_session_timeout = {statement};
             SET client_min_messages = warning;
             SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout';
             SELECT set_config('synchronous_commit',
                 CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END,
                 false)",
            lock = (statement / 2).max(1),
        )
    }
}

impl fmt::Debug for PostgresSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresSettings")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("database", &self.database)
            .field("user", &self.user)
            .field("password", &self.password)
            .field("tls", &self.tls.is_some())
            .field("pool_size", &self.pool_size)
            .field("connect_timeout", &self.connect_timeout)
            .field("statement_timeout", &self.statement_timeout)
            .finish()
    }
}

/// Makes connections.
#[derive(Clone)]
pub(super) struct Dial {
    config: Config,
    tls: Option<MakeRustlsConnect>,
    setup: Arc<str>,
}

/// A connection, and the task that moves its bytes; the task ends with the connection.
pub(super) type Link = (Client, JoinHandle<()>);

impl Dial {
    pub(super) fn new(settings: &PostgresSettings) -> Self {
        let tls = settings.tls.as_ref();
        Self {
            config: settings.config(),
            tls: tls.map(|tls| MakeRustlsConnect::new(ClientConfig::clone(tls))),
            setup: settings.setup().into(),
        }
    }

    /// Makes one connection outside of the pool.
    pub(super) async fn dial(&self) -> Result<Link, Failure> {
        let link = self.open(&self.config).await.map_err(|error| refused(&error))?;
        link.0.batch_execute(&self.setup).await?;
        Ok(link)
    }

    async fn open(&self, config: &Config) -> Result<Link, tokio_postgres::Error> {
        /// That a connection has ended is told by whoever uses it next.
        async fn run(connection: impl Future<Output = Result<(), tokio_postgres::Error>>) {
            if let Err(error) = connection.await {
                let code = error.code().map(|code| code.code().to_owned());
                tracing::debug!(code, "a connection to the database has ended");
            }
        }
        if let Some(tls) = self.tls.clone() {
            let (client, connection) = config.connect(tls).await?;
            return Ok((client, tokio::spawn(run(connection))));
        }
        let (client, connection) = config.connect(NoTls).await?;
        Ok((client, tokio::spawn(run(connection))))
    }
}

impl Connect for Dial {
    fn connect(
        &self,
        config: &Config,
    ) -> Pin<Box<dyn Future<Output = Result<Link, tokio_postgres::Error>> + Send + '_>> {
        let config = config.clone();
        Box::pin(async move { self.open(&config).await })
    }
}

/// The connections that methods borrow.
#[derive(Clone)]
pub(super) struct Pool(deadpool_postgres::Pool);

impl Pool {
    /// Makes no connection yet.
    pub(super) fn new(settings: &PostgresSettings, dial: Dial) -> Result<Self, StoreError> {
        let (config, setup) = (dial.config.clone(), Arc::clone(&dial.setup));
        let fast = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let pool = deadpool_postgres::Pool::builder(Manager::from_connect(config, dial, fast))
            .max_size(settings.pool_size.clamp(1, MAX_POOL_SIZE))
            .wait_timeout(Some(settings.statement_timeout))
            .create_timeout(Some(settings.connect_timeout))
            .recycle_timeout(Some(settings.connect_timeout))
            .runtime(Runtime::Tokio1)
            .post_create(Hook::async_fn(move |client, _| {
                let setup = Arc::clone(&setup);
                Box::pin(
                    async move { client.batch_execute(&setup).await.map_err(HookError::Backend) },
                )
            }))
            .build();
        let pool = pool.map_err(|error| StoreError::Unavailable { detail: error.to_string() })?;
        Ok(Self(pool))
    }

    /// Borrows a connection, waiting for one when all are lent.
    pub(super) async fn session(&self) -> Result<Session, StoreError> {
        match self.0.get().await {
            Ok(client) => Ok(Session::new(client)),
            Err(PoolError::Timeout(TimeoutType::Wait)) => Err(StoreError::Saturated),
            Err(PoolError::Timeout(TimeoutType::Create | TimeoutType::Recycle)) => {
                Err(unreachable_server("no answer in time"))
            }
            Err(PoolError::Backend(error)) => Err(refused(&error).into_error()),
            Err(PoolError::PostCreateHook(HookError::Backend(error))) => {
                Err(Failure::from(error).into_error())
            }
            Err(PoolError::PostCreateHook(HookError::Message(text))) => {
                Err(unreachable_server(&text))
            }
            Err(PoolError::Closed) => Err(super::stopped()),
            Err(PoolError::NoRuntimeSpecified) => Err(unreachable_server("no runtime")),
        }
    }

    /// Lends no more.
    pub(super) fn close(&self) {
        self.0.close();
    }

    /// Takes a connection out for good: for tests, that find all taken then.
    #[cfg(test)]
    pub(super) async fn borrow(&self) -> deadpool_postgres::Object {
        self.0.get().await.unwrap()
    }
}

fn unreachable_server(detail: &str) -> StoreError {
    StoreError::Unavailable { detail: format!("cannot connect: {detail}") }
}

/// What it means that a connection was not made.
fn refused(error: &tokio_postgres::Error) -> Failure {
    let detail = match error.as_db_error() {
        Some(refusal) if refusal.code().code().starts_with("28") => {
            let code = refusal.code().code();
            format!("the login was refused: {} (SQLSTATE {code})", refusal.message())
        }
        Some(refusal) => format!("cannot connect: {}", refusal.message()),
        None => format!("cannot connect: {}", with_cause(error)),
    };
    Failure::Final(StoreError::Unavailable { detail })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_and_connections_do_not_show_the_password() {
        let mut settings = PostgresSettings::new("h".into(), "d".into(), "u".into());
        settings.password = Some(Password::new("canary".into()));
        assert!(!format!("{settings:?}").contains("canary"), "{settings:?}");
        let config = settings.config();
        assert!(!format!("{config:?}").contains("canary"), "{config:?}");
    }
}
