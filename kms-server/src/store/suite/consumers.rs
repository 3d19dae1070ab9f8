//! Consumers: they come and go with the key's row, and hold what is due.

use std::sync::Arc;

use super::*;

fn consumer(id: &str, revision: u64) -> Sealed<ConsumerRow> {
    sealed(ConsumerRow {
        key_uid: uid(1),
        consumer_id: id.into(),
        description: "storage team".into(),
        create_time: time(5),
        actor: "spiffe://holdfast.test/officer".into(),
        revision: Revision::new(revision),
    })
}

fn change(key: Sealed<KeyRow>, consumers: u32, edit: ConsumerEdit) -> ConsumerChange {
    let expected_key = key.row.revision;
    let mut key = updated(key, "team");
    key.row.consumers = consumers;
    ConsumerChange { expected_key, key, edit }
}

pub(crate) async fn consumers_come_and_go_with_their_key_row(store: Arc<impl Store>) {
    create(&store, 1, 0).await;
    let key = stored_key(&store, 1).await;
    store.open_intent(sealed(intent(2))).await.unwrap();
    let first = change(key.clone(), 1, ConsumerEdit::Add(consumer("b", 2)));
    let stale = ConsumerChange { expected_key: Revision::new(9), ..first.clone() };
    let refused = store.change_consumers(stale, closing(2, 1)).await;
    assert_eq!(refused, Err(StoreError::RevisionMismatch));
    assert_eq!(store.list_consumers(uid(1)).await, Ok(vec![]));
    store.change_consumers(first.clone(), closing(2, 1)).await.unwrap();
    assert_eq!(stored_key(&store, 1).await, first.key);

    // One of the same id changes nothing, the key's row neither.
    store.open_intent(sealed(intent(3))).await.unwrap();
    let taken = change(first.key.clone(), 2, ConsumerEdit::Add(consumer("b", 3)));
    assert_eq!(store.change_consumers(taken, closing(3, 2)).await, Err(StoreError::NameTaken));
    assert_eq!(stored_key(&store, 1).await, first.key);
    let second = change(first.key, 2, ConsumerEdit::Add(consumer("a", 3)));
    store.change_consumers(second.clone(), closing(3, 2)).await.unwrap();
    let listed = store.list_consumers(uid(1)).await;
    assert_eq!(listed, Ok(vec![consumer("a", 3), consumer("b", 2)]));

    // Only the one that was read is taken away.
    store.open_intent(sealed(intent(4))).await.unwrap();
    for absent in [consumer("c", 3), consumer("a", 2)] {
        let gone = change(second.key.clone(), 1, ConsumerEdit::Remove(absent));
        assert_eq!(store.change_consumers(gone, closing(4, 3)).await, Err(StoreError::NotFound));
        assert_eq!(stored_key(&store, 1).await, second.key);
    }
    let gone = change(second.key, 1, ConsumerEdit::Remove(consumer("a", 3)));
    store.change_consumers(gone.clone(), closing(4, 3)).await.unwrap();
    assert_eq!(store.list_consumers(uid(1)).await, Ok(vec![consumer("b", 2)]));
    assert_eq!(stored_key(&store, 1).await, gone.key);
}

pub(crate) async fn a_destruction_waits_for_the_last_consumer(store: Arc<impl Store>) {
    for (number, consumers, despite_consumers) in [(1, 1, false), (2, 1, true), (3, 0, false)] {
        let mut new = new_key(number);
        new.key.row.consumers = consumers;
        new.version.row.state = VersionState::DestroyScheduled;
        let returns_to = VersionState::Compromised;
        new.version.row.destruction = Some(Destruction {
            time: time(i64::from(number)),
            returns_to,
            despite_consumers,
            despite_recent_use: false,
        });
        store.open_intent(sealed(intent(number))).await.unwrap();
        store.create_key(new, closing(number, u64::from(number) - 1)).await.unwrap();
    }
    let due = store.due_destructions(time(300), None, 10).await.unwrap().rows;
    let due: Vec<_> = due.into_iter().map(|version| version.row.key_uid).collect();
    assert_eq!(due, [uid(2), uid(3)]);
}
