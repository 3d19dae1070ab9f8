//! How a statement is run: prepared once, its refusals told apart, its integers in range.

use rusqlite::{Connection, Params};

use super::error::on_duplicate;
use crate::store::StoreError;

pub(super) fn exists(
    connection: &Connection,
    sql: &str,
    parameters: impl Params,
) -> Result<bool, StoreError> {
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
