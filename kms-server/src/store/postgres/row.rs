//! Rows of PostgreSQL, for the decoders that all engines share.

use tokio_postgres::Row;
use tokio_postgres::types::FromSqlOwned;

use crate::store::{StoreError, rows};

impl rows::Row for Row {
    fn integer(&self, column: &'static str) -> Result<Option<i64>, StoreError> {
        read(self, column)
    }

    fn boolean(&self, column: &'static str) -> Result<Option<bool>, StoreError> {
        read(self, column)
    }

    fn text(&self, column: &'static str) -> Result<Option<String>, StoreError> {
        read(self, column)
    }

    fn bytes(&self, column: &'static str) -> Result<Option<Vec<u8>>, StoreError> {
        read(self, column)
    }
}

fn read<T: FromSqlOwned>(row: &Row, column: &'static str) -> Result<Option<T>, StoreError> {
    row.try_get(column).map_err(|_| StoreError::Damaged {
        detail: format!("column {column} has another type than it should"),
    })
}
