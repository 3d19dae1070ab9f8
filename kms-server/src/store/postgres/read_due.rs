//! The queries for what is due. Each goes on behind a place, so that what cannot be done now does not hide the rest.

use kms_core::clock::Timestamp;
use kms_core::import_job::ImportJobRow;
use kms_core::key::{KeyRow, Sealed, VersionRow};

use super::error::Failure;
use super::session::Session;
use super::sql::{listed, values};
use crate::store::rows;
use crate::store::{DuePosition, JobPosition, Listed, MAX_LIST_ROWS};

pub(super) async fn due_import_jobs(
    db: &Session,
    now: Timestamp,
    after: Option<JobPosition>,
    limit: u32,
) -> Result<Listed<Sealed<ImportJobRow>>, Failure> {
    let (time, id) = after.map_or((i64::MIN, Vec::new()), |JobPosition { time, id }| {
        (time.as_unix_ms(), id.0.to_vec())
    });
    listed(
        db,
        "SELECT * FROM import_jobs WHERE expire_time <= $1 AND (expire_time, id) > ($3, $4)
         ORDER BY expire_time, id LIMIT $2",
        &values![now.as_unix_ms(), limit.min(MAX_LIST_ROWS), time, &id],
        rows::import_job,
    )
    .await
}

pub(super) async fn due_deactivations(
    db: &Session,
    now: Timestamp,
    after: Option<DuePosition>,
    limit: u32,
) -> Result<Listed<Sealed<VersionRow>>, Failure> {
    let (time, key_uid, version) = position(after);
    listed(
        db,
        "SELECT * FROM versions
         WHERE state = 'ACTIVE' AND deactivate_time IS NOT NULL AND deactivate_time <= $1
         AND (deactivate_time, key_uid, version) > ($3, $4, $5)
         ORDER BY deactivate_time, key_uid, version LIMIT $2",
        &values![now.as_unix_ms(), limit.min(MAX_LIST_ROWS), time, &key_uid, version],
        rows::version,
    )
    .await
}

pub(super) async fn due_activations(
    db: &Session,
    now: Timestamp,
    after: Option<DuePosition>,
    limit: u32,
) -> Result<Listed<Sealed<VersionRow>>, Failure> {
    let (time, key_uid, version) = position(after);
    listed(
        db,
        "SELECT versions.* FROM versions JOIN keys ON keys.uid = versions.key_uid
         WHERE versions.state = 'PRE_ACTIVATION' AND activate_time IS NOT NULL
           AND activate_time <= $1 AND keys.state = 'ENABLED'
         AND (activate_time, key_uid, version) > ($3, $4, $5)
         ORDER BY activate_time, key_uid, version LIMIT $2",
        &values![now.as_unix_ms(), limit.min(MAX_LIST_ROWS), time, &key_uid, version],
        rows::version,
    )
    .await
}

pub(super) async fn due_rotations(
    db: &Session,
    now: Timestamp,
    after: Option<DuePosition>,
    limit: u32,
) -> Result<Listed<Sealed<KeyRow>>, Failure> {
    let (time, key_uid, _) = position(after);
    listed(
        db,
        "SELECT keys.* FROM keys
         JOIN versions ON versions.key_uid = keys.uid AND versions.version = keys.primary_version
         WHERE rotate_time IS NOT NULL AND rotate_time <= $1 AND versions.state = 'ACTIVE'
           AND keys.state = 'ENABLED'
         AND (rotate_time, uid) > ($3, $4)
         ORDER BY rotate_time, uid LIMIT $2",
        &values![now.as_unix_ms(), limit.min(MAX_LIST_ROWS), time, &key_uid],
        rows::key,
    )
    .await
}

pub(super) async fn due_destructions(
    db: &Session,
    now: Timestamp,
    after: Option<DuePosition>,
    limit: u32,
) -> Result<Listed<Sealed<VersionRow>>, Failure> {
    let (time, key_uid, version) = position(after);
    listed(
        db,
        "SELECT versions.* FROM versions JOIN keys ON keys.uid = versions.key_uid
         WHERE versions.destroy_time IS NOT NULL AND versions.destroy_time <= $1
           AND (versions.destroy_despite_consumers OR consumer_count = 0)
         AND (versions.destroy_time, key_uid, version) > ($3, $4, $5)
         ORDER BY versions.destroy_time, key_uid, version LIMIT $2",
        &values![now.as_unix_ms(), limit.min(MAX_LIST_ROWS), time, &key_uid, version],
        rows::version,
    )
    .await
}

pub(super) async fn due_key_destructions(
    db: &Session,
    now: Timestamp,
    after: Option<DuePosition>,
    limit: u32,
) -> Result<Listed<Sealed<KeyRow>>, Failure> {
    let (time, key_uid, _) = position(after);
    listed(
        db,
        "SELECT * FROM keys
         WHERE destroy_time IS NOT NULL AND destroy_time <= $1
           AND (destroy_begun OR destroy_despite_consumers OR consumer_count = 0)
         AND (destroy_time, uid) > ($3, $4)
         ORDER BY destroy_time, uid LIMIT $2",
        &values![now.as_unix_ms(), limit.min(MAX_LIST_ROWS), time, &key_uid],
        rows::key,
    )
    .await
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
