//! Aliases: reading them, and writing them with the rows of their keys.

use kms_core::alias::{AliasRow, skeleton};
use kms_core::key::Sealed;
use kms_core::name::TenantName;

use super::error::Failure;
use super::session::Session;
use super::sql::{execute, exists, insert, integer, many, values};
use super::write_closing::apply;
use super::write_rows::replace_key;
use crate::store::rows;
use crate::store::{AliasChange, AliasEdit, AliasQuery, Closing, MAX_LIST_ROWS, StoreError};

pub(super) async fn aliases(
    db: &Session,
    query: &AliasQuery,
) -> Result<Vec<Sealed<AliasRow>>, Failure> {
    match query {
        AliasQuery::Name(name) => {
            let sql = "SELECT * FROM aliases WHERE tenant = $1 AND alias_id = $2";
            many(db, sql, &values![name.tenant().id(), name.alias_id()], rows::alias).await
        }
        AliasQuery::Skeleton { tenant, skeleton } => {
            let sql = "SELECT * FROM aliases WHERE tenant = $1 AND skeleton = $2";
            many(db, sql, &values![tenant.id(), skeleton], rows::alias).await
        }
        AliasQuery::Of { tenant, key_uid: None, after, limit } => {
            let sql = "SELECT * FROM aliases WHERE tenant = $1 AND revision > $2
                ORDER BY revision LIMIT $3";
            let limit = (*limit).min(MAX_LIST_ROWS);
            let values = values![tenant.id(), integer(after.get())?, limit];
            many(db, sql, &values, rows::alias).await
        }
        AliasQuery::Of { tenant, key_uid: Some(uid), after, limit } => {
            let sql = "SELECT * FROM aliases WHERE key_uid = $1 AND tenant = $2 AND revision > $3
                ORDER BY revision LIMIT $4";
            let limit = (*limit).min(MAX_LIST_ROWS);
            let values = values![uid.as_bytes(), tenant.id(), integer(after.get())?, limit];
            many(db, sql, &values, rows::alias).await
        }
    }
}

pub(super) async fn change_alias(
    db: &Session,
    change: &AliasChange,
    closing: &Closing,
    max_requests: u64,
) -> Result<(), Failure> {
    let AliasChange { keys, edit } = change;
    apply(db, closing, max_requests).await?;
    for (expected, key) in keys {
        replace_key(db, *expected, key).await?;
    }
    match edit {
        AliasEdit::Add(alias) => insert_alias(db, alias).await,
        AliasEdit::Move { from, to } => move_alias(db, from, to).await,
        AliasEdit::Remove(alias) => {
            let sql = "DELETE FROM aliases WHERE tenant = $1 AND alias_id = $2 AND mac = $3";
            let name = &alias.row.name;
            let values = values![name.tenant().id(), name.alias_id(), &alias.mac.0];
            one(execute(db, sql, &values).await?)
        }
    }
}

/// Returns whether an alias has this id.
pub(super) async fn is_taken(db: &Session, tenant: &TenantName, id: &str) -> Result<bool, Failure> {
    let sql = "SELECT 1 FROM aliases WHERE tenant = $1 AND alias_id = $2";
    exists(db, sql, &values![tenant.id(), id]).await
}

async fn insert_alias(db: &Session, alias: &Sealed<AliasRow>) -> Result<(), Failure> {
    let Sealed { row, mac, generation } = alias;
    let AliasRow { name, key, key_uid, create_time, update_time, actor, reason, revision } = row;
    let (tenant, id) = (name.tenant().id(), name.alias_id());
    let of_key = "SELECT 1 FROM keys WHERE tenant = $1 AND key_id = $2";
    if exists(db, of_key, &values![tenant, id]).await? {
        return Err(StoreError::NameTaken.into());
    }
    let looks = skeleton(id);
    insert(
        db,
        "INSERT INTO aliases (tenant, alias_id, skeleton, key_id, key_uid, create_time, update_time,
                              actor, reason, revision, generation, mac)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        &values![
            tenant,
            id,
            &looks,
            key.key_id(),
            key_uid.as_bytes(),
            create_time.as_unix_ms(),
            update_time.as_unix_ms(),
            actor,
            reason,
            integer(revision.get())?,
            generation.get(),
            &mac.0,
        ],
        StoreError::NameTaken,
    )
    .await
}

async fn move_alias(
    db: &Session,
    from: &Sealed<AliasRow>,
    to: &Sealed<AliasRow>,
) -> Result<(), Failure> {
    let Sealed { row, mac, generation } = to;
    let AliasRow { name, key, key_uid, create_time: _, update_time, actor, reason, revision } = row;
    let moved = execute(
        db,
        "UPDATE aliases SET key_id = $3, key_uid = $4, update_time = $5, actor = $6, reason = $7,
                            revision = $8, generation = $9, mac = $10
         WHERE tenant = $1 AND alias_id = $2 AND mac = $11",
        &values![
            name.tenant().id(),
            name.alias_id(),
            key.key_id(),
            key_uid.as_bytes(),
            update_time.as_unix_ms(),
            actor,
            reason,
            integer(revision.get())?,
            generation.get(),
            &mac.0,
            &from.mac.0,
        ],
    )
    .await?;
    one(moved)
}

fn one(changed: u64) -> Result<(), Failure> {
    if changed == 1 { Ok(()) } else { Err(StoreError::NotFound.into()) }
}
