//! Writing import jobs: they come, and go with the key that they were for, or when they have expired.

use kms_core::import_job::ImportJobRow;
use kms_core::key::Sealed;

use super::error::Failure;
use super::session::Session;
use super::sql::{execute, insert, values};
use super::write_closing::apply;
use crate::store::{Closing, ImportJobEdit, StoreError};

pub(super) async fn change_import_jobs(
    db: &Session,
    edit: &ImportJobEdit,
    closing: &Closing,
    max_requests: u64,
) -> Result<(), Failure> {
    apply(db, closing, max_requests).await?;
    match edit {
        ImportJobEdit::Add(job) => insert_import_job(db, job).await,
        ImportJobEdit::Remove(job) => remove_import_job(db, job).await,
    }
}

/// Takes a job away that was used, when there is one.
pub(super) async fn use_up(
    db: &Session,
    job: Option<&Sealed<ImportJobRow>>,
) -> Result<(), Failure> {
    match job {
        Some(job) => remove_import_job(db, job).await,
        None => Ok(()),
    }
}

async fn remove_import_job(db: &Session, job: &Sealed<ImportJobRow>) -> Result<(), Failure> {
    let sql = "DELETE FROM import_jobs WHERE id = $1 AND mac = $2";
    let removed = execute(db, sql, &values![&job.row.id.0, &job.mac.0]).await?;
    if removed == 1 { Ok(()) } else { Err(StoreError::NotFound.into()) }
}

async fn insert_import_job(db: &Session, job: &Sealed<ImportJobRow>) -> Result<(), Failure> {
    let Sealed { row, mac, generation } = job;
    let ImportJobRow {
        id,
        key,
        key_uid,
        method,
        size,
        public_key,
        create_time,
        expire_time,
        actor,
    } = row;
    insert(
        db,
        "INSERT INTO import_jobs (id, tenant, key_id, key_uid, method, rsa_bits, public_key,
                                  create_time, expire_time, actor, generation, mac)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        &values![
            &id.0,
            key.tenant().id(),
            key.key_id(),
            key_uid.as_bytes(),
            method.as_str(),
            u32::from(size.bits()),
            public_key,
            create_time.as_unix_ms(),
            expire_time.as_unix_ms(),
            actor,
            generation.get(),
            &mac.0,
        ],
        StoreError::NameTaken,
    )
    .await
}
