//! The PostgreSQL store: for servers that keep their keys in a database of their own operation.
//!
//! Responsible for the second implementation of [`Store`](super::Store). Every method is one transaction; its preconditions
//! are parts of its statements, so it waits only for who changes the same rows (docs/adr/0024-postgresql-store.md).
//! It must never say that something is stored that a crash of the server may undo, or that it is not when the commit was
//! merely not answered.
//!
//! A mutation whose commit was not answered is decided by its intent. Of other methods that is an error whose text says
//! that it may have happened; each can be asked again, or is seen by the next `intents`.

mod aliases;
mod check;
#[cfg(test)]
mod doubt_tests;
mod error;
mod holder;
mod migrate;
mod pool;
mod read;
mod read_due;
mod reseal;
mod row;
mod session;
mod sql;
mod store;
#[cfg(test)]
mod tests;
mod transaction;
mod write;
mod write_closing;
mod write_consumers;
mod write_import_jobs;
mod write_rows;
mod write_usage;

use std::fmt;
use std::time::Duration;

use tokio::sync::Semaphore;

use self::error::Failure;
use self::holder::{Holder, Instance};
use self::pool::{Dial, Pool};
use super::{MAX_REMEMBERED_REQUESTS, StoreError};

pub use self::pool::{
    DEFAULT_CONNECT_TIMEOUT, DEFAULT_POOL_SIZE, DEFAULT_PORT, DEFAULT_STATEMENT_TIMEOUT,
    MAX_POOL_SIZE, PostgresSettings,
};

/// Methods that may run or wait for a connection; more are refused with `Saturated`.
pub const QUEUE: u32 = 1024;

/// A store in a PostgreSQL database.
pub struct PostgresStore {
    pool: Pool,
    holder: Holder,
    /// How a transaction that writes begins.
    fence: String,
    slots: Semaphore,
    max_requests: u64,
    statement_timeout: Duration,
    place: String,
}

impl PostgresStore {
    /// Connects, checks the server, takes the database for this process, and brings its schema to this release's.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the server cannot be reached or refuses the login, or another server holds the
    /// database; [`StoreError::Unwritable`] when it is a standby, or is told to forget on a crash; [`StoreError::Schema`]
    /// when it is too old, or the schema is of a newer release.
    pub async fn open(settings: PostgresSettings) -> Result<Self, StoreError> {
        Self::open_with(settings, MAX_REMEMBERED_REQUESTS).await
    }

    async fn open_with(settings: PostgresSettings, max_requests: u64) -> Result<Self, StoreError> {
        let dial = Dial::new(&settings);
        let pool = Pool::new(&settings, dial.clone())?;
        let session = pool.session().await?;
        check::check(&session).await.map_err(Failure::into_error)?;
        let held = holder::take(&dial).await.map_err(Failure::into_error)?;
        migrate::migrate(&session, migrate::MIGRATIONS).await.map_err(Failure::into_error)?;
        let instance = random()?;
        held.sign(&instance).await.map_err(Failure::into_error)?;
        Ok(Self {
            pool,
            holder: held.keep(dial, instance),
            fence: holder::fence(&instance),
            slots: Semaphore::new(QUEUE as usize),
            max_requests,
            statement_timeout: settings.statement_timeout,
            place: format!("{}:{}/{}", settings.host, settings.port, settings.database),
        })
    }

    /// Lends no more connections, and waits for methods that run.
    async fn stop(&self) {
        // An error means that it is closed already.
        if let Ok(all) = self.slots.acquire_many(QUEUE).await {
            self.slots.close();
            drop(all);
        }
        self.pool.close();
        self.holder.release().await;
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").field("place", &self.place).finish_non_exhaustive()
    }
}

fn random() -> Result<Instance, StoreError> {
    let mut instance = Instance::default();
    aws_lc_rs::rand::fill(&mut instance).map_err(|_| StoreError::Unavailable {
        detail: "the system gives no random numbers".into(),
    })?;
    Ok(instance)
}

fn stopped() -> StoreError {
    StoreError::Unavailable { detail: "the store is closed".into() }
}
