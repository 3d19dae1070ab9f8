//! Floods of refused calls: few records, right counts, nothing lost, and nothing else folded.

use kms_core::audit::{AuditRecord, Decision};
use kms_server::audit::aggregate::{WHOLE_OF_KIND, WINDOW};
use kms_server::service::{BatchItems, ServiceError, Wrap};

use crate::support::*;

const KEY: &str = "tenants/t/keys/k";
const NOBODY: &str = "spiffe://td/nobody";
const WRAP: &str = "kms.v1.CryptoService/Wrap";
const BATCH: &str = "kms.v1.CryptoService/BatchWrap";

fn items(count: usize) -> BatchItems<Wrap> {
    (0..count).map(|_| Ok(wrap(KEY, b"x"))).collect()
}

/// Returns how many calls or items the refusals stand for.
fn told(records: &[AuditRecord]) -> u64 {
    let refused = records.iter().filter(|record| record.result != "OK");
    refused.map(|record| record.count.unwrap_or(1)).sum()
}

#[tokio::test]
async fn a_flood_of_refused_batches_leaves_few_records_and_the_right_count() {
    let world = World::new().await;
    world.create(KEY).await;
    let before = world.records().len();
    for round in 0..100 {
        let request = world.request_of(NOBODY, BATCH);
        let results = world.kms.batch_wrap(&request, items(1_000)).await.unwrap();
        assert!(results.iter().all(|result| *result == Err(ServiceError::AccessDenied)));
        if round == 50 {
            world.wrap(KEY).await;
            let permitted = world.last();
            assert_eq!((permitted.result.as_str(), permitted.count), ("OK", None));
            assert_eq!(permitted.principal, ADMIN);
        }
    }
    world.clock.advance(WINDOW);
    world.kms.write_refusals().await.unwrap();
    let records = world.records().split_off(before);
    let more = "the folded one, the permitted one, and its lease";
    assert_eq!(records.len() as u64, WHOLE_OF_KIND + 3, "{more}");
    assert_eq!(told(&records), 100_000);
    let folded = records.last().unwrap();
    assert_eq!(folded.count, Some(100_000 - WHOLE_OF_KIND));
    assert_eq!((folded.principal.as_str(), folded.result.as_str()), (NOBODY, "ACCESS_DENIED"));
    assert!(matches!(folded.decision, Decision::Deny { .. }));
}

#[tokio::test]
async fn undecodable_items_and_single_calls_are_folded_too() {
    let world = World::new().await;
    world.create(KEY).await;
    let before = world.records().len();
    let bad = || ServiceError::field("key", "is not a key name");
    let undecodable = (0..1_000).map(|_| Err(bad())).collect();
    world.kms.batch_wrap(&world.request(BATCH), undecodable).await.unwrap();
    for _ in 0..1_000 {
        world.kms.wrap(&world.request_of(NOBODY, WRAP), wrap(KEY, b"x")).await.unwrap_err();
        world.kms.refuse(&world.request(WRAP), bad()).await;
        let rotate = kms_server::service::RotateKey {
            name: name(KEY),
            reason: String::new(),
            request_id: fresh_id(),
        };
        let request = world.request_of(NOBODY, "kms.v1.KeyService/RotateKey");
        world.kms.rotate_key(&request, rotate).await.unwrap_err();
    }
    world.clock.advance(WINDOW);
    world.kms.write_refusals().await.unwrap();
    let records = world.records().split_off(before);
    assert_eq!(records.len() as u64, 4 * (WHOLE_OF_KIND + 1));
    assert_eq!(told(&records), 4_000);
}

#[tokio::test]
async fn a_permitted_item_beside_folded_ones_has_a_record_of_its_own() {
    let world = World::new().await;
    world.create(KEY).await;
    for empty in [1_000, 999] {
        let mut items: BatchItems<Wrap> = (0..empty).map(|_| Ok(wrap(KEY, b""))).collect();
        items.extend((empty < 1_000).then(|| Ok(wrap(KEY, b"x"))));
        world.kms.batch_wrap(&world.request(BATCH), items).await.unwrap();
    }
    let last = world.last();
    assert_eq!((last.result.as_str(), last.item, last.count), ("OK", Some(999), None));
}

#[tokio::test]
async fn what_is_folded_is_neither_waited_for_nor_lost_at_the_drain() {
    let world = World::new().await;
    world.create(KEY).await;
    let before = world.records().len();
    let request = || world.request_of(NOBODY, BATCH);
    world.kms.batch_wrap(&request(), items(1_000)).await.unwrap();
    // No room for records: what is folded does not need any, and is counted on.
    world.sink.refuse(true);
    world.kms.batch_wrap(&request(), items(1_000)).await.unwrap();
    world.clock.advance(WINDOW);
    world.kms.write_refusals().await.unwrap_err();
    world.sink.refuse(false);
    world.kms.drain().await.unwrap();
    let records = world.records().split_off(before);
    assert_eq!(records.len() as u64, WHOLE_OF_KIND + 1);
    assert_eq!(told(&records), 2_000);
}

#[tokio::test]
async fn a_failure_that_is_not_the_callers_is_never_folded() {
    let world = World::new().await;
    world.create(KEY).await;
    world.wrap(KEY).await;
    let before = world.records().len();
    let calls = 2 * WHOLE_OF_KIND;
    for _ in 0..calls {
        world.faults.fail(0, 1, false);
        let refused = world.kms.wrap(&world.request(WRAP), wrap(KEY, b"x")).await.unwrap_err();
        assert_eq!(refused.reason(), "HSM_UNAVAILABLE");
    }
    assert_eq!((world.records().len() - before) as u64, calls);
}
