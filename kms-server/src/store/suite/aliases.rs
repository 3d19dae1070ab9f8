//! Aliases: they come, move and go with the rows of their keys, and no two look alike.

use std::sync::Arc;

use super::*;
use crate::store::{AliasChange, AliasEdit, AliasQuery, NewKey, Resealed, RowsLimit, SealedRow};

/// Changes an alias, with the keys it touches as they are now.
async fn change(
    store: &Arc<impl Store>,
    touched: &[u8],
    edit: AliasEdit,
    number: u8,
    manifest: u64,
) -> Result<(), StoreError> {
    let mut keys = Vec::new();
    for touched in touched {
        let old = stored_key(store, *touched).await;
        keys.push((old.row.revision, updated(old, "team")));
    }
    let change = AliasChange { keys, edit };
    store.change_alias(change, closing(number, manifest)).await
}

async fn open(store: &Arc<impl Store>, number: u8) {
    store.open_intent(sealed(intent(number))).await.unwrap();
}

async fn by_name(store: &Arc<impl Store>, id: &str) -> Vec<Sealed<AliasRow>> {
    let name = AliasName::new(tenant(), id).unwrap();
    store.aliases(AliasQuery::Name(name)).await.unwrap()
}

fn of(key_uid: Option<KeyUid>, after: u64, limit: u32) -> AliasQuery {
    AliasQuery::Of { tenant: tenant(), key_uid, after: Revision::new(after), limit }
}

fn other_mac(mut alias: Sealed<AliasRow>) -> Sealed<AliasRow> {
    alias.mac = RowMac([9; 32]);
    alias
}

pub(crate) async fn aliases_come_move_and_go_with_the_rows_of_their_keys(store: Arc<impl Store>) {
    create(&store, 1, 0).await;
    create(&store, 2, 1).await;
    open(&store, 3).await;
    let first = alias("a", 1, 3);
    change(&store, &[1], AliasEdit::Add(first.clone()), 3, 2).await.unwrap();
    assert_eq!(by_name(&store, "a").await, vec![first.clone()]);
    assert_eq!(stored_key(&store, 1).await.row.revision, Revision::new(2));

    // Only the one that was read is moved, to a later revision, with the keys as they were.
    open(&store, 4).await;
    let moved = other_mac(alias("a", 2, 4));
    let stale = AliasEdit::Move { from: moved.clone(), to: moved.clone() };
    assert_eq!(change(&store, &[2, 1], stale, 4, 3).await, Err(StoreError::NotFound));
    let back = AliasEdit::Move { from: first.clone(), to: alias("a", 2, 3) };
    assert!(change(&store, &[2, 1], back, 4, 3).await.is_err(), "the revision did not grow");
    let edit = AliasEdit::Move { from: first.clone(), to: moved.clone() };
    let key = stored_key(&store, 1).await;
    let keys = vec![(Revision::new(9), updated(key, "team"))];
    let of_another = AliasChange { keys, edit: edit.clone() };
    let refused = store.change_alias(of_another, closing(4, 3)).await;
    assert_eq!(refused, Err(StoreError::RevisionMismatch));
    assert_eq!(by_name(&store, "a").await, vec![first.clone()], "nothing of it was written");
    change(&store, &[2, 1], edit, 4, 3).await.unwrap();
    assert_eq!(by_name(&store, "a").await, vec![moved.clone()]);
    assert_eq!(stored_key(&store, 1).await.row.revision, Revision::new(3));
    assert_eq!(stored_key(&store, 2).await.row.revision, Revision::new(2));

    open(&store, 5).await;
    let gone = change(&store, &[2], AliasEdit::Remove(first), 5, 4).await;
    assert_eq!(gone, Err(StoreError::NotFound));
    change(&store, &[2], AliasEdit::Remove(moved), 5, 4).await.unwrap();
    assert_eq!(by_name(&store, "a").await, []);
}

pub(crate) async fn a_name_that_is_taken_or_looks_like_another_is_refused(store: Arc<impl Store>) {
    create(&store, 1, 0).await;
    open(&store, 2).await;
    change(&store, &[1], AliasEdit::Add(alias("prod-1", 1, 2)), 2, 1).await.unwrap();
    open(&store, 3).await;
    // The same, what looks like it, and the id of a key.
    for taken in ["prod-1", "prod-l", "prod_1", "k1"] {
        let refused = change(&store, &[1], AliasEdit::Add(alias(taken, 1, 3)), 3, 2).await;
        assert_eq!(refused, Err(StoreError::NameTaken), "{taken}");
    }
    assert_eq!(stored_key(&store, 1).await.row.revision, Revision::new(2));
    change(&store, &[1], AliasEdit::Add(alias("k2", 1, 3)), 3, 2).await.unwrap();
    // Nor is a key made with the id of an alias.
    open(&store, 4).await;
    let taken = NewKey { key: sealed(key_row(2)), ..new_key(2) };
    assert_eq!(store.create_key(taken, closing(4, 3)).await, Err(StoreError::NameTaken));
}

pub(crate) async fn aliases_are_read_by_name_by_looks_and_in_pages(store: Arc<impl Store>) {
    create(&store, 1, 0).await;
    create(&store, 2, 1).await;
    for (number, id, key) in [(3, "c", 1), (4, "b", 2), (5, "a-1", 1)] {
        open(&store, number).await;
        let revision = u64::from(number);
        let added = AliasEdit::Add(alias(id, key, revision));
        change(&store, &[key], added, number, revision - 1).await.unwrap();
    }
    let looks = AliasQuery::Skeleton { tenant: tenant(), skeleton: "a-l".into() };
    assert_eq!(store.aliases(looks).await, Ok(vec![alias("a-1", 1, 5)]));
    let (c, b, a) = (alias("c", 1, 3), alias("b", 2, 4), alias("a-1", 1, 5));
    assert_eq!(store.aliases(of(None, 0, 2)).await, Ok(vec![c.clone(), b.clone()]));
    assert_eq!(store.aliases(of(None, 4, 2)).await, Ok(vec![a.clone()]));
    assert_eq!(store.aliases(of(Some(uid(1)), 0, 9)).await, Ok(vec![c, a]));
    assert_eq!(store.aliases(of(Some(uid(2)), 4, 9)).await, Ok(vec![]));
    let elsewhere = AliasQuery::Of {
        tenant: TenantName::from_id("t2").unwrap(),
        key_uid: None,
        after: Revision::new(0),
        limit: 9,
    };
    assert_eq!(store.aliases(elsewhere).await, Ok(vec![]));

    // They are sealed anew with the rows of their keys.
    let second = RootGeneration::new(2).unwrap();
    let limit = RowsLimit { keys: 9, rows: 99 };
    let old = store.old_rows(tenant(), second, None, limit).await.unwrap().rows;
    let old: Vec<_> = old.into_iter().filter(|row| matches!(row, SealedRow::Alias(_))).collect();
    assert_eq!(old.len(), 3);
    assert_eq!(store.old_counts(second).await.unwrap().aliases, 3);
    let anew = |row: SealedRow| {
        let SealedRow::Alias(old) = row else { panic!() };
        let row = SealedRow::Alias(Sealed { mac: RowMac([2; 32]), generation: second, ..old });
        Resealed { expected: RowMac([7; 32]), row }
    };
    open(&store, 6).await;
    store.reseal(old.into_iter().map(anew).collect(), closing(6, 5)).await.unwrap();
    assert_eq!(store.old_counts(second).await.unwrap().aliases, 0);
    assert_eq!(by_name(&store, "b").await[0].row, b.row);
}

pub(crate) async fn an_alias_of_a_destroyed_key_goes_and_nothing_else_of_the_key_changes(
    store: Arc<impl Store>,
) {
    let mut new = new_key(1);
    new.key.row.state = KeyState::Destroyed;
    open(&store, 1).await;
    store.create_key(new, closing(1, 0)).await.unwrap();
    open(&store, 2).await;
    let added = alias("a", 1, 2);
    change(&store, &[1], AliasEdit::Add(added.clone()), 2, 1).await.unwrap();
    open(&store, 3).await;
    let old = stored_key(&store, 1).await;
    let keys = vec![(old.row.revision, updated(old.clone(), "another"))];
    let edit = AliasEdit::Remove(added.clone());
    let refused = store.change_alias(AliasChange { keys, edit }, closing(3, 2)).await;
    assert!(refused.is_err(), "the owner of a tombstone was changed");
    change(&store, &[1], AliasEdit::Remove(added), 3, 2).await.unwrap();
}
