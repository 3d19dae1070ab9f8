//! The queries. Each is one statement, or runs in a transaction that sees one state of the database.

use kms_core::clock::Timestamp;
use kms_core::consumer::ConsumerRow;
use kms_core::id::{IntentId, KeyUid, KeyVersion, RequestId, Revision};
use kms_core::import_job::ImportJobRow;
use kms_core::key::{CkaId, CounterRow, KeyRow, RowMac, Sealed, VersionRow};
use kms_core::lifecycle::HistoryRow;
use kms_core::manifest::Manifest;
use kms_core::name::TenantName;
use kms_core::root::RootPin;
use kms_core::usage::UsageRow;

use super::error::Failure;
use super::session::Session;
use super::sql::{count, listed, many, one, values};
use crate::store::rows;
use crate::store::{
    HistoryPosition, Intent, KeyRef, ListBy, ListOrder, ListPlace, ListPosition, Listed,
    MAX_LIST_ROWS, RequestRecord, StoredKey, VersionChoice,
};

pub(super) async fn root_pins(db: &Session) -> Result<Vec<(RootPin, RowMac)>, Failure> {
    many(db, "SELECT * FROM roots ORDER BY generation", &[], rows::root).await
}

pub(super) async fn key(
    db: &Session,
    key: &KeyRef,
    choice: VersionChoice,
) -> Result<Option<StoredKey>, Failure> {
    let found = match key {
        KeyRef::Name(name) => {
            one(
                db,
                "SELECT * FROM keys WHERE tenant = $1 AND key_id = $2",
                &values![name.tenant().id(), name.key_id()],
                rows::key,
            )
            .await
        }
        KeyRef::Uid(uid) => {
            one(db, "SELECT * FROM keys WHERE uid = $1", &values![uid.as_bytes()], rows::key).await
        }
    }?;
    let Some(key) = found else { return Ok(None) };
    let number = match choice {
        VersionChoice::Primary => key.row.primary,
        VersionChoice::Number(number) => number,
    };
    let version = one(
        db,
        "SELECT * FROM versions WHERE key_uid = $1 AND version = $2",
        &values![key.row.uid.as_bytes(), number.get()],
        rows::version,
    )
    .await?;
    Ok(Some(StoredKey { key, version }))
}

pub(super) async fn list_keys(
    db: &Session,
    tenant: &TenantName,
    after: Option<ListPosition>,
    limit: u32,
) -> Result<Vec<Sealed<KeyRow>>, Failure> {
    let limit = limit.min(MAX_LIST_ROWS);
    match after {
        None => {
            many(
                db,
                "SELECT * FROM keys WHERE tenant = $1 ORDER BY create_time, uid LIMIT $2",
                &values![tenant.id(), limit],
                rows::key,
            )
            .await
        }
        Some(ListPosition { create_time, uid }) => {
            many(
                db,
                "SELECT * FROM keys WHERE tenant = $1 AND (create_time, uid) > ($2, $3)
             ORDER BY create_time, uid LIMIT $4",
                &values![tenant.id(), create_time.as_unix_ms(), uid.as_bytes(), limit],
                rows::key,
            )
            .await
        }
    }
}

pub(super) async fn list_keys_ordered(
    db: &Session,
    tenant: &TenantName,
    order: ListOrder,
    after: Option<&ListPlace>,
    limit: u32,
) -> Result<Vec<Sealed<KeyRow>>, Failure> {
    let ListOrder { by, descending } = order;
    let limit = limit.min(MAX_LIST_ROWS);
    match (by, descending, after) {
        (ListBy::CreateTime, false, after) => {
            list_keys(db, tenant, after.map(|place| place.position), limit).await
        }
        (ListBy::CreateTime, true, None) => {
            let sql = "SELECT * FROM keys WHERE tenant = $1
                ORDER BY create_time DESC, uid DESC LIMIT $2";
            many(db, sql, &values![tenant.id(), limit], rows::key).await
        }
        (ListBy::CreateTime, true, Some(ListPlace { position, .. })) => {
            let sql = "SELECT * FROM keys WHERE tenant = $1 AND (create_time, uid) < ($2, $3)
                ORDER BY create_time DESC, uid DESC LIMIT $4";
            let ListPosition { create_time, uid } = position;
            let values = values![tenant.id(), create_time.as_unix_ms(), uid.as_bytes(), limit];
            many(db, sql, &values, rows::key).await
        }
        (ListBy::KeyId, false, after) => {
            let sql = "SELECT * FROM keys WHERE tenant = $1 AND key_id > $2
                ORDER BY key_id LIMIT $3";
            // No id is empty.
            let after = after.as_ref().map_or("", |place| place.key_id.as_str());
            many(db, sql, &values![tenant.id(), after, limit], rows::key).await
        }
        (ListBy::KeyId, true, None) => {
            let sql = "SELECT * FROM keys WHERE tenant = $1 ORDER BY key_id DESC LIMIT $2";
            many(db, sql, &values![tenant.id(), limit], rows::key).await
        }
        (ListBy::KeyId, true, Some(place)) => {
            let sql = "SELECT * FROM keys WHERE tenant = $1 AND key_id < $2
                ORDER BY key_id DESC LIMIT $3";
            many(db, sql, &values![tenant.id(), &place.key_id, limit], rows::key).await
        }
    }
}

pub(super) async fn list_versions(
    db: &Session,
    key_uid: KeyUid,
    after: Option<KeyVersion>,
    limit: u32,
) -> Result<Vec<Sealed<VersionRow>>, Failure> {
    many(
        db,
        "SELECT * FROM versions WHERE key_uid = $1 AND version > $2 ORDER BY version LIMIT $3",
        &values![key_uid.as_bytes(), after.map_or(0, KeyVersion::get), limit.min(MAX_LIST_ROWS)],
        rows::version,
    )
    .await
}

pub(super) async fn last_revision(
    db: &Session,
    key_uid: KeyUid,
    version: KeyVersion,
) -> Result<Option<Revision>, Failure> {
    one(
        db,
        "SELECT * FROM history WHERE key_uid = $1 AND version = $2 ORDER BY revision DESC LIMIT 1",
        &values![key_uid.as_bytes(), version.get()],
        |row| rows::history(row).map(|entry| entry.row.revision),
    )
    .await
}

pub(super) async fn list_consumers(
    db: &Session,
    key_uid: KeyUid,
) -> Result<Vec<Sealed<ConsumerRow>>, Failure> {
    many(
        db,
        "SELECT * FROM consumers WHERE key_uid = $1 ORDER BY consumer_id LIMIT $2",
        &values![key_uid.as_bytes(), MAX_LIST_ROWS],
        rows::consumer,
    )
    .await
}

pub(super) async fn list_import_jobs(
    db: &Session,
    tenant: &TenantName,
) -> Result<Vec<Sealed<ImportJobRow>>, Failure> {
    many(
        db,
        "SELECT * FROM import_jobs WHERE tenant = $1 ORDER BY id LIMIT $2",
        &values![tenant.id(), MAX_LIST_ROWS],
        rows::import_job,
    )
    .await
}

pub(super) async fn list_history(
    db: &Session,
    key_uid: KeyUid,
    after: Option<HistoryPosition>,
    limit: u32,
) -> Result<Vec<Sealed<HistoryRow>>, Failure> {
    let limit = limit.min(MAX_LIST_ROWS);
    match after {
        None => many(
            db,
            "SELECT * FROM history WHERE key_uid = $1 ORDER BY time, version, revision LIMIT $2",
            &values![key_uid.as_bytes(), limit],
            rows::history,
        )
        .await,
        Some(HistoryPosition { time, version, revision }) => many(
            db,
            "SELECT * FROM history WHERE key_uid = $1 AND (time, version, revision) > ($2, $3, $4)
             ORDER BY time, version, revision LIMIT $5",
            &values![
                key_uid.as_bytes(),
                time.as_unix_ms(),
                version,
                // What no row can have comes after all.
                i64::try_from(revision.get()).unwrap_or(i64::MAX),
                limit,
            ],
            rows::history,
        )
        .await,
    }
}

pub(super) async fn counter(
    db: &Session,
    key_uid: KeyUid,
    version: KeyVersion,
) -> Result<Option<Sealed<CounterRow>>, Failure> {
    one(
        db,
        "SELECT * FROM counters WHERE key_uid = $1 AND version = $2",
        &values![key_uid.as_bytes(), version.get()],
        rows::counter,
    )
    .await
}

pub(super) async fn usage(
    db: &Session,
    key_uid: KeyUid,
    version: KeyVersion,
) -> Result<Option<Sealed<UsageRow>>, Failure> {
    one(
        db,
        "SELECT * FROM usage WHERE key_uid = $1 AND version = $2",
        &values![key_uid.as_bytes(), version.get()],
        rows::usage,
    )
    .await
}

pub(super) async fn manifest(
    db: &Session,
    tenant: &TenantName,
) -> Result<Option<Sealed<Manifest>>, Failure> {
    one(db, "SELECT * FROM manifests WHERE tenant = $1", &values![tenant.id()], rows::manifest)
        .await
}

pub(super) async fn list_manifests(
    db: &Session,
    after: Option<&TenantName>,
    limit: u32,
) -> Result<Vec<Sealed<Manifest>>, Failure> {
    many(
        db,
        "SELECT * FROM manifests WHERE tenant > $1 ORDER BY tenant LIMIT $2",
        &values![after.map_or("", TenantName::id), limit.min(MAX_LIST_ROWS)],
        rows::manifest,
    )
    .await
}

pub(super) async fn request(
    db: &Session,
    principal: &str,
    request_id: RequestId,
) -> Result<Option<Sealed<RequestRecord>>, Failure> {
    one(
        db,
        "SELECT * FROM requests WHERE principal = $1 AND request_id = $2",
        &values![principal, request_id.as_bytes()],
        rows::request,
    )
    .await
}

/// Returns how many requests of a tenant are remembered.
pub(super) async fn requests_remembered(db: &Session, tenant: &TenantName) -> Result<u64, Failure> {
    let sql = "SELECT remembered AS count FROM request_counts WHERE tenant = $1";
    count(db, sql, &values![tenant.id()]).await
}

/// Waits for transactions that change an intent: of one whose commit was not answered it then says what became of it.
pub(super) async fn intents(db: &Session) -> Result<Listed<Sealed<Intent>>, Failure> {
    let sql = "SELECT * FROM intents ORDER BY time, sequence FOR SHARE";
    listed(db, sql, &[], rows::intent).await
}

/// Reads one intent, waiting as [`intents`] does.
pub(super) async fn intent_to_share(
    db: &Session,
    intent: IntentId,
) -> Result<Option<Sealed<Intent>>, Failure> {
    let sql = "SELECT * FROM intents WHERE id = $1 FOR SHARE";
    one(db, sql, &values![intent.as_bytes()], rows::intent).await
}

pub(super) async fn resident_ids(db: &Session) -> Result<Listed<CkaId>, Failure> {
    listed(
        db,
        "SELECT material FROM versions WHERE material_kind = 'resident' AND state <> 'DESTROYED'
         UNION ALL SELECT id AS material FROM import_jobs",
        &[],
        rows::resident_id,
    )
    .await
}

pub(super) async fn primaries_made_before(db: &Session, time: Timestamp) -> Result<u64, Failure> {
    let sql = "SELECT count(*) AS count FROM keys
        JOIN versions ON key_uid = uid AND version = primary_version
        WHERE versions.create_time <= $1 AND keys.state <> 'DESTROYED'";
    count(db, sql, &values![time.as_unix_ms()]).await
}
