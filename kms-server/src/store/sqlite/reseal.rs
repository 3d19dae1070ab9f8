//! Rows under older roots: found, counted, and sealed anew; and roots that are retired.

use kms_core::alias::AliasRow;
use kms_core::id::{KeyUid, RootGeneration};
use kms_core::key::{Material, RowMac, Sealed};
use kms_core::name::{KeyName, TenantName};
use kms_core::root::RetiredRoot;
use rusqlite::Connection;

use super::read::{listed, many};
use super::sql::{execute, exists, insert, integer};
use super::write_closing;
use crate::store::rows::{self, Row};
use crate::store::{
    Closing, ListPosition, Listed, MAX_LIST_ROWS, OldCounts, OldRows, RequestPosition,
    RequestRecord, Resealed, RowsLimit, SealedRow, StoreError,
};

pub(super) fn old_rows(
    connection: &Connection,
    tenant: &TenantName,
    current: RootGeneration,
    after: Option<ListPosition>,
    limit: RowsLimit,
) -> Result<OldRows, StoreError> {
    let keys = keys_after(connection, tenant, after, limit.keys)?;
    let mut found = OldRows { whole: after, ..OldRows::default() };
    for (position, name) in keys {
        let before = found.rows.len() + found.damaged;
        let room = limit.rows.saturating_sub(u32::try_from(before).unwrap_or(u32::MAX));
        take_key(connection, position.uid, current, room, &mut found)?;
        found.keys += 1;
        let taken = found.rows.len() + found.damaged;
        if taken > before {
            found.names.insert(position.uid, name);
        }
        if taken >= limit.rows as usize {
            found.cut = Some(position);
            break;
        }
        found.whole = Some(position);
    }
    Ok(found)
}

/// Lists places and names only: rows that cannot be read otherwise are met where they are counted.
fn keys_after(
    connection: &Connection,
    tenant: &TenantName,
    after: Option<ListPosition>,
    limit: u32,
) -> Result<Vec<(ListPosition, KeyName)>, StoreError> {
    let (create_time, uid) = match after {
        None => (i64::MIN, Vec::new()),
        Some(after) => (after.create_time.as_unix_ms(), after.uid.as_bytes().to_vec()),
    };
    many(
        connection,
        "SELECT create_time, uid, tenant, key_id FROM keys WHERE tenant = ?1 AND (create_time, uid) > (?2, ?3)
         ORDER BY create_time, uid LIMIT ?4",
        (tenant.id(), create_time, uid, limit.min(MAX_LIST_ROWS)),
        rows::key_position,
    )
}

/// Takes up to `room` old rows of a key.
fn take_key(
    connection: &Connection,
    uid: KeyUid,
    current: RootGeneration,
    room: u32,
    found: &mut OldRows,
) -> Result<(), StoreError> {
    type Decode = fn(&dyn Row) -> Result<SealedRow, StoreError>;
    let tables: [(&str, Decode); 7] = [
        ("SELECT * FROM keys WHERE uid = ?1 AND generation < ?2 LIMIT ?3", |row| {
            rows::key(row).map(SealedRow::Key)
        }),
        ("SELECT * FROM versions WHERE key_uid = ?1 AND generation < ?2 LIMIT ?3", |row| {
            rows::version(row).map(SealedRow::Version)
        }),
        ("SELECT * FROM counters WHERE key_uid = ?1 AND generation < ?2 LIMIT ?3", |row| {
            rows::counter(row).map(SealedRow::Counter)
        }),
        ("SELECT * FROM usage WHERE key_uid = ?1 AND generation < ?2 LIMIT ?3", |row| {
            rows::usage(row).map(SealedRow::Usage)
        }),
        ("SELECT * FROM consumers WHERE key_uid = ?1 AND generation < ?2 LIMIT ?3", |row| {
            rows::consumer(row).map(SealedRow::Consumer)
        }),
        ("SELECT * FROM aliases WHERE key_uid = ?1 AND generation < ?2 LIMIT ?3", |row| {
            rows::alias(row).map(SealedRow::Alias)
        }),
        ("SELECT * FROM history WHERE key_uid = ?1 AND generation < ?2 LIMIT ?3", |row| {
            rows::history(row).map(SealedRow::History)
        }),
    ];
    let mut room = room as usize;
    for (sql, decode) in tables {
        let limit = i64::try_from(room).unwrap_or(i64::MAX);
        let taken = listed(connection, sql, (uid.as_bytes(), current.get(), limit), decode)?;
        room = room.saturating_sub(taken.rows.len() + taken.damaged);
        found.rows.extend(taken.rows);
        found.damaged += taken.damaged;
        if room == 0 {
            break;
        }
    }
    Ok(())
}

pub(super) fn old_requests(
    connection: &Connection,
    current: RootGeneration,
    after: Option<&RequestPosition>,
    limit: u32,
) -> Result<Listed<Sealed<RequestRecord>>, StoreError> {
    let (principal, id) = match after {
        None => ("", Vec::new()),
        Some((principal, id)) => (principal.as_str(), id.as_bytes().to_vec()),
    };
    listed(
        connection,
        "SELECT * FROM requests WHERE (principal, request_id) > (?1, ?2) AND generation < ?3
         ORDER BY principal, request_id LIMIT ?4",
        (principal, id, current.get(), limit.min(MAX_LIST_ROWS)),
        rows::request,
    )
}

pub(super) fn reseal(
    connection: &Connection,
    rows: &[Resealed],
    closing: &Closing,
    max_requests: u64,
) -> Result<(), StoreError> {
    write_closing::apply(connection, closing, max_requests)?;
    for Resealed { expected, row } in rows {
        if !row.is_in_manifest() {
            let detail = "a row that no manifest covers is sealed with one".into();
            return Err(StoreError::Damaged { detail });
        }
        if replace_seal(connection, *expected, row)? != 1 {
            return Err(StoreError::RevisionMismatch);
        }
    }
    Ok(())
}

pub(super) fn reseal_loose(connection: &Connection, rows: &[Resealed]) -> Result<u64, StoreError> {
    let mut written = 0;
    for Resealed { expected, row } in rows {
        if row.is_in_manifest() {
            let detail = "a row that a manifest covers is sealed without it".into();
            return Err(StoreError::Damaged { detail });
        }
        written += replace_seal(connection, *expected, row)?;
    }
    Ok(written)
}

/// Writes generation and MAC of a row, and of a version its material.
fn replace_seal(
    connection: &Connection,
    expected: RowMac,
    row: &SealedRow,
) -> Result<u64, StoreError> {
    match row {
        SealedRow::Key(Sealed { row, mac, generation }) => execute(
            connection,
            "UPDATE keys SET generation = ?2, mac = ?3 WHERE uid = ?1 AND mac = ?4",
            (row.uid.as_bytes(), generation.get(), mac.0, expected.0),
        ),
        SealedRow::Version(Sealed { row, mac, generation }) => {
            let material: &[u8] = match &row.material {
                Material::Wrapped(blob) => &blob.0,
                Material::Resident(id) => &id.0,
            };
            execute(
                connection,
                "UPDATE versions SET material = ?3, generation = ?4, mac = ?5
                 WHERE key_uid = ?1 AND version = ?2 AND mac = ?6",
                (
                    row.key_uid.as_bytes(),
                    row.version.get(),
                    material,
                    generation.get(),
                    mac.0,
                    expected.0,
                ),
            )
        }
        SealedRow::History(Sealed { row, mac, generation }) => execute(
            connection,
            "UPDATE history SET generation = ?4, mac = ?5
             WHERE key_uid = ?1 AND version = ?2 AND revision = ?3 AND mac = ?6",
            (
                row.key_uid.as_bytes(),
                row.version_number(),
                integer(row.revision.get())?,
                generation.get(),
                mac.0,
                expected.0,
            ),
        ),
        SealedRow::Consumer(Sealed { row, mac, generation }) => execute(
            connection,
            "UPDATE consumers SET generation = ?3, mac = ?4
             WHERE key_uid = ?1 AND consumer_id = ?2 AND mac = ?5",
            (row.key_uid.as_bytes(), &row.consumer_id, generation.get(), mac.0, expected.0),
        ),
        SealedRow::Alias(Sealed { row, mac, generation }) => {
            let AliasRow { name, .. } = row;
            execute(
                connection,
                "UPDATE aliases SET generation = ?3, mac = ?4
                 WHERE tenant = ?1 AND alias_id = ?2 AND mac = ?5",
                (name.tenant().id(), name.alias_id(), generation.get(), mac.0, expected.0),
            )
        }
        SealedRow::ImportJob(Sealed { row, mac, generation }) => execute(
            connection,
            "UPDATE import_jobs SET generation = ?2, mac = ?3 WHERE id = ?1 AND mac = ?4",
            (row.id.0, generation.get(), mac.0, expected.0),
        ),
        SealedRow::Counter(Sealed { row, mac, generation }) => execute(
            connection,
            "UPDATE counters SET generation = ?3, mac = ?4
             WHERE key_uid = ?1 AND version = ?2 AND mac = ?5",
            (row.key_uid.as_bytes(), row.version.get(), generation.get(), mac.0, expected.0),
        ),
        SealedRow::Usage(Sealed { row, mac, generation }) => execute(
            connection,
            "UPDATE usage SET generation = ?3, mac = ?4
             WHERE key_uid = ?1 AND version = ?2 AND mac = ?5",
            (row.key_uid.as_bytes(), row.version.get(), generation.get(), mac.0, expected.0),
        ),
        SealedRow::Request(Sealed { row, mac, generation }) => execute(
            connection,
            "UPDATE requests SET generation = ?3, mac = ?4
             WHERE principal = ?1 AND request_id = ?2 AND mac = ?5",
            (&row.principal, row.request_id.as_bytes(), generation.get(), mac.0, expected.0),
        ),
        SealedRow::Manifest(Sealed { row, mac, generation }) => execute(
            connection,
            "UPDATE manifests SET generation = ?2, mac = ?3 WHERE tenant = ?1 AND mac = ?4",
            (row.tenant.id(), generation.get(), mac.0, expected.0),
        ),
    }
}

pub(super) fn old_counts(
    connection: &Connection,
    current: RootGeneration,
) -> Result<OldCounts, StoreError> {
    let count = |table: &str| -> Result<u64, StoreError> {
        let sql = format!("SELECT count(*) FROM {table} WHERE generation < ?1");
        let count: i64 =
            connection.prepare_cached(&sql)?.query_row([current.get()], |row| row.get(0))?;
        Ok(count.unsigned_abs())
    };
    Ok(OldCounts {
        keys: count("keys")?,
        versions: count("versions")?,
        history: count("history")?,
        consumers: count("consumers")?,
        aliases: count("aliases")?,
        import_jobs: count("import_jobs")?,
        counters: count("counters")?,
        usage: count("usage")?,
        manifests: count("manifests")?,
        requests: count("requests")?,
        intents: count("intents")?,
    })
}

pub(super) fn retired_roots(
    connection: &Connection,
) -> Result<Vec<Sealed<RetiredRoot>>, StoreError> {
    many(connection, "SELECT * FROM retired_roots ORDER BY retired", [], rows::retired_root)
}

pub(super) fn retire_root(
    connection: &Connection,
    retired: &Sealed<RetiredRoot>,
) -> Result<(), StoreError> {
    let Sealed { row, mac, generation } = retired;
    let number = row.retired.get();
    if !exists(connection, "SELECT 1 FROM roots WHERE generation = ?1", [number])? {
        return Err(StoreError::NotFound);
    }
    let next = number.checked_add(1).and_then(RootGeneration::new);
    let next = next.ok_or(StoreError::RevisionMismatch)?;
    if old_counts(connection, next)?.total() > 0 {
        return Err(StoreError::RevisionMismatch);
    }
    insert(
        connection,
        "INSERT INTO retired_roots (retired, time, actor, reason, generation, mac)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        (number, row.time.as_unix_ms(), &row.actor, &row.reason, generation.get(), mac.0),
        StoreError::RevisionMismatch,
    )
}
