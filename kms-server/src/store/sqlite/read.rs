//! The queries. Each runs in one read transaction of one reader connection.

use kms_core::clock::Timestamp;
use kms_core::consumer::ConsumerRow;
use kms_core::id::{KeyUid, KeyVersion, RequestId, Revision};
use kms_core::import_job::ImportJobRow;
use kms_core::key::{CkaId, CounterRow, KeyRow, RowMac, Sealed, VersionRow};
use kms_core::lifecycle::HistoryRow;
use kms_core::manifest::Manifest;
use kms_core::name::TenantName;
use kms_core::root::RootPin;
use kms_core::usage::UsageRow;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, Params};

use crate::store::rows::{self, Row};
use crate::store::{
    DuePosition, HistoryPosition, Intent, JobPosition, KeyRef, ListBy, ListOrder, ListPlace,
    ListPosition, Listed, MAX_LIST_ROWS, RequestRecord, StoreError, StoredKey, VersionChoice,
};

pub(super) fn root_pins(connection: &Connection) -> Result<Vec<(RootPin, RowMac)>, StoreError> {
    many(connection, "SELECT * FROM roots ORDER BY generation", [], rows::root)
}

pub(super) fn key(
    connection: &Connection,
    key: &KeyRef,
    choice: VersionChoice,
) -> Result<Option<StoredKey>, StoreError> {
    let found = match key {
        KeyRef::Name(name) => one(
            connection,
            "SELECT * FROM keys WHERE tenant = ?1 AND key_id = ?2",
            (name.tenant().id(), name.key_id()),
            rows::key,
        ),
        KeyRef::Uid(uid) => {
            one(connection, "SELECT * FROM keys WHERE uid = ?1", [uid.as_bytes()], rows::key)
        }
    }?;
    let Some(key) = found else { return Ok(None) };
    let number = match choice {
        VersionChoice::Primary => key.row.primary,
        VersionChoice::Number(number) => number,
    };
    let version = one(
        connection,
        "SELECT * FROM versions WHERE key_uid = ?1 AND version = ?2",
        (key.row.uid.as_bytes(), number.get()),
        rows::version,
    )?;
    Ok(Some(StoredKey { key, version }))
}

pub(super) fn list_keys(
    connection: &Connection,
    tenant: &TenantName,
    after: Option<ListPosition>,
    limit: u32,
) -> Result<Vec<Sealed<KeyRow>>, StoreError> {
    let limit = limit.min(MAX_LIST_ROWS);
    match after {
        None => many(
            connection,
            "SELECT * FROM keys WHERE tenant = ?1 ORDER BY create_time, uid LIMIT ?2",
            (tenant.id(), limit),
            rows::key,
        ),
        Some(ListPosition { create_time, uid }) => many(
            connection,
            "SELECT * FROM keys WHERE tenant = ?1 AND (create_time, uid) > (?2, ?3)
             ORDER BY create_time, uid LIMIT ?4",
            (tenant.id(), create_time.as_unix_ms(), uid.as_bytes(), limit),
            rows::key,
        ),
    }
}

pub(super) fn list_keys_ordered(
    connection: &Connection,
    tenant: &TenantName,
    order: ListOrder,
    after: Option<ListPlace>,
    limit: u32,
) -> Result<Vec<Sealed<KeyRow>>, StoreError> {
    let ListOrder { by, descending } = order;
    let (sql, from) = match (by, descending, after) {
        (ListBy::CreateTime, false, after) => {
            return list_keys(connection, tenant, after.map(|place| place.position), limit);
        }
        (ListBy::CreateTime, true, None) => (
            "SELECT * FROM keys WHERE tenant = ?1 AND ?2 IS NULL AND ?3 IS NULL
             ORDER BY create_time DESC, uid DESC LIMIT ?4",
            (Value::Null, Value::Null),
        ),
        (ListBy::CreateTime, true, Some(ListPlace { position, .. })) => (
            "SELECT * FROM keys WHERE tenant = ?1 AND (create_time, uid) < (?2, ?3)
             ORDER BY create_time DESC, uid DESC LIMIT ?4",
            (position.create_time.as_unix_ms().into(), position.uid.as_bytes().to_vec().into()),
        ),
        (ListBy::KeyId, false, after) => (
            "SELECT * FROM keys WHERE tenant = ?1 AND key_id > ?2 AND ?3 IS NULL
             ORDER BY key_id LIMIT ?4",
            // No id is empty.
            (after.map_or_else(String::new, |place| place.key_id).into(), Value::Null),
        ),
        (ListBy::KeyId, true, None) => (
            "SELECT * FROM keys WHERE tenant = ?1 AND ?2 IS NULL AND ?3 IS NULL
             ORDER BY key_id DESC LIMIT ?4",
            (Value::Null, Value::Null),
        ),
        (ListBy::KeyId, true, Some(place)) => (
            "SELECT * FROM keys WHERE tenant = ?1 AND key_id < ?2 AND ?3 IS NULL
             ORDER BY key_id DESC LIMIT ?4",
            (place.key_id.into(), Value::Null),
        ),
    };
    let (first, second) = from;
    many(connection, sql, (tenant.id(), first, second, limit.min(MAX_LIST_ROWS)), rows::key)
}

pub(super) fn list_versions(
    connection: &Connection,
    key_uid: KeyUid,
    after: Option<KeyVersion>,
    limit: u32,
) -> Result<Vec<Sealed<VersionRow>>, StoreError> {
    many(
        connection,
        "SELECT * FROM versions WHERE key_uid = ?1 AND version > ?2 ORDER BY version LIMIT ?3",
        (key_uid.as_bytes(), after.map_or(0, KeyVersion::get), limit.min(MAX_LIST_ROWS)),
        rows::version,
    )
}

pub(super) fn last_revision(
    connection: &Connection,
    key_uid: KeyUid,
    version: KeyVersion,
) -> Result<Option<Revision>, StoreError> {
    one(
        connection,
        "SELECT * FROM history WHERE key_uid = ?1 AND version = ?2 ORDER BY revision DESC LIMIT 1",
        (key_uid.as_bytes(), version.get()),
        |row| rows::history(row).map(|entry| entry.row.revision),
    )
}

pub(super) fn list_consumers(
    connection: &Connection,
    key_uid: KeyUid,
) -> Result<Vec<Sealed<ConsumerRow>>, StoreError> {
    many(
        connection,
        "SELECT * FROM consumers WHERE key_uid = ?1 ORDER BY consumer_id LIMIT ?2",
        (key_uid.as_bytes(), MAX_LIST_ROWS),
        rows::consumer,
    )
}

pub(super) fn list_import_jobs(
    connection: &Connection,
    tenant: &TenantName,
) -> Result<Vec<Sealed<ImportJobRow>>, StoreError> {
    many(
        connection,
        "SELECT * FROM import_jobs WHERE tenant = ?1 ORDER BY id LIMIT ?2",
        (tenant.id(), MAX_LIST_ROWS),
        rows::import_job,
    )
}

pub(super) fn due_import_jobs(
    connection: &Connection,
    now: Timestamp,
    after: Option<JobPosition>,
    limit: u32,
) -> Result<Listed<Sealed<ImportJobRow>>, StoreError> {
    let (time, id) = after.map_or((i64::MIN, Vec::new()), |JobPosition { time, id }| {
        (time.as_unix_ms(), id.0.to_vec())
    });
    listed(
        connection,
        "SELECT * FROM import_jobs WHERE expire_time <= ?1 AND (expire_time, id) > (?3, ?4)
         ORDER BY expire_time, id LIMIT ?2",
        (now.as_unix_ms(), limit.min(MAX_LIST_ROWS), time, id),
        rows::import_job,
    )
}

pub(super) fn list_history(
    connection: &Connection,
    key_uid: KeyUid,
    after: Option<HistoryPosition>,
    limit: u32,
) -> Result<Vec<Sealed<HistoryRow>>, StoreError> {
    let limit = limit.min(MAX_LIST_ROWS);
    match after {
        None => many(
            connection,
            "SELECT * FROM history WHERE key_uid = ?1 ORDER BY time, version, revision LIMIT ?2",
            (key_uid.as_bytes(), limit),
            rows::history,
        ),
        Some(HistoryPosition { time, version, revision }) => many(
            connection,
            "SELECT * FROM history WHERE key_uid = ?1 AND (time, version, revision) > (?2, ?3, ?4)
             ORDER BY time, version, revision LIMIT ?5",
            (
                key_uid.as_bytes(),
                time.as_unix_ms(),
                version,
                // What no row can have comes after all.
                i64::try_from(revision.get()).unwrap_or(i64::MAX),
                limit,
            ),
            rows::history,
        ),
    }
}

pub(super) fn counter(
    connection: &Connection,
    key_uid: KeyUid,
    version: KeyVersion,
) -> Result<Option<Sealed<CounterRow>>, StoreError> {
    one(
        connection,
        "SELECT * FROM counters WHERE key_uid = ?1 AND version = ?2",
        (key_uid.as_bytes(), version.get()),
        rows::counter,
    )
}

pub(super) fn usage(
    connection: &Connection,
    key_uid: KeyUid,
    version: KeyVersion,
) -> Result<Option<Sealed<UsageRow>>, StoreError> {
    one(
        connection,
        "SELECT * FROM usage WHERE key_uid = ?1 AND version = ?2",
        (key_uid.as_bytes(), version.get()),
        rows::usage,
    )
}

pub(super) fn manifest(
    connection: &Connection,
    tenant: &TenantName,
) -> Result<Option<Sealed<Manifest>>, StoreError> {
    one(connection, "SELECT * FROM manifests WHERE tenant = ?1", [tenant.id()], rows::manifest)
}

pub(super) fn list_manifests(
    connection: &Connection,
    after: Option<&TenantName>,
    limit: u32,
) -> Result<Vec<Sealed<Manifest>>, StoreError> {
    many(
        connection,
        "SELECT * FROM manifests WHERE tenant > ?1 ORDER BY tenant LIMIT ?2",
        (after.map_or("", TenantName::id), limit.min(MAX_LIST_ROWS)),
        rows::manifest,
    )
}

pub(super) fn request(
    connection: &Connection,
    principal: &str,
    request_id: RequestId,
) -> Result<Option<Sealed<RequestRecord>>, StoreError> {
    one(
        connection,
        "SELECT * FROM requests WHERE principal = ?1 AND request_id = ?2",
        (principal, request_id.as_bytes()),
        rows::request,
    )
}

/// Returns how many requests of a tenant are remembered.
pub(super) fn requests_remembered(
    connection: &Connection,
    tenant: &TenantName,
) -> Result<u64, StoreError> {
    let sql = "SELECT remembered FROM request_counts WHERE tenant = ?1";
    let count: Option<i64> =
        connection.prepare_cached(sql)?.query_row([tenant.id()], |row| row.get(0)).optional()?;
    // The table forbids negative numbers.
    Ok(count.map_or(0, i64::unsigned_abs))
}

pub(super) fn intents(connection: &Connection) -> Result<Listed<Sealed<Intent>>, StoreError> {
    listed(connection, "SELECT * FROM intents ORDER BY time, sequence", [], rows::intent)
}

pub(super) fn primaries_made_before(
    connection: &Connection,
    time: Timestamp,
) -> Result<u64, StoreError> {
    let sql =
        "SELECT count(*) FROM keys JOIN versions ON key_uid = uid AND version = primary_version
        WHERE versions.create_time <= ?1 AND keys.state <> 'DESTROYED'";
    let count: i64 =
        connection.prepare_cached(sql)?.query_row([time.as_unix_ms()], |row| row.get(0))?;
    Ok(u64::try_from(count).unwrap_or(0))
}

pub(super) fn resident_ids(connection: &Connection) -> Result<Listed<CkaId>, StoreError> {
    listed(
        connection,
        "SELECT material FROM versions WHERE material_kind = 'resident' AND state <> 'DESTROYED'
         UNION ALL SELECT id AS material FROM import_jobs",
        [],
        rows::resident_id,
    )
}

pub(super) fn due_deactivations(
    connection: &Connection,
    now: Timestamp,
    after: Option<DuePosition>,
    limit: u32,
) -> Result<Listed<Sealed<VersionRow>>, StoreError> {
    let (time, key_uid, version) = position(after);
    listed(
        connection,
        "SELECT * FROM versions
         WHERE state = 'ACTIVE' AND deactivate_time IS NOT NULL AND deactivate_time <= ?1
         AND (deactivate_time, key_uid, version) > (?3, ?4, ?5)
         ORDER BY deactivate_time, key_uid, version LIMIT ?2",
        (now.as_unix_ms(), limit.min(MAX_LIST_ROWS), time, key_uid, version),
        rows::version,
    )
}

pub(super) fn due_activations(
    connection: &Connection,
    now: Timestamp,
    after: Option<DuePosition>,
    limit: u32,
) -> Result<Listed<Sealed<VersionRow>>, StoreError> {
    let (time, key_uid, version) = position(after);
    listed(
        connection,
        "SELECT versions.* FROM versions JOIN keys ON keys.uid = versions.key_uid
         WHERE versions.state = 'PRE_ACTIVATION' AND activate_time IS NOT NULL
           AND activate_time <= ?1 AND keys.state = 'ENABLED'
         AND (activate_time, key_uid, version) > (?3, ?4, ?5)
         ORDER BY activate_time, key_uid, version LIMIT ?2",
        (now.as_unix_ms(), limit.min(MAX_LIST_ROWS), time, key_uid, version),
        rows::version,
    )
}

pub(super) fn due_rotations(
    connection: &Connection,
    now: Timestamp,
    after: Option<DuePosition>,
    limit: u32,
) -> Result<Listed<Sealed<KeyRow>>, StoreError> {
    let (time, key_uid, _) = position(after);
    listed(
        connection,
        "SELECT keys.* FROM keys
         JOIN versions ON versions.key_uid = keys.uid AND versions.version = keys.primary_version
         WHERE rotate_time IS NOT NULL AND rotate_time <= ?1 AND versions.state = 'ACTIVE'
           AND keys.state = 'ENABLED'
         AND (rotate_time, uid) > (?3, ?4)
         ORDER BY rotate_time, uid LIMIT ?2",
        (now.as_unix_ms(), limit.min(MAX_LIST_ROWS), time, key_uid),
        rows::key,
    )
}

pub(super) fn due_destructions(
    connection: &Connection,
    now: Timestamp,
    after: Option<DuePosition>,
    limit: u32,
) -> Result<Listed<Sealed<VersionRow>>, StoreError> {
    let (time, key_uid, version) = position(after);
    listed(
        connection,
        "SELECT versions.* FROM versions JOIN keys ON keys.uid = versions.key_uid
         WHERE versions.destroy_time IS NOT NULL AND versions.destroy_time <= ?1
           AND (versions.destroy_despite_consumers OR consumer_count = 0)
         AND (versions.destroy_time, key_uid, version) > (?3, ?4, ?5)
         ORDER BY versions.destroy_time, key_uid, version LIMIT ?2",
        (now.as_unix_ms(), limit.min(MAX_LIST_ROWS), time, key_uid, version),
        rows::version,
    )
}

pub(super) fn due_key_destructions(
    connection: &Connection,
    now: Timestamp,
    after: Option<DuePosition>,
    limit: u32,
) -> Result<Listed<Sealed<KeyRow>>, StoreError> {
    let (time, key_uid, _) = position(after);
    listed(
        connection,
        "SELECT * FROM keys
         WHERE destroy_time IS NOT NULL AND destroy_time <= ?1
           AND (destroy_begun OR destroy_despite_consumers OR consumer_count = 0)
         AND (destroy_time, uid) > (?3, ?4)
         ORDER BY destroy_time, uid LIMIT ?2",
        (now.as_unix_ms(), limit.min(MAX_LIST_ROWS), time, key_uid),
        rows::key,
    )
}

/// Returns the columns of a place; before all rows when there is none.
fn position(after: Option<DuePosition>) -> (i64, Vec<u8>, u32) {
    match after {
        None => (i64::MIN, Vec::new(), 0),
        Some(DuePosition { time, key_uid, version }) => {
            (time.as_unix_ms(), key_uid.as_bytes().to_vec(), version)
        }
    }
}

fn one<T>(
    connection: &Connection,
    sql: &str,
    parameters: impl Params,
    decode: impl FnOnce(&dyn Row) -> Result<T, StoreError>,
) -> Result<Option<T>, StoreError> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut found = statement.query(parameters)?;
    found.next()?.map(|row| decode(row)).transpose()
}

pub(super) fn many<T>(
    connection: &Connection,
    sql: &str,
    parameters: impl Params,
    decode: impl Fn(&dyn Row) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut found = statement.query(parameters)?;
    let mut out = Vec::new();
    while let Some(row) = found.next()? {
        out.push(decode(row)?);
    }
    Ok(out)
}

/// Like [`many`], but a row with a value outside its type is counted and does not hide the others.
pub(super) fn listed<T>(
    connection: &Connection,
    sql: &str,
    parameters: impl Params,
    decode: impl Fn(&dyn Row) -> Result<T, StoreError>,
) -> Result<Listed<T>, StoreError> {
    let mut damaged = 0;
    let rows = many(connection, sql, parameters, |row| match decode(row) {
        Ok(row) => Ok(Some(row)),
        Err(StoreError::Damaged { detail }) => {
            tracing::error!(detail, "a stored row cannot be read");
            Ok(None)
        }
        Err(other) => Err(other),
    })?;
    let rows = rows.into_iter().inspect(|row| damaged += usize::from(row.is_none()));
    let rows = rows.flatten().collect();
    Ok(Listed { rows, damaged })
}
