//! Writing what is counted: leases of invocations, and how versions were used. Many rows share one commit.

use kms_core::id::{KeyUid, KeyVersion, Revision};
use kms_core::key::{CounterRow, Sealed};
use kms_core::usage::{Tally, UsageRow, Uses};

use super::error::Failure;
use super::session::Session;
use super::sql::{execute, integer, values};
use crate::store::StoreError;

type Outcomes = Vec<Result<(), StoreError>>;

pub(super) async fn update_counters(
    db: &Session,
    changes: &[(Revision, Sealed<CounterRow>)],
) -> Result<Outcomes, Failure> {
    let mut outcomes = vec![Ok(()); changes.len()];
    let place = |counter: &CounterRow| (counter.key_uid, counter.version);
    for number in in_order(changes.iter().map(|(_, counter)| place(&counter.row))) {
        let Some((expected, counter)) = changes.get(number) else { continue };
        db.batch("SAVEPOINT one").await?;
        let ended = keep_or_undo(db, update_counter(db, *expected, counter).await).await?;
        if let Some(outcome) = outcomes.get_mut(number) {
            *outcome = ended;
        }
    }
    Ok(outcomes)
}

pub(super) async fn update_usage(
    db: &Session,
    changes: &[(Revision, Sealed<UsageRow>)],
) -> Result<Outcomes, Failure> {
    let mut outcomes = vec![Ok(()); changes.len()];
    let place = |usage: &UsageRow| (usage.key_uid, usage.version);
    for number in in_order(changes.iter().map(|(_, usage)| place(&usage.row))) {
        let Some((expected, usage)) = changes.get(number) else { continue };
        db.batch("SAVEPOINT one").await?;
        let ended = keep_or_undo(db, update_use(db, *expected, usage).await).await?;
        if let Some(outcome) = outcomes.get_mut(number) {
            *outcome = ended;
        }
    }
    Ok(outcomes)
}

/// Returns the numbers of changes in the order of their rows. Whoever changes several locks them in this order, so that no
/// two wait for each other. Those of one row stay in the order that they came in.
fn in_order(places: impl Iterator<Item = (KeyUid, KeyVersion)>) -> Vec<usize> {
    let mut numbered: Vec<_> = places.enumerate().collect();
    numbered.sort_by_key(|(_, (uid, version))| (*uid.as_bytes(), *version));
    numbered.into_iter().map(|(number, _)| number).collect()
}

/// Ends the savepoint of one row. What is wrong with the row is its own outcome; that the database fails is everybody's.
async fn keep_or_undo(
    db: &Session,
    outcome: Result<(), Failure>,
) -> Result<Result<(), StoreError>, Failure> {
    let refused = match outcome {
        Ok(()) => {
            db.batch("RELEASE one").await?;
            return Ok(Ok(()));
        }
        Err(Failure::Final(error)) => error,
        Err(failure) => return Err(failure),
    };
    if matches!(refused, StoreError::Unwritable { .. } | StoreError::Unavailable { .. }) {
        return Err(refused.into());
    }
    db.batch("ROLLBACK TO one; RELEASE one").await?;
    Ok(Err(refused))
}

async fn update_counter(
    db: &Session,
    expected: Revision,
    counter: &Sealed<CounterRow>,
) -> Result<(), Failure> {
    let Sealed { row: CounterRow { key_uid, version, leased, revision }, mac, generation } =
        counter;
    let changed = execute(
        db,
        "UPDATE counters SET leased = $3, revision = $4, generation = $5, mac = $6
         WHERE key_uid = $1 AND version = $2 AND revision = $7",
        &values![
            key_uid.as_bytes(),
            version.get(),
            integer(*leased)?,
            integer(revision.get())?,
            generation.get(),
            &mac.0,
            integer(expected.get())?,
        ],
    )
    .await?;
    if changed == 1 {
        return Ok(());
    }
    let there = super::read::counter(db, *key_uid, *version).await?.is_some();
    Err(if there { StoreError::RevisionMismatch } else { StoreError::NotFound }.into())
}

/// Writes a row at its expected revision; 0 when there is none yet.
async fn update_use(
    db: &Session,
    expected: Revision,
    usage: &Sealed<UsageRow>,
) -> Result<(), Failure> {
    let Sealed { row: UsageRow { key_uid, version, uses, revision }, mac, generation } = usage;
    let Uses { protect, process, rewrap, refused } = uses;
    let sql = if expected.get() == 0 {
        "INSERT INTO usage (key_uid, version, protects, first_protect, last_protect, processes,
             first_process, last_process, rewraps, first_rewrap, last_rewrap, refusals,
             first_refusal, last_refusal, revision, generation, mac)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
         ON CONFLICT DO NOTHING"
    } else {
        "UPDATE usage SET protects = $3, first_protect = $4, last_protect = $5, processes = $6,
             first_process = $7, last_process = $8, rewraps = $9, first_rewrap = $10,
             last_rewrap = $11, refusals = $12, first_refusal = $13, last_refusal = $14,
             revision = $15, generation = $16, mac = $17
         WHERE key_uid = $1 AND version = $2 AND revision = $18"
    };
    let first = |tally: &Tally| tally.span.map(|(first, _)| first.as_unix_ms());
    let last = |tally: &Tally| tally.span.map(|(_, last)| last.as_unix_ms());
    let mut values = values![
        key_uid.as_bytes(),
        version.get(),
        integer(protect.count)?,
        first(protect),
        last(protect),
        integer(process.count)?,
        first(process),
        last(process),
        integer(rewrap.count)?,
        first(rewrap),
        last(rewrap),
        integer(refused.count)?,
        first(refused),
        last(refused),
        integer(revision.get())?,
        generation.get(),
        &mac.0,
    ]
    .to_vec();
    if expected.get() != 0 {
        values.push(integer(expected.get())?.into());
    }
    let changed = execute(db, sql, &values).await?;
    if changed == 1 { Ok(()) } else { Err(StoreError::RevisionMismatch.into()) }
}
