//! The mutations. Each runs in one transaction; an error undoes all that it wrote.

use kms_core::clock::Timestamp;
use kms_core::id::Revision;
use kms_core::key::{KeyRow, RowMac, Sealed, VersionRow};
use kms_core::root::RootPin;

use super::aliases::is_taken;
use super::error::Failure;
use super::session::Session;
use super::sql::{count, execute, insert, values};
use super::write_closing::apply;
use super::write_import_jobs::use_up;
use super::write_rows::{
    insert_counter, insert_key, insert_version, replace_key, replace_version, require_primary,
};
use crate::store::{Closing, NewKey, Rollover, Staging, StoreError, Successor};

pub(super) async fn add_root_pin(db: &Session, pin: &RootPin, mac: RowMac) -> Result<(), Failure> {
    let RootPin { generation, token_serial, wrap_id, wrap_check, mac_id, mac_check } = pin;
    insert(
        db,
        "INSERT INTO roots (generation, token_serial, wrap_id, wrap_check, mac_id, mac_check, mac)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        &values![
            generation.get(),
            token_serial,
            &wrap_id.0,
            wrap_check,
            &mac_id.0,
            mac_check,
            &mac.0,
        ],
        StoreError::RevisionMismatch,
    )
    .await
}

pub(super) async fn create_key(
    db: &Session,
    new: &NewKey,
    closing: &Closing,
    max_requests: u64,
) -> Result<(), Failure> {
    apply(db, closing, max_requests).await?;
    let name = &new.key.row.name;
    if is_taken(db, name.tenant(), name.key_id()).await? {
        return Err(StoreError::NameTaken.into());
    }
    insert_key(db, &new.key).await?;
    insert_version(db, &new.version).await?;
    insert_counter(db, &new.counter).await?;
    use_up(db, new.import_job.as_ref()).await?;
    require_primary(db, &new.key.row).await
}

pub(super) async fn update_key(
    db: &Session,
    expected: Revision,
    key: &Sealed<KeyRow>,
    closing: &Closing,
    max_requests: u64,
) -> Result<(), Failure> {
    apply(db, closing, max_requests).await?;
    replace_key(db, expected, key).await?;
    require_primary(db, &key.row).await
}

pub(super) async fn roll_over(
    db: &Session,
    rollover: &Rollover,
    closing: &Closing,
    max_requests: u64,
) -> Result<(), Failure> {
    let Rollover { expected_key, key, successor, expected_previous, previous } = rollover;
    apply(db, closing, max_requests).await?;
    replace_key(db, *expected_key, key).await?;
    match successor {
        Successor::New { version, counter } => {
            insert_version(db, version).await?;
            insert_counter(db, counter).await?;
        }
        Successor::Staged { expected, version } => {
            replace_version(db, *expected, version).await?;
        }
    }
    replace_version(db, *expected_previous, previous).await?;
    require_primary(db, &key.row).await
}

pub(super) async fn stage(
    db: &Session,
    staging: &Staging,
    closing: &Closing,
    max_requests: u64,
) -> Result<(), Failure> {
    let Staging { expected_key, key, version, counter, import_job } = staging;
    apply(db, closing, max_requests).await?;
    replace_key(db, *expected_key, key).await?;
    insert_version(db, version).await?;
    insert_counter(db, counter).await?;
    use_up(db, import_job.as_ref()).await
}

pub(super) async fn update_version(
    db: &Session,
    expected: Revision,
    version: &Sealed<VersionRow>,
    closing: &Closing,
    max_requests: u64,
) -> Result<(), Failure> {
    apply(db, closing, max_requests).await?;
    replace_version(db, expected, version).await
}

pub(super) async fn probe(db: &Session, now: Timestamp) -> Result<(), Failure> {
    let sql = "INSERT INTO probe (id, time) VALUES (1, $1)
        ON CONFLICT (id) DO UPDATE SET time = excluded.time";
    execute(db, sql, &values![now.as_unix_ms()]).await?;
    let written = "SELECT count(*) AS count FROM probe WHERE id = 1 AND time = $1";
    if count(db, written, &values![now.as_unix_ms()]).await? == 1 {
        return Ok(());
    }
    let detail = "a row just written reads back differently".into();
    Err(StoreError::Damaged { detail }.into())
}
