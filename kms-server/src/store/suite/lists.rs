//! Lists, pages and bounds; roots, the probe, closing.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::store::{ListBy, ListOrder, ListPlace};

pub(crate) async fn a_new_store_is_empty(store: Arc<impl Store>) {
    assert_eq!(store.root_pins().await, Ok(vec![]));
    assert_eq!(store.intents().await, Ok(listed_intents(vec![])));
    assert_eq!(store.resident_ids().await, Ok(listed(vec![])));
    assert_eq!(store.manifest(tenant()).await, Ok(None));
    assert_eq!(store.list_keys(tenant(), None, 10).await, Ok(vec![]));
    assert_eq!(store.list_versions(uid(1), None, 10).await, Ok(vec![]));
    assert_eq!(store.counter(uid(1), KeyVersion::FIRST).await, Ok(None));
    assert_eq!(store.request("p".into(), RequestId::from_bytes([1; 16])).await, Ok(None));
    assert_eq!(store.key(KeyRef::Uid(uid(1)), VersionChoice::Primary).await, Ok(None));
    assert_eq!(store.due_deactivations(time(i64::MAX), None, 10).await, Ok(listed(vec![])));
    assert_eq!(store.due_destructions(time(i64::MAX), None, 10).await, Ok(listed(vec![])));
    assert_eq!(store.due_rotations(time(i64::MAX), None, 10).await, Ok(listed(vec![])));
    assert_eq!(store.list_history(uid(1), None, 10).await, Ok(vec![]));
}

pub(crate) async fn a_root_is_pinned_once(store: Arc<impl Store>) {
    let pin = |number: u32| RootPin {
        generation: RootGeneration::new(number).unwrap(),
        token_serial: "0123456789abcdef".into(),
        wrap_id: CkaId([1; 16]),
        wrap_check: vec![2; 40],
        mac_id: CkaId([3; 16]),
        mac_check: vec![4; 32],
    };
    store.add_root_pin(pin(2), RowMac([2; 32])).await.unwrap();
    store.add_root_pin(pin(1), RowMac([1; 32])).await.unwrap();
    let again = store.add_root_pin(pin(1), RowMac([9; 32])).await;
    assert_eq!(again, Err(StoreError::RevisionMismatch));
    let expected = vec![(pin(1), RowMac([1; 32])), (pin(2), RowMac([2; 32]))];
    assert_eq!(store.root_pins().await, Ok(expected));
}

pub(crate) async fn keys_are_paged_by_create_time_and_uid(store: Arc<impl Store>) {
    let mut expected = Vec::new();
    for number in 1..=12 {
        let mut new = new_key(number);
        // Four keys share each create time, and older keys are made later.
        new.key.row.create_time = time(i64::from(12 - number) / 4);
        expected.push(new.key.clone());
        store.open_intent(sealed(intent(number))).await.unwrap();
        store.create_key(new, closing(number, u64::from(number) - 1)).await.unwrap();
    }
    expected.sort_by_key(|key| (key.row.create_time, key.row.uid));
    for page_size in [1, 3, 5, 12, 13] {
        let mut seen = Vec::new();
        let mut after = None;
        loop {
            let page = store.list_keys(tenant(), after, page_size).await.unwrap();
            assert!(page.len() <= page_size as usize);
            let Some(last) = page.last() else { break };
            after = Some(ListPosition { create_time: last.row.create_time, uid: last.row.uid });
            seen.extend(page);
        }
        assert_eq!(seen, expected, "{page_size}");
    }
    let other = TenantName::from_id("t2").unwrap();
    assert_eq!(store.list_keys(other, None, 10).await, Ok(vec![]));
}

pub(crate) async fn keys_are_paged_in_every_order(store: Arc<impl Store>) {
    let mut keys = Vec::new();
    for number in 1..=9 {
        let mut new = new_key(number);
        new.key.row.create_time = time(i64::from(9 - number) / 3);
        keys.push(new.key.clone());
        store.open_intent(sealed(intent(number))).await.unwrap();
        store.create_key(new, closing(number, u64::from(number) - 1)).await.unwrap();
    }
    for by in [ListBy::CreateTime, ListBy::KeyId] {
        for descending in [false, true] {
            let order = ListOrder { by, descending };
            let mut expected = keys.clone();
            match by {
                ListBy::CreateTime => {
                    expected.sort_by_key(|key| (key.row.create_time, key.row.uid));
                }
                ListBy::KeyId => {
                    expected.sort_by_key(|key| key.row.name.key_id().to_owned());
                }
            }
            if descending {
                expected.reverse();
            }
            for page_size in [1, 2, 4, 9, 10] {
                let (mut seen, mut after) = (Vec::new(), None);
                loop {
                    let page = store.list_keys_ordered(tenant(), order, after, page_size).await;
                    let page = page.unwrap();
                    assert!(page.len() <= page_size as usize);
                    let Some(last) = page.last() else { break };
                    let (create_time, uid) = (last.row.create_time, last.row.uid);
                    let position = ListPosition { create_time, uid };
                    after = Some(ListPlace { position, key_id: last.row.name.key_id().to_owned() });
                    seen.extend(page);
                }
                assert_eq!(seen, expected, "{order:?} {page_size}");
            }
            let other = TenantName::from_id("t2").unwrap();
            assert_eq!(store.list_keys_ordered(other, order, None, 10).await, Ok(vec![]));
            assert_eq!(store.list_keys_ordered(tenant(), order, None, 0).await, Ok(vec![]));
        }
    }
}

pub(crate) async fn manifests_are_paged_by_tenant(store: Arc<impl Store>) {
    let mut expected = Vec::new();
    for (number, tenant) in (1..).zip(["t1", "b", "t", "z-z", "a"]) {
        let mut closing = closing(number, 0);
        closing.manifest.manifest.row.tenant = TenantName::from_id(tenant).unwrap();
        expected.push(closing.manifest.manifest.clone());
        store.open_intent(sealed(intent(number))).await.unwrap();
        store.create_key(new_key(number), closing).await.unwrap();
    }
    expected.sort_by_key(|manifest| manifest.row.tenant.id().to_owned());
    for page_size in [1, 2, 5, 6] {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = store.list_manifests(after, page_size).await.unwrap();
            assert!(page.len() <= page_size as usize);
            let Some(last) = page.last() else { break };
            after = Some(last.row.tenant.clone());
            seen.extend(page);
        }
        assert_eq!(seen, expected, "{page_size}");
    }
}

pub(crate) async fn lists_are_bounded(store: Arc<impl Store>) {
    create(&store, 1, 0).await;
    assert_eq!(store.list_keys(tenant(), None, 0).await, Ok(vec![]));
    assert_eq!(store.list_keys(tenant(), None, u32::MAX).await.unwrap().len(), 1);
    let mut key = stored_key(&store, 1).await;
    let mut previous = version_row(1, 1);
    for number in 2..=MAX_LIST_ROWS + 1 {
        store.open_intent(sealed(intent(2))).await.unwrap();
        let expected_key = key.row.revision;
        key = updated(key, "team");
        key.row.primary = version_number(number);
        key.row.latest = version_number(number);
        previous.revision = Revision::new(2);
        let change = Rollover {
            expected_key,
            key: key.clone(),
            successor: Successor::New {
                version: sealed(version_row(1, number)),
                counter: sealed(counter_row(1, number)),
            },
            expected_previous: Revision::FIRST,
            previous: sealed(previous),
        };
        store.roll_over(change, closing(2, u64::from(number) - 1)).await.unwrap();
        store.close_intent(intent_id(2)).await.unwrap();
        previous = version_row(1, number);
    }
    let limit = MAX_LIST_ROWS as usize;
    assert_eq!(store.list_versions(uid(1), None, MAX_LIST_ROWS).await.unwrap().len(), limit);
    assert_eq!(store.list_versions(uid(1), None, u32::MAX).await.unwrap().len(), limit);
}

pub(crate) async fn versions_are_listed_by_number(store: Arc<impl Store>) {
    create(&store, 1, 0).await;
    store.open_intent(sealed(intent(2))).await.unwrap();
    let change = keys::rollover(stored_key(&store, 1).await);
    let (previous, version) = (change.previous.clone(), sealed(version_row(1, 2)));
    store.roll_over(change, closing(2, 1)).await.unwrap();
    let page = store.list_versions(uid(1), None, 1).await;
    assert_eq!(page, Ok(vec![previous]));
    let page = store.list_versions(uid(1), Some(KeyVersion::FIRST), 1).await;
    assert_eq!(page, Ok(vec![version]));
    assert_eq!(store.list_versions(uid(1), Some(version_number(2)), 1).await, Ok(vec![]));
}

fn entry(version: u32, revision: u64, ms: i64) -> Sealed<HistoryRow> {
    let change = match version {
        0 => HistoryChange::Fields { detail: "{}".into() },
        number => HistoryChange::State {
            version: version_number(number),
            from: (revision > 1).then_some(VersionState::Active),
            to: VersionState::Suspended,
        },
    };
    sealed(HistoryRow {
        key_uid: uid(1),
        change,
        old_revision: Revision::new(revision - 1),
        revision: Revision::new(revision),
        time: time(ms),
        actor: "spiffe://holdfast.test/officer".into(),
        reason: "because".into(),
    })
}

pub(crate) async fn history_is_paged_by_time_version_and_revision(store: Arc<impl Store>) {
    let expected =
        vec![entry(1, 1, -5), entry(0, 2, 7), entry(1, 2, 7), entry(1, 3, 7), entry(2, 1, 8)];
    let mut mixed = expected.clone();
    mixed.reverse();
    store.open_intent(sealed(intent(1))).await.unwrap();
    let end = Closing { history: mixed, ..closing(1, 0) };
    store.create_key(new_key(1), end).await.unwrap();
    for size in 1..=6 {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = store.list_history(uid(1), after, size).await.unwrap();
            assert!(page.len() <= size as usize);
            let Some(last) = page.last() else { break };
            after = Some(HistoryPosition::of(&last.row));
            seen.extend(page);
        }
        assert_eq!(seen, expected, "{size}");
    }
    assert_eq!(store.list_history(uid(2), None, 10).await, Ok(vec![]), "another key");
    let last = |number| store.last_revision(uid(1), version_number(number));
    assert_eq!(last(1).await, Ok(Some(Revision::new(3))));
    assert_eq!(last(2).await, Ok(Some(Revision::new(1))));
    assert_eq!(last(3).await, Ok(None));
}

pub(crate) async fn history_is_never_changed_and_has_one_entry_a_revision(store: Arc<impl Store>) {
    store.open_intent(sealed(intent(1))).await.unwrap();
    let first = Closing { history: vec![entry(1, 1, 5)], ..closing(1, 0) };
    store.create_key(new_key(1), first).await.unwrap();
    store.open_intent(sealed(intent(2))).await.unwrap();
    let twice = Closing { history: vec![entry(1, 1, 9)], ..closing(2, 1) };
    let refused = store.create_key(new_key(2), twice).await;
    assert_eq!(refused, Err(StoreError::RevisionMismatch));
    assert_eq!(store.list_history(uid(1), None, 10).await, Ok(vec![entry(1, 1, 5)]));
    let absent = store.key(KeyRef::Uid(uid(2)), VersionChoice::Primary).await;
    assert_eq!(absent, Ok(None), "nothing of it was done");
}

pub(crate) async fn resident_ids_leave_out_destroyed_ones(store: Arc<impl Store>) {
    for (number, state) in [(1, VersionState::Active), (2, VersionState::Destroyed)] {
        let mut new = new_key(number);
        new.version.row.state = state;
        new.version.row.material = Material::Resident(CkaId([number; 16]));
        store.open_intent(sealed(intent(number))).await.unwrap();
        store.create_key(new, closing(number, u64::from(number) - 1)).await.unwrap();
    }
    create(&store, 3, 2).await;
    let ids: BTreeSet<_> = store.resident_ids().await.unwrap().rows.into_iter().collect();
    assert_eq!(ids, [CkaId([1; 16])].into());
}

pub(crate) async fn the_probe_writes(store: Arc<impl Store>) {
    store.probe(time(1)).await.unwrap();
    store.probe(time(2)).await.unwrap();
}

pub(crate) async fn a_closed_store_refuses(store: Arc<impl Store>) {
    create(&store, 1, 0).await;
    store.close().await;
    store.close().await;
    let refused = store.probe(time(1)).await;
    assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{refused:?}");
    assert!(store.root_pins().await.is_err());
}
