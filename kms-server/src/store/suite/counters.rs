//! Counters: leases, their return, the limit of a version.

use std::sync::Arc;

use super::*;

fn leased(number: u8, leased: u64, revision: u64) -> Sealed<CounterRow> {
    sealed(CounterRow { leased, revision: Revision::new(revision), ..counter_row(number, 1) })
}

pub(crate) async fn counters_are_updated_each_by_its_own_revision(store: Arc<impl Store>) {
    create(&store, 1, 0).await;
    create(&store, 2, 1).await;
    let changes = vec![
        (Revision::new(9), leased(1, 1025, 10)),
        (Revision::FIRST, leased(2, 1025, 2)),
        (Revision::FIRST, leased(3, 1025, 2)),
    ];
    let results = store.update_counters(changes).await.unwrap();
    let expected = vec![Err(StoreError::RevisionMismatch), Ok(()), Err(StoreError::NotFound)];
    assert_eq!(results, expected);
    assert_eq!(store.counter(uid(1), KeyVersion::FIRST).await, Ok(Some(leased(1, 1, 1))));
    assert_eq!(store.counter(uid(2), KeyVersion::FIRST).await, Ok(Some(leased(2, 1025, 2))));
}

async fn change_counter(
    store: &Arc<impl Store>,
    counter: Sealed<CounterRow>,
) -> Result<(), StoreError> {
    let expected = Revision::new(counter.row.revision.get() - 1);
    store.update_counters(vec![(expected, counter)]).await.unwrap().remove(0)
}

pub(crate) async fn a_counter_gives_back_one_lease_and_no_more(store: Arc<impl Store>) {
    let largest_lease = 1 << 20;
    create(&store, 1, 0).await;
    change_counter(&store, leased(1, 1 << 22, 2)).await.unwrap();
    let refused = change_counter(&store, leased(1, (1 << 22) - largest_lease - 1, 3)).await;
    assert!(matches!(refused, Err(StoreError::Damaged { .. })), "{refused:?}");
    change_counter(&store, leased(1, (1 << 22) - largest_lease, 3)).await.unwrap();
}

pub(crate) async fn a_counter_reaches_its_limit_and_not_one_more(store: Arc<impl Store>) {
    create(&store, 1, 0).await;
    let refused = change_counter(&store, leased(1, MAX_INVOCATIONS + 1, 2)).await;
    assert!(matches!(refused, Err(StoreError::Damaged { .. })), "{refused:?}");
    change_counter(&store, leased(1, MAX_INVOCATIONS, 2)).await.unwrap();
}

pub(crate) async fn of_parallel_leases_exactly_one_wins(store: Arc<impl Store>) {
    create(&store, 1, 0).await;
    let racing: Vec<_> = (0..32)
        .map(|number| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { change_counter(&store, leased(1, 100 + number, 2)).await })
        })
        .collect();
    let mut won = 0;
    for task in racing {
        match task.await.unwrap() {
            Ok(()) => won += 1,
            Err(error) => assert_eq!(error, StoreError::RevisionMismatch),
        }
    }
    assert_eq!(won, 1);
}
