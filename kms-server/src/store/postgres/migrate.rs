//! Forward-only, checksummed migrations.
//!
//! Numbers are shared with every other engine; a file that has been released is never edited. A database made by a newer
//! release, or by edited files, is refused and left as it is. Everything is in a schema of ours, so that a database with
//! other tables can be used; a schema of that name which is not ours is refused.

use aws_lc_rs::digest::{SHA256, digest};

use super::error::Failure;
use super::pool::SCHEMA;
use super::session::{Isolation, Session};
use super::sql::{execute, exists, many, values};
use crate::store::StoreError;

/// Two servers that start at once migrate one after the other. `HOLDMIGR`.
const LOCK: i64 = i64::from_be_bytes(*b"HOLDMIGR");

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

const BOOKKEEPING: &str = "CREATE TABLE migrations (
    number   BIGINT NOT NULL PRIMARY KEY,
    name     TEXT   NOT NULL,
    checksum BYTEA  NOT NULL CHECK (octet_length(checksum) = 32)
)";

/// Brings the schema to the newest of `migrations`, in one transaction.
pub(super) async fn migrate(db: &Session, migrations: &[Migration]) -> Result<(), Failure> {
    db.begin(Isolation::Write).await?;
    execute(db, "SELECT pg_advisory_xact_lock($1)", &values![LOCK]).await?;
    // Looked for before it is made: whoever may not make schemas can be given one.
    let named = "SELECT 1 FROM pg_namespace WHERE nspname = $1";
    if !exists(db, named, &values![SCHEMA]).await? {
        db.batch(&format!("CREATE SCHEMA {SCHEMA}")).await?;
    }
    if !has(db, "AND relname = 'migrations'").await? {
        if has(db, "").await? {
            return Err(schema(format!("the schema {SCHEMA} is of another application")));
        }
        db.batch(BOOKKEEPING).await?;
    }
    let applied = applied(db).await?;
    if let Some((number, _)) = applied.get(migrations.len()) {
        return Err(schema(format!(
            "the database has migration {number}, this release knows {}: use a newer release",
            migrations.len()
        )));
    }
    for (position, Migration { number, name, sql }) in migrations.iter().enumerate() {
        let checksum = digest(&SHA256, sql.as_bytes());
        if let Some((there, stored)) = applied.get(position) {
            if *there != i64::from(*number) || stored != checksum.as_ref() {
                return Err(schema(format!("migration {there} was applied with another content")));
            }
            continue;
        }
        db.batch(sql).await?;
        let record = "INSERT INTO migrations (number, name, checksum) VALUES ($1, $2, $3)";
        execute(db, record, &values![*number, *name, checksum.as_ref()]).await?;
    }
    db.commit().await
}

/// Returns whether our schema has relations that fit.
async fn has(db: &Session, which: &str) -> Result<bool, Failure> {
    let sql = format!(
        "SELECT 1 FROM pg_class WHERE relnamespace = '{SCHEMA}'::regnamespace {which} LIMIT 1"
    );
    exists(db, &sql, &[]).await
}

async fn applied(db: &Session) -> Result<Vec<(i64, Vec<u8>)>, Failure> {
    let sql = "SELECT number, checksum FROM migrations ORDER BY number";
    many(db, sql, &[], |row| {
        let (number, checksum) = (row.integer("number")?, row.bytes("checksum")?);
        Ok((number.unwrap_or_default(), checksum.unwrap_or_default()))
    })
    .await
}

const fn schema(detail: String) -> Failure {
    Failure::Final(StoreError::Schema { detail })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::postgres::tests::{Fresh, fresh};

    const A: Migration = Migration { number: 1, name: "a", sql: "CREATE TABLE a (x BIGINT)" };
    const B: Migration = Migration { number: 2, name: "b", sql: "CREATE TABLE b (x BIGINT)" };

    async fn migrated(fresh: &Fresh, migrations: &[Migration]) -> Result<(), StoreError> {
        let session = fresh.session().await;
        let outcome = migrate(&session, migrations).await;
        session.roll_back().await;
        outcome.map_err(Failure::into_error)
    }

    fn tables(fresh: &Fresh) -> String {
        let sql = "SELECT string_agg(tablename, ' ' ORDER BY tablename) FROM pg_tables
            WHERE schemaname = 'holdfast'";
        fresh.database.sql(sql)
    }

    #[tokio::test]
    async fn applying_twice_changes_nothing_and_a_later_one_is_added() {
        let fresh = fresh();
        migrated(&fresh, &[A]).await.unwrap();
        migrated(&fresh, &[A]).await.unwrap();
        assert_eq!(tables(&fresh), "a migrations");
        migrated(&fresh, &[A, B]).await.unwrap();
        assert_eq!(tables(&fresh), "a b migrations");
    }

    #[tokio::test]
    async fn of_servers_that_start_at_once_each_finds_the_schema_made_once() {
        let fresh = fresh();
        let (one, other) = tokio::join!(migrated(&fresh, MIGRATIONS), migrated(&fresh, MIGRATIONS));
        assert_eq!((one, other), (Ok(()), Ok(())));
    }

    #[tokio::test]
    async fn a_newer_schema_is_refused() {
        let fresh = fresh();
        migrated(&fresh, MIGRATIONS).await.unwrap();
        let refused = migrated(&fresh, &[]).await.unwrap_err();
        assert!(
            matches!(&refused, StoreError::Schema { detail } if detail.contains("newer release")),
            "{refused}"
        );
    }

    #[tokio::test]
    async fn an_edited_migration_is_refused() {
        let fresh = fresh();
        migrated(&fresh, &[A]).await.unwrap();
        let refused =
            migrated(&fresh, &[Migration { sql: "CREATE TABLE a (y BIGINT)", ..A }]).await;
        let refused = refused.unwrap_err();
        assert!(
            matches!(&refused, StoreError::Schema { detail } if detail.contains("another content")),
            "{refused}"
        );
    }

    #[tokio::test]
    async fn a_failing_migration_leaves_nothing_behind() {
        let fresh = fresh();
        let failing = Migration { sql: "CREATE TABLE b (x BIGINT); SELECT 1 / 0", ..B };
        migrated(&fresh, &[A, failing]).await.unwrap_err();
        assert_eq!(tables(&fresh), "");
    }

    #[tokio::test]
    async fn a_schema_of_another_application_is_refused_and_other_tables_are_left_alone() {
        let fresh = fresh();
        fresh.database.sql("CREATE TABLE theirs (x BIGINT)");
        migrated(&fresh, MIGRATIONS).await.unwrap();

        let fresh = super::super::tests::fresh();
        fresh.database.sql("CREATE SCHEMA holdfast CREATE TABLE theirs (x BIGINT)");
        let refused = migrated(&fresh, MIGRATIONS).await;
        assert!(matches!(refused, Err(StoreError::Schema { .. })), "{refused:?}");
        assert_eq!(tables(&fresh), "theirs");
    }

    #[test]
    fn numbers_and_names_are_those_of_every_engine() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store");
        let names = |engine: &str| {
            let entries = std::fs::read_dir(directory.join(engine).join("migrations")).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names("postgres"), names("sqlite"));
        for (position, Migration { number, name, sql }) in MIGRATIONS.iter().enumerate() {
            assert_eq!(*number as usize, position + 1);
            let file = directory.join(format!("postgres/migrations/{number:04}_{name}.sql"));
            assert_eq!(std::fs::read_to_string(file).unwrap(), *sql);
        }
    }
}
