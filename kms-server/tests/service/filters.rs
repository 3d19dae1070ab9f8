//! Lists of keys with a filter and an order: what passes, in pages that are short and go on, and what is refused.

use std::collections::BTreeMap;
use std::time::Duration;

use kms_core::key::Sensitivity;
use kms_server::authz::ActionKind;
use kms_server::service::{ChangeVersionState, CreateKey, ListKeys, RotateKey, ServiceError};

use crate::support::*;

const LIST: &str = "kms.v1.KeyService/ListKeys";

fn all() -> ListKeys {
    ListKeys::all(name("tenants/t/keys/k").tenant().clone())
}

/// Turns all pages; returns the ids and how many pages there were.
async fn listed(world: &World, list: ListKeys) -> (Vec<String>, usize) {
    let (mut ids, mut pages, mut page_token) = (Vec::new(), 0, String::new());
    loop {
        let list = ListKeys { page_token, ..list.clone() };
        let size = list.page_size;
        let page = world.kms.list_keys(&world.request(LIST), list).await.unwrap();
        assert!(size == 0 || page.items.len() <= size as usize);
        ids.extend(page.items.into_iter().map(|key| key.name.key_id().to_owned()));
        pages += 1;
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return (ids, pages);
        }
    }
}

async fn filtered(world: &World, filter: &str) -> Vec<String> {
    listed(world, ListKeys { filter: filter.into(), ..all() }).await.0
}

/// Three keys that differ in all that a filter looks at.
async fn three() -> World {
    let world = World::new().await;
    for (key, owner, sensitivity, label) in [
        ("b-orders", "blue", Sensitivity::High, "pci"),
        ("a-logs", "red", Sensitivity::Low, "none"),
        ("c-mail", "blue", Sensitivity::Low, "pci"),
    ] {
        let labels = BTreeMap::from([("scope".to_owned(), label.to_owned())]);
        let rotation_period = (key == "c-mail").then_some(Duration::from_hours(24));
        let create = CreateKey {
            owner: owner.into(),
            sensitivity,
            labels,
            rotation_period,
            ..create(&format!("tenants/t/keys/{key}"))
        };
        world.kms.create_key(&world.request("kms.v1.KeyService/CreateKey"), create).await.unwrap();
        world.clock.advance(Duration::from_mins(1));
    }
    world
}

#[tokio::test]
async fn what_passes_is_listed_and_nothing_else() {
    let world = three().await;
    assert_eq!(filtered(&world, "").await, ["b-orders", "a-logs", "c-mail"]);
    assert_eq!(filtered(&world, "owner = blue").await, ["b-orders", "c-mail"]);
    assert_eq!(filtered(&world, "owner = blue AND sensitivity != HIGH").await, ["c-mail"]);
    assert_eq!(filtered(&world, "labels.scope = pci AND -name = *mail").await, ["b-orders"]);
    assert_eq!(filtered(&world, "next_rotation_time:*").await, ["c-mail"]);
    assert_eq!(filtered(&world, "state = DISABLED").await, [""; 0]);
    let created = "create_time > \"2023-11-14T22:13:20Z\"";
    assert_eq!(filtered(&world, created).await, ["a-logs", "c-mail"]);
    let due = "next_rotation_time < \"2030-01-01T00:00:00Z\"";
    assert_eq!(filtered(&world, due).await, ["c-mail"]);
}

#[tokio::test]
async fn uses_that_nobody_has_written_down_yet_count() {
    let world = three().await;
    assert_eq!(filtered(&world, "last_use_time:*").await, [""; 0]);
    world.wrap("tenants/t/keys/a-logs").await;
    assert_eq!(filtered(&world, "last_use_time:*").await, ["a-logs"]);
    let unused = "NOT last_use_time:* OR last_use_time < \"2023-11-14T22:13:20Z\"";
    assert_eq!(filtered(&world, unused).await, ["b-orders", "c-mail"]);
}

/// Uses are flushed once a call, and the rows of all versions of a key are verified in one call of the HSM.
#[tokio::test]
async fn a_version_more_is_one_read_more() {
    const KEY: &str = "tenants/t/keys/k";
    let world = World::new().await;
    world.create(KEY).await;
    let list = || ListKeys { filter: "last_use_time:*".into(), ..all() };
    let mut calls = Vec::new();
    for _ in 0..3 {
        world.wrap(KEY).await;
        world.kms.reconcile().await.unwrap();
        let before = world.faults.calls();
        assert_eq!(listed(&world, list()).await.0, ["k"]);
        calls.push(world.faults.calls() - before);
        let rotate = RotateKey { name: name(KEY), reason: String::new(), request_id: fresh_id() };
        world.kms.rotate_key(&world.request("kms.v1.KeyService/RotateKey"), rotate).await.unwrap();
    }
    assert_eq!((calls[1] - calls[0], calls[2] - calls[1]), (1, 1), "{calls:?}");
    // The time of the call bounds it.
    let mut late = world.request(LIST);
    late.deadline = late.received;
    assert_eq!(world.kms.list_keys(&late, list()).await, Err(ServiceError::QueueDeadline));
}

/// What is listed of a key is of one moment, whatever happens while the page is made.
#[tokio::test]
async fn a_key_is_not_listed_with_the_primary_of_another_moment() {
    const KEY: &str = "tenants/t/keys/k";
    let world = World::new().await;
    world.create(KEY).await;
    let gate = world.faults.stop_next_list();
    let (kms, request) = (world.kms.clone(), world.request(LIST));
    let listing = tokio::spawn(async move { kms.list_keys(&request, all()).await });
    gate.arrivals(1).await;
    let compromise = ChangeVersionState {
        name: format!("{KEY}/versions/1").parse().unwrap(),
        reason: "test".into(),
        request_id: fresh_id(),
    };
    let request = world.request("kms.v1.KeyService/CompromiseKeyVersion");
    world.kms.compromise_key_version(&request, compromise).await.unwrap();
    gate.open();
    let items = listing.await.unwrap().unwrap().items;
    let request = world.request("kms.v1.KeyService/DescribeKey");
    assert_eq!(items, [world.kms.describe_key(&request, &name(KEY)).await.unwrap()]);
}

#[tokio::test]
async fn keys_are_listed_in_the_order_that_is_asked_for() {
    let world = three().await;
    for (order_by, expected) in [
        ("", ["b-orders", "a-logs", "c-mail"]),
        ("create_time desc", ["c-mail", "a-logs", "b-orders"]),
        ("name", ["a-logs", "b-orders", "c-mail"]),
        ("name desc", ["c-mail", "b-orders", "a-logs"]),
    ] {
        for page_size in [1, 2, 3] {
            let list = ListKeys { page_size, order_by: order_by.into(), ..all() };
            assert_eq!(listed(&world, list).await.0, expected, "{order_by} {page_size}");
        }
    }
}

/// One call looks at no more than a bounded number of keys, so a page may be empty and go on.
#[tokio::test]
async fn a_page_that_finds_nothing_in_reach_is_empty_and_goes_on() {
    let world = World::new().await;
    for number in 0..102 {
        world.create(&format!("tenants/t/keys/k{number:03}")).await;
    }
    world.wrap("tenants/t/keys/k101").await;
    let list = ListKeys { filter: "last_use_time:*".into(), order_by: "name".into(), ..all() };
    let first = world.kms.list_keys(&world.request(LIST), list.clone()).await.unwrap();
    assert!(first.items.is_empty() && !first.next_page_token.is_empty(), "100 were looked at");
    assert_eq!(listed(&world, list.clone()).await, (vec!["k101".to_owned()], 2));
    // At the bound itself the list ends.
    let list = ListKeys { filter: "last_use_time:* OR name = *k000".into(), ..list };
    assert_eq!(listed(&world, list).await.0, ["k000", "k101"]);
    let (ids, pages) = listed(&world, ListKeys { filter: "owner = team".into(), ..all() }).await;
    assert_eq!((ids.len(), pages), (102, 3), "pages of 50");
}

#[tokio::test]
async fn a_token_is_of_its_filter_and_order_alone() {
    let world = three().await;
    let request = world.request(LIST);
    let lists = [
        ListKeys { page_size: 1, ..all() },
        ListKeys { page_size: 1, filter: "owner = blue".into(), ..all() },
        ListKeys { page_size: 1, filter: "owner = red OR owner = blue".into(), ..all() },
        ListKeys { page_size: 1, order_by: "name".into(), ..all() },
        ListKeys { page_size: 1, order_by: "name desc".into(), ..all() },
        ListKeys { page_size: 1, order_by: "name".into(), filter: "owner = blue".into(), ..all() },
    ];
    for (given, of) in lists.iter().enumerate() {
        let page = world.kms.list_keys(&request, of.clone()).await.unwrap();
        assert!(!page.next_page_token.is_empty());
        for (used, with) in lists.iter().enumerate() {
            let list = ListKeys { page_token: page.next_page_token.clone(), ..with.clone() };
            let answer = world.kms.list_keys(&request, list).await;
            match answer {
                Ok(_) => assert_eq!(given, used),
                Err(error) => {
                    assert_ne!(given, used);
                    assert_eq!(error.reason(), "FIELD_VIOLATION");
                }
            }
        }
    }
}

#[tokio::test]
async fn what_is_no_filter_or_no_order_is_refused_and_says_why() {
    let world = three().await;
    for (list, field, part) in [
        (ListKeys { filter: "owner".into(), ..all() }, "filter", "column 6"),
        (ListKeys { filter: "x".repeat(2049), ..all() }, "filter", "longer than 2048"),
        (ListKeys { order_by: "owner".into(), ..all() }, "order_by", "`create_time` or `name`"),
    ] {
        let error = world.kms.list_keys(&world.request(LIST), list).await.unwrap_err();
        let ServiceError::FieldViolation { .. } = &error else { panic!("{error:?}") };
        let text = error.to_string();
        assert!(text.contains(field) && text.contains(part), "{text}");
    }
}

/// Who may not list learns nothing of a filter either.
#[tokio::test]
async fn a_filter_asks_nothing_of_who_may_not_list() {
    let world = World::with(&[grant("reader", "t", &[ActionKind::DescribeKey])]).await;
    let request = world.request_of("reader", LIST);
    for filter in ["", "owner = team", "no filter at all"] {
        let list = ListKeys { filter: filter.into(), ..all() };
        let error = world.kms.list_keys(&request, list).await.unwrap_err();
        assert_eq!(error, ServiceError::AccessDenied);
    }
}

/// A key that would not pass is refused all the same when its row was edited: its owner could be what was edited.
#[tokio::test]
async fn a_row_that_was_edited_is_refused_and_not_skipped() {
    let world = three().await;
    let database = rusqlite::Connection::open(world.database()).unwrap();
    let edit = "UPDATE keys SET owner = 'green', revision = revision + 1 WHERE key_id = 'a-logs'";
    let edited = database.execute(edit, ()).unwrap();
    assert_eq!(edited, 1);
    for filter in ["owner = blue", "owner = green"] {
        let list = ListKeys { filter: filter.into(), ..all() };
        let error = world.restart().kms.list_keys(&world.request(LIST), list).await.unwrap_err();
        assert_eq!(error.reason(), "KEY_INTEGRITY");
    }
}
