//! Aliases: reading them, and writing them with the rows of their keys.

use kms_core::alias::{AliasRow, skeleton};
use kms_core::key::Sealed;
use kms_core::name::TenantName;
use rusqlite::Connection;

use super::read::many;
use super::sql::{execute, exists, insert, integer};
use super::write_closing::apply;
use super::write_rows::replace_key;
use crate::store::rows;
use crate::store::{AliasChange, AliasEdit, AliasQuery, Closing, MAX_LIST_ROWS, StoreError};

pub(super) fn aliases(
    connection: &Connection,
    query: &AliasQuery,
) -> Result<Vec<Sealed<AliasRow>>, StoreError> {
    match query {
        AliasQuery::Name(name) => many(
            connection,
            "SELECT * FROM aliases WHERE tenant = ?1 AND alias_id = ?2",
            (name.tenant().id(), name.alias_id()),
            rows::alias,
        ),
        AliasQuery::Skeleton { tenant, skeleton } => many(
            connection,
            "SELECT * FROM aliases WHERE tenant = ?1 AND skeleton = ?2",
            (tenant.id(), skeleton),
            rows::alias,
        ),
        AliasQuery::Of { tenant, key_uid: None, after, limit } => many(
            connection,
            "SELECT * FROM aliases WHERE tenant = ?1 AND revision > ?2 ORDER BY revision LIMIT ?3",
            (tenant.id(), integer(after.get())?, (*limit).min(MAX_LIST_ROWS)),
            rows::alias,
        ),
        AliasQuery::Of { tenant, key_uid: Some(uid), after, limit } => many(
            connection,
            "SELECT * FROM aliases WHERE key_uid = ?1 AND tenant = ?2 AND revision > ?3
             ORDER BY revision LIMIT ?4",
            (uid.as_bytes(), tenant.id(), integer(after.get())?, (*limit).min(MAX_LIST_ROWS)),
            rows::alias,
        ),
    }
}

pub(super) fn change_alias(
    connection: &Connection,
    change: &AliasChange,
    closing: &Closing,
    max_requests: u64,
) -> Result<(), StoreError> {
    let AliasChange { keys, edit } = change;
    apply(connection, closing, max_requests)?;
    for (expected, key) in keys {
        replace_key(connection, *expected, key)?;
    }
    match edit {
        AliasEdit::Add(alias) => insert_alias(connection, alias),
        AliasEdit::Move { from, to } => move_alias(connection, from, to),
        AliasEdit::Remove(alias) => {
            let sql = "DELETE FROM aliases WHERE tenant = ?1 AND alias_id = ?2 AND mac = ?3";
            let name = &alias.row.name;
            let parameters = (name.tenant().id(), name.alias_id(), alias.mac.0);
            one(execute(connection, sql, parameters)?)
        }
    }
}

/// Returns whether an alias has this id.
pub(super) fn is_taken(
    connection: &Connection,
    tenant: &TenantName,
    id: &str,
) -> Result<bool, StoreError> {
    let sql = "SELECT 1 FROM aliases WHERE tenant = ?1 AND alias_id = ?2";
    exists(connection, sql, (tenant.id(), id))
}

fn insert_alias(connection: &Connection, alias: &Sealed<AliasRow>) -> Result<(), StoreError> {
    let Sealed { row, mac, generation } = alias;
    let AliasRow { name, key, key_uid, create_time, update_time, actor, reason, revision } = row;
    let (tenant, id) = (name.tenant().id(), name.alias_id());
    let of_key = "SELECT 1 FROM keys WHERE tenant = ?1 AND key_id = ?2";
    if exists(connection, of_key, (tenant, id))? {
        return Err(StoreError::NameTaken);
    }
    insert(
        connection,
        "INSERT INTO aliases (tenant, alias_id, skeleton, key_id, key_uid, create_time, update_time,
                              actor, reason, revision, generation, mac)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        (
            tenant,
            id,
            skeleton(id),
            key.key_id(),
            key_uid.as_bytes(),
            create_time.as_unix_ms(),
            update_time.as_unix_ms(),
            actor,
            reason,
            integer(revision.get())?,
            generation.get(),
            mac.0,
        ),
        StoreError::NameTaken,
    )
}

fn move_alias(
    connection: &Connection,
    from: &Sealed<AliasRow>,
    to: &Sealed<AliasRow>,
) -> Result<(), StoreError> {
    let Sealed { row, mac, generation } = to;
    let AliasRow { name, key, key_uid, create_time: _, update_time, actor, reason, revision } = row;
    let moved = execute(
        connection,
        "UPDATE aliases SET key_id = ?3, key_uid = ?4, update_time = ?5, actor = ?6, reason = ?7,
                            revision = ?8, generation = ?9, mac = ?10
         WHERE tenant = ?1 AND alias_id = ?2 AND mac = ?11",
        (
            name.tenant().id(),
            name.alias_id(),
            key.key_id(),
            key_uid.as_bytes(),
            update_time.as_unix_ms(),
            actor,
            reason,
            integer(revision.get())?,
            generation.get(),
            mac.0,
            from.mac.0,
        ),
    )?;
    one(moved)
}

fn one(changed: u64) -> Result<(), StoreError> {
    if changed == 1 { Ok(()) } else { Err(StoreError::NotFound) }
}
