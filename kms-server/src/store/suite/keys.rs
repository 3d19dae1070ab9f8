//! Keys and versions: creation, update, rollover, and what is refused.

use std::sync::Arc;

use super::*;

pub(crate) async fn a_key_reads_back_by_name_and_by_uid(store: Arc<impl Store>) {
    create(&store, 1, 0).await;
    let NewKey { key, version, counter, import_job: _ } = new_key(1);
    for reference in [KeyRef::Name(key.row.name.clone()), KeyRef::Uid(uid(1))] {
        for choice in [VersionChoice::Primary, VersionChoice::Number(KeyVersion::FIRST)] {
            let found = store.key(reference.clone(), choice).await.unwrap().unwrap();
            assert_eq!((found.key, found.version), (key.clone(), Some(version.clone())));
        }
        let absent = VersionChoice::Number(version_number(2));
        let found = store.key(reference, absent).await.unwrap().unwrap();
        assert_eq!((found.key, found.version), (key.clone(), None));
    }
    assert_eq!(store.counter(uid(1), KeyVersion::FIRST).await, Ok(Some(counter)));
    assert_eq!(store.manifest(tenant()).await, Ok(Some(closing(1, 0).manifest.manifest)));
    assert_eq!(store.intents().await, Ok(listed_intents(vec![])));
}

pub(crate) async fn a_taken_name_is_refused_and_changes_nothing(store: Arc<impl Store>) {
    create(&store, 1, 0).await;
    store.open_intent(sealed(intent(2))).await.unwrap();
    let mut second = new_key(2);
    second.key.row.name = key_row(1).name;
    let mut with_request = closing(2, 1);
    with_request.request = Some(sealed(request(2, 0)));
    let refused = store.create_key(second, with_request).await;
    assert_eq!(refused, Err(StoreError::NameTaken));
    assert_eq!(store.intents().await, Ok(listed_intents(vec![intent(2)])));
    assert_eq!(store.manifest(tenant()).await, Ok(Some(closing(1, 0).manifest.manifest)));
    let RequestRecord { principal, request_id, .. } = request(2, 0);
    assert_eq!(store.request(principal, request_id).await, Ok(None));
    assert_eq!(store.list_versions(uid(2), None, 10).await, Ok(vec![]));
}

pub(crate) async fn a_key_without_its_primary_version_is_refused(store: Arc<impl Store>) {
    store.open_intent(sealed(intent(1))).await.unwrap();
    let mut new = new_key(1);
    new.key.row.latest = version_number(2);
    new.key.row.primary = version_number(2);
    assert_eq!(store.create_key(new, closing(1, 0)).await, Err(StoreError::NotFound));
    assert_eq!(store.key(KeyRef::Uid(uid(1)), VersionChoice::Primary).await, Ok(None));
}

pub(crate) async fn a_key_is_updated_only_at_its_revision(store: Arc<impl Store>) {
    create(&store, 1, 0).await;
    let next = updated(stored_key(&store, 1).await, "other");
    store.open_intent(sealed(intent(2))).await.unwrap();
    let stale = store.update_key(Revision::new(2), next.clone(), closing(2, 1)).await;
    assert_eq!(stale, Err(StoreError::RevisionMismatch));
    assert_eq!(stored_key(&store, 1).await, sealed(key_row(1)));
    store.update_key(Revision::FIRST, next.clone(), closing(2, 1)).await.unwrap();
    assert_eq!(stored_key(&store, 1).await, next);
    store.open_intent(sealed(intent(3))).await.unwrap();
    let absent = updated(sealed(key_row(9)), "other");
    let refused = store.update_key(Revision::FIRST, absent, closing(3, 2)).await;
    assert_eq!(refused, Err(StoreError::NotFound));
}

pub(crate) async fn a_revision_that_does_not_grow_is_refused(store: Arc<impl Store>) {
    create(&store, 1, 0).await;
    store.open_intent(sealed(intent(2))).await.unwrap();
    let mut same = stored_key(&store, 1).await;
    same.row.owner = "other".into();
    let refused = store.update_key(Revision::FIRST, same, closing(2, 1)).await;
    assert!(matches!(refused, Err(StoreError::Damaged { .. })), "{refused:?}");
    let mut renamed = updated(stored_key(&store, 1).await, "other");
    renamed.row.name = key_row(2).name;
    let refused = store.update_key(Revision::FIRST, renamed, closing(2, 1)).await;
    assert!(matches!(refused, Err(StoreError::Damaged { .. })), "{refused:?}");
    assert_eq!(stored_key(&store, 1).await, sealed(key_row(1)));
}

/// From its beginning on, the destruction of a key goes forward only; until then it may be given up.
pub(crate) async fn a_destruction_that_has_begun_is_not_taken_back(store: Arc<impl Store>) {
    create(&store, 1, 0).await;
    let plan = |begun, ms| KeyDestruction {
        time: time(ms),
        despite_consumers: false,
        despite_recent_use: false,
        begun,
    };
    let (scheduled, disabled) = (KeyState::DestroyScheduled, KeyState::Disabled);
    let steps = [
        (scheduled, Some(plan(false, 900)), true),
        (disabled, None, true),
        (scheduled, Some(plan(false, 900)), true),
        (scheduled, Some(plan(true, 900)), true),
        (scheduled, Some(plan(false, 900)), false),
        (scheduled, Some(plan(true, 901)), false),
        (disabled, None, false),
        (KeyState::Enabled, None, false),
        (scheduled, Some(plan(true, 900)), true),
        (KeyState::Destroyed, None, true),
    ];
    let mut manifest = 1;
    for (number, (state, destruction, is_taken)) in (10..).zip(steps) {
        let before = stored_key(&store, 1).await;
        let mut next = updated(before.clone(), &format!("o{number}"));
        (next.row.state, next.row.destruction) = (state, destruction);
        store.open_intent(sealed(intent(number))).await.unwrap();
        let expected = before.row.revision;
        let told = store.update_key(expected, next.clone(), closing(number, manifest)).await;
        if is_taken {
            assert_eq!(told, Ok(()), "{state} {destruction:?}");
            manifest += 1;
        } else {
            assert!(matches!(told, Err(StoreError::Damaged { .. })), "{destruction:?}: {told:?}");
        }
        let now = if is_taken { next } else { before };
        assert_eq!(stored_key(&store, 1).await, now);
    }
}

pub(crate) async fn of_parallel_updates_exactly_one_wins(store: Arc<impl Store>) {
    create(&store, 1, 0).await;
    let key = stored_key(&store, 1).await;
    for number in 10..26 {
        store.open_intent(sealed(intent(number))).await.unwrap();
    }
    let racing: Vec<_> = (10..26)
        .map(|number| {
            let (store, next) = (Arc::clone(&store), updated(key.clone(), &format!("o{number}")));
            tokio::spawn(async move {
                store.update_key(Revision::FIRST, next, closing(number, 1)).await.map(|()| number)
            })
        })
        .collect();
    let mut winners = Vec::new();
    for task in racing {
        match task.await.unwrap() {
            Ok(number) => winners.push(number),
            Err(error) => assert_eq!(error, StoreError::RevisionMismatch),
        }
    }
    assert_eq!(winners.len(), 1);
    assert_eq!(stored_key(&store, 1).await.row.owner, format!("o{}", winners[0]));
    let open = store.intents().await.unwrap().rows;
    let marked: Vec<_> = open.iter().filter(|intent| intent.row.applied.is_some()).collect();
    assert_eq!((open.len(), marked), (16, vec![&closing(winners[0], 1).intent]));
}

pub(crate) fn rollover(key: Sealed<KeyRow>) -> Rollover {
    let expected_key = key.row.revision;
    let mut key = updated(key, "team");
    key.row.primary = version_number(2);
    key.row.latest = version_number(2);
    let mut previous = version_row(1, 1);
    previous.deactivate_time = Some(time(5000));
    previous.revision = previous.revision.next();
    Rollover {
        expected_key,
        key,
        successor: Successor::New {
            version: sealed(version_row(1, 2)),
            counter: sealed(counter_row(1, 2)),
        },
        expected_previous: Revision::FIRST,
        previous: sealed(previous),
    }
}

pub(crate) async fn a_rollover_moves_the_primary(store: Arc<impl Store>) {
    create(&store, 1, 0).await;
    store.open_intent(sealed(intent(2))).await.unwrap();
    let change = rollover(stored_key(&store, 1).await);
    store.roll_over(change.clone(), closing(2, 1)).await.unwrap();
    let found = store.key(KeyRef::Uid(uid(1)), VersionChoice::Primary).await.unwrap().unwrap();
    let version = sealed(version_row(1, 2));
    assert_eq!((found.key, found.version), (change.key, Some(version.clone())));
    let versions = store.list_versions(uid(1), None, 10).await.unwrap();
    assert_eq!(versions, vec![change.previous, version]);
    let counter = store.counter(uid(1), version_number(2)).await;
    assert_eq!(counter, Ok(Some(sealed(counter_row(1, 2)))));
}

/// A staged version 2 beside the primary.
fn staging(key: Sealed<KeyRow>) -> Staging {
    let expected_key = key.row.revision;
    let mut key = updated(key, "team");
    key.row.latest = version_number(2);
    let mut version = version_row(1, 2);
    version.state = VersionState::PreActivation;
    version.activate_time = Some(time(5000));
    let counter = sealed(counter_row(1, 2));
    Staging { expected_key, key, version: sealed(version), counter, import_job: None }
}

pub(crate) async fn a_staged_version_is_one_and_takes_the_place_of_the_primary(
    store: Arc<impl Store>,
) {
    create(&store, 1, 0).await;
    store.open_intent(sealed(intent(2))).await.unwrap();
    let first = staging(stored_key(&store, 1).await);
    let stale = Staging { expected_key: Revision::new(2), ..first.clone() };
    assert_eq!(store.stage(stale, closing(2, 1)).await, Err(StoreError::RevisionMismatch));
    assert_eq!(stored_key(&store, 1).await, sealed(key_row(1)));
    store.stage(first.clone(), closing(2, 1)).await.unwrap();
    assert_eq!(stored_key(&store, 1).await, first.key, "the primary stays");
    let counter = store.counter(uid(1), version_number(2)).await;
    assert_eq!(counter, Ok(Some(first.counter.clone())));

    // A second one is refused, and nothing of it is there.
    store.open_intent(sealed(intent(3))).await.unwrap();
    let mut second = staging(first.key.clone());
    second.key.row.latest = version_number(3);
    second.version.row.version = version_number(3);
    second.counter.row.version = version_number(3);
    assert_eq!(store.stage(second, closing(3, 2)).await, Err(StoreError::RevisionMismatch));
    assert_eq!(stored_key(&store, 1).await, first.key);

    let Rollover { mut key, previous, expected_previous, .. } = rollover(first.key.clone());
    key.row.latest = version_number(2);
    let mut version = first.version.clone();
    version.row.state = VersionState::Active;
    version.row.revision = version.row.revision.next();
    let good = Rollover {
        expected_key: first.key.row.revision,
        key: key.clone(),
        successor: Successor::Staged { expected: Revision::FIRST, version: version.clone() },
        expected_previous,
        previous: previous.clone(),
    };
    let successor = Successor::Staged { expected: Revision::new(2), version: version.clone() };
    let stale = Rollover { successor, ..good.clone() };
    assert_eq!(store.roll_over(stale, closing(3, 2)).await, Err(StoreError::RevisionMismatch));
    assert_eq!(stored_key(&store, 1).await, first.key);
    store.roll_over(good, closing(3, 2)).await.unwrap();
    assert_eq!(stored_key(&store, 1).await, key);
    let versions = store.list_versions(uid(1), None, 10).await.unwrap();
    assert_eq!(versions, vec![previous, version]);
}

pub(crate) async fn a_stale_rollover_changes_nothing(store: Arc<impl Store>) {
    create(&store, 1, 0).await;
    store.open_intent(sealed(intent(2))).await.unwrap();
    let good = rollover(stored_key(&store, 1).await);
    let stale_key = Rollover { expected_key: Revision::new(2), ..good.clone() };
    let stale_previous = Rollover { expected_previous: Revision::new(2), ..good.clone() };
    let mut no_version = good.clone();
    no_version.key.row.latest = version_number(3);
    no_version.key.row.primary = version_number(3);
    for (change, error) in [
        (stale_key, StoreError::RevisionMismatch),
        (stale_previous, StoreError::RevisionMismatch),
        (no_version, StoreError::NotFound),
    ] {
        assert_eq!(store.roll_over(change, closing(2, 1)).await, Err(error));
        assert_eq!(stored_key(&store, 1).await, sealed(key_row(1)));
        let versions = store.list_versions(uid(1), None, 10).await;
        assert_eq!(versions, Ok(vec![sealed(version_row(1, 1))]));
        assert_eq!(store.counter(uid(1), version_number(2)).await, Ok(None));
        assert_eq!(store.intents().await, Ok(listed_intents(vec![intent(2)])));
    }
    store.roll_over(good, closing(2, 1)).await.unwrap();
}

pub(crate) async fn a_version_is_updated_only_at_its_revision(store: Arc<impl Store>) {
    create(&store, 1, 0).await;
    let mut next = sealed(version_row(1, 1));
    next.row.state = VersionState::Suspended;
    next.row.revision = Revision::new(2);
    store.open_intent(sealed(intent(2))).await.unwrap();
    let stale = store.update_version(Revision::new(2), next.clone(), closing(2, 1)).await;
    assert_eq!(stale, Err(StoreError::RevisionMismatch));
    store.update_version(Revision::FIRST, next.clone(), closing(2, 1)).await.unwrap();
    assert_eq!(store.list_versions(uid(1), None, 10).await, Ok(vec![next.clone()]));
    store.open_intent(sealed(intent(3))).await.unwrap();
    next.row.version = version_number(2);
    let absent = store.update_version(Revision::FIRST, next, closing(3, 2)).await;
    assert_eq!(absent, Err(StoreError::NotFound));
}

pub(crate) async fn a_destroyed_version_stays_destroyed(store: Arc<impl Store>) {
    create(&store, 1, 0).await;
    let mut row = version_row(1, 1);
    let path = [VersionState::Compromised, VersionState::DestroyScheduled, VersionState::Destroyed];
    for (step, state) in (1..).zip(path) {
        store.open_intent(sealed(intent(10 + step))).await.unwrap();
        row.state = state;
        row.destruction = (state == VersionState::DestroyScheduled).then_some(Destruction {
            time: time(9),
            returns_to: VersionState::Compromised,
            despite_consumers: false,
            despite_recent_use: false,
        });
        if state == VersionState::Destroyed {
            row.material = Material::Wrapped(WrappedKey(vec![]));
        }
        row.revision = row.revision.next();
        let expected = Revision::new(row.revision.get() - 1);
        let end = closing(10 + step, u64::from(step));
        store.update_version(expected, sealed(row.clone()), end).await.unwrap();
    }
    store.open_intent(sealed(intent(20))).await.unwrap();
    let mut revived = row.clone();
    revived.state = VersionState::Active;
    revived.revision = row.revision.next();
    let refused = store.update_version(row.revision, sealed(revived), closing(20, 4)).await;
    assert!(matches!(refused, Err(StoreError::Damaged { .. })), "{refused:?}");
    assert_eq!(store.list_versions(uid(1), None, 10).await, Ok(vec![sealed(row)]));
}

pub(crate) async fn texts_at_their_bounds_are_stored_and_longer_ones_refused(
    store: Arc<impl Store>,
) {
    use kms_core::key::{MAX_OWNER_BYTES, MAX_REASON_BYTES, MAX_USAGE_BYTES};
    let mut new = new_key(1);
    new.key.row.owner = "o".repeat(MAX_OWNER_BYTES);
    new.key.row.usage = "u".repeat(MAX_USAGE_BYTES);
    new.version.row.state_reason = "r".repeat(MAX_REASON_BYTES);
    let edits: [fn(&mut NewKey); 3] = [
        |new| new.key.row.owner.push('o'),
        |new| new.key.row.usage.push('u'),
        |new| new.version.row.state_reason.push('r'),
    ];
    store.open_intent(sealed(intent(1))).await.unwrap();
    for edit in edits {
        let mut longer = new.clone();
        edit(&mut longer);
        let refused = store.create_key(longer, closing(1, 0)).await;
        assert!(matches!(refused, Err(StoreError::Damaged { .. })), "{refused:?}");
    }
    store.create_key(new.clone(), closing(1, 0)).await.unwrap();
    assert_eq!(stored_key(&store, 1).await, new.key);
}
