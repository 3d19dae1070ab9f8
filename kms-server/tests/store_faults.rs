//! What a caller sees when the store fails before or after the effect, and how it finds out what happened.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure in a test's helper is a failed test"
)]

mod support;

use std::path::Path;
use std::sync::Arc;

use kms_server::store::sqlite::SqliteStore;
use kms_server::store::{Store, StoreError};
use support::faulty::{FaultyStore, StoreFault};
use support::samples::{closing, intent, new_key, request_id};

fn open(root: &Path) -> Arc<dyn Store> {
    Arc::new(SqliteStore::open(&root.join("kms.db")).unwrap())
}

/// Creates a key as a caller would: again, until it knows; returns the refusals on the way.
async fn create_until_known(store: &impl Store) -> Vec<StoreError> {
    let mut refusals = Vec::new();
    for _ in 0..5 {
        let outcome = async {
            if let Some(first) = store.request("officer".into(), request_id(1, 1)).await? {
                assert_eq!(Some(first), closing(1, 1).request);
                return Ok(());
            }
            if store.intents().await?.rows.is_empty() {
                store.open_intent(intent(1, 1)).await?;
            }
            store.create_key(new_key(1, 1), closing(1, 1)).await
        };
        match outcome.await {
            Ok(()) => return refusals,
            Err(error) => refusals.push(error),
        }
    }
    refusals
}

async fn after_fault(call: u64, fault: StoreFault) -> Vec<StoreError> {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let faulty = FaultyStore::new(Arc::clone(&store), call, fault);
    let refusals = create_until_known(&faulty).await;
    assert!(faulty.has_failed());
    let keys = store.list_keys(new_key(1, 1).key.row.name.tenant().clone(), None, 10).await;
    assert_eq!(keys, Ok(vec![new_key(1, 1).key]));
    let applied = closing(1, 1).intent;
    assert_eq!(store.intents().await.unwrap().rows, [applied]);
    refusals
}

#[tokio::test]
async fn a_refused_call_can_be_repeated_wherever_it_was() {
    for call in 1..=4 {
        let error = StoreError::Unwritable { detail: "told to".into() };
        let refusals = after_fault(call, StoreFault::Refuse(error.clone())).await;
        assert_eq!(refusals, [error], "{call}");
    }
}

#[tokio::test]
async fn a_lost_reply_is_found_by_its_request_id() {
    for call in 1..=4 {
        let refusals = after_fault(call, StoreFault::LoseReply).await;
        assert_eq!(refusals.len(), 1, "{call}: {refusals:?}");
    }
}

#[tokio::test]
async fn a_repeat_that_does_not_look_first_is_told_that_the_request_id_is_taken() {
    let root = tempfile::tempdir().unwrap();
    let store = FaultyStore::new(open(root.path()), 2, StoreFault::LoseReply);
    store.open_intent(intent(1, 1)).await.unwrap();
    assert!(store.create_key(new_key(1, 1), closing(1, 1)).await.is_err());
    let repeat = store.create_key(new_key(1, 1), closing(1, 1)).await;
    assert_eq!(repeat, Err(StoreError::RequestIdTaken));
}
