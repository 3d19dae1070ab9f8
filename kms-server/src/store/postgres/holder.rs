//! Who holds the database: one server at a time, until servers tell each other what they changed.
//!
//! A server keeps keys in memory, and what another writes does not reach it there. So each takes a lock of the database in
//! a connection of its own; PostgreSQL releases it when that connection ends, whatever happened to the server. While it
//! is lost, no method is answered. It is taken again as soon as that can be, unless another server was there in
//! between: then what this one knows may be old, and it answers nothing until it is started again.
//!
//! That the lock is lost is heard a little late, so each transaction that writes is fenced: it looks who signed last, under
//! a second lock that whoever signs waits for. What a server writes that has lost the database is refused by the
//! database (`a_store_that_another_server_held_the_database_of_answers_nothing_any_more`). This file is all that keeps
//! servers apart: nothing else of this store needs to be alone.

use std::time::Duration;

use data_encoding::HEXLOWER;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::error::Failure;
use super::pool::{Dial, Link};
use crate::store::StoreError;

/// `HOLDFAST`.
const LOCK: i64 = i64::from_be_bytes(*b"HOLDFAST");
/// Held by who signs, and shared by who writes. `HOLDSIGN`.
const SIGN: i64 = i64::from_be_bytes(*b"HOLDSIGN");
/// How long a start waits for the lock: a server that was killed loses it as soon as its socket is seen to be closed.
const WAIT_MS: u32 = 2000;
/// How often a lost lock is tried for.
const RETRY: Duration = Duration::from_millis(500);

/// What tells one run of a server from all others.
pub(super) type Instance = [u8; 16];

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Held,
    Refusing(StoreError),
}

/// The lock. Dropped, it is released.
#[derive(Debug)]
pub(super) struct Holder {
    state: watch::Receiver<State>,
    release: watch::Sender<bool>,
}

/// A connection that holds the lock.
pub(super) struct Held(Link);

/// Takes the lock.
pub(super) async fn take(dial: &Dial) -> Result<Held, Failure> {
    let link = dial.dial().await?;
    let sql = format!(
        "SET lock_timeout = {WAIT_MS}; SET statement_timeout = 0; SELECT pg_advisory_lock({LOCK})"
    );
    match link.0.batch_execute(&sql).await {
        Ok(()) => Ok(Held(link)),
        Err(error)
            if error.code() == Some(&tokio_postgres::error::SqlState::LOCK_NOT_AVAILABLE) =>
        {
            let detail = "another server holds the database".into();
            Err(Failure::Final(StoreError::Unavailable { detail }))
        }
        Err(error) => Err(error.into()),
    }
}

impl Held {
    /// Writes down who holds it now, when whoever held it before has nothing left to commit.
    pub(super) async fn sign(&self, instance: &Instance) -> Result<(), Failure> {
        let sql = format!(
            "BEGIN; SELECT pg_advisory_xact_lock({SIGN});
             INSERT INTO holder (id, instance) VALUES (1, '{}')
             ON CONFLICT (id) DO UPDATE SET instance = excluded.instance; COMMIT",
            literal(instance)
        );
        Ok(self.0.0.batch_execute(&sql).await?)
    }

    /// Returns whether nobody held it since `instance` did.
    async fn is_of(&self, instance: &Instance) -> Result<bool, Failure> {
        let rows = self.0.0.query("SELECT instance FROM holder", &[]).await?;
        let last = rows.first().and_then(|row| row.try_get::<_, Vec<u8>>(0).ok());
        Ok(last.as_deref() == Some(instance.as_slice()))
    }

    /// Keeps the lock, taking it again when it is lost.
    pub(super) fn keep(self, dial: Dial, instance: Instance) -> Holder {
        let (told, state) = watch::channel(State::Held);
        let (release, released) = watch::channel(false);
        tokio::spawn(keep(self, dial, instance, told, released));
        Holder { state, release }
    }
}

impl Holder {
    /// Refuses while the lock is not held.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        match &*self.state.borrow() {
            State::Held => Ok(()),
            State::Refusing(error) => Err(error.clone()),
        }
    }

    /// Gives the lock back, and returns when it is.
    pub(super) async fn release(&self) {
        let _ = self.release.send(true);
        // The task that keeps it ends with it.
        let mut state = self.state.clone();
        while state.changed().await.is_ok() {}
    }
}

/// Returns how a transaction that writes begins. Each statement sees what was committed before it, so the look at who
/// signed comes after the wait for who signs.
pub(super) fn fence(instance: &Instance) -> String {
    format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;
         SELECT pg_advisory_xact_lock_shared({SIGN});
         SELECT 1 FROM holder WHERE instance = '{}'",
        literal(instance)
    )
}

fn literal(instance: &Instance) -> String {
    format!("\\x{}", HEXLOWER.encode(instance))
}

/// Another server took the database over.
pub(super) fn superseded() -> StoreError {
    let detail = "another server has held the database: start this one again".into();
    StoreError::Unavailable { detail }
}

async fn keep(
    held: Held,
    dial: Dial,
    instance: Instance,
    told: watch::Sender<State>,
    mut release: watch::Receiver<bool>,
) {
    let Held((mut client, mut connection)) = held;
    loop {
        tokio::select! {
            _ = &mut connection => {}
            () = released(&mut release) => {
                drop(client);
                // The server has released the lock when it has closed its end.
                let _ = connection.await;
                return;
            }
        }
        tracing::error!("the lock on the database is lost; nothing is answered until it is back");
        let detail = "the lock on the database is lost".into();
        let _ = told.send(State::Refusing(StoreError::Unavailable { detail }));
        let again = tokio::select! {
            again = take_again(&dial, &instance) => again,
            () = released(&mut release) => return,
        };
        let Some(Held(link)) = again else {
            tracing::error!("another server has held the database; this one must be started again");
            let _ = told.send(State::Refusing(superseded()));
            return;
        };
        (client, connection) = link;
        tracing::info!("the lock on the database is back");
        let _ = told.send(State::Held);
    }
}

/// Waits until the lock is no longer wanted: it is given back, or the store is gone.
async fn released(release: &mut watch::Receiver<bool>) {
    let _ = release.wait_for(|released| *released).await;
}

/// Takes the lock as soon as it can be taken; `None` when another server had it in between.
async fn take_again(dial: &Dial, instance: &Instance) -> Option<Held> {
    let mut ticks = interval(RETRY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Ok(held) = take(dial).await else { continue };
        match held.is_of(instance).await {
            Ok(true) => return Some(held),
            Ok(false) => return None,
            Err(_) => {}
        }
    }
}

/// A connection that could hold the lock and does not: for tests.
#[cfg(test)]
pub(super) async fn unlocked(dial: &Dial) -> Held {
    Held(dial.dial().await.unwrap())
}
