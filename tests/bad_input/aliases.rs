//! Aliases over the wire: what they point to, names taken for others, stale revisions, and what they never stand for.

use kms_proto::v1 as proto;
use tonic::{Code, Response, Status};

use crate::common::{Client, Server, TENANT, refusal, request_id};

async fn create(client: &Client, id: &str, key: &str) -> Result<proto::Alias, Status> {
    let request = proto::CreateAliasRequest {
        parent: format!("tenants/{TENANT}"),
        alias_id: id.to_owned(),
        key: key.to_owned(),
        reason: "made".to_owned(),
        request_id: request_id(),
    };
    client.keys().create_alias(request).await.map(Response::into_inner)
}

async fn update(
    client: &Client,
    name: &str,
    key: &str,
    revision: u64,
) -> Result<proto::Alias, Status> {
    let request = proto::UpdateAliasRequest {
        name: name.to_owned(),
        key: key.to_owned(),
        revision,
        reason: "moved".to_owned(),
        request_id: request_id(),
    };
    client.keys().update_alias(request).await.map(Response::into_inner)
}

#[tokio::test]
async fn an_alias_of_an_alias_or_of_no_key_is_refused() {
    let server = Server::shared();
    let client = server.operator().await;
    let key = client.create("alias-target").await.name;
    let alias = create(&client, "chain-a", &key).await.unwrap();
    // Neither a chain nor a cycle can be said.
    for target in [alias.name.clone(), format!("{key}/versions/1"), "tenants/far/keys/k".to_owned()]
    {
        let refused = refusal(create(&client, "chain-b", &target).await);
        refused.is(Code::InvalidArgument, "ALIAS_TARGET");
        let refused = refusal(update(&client, &alias.name, &target, alias.revision).await);
        refused.is(Code::InvalidArgument, "ALIAS_TARGET");
    }
    for target in ["", "k", "tenants/", "tenants/T/keys/k", "tenants/x/aliases/A"] {
        let refused = refusal(create(&client, "chain-b", target).await);
        refused.is(Code::InvalidArgument, "FIELD_VIOLATION");
    }
    let missing = refusal(create(&client, "chain-b", &format!("{key}-not")).await);
    missing.is(Code::NotFound, "KEY_NOT_FOUND");
    let unmoved = refusal(update(&client, &alias.name, &key, alias.revision).await);
    unmoved.is(Code::FailedPrecondition, "ALIAS_UNMOVED");
}

#[tokio::test]
async fn names_that_are_odd_or_taken_for_others_are_refused() {
    let server = Server::shared();
    let client = server.operator().await;
    let key = client.create("alias-names").await.name;
    let long = "a".repeat(64);
    for id in ["", ".", "-a", "A", "a b", "a/b", "p\u{430}y", "a\n", "*", &long] {
        let refused = refusal(create(&client, id, &key).await);
        refused.is(Code::InvalidArgument, "FIELD_VIOLATION");
    }
    create(&client, "billing-0", &key).await.unwrap();
    for alike in ["billing-o", "bil1ing_0", "bi1ling.0", "bllling-0"] {
        let refused = refusal(create(&client, alike, &key).await);
        refused.is(Code::AlreadyExists, "ALIAS_CONFUSABLE");
    }
    let taken = refusal(create(&client, "billing-0", &key).await);
    taken.is(Code::AlreadyExists, "ALIAS_EXISTS");
    let shadows = refusal(create(&client, key.rsplit('/').next().unwrap(), &key).await);
    shadows.is(Code::AlreadyExists, "ALIAS_SHADOWS_KEY");
}

#[tokio::test]
async fn a_stale_revision_is_refused_and_a_moved_alias_wraps_under_the_other_key() {
    let server = Server::shared();
    let client = server.operator().await;
    let first = client.create("alias-first").await.name;
    let second = client.create("alias-second").await.name;
    let alias = create(&client, "moves", &first).await.unwrap();
    let wrapped = client.wrap(&alias.name, b"secret", &[]).await.unwrap();
    assert_eq!(wrapped.key_version, format!("{first}/versions/1"));
    let stale = refusal(update(&client, &alias.name, &second, alias.revision + 1).await);
    stale.is(Code::Aborted, "REVISION_MISMATCH");
    update(&client, &alias.name, &second, alias.revision).await.unwrap();
    let again = client.wrap(&alias.name, b"secret", &[]).await.unwrap();
    assert_eq!(again.key_version, format!("{second}/versions/1"));
    let describe = proto::DescribeKeyRequest { name: alias.name.clone() };
    assert_eq!(client.keys().describe_key(describe).await.unwrap().into_inner().name, second);
    assert_eq!(client.unwrap(&first, &wrapped.ciphertext, &[]).await.unwrap(), b"secret");
    // What opens or changes something names the key itself.
    let refused = refusal(client.unwrap(&alias.name, &wrapped.ciphertext, &[]).await);
    refused.is(Code::InvalidArgument, "FIELD_VIOLATION");
    let pinned = format!("{}/versions/1", alias.name);
    let refused = refusal(client.wrap(&pinned, b"secret", &[]).await);
    refused.is(Code::InvalidArgument, "FIELD_VIOLATION");
    let missing = refusal(client.wrap(&format!("{}-not", alias.name), b"x", &[]).await);
    missing.is(Code::NotFound, "ALIAS_NOT_FOUND");
}
