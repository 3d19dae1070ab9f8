//! The map from SQLite's result codes to [`StoreError`].
//!
//! It must never put a value of a row into a text: SQLite's own messages name tables and columns only.

use rusqlite::ffi;

use crate::store::StoreError;

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error {
            rusqlite::Error::SqliteFailure(code, text) => {
                classify(code.extended_code, text.unwrap_or_else(|| code.to_string()))
            }
            rusqlite::Error::QueryReturnedNoRows => Self::NotFound,
            rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::Utf8Error(..) => {
                Self::Damaged { detail: "a column has another type than it should".into() }
            }
            // The enum is foreign and non-exhaustive: anything else is fatal and opaque.
            other => Self::Unavailable { detail: other.to_string() },
        }
    }
}

fn classify(extended: i32, detail: String) -> StoreError {
    match extended & 0xff {
        ffi::SQLITE_FULL | ffi::SQLITE_READONLY | ffi::SQLITE_PERM => {
            StoreError::Unwritable { detail }
        }
        ffi::SQLITE_IOERR if is_read(extended) => StoreError::Unavailable { detail },
        ffi::SQLITE_IOERR | ffi::SQLITE_CANTOPEN => StoreError::Unwritable { detail },
        ffi::SQLITE_CORRUPT | ffi::SQLITE_NOTADB | ffi::SQLITE_FORMAT => {
            StoreError::Damaged { detail }
        }
        ffi::SQLITE_CONSTRAINT | ffi::SQLITE_MISMATCH | ffi::SQLITE_TOOBIG => {
            StoreError::Damaged { detail: format!("refused by a constraint: {detail}") }
        }
        _ => StoreError::Unavailable { detail },
    }
}

const fn is_read(extended: i32) -> bool {
    matches!(
        extended,
        ffi::SQLITE_IOERR_READ
            | ffi::SQLITE_IOERR_SHORT_READ
            | ffi::SQLITE_IOERR_FSTAT
            | ffi::SQLITE_IOERR_NOMEM
    )
}

/// What a broken uniqueness means to the caller; anything else stays what it is.
pub(super) fn on_duplicate(error: rusqlite::Error, meaning: StoreError) -> StoreError {
    match error.sqlite_error().map(|code| code.extended_code) {
        Some(ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_PRIMARYKEY) => meaning,
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(extended: i32) -> StoreError {
        classify(extended, String::new())
    }

    #[test]
    fn full_read_only_and_failed_writes_are_unwritable() {
        for code in [
            ffi::SQLITE_FULL,
            ffi::SQLITE_READONLY,
            ffi::SQLITE_IOERR_WRITE,
            ffi::SQLITE_IOERR_FSYNC,
            ffi::SQLITE_IOERR_TRUNCATE,
            ffi::SQLITE_CANTOPEN,
        ] {
            assert!(matches!(kind(code), StoreError::Unwritable { .. }), "{code}");
        }
    }

    #[test]
    fn failed_reads_and_locks_are_unavailable_and_corruption_is_damage() {
        for code in [ffi::SQLITE_IOERR_READ, ffi::SQLITE_BUSY, ffi::SQLITE_NOMEM] {
            assert!(matches!(kind(code), StoreError::Unavailable { .. }), "{code}");
        }
        for code in [ffi::SQLITE_CORRUPT, ffi::SQLITE_NOTADB, ffi::SQLITE_CONSTRAINT_CHECK] {
            assert!(matches!(kind(code), StoreError::Damaged { .. }), "{code}");
        }
    }
}
