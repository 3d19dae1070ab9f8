//! Writing how versions were used.

use kms_core::id::Revision;
use kms_core::key::Sealed;
use kms_core::usage::{Tally, UsageRow, Uses};
use rusqlite::{Connection, named_params};

use super::sql::{execute, integer};
use crate::store::StoreError;

/// Writes a row at its expected revision; 0 when there is none yet.
pub(super) fn update_usage(
    connection: &Connection,
    expected: Revision,
    usage: &Sealed<UsageRow>,
) -> Result<(), StoreError> {
    let Sealed { row: UsageRow { key_uid, version, uses, revision }, mac, generation } = usage;
    let Uses { protect, process, rewrap, refused } = uses;
    let sql = if expected.get() == 0 {
        "INSERT INTO usage (key_uid, version, protects, first_protect, last_protect, processes,
             first_process, last_process, rewraps, first_rewrap, last_rewrap, refusals,
             first_refusal, last_refusal, revision, generation, mac)
         SELECT :key_uid, :version, :protects, :first_protect, :last_protect, :processes,
             :first_process, :last_process, :rewraps, :first_rewrap, :last_rewrap, :refusals,
             :first_refusal, :last_refusal, :revision, :generation, :mac
         WHERE :expected = 0
         ON CONFLICT DO NOTHING"
    } else {
        "UPDATE usage SET protects = :protects, first_protect = :first_protect,
             last_protect = :last_protect, processes = :processes, first_process = :first_process,
             last_process = :last_process, rewraps = :rewraps, first_rewrap = :first_rewrap,
             last_rewrap = :last_rewrap, refusals = :refusals, first_refusal = :first_refusal,
             last_refusal = :last_refusal, revision = :revision, generation = :generation, mac = :mac
         WHERE key_uid = :key_uid AND version = :version AND revision = :expected"
    };
    let first = |tally: &Tally| tally.span.map(|(first, _)| first.as_unix_ms());
    let last = |tally: &Tally| tally.span.map(|(_, last)| last.as_unix_ms());
    let changed = execute(
        connection,
        sql,
        named_params! {
            ":key_uid": key_uid.as_bytes(),
            ":version": version.get(),
            ":protects": integer(protect.count)?,
            ":first_protect": first(protect),
            ":last_protect": last(protect),
            ":processes": integer(process.count)?,
            ":first_process": first(process),
            ":last_process": last(process),
            ":rewraps": integer(rewrap.count)?,
            ":first_rewrap": first(rewrap),
            ":last_rewrap": last(rewrap),
            ":refusals": integer(refused.count)?,
            ":first_refusal": first(refused),
            ":last_refusal": last(refused),
            ":revision": integer(revision.get())?,
            ":generation": generation.get(),
            ":mac": mac.0,
            ":expected": integer(expected.get())?,
        },
    )?;
    if changed == 1 { Ok(()) } else { Err(StoreError::RevisionMismatch) }
}
