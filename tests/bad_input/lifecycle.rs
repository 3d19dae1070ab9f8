//! Moves that a state does not allow, windows and periods out of their bounds, and the whole way over the wire.

use kms_proto::v1 as proto;
use tonic::{Code, Response, Status};

use crate::common::calls::new_key;
use crate::common::{Client, Rig, Server, refusal, request_id};

const DAY_SECONDS: i64 = 86_400;

const fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

async fn schedule(
    client: &Client,
    version: &str,
    window: Option<prost_types::Duration>,
    allow_recent_use: bool,
) -> Result<proto::KeyVersion, Status> {
    let request = proto::ScheduleKeyVersionDestructionRequest {
        name: version.to_owned(),
        window,
        reason: "retired".to_owned(),
        request_id: request_id(),
        allow_recent_use,
        allow_consumers: false,
    };
    client.keys().schedule_key_version_destruction(request).await.map(Response::into_inner)
}

async fn deactivate(client: &Client, version: &str) -> Result<proto::KeyVersion, Status> {
    let request = proto::DeactivateKeyVersionRequest {
        name: version.to_owned(),
        reason: "superseded".to_owned(),
        request_id: request_id(),
    };
    client.keys().deactivate_key_version(request).await.map(Response::into_inner)
}

async fn cancel(client: &Client, version: &str) -> Result<proto::KeyVersion, Status> {
    let request = proto::CancelKeyVersionDestructionRequest {
        name: version.to_owned(),
        reason: "still needed".to_owned(),
        request_id: request_id(),
    };
    client.keys().cancel_key_version_destruction(request).await.map(Response::into_inner)
}

#[tokio::test]
async fn a_version_is_retired_step_by_step_and_no_step_is_left_out() {
    let server = Server::shared();
    let client = server.operator().await;
    let key = client.create("retired").await.name;
    let version = format!("{key}/versions/1");
    let old = client.wrap(&key, b"old", &[]).await.unwrap().ciphertext;

    refusal(deactivate(&client, &version).await).is(Code::FailedPrecondition, "PRIMARY_VERSION");
    let refused = refusal(schedule(&client, &version, None, true).await);
    refused.is(Code::FailedPrecondition, "ILLEGAL_TRANSITION");
    assert_eq!(refused.facts.get("state").map(String::as_str), Some("ACTIVE"));
    assert_eq!(refused.facts.get("target_state").map(String::as_str), Some("DESTROY_SCHEDULED"));

    client.rotate(&key).await;
    let done = deactivate(&client, &version).await.unwrap();
    assert_eq!(done.state(), proto::VersionState::Deactivated);
    assert_eq!(client.unwrap(&key, &old, &[]).await.unwrap(), b"old");
    refusal(cancel(&client, &version).await).is(Code::FailedPrecondition, "ILLEGAL_TRANSITION");

    for window in [seconds(7 * DAY_SECONDS - 1), seconds(365 * DAY_SECONDS + 1), seconds(-1)] {
        refusal(schedule(&client, &version, Some(window), true).await).is_field("window");
    }
    let refused = refusal(schedule(&client, &version, None, false).await);
    refused.is(Code::FailedPrecondition, "RECENTLY_USED");
    assert!(refused.facts.contains_key("last_use_time"), "{refused:?}");
    let planned = schedule(&client, &version, None, true).await.unwrap();
    assert_eq!(planned.state(), proto::VersionState::DestroyScheduled);
    let (from, to) = (planned.state_time.unwrap(), planned.destroy_time.unwrap());
    assert_eq!(to.seconds - from.seconds, 30 * DAY_SECONDS);
    let refused = refusal(client.unwrap(&key, &old, &[]).await);
    refused.is(Code::FailedPrecondition, "KEY_NOT_ACTIVE");

    let back = cancel(&client, &version).await.unwrap();
    assert_eq!((back.state(), back.destroy_time), (proto::VersionState::Deactivated, None));
    assert_eq!(client.unwrap(&key, &old, &[]).await.unwrap(), b"old");

    let list =
        proto::ListKeyHistoryRequest { parent: key, page_size: 0, page_token: String::new() };
    let entries = client.keys().list_key_history(list).await.unwrap().into_inner().entries;
    let of_version: Vec<_> = entries
        .iter()
        .filter(|entry| entry.version == 1)
        .map(|entry| (entry.new_state().as_str_name(), entry.reason.as_str()))
        .collect();
    assert_eq!(
        of_version,
        [
            ("ACTIVE", "created"),
            ("DEACTIVATED", "superseded"),
            ("DESTROY_SCHEDULED", "retired"),
            ("DEACTIVATED", "still needed"),
        ]
    );
}

#[tokio::test]
async fn a_compromised_primary_is_replaced_and_opens_nothing_for_those_not_permitted() {
    let mut rig = Rig::new();
    for grant in &mut rig.grants {
        grant.actions.retain(|action| !action.ends_with("_compromised"));
    }
    let server = rig.start();
    let client = server.operator().await;
    let key = client.create("leaked").await.name;
    let old = client.wrap(&key, b"old", &[]).await.unwrap().ciphertext;
    let request = proto::CompromiseKeyVersionRequest {
        name: format!("{key}/versions/1"),
        reason: "seen on the internet".to_owned(),
        request_id: request_id(),
    };
    let first = client.keys().compromise_key_version(request.clone()).await.unwrap().into_inner();
    assert_eq!(first.version.as_ref().unwrap().state(), proto::VersionState::Compromised);
    assert_eq!(first.replacement.as_ref().unwrap().version, 2);
    let repeat = client.keys().compromise_key_version(request).await.unwrap().into_inner();
    assert_eq!(repeat, first, "a repeat gives the first result, and makes no third version");
    let refused = refusal(client.unwrap(&key, &old, &[]).await);
    refused.is(Code::FailedPrecondition, "KEY_NOT_ACTIVE");
    let new = client.wrap(&key, b"new", &[]).await.unwrap();
    assert_eq!(new.key_version, format!("{key}/versions/2"));
    server.stop().await;
}

#[tokio::test]
async fn rotation_periods_stay_within_their_bounds() {
    let server = Server::shared();
    let client = server.operator().await;
    // The cryptoperiod of these keys is a day.
    for period in [3599, DAY_SECONDS + 1, -1] {
        let request = proto::CreateKeyRequest {
            rotation_period: Some(seconds(period)),
            ..new_key("periods")
        };
        refusal(client.keys().create_key(request).await).is_field("rotation_period");
    }
    let request = proto::CreateKeyRequest {
        rotation_period: Some(seconds(DAY_SECONDS)),
        ..new_key("periods")
    };
    let key = client.keys().create_key(request).await.unwrap().into_inner();
    assert_eq!(key.rotation_period, Some(seconds(DAY_SECONDS)));
    let (made, due) = (key.create_time.unwrap(), key.next_rotation_time.unwrap());
    let after = due.seconds - made.seconds;
    assert!((DAY_SECONDS * 9 / 10 - 1..=DAY_SECONDS).contains(&after), "{after} s");
}
