//! Rows under older roots: found, counted, and sealed anew; and roots that are retired.

use kms_core::alias::AliasRow;
use kms_core::id::{KeyUid, RootGeneration};
use kms_core::key::{Material, RowMac, Sealed};
use kms_core::name::{KeyName, TenantName};
use kms_core::root::RetiredRoot;

use super::error::Failure;
use super::session::Session;
use super::sql::{count, execute, exists, insert, integer, listed, many, values};
use super::write_closing;
use crate::store::rows::{self, Row};
use crate::store::{
    Closing, ListPosition, Listed, MAX_LIST_ROWS, OldCounts, OldRows, RequestPosition,
    RequestRecord, Resealed, RowsLimit, SealedRow, StoreError,
};

pub(super) async fn old_rows(
    db: &Session,
    tenant: &TenantName,
    current: RootGeneration,
    after: Option<ListPosition>,
    limit: RowsLimit,
) -> Result<OldRows, Failure> {
    let keys = keys_after(db, tenant, current, after, limit.keys).await?;
    let mut found = OldRows { whole: after, ..OldRows::default() };
    for Looked { position, name, has_old } in keys {
        let before = found.rows.len() + found.damaged;
        if has_old {
            let room = limit.rows.saturating_sub(u32::try_from(before).unwrap_or(u32::MAX));
            take_key(db, position.uid, current, room, &mut found).await?;
        }
        found.keys += 1;
        let taken = found.rows.len() + found.damaged;
        if taken > before {
            found.names.insert(position.uid, name);
        }
        if taken >= limit.rows as usize {
            found.cut = Some(position);
            break;
        }
        found.whole = Some(position);
    }
    Ok(found)
}

/// A key that is looked at.
struct Looked {
    position: ListPosition,
    name: KeyName,
    has_old: bool,
}

/// Lists places and names only: rows that cannot be read otherwise are met where they are counted. One query says of which
/// keys there are old rows: most often of none, and each table of each key costs a round trip.
async fn keys_after(
    db: &Session,
    tenant: &TenantName,
    current: RootGeneration,
    after: Option<ListPosition>,
    limit: u32,
) -> Result<Vec<Looked>, Failure> {
    let (create_time, uid) = match after {
        None => (i64::MIN, Vec::new()),
        Some(after) => (after.create_time.as_unix_ms(), after.uid.as_bytes().to_vec()),
    };
    let sql = "SELECT create_time, uid, tenant, key_id, generation < $5
            OR EXISTS (SELECT FROM versions WHERE key_uid = uid AND versions.generation < $5)
            OR EXISTS (SELECT FROM counters WHERE key_uid = uid AND counters.generation < $5)
            OR EXISTS (SELECT FROM usage WHERE key_uid = uid AND usage.generation < $5)
            OR EXISTS (SELECT FROM consumers WHERE key_uid = uid AND consumers.generation < $5)
            OR EXISTS (SELECT FROM aliases WHERE key_uid = uid AND aliases.generation < $5)
            OR EXISTS (SELECT FROM history WHERE key_uid = uid AND history.generation < $5)
            AS has_old
        FROM keys WHERE tenant = $1 AND (create_time, uid) > ($2, $3)
        ORDER BY create_time, uid LIMIT $4";
    let limit = limit.min(MAX_LIST_ROWS);
    let values = values![tenant.id(), create_time, &uid, limit, current.get()];
    many(db, sql, &values, |row| {
        let (position, name) = rows::key_position(row)?;
        Ok(Looked { position, name, has_old: row.boolean("has_old")? != Some(false) })
    })
    .await
}

/// Takes up to `room` old rows of a key.
async fn take_key(
    db: &Session,
    uid: KeyUid,
    current: RootGeneration,
    room: u32,
    found: &mut OldRows,
) -> Result<(), Failure> {
    type Decode = fn(&dyn Row) -> Result<SealedRow, StoreError>;
    let tables: [(&str, Decode); 7] = [
        ("SELECT * FROM keys WHERE uid = $1 AND generation < $2 LIMIT $3", |row| {
            rows::key(row).map(SealedRow::Key)
        }),
        ("SELECT * FROM versions WHERE key_uid = $1 AND generation < $2 LIMIT $3", |row| {
            rows::version(row).map(SealedRow::Version)
        }),
        ("SELECT * FROM counters WHERE key_uid = $1 AND generation < $2 LIMIT $3", |row| {
            rows::counter(row).map(SealedRow::Counter)
        }),
        ("SELECT * FROM usage WHERE key_uid = $1 AND generation < $2 LIMIT $3", |row| {
            rows::usage(row).map(SealedRow::Usage)
        }),
        ("SELECT * FROM consumers WHERE key_uid = $1 AND generation < $2 LIMIT $3", |row| {
            rows::consumer(row).map(SealedRow::Consumer)
        }),
        ("SELECT * FROM aliases WHERE key_uid = $1 AND generation < $2 LIMIT $3", |row| {
            rows::alias(row).map(SealedRow::Alias)
        }),
        ("SELECT * FROM history WHERE key_uid = $1 AND generation < $2 LIMIT $3", |row| {
            rows::history(row).map(SealedRow::History)
        }),
    ];
    let mut room = room as usize;
    for (sql, decode) in tables {
        let limit = i64::try_from(room).unwrap_or(i64::MAX);
        let values = values![uid.as_bytes(), current.get(), limit];
        let taken = listed(db, sql, &values, decode).await?;
        room = room.saturating_sub(taken.rows.len() + taken.damaged);
        found.rows.extend(taken.rows);
        found.damaged += taken.damaged;
        if room == 0 {
            break;
        }
    }
    Ok(())
}

pub(super) async fn old_requests(
    db: &Session,
    current: RootGeneration,
    after: Option<&RequestPosition>,
    limit: u32,
) -> Result<Listed<Sealed<RequestRecord>>, Failure> {
    let (principal, id): (&str, &[u8]) = match after {
        None => ("", &[]),
        Some((principal, id)) => (principal.as_str(), id.as_bytes()),
    };
    listed(
        db,
        "SELECT * FROM requests WHERE (principal, request_id) > ($1, $2) AND generation < $3
         ORDER BY principal, request_id LIMIT $4",
        &values![principal, id, current.get(), limit.min(MAX_LIST_ROWS)],
        rows::request,
    )
    .await
}

pub(super) async fn reseal(
    db: &Session,
    rows: &[Resealed],
    closing: &Closing,
    max_requests: u64,
) -> Result<(), Failure> {
    write_closing::apply(db, closing, max_requests).await?;
    for Resealed { expected, row } in rows {
        if !row.is_in_manifest() {
            let detail = "a row that no manifest covers is sealed with one".into();
            return Err(StoreError::Damaged { detail }.into());
        }
        if replace_seal(db, *expected, row).await? != 1 {
            return Err(StoreError::RevisionMismatch.into());
        }
    }
    Ok(())
}

pub(super) async fn reseal_loose(db: &Session, rows: &[Resealed]) -> Result<u64, Failure> {
    let mut written = 0;
    for Resealed { expected, row } in rows {
        if row.is_in_manifest() {
            let detail = "a row that a manifest covers is sealed without it".into();
            return Err(StoreError::Damaged { detail }.into());
        }
        written += replace_seal(db, *expected, row).await?;
    }
    Ok(written)
}

/// Writes generation and MAC of a row, and of a version its material.
async fn replace_seal(db: &Session, expected: RowMac, row: &SealedRow) -> Result<u64, Failure> {
    match row {
        SealedRow::Key(Sealed { row, mac, generation }) => {
            execute(
                db,
                "UPDATE keys SET generation = $2, mac = $3 WHERE uid = $1 AND mac = $4",
                &values![row.uid.as_bytes(), generation.get(), &mac.0, &expected.0],
            )
            .await
        }
        SealedRow::Version(Sealed { row, mac, generation }) => {
            let material: &[u8] = match &row.material {
                Material::Wrapped(blob) => &blob.0,
                Material::Resident(id) => &id.0,
            };
            execute(
                db,
                "UPDATE versions SET material = $3, generation = $4, mac = $5
                 WHERE key_uid = $1 AND version = $2 AND mac = $6",
                &values![
                    row.key_uid.as_bytes(),
                    row.version.get(),
                    material,
                    generation.get(),
                    &mac.0,
                    &expected.0,
                ],
            )
            .await
        }
        SealedRow::History(Sealed { row, mac, generation }) => {
            execute(
                db,
                "UPDATE history SET generation = $4, mac = $5
             WHERE key_uid = $1 AND version = $2 AND revision = $3 AND mac = $6",
                &values![
                    row.key_uid.as_bytes(),
                    row.version_number(),
                    integer(row.revision.get())?,
                    generation.get(),
                    &mac.0,
                    &expected.0,
                ],
            )
            .await
        }
        SealedRow::Consumer(Sealed { row, mac, generation }) => {
            execute(
                db,
                "UPDATE consumers SET generation = $3, mac = $4
             WHERE key_uid = $1 AND consumer_id = $2 AND mac = $5",
                &values![
                    row.key_uid.as_bytes(),
                    &row.consumer_id,
                    generation.get(),
                    &mac.0,
                    &expected.0
                ],
            )
            .await
        }
        SealedRow::Alias(Sealed { row, mac, generation }) => {
            let AliasRow { name, .. } = row;
            execute(
                db,
                "UPDATE aliases SET generation = $3, mac = $4
             WHERE tenant = $1 AND alias_id = $2 AND mac = $5",
                &values![
                    name.tenant().id(),
                    name.alias_id(),
                    generation.get(),
                    &mac.0,
                    &expected.0
                ],
            )
            .await
        }
        SealedRow::ImportJob(Sealed { row, mac, generation }) => {
            execute(
                db,
                "UPDATE import_jobs SET generation = $2, mac = $3 WHERE id = $1 AND mac = $4",
                &values![&row.id.0, generation.get(), &mac.0, &expected.0],
            )
            .await
        }
        SealedRow::Counter(Sealed { row, mac, generation }) => {
            execute(
                db,
                "UPDATE counters SET generation = $3, mac = $4
             WHERE key_uid = $1 AND version = $2 AND mac = $5",
                &values![
                    row.key_uid.as_bytes(),
                    row.version.get(),
                    generation.get(),
                    &mac.0,
                    &expected.0
                ],
            )
            .await
        }
        SealedRow::Usage(Sealed { row, mac, generation }) => {
            execute(
                db,
                "UPDATE usage SET generation = $3, mac = $4
             WHERE key_uid = $1 AND version = $2 AND mac = $5",
                &values![
                    row.key_uid.as_bytes(),
                    row.version.get(),
                    generation.get(),
                    &mac.0,
                    &expected.0
                ],
            )
            .await
        }
        SealedRow::Request(Sealed { row, mac, generation }) => {
            execute(
                db,
                "UPDATE requests SET generation = $3, mac = $4
             WHERE principal = $1 AND request_id = $2 AND mac = $5",
                &values![
                    &row.principal,
                    row.request_id.as_bytes(),
                    generation.get(),
                    &mac.0,
                    &expected.0
                ],
            )
            .await
        }
        SealedRow::Manifest(Sealed { row, mac, generation }) => {
            let sql = "UPDATE manifests SET generation = $2, mac = $3
                WHERE tenant = $1 AND mac = $4";
            let values = values![row.tenant.id(), generation.get(), &mac.0, &expected.0];
            execute(db, sql, &values).await
        }
    }
}

/// The tables with rows that are sealed, in the order in which mutations write them.
const SEALED: &str = "requests, intents, history, manifests, keys, versions, counters, usage, consumers, aliases, import_jobs";

pub(super) async fn old_counts(
    db: &Session,
    current: RootGeneration,
) -> Result<OldCounts, Failure> {
    let generation = values![current.get()];
    let count = async |table: &str| -> Result<u64, Failure> {
        let sql = format!("SELECT count(*) AS count FROM {table} WHERE generation < $1");
        count(db, &sql, &generation).await
    };
    Ok(OldCounts {
        keys: count("keys").await?,
        versions: count("versions").await?,
        history: count("history").await?,
        consumers: count("consumers").await?,
        aliases: count("aliases").await?,
        import_jobs: count("import_jobs").await?,
        counters: count("counters").await?,
        usage: count("usage").await?,
        manifests: count("manifests").await?,
        requests: count("requests").await?,
        intents: count("intents").await?,
    })
}

pub(super) async fn retired_roots(db: &Session) -> Result<Vec<Sealed<RetiredRoot>>, Failure> {
    many(db, "SELECT * FROM retired_roots ORDER BY retired", &[], rows::retired_root).await
}

pub(super) async fn retire_root(
    db: &Session,
    retired: &Sealed<RetiredRoot>,
) -> Result<(), Failure> {
    let Sealed { row, mac, generation } = retired;
    let number = row.retired.get();
    if !exists(db, "SELECT 1 FROM roots WHERE generation = $1", &values![number]).await? {
        return Err(StoreError::NotFound.into());
    }
    let next = number.checked_add(1).and_then(RootGeneration::new);
    let next = next.ok_or(StoreError::RevisionMismatch)?;
    // That no row is there cannot be a precondition of a statement: whoever would write one waits until this is committed.
    db.batch(&format!("LOCK TABLE {SEALED} IN SHARE MODE")).await?;
    if old_counts(db, next).await?.total() > 0 {
        return Err(StoreError::RevisionMismatch.into());
    }
    insert(
        db,
        "INSERT INTO retired_roots (retired, time, actor, reason, generation, mac)
         VALUES ($1, $2, $3, $4, $5, $6)",
        &values![number, row.time.as_unix_ms(), &row.actor, &row.reason, generation.get(), &mac.0,],
        StoreError::RevisionMismatch,
    )
    .await
}
