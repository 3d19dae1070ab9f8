//! The database: the one place that knows which concrete store a configuration means.

use std::sync::Arc;

use super::error::StartError;
use super::parts;
use super::steps::on_a_thread;
use crate::config::{Config, Engine, PostgresSection};
use crate::store::Store;
use crate::store::postgres::{PostgresSettings, PostgresStore};
use crate::store::sqlite::SqliteStore;
use crate::transport::tls_client;

/// Opens the database that the configuration names.
pub(super) async fn open_store(config: &Config) -> Result<Arc<dyn Store>, StartError> {
    match config.store.engine {
        Engine::Sqlite => {
            let path = config.store.path.clone();
            let opening = on_a_thread("store-open", move || SqliteStore::open(&path))?;
            let panicked = |_| StartError::Bug("the start of a part panicked");
            Ok(Arc::new(opening.await.map_err(panicked)??))
        }
        Engine::Postgres => {
            let settings = settings(&config.store.postgres)?;
            Ok(Arc::new(PostgresStore::open(settings).await?))
        }
    }
}

/// Reads password and certificates. Short files: nothing is served yet that could wait for them.
fn settings(section: &PostgresSection) -> Result<PostgresSettings, StartError> {
    let read = |place| parts::source(place).and_then(|source| source.read_password());
    let password = section.password.as_ref().map(read).transpose();
    let tls = section.tls_files().map(|files| tls_client::load(&files)).transpose()?;
    Ok(PostgresSettings {
        host: section.host.clone(),
        port: section.port,
        database: section.database.clone(),
        user: section.user.clone(),
        password: password.map_err(StartError::Password)?,
        tls,
        pool_size: section.pool_size,
        connect_timeout: section.connect_timeout(),
        statement_timeout: section.statement_timeout(),
    })
}
