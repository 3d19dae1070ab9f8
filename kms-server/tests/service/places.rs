//! What one tenant, or one slow change, may take from others.

use std::time::Duration;

use kms_core::audit::Phase;
use kms_server::service::{
    Full, Kms, MAX_TENANT_MUTATIONS, RequestContext, RotateKey, ServiceError,
};

use crate::support::*;

const KEY: &str = "tenants/t/keys/k";
const CREATE: &str = "kms.v1.KeyService/CreateKey";
const ROTATE: &str = "kms.v1.KeyService/RotateKey";

async fn rotate(kms: Kms, request: RequestContext) -> Result<(), ServiceError> {
    let rotate = RotateKey { name: name(KEY), reason: String::new(), request_id: fresh_id() };
    kms.rotate_key(&request, rotate).await.map(drop)
}

#[tokio::test]
async fn waiting_for_another_change_of_the_tenant_ends_at_the_deadline() {
    let world = World::new().await;
    world.create(KEY).await;
    let before = world.records().len();
    let gate = world.faults.stop_intents();
    let first = tokio::spawn(rotate(world.kms.clone(), world.request(ROTATE)));
    gate.arrivals(1).await;
    let mut request = world.request(ROTATE);
    request.deadline = request.received + Duration::from_millis(10);
    let event_id = request.event_id;
    let late = rotate(world.kms.clone(), request);
    let late = kms_testkit::deadline::within(Duration::from_mins(1), "a refusal", late).await;
    assert_eq!(late, Err(ServiceError::QueueDeadline));
    gate.open();
    first.await.unwrap().unwrap();
    // The first one's turn was not lost, and the second one began nothing.
    rotate(world.kms.clone(), world.request(ROTATE)).await.unwrap();
    let records = world.records().split_off(before);
    let of_late: Vec<_> = records.iter().filter(|record| record.event_id == event_id).collect();
    let [refused] = of_late.as_slice() else { panic!("{of_late:?}") };
    assert_eq!((refused.phase, &*refused.result), (Phase::Complete, "QUEUE_DEADLINE"));
}

#[tokio::test]
async fn a_tenant_changes_up_to_its_limit_at_a_time_and_others_go_on() {
    let world = World::new().await;
    let gate = world.faults.stop_intents();
    let begin = |key: String| {
        let (kms, request) = (world.kms.clone(), world.request(CREATE));
        tokio::spawn(async move { kms.create_key(&request, create(&key)).await })
    };
    let limit = u32::try_from(MAX_TENANT_MUTATIONS).unwrap();
    let mut creations: Vec<_> = (0..limit).map(|n| begin(format!("{KEY}{n}"))).collect();
    gate.arrivals(limit).await;
    let full = begin(format!("{KEY}-more")).await.unwrap().unwrap_err();
    assert!(
        matches!(full, ServiceError::HsmSaturated { full: Full::ChangesOfTenant, .. }),
        "{full:?}"
    );
    assert_eq!(full.public_text(), "too many changes of keys of this tenant at a time");
    assert!(full.retry().is_some());
    creations.push(begin("tenants/u/keys/k".to_owned()));
    gate.arrivals(1).await;
    gate.open();
    for creation in creations {
        creation.await.unwrap().unwrap();
    }
    begin(format!("{KEY}-more")).await.unwrap().unwrap();
}
