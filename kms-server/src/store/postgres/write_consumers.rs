//! Writing who depends on a key.

use kms_core::consumer::ConsumerRow;
use kms_core::key::Sealed;

use super::error::Failure;
use super::session::Session;
use super::sql::{execute, insert, integer, values};
use super::write_closing::apply;
use super::write_rows::replace_key;
use crate::store::{Closing, ConsumerChange, ConsumerEdit, StoreError};

pub(super) async fn change_consumers(
    db: &Session,
    change: &ConsumerChange,
    closing: &Closing,
    max_requests: u64,
) -> Result<(), Failure> {
    let ConsumerChange { expected_key, key, edit } = change;
    apply(db, closing, max_requests).await?;
    replace_key(db, *expected_key, key).await?;
    match edit {
        ConsumerEdit::Add(consumer) => insert_consumer(db, consumer).await,
        ConsumerEdit::Remove(consumer) => {
            let ConsumerRow { key_uid, consumer_id, revision, .. } = &consumer.row;
            let sql = "DELETE FROM consumers
                WHERE key_uid = $1 AND consumer_id = $2 AND revision = $3";
            let values = values![key_uid.as_bytes(), consumer_id, integer(revision.get())?];
            let removed = execute(db, sql, &values).await?;
            if removed == 1 { Ok(()) } else { Err(StoreError::NotFound.into()) }
        }
    }
}

async fn insert_consumer(db: &Session, consumer: &Sealed<ConsumerRow>) -> Result<(), Failure> {
    let Sealed { row, mac, generation } = consumer;
    let ConsumerRow { key_uid, consumer_id, description, create_time, actor, revision } = row;
    insert(
        db,
        "INSERT INTO consumers (key_uid, consumer_id, description, create_time, actor, revision,
                                generation, mac)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        &values![
            key_uid.as_bytes(),
            consumer_id,
            description,
            create_time.as_unix_ms(),
            actor,
            integer(revision.get())?,
            generation.get(),
            &mac.0,
        ],
        StoreError::NameTaken,
    )
    .await
}
