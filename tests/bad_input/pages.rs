//! Pages: sizes, and tokens that are not ours, of another list, or of another principal.

use kms_proto::v1 as proto;
use kms_testkit::pki::Kind;
use tonic::{Response, Status};

use crate::common::{Client, Grant, Rig, Server, TENANT, refusal};

async fn list(
    client: &Client,
    tenant: &str,
    page_size: u32,
    page_token: &str,
) -> Result<proto::ListKeysResponse, Status> {
    let parent = format!("tenants/{tenant}");
    let request = proto::ListKeysRequest {
        parent,
        page_size,
        page_token: page_token.to_owned(),
        ..Default::default()
    };
    client.keys().list_keys(request).await.map(Response::into_inner)
}

#[tokio::test]
async fn tokens_open_their_own_list_only() {
    let mut rig = Rig::new();
    let second = "spiffe://holdfast.test/second";
    rig.grants.push(Grant::new(second, TENANT, &["list_keys"]));
    let identity = rig.pki.issue_serial("second", &Kind::Spiffe(second), 111);
    let server = rig.start();
    let client = server.operator().await;
    let mut made = vec![];
    for number in 0..5 {
        made.push(client.create(&format!("listed-{number}")).await.name);
    }
    let mut seen = vec![];
    let mut token = String::new();
    for size in [2, 2, 1] {
        let page = list(&client, TENANT, 2, &token).await.unwrap();
        assert_eq!(page.keys.len(), size);
        seen.extend(page.keys.into_iter().map(|key| key.name));
        token = page.next_page_token;
    }
    assert_eq!((seen, token.as_str()), (made.clone(), ""));

    let token = list(&client, TENANT, 2, "").await.unwrap().next_page_token;
    assert!(token.starts_with("hft_"), "{token}");
    let last = if token.ends_with('A') { "B" } else { "A" };
    let changed = format!("{}{last}", &token[..token.len() - 1]);
    let other = server.client(&identity).await;
    assert!(list(&other, TENANT, 2, "").await.is_ok());
    refusal(list(&other, TENANT, 2, &token).await).is_field("page_token");
    refusal(list(&client, crate::common::OTHER_TENANT, 2, &token).await).is_field("page_token");
    for bad in ["x", "hft_", "hft_AAAA", &token[1..], &token[..20], &changed] {
        refusal(list(&client, TENANT, 2, bad).await).is_field("page_token");
    }
    refusal(list(&client, TENANT, 2, &"A".repeat(100_000)).await).is_field("page_token");
    let versions = proto::ListKeyVersionsRequest {
        parent: made[0].clone(),
        page_size: 1,
        page_token: token.clone(),
    };
    refusal(client.keys().list_key_versions(versions).await).is_field("page_token");
    assert!(list(&client, TENANT, 2, &token).await.is_ok(), "it is still good");
    server.stop().await;
}

#[tokio::test]
async fn versions_come_in_pages_oldest_first() {
    let server = Server::shared();
    let client = server.operator().await;
    let key = client.create("paged-versions").await.name;
    client.rotate(&key).await;
    client.rotate(&key).await;
    let mut token = String::new();
    let mut seen = vec![];
    for _ in 0..3 {
        let request =
            proto::ListKeyVersionsRequest { parent: key.clone(), page_size: 1, page_token: token };
        let page = client.keys().list_key_versions(request).await.unwrap().into_inner();
        seen.extend(page.versions.iter().map(|version| (version.version, version.primary)));
        token = page.next_page_token;
    }
    assert_eq!(seen, [(1, false), (2, false), (3, true)]);
    assert_eq!(token, "");
}

#[tokio::test]
async fn pages_have_at_most_a_thousand_items() {
    let server = Server::shared();
    let client = server.operator().await;
    for size in [0, 1, 1000] {
        assert!(list(&client, TENANT, size, "").await.is_ok());
    }
    for size in [1001, u32::MAX] {
        refusal(list(&client, TENANT, size, "").await).is_field("page_size");
    }
}

#[tokio::test]
async fn a_page_ends_before_it_is_larger_than_a_message() {
    // Some 12 KB a key: a page of 300 would be 3.6 MiB.
    const KEYS: usize = 300;
    let server = Server::fresh();
    let client = server.operator().await;
    let labels: std::collections::HashMap<_, _> =
        (0..32).map(|n| (format!("{n:a>63}"), "v".repeat(255))).collect();
    for number in 0..KEYS {
        let mut create = crate::common::calls::new_key(&format!("large-{number}"));
        create.usage = "u".repeat(1024);
        create.owner = "o".repeat(256);
        create.labels = labels.clone();
        client.keys().create_key(create).await.unwrap();
    }
    let (mut names, mut pages, mut page_token) =
        (std::collections::BTreeSet::new(), 0, String::new());
    loop {
        let list = proto::ListKeysRequest {
            parent: format!("tenants/{TENANT}"),
            page_size: 1000,
            page_token,
            ..Default::default()
        };
        let mut keys = client.keys().max_decoding_message_size(usize::MAX);
        let page = keys.list_keys(list).await.unwrap().into_inner();
        assert!(prost::Message::encoded_len(&page) <= 4 * 1024 * 1024);
        names.extend(page.keys.into_iter().map(|key| key.name));
        pages += 1;
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!((names.len(), pages), (KEYS, 2));
    server.stop().await;
}
