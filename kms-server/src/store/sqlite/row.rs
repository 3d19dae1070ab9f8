//! Rows of SQLite, for the decoders that all engines share.

use rusqlite::Row;
use rusqlite::types::FromSql;

use crate::store::{StoreError, rows};

impl rows::Row for Row<'_> {
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

fn read<T: FromSql>(row: &Row<'_>, column: &'static str) -> Result<Option<T>, StoreError> {
    Ok(row.get(column)?)
}
