//! What kill -9 cannot show: that disks were told before clients were.
//!
//! The real server runs under strace. No byte of an answer may leave before the fdatasync that covers its records; the
//! rows of a mutation are written only after its intent was synced in the audit log, and it is acknowledged only after
//! they, and the token's files when a resident key was made, were synced. The threads that serve requests touch no file:
//! each one is left to threads that may wait for a disk. Each check is shown to fail on a trace in which the order, or the
//! thread, is another.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test program: a failure here is a failed test"
)]

#[allow(dead_code, unreachable_pub, reason = "shared with kms-server's tests, which use all of it")]
#[path = "../kms-server/tests/support/strace.rs"]
mod strace;
mod support_dev;
mod support_durability;

use std::path::Path;
use std::sync::LazyLock;

use kms_proto::v1 as proto;
use strace::{Call, Effect};
use support_dev::{TENANT, new_key, request_id};
use support_durability::threads::{SERVING, Touch, is_journal, is_store};
use support_durability::{Trace, Traced, early_answer, is_log, is_token, is_wal, unsynced, writes};
use tonic::transport::Channel;

/// Wraps on each connection.
const WRAPS: usize = 12;
/// Connections at a time, in the part that is concurrent.
const CONNECTIONS: usize = 4;
/// Long enough that no frame but an answer has its size.
const PLAINTEXT_BYTES: usize = 2_000;

/// Items of the batch.
const BATCH: usize = 2;
/// The log lines of each answer: intent and outcome of a mutation, one an item of everything else. Leases have lines
/// beside.
const LINES: [(usize, usize); 8] = [
    (1, 2),     // CreateKey
    (WRAPS, 1), // Wrap
    (1, 1),     // Unwrap
    (1, 1),     // GenerateDataKey
    (1, BATCH), // BatchWrap
    (1, 2),     // RotateKey
    (1, 1),     // Rewrap
    (1, 2),     // SuspendKeyVersion
];
/// Where among the answers those of mutations are.
const MUTATIONS: [(&str, usize); 3] =
    [("CreateKey", 0), ("RotateKey", WRAPS + 4), ("SuspendKeyVersion", WRAPS + 6)];
/// Where among the answers those are that have a new version made: CreateKey and RotateKey.
const NEW_VERSIONS: [usize; 2] = [0, WRAPS + 4];
/// The first answers that use a version, and so a lease of it: a Wrap and the Rewrap.
const FIRST_USES: [(u32, usize); 2] = [(1, 1), (2, WRAPS + 5)];
/// Stands in the line of a lease.
const LEASE: &str = "\"operation\":\"internal/Lease\"";

/// Creates a key of its own and does with it what can be done, one call at a time.
async fn use_a_key(channel: Channel, key_id: String, protection: proto::Protection) {
    let mut request = new_key(&key_id, protection);
    request.usage = mark("CreateKey", &key_id);
    let mut keys = kms_testkit::client::key_client(&channel);
    let key = keys.create_key(request).await.unwrap().into_inner().name;
    assert_eq!(key, format!("{TENANT}/keys/{key_id}"));
    let ciphertext = use_for_data(&channel, &key).await;
    let rotate = proto::RotateKeyRequest {
        name: key.clone(),
        reason: mark("RotateKey", &key_id),
        request_id: request_id(),
    };
    keys.rotate_key(rotate).await.unwrap();
    let rewrap = proto::RewrapRequest { key: key.clone(), ciphertext, context: context() };
    let rewrapped = kms_testkit::client::crypto_client(&channel).rewrap(rewrap).await.unwrap();
    assert!(rewrapped.get_ref().changed);
    let suspend = proto::SuspendKeyVersionRequest {
        name: format!("{key}/versions/2"),
        reason: mark("SuspendKeyVersion", &key_id),
        request_id: request_id(),
    };
    keys.suspend_key_version(suspend).await.unwrap();
}

/// Wraps, unwraps, generates a data key and wraps a batch; returns a ciphertext.
async fn use_for_data(channel: &Channel, key: &str) -> prost::bytes::Bytes {
    let mut crypto = kms_testkit::client::crypto_client(channel);
    let request = proto::WrapRequest {
        key: key.to_owned(),
        plaintext: vec![7; PLAINTEXT_BYTES].into(),
        context: context(),
    };
    let mut wrapped = proto::WrapResponse::default();
    for _ in 0..WRAPS {
        wrapped = crypto.wrap(request.clone()).await.unwrap().into_inner();
    }
    let unwrap = proto::UnwrapRequest {
        key: key.to_owned(),
        ciphertext: wrapped.ciphertext.clone(),
        context: context(),
    };
    crypto.unwrap(unwrap).await.unwrap();
    let data_key = proto::GenerateDataKeyRequest {
        key: key.to_owned(),
        length_bytes: 32,
        context: context(),
        without_plaintext: false,
    };
    crypto.generate_data_key(data_key).await.unwrap();
    let batch = proto::BatchWrapRequest { items: vec![request; BATCH] };
    let items = crypto.batch_wrap(batch).await.unwrap().into_inner().items;
    assert!(items.len() == BATCH && items.iter().all(|item| item.result.is_some()));
    wrapped.ciphertext
}

/// Long enough that no frame but a request has its size.
fn context() -> std::collections::HashMap<String, String> {
    [("context".to_owned(), "c".repeat(300))].into()
}

/// Stands in the rows that a mutation writes and in no earlier ones. Long enough that no frame but a request has its size.
fn mark(operation: &str, key_id: &str) -> String {
    format!("{:-<160}", format!("only-the-rows-of-{operation}-of-{key_id}-have-this"))
}

fn keys() -> Vec<(String, proto::Protection)> {
    let alone = ("alone".to_owned(), proto::Protection::HsmResident);
    let together = (0..CONNECTIONS).map(|n| (format!("c{n}"), proto::Protection::HsmWrapped));
    std::iter::once(alone).chain(together).collect()
}

/// All tests look at one run.
static TRACE: LazyLock<Trace> = LazyLock::new(trace);

/// Runs the server: one client alone, then several at a time, each on its own connection with its own key.
fn trace() -> Trace {
    let traced = Traced::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut keys = keys().into_iter();
        let (alone, protection) = keys.next().unwrap();
        use_a_key(traced.server.connect().await, alone, protection).await;
        support_durability::calls::make_all_others(&traced.server.connect().await).await;
        let mut working = tokio::task::JoinSet::new();
        let mut channels = vec![];
        for key in keys {
            channels.push((traced.server.connect().await, key));
        }
        for (channel, (key_id, protection)) in channels {
            working.spawn(use_a_key(channel, key_id, protection));
        }
        working.join_all().await;
    });
    drop(runtime);
    traced.end()
}

/// The log lines that must be durable before each answer.
fn needed(answers: &[(usize, usize)]) -> Vec<(usize, usize)> {
    let lines = LINES.iter().flat_map(|(answers, lines)| std::iter::repeat_n(*lines, *answers));
    let sums = lines.scan(0, |sum, lines| {
        *sum += lines;
        Some(*sum)
    });
    let needed: Vec<_> = answers.iter().map(|(_, answer)| *answer).zip(sums).collect();
    assert_eq!(needed.len(), answers.len());
    needed
}

fn resource(key_id: &str) -> String {
    format!("\"resource\":\"{TENANT}/keys/{key_id}\"")
}

#[test]
fn nothing_is_answered_before_it_is_durable() {
    let Trace { calls, connections, .. } = &*TRACE;
    let mut connections = connections.clone();
    // The second made the other calls, whose requests may be shorter than what is told apart.
    let _others = connections.remove(1);
    assert_eq!(connections.len(), 1 + CONNECTIONS);
    for ((key_id, protection), connection) in keys().iter().zip(&connections) {
        let answers = &connection.answers;
        let expected: usize = LINES.iter().map(|(answers, _)| answers).sum();
        assert_eq!(answers.len(), expected, "{key_id}: {answers:?}");
        let (needed, resource) = (needed(answers), resource(key_id));
        records_come_first(calls, &resource, &needed);
        for (version, index) in FIRST_USES {
            lease_comes_first(calls, &resource, version, answers[index].1);
        }
        for (operation, index) in MUTATIONS {
            let row = row_comes_first(calls, &mark(operation, key_id), answers[index].1);
            intent_comes_first(calls, &resource, operation, row);
        }
        if *protection == proto::Protection::HsmResident {
            for index in NEW_VERSIONS {
                let (began, created) = answers[index];
                token_files_come_first(calls, began, created);
            }
        }
    }
}

#[test]
fn threads_that_serve_touch_no_file() {
    let Trace { calls, connections, touches, threads, .. } = &*TRACE;
    assert!(threads.iter().any(|name| name == SERVING), "{threads:?}");
    let serving: Vec<_> = touches.iter().filter(|touch| touch.thread == SERVING).collect();
    assert_eq!(serving, Vec::<&Touch>::new());
    let requests = || connections.iter().flat_map(|connection| &connection.answers);
    let first = requests().map(|(began, _)| *began).min().unwrap();
    let last = requests().map(|(_, answered)| *answered).max().unwrap();
    let during = || touches.iter().filter(|touch| first < touch.start && touch.start < last);
    let misplaced: Vec<_> = during().filter(|touch| !touch.belongs()).collect();
    assert_eq!(misplaced, Vec::<&Touch>::new());
    // What is not looked at cannot be misplaced: every method was called meanwhile, with and without success, and each kind of file is written meanwhile, by the one that it belongs to.
    for (method, result) in support_durability::calls::TOLD {
        let told = |line: &str| {
            line.contains(&format!("Service/{method}\""))
                && line.contains(&format!("\"result\":\"{result}\""))
        };
        let told = |call: &&Call| writes(call, told) && first < call.start && call.start < last;
        assert!(calls.iter().any(|call| told(&call)), "{method} was not told as {result}");
    }
    for (owner, is_its) in [
        ("audit-write", is_log as fn(&Path) -> bool),
        ("store-write", is_store),
        ("journal-write", is_journal),
        ("hsm-keeper", is_token),
    ] {
        let mut written =
            during().filter(|touch| touch.writes && touch.thread == owner && is_its(&touch.path));
        let mut touch = written.next().unwrap_or_else(|| panic!("{owner} wrote nothing")).clone();
        SERVING.clone_into(&mut touch.thread);
        assert!(!touch.belongs(), "{touch:?}");
    }
    for (owner, is_its) in [("store-read", is_store as fn(&Path) -> bool), ("hsm-worker", is_token)]
    {
        let read = |touch: &Touch| touch.thread.starts_with(owner) && is_its(&touch.path);
        assert!(during().any(read), "{owner} read nothing");
    }
}

fn records_come_first(calls: &[Call], resource: &str, needed: &[(usize, usize)]) {
    let names = |line: &str| line.contains(resource) && !line.contains(LEASE);
    assert_eq!(early_answer(calls, names, needed), None);
    // One line more than there is must be missed: the lines are counted, not only the syncs.
    let more: Vec<_> = needed.iter().map(|(answer, lines)| (*answer, lines + 1)).collect();
    assert_eq!(early_answer(calls, names, &more), Some(needed[0].0));
    let is_sync = |call: &Call| matches!(&call.effect, Effect::Sync { path } if is_log(path));
    let [.., (before, _), (last, _)] = needed else { panic!("too few answers") };
    let mut without = calls.to_vec();
    without.retain(|call| !is_sync(call) || call.done < needed[0].0);
    assert_eq!(early_answer(&without, names, needed), Some(needed[1].0));
    // The syncs between the last two answers, done only when the last one had begun to leave.
    let mut late = calls.to_vec();
    for call in late.iter_mut().filter(|call| is_sync(call)) {
        if *before < call.done && call.done < *last {
            call.done = last + 1;
        }
    }
    assert_eq!(early_answer(&late, names, needed), Some(*last));
}

fn lease_comes_first(calls: &[Call], resource: &str, version: u32, answer: usize) {
    let version = format!("\"key_version\":{version},");
    let is_lease = |line: &str| [resource, &version, LEASE].iter().all(|part| line.contains(part));
    assert_eq!(early_answer(calls, is_lease, &[(answer, 1)]), None, "{version}");
}

/// SoftHSM does not sync: a root that is pinned before its files are could be gone after a loss of power, and all keys with it.
#[test]
fn a_root_is_on_the_disk_before_it_is_pinned() {
    let Trace { calls, root_id, .. } = &*TRACE;
    assert_eq!(root_id.len(), 16);
    let pinned = first_in_wal(calls, root_id).start;
    token_files_come_first(calls, 0, pinned);
}

/// Returns the first write of these bytes to the store's write-ahead log.
fn first_in_wal<'a>(calls: &'a [Call], bytes: &[u8]) -> &'a Call {
    let holds = |call: &&Call| match &call.effect {
        Effect::Write { path, data, .. } if is_wal(path) => {
            data.windows(bytes.len()).any(|window| window == bytes)
        }
        _ => false,
    };
    calls.iter().find(holds).expect("the row is written to the log")
}

/// Returns when the row began to be written.
fn row_comes_first(calls: &[Call], mark: &str, answer: usize) -> usize {
    let row = first_in_wal(calls, mark.as_bytes());
    assert!(row.done < answer);
    let before = row.start - 1;
    let ours = |call: &Call| call == row;
    assert_eq!(unsynced(calls, ours, before, answer), Vec::<std::path::PathBuf>::new());
    let mut without = calls.to_vec();
    without.retain(|call| !matches!(&call.effect, Effect::Sync { path } if is_wal(path)));
    assert_eq!(unsynced(&without, ours, before, answer).len(), 1);
    row.start
}

fn intent_comes_first(calls: &[Call], resource: &str, operation: &str, row: usize) {
    let method = format!("/{operation}\"");
    let is_intent = |line: &str| {
        [resource, &method, "\"phase\":\"intent\""].iter().all(|part| line.contains(part))
    };
    let needed = [(row, 1)];
    assert_eq!(early_answer(calls, is_intent, &needed), None, "{operation}");
    // Had the log been synced only when the row was being written, it would show.
    let mut late = calls.to_vec();
    let is_sync = |call: &Call| matches!(&call.effect, Effect::Sync { path } if is_log(path));
    let written = calls.iter().find(|call| writes(call, is_intent)).unwrap().done;
    for call in late.iter_mut().filter(|call| is_sync(call)) {
        if written < call.start && call.done < row {
            call.done = row + 1;
        }
    }
    assert_eq!(early_answer(&late, is_intent, &needed), Some(row), "{operation}");
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
    assert!(made, "the token made no file");
    assert_eq!(unsynced(calls, ours, began, created), Vec::<std::path::PathBuf>::new());
    let mut without = calls.to_vec();
    without.retain(|call| !matches!(&call.effect, Effect::Sync { path } if is_token(path)));
    assert!(!unsynced(&without, ours, began, created).is_empty());
}
