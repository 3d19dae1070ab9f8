//! Versions that may not be used, or only for some things.

use std::collections::HashMap;

use kms_proto::v1 as proto;
use tonic::{Code, Response, Status};

use crate::common::{Client, Refusal, Rig, Server, refusal, request_id};

async fn suspend(client: &Client, version: &str) -> Result<proto::KeyVersion, Status> {
    let request = proto::SuspendKeyVersionRequest {
        name: version.to_owned(),
        reason: "an incident".to_owned(),
        request_id: request_id(),
    };
    client.keys().suspend_key_version(request).await.map(Response::into_inner)
}

async fn resume(client: &Client, version: &str) -> Result<proto::KeyVersion, Status> {
    let request = proto::ResumeKeyVersionRequest {
        name: version.to_owned(),
        reason: "it is over".to_owned(),
        request_id: request_id(),
    };
    client.keys().resume_key_version(request).await.map(Response::into_inner)
}

fn is_in_state(refused: &Refusal, state: &str) {
    refused.is(Code::FailedPrecondition, "KEY_NOT_ACTIVE");
    assert_eq!(refused.facts.get("state").map(String::as_str), Some(state), "{refused:?}");
}

fn leads_nowhere(refused: &Refusal, state: &str) {
    refused.is(Code::FailedPrecondition, "ILLEGAL_TRANSITION");
    assert_eq!(refused.facts.get("state").map(String::as_str), Some(state), "{refused:?}");
}

#[tokio::test]
async fn a_suspended_version_neither_protects_nor_processes_until_it_is_resumed() {
    let server = Server::shared();
    let client = server.operator().await;
    let key = client.create("suspended").await.name;
    let version = format!("{key}/versions/1");
    let wrapped = client.wrap(&key, b"secret", &[]).await.unwrap().ciphertext;
    let suspended = suspend(&client, &version).await.unwrap();
    assert_eq!(suspended.state(), proto::VersionState::Suspended);

    is_in_state(&refusal(client.wrap(&key, b"x", &[]).await), "SUSPENDED");
    is_in_state(&refusal(client.wrap(&version, b"x", &[]).await), "SUSPENDED");
    is_in_state(&refusal(client.unwrap(&key, &wrapped, &[]).await), "SUSPENDED");
    let data_key = proto::GenerateDataKeyRequest { key: key.clone(), ..Default::default() };
    is_in_state(&refusal(client.crypto().generate_data_key(data_key).await), "SUSPENDED");
    let rewrap = proto::RewrapRequest {
        key: key.clone(),
        ciphertext: wrapped.clone(),
        context: HashMap::default(),
    };
    is_in_state(&refusal(client.crypto().rewrap(rewrap).await), "SUSPENDED");
    leads_nowhere(&refusal(suspend(&client, &version).await), "SUSPENDED");

    let resumed = resume(&client, &version).await.unwrap();
    assert_eq!((resumed.state(), resumed.primary), (proto::VersionState::Active, true));
    assert_eq!(client.unwrap(&key, &wrapped, &[]).await.unwrap(), b"secret");
    assert!(client.wrap(&key, b"x", &[]).await.is_ok());
    leads_nowhere(&refusal(resume(&client, &version).await), "ACTIVE");
}

#[tokio::test]
async fn a_suspended_old_version_does_not_keep_the_new_one_from_working() {
    let server = Server::shared();
    let client = server.operator().await;
    let key = client.create("suspended-old").await.name;
    let old = client.wrap(&key, b"old", &[]).await.unwrap().ciphertext;
    client.rotate(&key).await;
    suspend(&client, &format!("{key}/versions/1")).await.unwrap();
    is_in_state(&refusal(client.unwrap(&key, &old, &[]).await), "SUSPENDED");
    let new = client.wrap(&key, b"new", &[]).await.unwrap();
    assert_eq!(new.key_version, format!("{key}/versions/2"));
    assert_eq!(client.unwrap(&key, &new.ciphertext, &[]).await.unwrap(), b"new");
}

#[tokio::test]
async fn a_deactivated_version_processes_and_does_not_protect() {
    let mut rig = Rig::new();
    rig.overlap_ms = 0;
    let server = rig.start();
    let client = server.operator().await;
    let key = client.create("deactivated").await.name;
    let old = client.wrap(&key, b"old", &[]).await.unwrap().ciphertext;
    client.rotate(&key).await;
    let version = format!("{key}/versions/1");
    let request = proto::DescribeKeyVersionRequest { name: version.clone() };
    let described = client.keys().describe_key_version(request).await.unwrap().into_inner();
    assert_eq!((described.state(), described.primary), (proto::VersionState::Deactivated, false));

    is_in_state(&refusal(client.wrap(&version, b"x", &[]).await), "DEACTIVATED");
    leads_nowhere(&refusal(suspend(&client, &version).await), "DEACTIVATED");
    leads_nowhere(&refusal(resume(&client, &version).await), "DEACTIVATED");
    assert_eq!(client.unwrap(&key, &old, &[]).await.unwrap(), b"old");
    let rewrap =
        proto::RewrapRequest { key: key.clone(), ciphertext: old, context: HashMap::default() };
    let rewrapped = client.crypto().rewrap(rewrap).await.unwrap().into_inner();
    assert!(rewrapped.changed);
    assert_eq!(rewrapped.key_version, format!("{key}/versions/2"));
    assert_eq!(client.unwrap(&key, &rewrapped.ciphertext, &[]).await.unwrap(), b"old");
    server.stop().await;
}

#[tokio::test]
async fn reasons_must_be_given_and_short() {
    let server = Server::shared();
    let client = server.operator().await;
    let key = client.create("reasons").await.name;
    for reason in [String::new(), "r".repeat(257), "two\nlines".to_owned()] {
        let request = proto::SuspendKeyVersionRequest {
            name: format!("{key}/versions/1"),
            reason,
            request_id: request_id(),
        };
        refusal(client.keys().suspend_key_version(request).await).is_field("reason");
    }
    assert!(client.wrap(&key, b"x", &[]).await.is_ok(), "nothing was suspended");
}
