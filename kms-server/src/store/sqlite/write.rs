//! The mutations. Each runs in its own savepoint on the writer's connection; an error undoes all that it wrote.

use kms_core::clock::Timestamp;
use kms_core::id::{IntentId, KeyUid, KeyVersion, Revision};
use kms_core::key::{CounterRow, KeyRow, Material, RowMac, Sealed, VersionRow};
use kms_core::lifecycle::{HistoryChange, HistoryRow};
use kms_core::root::RootPin;
use kms_core::state::VersionState;
use rusqlite::types::ToSql;
use rusqlite::{Connection, Params, named_params};

use super::error::on_duplicate;
use crate::store::{
    Closing, Intent, ManifestChange, NewKey, REQUEST_MEMORY, RequestRecord, Rollover, Staging,
    StoreError, Successor,
};

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
    insert_key(connection, &new.key)?;
    insert_version(connection, &new.version)?;
    insert_counter(connection, &new.counter)?;
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
    let Staging { expected_key, key, version, counter } = staging;
    apply(connection, closing, max_requests)?;
    replace_key(connection, *expected_key, key)?;
    insert_version(connection, version)?;
    insert_counter(connection, counter)
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

pub(super) fn forget_requests(
    connection: &Connection,
    before: Timestamp,
    limit: u32,
) -> Result<u64, StoreError> {
    execute(
        connection,
        "DELETE FROM requests WHERE (principal, request_id) IN
             (SELECT principal, request_id FROM requests WHERE time < ?1 ORDER BY time LIMIT ?2)",
        (before.as_unix_ms(), limit),
    )
}

pub(super) fn open_intent(
    connection: &Connection,
    intent: &Sealed<Intent>,
) -> Result<(), StoreError> {
    let Sealed { row, mac, generation } = intent;
    let Intent {
        id,
        kind,
        principal,
        key_name,
        key_uid,
        version,
        protection,
        resident_id,
        time,
        applied: _,
    } = row;
    insert(
        connection,
        "INSERT INTO intents (id, kind, principal, tenant, key_id, key_uid, version, protection,
                              resident_id, time, generation, mac)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        (
            id.as_bytes(),
            kind.as_str(),
            principal,
            key_name.tenant().id(),
            key_name.key_id(),
            key_uid.as_bytes(),
            version.get(),
            protection.as_str(),
            resident_id.0,
            time.as_unix_ms(),
            generation.get(),
            mac.0,
        ),
        StoreError::RevisionMismatch,
    )
}

pub(super) fn close_intent(connection: &Connection, intent: IntentId) -> Result<(), StoreError> {
    execute(connection, "DELETE FROM intents WHERE id = ?1", [intent.as_bytes()]).map(|_| ())
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

/// The request id comes first: a repeat must see it taken, not that its name or revision is.
pub(super) fn apply(
    connection: &Connection,
    closing: &Closing,
    max_requests: u64,
) -> Result<(), StoreError> {
    let Closing { intent, manifest, history, request } = closing;
    if let Some(request) = request {
        remember(connection, request)?;
        if super::read::requests_remembered(connection, &request.row.tenant)? > max_requests {
            return Err(StoreError::RequestsFull);
        }
    }
    let stamp = manifest.manifest.row.stamp();
    let Sealed { row: intent, mac, generation } = intent;
    if intent.applied.as_ref() != Some(&stamp) {
        let detail = "an intent is sealed with another manifest than it leaves".into();
        return Err(StoreError::Damaged { detail });
    }
    let applied = execute(
        connection,
        "UPDATE intents SET applied_revision = ?2, applied_digest = ?3, generation = ?4, mac = ?5
         WHERE id = ?1 AND applied_revision IS NULL",
        (
            intent.id.as_bytes(),
            integer(stamp.revision.get())?,
            stamp.digest,
            generation.get(),
            mac.0,
        ),
    )?;
    if applied == 0 {
        // The reconciler undid it meanwhile, or it happened before: it must not happen now.
        return Err(StoreError::NotFound);
    }
    history.iter().try_for_each(|entry| insert_history(connection, entry))?;
    change_manifest(connection, manifest)
}

fn remember(connection: &Connection, request: &Sealed<RequestRecord>) -> Result<(), StoreError> {
    let Sealed { row, mac, generation } = request;
    let RequestRecord { tenant, principal, request_id, method, request_hash, result, time } = row;
    let memory_ms = i64::try_from(REQUEST_MEMORY.as_millis()).unwrap_or(i64::MAX);
    let forgotten = time.as_unix_ms().saturating_sub(memory_ms);
    execute(
        connection,
        "DELETE FROM requests WHERE principal = ?1 AND request_id = ?2 AND time <= ?3",
        (principal, request_id.as_bytes(), forgotten),
    )?;
    insert(
        connection,
        "INSERT INTO requests (tenant, principal, request_id, method, request_hash, result, time,
                               generation, mac)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        (
            tenant.id(),
            principal,
            request_id.as_bytes(),
            method,
            request_hash,
            result,
            time.as_unix_ms(),
            generation.get(),
            mac.0,
        ),
        StoreError::RequestIdTaken,
    )
}

fn change_manifest(connection: &Connection, change: &ManifestChange) -> Result<(), StoreError> {
    let ManifestChange { expected, manifest } = change;
    let (tenant, revision) = (manifest.row.tenant.id(), integer(manifest.row.revision.get())?);
    let row_set = manifest.row.rows.to_bytes();
    let (generation, mac) = (manifest.generation.get(), manifest.mac.0);
    if expected.get() == 0 {
        return insert(
            connection,
            "INSERT INTO manifests (tenant, revision, row_set, generation, mac)
             VALUES (?1, ?2, ?3, ?4, ?5)",
            (tenant, revision, row_set, generation, mac),
            StoreError::RevisionMismatch,
        );
    }
    let changed = execute(
        connection,
        "UPDATE manifests SET revision = ?2, row_set = ?3, generation = ?4, mac = ?5
         WHERE tenant = ?1 AND revision = ?6",
        (tenant, revision, row_set, generation, mac, integer(expected.get())?),
    )?;
    if changed == 1 { Ok(()) } else { Err(StoreError::RevisionMismatch) }
}

fn insert_key(connection: &Connection, key: &Sealed<KeyRow>) -> Result<(), StoreError> {
    let sql =
        "INSERT INTO keys (uid, tenant, key_id, purpose, protection, state, owner, sensitivity,
            usage, cryptoperiod_s, labels, create_time, update_time, revision, primary_version,
            latest_version, consumer_count, rotation_period_s, rotate_time, generation, mac)
         VALUES (:uid, :tenant, :key_id, :purpose, :protection, :state, :owner, :sensitivity,
            :usage, :cryptoperiod_s, :labels, :create_time, :update_time, :revision, :primary_version,
            :latest_version, :consumer_count, :rotation_period_s, :rotate_time, :generation, :mac)";
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
            sensitivity = :sensitivity, usage = :usage, cryptoperiod_s = :cryptoperiod_s, labels = :labels, create_time = :create_time,
            update_time = :update_time, revision = :revision, primary_version = :primary_version,
            latest_version = :latest_version, consumer_count = :consumer_count, rotation_period_s = :rotation_period_s,
            rotate_time = :rotate_time, generation = :generation, mac = :mac
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
fn with_key_parameters<T>(
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
        labels,
        create_time,
        update_time,
        revision,
        primary,
        latest,
        consumers,
        rotation,
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
        ":labels": labels,
        ":create_time": create_time.as_unix_ms(),
        ":update_time": update_time.as_unix_ms(),
        ":revision": integer(revision.get())?,
        ":primary_version": primary.get(),
        ":latest_version": latest.get(),
        ":consumer_count": consumers,
        ":rotation_period_s": rotation.map(|plan| integer(plan.period.as_secs())).transpose()?,
        ":rotate_time": rotation.map(|plan| plan.due.as_unix_ms()),
        ":generation": generation.get(),
        ":mac": mac.0,
    };
    run(&[bound, more].concat())
}

fn insert_version(connection: &Connection, version: &Sealed<VersionRow>) -> Result<(), StoreError> {
    let sql = "INSERT INTO versions (key_uid, version, state, material_kind, material, check_blob,
            create_time, state_time, state_reason, state_actor, activate_time, deactivate_time,
            destroy_time, destroy_returns, destroy_despite_consumers, revision, generation, mac)
         VALUES (:key_uid, :version, :state, :material_kind, :material, :check_blob,
            :create_time, :state_time, :state_reason, :state_actor, :activate_time, :deactivate_time,
            :destroy_time, :destroy_returns, :destroy_despite_consumers, :revision, :generation, :mac)";
    with_version_parameters(version, &[], |parameters| {
        insert(connection, sql, parameters, StoreError::RevisionMismatch)
    })
}

fn replace_version(
    connection: &Connection,
    expected: Revision,
    version: &Sealed<VersionRow>,
) -> Result<(), StoreError> {
    let sql = "UPDATE versions SET state = :state, material_kind = :material_kind,
            material = :material, check_blob = :check_blob, create_time = :create_time,
            state_time = :state_time, state_reason = :state_reason, state_actor = :state_actor,
            activate_time = :activate_time, deactivate_time = :deactivate_time, destroy_time = :destroy_time,
            destroy_returns = :destroy_returns,
            destroy_despite_consumers = :destroy_despite_consumers, revision = :revision, generation = :generation,
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
fn with_version_parameters<T>(
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
        ":create_time": create_time.as_unix_ms(),
        ":state_time": state_time.as_unix_ms(),
        ":state_reason": state_reason,
        ":state_actor": state_actor,
        ":activate_time": activate_time.map(Timestamp::as_unix_ms),
        ":deactivate_time": deactivate_time.map(Timestamp::as_unix_ms),
        ":destroy_time": destruction.map(|planned| planned.time.as_unix_ms()),
        ":destroy_returns": destruction.map(|planned| planned.returns_to.as_str()),
        ":destroy_despite_consumers": destruction.is_some_and(|planned| planned.despite_consumers),
        ":revision": integer(revision.get())?,
        ":generation": generation.get(),
        ":mac": mac.0,
    };
    run(&[bound, more].concat())
}

fn insert_history(connection: &Connection, entry: &Sealed<HistoryRow>) -> Result<(), StoreError> {
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

fn insert_counter(connection: &Connection, counter: &Sealed<CounterRow>) -> Result<(), StoreError> {
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
fn require_primary(connection: &Connection, key: &KeyRow) -> Result<(), StoreError> {
    if version_exists(connection, key.uid, key.primary)? {
        return Ok(());
    }
    Err(StoreError::NotFound)
}

fn version_exists(
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

fn exists(connection: &Connection, sql: &str, parameters: impl Params) -> Result<bool, StoreError> {
    Ok(connection.prepare_cached(sql)?.exists(parameters)?)
}

pub(super) fn insert(
    connection: &Connection,
    sql: &str,
    parameters: impl Params,
    duplicate: StoreError,
) -> Result<(), StoreError> {
    match connection.prepare_cached(sql)?.execute(parameters) {
        Ok(_) => Ok(()),
        Err(error) => Err(on_duplicate(error, duplicate)),
    }
}

pub(super) fn execute(
    connection: &Connection,
    sql: &str,
    parameters: impl Params,
) -> Result<u64, StoreError> {
    Ok(connection.prepare_cached(sql)?.execute(parameters)? as u64)
}

/// SQLite's integers are signed.
pub(super) fn integer(number: u64) -> Result<i64, StoreError> {
    i64::try_from(number)
        .map_err(|_| StoreError::Damaged { detail: "a number is out of range".into() })
}
