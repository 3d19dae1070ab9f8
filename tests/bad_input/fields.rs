//! Empty, oversized and malformed fields of the crypto service; messages that are not protobuf or not text.

use std::collections::HashMap;

use kms_proto::v1 as proto;
use tonic::{Code, Response};

use crate::common::{Client, Server, TENANT, raw_call, refusal};

const WRAP: &str = "kms.v1.CryptoService/Wrap";

#[tokio::test]
async fn plaintexts_of_1_byte_to_64_kib_are_taken_and_others_refused() {
    let server = Server::shared();
    let client = server.operator().await;
    let key = client.create("plaintext-bounds").await.name;
    for length in [1, 64 * 1024] {
        let plaintext = vec![7; length];
        let wrapped = client.wrap(&key, &plaintext, &[]).await.unwrap();
        assert_eq!(client.unwrap(&key, &wrapped.ciphertext, &[]).await.unwrap(), plaintext);
    }
    for length in [0, 64 * 1024 + 1] {
        refusal(client.wrap(&key, &vec![7; length], &[]).await).is_field("plaintext");
    }
}

#[tokio::test]
async fn messages_of_4_mib_reach_the_service_and_larger_ones_do_not() {
    let server = Server::shared();
    let client = server.operator().await;
    let key = client.create("message-bounds").await.name;
    // Field 1, the key, then field 2, the plaintext: a tag, four bytes of length, the bytes.
    let head = 2 + key.len() + 5;
    let message = |length: usize| {
        let request = proto::WrapRequest {
            key: key.clone(),
            plaintext: vec![7; length - head].into(),
            context: HashMap::new(),
        };
        let bytes = prost::Message::encode_to_vec(&request);
        assert_eq!(bytes.len(), length);
        bytes
    };
    let most = 4 * 1024 * 1024;
    refusal(raw_call(&client.channel, WRAP, message(most)).await).is_field("plaintext");
    let refused = refusal(raw_call(&client.channel, WRAP, message(most + 1)).await);
    refused.is(Code::InvalidArgument, "MESSAGE_TOO_LARGE");
    assert!(client.wrap(&key, b"x", &[]).await.is_ok(), "the connection goes on");
}

#[tokio::test]
async fn what_is_not_protobuf_or_not_utf8_is_malformed() {
    let server = Server::shared();
    let client = server.operator().await;
    let key = client.create("malformed").await.name;
    let broken: [&[u8]; 5] = [
        // A key, `tenants/\xff`, and a context with a key, then a value, that is not UTF-8.
        b"\x0a\x09tenants/\xff",
        b"\x1a\x05\x0a\x01\xff\x12\x00",
        b"\x1a\x06\x0a\x01a\x12\x01\xc0",
        // A length beyond the end, and a wire type that does not exist.
        b"\x0a\x7f",
        b"\x0f",
    ];
    for message in broken {
        let refused = refusal(raw_call(&client.channel, WRAP, message.to_vec()).await);
        refused.is(Code::InvalidArgument, "MALFORMED_REQUEST");
    }
    assert!(client.wrap(&key, b"x", &[]).await.is_ok(), "the connection goes on");
}

#[tokio::test]
async fn unknown_methods_are_unimplemented() {
    let server = Server::shared();
    let client = server.operator().await;
    for method in ["kms.v1.CryptoService/Sign", "kms.v2.CryptoService/Wrap", "x"] {
        let refused = refusal(raw_call(&client.channel, method, vec![]).await);
        refused.is(Code::Unimplemented, "METHOD_UNKNOWN");
    }
}

#[tokio::test]
async fn data_keys_are_bounded() {
    let server = Server::shared();
    let client = server.operator().await;
    let key = client.create("data-key-bounds").await.name;
    let generate = async |length_bytes: u32, without_plaintext: bool| {
        let request = proto::GenerateDataKeyRequest {
            key: key.clone(),
            length_bytes,
            context: HashMap::new(),
            without_plaintext,
        };
        client.crypto().generate_data_key(request).await.map(Response::into_inner)
    };
    for (asked, given) in [(0, 32), (16, 16), (1024, 1024)] {
        let made = generate(asked, false).await.unwrap();
        assert_eq!(made.plaintext.len(), given);
        let opened = client.unwrap(&key, &made.ciphertext, &[]).await.unwrap();
        assert_eq!(opened, made.plaintext);
        assert!(generate(asked, true).await.unwrap().plaintext.is_empty());
    }
    for asked in [1025, u32::MAX] {
        refusal(generate(asked, false).await).is_field("length_bytes");
    }
}

#[tokio::test]
async fn random_is_bounded() {
    let server = Server::shared();
    let client = server.operator().await;
    let draw = async |length_bytes: u32, tenant: &str| {
        let tenant = tenant.to_owned();
        let request = proto::GenerateRandomRequest { length_bytes, tenant };
        client.crypto().generate_random(request).await.map(|answer| answer.into_inner().random)
    };
    let tenant = format!("tenants/{TENANT}");
    for length in [1, 1024] {
        assert_eq!(draw(length, &tenant).await.unwrap().len(), length as usize);
    }
    for length in [0, 1025, u32::MAX] {
        refusal(draw(length, &tenant).await).is_field("length_bytes");
    }
    for tenant in ["", TENANT, "tenants/", "tenants/UPPER", "tenants/a/keys/b"] {
        refusal(draw(16, tenant).await).is_field("tenant");
    }
}

async fn wrap_with(client: &Client, key: &str, context: HashMap<String, String>) -> Outcome {
    let plaintext = b"x".to_vec().into();
    let request = proto::WrapRequest { key: key.to_owned(), plaintext, context };
    client.crypto().wrap(request).await.map(drop)
}

type Outcome = Result<(), tonic::Status>;

#[tokio::test]
async fn contexts_are_bounded() {
    let server = Server::shared();
    let client = server.operator().await;
    let key = client.create("context-bounds").await.name;
    let one = |key: usize, value: usize| HashMap::from([("k".repeat(key), "v".repeat(value))]);
    let pairs = |count: usize| (0..count).map(|n| (format!("k{n}"), String::new())).collect();
    // Eight pairs of 1 + 1,023 bytes are 8 KiB.
    let total = |last: usize| {
        let value = |n| "v".repeat(if n == 7 { last } else { 1023 });
        (0..8).map(|n| (n.to_string(), value(n))).collect()
    };
    let good: [HashMap<_, _>; 4] = [one(128, 1024), pairs(32), total(1023), one(1, 0)];
    for (number, context) in good.into_iter().enumerate() {
        let wrapped = wrap_with(&client, &key, context).await;
        assert!(wrapped.is_ok(), "{number}: {wrapped:?}");
    }
    let reserved = HashMap::from([("kms:tenant".to_owned(), "x".to_owned())]);
    let bad = [one(129, 1), one(1, 1025), one(0, 1), pairs(33), total(1024), reserved];
    for context in bad {
        refusal(wrap_with(&client, &key, context).await).is_field("context");
    }
}

/// Makes a message with a context: key is field 1, context field 3, and field 2 what the method wants.
fn with_context(key: &str, second: &[u8], name: &[u8], value: &[u8]) -> Vec<u8> {
    let field = |number: u8, bytes: &[u8]| {
        let mut field = vec![number << 3 | 2];
        prost::encoding::encode_varint(bytes.len() as u64, &mut field);
        [&field[..], bytes].concat()
    };
    let entry = [field(1, name), field(2, value)].concat();
    [&field(1, key.as_bytes()), second, &field(3, &entry)].concat()
}

/// What Wrap is held to, everything else that takes a context is held to as well, and each item of a batch.
#[tokio::test]
async fn every_method_and_item_bounds_its_context() {
    let server = Server::shared();
    let client = server.operator().await;
    let key = client.create("context-everywhere").await.name;
    let ciphertext = client.wrap(&key, b"x", &[("k", "v")]).await.unwrap().ciphertext;
    let sealed = [&[0x12, u8::try_from(ciphertext.len()).unwrap()], &ciphertext[..]].concat();
    let (plain, length): (&[u8], &[u8]) = (&[0x12, 1, b'x'], &[0x10, 32]);
    for (method, second) in
        [("Wrap", plain), ("Unwrap", &sealed), ("Rewrap", &sealed), ("GenerateDataKey", length)]
    {
        let (single, batch) = (
            format!("kms.v1.CryptoService/{method}"),
            format!("kms.v1.CryptoService/Batch{method}"),
        );
        let one = async |message: Vec<u8>| raw_call(&client.channel, &single, message).await;
        let item = async |message: Vec<u8>| {
            let mut items = vec![0x0a];
            prost::encoding::encode_varint(message.len() as u64, &mut items);
            items.extend(message);
            raw_call(&client.channel, &batch, items).await
        };
        let good = with_context(&key, second, b"k", b"v");
        assert!(one(good.clone()).await.is_ok(), "{method}");
        assert_eq!(only_item(item(good).await.unwrap().get_ref()), (0, String::new()), "{method}");
        let long = ["k".repeat(129), "v".repeat(1025)];
        for (name, value) in [
            (long[0].as_bytes(), &b"v"[..]),
            (b"k", long[1].as_bytes()),
            (b"", b"v"),
            (b"kms:tenant", b"v"),
        ] {
            let message = with_context(&key, second, name, value);
            refusal(one(message.clone()).await).is_field("context");
            let invalid = (i32::from(Code::InvalidArgument), "FIELD_VIOLATION".to_owned());
            assert_eq!(only_item(item(message).await.unwrap().get_ref()), invalid, "{method}");
        }
        for (name, value) in [(&b"\xff"[..], &b"v"[..]), (b"k", b"\xc3")] {
            let message = with_context(&key, second, name, value);
            let malformed = "MALFORMED_REQUEST";
            refusal(one(message.clone()).await).is(Code::InvalidArgument, malformed);
            refusal(item(message).await).is(Code::InvalidArgument, malformed);
        }
    }
}

/// What the answers of all batches have in common.
#[derive(Clone, PartialEq, prost::Message)]
struct BatchAnswer {
    #[prost(message, repeated, tag = "1")]
    items: Vec<BatchItem>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct BatchItem {
    #[prost(message, optional, tag = "1")]
    status: Option<proto::ItemStatus>,
}

/// Returns code and reason of the only item.
fn only_item(answer: &[u8]) -> (i32, String) {
    let answer: BatchAnswer = prost::Message::decode(answer).unwrap();
    assert_eq!(answer.items.len(), 1);
    let status = answer.items[0].status.clone().unwrap();
    (status.code, status.reason)
}

#[tokio::test]
async fn a_key_that_is_given_twice_is_refused() {
    let server = Server::shared();
    let client = server.operator().await;
    let key = client.create("twice").await;
    let wrap = proto::WrapRequest {
        key: key.name.clone(),
        plaintext: b"x".to_vec().into(),
        context: HashMap::new(),
    };
    let create = crate::common::calls::new_key("twice-labelled");
    let update = proto::UpdateKeyRequest {
        name: key.name,
        revision: key.revision,
        update_mask: Some(prost_types::FieldMask { paths: vec!["labels".to_owned()] }),
        request_id: crate::common::request_id(),
        ..Default::default()
    };
    // Each message, and the tag of its map: the fields 3, 9 and 7.
    let cases = [
        (WRAP, prost::Message::encode_to_vec(&wrap), 0x1a, "context"),
        ("kms.v1.KeyService/CreateKey", prost::Message::encode_to_vec(&create), 0x4a, "labels"),
        ("kms.v1.KeyService/UpdateKey", prost::Message::encode_to_vec(&update), 0x3a, "labels"),
    ];
    for (method, mut message, tag, field) in cases {
        let entry = |key: u8, value: u8| [tag, 6, 0x0a, 1, key, 0x12, 1, value];
        let twice = [entry(b'a', b'x'), entry(b'b', b'x'), entry(b'a', b'y')].concat();
        let refused = raw_call(&client.channel, method, [&message[..], &twice].concat()).await;
        refusal(refused).is_field(field);
        message.extend([entry(b'a', b'x'), entry(b'b', b'x')].concat());
        assert!(raw_call(&client.channel, method, message).await.is_ok(), "{method}");
    }
}
