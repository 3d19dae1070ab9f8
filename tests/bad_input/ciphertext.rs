//! Ciphertext that was cut, changed, swapped or made up: one error that tells nothing.

use kms_proto::v1 as proto;
use tonic::{Code, Response};

use crate::common::calls::pairs;
use crate::common::{Client, Refusal, Server, refusal};

/// Offsets in the envelope (docs/formats.md).
const FORMAT: usize = 2;
const SUITE: usize = 3;
const UID: usize = 4;
const VERSION: usize = 20;
const IV: usize = 24;
const BODY: usize = 36;

fn flipped(envelope: &[u8], byte: usize, bit: u8) -> Vec<u8> {
    let mut envelope = envelope.to_vec();
    envelope[byte] ^= 1 << bit;
    envelope
}

async fn rewrap(client: &Client, key: &str, ciphertext: Vec<u8>) -> Refusal {
    let request = proto::RewrapRequest {
        key: key.to_owned(),
        ciphertext: ciphertext.into(),
        context: pairs(&[]),
    };
    refusal(client.crypto().rewrap(request).await.map(Response::into_inner))
}

#[tokio::test]
async fn everything_that_does_not_open_gives_one_indistinguishable_error() {
    let server = Server::shared();
    let client = server.operator().await;
    let key = client.create("indistinguishable").await.name;
    let other = client.create("indistinguishable-2").await.name;
    let context = [("table", "orders"), ("row", "17")];
    let wrapped = client.wrap(&key, b"secret", &context).await.unwrap().ciphertext;
    let second = client.wrap(&key, b"secre2", &context).await.unwrap().ciphertext;
    let foreign = client.wrap(&other, b"secret", &context).await.unwrap().ciphertext;
    assert_eq!(client.unwrap(&key, &wrapped, &context).await.unwrap(), b"secret");

    let mut answers = vec![];
    let mut try_open = async |what: String, key: &str, bytes: &[u8], context: &[(&str, &str)]| {
        answers.push((what, refusal(client.unwrap(key, bytes, context).await)));
    };
    for wrong in [&[][..], &context[..1], &[("table", "orders"), ("row", "18")]] {
        try_open(format!("context {wrong:?}"), &key, &wrapped, wrong).await;
    }
    let more = [("table", "orders"), ("row", "17"), ("more", "")];
    try_open("a larger context".into(), &key, &wrapped, &more).await;
    for byte in [0, 1, UID, UID + 15, IV, IV + 11, BODY, BODY + 5, BODY + 6, wrapped.len() - 1] {
        try_open(format!("byte {byte}"), &key, &flipped(&wrapped, byte, 0), &context).await;
    }
    for length in [1, 2, 4, 20, BODY, BODY + 16, wrapped.len() - 1] {
        try_open(format!("cut to {length}"), &key, &wrapped[..length], &context).await;
    }
    let longer = [&wrapped[..], &[0]].concat();
    try_open("a byte more".into(), &key, &longer, &context).await;
    let swapped = [&wrapped[..BODY], &second[BODY..]].concat();
    try_open("the body of another".into(), &key, &swapped, &context).await;
    try_open("another key's".into(), &key, &foreign, &context).await;
    try_open("under another key".into(), &other, &wrapped, &context).await;
    let renamed = [&foreign[..VERSION], &wrapped[VERSION..]].concat();
    try_open("with another key's uid".into(), &other, &renamed, &context).await;
    try_open("no envelope".into(), &key, b"hfenv1:S1cBAQ", &context).await;

    let (_, first) = answers[0].clone();
    first.is(Code::InvalidArgument, "CIPHERTEXT_INVALID");
    for (what, answer) in &answers {
        assert_eq!(*answer, first, "{what}");
    }
}

#[tokio::test]
async fn each_flipped_bit_is_refused_and_none_brings_the_server_down() {
    let server = Server::shared();
    let client = server.operator().await;
    let key = client.create("flips").await.name;
    let wrapped = client.wrap(&key, b"k", &[]).await.unwrap().ciphertext;
    let mut items = vec![];
    for byte in 0..wrapped.len() {
        for bit in 0..8 {
            items.push(proto::UnwrapRequest {
                key: key.clone(),
                ciphertext: flipped(&wrapped, byte, bit).into(),
                context: pairs(&[]),
            });
        }
    }
    let answer = client.crypto().batch_unwrap(proto::BatchUnwrapRequest { items }).await.unwrap();
    let answers = answer.into_inner().items;
    assert_eq!(answers.len(), wrapped.len() * 8);
    for (number, item) in answers.into_iter().enumerate() {
        let (byte, status) = (number / 8, item.status.unwrap());
        assert!(item.result.is_none(), "byte {byte}");
        match byte {
            FORMAT | SUITE => assert_eq!(status.reason, "ENVELOPE_UNSUPPORTED", "byte {byte}"),
            _ => assert_eq!(status.reason, "CIPHERTEXT_INVALID", "byte {byte}: {status:?}"),
        }
    }
    assert_eq!(client.unwrap(&key, &wrapped, &[]).await.unwrap(), b"k");
}

#[tokio::test]
async fn rewrap_tells_no_more_than_unwrap() {
    let server = Server::shared();
    let client = server.operator().await;
    let key = client.create("rewrap-bad").await.name;
    let wrapped = client.wrap(&key, b"secret", &[]).await.unwrap().ciphertext;
    client.rotate(&key).await;
    let unwrapped = refusal(client.unwrap(&key, &flipped(&wrapped, BODY, 0), &[]).await);
    for byte in [0, UID, IV, BODY, wrapped.len() - 1] {
        assert_eq!(rewrap(&client, &key, flipped(&wrapped, byte, 0)).await, unwrapped, "{byte}");
    }
}

#[tokio::test]
async fn unknown_formats_and_suites_are_named() {
    let server = Server::shared();
    let client = server.operator().await;
    let key = client.create("formats").await.name;
    let wrapped = client.wrap(&key, b"secret", &[]).await.unwrap().ciphertext;
    for (byte, name) in [(FORMAT, "format"), (SUITE, "suite")] {
        let mut unknown = wrapped.to_vec();
        unknown[byte] = 9;
        let refused = refusal(client.unwrap(&key, &unknown, &[]).await);
        refused.is(Code::InvalidArgument, "ENVELOPE_UNSUPPORTED");
        assert_eq!(refused.message, format!("envelope {name} 9 is not supported"));
        let describing = proto::DescribeCiphertextRequest { ciphertext: unknown.into() };
        let refused = refusal(client.crypto().describe_ciphertext(describing).await);
        refused.is(Code::InvalidArgument, "ENVELOPE_UNSUPPORTED");
    }
}

#[tokio::test]
async fn ciphertexts_are_bounded() {
    let server = Server::shared();
    let client = server.operator().await;
    let key = client.create("ciphertext-bounds").await.name;
    refusal(client.unwrap(&key, b"", &[]).await).is_field("ciphertext");
    let wrapped = client.wrap(&key, &vec![7; 64 * 1024], &[]).await.unwrap().ciphertext;
    assert!(client.unwrap(&key, &wrapped, &[]).await.is_ok());
    let longer = [&wrapped[..], &[0]].concat();
    refusal(client.unwrap(&key, &longer, &[]).await).is_field("ciphertext");
}

#[tokio::test]
async fn the_version_in_the_header_is_authenticated() {
    let server = Server::shared();
    let client = server.operator().await;
    let key = client.create("header-version").await.name;
    let first = client.wrap(&key, b"secret", &[]).await.unwrap().ciphertext;
    client.rotate(&key).await;
    let mut as_second = first.to_vec();
    as_second[VERSION + 3] = 2;
    let known = refusal(client.unwrap(&key, &as_second, &[]).await);
    known.is(Code::InvalidArgument, "CIPHERTEXT_INVALID");
    as_second[VERSION + 3] = 3;
    let unknown = refusal(client.unwrap(&key, &as_second, &[]).await);
    assert_eq!(known, unknown, "a version that does not exist tells nothing either");
    assert_eq!(client.unwrap(&key, &first, &[]).await.unwrap(), b"secret");
}
