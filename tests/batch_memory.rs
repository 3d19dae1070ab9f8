//! A message costs the server no more than what it may hold: what is beyond a bound is never decoded, and nothing is
//! decoded before it is there to its end.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failure in a test's helper is a failed test"
)]

mod common;

use common::{Rig, Server, raw_call, refusal, unfinished_call};
use kms_testkit::Process;

/// Bytes of the largest message, less some for its framing.
const MESSAGE_BYTES: usize = 4 * 1024 * 1024 - 64;
/// How much more memory than before the server may have held at any time: the message, twice, and buffers.
const MOST_KIB: u64 = 32 * 1024;

/// Returns the most memory that a process has held so far.
fn peak_kib(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

#[tokio::test]
async fn four_mebibytes_of_empty_items_are_refused_in_little_memory() {
    let server = Server::fresh();
    let client = server.operator().await;
    let methods = ["BatchWrap", "BatchUnwrap", "BatchRewrap", "BatchGenerateDataKey"];
    // Items of no bytes: a key of one byte and a length of one byte each.
    let few = |items: usize| [0x0a, 0].repeat(items);
    for method in methods.map(|name| format!("kms.v1.CryptoService/{name}")) {
        let call = |message: Vec<u8>| raw_call(&client.channel, &method, message);
        assert!(call(few(1000)).await.is_ok(), "{method}: each item has its own refusal");
        refusal(call(few(1001)).await).is_field("items");
        let before = peak_kib(&server.process);
        refusal(call(few(MESSAGE_BYTES / 2)).await).is_field("items");
        let grown = peak_kib(&server.process) - before;
        assert!(grown < MOST_KIB, "{method}: {grown} KiB");
    }
    // The first of a kind have records of their own, the rest is counted; the drain writes what was counted.
    let records = server.stop().await.records();
    for method in methods.map(|name| format!("kms.v1.CryptoService/{name}")) {
        let refused = |record: &&serde_json::Value| {
            record["result"] == "FIELD_VIOLATION" && record["operation"] == method.as_str()
        };
        let calls = |record: &serde_json::Value| record["count"].as_u64().unwrap_or(1);
        let told: u64 = records.iter().filter(refused).map(calls).sum();
        assert_eq!(told, 1002, "{method}: 1,000 items and two whole messages");
    }
}

/// Context and labels of nothing but different keys of two letters; the tag of the map comes first.
fn map(tag: u8, bytes: usize) -> Vec<u8> {
    let entry =
        |number: usize| [tag, 4, 0x0a, 2, low_byte(number >> 8) & 0x7f, low_byte(number & 0x7f)];
    (0..bytes / 6).flat_map(entry).collect()
}

const fn low_byte(number: usize) -> u8 {
    number.to_le_bytes()[0]
}

/// A length of four bytes, as a varint.
fn length(bytes: usize) -> [u8; 4] {
    [0, 7, 14, 21].map(|shift| low_byte(bytes >> shift) & 0x7f | if shift == 21 { 0 } else { 0x80 })
}

#[tokio::test]
async fn four_mebibytes_of_pairs_and_paths_are_refused_in_little_memory() {
    let server = Server::fresh();
    let client = server.operator().await;
    let context = map(0x1a, MESSAGE_BYTES);
    let paths = [0x0a, 0].repeat(MESSAGE_BYTES / 2);
    let mask = [&[0x1a][..], &length(paths.len()), &paths].concat();
    let cases = [
        ("kms.v1.CryptoService/Wrap", context.clone(), "context"),
        ("kms.v1.CryptoService/Unwrap", context.clone(), "context"),
        ("kms.v1.CryptoService/Rewrap", context.clone(), "context"),
        ("kms.v1.CryptoService/GenerateDataKey", context, "context"),
        ("kms.v1.KeyService/CreateKey", map(0x4a, MESSAGE_BYTES), "labels"),
        ("kms.v1.KeyService/UpdateKey", map(0x3a, MESSAGE_BYTES), "labels"),
        ("kms.v1.KeyService/UpdateKey", mask, "update_mask"),
    ];
    for (method, message, field) in cases {
        let before = peak_kib(&server.process);
        refusal(raw_call(&client.channel, method, message).await).is_field(field);
        let grown = peak_kib(&server.process) - before;
        assert!(grown < MOST_KIB, "{method}: {grown} KiB");
    }
    server.stop().await;
}

#[tokio::test]
async fn the_map_of_one_item_is_refused_in_little_memory_and_the_others_are_served() {
    let server = Server::fresh();
    let client = server.operator().await;
    let key = client.create("one-item").await.name;
    let wrap =
        kms_proto::v1::WrapRequest { key, plaintext: b"x".to_vec().into(), ..Default::default() };
    let good = prost::Message::encode_to_vec(&wrap);
    let bad = map(0x1a, MESSAGE_BYTES - 1024);
    let item = |bytes: &[u8]| [&[0x0a][..], &length(bytes.len()), bytes].concat();
    let message = [item(&good), item(&bad), item(&good)].concat();
    let before = peak_kib(&server.process);
    let answer = raw_call(&client.channel, "kms.v1.CryptoService/BatchWrap", message).await;
    let grown = peak_kib(&server.process) - before;
    let answer = answer.unwrap().into_inner();
    let answer: kms_proto::v1::BatchWrapResponse = prost::Message::decode(&answer[..]).unwrap();
    let codes = answer.items.iter().map(|item| item.status.as_ref().unwrap().code);
    assert_eq!(codes.collect::<Vec<_>>(), [0, 3, 0]);
    assert!(grown < MOST_KIB, "{grown} KiB");
    server.stop().await;
}

#[tokio::test]
async fn requests_that_never_end_hold_no_more_than_their_bytes() {
    const STREAMS: u64 = 8;
    const MESSAGE_KIB: u64 = 4 * 1024;
    let mut rig = Rig::new();
    rig.max_request_ms = 5_000;
    let server = rig.start();
    let before = peak_kib(&server.process);
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..STREAMS {
        // A connection each: together they would wait for each other's window.
        let client = server.operator().await;
        calls.spawn(async move {
            let message = Some(map(0x1a, MESSAGE_BYTES));
            unfinished_call(&client.channel, "kms.v1.CryptoService/Wrap", message).await
        });
    }
    for answer in calls.join_all().await {
        refusal(answer).is(tonic::Code::DeadlineExceeded, "REQUEST_DEADLINE");
    }
    let grown = peak_kib(&server.process) - before;
    assert!(grown > STREAMS * MESSAGE_KIB / 2, "they did not arrive: {grown} KiB");
    assert!(grown < STREAMS * MESSAGE_KIB * 2 + MOST_KIB, "{grown} KiB");
    server.stop().await;
}
