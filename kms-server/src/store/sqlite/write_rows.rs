//! The rows of keys, versions, counters and history, each written with all its columns.

use kms_core::clock::Timestamp;
use kms_core::id::{KeyUid, KeyVersion, Revision};
use kms_core::key::{CounterRow, KeyRow, Material, Sealed, VersionRow};
use kms_core::lifecycle::{HistoryChange, HistoryRow};
use kms_core::state::VersionState;
use rusqlite::types::ToSql;
use rusqlite::{Connection, named_params};

use super::sql::{execute, exists, insert, integer};
use crate::store::StoreError;

pub(super) fn insert_key(connection: &Connection, key: &Sealed<KeyRow>) -> Result<(), StoreError> {
    let sql =
        "INSERT INTO keys (uid, tenant, key_id, purpose, protection, state, owner, sensitivity,
            usage, cryptoperiod_s, recipient_usage_period_s, labels, create_time, update_time, revision, primary_version,
            latest_version, consumer_count, rotation_period_s, rotate_time, destroy_time,
            destroy_despite_consumers, destroy_despite_use, destroy_begun, generation, mac)
         VALUES (:uid, :tenant, :key_id, :purpose, :protection, :state, :owner, :sensitivity,
            :usage, :cryptoperiod_s, :recipient_usage_period_s, :labels, :create_time, :update_time, :revision, :primary_version,
            :latest_version, :consumer_count, :rotation_period_s, :rotate_time, :destroy_time,
            :destroy_despite_consumers, :destroy_despite_use, :destroy_begun, :generation, :mac)";
    with_key_parameters(key, &[], |parameters| {
        insert(connection, sql, parameters, StoreError::NameTaken)
    })
}

pub(super) fn replace_key(
    connection: &Connection,
    expected: Revision,
    key: &Sealed<KeyRow>,
) -> Result<(), StoreError> {
    let sql = "UPDATE keys SET tenant = :tenant, key_id = :key_id, purpose = :purpose,
            protection = :protection, state = :state, owner = :owner,
            sensitivity = :sensitivity, usage = :usage, cryptoperiod_s = :cryptoperiod_s,
            recipient_usage_period_s = :recipient_usage_period_s, labels = :labels, create_time = :create_time,
            update_time = :update_time, revision = :revision, primary_version = :primary_version,
            latest_version = :latest_version, consumer_count = :consumer_count, rotation_period_s = :rotation_period_s,
            rotate_time = :rotate_time, destroy_time = :destroy_time,
            destroy_despite_consumers = :destroy_despite_consumers,
            destroy_despite_use = :destroy_despite_use, destroy_begun = :destroy_begun,
            generation = :generation, mac = :mac
         WHERE uid = :uid AND revision = :expected";
    let expected = integer(expected.get())?;
    let changed = with_key_parameters(key, &[(":expected", &expected)], |parameters| {
        execute(connection, sql, parameters)
    })?;
    if changed == 1 {
        return Ok(());
    }
    let there = exists(connection, "SELECT 1 FROM keys WHERE uid = ?1", [key.row.uid.as_bytes()])?;
    Err(if there { StoreError::RevisionMismatch } else { StoreError::NotFound })
}

/// Binds every column of a key row; destructures it, so that a new field cannot be left unwritten.
pub(super) fn with_key_parameters<T>(
    key: &Sealed<KeyRow>,
    more: &[(&str, &dyn ToSql)],
    run: impl FnOnce(&[(&str, &dyn ToSql)]) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
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
        labels,
        create_time,
        update_time,
        revision,
        primary,
        latest,
        consumers,
        rotation,
        destruction,
    } = row;
    let labels = serde_json::to_string(labels)
        .map_err(|error| StoreError::Damaged { detail: format!("labels: {error}") })?;
    let bound = named_params! {
        ":uid": uid.as_bytes(),
        ":tenant": name.tenant().id(),
        ":key_id": name.key_id(),
        ":purpose": purpose.as_str(),
        ":protection": protection.as_str(),
        ":state": state.as_str(),
        ":owner": owner,
        ":sensitivity": sensitivity.as_str(),
        ":usage": usage,
        ":cryptoperiod_s": integer(cryptoperiod.as_secs())?,
        ":recipient_usage_period_s": integer(recipient_usage_period.as_secs())?,
        ":labels": labels,
        ":create_time": create_time.as_unix_ms(),
        ":update_time": update_time.as_unix_ms(),
        ":revision": integer(revision.get())?,
        ":primary_version": primary.get(),
        ":latest_version": latest.get(),
        ":consumer_count": consumers,
        ":rotation_period_s": rotation.map(|plan| integer(plan.period.as_secs())).transpose()?,
        ":rotate_time": rotation.map(|plan| plan.due.as_unix_ms()),
        ":destroy_time": destruction.map(|planned| planned.time.as_unix_ms()),
        ":destroy_despite_consumers": destruction.map(|planned| planned.despite_consumers),
        ":destroy_despite_use": destruction.map(|planned| planned.despite_recent_use),
        ":destroy_begun": destruction.map(|planned| planned.begun),
        ":generation": generation.get(),
        ":mac": mac.0,
    };
    run(&[bound, more].concat())
}

pub(super) fn insert_version(
    connection: &Connection,
    version: &Sealed<VersionRow>,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO versions (key_uid, version, state, material_kind, material, check_blob, origin,
            create_time, state_time, state_reason, state_actor, activate_time, deactivate_time,
            destroy_time, destroy_returns, destroy_despite_consumers, destroy_despite_use, revision,
            generation, mac)
         VALUES (:key_uid, :version, :state, :material_kind, :material, :check_blob, :origin,
            :create_time, :state_time, :state_reason, :state_actor, :activate_time, :deactivate_time,
            :destroy_time, :destroy_returns, :destroy_despite_consumers, :destroy_despite_use, :revision,
            :generation, :mac)";
    with_version_parameters(version, &[], |parameters| {
        insert(connection, sql, parameters, StoreError::RevisionMismatch)
    })
}

pub(super) fn replace_version(
    connection: &Connection,
    expected: Revision,
    version: &Sealed<VersionRow>,
) -> Result<(), StoreError> {
    let sql = "UPDATE versions SET state = :state, material_kind = :material_kind,
            material = :material, check_blob = :check_blob, origin = :origin, create_time = :create_time,
            state_time = :state_time, state_reason = :state_reason, state_actor = :state_actor,
            activate_time = :activate_time, deactivate_time = :deactivate_time, destroy_time = :destroy_time,
            destroy_returns = :destroy_returns,
            destroy_despite_consumers = :destroy_despite_consumers,
            destroy_despite_use = :destroy_despite_use, revision = :revision, generation = :generation,
            mac = :mac
         WHERE key_uid = :key_uid AND version = :version AND revision = :expected";
    let expected = integer(expected.get())?;
    let changed = with_version_parameters(version, &[(":expected", &expected)], |parameters| {
        execute(connection, sql, parameters)
    })?;
    if changed == 1 {
        return Ok(());
    }
    let there = version_exists(connection, version.row.key_uid, version.row.version)?;
    Err(if there { StoreError::RevisionMismatch } else { StoreError::NotFound })
}

/// Binds every column of a version row; destructures it, so that a new field cannot be left unwritten.
pub(super) fn with_version_parameters<T>(
    version: &Sealed<VersionRow>,
    more: &[(&str, &dyn ToSql)],
    run: impl FnOnce(&[(&str, &dyn ToSql)]) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let Sealed { row, mac, generation } = version;
    let VersionRow {
        key_uid,
        version,
        state,
        material,
        check,
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
    let bound = named_params! {
        ":key_uid": key_uid.as_bytes(),
        ":version": version.get(),
        ":state": state.as_str(),
        ":material_kind": material_kind,
        ":material": material,
        ":check_blob": check.to_bytes(),
        ":origin": origin.as_str(),
        ":create_time": create_time.as_unix_ms(),
        ":state_time": state_time.as_unix_ms(),
        ":state_reason": state_reason,
        ":state_actor": state_actor,
        ":activate_time": activate_time.map(Timestamp::as_unix_ms),
        ":deactivate_time": deactivate_time.map(Timestamp::as_unix_ms),
        ":destroy_time": destruction.map(|planned| planned.time.as_unix_ms()),
        ":destroy_returns": destruction.map(|planned| planned.returns_to.as_str()),
        ":destroy_despite_consumers": destruction.is_some_and(|planned| planned.despite_consumers),
        ":destroy_despite_use": destruction.is_some_and(|planned| planned.despite_recent_use),
        ":revision": integer(revision.get())?,
        ":generation": generation.get(),
        ":mac": mac.0,
    };
    run(&[bound, more].concat())
}

pub(super) fn insert_history(
    connection: &Connection,
    entry: &Sealed<HistoryRow>,
) -> Result<(), StoreError> {
    let Sealed { row, mac, generation } = entry;
    let HistoryRow { key_uid, change, old_revision, revision, time, actor, reason } = row;
    let (from, to, detail) = match change {
        HistoryChange::State { version: _, from, to } => (*from, Some(*to), None),
        HistoryChange::Fields { detail } => (None, None, Some(detail)),
    };
    insert(
        connection,
        "INSERT INTO history (key_uid, version, revision, old_revision, time, from_state, to_state,
                              detail, actor, reason, generation, mac)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        (
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
            mac.0,
        ),
        StoreError::RevisionMismatch,
    )
}

pub(super) fn insert_counter(
    connection: &Connection,
    counter: &Sealed<CounterRow>,
) -> Result<(), StoreError> {
    let Sealed { row: CounterRow { key_uid, version, leased, revision }, mac, generation } =
        counter;
    insert(
        connection,
        "INSERT INTO counters (key_uid, version, leased, revision, generation, mac)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        (
            key_uid.as_bytes(),
            version.get(),
            integer(*leased)?,
            integer(revision.get())?,
            generation.get(),
            mac.0,
        ),
        StoreError::RevisionMismatch,
    )
}

/// Checks in the savepoint what the deferred foreign key would only say at the commit, of the whole group.
pub(super) fn require_primary(connection: &Connection, key: &KeyRow) -> Result<(), StoreError> {
    if version_exists(connection, key.uid, key.primary)? {
        return Ok(());
    }
    Err(StoreError::NotFound)
}

pub(super) fn version_exists(
    connection: &Connection,
    key_uid: KeyUid,
    version: KeyVersion,
) -> Result<bool, StoreError> {
    exists(
        connection,
        "SELECT 1 FROM versions WHERE key_uid = ?1 AND version = ?2",
        (key_uid.as_bytes(), version.get()),
    )
}
