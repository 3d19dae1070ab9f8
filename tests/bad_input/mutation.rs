//! Request ids: repeated, reused, missing; and changes that are based on an old revision.

use kms_proto::v1 as proto;
use tonic::{Code, Response, Status};

use crate::common::calls::new_key;
use crate::common::{Client, Server, refusal, request_id};

async fn update(
    client: &Client,
    key: &proto::Key,
    owner: &str,
    id: &str,
) -> Result<proto::Key, Status> {
    let request = proto::UpdateKeyRequest {
        name: key.name.clone(),
        revision: key.revision,
        update_mask: Some(prost_types::FieldMask { paths: vec!["owner".to_owned()] }),
        owner: owner.to_owned(),
        request_id: id.to_owned(),
        ..Default::default()
    };
    client.keys().update_key(request).await.map(Response::into_inner)
}

#[tokio::test]
async fn a_repeated_request_gives_the_first_result_and_does_nothing() {
    let server = Server::shared();
    let client = server.operator().await;
    let request = new_key("repeated");
    let first = client.keys().create_key(request.clone()).await.unwrap().into_inner();
    let again = client.keys().create_key(request).await.unwrap().into_inner();
    assert_eq!(first, again);

    let rotate = proto::RotateKeyRequest {
        name: first.name.clone(),
        reason: String::new(),
        request_id: request_id(),
    };
    let rotated = client.keys().rotate_key(rotate.clone()).await.unwrap().into_inner();
    let again = client.keys().rotate_key(rotate).await.unwrap().into_inner();
    assert_eq!(rotated, again);
    let describing = proto::DescribeKeyRequest { name: first.name };
    let now = client.keys().describe_key(describing).await.unwrap().into_inner();
    assert_eq!((now.primary_version, now.version_count), (2, 2));
}

#[tokio::test]
async fn requests_at_the_same_time_with_one_id_create_one_key() {
    let server = Server::shared();
    let client = server.operator().await;
    let request = new_key("at-once");
    let (mut one, mut two) = (client.keys(), client.keys());
    let outcomes = tokio::join!(one.create_key(request.clone()), two.create_key(request.clone()));
    let mut made = 0;
    for outcome in <[_; 2]>::from(outcomes) {
        match outcome {
            Ok(_) => made += 1,
            Err(status) => {
                let refused = refusal::<()>(Err(status));
                assert!(refused.is(Code::Aborted, "OPERATION_IN_PROGRESS").retryable);
            }
        }
    }
    assert!(made >= 1);
    let key = client.keys().create_key(request).await.unwrap().into_inner();
    assert_eq!(key.version_count, 1);
}

#[tokio::test]
async fn an_id_is_not_taken_for_another_request() {
    let server = Server::shared();
    let client = server.operator().await;
    let mut request = new_key("id-reused");
    let key = client.keys().create_key(request.clone()).await.unwrap().into_inner();
    let id = request.request_id.clone();
    request.owner = "another".to_owned();
    refusal(client.keys().create_key(request).await).is(Code::InvalidArgument, "REQUEST_ID_REUSED");
    refusal(update(&client, &key, "another", &id).await)
        .is(Code::InvalidArgument, "REQUEST_ID_REUSED");
    // A repeat of a refused request is a new attempt.
    assert_eq!(update(&client, &key, "another", &request_id()).await.unwrap().owner, "another");
}

#[tokio::test]
async fn mutations_need_a_request_id() {
    let server = Server::shared();
    let client = server.operator().await;
    let key = client.create("no-id").await;
    for id in ["", "1", "not-a-uuid", "00000000-0000-4000-8000-00000000000g"] {
        refusal(update(&client, &key, "another", id).await).is_field("request_id");
        let request = proto::RotateKeyRequest {
            name: key.name.clone(),
            reason: String::new(),
            request_id: id.to_owned(),
        };
        refusal(client.keys().rotate_key(request).await).is_field("request_id");
        let request = proto::CreateKeyRequest { request_id: id.to_owned(), ..new_key("no-id-2") };
        refusal(client.keys().create_key(request).await).is_field("request_id");
        let request = proto::ResumeKeyVersionRequest {
            name: format!("{}/versions/1", key.name),
            reason: "r".to_owned(),
            request_id: id.to_owned(),
        };
        refusal(client.keys().resume_key_version(request).await).is_field("request_id");
    }
}

#[tokio::test]
async fn a_change_based_on_an_old_revision_is_refused() {
    let server = Server::shared();
    let client = server.operator().await;
    let key = client.create("revisions").await;
    let changed = update(&client, &key, "second", &request_id()).await.unwrap();
    assert_ne!(changed.revision, key.revision);
    let refused = refusal(update(&client, &key, "third", &request_id()).await);
    assert!(!refused.is(Code::Aborted, "REVISION_MISMATCH").retryable);
    let never = proto::Key { revision: u64::MAX, ..key };
    refusal(update(&client, &never, "third", &request_id()).await)
        .is(Code::Aborted, "REVISION_MISMATCH");
    assert_eq!(update(&client, &changed, "third", &request_id()).await.unwrap().owner, "third");
}

#[tokio::test]
async fn a_key_is_created_once() {
    let server = Server::shared();
    let client = server.operator().await;
    client.create("once").await;
    let refused = refusal(client.keys().create_key(new_key("once")).await);
    refused.is(Code::AlreadyExists, "RESOURCE_EXISTS");
}

#[tokio::test]
async fn a_change_names_what_it_changes() {
    let server = Server::shared();
    let client = server.operator().await;
    let key = client.create("masks").await;
    for paths in [vec![], vec!["name"], vec!["owner", "uid"], vec!["*"]] {
        let request = proto::UpdateKeyRequest {
            name: key.name.clone(),
            revision: key.revision,
            update_mask: Some(prost_types::FieldMask {
                paths: paths.into_iter().map(str::to_owned).collect(),
            }),
            owner: "another".to_owned(),
            request_id: request_id(),
            ..Default::default()
        };
        refusal(client.keys().update_key(request).await).is_field("update_mask");
    }
}
