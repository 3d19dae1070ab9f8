//! What every mutation begins with: its request id, its intent applied, its history, its manifest; and the intents themselves.

use kms_core::clock::Timestamp;
use kms_core::id::IntentId;
use kms_core::key::Sealed;

use super::error::Failure;
use super::session::Session;
use super::sql::{execute, insert, integer, values};
use super::write_rows::insert_history;
use crate::store::{Closing, Intent, ManifestChange, REQUEST_MEMORY, RequestRecord, StoreError};

/// Rows that another server is forgetting are left to it.
pub(super) async fn forget_requests(
    db: &Session,
    before: Timestamp,
    limit: u32,
) -> Result<u64, Failure> {
    execute(
        db,
        "DELETE FROM requests WHERE (principal, request_id) IN
             (SELECT principal, request_id FROM requests WHERE time < $1 ORDER BY time LIMIT $2
              FOR UPDATE SKIP LOCKED)",
        &values![before.as_unix_ms(), limit],
    )
    .await
}

pub(super) async fn open_intent(db: &Session, intent: &Sealed<Intent>) -> Result<(), Failure> {
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
        db,
        "INSERT INTO intents (id, kind, principal, tenant, key_id, key_uid, version, protection,
                              resident_id, time, generation, mac)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        &values![
            id.as_bytes(),
            kind.as_str(),
            principal,
            key_name.tenant().id(),
            key_name.key_id(),
            key_uid.as_bytes(),
            version.get(),
            protection.as_str(),
            &resident_id.0,
            time.as_unix_ms(),
            generation.get(),
            &mac.0,
        ],
        StoreError::RevisionMismatch,
    )
    .await
}

pub(super) async fn close_intent(db: &Session, intent: IntentId) -> Result<(), Failure> {
    let sql = "DELETE FROM intents WHERE id = $1";
    execute(db, sql, &values![intent.as_bytes()]).await.map(|_| ())
}

/// The request id comes first: a repeat must see it taken, not that its name or revision is. Of two at once the second
/// waits for the first here, or at the tenant's count of requests.
pub(super) async fn apply(
    db: &Session,
    closing: &Closing,
    max_requests: u64,
) -> Result<(), Failure> {
    let Closing { intent, manifest, history, request } = closing;
    if let Some(request) = request {
        remember(db, request).await?;
        // Invariant: the row of the count is ours until the commit, so no other request comes in between
        // (`requests_of_a_tenant_are_bounded`).
        if super::read::requests_remembered(db, &request.row.tenant).await? > max_requests {
            return Err(StoreError::RequestsFull.into());
        }
    }
    let stamp = manifest.manifest.row.stamp();
    let Sealed { row: intent, mac, generation } = intent;
    if intent.applied.as_ref() != Some(&stamp) {
        let detail = "an intent is sealed with another manifest than it leaves".into();
        return Err(StoreError::Damaged { detail }.into());
    }
    let applied = execute(
        db,
        "UPDATE intents SET applied_revision = $2, applied_digest = $3, generation = $4, mac = $5
         WHERE id = $1 AND applied_revision IS NULL",
        &values![
            intent.id.as_bytes(),
            integer(stamp.revision.get())?,
            &stamp.digest,
            generation.get(),
            &mac.0,
        ],
    )
    .await?;
    if applied == 0 {
        // The reconciler undid it meanwhile, or it happened before: it must not happen now.
        return Err(StoreError::NotFound.into());
    }
    for entry in history {
        insert_history(db, entry).await?;
    }
    change_manifest(db, manifest).await
}

async fn remember(db: &Session, request: &Sealed<RequestRecord>) -> Result<(), Failure> {
    let Sealed { row, mac, generation } = request;
    let RequestRecord { tenant, principal, request_id, method, request_hash, result, time } = row;
    let memory_ms = i64::try_from(REQUEST_MEMORY.as_millis()).unwrap_or(i64::MAX);
    let forgotten = time.as_unix_ms().saturating_sub(memory_ms);
    execute(
        db,
        "DELETE FROM requests WHERE principal = $1 AND request_id = $2 AND time <= $3",
        &values![principal, request_id.as_bytes(), forgotten],
    )
    .await?;
    insert(
        db,
        "INSERT INTO requests (tenant, principal, request_id, method, request_hash, result, time,
                               generation, mac)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        &values![
            tenant.id(),
            principal,
            request_id.as_bytes(),
            method,
            request_hash,
            result,
            time.as_unix_ms(),
            generation.get(),
            &mac.0,
        ],
        StoreError::RequestIdTaken,
    )
    .await
}

async fn change_manifest(db: &Session, change: &ManifestChange) -> Result<(), Failure> {
    let ManifestChange { expected, manifest } = change;
    let row_set = manifest.row.rows.to_bytes();
    let (tenant, revision) = (manifest.row.tenant.id(), integer(manifest.row.revision.get())?);
    let (generation, mac) = (manifest.generation.get(), &manifest.mac.0);
    let values = values![tenant, revision, &row_set, generation, mac];
    if expected.get() == 0 {
        let sql = "INSERT INTO manifests (tenant, revision, row_set, generation, mac)
            VALUES ($1, $2, $3, $4, $5)";
        return insert(db, sql, &values, StoreError::RevisionMismatch).await;
    }
    let sql = "UPDATE manifests SET revision = $2, row_set = $3, generation = $4, mac = $5
        WHERE tenant = $1 AND revision = $6";
    let expected = values![integer(expected.get())?];
    let changed = execute(db, sql, &[&values[..], &expected[..]].concat()).await?;
    if changed == 1 { Ok(()) } else { Err(StoreError::RevisionMismatch.into()) }
}
