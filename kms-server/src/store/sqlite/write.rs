//! The mutations. Each runs in its own savepoint on the writer's connection; an error undoes all that it wrote.

use kms_core::clock::Timestamp;
use kms_core::id::Revision;
use kms_core::key::{CounterRow, KeyRow, RowMac, Sealed, VersionRow};
use kms_core::root::RootPin;
use rusqlite::Connection;

use super::aliases::is_taken;
use super::sql::{execute, insert, integer};
use super::write_closing::apply;
use super::write_import_jobs::use_up;
use super::write_rows::{
    insert_counter, insert_key, insert_version, replace_key, replace_version, require_primary,
};
use crate::store::{Closing, NewKey, Rollover, Staging, StoreError, Successor};

pub(super) fn add_root_pin(
    connection: &Connection,
    pin: &RootPin,
    mac: RowMac,
) -> Result<(), StoreError> {
    let RootPin { generation, token_serial, wrap_id, wrap_check, mac_id, mac_check } = pin;
    insert(
        connection,
        "INSERT INTO roots (generation, token_serial, wrap_id, wrap_check, mac_id, mac_check, mac)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        (generation.get(), token_serial, wrap_id.0, wrap_check, mac_id.0, mac_check, mac.0),
        StoreError::RevisionMismatch,
    )
}

pub(super) fn create_key(
    connection: &Connection,
    new: &NewKey,
    closing: &Closing,
    max_requests: u64,
) -> Result<(), StoreError> {
    apply(connection, closing, max_requests)?;
    let name = &new.key.row.name;
    if is_taken(connection, name.tenant(), name.key_id())? {
        return Err(StoreError::NameTaken);
    }
    insert_key(connection, &new.key)?;
    insert_version(connection, &new.version)?;
    insert_counter(connection, &new.counter)?;
    use_up(connection, new.import_job.as_ref())?;
    require_primary(connection, &new.key.row)
}

pub(super) fn update_key(
    connection: &Connection,
    expected: Revision,
    key: &Sealed<KeyRow>,
    closing: &Closing,
    max_requests: u64,
) -> Result<(), StoreError> {
    apply(connection, closing, max_requests)?;
    replace_key(connection, expected, key)?;
    require_primary(connection, &key.row)
}

pub(super) fn roll_over(
    connection: &Connection,
    rollover: &Rollover,
    closing: &Closing,
    max_requests: u64,
) -> Result<(), StoreError> {
    let Rollover { expected_key, key, successor, expected_previous, previous } = rollover;
    apply(connection, closing, max_requests)?;
    replace_key(connection, *expected_key, key)?;
    match successor {
        Successor::New { version, counter } => {
            insert_version(connection, version)?;
            insert_counter(connection, counter)?;
        }
        Successor::Staged { expected, version } => {
            replace_version(connection, *expected, version)?;
        }
    }
    replace_version(connection, *expected_previous, previous)?;
    require_primary(connection, &key.row)
}

pub(super) fn stage(
    connection: &Connection,
    staging: &Staging,
    closing: &Closing,
    max_requests: u64,
) -> Result<(), StoreError> {
    let Staging { expected_key, key, version, counter, import_job } = staging;
    apply(connection, closing, max_requests)?;
    replace_key(connection, *expected_key, key)?;
    insert_version(connection, version)?;
    insert_counter(connection, counter)?;
    use_up(connection, import_job.as_ref())
}

pub(super) fn update_version(
    connection: &Connection,
    expected: Revision,
    version: &Sealed<VersionRow>,
    closing: &Closing,
    max_requests: u64,
) -> Result<(), StoreError> {
    apply(connection, closing, max_requests)?;
    replace_version(connection, expected, version)
}

pub(super) fn update_counter(
    connection: &Connection,
    expected: Revision,
    counter: &Sealed<CounterRow>,
) -> Result<(), StoreError> {
    let Sealed { row: CounterRow { key_uid, version, leased, revision }, mac, generation } =
        counter;
    let changed = execute(
        connection,
        "UPDATE counters SET leased = ?3, revision = ?4, generation = ?5, mac = ?6
         WHERE key_uid = ?1 AND version = ?2 AND revision = ?7",
        (
            key_uid.as_bytes(),
            version.get(),
            integer(*leased)?,
            integer(revision.get())?,
            generation.get(),
            mac.0,
            integer(expected.get())?,
        ),
    )?;
    if changed == 1 {
        return Ok(());
    }
    let there = super::read::counter(connection, *key_uid, *version)?.is_some();
    Err(if there { StoreError::RevisionMismatch } else { StoreError::NotFound })
}

pub(super) fn probe(connection: &Connection, now: Timestamp) -> Result<(), StoreError> {
    execute(
        connection,
        "INSERT INTO probe (id, time) VALUES (1, ?1)
         ON CONFLICT (id) DO UPDATE SET time = excluded.time",
        [now.as_unix_ms()],
    )?;
    let stored: i64 =
        connection.query_row("SELECT time FROM probe WHERE id = 1", [], |row| row.get(0))?;
    if stored == now.as_unix_ms() {
        return Ok(());
    }
    Err(StoreError::Damaged { detail: "a row just written reads back differently".into() })
}
