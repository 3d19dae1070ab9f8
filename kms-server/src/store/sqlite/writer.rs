//! The writer thread: all methods that wait run in one transaction, a savepoint each, and share one commit.
//!
//! Invariant: a method is answered only after the commit that holds it, and a failed commit fails the whole group, so
//! nothing is half done; `a_failed_commit_fails_the_whole_group` would fail.

use crossbeam_channel::Receiver;
use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::store::StoreError;

/// The most methods in one commit: bounds the time that the first of them waits for the last.
pub(super) const MAX_GROUP: usize = 256;

/// A method on its way to the writer.
pub(super) trait WriteJob: Send {
    /// Runs inside a savepoint; remembers its result and says whether to keep what it wrote.
    fn run(&mut self, connection: &Connection) -> Result<(), StoreError>;

    /// Answers the caller, with the group's error if there was one.
    fn answer(self: Box<Self>, group: Result<(), StoreError>);
}

/// A closure and the place where its answer goes.
pub(super) struct Task<T, F> {
    body: Option<F>,
    result: Option<Result<T, StoreError>>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> Task<T, F>
where
    T: Send,
    F: FnOnce(&Connection) -> Result<T, StoreError> + Send,
{
    /// Makes a job and the receiver of its answer.
    pub(super) fn new(body: F) -> (Self, oneshot::Receiver<Result<T, StoreError>>) {
        let (reply, receiver) = oneshot::channel();
        (Self { body: Some(body), result: None, reply }, receiver)
    }

    /// Runs outside of a group and answers: for readers.
    pub(super) fn run_and_answer(mut self, connection: &Connection) {
        let outcome = self.perform(connection);
        self.deliver(outcome);
    }

    fn perform(&mut self, connection: &Connection) -> Result<(), StoreError> {
        let Some(body) = self.body.take() else { return Ok(()) };
        let result = body(connection);
        let outcome = result.as_ref().map(|_| ()).map_err(Clone::clone);
        self.result = Some(result);
        outcome
    }

    fn deliver(self, group: Result<(), StoreError>) {
        let answer = match (group, self.result) {
            // Even a refusal may rest on what an earlier method of the group wrote, so the group's error comes first.
            (Err(group), _) => Err(group),
            (Ok(()), Some(own)) => own,
            (Ok(()), None) => Err(StoreError::Unavailable { detail: "not run".into() }),
        };
        // A caller that no longer waits does not want its answer.
        let _ = self.reply.send(answer);
    }
}

impl<T, F> WriteJob for Task<T, F>
where
    T: Send,
    F: FnOnce(&Connection) -> Result<T, StoreError> + Send,
{
    fn run(&mut self, connection: &Connection) -> Result<(), StoreError> {
        self.perform(connection)
    }

    fn answer(self: Box<Self>, group: Result<(), StoreError>) {
        (*self).deliver(group);
    }
}

/// Serves jobs until all senders are gone.
pub(super) fn serve(connection: &Connection, jobs: &Receiver<Box<dyn WriteJob>>) {
    let mut told = Told::default();
    while let Ok(first) = jobs.recv() {
        let mut group = vec![first];
        while group.len() < MAX_GROUP {
            let Ok(next) = jobs.try_recv() else { break };
            group.push(next);
        }
        let outcome = run_group(connection, &mut group);
        if told.is_news(&outcome) {
            match &outcome {
                Ok(()) => tracing::info!("the database can be written again"),
                Err(error) => {
                    tracing::error!(%error, methods = group.len(), "a group of store methods failed");
                }
            }
        }
        for job in group {
            job.answer(outcome.clone());
        }
    }
}

/// Says once that groups fail, and once that they do not any more: on a full disk they fail by the hundred.
#[derive(Default)]
struct Told(Option<StoreError>);

impl Told {
    fn is_news(&mut self, outcome: &Result<(), StoreError>) -> bool {
        let error = outcome.as_ref().err();
        let news = self.0.as_ref() != error;
        if news {
            self.0 = error.cloned();
        }
        news
    }
}

fn run_group(connection: &Connection, group: &mut [Box<dyn WriteJob>]) -> Result<(), StoreError> {
    let outcome = begin_and_commit(connection, group);
    if outcome.is_err() && !connection.is_autocommit() {
        connection.execute_batch("ROLLBACK")?;
    }
    outcome
}

fn begin_and_commit(
    connection: &Connection,
    group: &mut [Box<dyn WriteJob>],
) -> Result<(), StoreError> {
    connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    for job in group {
        connection.prepare_cached("SAVEPOINT job")?.execute([])?;
        let outcome = job.run(connection);
        if connection.is_autocommit() {
            // SQLite gave the transaction up: what earlier jobs wrote is gone too.
            return Err(outcome.err().unwrap_or_else(|| StoreError::Unwritable {
                detail: "the transaction was rolled back".into(),
            }));
        }
        if outcome.is_err() {
            connection.prepare_cached("ROLLBACK TO job")?.execute([])?;
        }
        connection.prepare_cached("RELEASE job")?.execute([])?;
    }
    connection.prepare_cached("COMMIT")?.execute([])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_once_until_it_changes_or_is_over() {
        let failed = |detail: &str| Err(StoreError::Unwritable { detail: detail.into() });
        let mut told = Told::default();
        assert!(!told.is_news(&Ok(())));
        assert!(told.is_news(&failed("full")));
        assert!(!told.is_news(&failed("full")));
        assert!(told.is_news(&failed("read-only")));
        assert!(told.is_news(&Ok(())));
        assert!(!told.is_news(&Ok(())));
        assert!(told.is_news(&failed("full")));
    }
}
