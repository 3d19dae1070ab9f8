//! Forward-only, checksummed migrations.
//!
//! Numbers are shared with every other engine; a file that has been released is never edited. A database made by a newer
//! release, or by edited files, is refused and left as it is.

use aws_lc_rs::digest::{SHA256, digest};
use rusqlite::{Connection, TransactionBehavior};

use crate::store::StoreError;

/// `HOLD`: tells our files from other SQLite databases.
pub(super) const APPLICATION_ID: i32 = 0x484F_4C44;

/// One migration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Migration {
    /// Its number, from 1 without gaps.
    pub(super) number: u32,
    /// The file name without number and ending.
    pub(super) name: &'static str,
    /// What it does.
    pub(super) sql: &'static str,
}

/// All migrations, in order.
pub(super) const MIGRATIONS: &[Migration] =
    &[Migration { number: 1, name: "initial", sql: include_str!("migrations/0001_initial.sql") }];

const BOOKKEEPING: &str = "CREATE TABLE IF NOT EXISTS migrations (
    number   INTEGER NOT NULL PRIMARY KEY,
    name     TEXT    NOT NULL,
    checksum BLOB    NOT NULL CHECK (length(checksum) = 32)
) STRICT";

/// Brings the schema to the newest of `migrations`, in one transaction.
pub(super) fn migrate(
    connection: &mut Connection,
    migrations: &[Migration],
) -> Result<(), StoreError> {
    refuse_foreign(connection)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Invariant: written at each opening, also when it is there, so that this commit syncs what a killed process had
    // committed and not synced, before anything is told of it
    // (`what_a_killed_process_left_is_synced_before_the_store_is_open`).
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.execute(BOOKKEEPING, [])?;
    let applied = applied(&transaction)?;
    if let Some((number, _)) = applied.get(migrations.len()) {
        return Err(schema(format!(
            "the database has migration {number}, this release knows {}: use a newer release",
            migrations.len()
        )));
    }
    for (position, migration) in migrations.iter().enumerate() {
        let checksum = digest(&SHA256, migration.sql.as_bytes());
        if let Some((number, stored)) = applied.get(position) {
            if *number != migration.number || stored != checksum.as_ref() {
                return Err(schema(format!("migration {number} was applied with another content")));
            }
            continue;
        }
        transaction.execute_batch(migration.sql)?;
        transaction.execute(
            "INSERT INTO migrations (number, name, checksum) VALUES (?1, ?2, ?3)",
            (migration.number, migration.name, checksum.as_ref()),
        )?;
    }
    transaction.commit()?;
    Ok(())
}

/// Checks that all of `migrations` were applied, and no others, without writing.
pub(super) fn require_current(
    connection: &Connection,
    migrations: &[Migration],
) -> Result<(), StoreError> {
    refuse_foreign(connection)?;
    let known = |migration: &Migration| {
        (migration.number, digest(&SHA256, migration.sql.as_bytes()).as_ref().to_vec())
    };
    let known: Vec<_> = migrations.iter().map(known).collect();
    if connection.table_exists(None, "migrations")? && applied(connection)? == known {
        return Ok(());
    }
    Err(schema("the database has other migrations than this release".into()))
}

fn applied(connection: &Connection) -> Result<Vec<(u32, Vec<u8>)>, StoreError> {
    let mut statement =
        connection.prepare("SELECT number, checksum FROM migrations ORDER BY number")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// A file that has tables but not our mark is somebody else's.
fn refuse_foreign(connection: &Connection) -> Result<(), StoreError> {
    let mark: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let objects: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if mark == APPLICATION_ID || (mark == 0 && objects == 0) {
        return Ok(());
    }
    Err(schema("the file is a database of another application".into()))
}

const fn schema(detail: String) -> StoreError {
    StoreError::Schema { detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Migration = Migration { number: 1, name: "a", sql: "CREATE TABLE a (x) STRICT" };

    fn memory() -> Connection {
        Connection::open_in_memory().unwrap()
    }

    fn typed(sql: &'static str) -> Migration {
        Migration { number: 1, name: "a", sql }
    }

    #[test]
    fn applying_twice_changes_nothing_and_a_later_one_is_added() {
        let mut connection = memory();
        let first = typed("CREATE TABLE a (x INTEGER) STRICT");
        let second = Migration { number: 2, name: "b", sql: "CREATE TABLE b (x INTEGER) STRICT" };
        migrate(&mut connection, &[first]).unwrap();
        migrate(&mut connection, &[first]).unwrap();
        migrate(&mut connection, &[first, second]).unwrap();
        assert_eq!(applied(&connection).unwrap().len(), 2);
        connection.execute("INSERT INTO b VALUES (1)", []).unwrap();
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let mut connection = memory();
        migrate(&mut connection, MIGRATIONS).unwrap();
        let refused = migrate(&mut connection, &[]).unwrap_err();
        assert!(
            matches!(refused, StoreError::Schema { detail } if detail.contains("newer release"))
        );
    }

    #[test]
    fn an_edited_migration_is_refused() {
        let mut connection = memory();
        migrate(&mut connection, &[typed("CREATE TABLE a (x INTEGER) STRICT")]).unwrap();
        let edited = typed("CREATE TABLE a (y INTEGER) STRICT");
        let refused = migrate(&mut connection, &[edited]).unwrap_err();
        assert!(
            matches!(refused, StoreError::Schema { detail } if detail.contains("another content"))
        );
    }

    #[test]
    fn a_failing_migration_leaves_nothing_behind() {
        let mut connection = memory();
        assert!(migrate(&mut connection, &[FIRST]).is_err());
        let objects: i64 =
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0)).unwrap();
        assert_eq!(objects, 0);
    }

    #[test]
    fn a_database_of_another_application_is_refused_and_left_alone() {
        let mut connection = memory();
        connection.execute_batch("CREATE TABLE theirs (x)").unwrap();
        let refused = migrate(&mut connection, MIGRATIONS).unwrap_err();
        assert!(matches!(refused, StoreError::Schema { .. }));
        assert!(applied(&connection).is_err());
    }

    #[test]
    fn numbers_count_from_one_and_match_the_file_names() {
        for (position, migration) in MIGRATIONS.iter().enumerate() {
            assert_eq!(migration.number as usize, position + 1);
            let file = format!("{:04}_{}.sql", migration.number, migration.name);
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("src/store/sqlite/migrations")
                .join(file);
            assert_eq!(std::fs::read_to_string(path).unwrap(), migration.sql);
        }
    }
}
