//! Writing import jobs: they come, and go with the key that they were for, or when they have expired.

use kms_core::import_job::ImportJobRow;
use kms_core::key::Sealed;
use rusqlite::Connection;

use super::sql::{execute, insert};
use super::write_closing::apply;
use crate::store::{Closing, ImportJobEdit, StoreError};

pub(super) fn change_import_jobs(
    connection: &Connection,
    edit: &ImportJobEdit,
    closing: &Closing,
    max_requests: u64,
) -> Result<(), StoreError> {
    apply(connection, closing, max_requests)?;
    match edit {
        ImportJobEdit::Add(job) => insert_import_job(connection, job),
        ImportJobEdit::Remove(job) => remove_import_job(connection, job),
    }
}

/// Takes a job away that was used, when there is one.
pub(super) fn use_up(
    connection: &Connection,
    job: Option<&Sealed<ImportJobRow>>,
) -> Result<(), StoreError> {
    job.map_or(Ok(()), |job| remove_import_job(connection, job))
}

fn remove_import_job(
    connection: &Connection,
    job: &Sealed<ImportJobRow>,
) -> Result<(), StoreError> {
    let sql = "DELETE FROM import_jobs WHERE id = ?1 AND mac = ?2";
    let removed = execute(connection, sql, (job.row.id.0, job.mac.0))?;
    if removed == 1 { Ok(()) } else { Err(StoreError::NotFound) }
}

fn insert_import_job(
    connection: &Connection,
    job: &Sealed<ImportJobRow>,
) -> Result<(), StoreError> {
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
        connection,
        "INSERT INTO import_jobs (id, tenant, key_id, key_uid, method, rsa_bits, public_key,
                                  create_time, expire_time, actor, generation, mac)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        (
            id.0,
            key.tenant().id(),
            key.key_id(),
            key_uid.as_bytes(),
            method.as_str(),
            size.bits(),
            public_key,
            create_time.as_unix_ms(),
            expire_time.as_unix_ms(),
            actor,
            generation.get(),
            mac.0,
        ),
        StoreError::NameTaken,
    )
}
