//! How a statement is run: prepared once a connection, its values typed, its refusals told apart.

use std::error::Error;

use bytes::BytesMut;
use tokio_postgres::Row as PgRow;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use super::error::{Failure, on_duplicate};
use super::session::Session;
use crate::store::rows::Row;
use crate::store::{Listed, StoreError};

/// A value on its way into a statement. Sent as it is: it never becomes part of the SQL.
#[derive(Clone, Copy)]
pub(super) enum Value<'a> {
    Null,
    Integer(i64),
    Boolean(bool),
    Text(&'a str),
    Bytes(&'a [u8]),
}

/// Makes the values of a statement, `$1` first.
macro_rules! values {
    ($($value:expr),* $(,)?) => {
        [$($crate::store::postgres::sql::Value::from($value)),*]
    };
}
pub(super) use values;

impl std::fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Null => "Null",
            Self::Integer(_) => "Integer",
            Self::Boolean(_) => "Boolean",
            Self::Text(_) => "Text",
            Self::Bytes(_) => "Bytes",
        })
    }
}

impl ToSql for Value<'_> {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        match self {
            Self::Null => Ok(IsNull::Yes),
            Self::Integer(value) => value.to_sql_checked(ty, out),
            Self::Boolean(value) => value.to_sql_checked(ty, out),
            Self::Text(value) => value.to_sql_checked(ty, out),
            Self::Bytes(value) => value.to_sql_checked(ty, out),
        }
    }

    /// Each value checks its own type.
    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

impl From<i64> for Value<'_> {
    fn from(value: i64) -> Self {
        Self::Integer(value)
    }
}

impl From<u32> for Value<'_> {
    fn from(value: u32) -> Self {
        Self::Integer(value.into())
    }
}

impl From<bool> for Value<'_> {
    fn from(value: bool) -> Self {
        Self::Boolean(value)
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(value: &'a str) -> Self {
        Self::Text(value)
    }
}

impl<'a> From<&'a String> for Value<'a> {
    fn from(value: &'a String) -> Self {
        Self::Text(value)
    }
}

impl<'a> From<&'a [u8]> for Value<'a> {
    fn from(value: &'a [u8]) -> Self {
        Self::Bytes(value)
    }
}

impl<'a> From<&'a Vec<u8>> for Value<'a> {
    fn from(value: &'a Vec<u8>) -> Self {
        Self::Bytes(value)
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Value<'a> {
    fn from(value: &'a [u8; N]) -> Self {
        Self::Bytes(value)
    }
}

impl<T: Into<Self>> From<Option<T>> for Value<'_> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

fn parameters<'a>(values: &'a [Value<'a>]) -> Vec<&'a (dyn ToSql + Sync)> {
    values.iter().map(|value| value as &(dyn ToSql + Sync)).collect()
}

/// Runs a statement; returns how many rows it changed.
pub(super) async fn execute(db: &Session, sql: &str, values: &[Value<'_>]) -> Result<u64, Failure> {
    let client = db.client()?;
    let statement = client.prepare_cached(sql).await?;
    Ok(client.execute(&statement, &parameters(values)).await?)
}

/// Runs a statement that inserts.
pub(super) async fn insert(
    db: &Session,
    sql: &str,
    values: &[Value<'_>],
    duplicate: StoreError,
) -> Result<(), Failure> {
    let client = db.client()?;
    let statement = client.prepare_cached(sql).await?;
    match client.execute(&statement, &parameters(values)).await {
        Ok(_) => Ok(()),
        Err(error) => Err(on_duplicate(error, duplicate)),
    }
}

async fn query(db: &Session, sql: &str, values: &[Value<'_>]) -> Result<Vec<PgRow>, Failure> {
    let client = db.client()?;
    let statement = client.prepare_cached(sql).await?;
    Ok(client.query(&statement, &parameters(values)).await?)
}

/// Returns whether a query finds anything.
pub(super) async fn exists(db: &Session, sql: &str, values: &[Value<'_>]) -> Result<bool, Failure> {
    Ok(!query(db, sql, values).await?.is_empty())
}

/// Reads the number that a query counts, 0 when it finds no row.
pub(super) async fn count(db: &Session, sql: &str, values: &[Value<'_>]) -> Result<u64, Failure> {
    let rows = query(db, sql, values).await?;
    let Some(row) = rows.first() else { return Ok(0) };
    let count = Row::integer(row, "count")?.and_then(|count| u64::try_from(count).ok());
    Ok(count.ok_or_else(|| StoreError::Damaged { detail: "a count is negative".into() })?)
}

pub(super) async fn one<T>(
    db: &Session,
    sql: &str,
    values: &[Value<'_>],
    decode: impl Fn(&dyn Row) -> Result<T, StoreError> + Send,
) -> Result<Option<T>, Failure> {
    let rows = query(db, sql, values).await?;
    Ok(rows.first().map(|row| decode(row)).transpose()?)
}

pub(super) async fn many<T>(
    db: &Session,
    sql: &str,
    values: &[Value<'_>],
    decode: impl Fn(&dyn Row) -> Result<T, StoreError> + Send,
) -> Result<Vec<T>, Failure> {
    let rows = query(db, sql, values).await?;
    Ok(rows.iter().map(|row| decode(row)).collect::<Result<_, _>>()?)
}

/// Like [`many`], but a row with a value outside its type is counted and does not hide the others.
pub(super) async fn listed<T>(
    db: &Session,
    sql: &str,
    values: &[Value<'_>],
    decode: impl Fn(&dyn Row) -> Result<T, StoreError> + Send,
) -> Result<Listed<T>, Failure> {
    let found = query(db, sql, values).await?;
    let (mut rows, mut damaged) = (Vec::with_capacity(found.len()), 0);
    for row in &found {
        match decode(row) {
            Ok(row) => rows.push(row),
            Err(StoreError::Damaged { detail }) => {
                tracing::error!(detail, "a stored row cannot be read");
                damaged += 1;
            }
            Err(other) => return Err(other.into()),
        }
    }
    Ok(Listed { rows, damaged })
}

/// PostgreSQL's integers are signed.
pub(super) fn integer(number: u64) -> Result<i64, StoreError> {
    i64::try_from(number)
        .map_err(|_| StoreError::Damaged { detail: "a number is out of range".into() })
}
