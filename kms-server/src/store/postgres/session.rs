//! A connection on loan from the pool, and the transaction in it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deadpool_postgres::Object;
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_postgres::SimpleQueryMessage;

use super::error::Failure;
use super::holder::superseded;
use crate::store::StoreError;

/// How long a connection whose caller went away may take to give up its transaction; then it is closed.
const GIVE_UP_LIMIT: Duration = Duration::from_secs(5);

/// What a method sees of what others do meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isolation {
    /// One statement, which is a transaction by itself.
    Statement,
    /// Several that read one state, and write nothing.
    Snapshot,
    /// Several that write. Each sees what was committed before it, and waits for whoever has changed the row that it
    /// changes: its precondition is part of the statement, so that it is looked at in the newest row.
    Write,
}

/// A connection on loan. Dropped within a transaction it is not lent again before that is rolled back.
#[derive(Debug)]
pub(super) struct Session {
    client: Option<Object>,
    in_transaction: AtomicBool,
}

impl Session {
    pub(super) const fn new(client: Object) -> Self {
        Self { client: Some(client), in_transaction: AtomicBool::new(false) }
    }

    /// Lends the connection. It is there until the session is dropped.
    pub(super) fn client(&self) -> Result<&Object, Failure> {
        self.client.as_ref().ok_or_else(|| {
            Failure::Final(StoreError::Unavailable { detail: "the session has ended".into() })
        })
    }

    /// Runs statements that have no values.
    pub(super) async fn batch(&self, sql: &str) -> Result<(), Failure> {
        Ok(self.client()?.batch_execute(sql).await?)
    }

    pub(super) async fn begin(&self, isolation: Isolation) -> Result<(), Failure> {
        let sql = match isolation {
            Isolation::Statement => return Ok(()),
            Isolation::Snapshot => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            Isolation::Write => "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
        };
        self.in_transaction.store(true, Ordering::Relaxed);
        self.batch(sql).await
    }

    /// Begins a transaction that writes, with statements that find a row only as long as this server holds the database.
    pub(super) async fn begin_fenced(&self, fence: &str) -> Result<(), Failure> {
        self.in_transaction.store(true, Ordering::Relaxed);
        let answers = self.client()?.simple_query(fence).await?;
        if matches!(answers.last_chunk(), Some([SimpleQueryMessage::Row(_), _])) {
            return Ok(());
        }
        Err(superseded().into())
    }

    /// Commits. What an error means is for the caller to tell.
    pub(super) async fn commit(&self) -> Result<(), Failure> {
        if self.in_transaction.load(Ordering::Relaxed) {
            self.batch("COMMIT").await?;
            self.in_transaction.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Rolls back. When that fails, the connection is not lent again.
    pub(super) async fn roll_back(&self) {
        if self.in_transaction.load(Ordering::Relaxed) && self.batch("ROLLBACK").await.is_ok() {
            self.in_transaction.store(false, Ordering::Relaxed);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let Some(client) = self.client.take() else { return };
        if !*self.in_transaction.get_mut() {
            return;
        }
        match Handle::try_current() {
            Ok(runtime) => {
                runtime.spawn(give_up(client));
            }
            Err(_) => drop(Object::take(client)),
        }
    }
}

/// Ends the transaction of a caller that went away.
async fn give_up(client: Object) {
    let ended = timeout(GIVE_UP_LIMIT, client.batch_execute("ROLLBACK")).await;
    if !matches!(ended, Ok(Ok(()))) {
        drop(Object::take(client));
    }
}
