//! What is due: which rows are listed, in which order, and where a list goes on.

use std::sync::Arc;

use super::*;

pub(crate) async fn due_deactivations_are_those_of_active_versions(store: Arc<impl Store>) {
    for (number, state, due) in [
        (1, VersionState::Active, Some(300)),
        (2, VersionState::Active, Some(100)),
        (3, VersionState::Active, None),
        (4, VersionState::Suspended, Some(100)),
        (5, VersionState::Active, Some(301)),
    ] {
        let mut new = new_key(number);
        new.version.row.state = state;
        new.version.row.deactivate_time = due.map(time);
        store.open_intent(sealed(intent(number))).await.unwrap();
        store.create_key(new, closing(number, u64::from(number) - 1)).await.unwrap();
    }
    let due = |found: Vec<Sealed<VersionRow>>| -> Vec<KeyUid> {
        found.into_iter().map(|version| version.row.key_uid).collect()
    };
    let all = store.due_deactivations(time(300), None, 10).await.unwrap().rows;
    assert_eq!(due(all), [uid(2), uid(1)]);
    let one = store.due_deactivations(time(300), None, 1).await.unwrap().rows;
    assert_eq!(due(one), [uid(2)]);
    assert_eq!(store.due_deactivations(time(99), None, 10).await, Ok(listed(vec![])));
}

pub(crate) async fn due_rotations_are_those_of_active_primaries_of_enabled_keys(
    store: Arc<impl Store>,
) {
    let (enabled, disabled) = (KeyState::Enabled, KeyState::Disabled);
    for (number, key_state, state, due) in [
        (1, enabled, VersionState::Active, Some(300)),
        (2, enabled, VersionState::Active, Some(100)),
        (3, enabled, VersionState::Active, None),
        (4, enabled, VersionState::Suspended, Some(100)),
        (5, enabled, VersionState::Active, Some(301)),
        (6, disabled, VersionState::Active, Some(100)),
    ] {
        let mut new = new_key(number);
        new.key.row.state = key_state;
        new.version.row.state = state;
        let period = Duration::from_hours(1);
        new.key.row.rotation = due.map(|due| Rotation { period, due: time(due) });
        store.open_intent(sealed(intent(number))).await.unwrap();
        store.create_key(new, closing(number, u64::from(number) - 1)).await.unwrap();
    }
    let due = |found: Listed<Sealed<KeyRow>>| -> Vec<KeyUid> {
        found.rows.into_iter().map(|key| key.row.uid).collect()
    };
    assert_eq!(due(store.due_rotations(time(300), None, 10).await.unwrap()), [uid(2), uid(1)]);
    assert_eq!(due(store.due_rotations(time(300), None, 1).await.unwrap()), [uid(2)]);
    assert_eq!(store.due_rotations(time(99), None, 10).await, Ok(listed(vec![])));
}

pub(crate) async fn due_activations_are_those_of_staged_versions_of_enabled_keys(
    store: Arc<impl Store>,
) {
    let (enabled, disabled) = (KeyState::Enabled, KeyState::Disabled);
    for (number, key_state, state, due) in [
        (1, enabled, VersionState::PreActivation, Some(300)),
        (2, enabled, VersionState::PreActivation, Some(100)),
        (3, enabled, VersionState::PreActivation, None),
        (4, enabled, VersionState::Active, Some(100)),
        (5, enabled, VersionState::PreActivation, Some(301)),
        (6, disabled, VersionState::PreActivation, Some(100)),
    ] {
        let mut new = new_key(number);
        new.key.row.state = key_state;
        new.version.row.state = state;
        new.version.row.activate_time = due.map(time);
        store.open_intent(sealed(intent(number))).await.unwrap();
        store.create_key(new, closing(number, u64::from(number) - 1)).await.unwrap();
    }
    let due = |found: Listed<Sealed<VersionRow>>| -> Vec<KeyUid> {
        found.rows.into_iter().map(|version| version.row.key_uid).collect()
    };
    assert_eq!(due(store.due_activations(time(300), None, 10).await.unwrap()), [uid(2), uid(1)]);
    assert_eq!(due(store.due_activations(time(300), None, 1).await.unwrap()), [uid(2)]);
    assert_eq!(store.due_activations(time(99), None, 10).await, Ok(listed(vec![])));
}

pub(crate) async fn due_destructions_are_those_planned_the_first_first(store: Arc<impl Store>) {
    for (number, due) in [(1, Some(300)), (2, Some(100)), (3, None), (4, Some(301))] {
        let mut new = new_key(number);
        if let Some(due) = due {
            new.version.row.state = VersionState::DestroyScheduled;
            new.version.row.destruction = Some(Destruction {
                time: time(due),
                returns_to: VersionState::Compromised,
                despite_consumers: false,
                despite_recent_use: false,
            });
        }
        store.open_intent(sealed(intent(number))).await.unwrap();
        store.create_key(new, closing(number, u64::from(number) - 1)).await.unwrap();
    }
    let due = |found: Listed<Sealed<VersionRow>>| -> Vec<KeyUid> {
        found.rows.into_iter().map(|version| version.row.key_uid).collect()
    };
    assert_eq!(due(store.due_destructions(time(300), None, 10).await.unwrap()), [uid(2), uid(1)]);
    assert_eq!(due(store.due_destructions(time(300), None, 1).await.unwrap()), [uid(2)]);
    assert_eq!(store.due_destructions(time(99), None, 10).await, Ok(listed(vec![])));
}

/// Makes nine keys, three of which share each due time, and returns their order.
async fn nine_due(store: &Arc<impl Store>, state: VersionState) -> Vec<KeyUid> {
    let mut order = Vec::new();
    for number in 1..=9 {
        let due = time(100 + i64::from(10 - number) / 3);
        let mut new = new_key(number);
        new.key.row.rotation = Some(Rotation { period: Duration::from_hours(1), due });
        new.version.row.state = state;
        match state {
            VersionState::PreActivation => new.version.row.activate_time = Some(due),
            VersionState::Active => new.version.row.deactivate_time = Some(due),
            _ => {
                new.version.row.destruction = Some(Destruction {
                    time: due,
                    returns_to: VersionState::Deactivated,
                    despite_consumers: false,
                    despite_recent_use: false,
                });
            }
        }
        order.push((due, new.key.row.uid));
        store.open_intent(sealed(intent(number))).await.unwrap();
        store.create_key(new, closing(number, u64::from(number) - 1)).await.unwrap();
    }
    order.sort();
    order.into_iter().map(|(_, uid)| uid).collect()
}

/// Reads a list of what is due page by page and asserts the order at several sizes of a page.
macro_rules! assert_paged {
    ($store:expr, $order:expr, $list:ident, $position:expr) => {
        for limit in [1, 2, 4, 9, 10] {
            let (mut seen, mut after) = (Vec::new(), None);
            loop {
                let page = $store.$list(time(300), after, limit).await.unwrap().rows;
                assert!(page.len() <= limit as usize);
                let Some(last) = page.last() else { break };
                after = Some($position(&last.row));
                seen.extend(page.iter().map(|row| $position(&row.row).key_uid));
            }
            assert_eq!(seen, $order, "{} by {limit}", stringify!($list));
        }
    };
}

pub(crate) async fn due_activations_go_on_after_a_place(store: Arc<impl Store>) {
    let order = nine_due(&store, VersionState::PreActivation).await;
    assert_paged!(store, order, due_activations, |row: &VersionRow| DuePosition {
        time: row.activate_time.unwrap(),
        key_uid: row.key_uid,
        version: row.version.get(),
    });
}

pub(crate) async fn due_deactivations_and_rotations_go_on_after_a_place(store: Arc<impl Store>) {
    let order = nine_due(&store, VersionState::Active).await;
    assert_paged!(store, order, due_deactivations, |row: &VersionRow| DuePosition {
        time: row.deactivate_time.unwrap(),
        key_uid: row.key_uid,
        version: row.version.get(),
    });
    assert_paged!(store, order, due_rotations, |row: &KeyRow| DuePosition {
        time: row.rotation.unwrap().due,
        key_uid: row.uid,
        version: 0,
    });
}

pub(crate) async fn due_destructions_go_on_after_a_place(store: Arc<impl Store>) {
    let order = nine_due(&store, VersionState::DestroyScheduled).await;
    assert_paged!(store, order, due_destructions, |row: &VersionRow| DuePosition {
        time: row.destruction.unwrap().time,
        key_uid: row.key_uid,
        version: row.version.get(),
    });
}

/// Makes a key whose destruction is planned.
fn scheduled_key(number: u8, due: i64) -> NewKey {
    let mut new = new_key(number);
    new.key.row.state = KeyState::DestroyScheduled;
    let (despite_consumers, despite_recent_use, begun) = (false, false, false);
    let destruction =
        KeyDestruction { time: time(due), despite_consumers, despite_recent_use, begun };
    new.key.row.destruction = Some(destruction);
    new
}

pub(crate) async fn due_key_destructions_are_those_not_held_or_begun(store: Arc<impl Store>) {
    for (number, due, consumers, despite_consumers, begun) in [
        (1, Some(300), 0, false, false),
        (2, Some(100), 0, false, false),
        (3, None, 0, false, false),
        (4, Some(301), 0, false, false),
        (5, Some(50), 1, false, false),
        (6, Some(60), 1, true, false),
        (7, Some(70), 1, false, true),
    ] {
        let mut new = due.map_or_else(|| new_key(number), |due| scheduled_key(number, due));
        new.key.row.consumers = consumers;
        let planned = new.key.row.destruction;
        new.key.row.destruction =
            planned.map(|planned| KeyDestruction { despite_consumers, begun, ..planned });
        store.open_intent(sealed(intent(number))).await.unwrap();
        let key = new.key.clone();
        store.create_key(new, closing(number, u64::from(number) - 1)).await.unwrap();
        let stored = store.key(KeyRef::Uid(key.row.uid), VersionChoice::Primary).await.unwrap();
        assert_eq!(stored.unwrap().key, key, "all of it reads back");
    }
    let due = |found: Listed<Sealed<KeyRow>>| -> Vec<KeyUid> {
        found.rows.into_iter().map(|key| key.row.uid).collect()
    };
    let all = store.due_key_destructions(time(300), None, 10).await.unwrap();
    assert_eq!(due(all), [6, 7, 2, 1].map(uid));
    assert_eq!(due(store.due_key_destructions(time(300), None, 1).await.unwrap()), [uid(6)]);
    assert_eq!(store.due_key_destructions(time(59), None, 10).await, Ok(listed(vec![])));
}

pub(crate) async fn due_key_destructions_go_on_after_a_place(store: Arc<impl Store>) {
    let mut order = Vec::new();
    for number in 1..=9 {
        let new = scheduled_key(number, 100 + i64::from(10 - number) / 3);
        order.push((new.key.row.destruction.unwrap().time, new.key.row.uid));
        store.open_intent(sealed(intent(number))).await.unwrap();
        store.create_key(new, closing(number, u64::from(number) - 1)).await.unwrap();
    }
    order.sort();
    let order: Vec<_> = order.into_iter().map(|(_, uid)| uid).collect();
    assert_paged!(store, order, due_key_destructions, |row: &KeyRow| DuePosition {
        time: row.destruction.unwrap().time,
        key_uid: row.uid,
        version: 0,
    });
}
