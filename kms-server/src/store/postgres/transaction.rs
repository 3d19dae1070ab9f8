//! How a method becomes a transaction: lent a connection, tried again when others were in the way, and decided when its
//! commit was not answered.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::SemaphorePermit;
use tokio::sync::TryAcquireError;
use tokio::time::timeout;

use super::error::Failure;
use super::session::{Isolation, Session};
use super::{PostgresStore, read, stopped};
use crate::store::{Closing, StoreError};

/// How often a transaction is tried that others were in the way of, or whose connection was lost before its commit.
pub(super) const MAX_ATTEMPTS: u32 = 5;
/// How long those who were in the way have to get through, times the attempts made: tried again at once, a transaction may
/// take what they have just been given before they wake. They are not given up at the same time, so no chance is needed.
const PAUSE: Duration = Duration::from_millis(20);
/// How many statements' time a transaction may take before its answer is no longer waited for.
const STATEMENTS: u32 = 3;

/// How a method ended that did not succeed.
enum Ending {
    /// Nothing happened.
    Refused(StoreError),
    /// The commit was not answered: it may have happened, or be about to.
    InDoubt(StoreError),
}

/// How one attempt ended that did not succeed.
enum Attempt {
    Failed(Failure),
    InDoubt(StoreError),
}

impl PostgresStore {
    /// Runs a query of one statement.
    pub(super) async fn query<T, F, R>(&self, body: F) -> Result<T, StoreError>
    where
        T: Send,
        F: Fn(Arc<Session>) -> R + Send + Sync,
        R: Future<Output = Result<T, Failure>> + Send,
    {
        self.run(Isolation::Statement, body).await.map_err(Ending::into_error)
    }

    /// Runs several queries that see one state.
    pub(super) async fn snapshot<T, F, R>(&self, body: F) -> Result<T, StoreError>
    where
        T: Send,
        F: Fn(Arc<Session>) -> R + Send + Sync,
        R: Future<Output = Result<T, Failure>> + Send,
    {
        self.run(Isolation::Snapshot, body).await.map_err(Ending::into_error)
    }

    /// Runs a change that is in doubt when its commit was not answered, and says so.
    pub(super) async fn write<T, F, R>(&self, body: F) -> Result<T, StoreError>
    where
        T: Send,
        F: Fn(Arc<Session>) -> R + Send + Sync,
        R: Future<Output = Result<T, Failure>> + Send,
    {
        self.run(Isolation::Write, body).await.map_err(Ending::into_error)
    }

    /// Runs a change that may happen twice.
    pub(super) async fn write_again<T, F, R>(&self, body: F) -> Result<T, StoreError>
    where
        T: Send,
        F: Fn(Arc<Session>) -> R + Send + Sync,
        R: Future<Output = Result<T, Failure>> + Send,
    {
        match self.run(Isolation::Write, &body).await {
            Err(Ending::InDoubt(_)) => self.write(body).await,
            ended => ended.map_err(Ending::into_error),
        }
    }

    /// Runs a mutation. Its intent tells whether it happened when its commit was not answered.
    pub(super) async fn mutate<F, R>(&self, closing: &Closing, body: F) -> Result<(), StoreError>
    where
        F: Fn(Arc<Session>) -> R + Send + Sync,
        R: Future<Output = Result<(), Failure>> + Send,
    {
        match self.run(Isolation::Write, body).await {
            Ok(()) => Ok(()),
            Err(Ending::Refused(error)) => Err(error),
            Err(Ending::InDoubt(error)) => self.decide(closing, error).await,
        }
    }

    /// Reads from the intent whether a mutation happened. A transaction that still runs is waited for: it has changed the
    /// intent first of all, and whoever reads it to share waits for that.
    async fn decide(&self, closing: &Closing, doubt: StoreError) -> Result<(), StoreError> {
        let intent = &closing.intent;
        let id = intent.row.id;
        let found = self.query(|db| async move { read::intent_to_share(&db, id).await }).await;
        match found {
            Ok(Some(found)) if found == *intent => Ok(()),
            Ok(Some(found)) if found.row.applied.is_none() => Err(StoreError::Unavailable {
                detail: "the connection was lost at the commit, and nothing was changed".into(),
            }),
            // Nobody can tell now. The intent does later, or the request id.
            Ok(_) | Err(_) => Err(doubt),
        }
    }

    async fn run<T, F, R>(&self, isolation: Isolation, body: F) -> Result<T, Ending>
    where
        T: Send,
        F: Fn(Arc<Session>) -> R + Send + Sync,
        R: Future<Output = Result<T, Failure>> + Send,
    {
        let _slot = self.admit().map_err(Ending::Refused)?;
        let mut attempts = 1;
        loop {
            match self.attempt(isolation, &body).await {
                Ok(value) => return Ok(value),
                Err(Attempt::InDoubt(error)) => return Err(Ending::InDoubt(error)),
                Err(Attempt::Failed(Failure::Collided(_) | Failure::Lost(_)))
                    if attempts < MAX_ATTEMPTS =>
                {
                    // Nothing tells when they are through.
                    let _ = timeout(PAUSE * attempts, std::future::pending::<()>()).await;
                    attempts += 1;
                }
                Err(Attempt::Failed(failure)) => {
                    return Err(Ending::Refused(failure.into_error()));
                }
            }
        }
    }

    async fn attempt<T, F, R>(&self, isolation: Isolation, body: &F) -> Result<T, Attempt>
    where
        T: Send,
        F: Fn(Arc<Session>) -> R + Send + Sync,
        R: Future<Output = Result<T, Failure>> + Send,
    {
        let session = self.pool.session().await.map_err(|error| Attempt::Failed(error.into()))?;
        let session = Arc::new(session);
        let work = async {
            match isolation {
                Isolation::Write => session.begin_fenced(&self.fence).await?,
                Isolation::Statement | Isolation::Snapshot => session.begin(isolation).await?,
            }
            body(Arc::clone(&session)).await
        };
        match timeout(self.statement_timeout * STATEMENTS, work).await {
            Ok(Ok(value)) => self.commit(&session, isolation).await.map(|()| value),
            Ok(Err(failure)) => {
                let _ = timeout(self.statement_timeout, session.roll_back()).await;
                Err(Attempt::Failed(failure))
            }
            Err(_) => {
                let detail = "the database does not answer".into();
                Err(Attempt::Failed(StoreError::Unavailable { detail }.into()))
            }
        }
    }

    async fn commit(&self, session: &Session, isolation: Isolation) -> Result<(), Attempt> {
        let in_doubt = |detail: String| {
            let detail = format!("the commit was not answered, it may have happened: {detail}");
            Attempt::InDoubt(StoreError::Unavailable { detail })
        };
        match timeout(self.statement_timeout, session.commit()).await {
            Ok(Ok(())) => Ok(()),
            // What only read has nothing to be in doubt about.
            Ok(Err(failure)) if isolation != Isolation::Write => Err(Attempt::Failed(failure)),
            // Of a session that ends while it commits nobody knows whether it had.
            Ok(Err(Failure::Lost(error))) => Err(in_doubt(error.to_string())),
            Ok(Err(refused)) => Err(Attempt::Failed(refused)),
            Err(_) => Err(in_doubt("it took too long".into())),
        }
    }

    fn admit(&self) -> Result<SemaphorePermit<'_>, StoreError> {
        let slot = self.slots.try_acquire().map_err(|refused| match refused {
            TryAcquireError::NoPermits => StoreError::Saturated,
            TryAcquireError::Closed => stopped(),
        })?;
        self.holder.check()?;
        Ok(slot)
    }
}

impl Ending {
    fn into_error(self) -> StoreError {
        match self {
            Self::Refused(error) | Self::InDoubt(error) => error,
        }
    }
}
