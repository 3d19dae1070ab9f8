//! Batches: how many items, and bad ones among good ones.

use kms_proto::v1 as proto;
use tonic::Code;

use crate::common::calls::{key_name, pairs};
use crate::common::{Server, refusal};

fn wrap(key: &str, plaintext: &[u8]) -> proto::WrapRequest {
    let plaintext = plaintext.to_vec().into();
    proto::WrapRequest { key: key.to_owned(), plaintext, context: pairs(&[]) }
}

#[tokio::test]
async fn a_thousand_items_are_taken_and_one_more_or_none_is_refused() {
    let server = Server::shared();
    let client = server.operator().await;
    let key = client.create("batch-bounds").await.name;
    let items = |count: usize| proto::BatchWrapRequest { items: vec![wrap(&key, b"x"); count] };
    let answer = client.crypto().batch_wrap(items(1000)).await.unwrap().into_inner();
    assert_eq!(answer.items.len(), 1000);
    let good = |item: &proto::batch_wrap_response::Item| {
        item.status.as_ref().unwrap().code == Code::Ok as i32 && item.result.is_some()
    };
    assert!(answer.items.iter().all(good));
    for count in [0, 1001] {
        refusal(client.crypto().batch_wrap(items(count)).await).is_field("items");
        let unwraps = vec![proto::UnwrapRequest::default(); count];
        let unwraps = proto::BatchUnwrapRequest { items: unwraps };
        refusal(client.crypto().batch_unwrap(unwraps).await).is_field("items");
        let rewraps = vec![proto::RewrapRequest::default(); count];
        let rewraps = proto::BatchRewrapRequest { items: rewraps };
        refusal(client.crypto().batch_rewrap(rewraps).await).is_field("items");
        let data_keys = vec![proto::GenerateDataKeyRequest::default(); count];
        let data_keys = proto::BatchGenerateDataKeyRequest { items: data_keys };
        refusal(client.crypto().batch_generate_data_key(data_keys).await).is_field("items");
    }
}

#[tokio::test]
async fn bad_items_do_not_spoil_good_ones() {
    let server = Server::shared();
    let client = server.operator().await;
    let key = client.create("batch-mixed").await.name;
    let long = vec![7; 64 * 1024 + 1];
    let items = vec![
        wrap(&key, b"first"),
        wrap(&key, b""),
        wrap("not a name", b"x"),
        wrap(&key_name("nowhere"), b"x"),
        wrap("tenants/initech/keys/foreign", b"x"),
        wrap(&key, &long),
        wrap(&format!("{key}/versions/7"), b"x"),
        wrap(&key, b"last"),
    ];
    let answer = client.crypto().batch_wrap(proto::BatchWrapRequest { items }).await.unwrap();
    let answers = answer.into_inner().items;
    let reasons: Vec<_> =
        answers.iter().map(|item| item.status.as_ref().unwrap().reason.as_str()).collect();
    let field = "FIELD_VIOLATION";
    assert_eq!(
        reasons,
        ["", field, field, "KEY_NOT_FOUND", "ACCESS_DENIED", field, "VERSION_NOT_FOUND", ""]
    );
    for (item, reason) in answers.iter().zip(&reasons) {
        assert_eq!(item.result.is_some(), reason.is_empty());
    }
    for (place, plaintext) in [(0, b"first".as_slice()), (7, b"last")] {
        let ciphertext = &answers[place].result.as_ref().unwrap().ciphertext;
        assert_eq!(client.unwrap(&key, ciphertext, &[]).await.unwrap(), plaintext);
    }
}
