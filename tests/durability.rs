//! What kill -9 cannot show: that disks were told before clients were.
//!
//! The real server runs under strace. No byte of an answer may leave before the fdatasync that covers its records; a key
//! is acknowledged only after its row in the write-ahead log, and a resident one only after the token's files, were
//! synced. Each check is shown to fail on a trace in which the order is another.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test program: a failure here is a failed test"
)]

#[allow(dead_code, reason = "shared with kms-server's tests, which use all of it")]
#[path = "../kms-server/tests/support/strace.rs"]
mod strace;
mod support_dev;
mod support_durability;

use kms_proto::v1 as proto;
use strace::{Call, Effect};
use support_dev::{TENANT, new_key};
use support_durability::{Trace, Traced, early_answer, is_log, is_token, is_wal, unsynced};
use tonic::transport::Channel;

/// Wraps on each connection.
const WRAPS: usize = 12;
/// Connections at a time, in the part that is concurrent.
const CONNECTIONS: usize = 4;
/// Long enough that no frame but an answer has its size.
const PLAINTEXT_BYTES: usize = 2_000;

/// Creates a key of its own and wraps under it, one call at a time.
async fn create_and_wrap(channel: Channel, key_id: String, protection: proto::Protection) {
    let mut request = new_key(&key_id, protection);
    request.usage = usage(&key_id);
    let key = kms_testkit::client::key_client(&channel).create_key(request).await.unwrap();
    let key = key.into_inner().name;
    assert_eq!(key, format!("{TENANT}/keys/{key_id}"));
    let mut crypto = kms_testkit::client::crypto_client(&channel);
    for _ in 0..WRAPS {
        let request = proto::WrapRequest {
            key: key.clone(),
            plaintext: vec![7; PLAINTEXT_BYTES].into(),
            context: std::collections::HashMap::new(),
        };
        crypto.wrap(request).await.unwrap();
    }
}

/// Stands in the key's row and nowhere else.
fn usage(key_id: &str) -> String {
    format!("usage-that-only-the-row-of-{key_id}-has")
}

fn keys() -> Vec<(String, proto::Protection)> {
    let alone = ("alone".to_owned(), proto::Protection::HsmResident);
    let together = (0..CONNECTIONS).map(|n| (format!("c{n}"), proto::Protection::HsmWrapped));
    std::iter::once(alone).chain(together).collect()
}

/// Runs the server: one client alone, then several at a time, each on its own connection with its own key.
fn trace() -> Trace {
    let traced = Traced::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut keys = keys().into_iter();
        let (alone, protection) = keys.next().unwrap();
        create_and_wrap(traced.server.connect().await, alone, protection).await;
        let mut working = tokio::task::JoinSet::new();
        let mut channels = vec![];
        for key in keys {
            channels.push((traced.server.connect().await, key));
        }
        for (channel, (key_id, protection)) in channels {
            working.spawn(create_and_wrap(channel, key_id, protection));
        }
        working.join_all().await;
    });
    drop(runtime);
    traced.end()
}

/// The log lines that must be durable before each answer: intent and outcome of the creation, then one a wrap.
fn needed(answers: &[(usize, usize)]) -> Vec<(usize, usize)> {
    answers.iter().zip(2..).map(|((_, answer), lines)| (*answer, lines)).collect()
}

fn resource(key_id: &str) -> String {
    format!("\"resource\":\"{TENANT}/keys/{key_id}\"")
}

#[test]
fn nothing_is_answered_before_it_is_durable() {
    let Trace { calls, connections } = trace();
    assert_eq!(connections.len(), 1 + CONNECTIONS);
    for ((key_id, protection), connection) in keys().iter().zip(&connections) {
        let answers = &connection.answers;
        assert_eq!(answers.len(), 1 + WRAPS, "{key_id}: {answers:?}");
        let (needed, resource) = (needed(answers), resource(key_id));
        records_come_first(&calls, &resource, &needed);
        let (began, created) = answers[0];
        row_comes_first(&calls, &usage(key_id), created);
        if *protection == proto::Protection::HsmResident {
            token_files_come_first(&calls, began, created);
        }
    }
}

fn records_come_first(calls: &[Call], resource: &str, needed: &[(usize, usize)]) {
    assert_eq!(early_answer(calls, resource, needed), None);
    // One line more than there is must be missed: the lines are counted, not only the syncs.
    let more: Vec<_> = needed.iter().map(|(answer, lines)| (*answer, lines + 1)).collect();
    assert_eq!(early_answer(calls, resource, &more), Some(needed[0].0));
    let is_sync = |call: &Call| matches!(&call.effect, Effect::Sync { path } if is_log(path));
    let [.., (before, _), (last, _)] = needed else { panic!("too few answers") };
    let mut without = calls.to_vec();
    without.retain(|call| !is_sync(call) || call.done < needed[0].0);
    assert_eq!(early_answer(&without, resource, needed), Some(needed[1].0));
    // The syncs between the last two answers, done only when the last one had begun to leave.
    let mut late = calls.to_vec();
    for call in late.iter_mut().filter(|call| is_sync(call)) {
        if *before < call.done && call.done < *last {
            call.done = last + 1;
        }
    }
    assert_eq!(early_answer(&late, resource, needed), Some(*last));
}

fn row_comes_first(calls: &[Call], usage: &str, created: usize) {
    let holds = |call: &Call| match &call.effect {
        Effect::Write { path, data, .. } if is_wal(path) => {
            data.windows(usage.len()).any(|window| window == usage.as_bytes())
        }
        _ => false,
    };
    let row = calls.iter().find(|call| holds(call)).expect("the row is written to the log");
    assert!(row.done < created);
    let before = row.start - 1;
    let ours = |call: &Call| call == row;
    assert_eq!(unsynced(calls, ours, before, created), Vec::<std::path::PathBuf>::new());
    let mut without = calls.to_vec();
    without.retain(|call| !matches!(&call.effect, Effect::Sync { path } if is_wal(path)));
    assert_eq!(unsynced(&without, ours, before, created).len(), 1);
}

fn token_files_come_first(calls: &[Call], began: usize, created: usize) {
    let ours = |call: &Call| match &call.effect {
        Effect::Write { path, .. } | Effect::Open { path, .. } | Effect::SetLength { path, .. } => {
            is_token(path)
        }
        _ => false,
    };
    let made = calls.iter().any(|call| {
        let inside = began < call.start && call.done < created;
        inside && ours(call) && matches!(&call.effect, Effect::Open { create: true, .. })
    });
    assert!(made, "the token made no file for the resident key");
    assert_eq!(unsynced(calls, ours, began, created), Vec::<std::path::PathBuf>::new());
    let mut without = calls.to_vec();
    without.retain(|call| !matches!(&call.effect, Effect::Sync { path } if is_token(path)));
    assert!(!unsynced(&without, ours, began, created).is_empty());
}
