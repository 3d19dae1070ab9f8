//! What every mutation ends with: its intent applied, its manifest, its history, its request id; and the intents themselves.

use kms_core::clock::Timestamp;
use kms_core::id::IntentId;
use kms_core::key::Sealed;
use rusqlite::Connection;

use super::sql::{execute, insert, integer};
use super::write_rows::insert_history;
use crate::store::{Closing, Intent, ManifestChange, REQUEST_MEMORY, RequestRecord, StoreError};

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
