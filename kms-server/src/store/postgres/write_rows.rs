//! The rows of keys, versions, counters and history, each written with all its columns.

use kms_core::clock::Timestamp;
use kms_core::id::{KeyUid, KeyVersion, Revision};
use kms_core::key::{CounterRow, KeyRow, Material, Sealed, VersionRow};
use kms_core::lifecycle::{HistoryChange, HistoryRow};
use kms_core::state::VersionState;

use super::error::Failure;
use super::session::Session;
use super::sql::{Value, execute, exists, insert, integer, values};
use crate::store::StoreError;

const KEY_COLUMNS: usize = 26;
const VERSION_COLUMNS: usize = 20;

pub(super) async fn insert_key(db: &Session, key: &Sealed<KeyRow>) -> Result<(), Failure> {
    let sql =
        "INSERT INTO keys (uid, tenant, key_id, purpose, protection, state, owner, sensitivity,
            usage, cryptoperiod_s, recipient_usage_period_s, labels, create_time, update_time,
            revision, primary_version, latest_version, consumer_count, rotation_period_s,
            rotate_time, destroy_time, destroy_despite_consumers, destroy_despite_use,
            destroy_begun, generation, mac)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18,
            $19, $20, $21, $22, $23, $24, $25, $26)";
    let labels = labels(&key.row)?;
    insert(db, sql, &key_values(key, &labels)?, StoreError::NameTaken).await
}

pub(super) async fn replace_key(
    db: &Session,
    expected: Revision,
    key: &Sealed<KeyRow>,
) -> Result<(), Failure> {
    let sql = "UPDATE keys SET tenant = $2, key_id = $3, purpose = $4, protection = $5, state = $6,
            owner = $7, sensitivity = $8, usage = $9, cryptoperiod_s = $10,
            recipient_usage_period_s = $11, labels = $12, create_time = $13, update_time = $14,
            revision = $15, primary_version = $16, latest_version = $17, consumer_count = $18,
            rotation_period_s = $19, rotate_time = $20, destroy_time = $21,
            destroy_despite_consumers = $22, destroy_despite_use = $23, destroy_begun = $24,
            generation = $25, mac = $26
         WHERE uid = $1 AND revision = $27";
    let labels = labels(&key.row)?;
    let mut values = key_values(key, &labels)?.to_vec();
    values.push(integer(expected.get())?.into());
    if execute(db, sql, &values).await? == 1 {
        return Ok(());
    }
    let uid = key.row.uid.as_bytes();
    let there = exists(db, "SELECT 1 FROM keys WHERE uid = $1", &values![uid]).await?;
    Err(if there { StoreError::RevisionMismatch } else { StoreError::NotFound }.into())
}

fn labels(row: &KeyRow) -> Result<String, StoreError> {
    serde_json::to_string(&row.labels)
        .map_err(|error| StoreError::Damaged { detail: format!("labels: {error}") })
}

/// Returns every column of a key row; destructures it, so that a new field cannot be left unwritten.
fn key_values<'a>(
    key: &'a Sealed<KeyRow>,
    labels: &'a str,
) -> Result<[Value<'a>; KEY_COLUMNS], StoreError> {
    let Sealed { row, mac, generation } = key;
    let KeyRow {
        uid,
        name,
        purpose,
        protection,
        state,
        owner,
        sensitivity,
        usage,
        cryptoperiod,
        recipient_usage_period,
        labels: _,
        create_time,
        update_time,
        revision,
        primary,
        latest,
        consumers,
        rotation,
        destruction,
    } = row;
    Ok(values![
        uid.as_bytes(),
        name.tenant().id(),
        name.key_id(),
        purpose.as_str(),
        protection.as_str(),
        state.as_str(),
        owner,
        sensitivity.as_str(),
        usage,
        integer(cryptoperiod.as_secs())?,
        integer(recipient_usage_period.as_secs())?,
        labels,
        create_time.as_unix_ms(),
        update_time.as_unix_ms(),
        integer(revision.get())?,
        primary.get(),
        latest.get(),
        *consumers,
        rotation.map(|plan| integer(plan.period.as_secs())).transpose()?,
        rotation.map(|plan| plan.due.as_unix_ms()),
        destruction.map(|planned| planned.time.as_unix_ms()),
        destruction.map(|planned| planned.despite_consumers),
        destruction.map(|planned| planned.despite_recent_use),
        destruction.map(|planned| planned.begun),
        generation.get(),
        &mac.0,
    ])
}

pub(super) async fn insert_version(
    db: &Session,
    version: &Sealed<VersionRow>,
) -> Result<(), Failure> {
    let sql = "INSERT INTO versions (key_uid, version, state, material_kind, material, check_blob,
            origin, create_time, state_time, state_reason, state_actor, activate_time,
            deactivate_time, destroy_time, destroy_returns, destroy_despite_consumers,
            destroy_despite_use, revision, generation, mac)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18,
            $19, $20)";
    let check = version.row.check.to_bytes();
    insert(db, sql, &version_values(version, &check)?, StoreError::RevisionMismatch).await
}

pub(super) async fn replace_version(
    db: &Session,
    expected: Revision,
    version: &Sealed<VersionRow>,
) -> Result<(), Failure> {
    let sql = "UPDATE versions SET state = $3, material_kind = $4, material = $5, check_blob = $6,
            origin = $7, create_time = $8, state_time = $9, state_reason = $10, state_actor = $11,
            activate_time = $12, deactivate_time = $13, destroy_time = $14, destroy_returns = $15,
            destroy_despite_consumers = $16, destroy_despite_use = $17, revision = $18,
            generation = $19, mac = $20
         WHERE key_uid = $1 AND version = $2 AND revision = $21";
    let check = version.row.check.to_bytes();
    let mut values = version_values(version, &check)?.to_vec();
    values.push(integer(expected.get())?.into());
    if execute(db, sql, &values).await? == 1 {
        return Ok(());
    }
    let there = version_exists(db, version.row.key_uid, version.row.version).await?;
    Err(if there { StoreError::RevisionMismatch } else { StoreError::NotFound }.into())
}

/// Returns every column of a version row; destructures it, so that a new field cannot be left unwritten.
fn version_values<'a>(
    version: &'a Sealed<VersionRow>,
    check_blob: &'a [u8],
) -> Result<[Value<'a>; VERSION_COLUMNS], StoreError> {
    let Sealed { row, mac, generation } = version;
    let VersionRow {
        key_uid,
        version,
        state,
        material,
        check: _,
        origin,
        create_time,
        state_time,
        state_reason,
        state_actor,
        activate_time,
        deactivate_time,
        destruction,
        revision,
    } = row;
    let (material_kind, material): (&str, &[u8]) = match material {
        Material::Wrapped(blob) => ("wrapped", &blob.0),
        Material::Resident(id) => ("resident", &id.0),
    };
    Ok(values![
        key_uid.as_bytes(),
        version.get(),
        state.as_str(),
        material_kind,
        material,
        check_blob,
        origin.as_str(),
        create_time.as_unix_ms(),
        state_time.as_unix_ms(),
        state_reason,
        state_actor,
        activate_time.map(Timestamp::as_unix_ms),
        deactivate_time.map(Timestamp::as_unix_ms),
        destruction.map(|planned| planned.time.as_unix_ms()),
        destruction.map(|planned| planned.returns_to.as_str()),
        destruction.is_some_and(|planned| planned.despite_consumers),
        destruction.is_some_and(|planned| planned.despite_recent_use),
        integer(revision.get())?,
        generation.get(),
        &mac.0,
    ])
}

pub(super) async fn insert_history(
    db: &Session,
    entry: &Sealed<HistoryRow>,
) -> Result<(), Failure> {
    let Sealed { row, mac, generation } = entry;
    let HistoryRow { key_uid, change, old_revision, revision, time, actor, reason } = row;
    let (from, to, detail) = match change {
        HistoryChange::State { version: _, from, to } => (*from, Some(*to), None),
        HistoryChange::Fields { detail } => (None, None, Some(detail)),
    };
    insert(
        db,
        "INSERT INTO history (key_uid, version, revision, old_revision, time, from_state, to_state,
                              detail, actor, reason, generation, mac)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        &values![
            key_uid.as_bytes(),
            row.version_number(),
            integer(revision.get())?,
            integer(old_revision.get())?,
            time.as_unix_ms(),
            from.map(VersionState::as_str),
            to.map(VersionState::as_str),
            detail,
            actor,
            reason,
            generation.get(),
            &mac.0,
        ],
        StoreError::RevisionMismatch,
    )
    .await
}

pub(super) async fn insert_counter(
    db: &Session,
    counter: &Sealed<CounterRow>,
) -> Result<(), Failure> {
    let Sealed { row: CounterRow { key_uid, version, leased, revision }, mac, generation } =
        counter;
    insert(
        db,
        "INSERT INTO counters (key_uid, version, leased, revision, generation, mac)
         VALUES ($1, $2, $3, $4, $5, $6)",
        &values![
            key_uid.as_bytes(),
            version.get(),
            integer(*leased)?,
            integer(revision.get())?,
            generation.get(),
            &mac.0,
        ],
        StoreError::RevisionMismatch,
    )
    .await
}

/// Tells of a primary that is not there what the deferred foreign key would only say at the commit.
pub(super) async fn require_primary(db: &Session, key: &KeyRow) -> Result<(), Failure> {
    if version_exists(db, key.uid, key.primary).await? {
        return Ok(());
    }
    Err(StoreError::NotFound.into())
}

async fn version_exists(
    db: &Session,
    key_uid: KeyUid,
    version: KeyVersion,
) -> Result<bool, Failure> {
    let sql = "SELECT 1 FROM versions WHERE key_uid = $1 AND version = $2";
    exists(db, sql, &values![key_uid.as_bytes(), version.get()]).await
}
