//! Rows under an older root: found, counted, sealed anew, and no root retired before there are none.

use std::collections::BTreeSet;
use std::sync::Arc;

use kms_core::root::RetiredRoot;

use super::*;
use crate::store::{OldCounts, OldRows, Resealed, RowsLimit, SealedRow};

const ALL: RowsLimit = RowsLimit { keys: 100, rows: 100 };

fn second() -> RootGeneration {
    RootGeneration::new(2).unwrap()
}

/// Seals a row under the second root, with a MAC of its own.
fn anew(row: SealedRow) -> Resealed {
    let (mac, generation) = (RowMac([2; 32]), second());
    let expected = row.mac();
    let row = match row {
        SealedRow::Key(old) => SealedRow::Key(Sealed { mac, generation, ..old }),
        SealedRow::Version(mut old) => {
            old.row.material = Material::Wrapped(WrappedKey(vec![9; 40]));
            SealedRow::Version(Sealed { mac, generation, ..old })
        }
        SealedRow::History(old) => SealedRow::History(Sealed { mac, generation, ..old }),
        SealedRow::Consumer(old) => SealedRow::Consumer(Sealed { mac, generation, ..old }),
        SealedRow::Alias(old) => SealedRow::Alias(Sealed { mac, generation, ..old }),
        SealedRow::ImportJob(old) => SealedRow::ImportJob(Sealed { mac, generation, ..old }),
        SealedRow::Counter(old) => SealedRow::Counter(Sealed { mac, generation, ..old }),
        SealedRow::Usage(old) => SealedRow::Usage(Sealed { mac, generation, ..old }),
        SealedRow::Request(old) => SealedRow::Request(Sealed { mac, generation, ..old }),
        SealedRow::Manifest(old) => SealedRow::Manifest(Sealed { mac, generation, ..old }),
    };
    Resealed { expected, row }
}

/// A closing whose intent and manifest are sealed under the second root.
fn closing_anew(number: u8, expected: u64) -> Closing {
    let mut closing = closing(number, expected);
    closing.intent.generation = second();
    closing.manifest.manifest.generation = second();
    closing
}

async fn old(store: &Arc<impl Store>, limit: RowsLimit) -> OldRows {
    store.old_rows(tenant(), second(), None, limit).await.unwrap()
}

/// Creates key `number` with a consumer, an entry of history and a use.
async fn full_key(store: &Arc<impl Store>, number: u8, manifest: u64) {
    let mut closing = closing(number, manifest);
    // Requests of a tenant are few here.
    closing.request = (number == 1).then(|| sealed(request(number, 100)));
    closing.history = vec![sealed(history(number))];
    store.open_intent(sealed(intent(number))).await.unwrap();
    store.create_key(new_key(number), closing).await.unwrap();
    store.close_intent(intent_id(number)).await.unwrap();
    let used = UsageRow {
        key_uid: uid(number),
        version: KeyVersion::FIRST,
        uses: Uses::default(),
        revision: Revision::FIRST,
    };
    let written = store.update_usage(vec![(Revision::new(0), sealed(used))]).await.unwrap();
    assert_eq!(written, [Ok(())]);
}

fn history(number: u8) -> HistoryRow {
    HistoryRow {
        key_uid: uid(number),
        change: HistoryChange::Fields { detail: "{}".into() },
        old_revision: Revision::new(0),
        revision: Revision::FIRST,
        time: time(1000),
        actor: "p".into(),
        reason: "made".into(),
    }
}

pub(crate) async fn rows_are_sealed_anew_and_nothing_else_of_them_changes(store: Arc<impl Store>) {
    full_key(&store, 1, 0).await;
    let before = store.key(KeyRef::Uid(uid(1)), VersionChoice::Primary).await.unwrap().unwrap();
    let found = old(&store, ALL).await;
    assert_eq!((found.damaged, found.keys), (0, 1));
    assert_eq!(found.names.get(&uid(1)), Some(&before.key.row.name));
    let (covered, loose): (Vec<_>, Vec<_>) =
        found.rows.into_iter().map(anew).partition(|row| row.row.is_in_manifest());
    // Key, version and history; counter and usage.
    assert_eq!((covered.len(), loose.len()), (3, 2));
    assert_eq!(store.reseal_loose(loose.clone()).await, Ok(2));
    assert_eq!(store.reseal_loose(loose).await, Ok(0), "none has its old MAC any more");
    store.open_intent(sealed(intent(2))).await.unwrap();
    store.reseal(covered, closing_anew(2, 1)).await.unwrap();
    store.close_intent(intent_id(2)).await.unwrap();
    assert_eq!(old(&store, ALL).await.rows, []);
    let after = store.key(KeyRef::Uid(uid(1)), VersionChoice::Primary).await.unwrap().unwrap();
    assert_eq!(after.key.row, before.key.row);
    assert_eq!((after.key.mac, after.key.generation), (RowMac([2; 32]), second()));
    let (old, new) = (before.version.unwrap(), after.version.unwrap());
    assert_eq!(new.row.material, Material::Wrapped(WrappedKey(vec![9; 40])));
    assert_eq!(VersionRow { material: old.row.material.clone(), ..new.row }, old.row);
    let entries = store.list_history(uid(1), None, 10).await.unwrap();
    assert_eq!(entries[0].row, history(1));
    assert_eq!(entries[0].generation, second());
}

/// Of a tenant without rows: an import job came and went.
pub(crate) async fn a_manifest_is_sealed_anew_by_itself(store: Arc<impl Store>) {
    full_key(&store, 1, 0).await;
    let before = store.manifest(tenant()).await.unwrap().unwrap();
    let resealed = anew(SealedRow::Manifest(before.clone()));
    assert!(!resealed.row.is_in_manifest());
    assert_eq!(store.reseal_loose(vec![resealed.clone()]).await, Ok(1));
    let after = store.manifest(tenant()).await.unwrap().unwrap();
    assert_eq!((after.row, after.mac, after.generation), (before.row, RowMac([2; 32]), second()));
    assert_eq!(store.reseal_loose(vec![resealed]).await, Ok(0), "it has another MAC now");
    assert_eq!(store.old_counts(second()).await.unwrap().manifests, 0);
}

pub(crate) async fn a_row_that_was_changed_meanwhile_is_not_sealed_over(store: Arc<impl Store>) {
    full_key(&store, 1, 0).await;
    let rows = old(&store, ALL).await.rows;
    let covered: Vec<_> =
        rows.into_iter().map(anew).filter(|row| row.row.is_in_manifest()).collect();
    let mut wrong = covered.clone();
    wrong[1].expected = RowMac([8; 32]);
    store.open_intent(sealed(intent(2))).await.unwrap();
    let refused = store.reseal(wrong, closing_anew(2, 1)).await;
    assert_eq!(refused, Err(StoreError::RevisionMismatch));
    let refused = store.reseal(covered.clone(), closing_anew(2, 0)).await;
    assert_eq!(refused, Err(StoreError::RevisionMismatch), "of another manifest");
    assert_eq!(old(&store, ALL).await.rows.len(), 5, "nothing of it was written");
    store.reseal(covered, closing_anew(2, 1)).await.unwrap();
}

pub(crate) async fn old_rows_are_found_key_by_key_within_the_limits(store: Arc<impl Store>) {
    for number in 1..=5 {
        full_key(&store, number, u64::from(number) - 1).await;
    }
    for (limit, keys, rows, is_cut) in [
        (RowsLimit { keys: 2, rows: 100 }, 2, 10, false),
        (RowsLimit { keys: 100, rows: 7 }, 2, 7, true),
        (RowsLimit { keys: 100, rows: 10 }, 2, 10, true),
        (RowsLimit { keys: 5, rows: 100 }, 5, 25, false),
        (RowsLimit { keys: 6, rows: 100 }, 5, 25, false),
    ] {
        let found = old(&store, limit).await;
        assert_eq!((found.keys, found.rows.len(), found.cut.is_some()), (keys, rows, is_cut));
    }
    // Page by page every row is met once.
    let (mut seen, mut after) = (BTreeSet::new(), None);
    loop {
        let page = store
            .old_rows(tenant(), second(), after, RowsLimit { keys: 2, rows: 100 })
            .await
            .unwrap();
        seen.extend(page.rows.iter().filter_map(SealedRow::key_uid));
        after = page.whole;
        if page.keys < 2 {
            break;
        }
    }
    assert_eq!(seen.len(), 5);
    let other = TenantName::from_id("t2").unwrap();
    let none = store.old_rows(other, second(), None, ALL).await.unwrap();
    assert_eq!(none, OldRows::default());
    let none = store.old_rows(tenant(), RootGeneration::FIRST, None, ALL).await.unwrap();
    assert_eq!((none.rows, none.keys), (vec![], 5), "nothing is older than the first");
}

pub(crate) async fn a_root_is_retired_when_nothing_is_sealed_under_it(store: Arc<impl Store>) {
    let pin = |generation: RootGeneration| RootPin {
        generation,
        token_serial: "0123456789abcdef".into(),
        wrap_id: CkaId([1; 16]),
        wrap_check: vec![2; 40],
        mac_id: CkaId([3; 16]),
        mac_check: vec![4; 32],
    };
    for generation in [RootGeneration::FIRST, second()] {
        store.add_root_pin(pin(generation), RowMac([1; 32])).await.unwrap();
    }
    let retired = Sealed {
        row: RetiredRoot {
            retired: RootGeneration::FIRST,
            time: time(5),
            actor: "p".into(),
            reason: "rolled over".into(),
        },
        mac: RowMac([6; 32]),
        generation: second(),
    };
    full_key(&store, 1, 0).await;
    let counts = store.old_counts(second()).await.unwrap();
    let expected = OldCounts {
        keys: 1,
        versions: 1,
        history: 1,
        counters: 1,
        usage: 1,
        manifests: 1,
        requests: 1,
        ..OldCounts::default()
    };
    assert_eq!(counts, expected);
    assert_eq!(counts.total(), 7);
    assert_eq!(store.old_counts(RootGeneration::FIRST).await, Ok(OldCounts::default()));
    let refused = store.retire_root(retired.clone()).await;
    assert_eq!(refused, Err(StoreError::RevisionMismatch), "rows are under it");
    let rows: Vec<_> = old(&store, ALL).await.rows.into_iter().map(anew).collect();
    let (covered, mut loose): (Vec<_>, Vec<_>) =
        rows.into_iter().partition(|row| row.row.is_in_manifest());
    let requests = store.old_requests(second(), None, 10).await.unwrap().rows;
    assert_eq!(requests.len(), 1);
    let last = (requests[0].row.principal.clone(), requests[0].row.request_id);
    assert_eq!(store.old_requests(second(), Some(last), 10).await.unwrap().rows, []);
    loose.extend(requests.into_iter().map(SealedRow::Request).map(anew));
    assert_eq!(store.reseal_loose(loose).await, Ok(3));
    store.open_intent(sealed(intent(2))).await.unwrap();
    store.reseal(covered, closing_anew(2, 1)).await.unwrap();
    assert_eq!(store.old_counts(second()).await.unwrap().total(), 0);
    assert_eq!(store.retired_roots().await, Ok(vec![]));
    store.retire_root(retired.clone()).await.unwrap();
    assert_eq!(store.retired_roots().await, Ok(vec![retired.clone()]));
    let again = store.retire_root(retired.clone()).await;
    assert_eq!(again, Err(StoreError::RevisionMismatch));
    let mut unknown = retired;
    unknown.row.retired = RootGeneration::new(7).unwrap();
    unknown.generation = RootGeneration::new(8).unwrap();
    assert_eq!(store.retire_root(unknown).await, Err(StoreError::NotFound));
}
