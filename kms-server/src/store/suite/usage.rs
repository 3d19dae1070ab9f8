//! How versions were used.

use std::sync::Arc;

use super::*;

fn usage(count: u64, revision: u64) -> Sealed<UsageRow> {
    let span = (count > 0).then(|| (time(-5), time(7)));
    let protect = Tally { count, span };
    let uses = Uses {
        protect,
        rewrap: Tally { count: 1, span: Some((time(1), time(2))) },
        refused: Tally { count: count / 2, span: (count > 1).then(|| (time(3), time(4))) },
        ..Uses::default()
    };
    let revision = Revision::new(revision);
    sealed(UsageRow { key_uid: uid(1), version: KeyVersion::FIRST, uses, revision })
}

pub(crate) async fn uses_are_written_each_at_its_revision_and_never_go_back(
    store: Arc<impl Store>,
) {
    create(&store, 1, 0).await;
    let read = || store.usage(uid(1), KeyVersion::FIRST);
    assert_eq!(read().await, Ok(None));
    let write = async |expected, row| {
        let written = store.update_usage(vec![(Revision::new(expected), row)]).await;
        written.unwrap().pop().unwrap()
    };
    assert_eq!(write(1, usage(3, 2)).await, Err(StoreError::RevisionMismatch), "no row yet");
    assert_eq!(write(0, usage(3, 1)).await, Ok(()));
    assert_eq!(write(0, usage(4, 1)).await, Err(StoreError::RevisionMismatch), "there is one");
    assert_eq!(write(1, usage(5, 2)).await, Ok(()));
    assert_eq!(write(1, usage(6, 2)).await, Err(StoreError::RevisionMismatch));
    assert!(
        matches!(write(2, usage(4, 3)).await, Err(StoreError::Damaged { .. })),
        "a count went back"
    );
    assert_eq!(read().await, Ok(Some(usage(5, 2))));
    let two = vec![(Revision::new(9), usage(7, 10)), (Revision::new(2), usage(8, 3))];
    let results = store.update_usage(two).await.unwrap();
    assert_eq!(results, [Err(StoreError::RevisionMismatch), Ok(())], "one does not keep the other");
    assert_eq!(read().await, Ok(Some(usage(8, 3))));
}
