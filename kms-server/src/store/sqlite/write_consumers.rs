//! Writing who depends on a key.

use kms_core::consumer::ConsumerRow;
use kms_core::key::Sealed;
use rusqlite::Connection;

use super::sql::{execute, insert, integer};
use super::write_closing::apply;
use super::write_rows::replace_key;
use crate::store::{Closing, ConsumerChange, ConsumerEdit, StoreError};

pub(super) fn change_consumers(
    connection: &Connection,
    change: &ConsumerChange,
    closing: &Closing,
    max_requests: u64,
) -> Result<(), StoreError> {
    let ConsumerChange { expected_key, key, edit } = change;
    apply(connection, closing, max_requests)?;
    replace_key(connection, *expected_key, key)?;
    match edit {
        ConsumerEdit::Add(consumer) => insert_consumer(connection, consumer),
        ConsumerEdit::Remove(consumer) => {
            let ConsumerRow { key_uid, consumer_id, revision, .. } = &consumer.row;
            let sql = "DELETE FROM consumers
                       WHERE key_uid = ?1 AND consumer_id = ?2 AND revision = ?3";
            let parameters = (key_uid.as_bytes(), consumer_id, integer(revision.get())?);
            let removed = execute(connection, sql, parameters)?;
            if removed == 1 { Ok(()) } else { Err(StoreError::NotFound) }
        }
    }
}

fn insert_consumer(
    connection: &Connection,
    consumer: &Sealed<ConsumerRow>,
) -> Result<(), StoreError> {
    let Sealed { row, mac, generation } = consumer;
    let ConsumerRow { key_uid, consumer_id, description, create_time, actor, revision } = row;
    insert(
        connection,
        "INSERT INTO consumers (key_uid, consumer_id, description, create_time, actor, revision,
                                generation, mac)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        (
            key_uid.as_bytes(),
            consumer_id,
            description,
            create_time.as_unix_ms(),
            actor,
            integer(revision.get())?,
            generation.get(),
            mac.0,
        ),
        StoreError::NameTaken,
    )
}
