//! A batch costs the server no more than its items may: what is beyond the bound is never decoded.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failure in a test's helper is a failed test"
)]

mod common;

use common::{Server, raw_call, refusal};
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
    let refused = |record: &&serde_json::Value| record["result"] == "FIELD_VIOLATION";
    let whole = |record: &&serde_json::Value| record["item"].is_null();
    let records = server.records();
    assert_eq!(records.iter().filter(refused).filter(whole).count(), 2 * methods.len());
}
