//! The map from PostgreSQL's SQLSTATE codes (PostgreSQL manual, appendix A) to [`StoreError`].
//!
//! It must never put a value of a row into a text: what the server says of a row, its detail above all, holds values. So
//! of refusals of rows only the code and the name of the constraint are told.

use std::error::Error as _;

use tokio_postgres::error::{DbError, SqlState};

use crate::store::StoreError;

/// Why an attempt failed, and whether there may be another. Nothing of it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It fails the next time, too.
    Final(StoreError),
    /// The database gave it up for the sake of another: it may be tried again at once.
    Collided(StoreError),
    /// The connection is lost: it may be tried on another.
    Lost(StoreError),
}

impl Failure {
    pub(super) fn into_error(self) -> StoreError {
        match self {
            Self::Final(error) | Self::Collided(error) | Self::Lost(error) => error,
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Final(error)
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(refusal) => classify(refusal.code(), text(refusal)),
            // Of a connection whose protocol is broken nothing more can be had either.
            None => Self::Lost(StoreError::Unavailable { detail: with_cause(&error) }),
        }
    }
}

/// Says what went wrong on our side of a connection.
pub(super) fn with_cause(error: &tokio_postgres::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// What a broken uniqueness means to the caller; anything else stays what it is.
pub(super) fn on_duplicate(error: tokio_postgres::Error, meaning: StoreError) -> Failure {
    match error.code() {
        Some(&SqlState::UNIQUE_VIOLATION) => Failure::Final(meaning),
        _ => error.into(),
    }
}

fn classify(code: &SqlState, detail: String) -> Failure {
    let unavailable = |detail| Failure::Final(StoreError::Unavailable { detail });
    let unwritable = |detail| Failure::Final(StoreError::Unwritable { detail });
    let damaged = |detail| Failure::Final(StoreError::Damaged { detail });
    match *code {
        SqlState::T_R_SERIALIZATION_FAILURE | SqlState::T_R_DEADLOCK_DETECTED => {
            Failure::Collided(StoreError::Unavailable { detail })
        }
        SqlState::DISK_FULL
        | SqlState::OUT_OF_MEMORY
        | SqlState::READ_ONLY_SQL_TRANSACTION
        | SqlState::CONFIGURATION_LIMIT_EXCEEDED => unwritable(detail),
        // The session ends with these, or does not know any more what was prepared in it.
        SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT
        | SqlState::ADMIN_SHUTDOWN
        | SqlState::CRASH_SHUTDOWN
        | SqlState::DATABASE_DROPPED
        | SqlState::INVALID_SQL_STATEMENT_NAME
        | SqlState::FEATURE_NOT_SUPPORTED => Failure::Lost(StoreError::Unavailable { detail }),
        _ => match code.code().get(..2) {
            Some("08") => Failure::Lost(StoreError::Unavailable { detail }),
            Some("22" | "23" | "54" | "P0") => {
                damaged(format!("refused by a constraint: {detail}"))
            }
            Some("XX") => damaged(detail),
            Some("42") if *code != SqlState::INSUFFICIENT_PRIVILEGE => {
                Failure::Final(StoreError::Schema { detail })
            }
            _ => unavailable(detail),
        },
    }
}

/// Says what was refused. The server's own words stand there only where they cannot be about a row.
fn text(refusal: &DbError) -> String {
    let code = refusal.code().code();
    let about_rows = matches!(code.get(..2), Some("21" | "22" | "23" | "42" | "54"));
    let what = match refusal.constraint() {
        _ if !about_rows => refusal.message(),
        Some(constraint) => constraint,
        None => refusal.table().unwrap_or("a row"),
    };
    format!("{what} (SQLSTATE {code})")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(code: &str) -> Failure {
        classify(&SqlState::from_code(code), String::new())
    }

    #[test]
    fn collisions_are_tried_again_and_lost_connections_on_another() {
        for code in ["40001", "40P01"] {
            assert!(
                matches!(kind(code), Failure::Collided(StoreError::Unavailable { .. })),
                "{code}"
            );
        }
        for code in ["57P01", "57P02", "25P03", "08006", "08003", "26000", "0A000"] {
            assert!(matches!(kind(code), Failure::Lost(StoreError::Unavailable { .. })), "{code}");
        }
    }

    #[test]
    fn full_disks_and_read_only_databases_are_unwritable() {
        for code in ["53100", "53200", "25006"] {
            assert!(matches!(kind(code), Failure::Final(StoreError::Unwritable { .. })), "{code}");
        }
    }

    #[test]
    fn limits_of_time_and_of_connections_are_unavailable() {
        for code in ["55P03", "57014", "57P03", "53300", "28P01", "42501", "58030"] {
            assert!(matches!(kind(code), Failure::Final(StoreError::Unavailable { .. })), "{code}");
        }
    }

    #[test]
    fn refusals_of_rows_are_damage_and_missing_tables_another_schema() {
        for code in ["23514", "23503", "23502", "22P02", "P0001", "XX001", "54000"] {
            assert!(matches!(kind(code), Failure::Final(StoreError::Damaged { .. })), "{code}");
        }
        for code in ["42P01", "42703"] {
            assert!(matches!(kind(code), Failure::Final(StoreError::Schema { .. })), "{code}");
        }
    }
}
