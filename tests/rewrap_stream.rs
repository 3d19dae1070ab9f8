//! RewrapStream over mTLS against a real server: order, references, refusals of single items, bounds, how a stream ends,
//! and one audit record an item.
//!
//! That nobody without a principal or a permission gets anything is in tests/coverage.rs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test program: a failure here is a failed test"
)]

mod common;

use std::time::Duration;

use common::calls::pairs;
use common::{Client, LIMIT, Refusal, Server};
use kms_proto::v1 as proto;
use kms_testkit::deadline::within;
use rustix::process::Signal;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Request, Status, Streaming};

/// More than some windows of items.
const ITEMS: usize = 300;
/// A deadline that a test waits for.
const SHORT: Duration = Duration::from_secs(1);
/// What a client may send ahead on a stream that is not read from.
const WINDOW_BYTES: usize = 4 << 20;

fn item(reference: &str, key: &str, ciphertext: &[u8]) -> proto::RewrapStreamRequest {
    let (key, ciphertext) = (key.to_owned(), ciphertext.to_vec().into());
    let item = proto::RewrapRequest { key, ciphertext, context: pairs(&[]) };
    proto::RewrapStreamRequest { reference: reference.to_owned(), item: Some(item) }
}

/// A key that was rolled over, and a ciphertext under its first version.
async fn rolled_over(client: &Client) -> (String, Vec<u8>) {
    let key = client.create("k").await.name;
    let old = client.wrap(&key, b"secret", &[]).await.unwrap().ciphertext.to_vec();
    client.rotate(&key).await;
    (key, old)
}

/// Sends all of it and ends; returns the answers and how the stream ended.
async fn all(
    client: &Client,
    items: Vec<proto::RewrapStreamRequest>,
) -> (Vec<proto::RewrapStreamResponse>, Option<Status>) {
    let opened = client.crypto().rewrap_stream(tokio_stream::iter(items)).await;
    match opened {
        Ok(opened) => to_the_end(opened.into_inner()).await,
        Err(status) => (Vec::new(), Some(status)),
    }
}

async fn to_the_end(
    mut answers: Streaming<proto::RewrapStreamResponse>,
) -> (Vec<proto::RewrapStreamResponse>, Option<Status>) {
    let mut all = Vec::new();
    loop {
        match within(LIMIT, "an answer", answers.next()).await {
            Some(Ok(answer)) => all.push(answer),
            Some(Err(status)) => return (all, Some(status)),
            None => return (all, None),
        }
    }
}

/// Returns reference, code and reason.
fn told(answer: &proto::RewrapStreamResponse) -> (&str, i32, &str) {
    let status = answer.status.as_ref().unwrap();
    (&answer.reference, status.code, &status.reason)
}

#[tokio::test]
async fn items_are_answered_in_order_each_with_its_reference_status_and_record() {
    let server = Server::fresh();
    let client = server.operator().await;
    let (key, old) = rolled_over(&client).await;
    let current = client.wrap(&key, b"new", &[]).await.unwrap().ciphertext;
    let mut items: Vec<_> = (0..ITEMS).map(|n| item(&format!("row {n}"), &key, &old)).collect();
    items[1] = item("current", &key, &current);
    items[2] = item("spoilt", &key, &old[..old.len() - 1]);
    items[3] = item("no key", "tenants/t/keys/k/x", &old);
    items[4].item = None;
    items[5].reference = "r".repeat(256);
    items[6].reference = "r".repeat(257);
    let opened = client.crypto().rewrap_stream(tokio_stream::iter(items)).await.unwrap();
    let id = opened.metadata().get("holdfast-event-id").unwrap().to_str().unwrap().to_owned();
    let (answers, end) = to_the_end(opened.into_inner()).await;
    assert!(end.is_none() && answers.len() == ITEMS, "{end:?}, {} answers", answers.len());

    assert_eq!(told(&answers[0]), ("row 0", 0, ""));
    assert_eq!(
        (told(&answers[1]), answers[1].result.as_ref().unwrap().changed),
        (("current", 0, ""), false)
    );
    assert_eq!(told(&answers[2]), ("spoilt", 3, "CIPHERTEXT_INVALID"));
    assert_eq!(told(&answers[3]), ("no key", 3, "FIELD_VIOLATION"));
    assert_eq!(told(&answers[4]), ("row 4", 3, "FIELD_VIOLATION"));
    assert_eq!(told(&answers[5]).1, 0);
    assert_eq!((told(&answers[6]).1, told(&answers[6]).2), (3, "FIELD_VIOLATION"));
    for (n, answer) in answers.iter().enumerate().skip(7) {
        assert_eq!(told(answer), (format!("row {n}").as_str(), 0, ""));
        let result = answer.result.as_ref().unwrap();
        assert!(result.changed && result.key_version.ends_with("/versions/2"), "{result:?}");
    }
    let last = &answers[ITEMS - 1].result.as_ref().unwrap().ciphertext;
    assert_eq!(client.unwrap(&key, last, &[]).await.unwrap(), b"secret");

    // Each was durable before its answer. Refusals of the same kind may be counted instead of written.
    let records = server.records();
    let mut numbers: Vec<_> = records
        .iter()
        .filter(|record| record["event_id"] == id && record["result"] == "OK")
        .map(|record| record["item"].as_u64().unwrap())
        .collect();
    numbers.sort_unstable();
    let good = (0..ITEMS as u64).filter(|n| ![2, 3, 4, 6].contains(n));
    assert_eq!(numbers, good.collect::<Vec<_>>());
    server.stop().await;
}

#[tokio::test]
async fn answers_come_while_the_client_still_has_items_to_send() {
    let server = Server::fresh();
    let client = server.operator().await;
    let (key, old) = rolled_over(&client).await;
    let (sender, items) = mpsc::channel(1);
    let opened = client.crypto().rewrap_stream(ReceiverStream::new(items)).await.unwrap();
    let mut answers = opened.into_inner();
    for n in 0..3 {
        let reference = n.to_string();
        sender.send(item(&reference, &key, &old)).await.unwrap();
        let answer = within(LIMIT, "the answer", answers.next()).await.unwrap().unwrap();
        assert_eq!(told(&answer), (reference.as_str(), 0, ""));
    }
    drop(sender);
    assert!(within(LIMIT, "the end", answers.next()).await.is_none());
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_takes_no_answers_is_not_read_from_without_end() {
    const LARGE: usize = 64 << 10;
    let server = Server::fresh();
    let client = server.operator().await;
    let key = client.create("k").await.name;
    let large = client.wrap(&key, &vec![7; LARGE], &[]).await.unwrap().ciphertext;
    client.rotate(&key).await;
    let (sender, items) = mpsc::channel(1);
    let opened = client.crypto().rewrap_stream(ReceiverStream::new(items)).await.unwrap();
    // Windows of HTTP/2 on both sides, and two windows of items: far less than this.
    let mut sent = 0;
    let quiet = Duration::from_secs(2);
    while let Ok(Ok(())) = tokio::time::timeout(quiet, sender.send(item("x", &key, &large))).await {
        sent += 1;
        assert!(sent < 2_000, "nothing stops the client");
    }
    // Not by a pause: what it may send ahead is there.
    assert!(sent * LARGE >= WINDOW_BYTES, "stopped after {sent} items");
    // Once it takes them, all goes on.
    drop(sender);
    let (answers, end) = to_the_end(opened.into_inner()).await;
    assert!(end.is_none(), "{end:?}");
    assert!(answers.len() >= sent && answers.iter().all(|answer| told(answer).1 == 0));
    server.stop().await;
}

#[tokio::test]
async fn what_is_no_item_ends_the_stream_after_the_answers_before_it() {
    let server = Server::fresh();
    let client = server.operator().await;
    let (key, old) = rolled_over(&client).await;
    let mut large = item("large", &key, &old);
    large.reference = "r".repeat(128 << 10);
    let (answers, end) = all(&client, vec![item("good", &key, &old), large]).await;
    assert_eq!(answers.iter().map(told).collect::<Vec<_>>(), [("good", 0, "")]);
    Refusal::of(&end.unwrap()).is(Code::InvalidArgument, "MESSAGE_TOO_LARGE");
    let (answers, end) = all(&client, Vec::new()).await;
    assert!(answers.is_empty() && end.is_none());
    server.stop().await;
}

/// Opens a stream that has had one answer, and stays.
async fn standing(
    client: &Client,
) -> (mpsc::Sender<proto::RewrapStreamRequest>, Streaming<proto::RewrapStreamResponse>) {
    let (key, old) = rolled_over(client).await;
    let (sender, items) = mpsc::channel(1);
    let opened = client.crypto().rewrap_stream(ReceiverStream::new(items)).await.unwrap();
    let mut answers = opened.into_inner();
    sender.send(item("a", &key, &old)).await.unwrap();
    let answer = within(LIMIT, "the answer", answers.next()).await.unwrap().unwrap();
    assert_eq!(told(&answer), ("a", 0, ""));
    (sender, answers)
}

/// Opens a stream that may take no longer than [`SHORT`].
async fn short(
    client: &Client,
    items: impl Stream<Item = proto::RewrapStreamRequest> + Send + 'static,
) -> Streaming<proto::RewrapStreamResponse> {
    let mut request = Request::new(items);
    request.set_timeout(SHORT);
    client.crypto().rewrap_stream(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn a_silent_stream_ends_at_its_deadline() {
    let server = Server::fresh();
    let client = server.operator().await;
    let answers = short(&client, tokio_stream::pending()).await;
    let (further, end) = to_the_end(answers).await;
    assert!(further.is_empty());
    Refusal::of(&end.unwrap()).is(Code::DeadlineExceeded, "REQUEST_DEADLINE");
    server.stop().await;
}

#[tokio::test]
async fn a_stream_whose_client_never_stops_sending_ends_at_its_deadline() {
    let server = Server::fresh();
    let client = server.operator().await;
    // Made quicker than they are refused, so the server always has some that it has not looked at. Smaller ones would
    // have HTTP/2 take the client for one that floods it with frames.
    let empty = || proto::RewrapStreamRequest { reference: "r".repeat(256), item: None };
    let endless = tokio_stream::iter(std::iter::repeat_with(empty));
    let answers = short(&client, endless).await;
    let (further, end) = within(LIMIT, "the end", to_the_end(answers)).await;
    assert!(!further.is_empty());
    Refusal::of(&end.unwrap()).is(Code::DeadlineExceeded, "REQUEST_DEADLINE");
    server.stop().await;
}

/// How long a call may take at a hasty server.
const HASTY: Duration = Duration::from_secs(2);

/// Starts a server whose calls may take no longer than [`HASTY`].
fn hasty() -> Server {
    let mut rig = common::Rig::new();
    rig.max_request_ms = HASTY.as_millis().try_into().unwrap();
    rig.start()
}

#[tokio::test]
async fn a_stream_that_goes_on_outlasts_what_a_call_may_take() {
    let server = hasty();
    let client = server.operator().await;
    let (sender, mut answers) = standing(&client).await;
    // Never quiet for a whole step, and three steps long.
    for _ in 0..12 {
        let quiet = tokio::time::timeout(HASTY / 4, answers.next()).await;
        assert!(quiet.is_err(), "nothing was asked: {quiet:?}");
        sender.send(item("b", "tenants/acme/keys/k", b"no ciphertext")).await.unwrap();
        let answer = within(LIMIT, "the answer", answers.next()).await.unwrap().unwrap();
        assert_eq!(told(&answer).0, "b");
    }
    drop(sender);
    let (further, end) = to_the_end(answers).await;
    assert!(further.is_empty() && end.is_none(), "{end:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_stream_that_has_gone_quiet_ends_when_a_call_would() {
    let server = hasty();
    let client = server.operator().await;
    let (_sender, answers) = standing(&client).await;
    let (further, end) = within(LIMIT, "the end", to_the_end(answers)).await;
    assert!(further.is_empty());
    Refusal::of(&end.unwrap()).is(Code::DeadlineExceeded, "REQUEST_DEADLINE");
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_is_revoked_has_no_further_item_done() {
    let mut rig = common::Rig::new();
    rig.crls = vec![rig.pki.revoke("clients", &[])];
    let mut server = rig.start();
    let client = server.operator().await;
    let (sender, answers) = standing(&client).await;
    server.rig.pki.revoke("clients", &[&server.rig.operator]);
    server.process.signal(Signal::HUP);
    server.process.await_line("certificates reloaded", LIMIT);
    sender.send(item("b", "tenants/acme/keys/k", b"")).await.unwrap();
    let (further, end) = to_the_end(answers).await;
    assert!(further.is_empty(), "{further:?}");
    Refusal::of(&end.unwrap()).is(Code::Unauthenticated, "CERT_UNTRUSTED");
    server.stop().await;
}

/// Streams at work: as many as have room in the memory for requests.
const STREAMS_AT_WORK: usize = 42;

#[tokio::test]
async fn only_streams_at_work_take_the_memory_for_requests() {
    let server = Server::fresh();
    let client = server.operator().await;
    let (key, old) = rolled_over(&client).await;
    let mut idle = Vec::new();
    for _ in 0..2 * STREAMS_AT_WORK {
        let (sender, items) = mpsc::channel(1);
        let opened = client.crypto().rewrap_stream(ReceiverStream::new(items)).await.unwrap();
        idle.push((sender, opened.into_inner()));
    }
    // More than what is free for every request.
    client.wrap(&key, &vec![7; 64 << 10], &[]).await.unwrap();
    // Each has an item now and then, and gives back what that took: twice as many as may work at a time are served.
    for reference in ["a", "b"] {
        for (sender, answers) in &mut idle {
            sender.send(item(reference, &key, &old)).await.unwrap();
            let answer = within(LIMIT, "the answer", answers.next()).await.unwrap().unwrap();
            assert_eq!(told(&answer), (reference, 0, ""));
        }
    }
    client.wrap(&key, &vec![7; 64 << 10], &[]).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_stream_does_not_hold_up_a_server_that_stops() {
    let server = Server::fresh();
    let client = server.operator().await;
    let (_sender, answers) = standing(&client).await;
    let ((further, end), _rig) = tokio::join!(to_the_end(answers), server.stop());
    assert!(further.is_empty());
    Refusal::of(&end.unwrap()).is(Code::Unavailable, "CONNECTION_ENDING");
}
