//! Writing how versions were used.

use kms_core::id::Revision;
use kms_core::key::Sealed;
use kms_core::usage::{Tally, UsageRow, Uses};
use rusqlite::Connection;

use super::sql::{execute, integer};
use crate::store::StoreError;

/// Writes a row at its expected revision; 0 when there is none yet.
pub(super) fn update_usage(
    connection: &Connection,
    expected: Revision,
    usage: &Sealed<UsageRow>,
) -> Result<(), StoreError> {
    let Sealed { row: UsageRow { key_uid, version, uses, revision }, mac, generation } = usage;
    let Uses { protect, process, rewrap } = uses;
    let sql = if expected.get() == 0 {
        "INSERT INTO usage (key_uid, version, protects, first_protect, last_protect, processes,
             first_process, last_process, rewraps, first_rewrap, last_rewrap, revision,
             generation, mac)
         SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14 WHERE ?15 = 0
         ON CONFLICT DO NOTHING"
    } else {
        "UPDATE usage SET protects = ?3, first_protect = ?4, last_protect = ?5, processes = ?6,
             first_process = ?7, last_process = ?8, rewraps = ?9, first_rewrap = ?10,
             last_rewrap = ?11, revision = ?12, generation = ?13, mac = ?14
         WHERE key_uid = ?1 AND version = ?2 AND revision = ?15"
    };
    let first = |tally: &Tally| tally.span.map(|(first, _)| first.as_unix_ms());
    let last = |tally: &Tally| tally.span.map(|(_, last)| last.as_unix_ms());
    let changed = execute(
        connection,
        sql,
        (
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
            integer(revision.get())?,
            generation.get(),
            mac.0,
            integer(expected.get())?,
        ),
    )?;
    if changed == 1 { Ok(()) } else { Err(StoreError::RevisionMismatch) }
}
