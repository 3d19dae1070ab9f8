//! What a server must be before anything is kept in it: recent enough, writable, and not told to forget on a crash.

use super::error::Failure;
use super::session::Session;
use super::sql::one;
use crate::store::StoreError;
use crate::store::rows::Row;

/// The oldest server that is used, as `server_version_num` says it.
const OLDEST: i64 = 140_000;

const LOOK: &str = "SELECT current_setting('server_version_num')::bigint AS version,
    current_setting('server_encoding') AS encoding,
    pg_is_in_recovery() AS standby,
    current_setting('transaction_read_only') = 'on' AS read_only,
    current_setting('fsync') AS fsync,
    current_setting('full_page_writes') AS full_page_writes,
    (SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit') AS synchronous_commit";

/// Refuses a server that would lose what it has said to be written.
///
/// Our sessions commit synchronously whatever the default says. That a default is off is refused all the same: whoever
/// set it thinks that losing the last commits is fine, and is to know that it is not.
pub(super) async fn check(db: &Session) -> Result<(), Failure> {
    let verdict = one(db, LOOK, &[], |row| Ok(judge(row))).await?;
    Ok(verdict.unwrap_or_else(|| Err(unwritable("the server says nothing of itself".into())))?)
}

fn judge(row: &dyn Row) -> Result<(), StoreError> {
    let version = row.integer("version")?.unwrap_or(0);
    if version < OLDEST {
        let detail = format!("PostgreSQL {} is too old: 14 or newer", version / 10_000);
        return Err(StoreError::Schema { detail });
    }
    if row.text("encoding")?.as_deref() != Some("UTF8") {
        let detail = "the encoding of the database is not UTF8: create it with ENCODING 'UTF8'";
        return Err(StoreError::Schema { detail: detail.into() });
    }
    if row.boolean("standby")? != Some(false) {
        return Err(unwritable("the server is a standby: name the primary".into()));
    }
    if row.boolean("read_only")? != Some(false) {
        return Err(unwritable("default_transaction_read_only is on: set it to off".into()));
    }
    for setting in ["fsync", "full_page_writes", "synchronous_commit"] {
        if row.text(setting)?.is_none_or(|value| value == "off") {
            return Err(unwritable(format!(
                "{setting} is off, and a crash would lose keys that were said to be stored: set it to on"
            )));
        }
    }
    Ok(())
}

const fn unwritable(detail: String) -> StoreError {
    StoreError::Unwritable { detail }
}
