//! Names: malformed, unknown, and hidden from those who may not know.

use kms_proto::v1 as proto;
use kms_testkit::pki::Kind;
use tonic::{Code, Response};

use crate::common::calls::key_name;
use crate::common::{Grant, Rig, Server, TENANT, refusal};

#[tokio::test]
async fn malformed_names_are_refused() {
    let server = Server::shared();
    let client = server.operator().await;
    let long = "k".repeat(64);
    let bad = [
        String::new(),
        "orders".to_owned(),
        format!("tenants/{TENANT}"),
        format!("tenants/{TENANT}/keys/"),
        format!("tenants/{TENANT}/keys/a/b"),
        format!("tenants/{TENANT}/keys/UPPER"),
        format!("tenants/{TENANT}/keys/-dash-first"),
        format!("tenants/{TENANT}/keys/{long}"),
        format!("tenants/{TENANT}/keys/a/versions/0"),
        format!("tenants/{TENANT}/keys/a/versions/01"),
        format!("tenants/{TENANT}/keys/a/versions/4294967296"),
        format!("/tenants/{TENANT}/keys/a"),
        format!("tenants/{TENANT}/keys/ä"),
        format!("tenants/{TENANT}/keys/../keys/a"),
    ];
    for name in bad {
        refusal(client.wrap(&name, b"x", &[]).await).is_field("key");
        refusal(client.unwrap(&name, b"x", &[]).await).is_field("key");
        let describing = proto::DescribeKeyRequest { name };
        refusal(client.keys().describe_key(describing).await).is_field("name");
    }
}

#[tokio::test]
async fn key_ids_have_at_most_63_bytes() {
    let server = Server::shared();
    let client = server.operator().await;
    let longest = "k".repeat(63);
    assert_eq!(client.create(&longest).await.name, key_name(&longest));
    let one_more = crate::common::calls::new_key(&"k".repeat(64));
    refusal(client.keys().create_key(one_more).await).is_field("key_id");
}

#[tokio::test]
async fn unknown_keys_and_versions_are_not_found() {
    let server = Server::shared();
    let client = server.operator().await;
    let key = client.create("unknown-versions").await.name;
    let wrapped = client.wrap(&key, b"x", &[]).await.unwrap().ciphertext;
    let nowhere = key_name("nowhere");
    refusal(client.wrap(&nowhere, b"x", &[]).await).is(Code::NotFound, "KEY_NOT_FOUND");
    refusal(client.unwrap(&nowhere, &wrapped, &[]).await).is(Code::NotFound, "KEY_NOT_FOUND");
    let describing = proto::DescribeKeyRequest { name: nowhere.clone() };
    let refused = refusal(client.keys().describe_key(describing).await);
    refused.is(Code::NotFound, "KEY_NOT_FOUND");
    assert!(refused.message.contains(&nowhere), "{refused:?}");

    let version = format!("{key}/versions/2");
    let refused = refusal(client.wrap(&version, b"x", &[]).await);
    refused.is(Code::NotFound, "VERSION_NOT_FOUND");
    let describing = proto::DescribeKeyVersionRequest { name: version };
    let refused = refusal(client.keys().describe_key_version(describing).await);
    refused.is(Code::NotFound, "VERSION_NOT_FOUND");
    // The first is there.
    assert!(client.wrap(&format!("{key}/versions/1"), b"x", &[]).await.is_ok());
}

#[tokio::test]
async fn unknown_and_forbidden_look_alike_to_those_who_may_not_describe() {
    let mut rig = Rig::new();
    let user = "spiffe://holdfast.test/user";
    rig.grants.push(Grant::new(user, TENANT, &["wrap", "unwrap"]));
    let identity = rig.pki.issue_serial("user", &Kind::Spiffe(user), 110);
    let server = rig.start();
    let key = server.operator().await.create("hidden").await.name;
    let client = server.client(&identity).await;
    assert!(client.wrap(&key, b"x", &[]).await.is_ok());
    let unknown = refusal(client.wrap(&key_name("nowhere"), b"x", &[]).await);
    let foreign = refusal(client.wrap("tenants/globex/keys/nowhere", b"x", &[]).await);
    unknown.is(Code::PermissionDenied, "ACCESS_DENIED");
    assert_eq!(unknown, foreign);
    let pinned = format!("{key}/versions/1");
    let refused = refusal(client.wrap(&pinned, b"x", &[]).await);
    assert_eq!(refused, foreign, "`wrap` alone pins no version");
    server.stop().await;
}

#[tokio::test]
async fn bad_keys_are_not_created() {
    type Spoil = fn(&mut proto::CreateKeyRequest);
    let server = Server::shared();
    let client = server.operator().await;
    let cases: [(&str, Spoil); 17] = [
        ("parent", |request| request.parent.clear()),
        ("parent", |request| request.parent = "tenants/a/keys/b".into()),
        ("key_id", |request| request.key_id.clear()),
        ("key_id", |request| request.key_id = "a/b".into()),
        ("purpose", |request| request.purpose = 0),
        ("purpose", |request| request.purpose = 99),
        ("protection", |request| request.protection = 99),
        ("sensitivity", |request| request.sensitivity = 0),
        ("owner", |request| request.owner.clear()),
        ("owner", |request| request.owner = "o".repeat(257)),
        ("usage", |request| request.usage.clear()),
        ("usage", |request| request.usage = "u".repeat(1025)),
        ("cryptoperiod", |request| request.cryptoperiod = None),
        ("cryptoperiod", |request| request.cryptoperiod = Some(seconds(3599))),
        ("cryptoperiod", |request| request.cryptoperiod = Some(seconds(-3600))),
        ("labels", |request| request.labels = labels(33)),
        ("request_id", |request| request.request_id.clear()),
    ];
    for (field, spoil) in cases {
        let mut request = crate::common::calls::new_key("never-made");
        spoil(&mut request);
        let refused = refusal(client.keys().create_key(request).await.map(Response::into_inner));
        refused.is_field(field);
    }
    refusal(client.wrap(&key_name("never-made"), b"x", &[]).await)
        .is(Code::NotFound, "KEY_NOT_FOUND");
    let mut most = crate::common::calls::new_key("most");
    (most.owner, most.usage, most.labels) = ("o".repeat(256), "u".repeat(1024), labels(32));
    most.cryptoperiod = Some(seconds(3600));
    assert!(client.keys().create_key(most).await.is_ok());
}

fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

fn labels(count: usize) -> std::collections::HashMap<String, String> {
    (0..count).map(|n| (format!("label-{n}"), String::new())).collect()
}
