//! Intents, manifests and request ids: what ends with a mutation, and what a repeat sees.

use std::sync::Arc;

use super::*;

pub(crate) async fn a_mutation_needs_its_intent(store: Arc<impl Store>) {
    let refused = store.create_key(new_key(1), closing(1, 0)).await;
    assert_eq!(refused, Err(StoreError::NotFound));
    store.open_intent(sealed(intent(1))).await.unwrap();
    store.close_intent(intent_id(1)).await.unwrap();
    let refused = store.create_key(new_key(1), closing(1, 0)).await;
    assert_eq!(refused, Err(StoreError::NotFound));
    assert_eq!(store.key(KeyRef::Uid(uid(1)), VersionChoice::Primary).await, Ok(None));
}

pub(crate) async fn intents_are_listed_oldest_first_until_closed(store: Arc<impl Store>) {
    for number in [2, 1, 3] {
        store.open_intent(sealed(intent(number))).await.unwrap();
    }
    assert_eq!(store.intents().await, Ok(listed_intents(vec![intent(1), intent(2), intent(3)])));
    store.close_intent(intent_id(2)).await.unwrap();
    store.close_intent(intent_id(2)).await.unwrap();
    store.create_key(new_key(1), closing(1, 0)).await.unwrap();
    assert_eq!(store.intents().await, Ok(listed_intents(vec![applied(1, 0), intent(3)])));
    store.close_intent(intent_id(1)).await.unwrap();
    assert_eq!(store.intents().await, Ok(listed_intents(vec![intent(3)])));
}

pub(crate) async fn a_mutation_marks_its_intent_with_its_manifest(store: Arc<impl Store>) {
    let early = Intent { applied: applied(1, 0).applied, ..intent(1) };
    store.open_intent(sealed(early)).await.unwrap();
    assert_eq!(
        store.intents().await,
        Ok(listed_intents(vec![intent(1)])),
        "only a mutation applies it"
    );
    store.create_key(new_key(1), closing(1, 0)).await.unwrap();
    store.open_intent(sealed(intent(2))).await.unwrap();
    store.create_key(new_key(2), closing(2, 1)).await.unwrap();
    store.open_intent(sealed(intent(3))).await.unwrap();
    let next = updated(stored_key(&store, 1).await, "other");
    store.update_key(Revision::FIRST, next.clone(), closing(3, 2)).await.unwrap();
    store.open_intent(sealed(intent(4))).await.unwrap();
    store.roll_over(keys::rollover(next), closing(4, 3)).await.unwrap();
    store.open_intent(sealed(intent(5))).await.unwrap();
    let mut suspended = version_row(1, 2);
    suspended.state = VersionState::Suspended;
    suspended.revision = suspended.revision.next();
    store.update_version(Revision::FIRST, sealed(suspended), closing(5, 4)).await.unwrap();
    let all = (1..=5).map(|number| applied(number, u64::from(number) - 1)).collect();
    assert_eq!(store.intents().await, Ok(listed_intents(all)));
}

pub(crate) async fn a_mutation_happens_once(store: Arc<impl Store>) {
    store.open_intent(sealed(intent(1))).await.unwrap();
    store.create_key(new_key(1), closing(1, 0)).await.unwrap();
    let refused = store.create_key(new_key(2), closing(1, 1)).await;
    assert_eq!(refused, Err(StoreError::NotFound));
    assert_eq!(store.key(KeyRef::Uid(uid(2)), VersionChoice::Primary).await, Ok(None));
    assert_eq!(store.intents().await, Ok(listed_intents(vec![applied(1, 0)])));
    assert_eq!(store.manifest(tenant()).await, Ok(Some(closing(1, 0).manifest.manifest)));
}

pub(crate) async fn an_intent_is_opened_once(store: Arc<impl Store>) {
    store.open_intent(sealed(intent(1))).await.unwrap();
    let mut other = intent(1);
    other.kind = IntentKind::RotateKey;
    assert_eq!(store.open_intent(sealed(other)).await, Err(StoreError::RevisionMismatch));
    assert_eq!(store.intents().await, Ok(listed_intents(vec![intent(1)])));
}

pub(crate) async fn a_manifest_is_replaced_only_at_its_revision(store: Arc<impl Store>) {
    create(&store, 1, 0).await;
    store.open_intent(sealed(intent(2))).await.unwrap();
    for stale in [0, 2] {
        let refused = store.create_key(new_key(2), closing(2, stale)).await;
        assert_eq!(refused, Err(StoreError::RevisionMismatch), "{stale}");
        assert_eq!(store.key(KeyRef::Uid(uid(2)), VersionChoice::Primary).await, Ok(None));
    }
    store.create_key(new_key(2), closing(2, 1)).await.unwrap();
    assert_eq!(store.manifest(tenant()).await, Ok(Some(closing(2, 1).manifest.manifest)));
}

pub(crate) async fn a_repeated_request_id_is_told_apart_and_changes_nothing(
    store: Arc<impl Store>,
) {
    store.open_intent(sealed(intent(1))).await.unwrap();
    let first = Closing { request: Some(sealed(request(7, 100))), ..closing(1, 0) };
    store.create_key(new_key(1), first).await.unwrap();
    store.open_intent(sealed(intent(2))).await.unwrap();
    // The same name and manifest too: the request id is what counts.
    let repeat = Closing { request: Some(sealed(request(7, 200))), ..closing(2, 0) };
    let refused = store.create_key(new_key(1), repeat).await;
    assert_eq!(refused, Err(StoreError::RequestIdTaken));
    let RequestRecord { principal, request_id, .. } = request(7, 0);
    assert_eq!(store.request(principal, request_id).await, Ok(Some(sealed(request(7, 100)))));
    assert_eq!(store.request("someone else".into(), request_id).await, Ok(None));
    assert_eq!(store.intents().await, Ok(listed_intents(vec![applied(1, 0), intent(2)])));
}

pub(crate) async fn a_request_id_can_be_used_again_after_its_memory(store: Arc<impl Store>) {
    let memory_ms = i64::try_from(REQUEST_MEMORY.as_millis()).unwrap();
    store.open_intent(sealed(intent(1))).await.unwrap();
    let first = Closing { request: Some(sealed(request(7, 100))), ..closing(1, 0) };
    store.create_key(new_key(1), first).await.unwrap();
    store.open_intent(sealed(intent(2))).await.unwrap();
    let early = Closing { request: Some(sealed(request(7, 100 + memory_ms - 1))), ..closing(2, 1) };
    let refused = store.create_key(new_key(2), early).await;
    assert_eq!(refused, Err(StoreError::RequestIdTaken));
    let late = Closing { request: Some(sealed(request(7, 100 + memory_ms))), ..closing(2, 1) };
    store.create_key(new_key(2), late).await.unwrap();
}

pub(crate) async fn requests_before_a_time_are_forgotten(store: Arc<impl Store>) {
    for (number, ms) in [(1, 100), (2, 200), (3, 300)] {
        store.open_intent(sealed(intent(number))).await.unwrap();
        let end = Closing {
            request: Some(sealed(request(number, ms))),
            ..closing(number, u64::from(number) - 1)
        };
        store.create_key(new_key(number), end).await.unwrap();
    }
    assert_eq!(store.forget_requests(time(200), 2).await, Ok(1));
    let RequestRecord { principal, request_id, .. } = request(2, 0);
    assert_eq!(store.request(principal, request_id).await, Ok(Some(sealed(request(2, 200)))));
    assert_eq!(store.forget_requests(time(301), 2).await, Ok(2));
}

pub(crate) async fn as_many_requests_are_forgotten_as_the_limit_the_oldest_first(
    store: Arc<impl Store>,
) {
    for (number, ms) in [(1, 300), (2, 100), (3, 200)] {
        store.open_intent(sealed(intent(number))).await.unwrap();
        let request = Some(sealed(request(number, ms)));
        let end = Closing { request, ..closing(number, u64::from(number) - 1) };
        store.create_key(new_key(number), end).await.unwrap();
    }
    assert_eq!(store.forget_requests(time(301), 0).await, Ok(0));
    assert_eq!(store.forget_requests(time(301), 2).await, Ok(2));
    let RequestRecord { principal, request_id, .. } = request(1, 0);
    assert_eq!(store.request(principal, request_id).await, Ok(Some(sealed(request(1, 300)))));
    assert_eq!(store.forget_requests(time(301), 2).await, Ok(1));
}

pub(crate) async fn requests_of_a_tenant_are_bounded(store: Arc<impl Store>) {
    let last = u8::try_from(MAX_REQUESTS).unwrap();
    let other = TenantName::from_id("t2").unwrap();
    for number in 1..=last {
        assert_eq!(store.room_for_request(tenant()).await, Ok(()), "{number}");
        store.open_intent(sealed(intent(number))).await.unwrap();
        let remembered = Some(sealed(request(number, number.into())));
        let end = Closing { request: remembered, ..closing(number, u64::from(number) - 1) };
        store.create_key(new_key(number), end).await.unwrap();
    }
    assert_eq!(store.room_for_request(tenant()).await, Err(StoreError::RequestsFull));
    assert_eq!(store.room_for_request(other.clone()).await, Ok(()));
    let (number, revision) = (last + 1, u64::from(last));
    store.open_intent(sealed(intent(number))).await.unwrap();
    let one_more =
        || Closing { request: Some(sealed(request(number, 100))), ..closing(number, revision) };
    let refused = store.create_key(new_key(number), one_more()).await;
    assert_eq!(refused, Err(StoreError::RequestsFull));
    // A repeat is told what it is, and what the server does by itself is not counted.
    let repeat = Closing { request: Some(sealed(request(1, 100))), ..closing(number, revision) };
    let refused = store.create_key(new_key(number), repeat).await;
    assert_eq!(refused, Err(StoreError::RequestIdTaken));
    let RequestRecord { principal, request_id, .. } = request(number, 0);
    assert_eq!(store.request(principal, request_id).await, Ok(None));
    store.create_key(new_key(number), closing(number, revision)).await.unwrap();
    // Others have room of their own; so has the tenant, when the oldest is forgotten.
    let (number, revision) = (number + 1, revision + 1);
    store.open_intent(sealed(intent(number))).await.unwrap();
    let others = RequestRecord { tenant: other, ..request(number, 100) };
    let end = Closing { request: Some(sealed(others)), ..closing(number, revision) };
    store.create_key(new_key(number), end).await.unwrap();
    assert_eq!(store.forget_requests(time(2), 10).await, Ok(1));
    assert_eq!(store.room_for_request(tenant()).await, Ok(()));
    let (number, revision) = (number + 1, revision + 1);
    store.open_intent(sealed(intent(number))).await.unwrap();
    let end = Closing { request: Some(sealed(request(number, 100))), ..closing(number, revision) };
    store.create_key(new_key(number), end).await.unwrap();
    assert_eq!(store.room_for_request(tenant()).await, Err(StoreError::RequestsFull));
}

pub(crate) async fn of_parallel_repeats_exactly_one_wins(store: Arc<impl Store>) {
    for number in 1..9 {
        store.open_intent(sealed(intent(number))).await.unwrap();
    }
    let racing: Vec<_> = (1..9)
        .map(|number| {
            let store = Arc::clone(&store);
            let end = Closing { request: Some(sealed(request(99, 100))), ..closing(number, 0) };
            tokio::spawn(async move { store.create_key(new_key(number), end).await })
        })
        .collect();
    let mut won = 0;
    for task in racing {
        match task.await.unwrap() {
            Ok(()) => won += 1,
            Err(error) => assert_eq!(error, StoreError::RequestIdTaken),
        }
    }
    assert_eq!(won, 1);
    assert_eq!(store.list_keys(tenant(), None, 100).await.unwrap().len(), 1);
}
