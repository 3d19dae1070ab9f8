//! Real system calls that fail: full disk, failed sync, read-only file system. What was refused is not there, what was
//! acknowledged is, and both store and audit log work again by themselves.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failure in a test's helper is a failed test"
)]

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use kms_server::audit::verify::verify;
use kms_server::audit::{AuditError, AuditSink as _, FileSink};
use kms_server::store::sqlite::SqliteStore;
use kms_server::store::{KeyRef, Store as _, StoreError, VersionChoice};
use support::samples::{closing, intent, key_name, new_key, record};
use support::strace::fail_test;

/// Set in the child: where it works.
const ROOT: &str = "HOLDFAST_DISK_FAULTS_ROOT";

fn child_root() -> Option<PathBuf> {
    std::env::var_os(ROOT).map(PathBuf::from)
}

/// Appends until 20 records are acknowledged; returns how many were refused.
async fn append_through_faults(root: &Path) -> u64 {
    let directory = root.join("audit");
    let sink = FileSink::open(&directory).unwrap();
    let (mut acknowledged, mut refused) = (vec![], 0);
    for number in 0..200 {
        match sink.append(vec![record(number)]).await {
            Ok(()) => {
                acknowledged.push(number);
                assert!(sink.healthy());
            }
            Err(AuditError::Unwritable { .. }) => {
                refused += 1;
                assert!(!sink.healthy());
            }
            Err(other) => panic!("{other}"),
        }
        if acknowledged.len() == 20 {
            break;
        }
    }
    sink.close();
    assert_eq!(verify(&directory, None).unwrap().entries, 20);
    let text = std::fs::read_to_string(directory.join("audit-00000001.jsonl")).unwrap();
    for (line, number) in text.lines().zip(acknowledged) {
        assert!(line.contains(&format!("\"number-{number}\"")), "{number}: {line}");
    }
    refused
}

async fn audit_case(name: &str, fault: &str, expected_refusals: u64) {
    if let Some(root) = child_root() {
        assert_eq!(append_through_faults(&root).await, expected_refusals);
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("audit/audit-00000001.jsonl");
    fail_test(name, ROOT, root.path(), &file, fault);
}

#[tokio::test]
async fn a_failed_fdatasync_refuses_its_group_and_nothing_else() {
    let name = "a_failed_fdatasync_refuses_its_group_and_nothing_else";
    audit_case(name, "fdatasync:error=EIO:when=5", 1).await;
}

#[tokio::test]
async fn a_full_disk_refuses_until_there_is_room() {
    // The fifth write fails, and so do the first three attempts to mend the log.
    let name = "a_full_disk_refuses_until_there_is_room";
    audit_case(name, "pwrite64:error=ENOSPC:when=5..8", 4).await;
}

#[tokio::test]
async fn a_failing_mend_is_tried_again() {
    let name = "a_failing_mend_is_tried_again";
    audit_case(name, "fdatasync:error=EIO:when=5..7", 3).await;
}

#[tokio::test]
async fn a_read_only_file_system_refuses_until_it_is_writable() {
    let name = "a_read_only_file_system_refuses_until_it_is_writable";
    audit_case(name, "pwrite64:error=EROFS:when=3..4", 2).await;
}

#[tokio::test]
async fn an_idle_log_finds_by_itself_that_it_can_be_written_again() {
    let name = "an_idle_log_finds_by_itself_that_it_can_be_written_again";
    let Some(root) = child_root() else {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("audit/audit-00000001.jsonl");
        return fail_test(name, ROOT, root.path(), &file, "pwrite64:error=ENOSPC:when=2");
    };
    let sink = FileSink::open(&root.join("audit")).unwrap();
    sink.append(vec![record(1)]).await.unwrap();
    assert!(sink.append(vec![record(2)]).await.is_err());
    assert!(!sink.healthy());
    let recovered = tokio::time::timeout(Duration::from_secs(20), async {
        while !sink.healthy() {
            tokio::task::yield_now().await;
        }
    });
    recovered.await.expect("the log stays unhealthy");
}

/// Creates keys until ten are acknowledged; returns how many calls were refused.
async fn create_through_faults(root: &Path) -> u32 {
    let file = root.join("kms.db");
    let store = SqliteStore::open(&file).unwrap();
    let (mut number, mut refused) = (1, 0);
    while number <= 10 && refused < 100 {
        let outcome = async {
            if !store.intents().await?.rows.contains(&intent(1, number)) {
                store.open_intent(intent(1, number)).await?;
            }
            store.create_key(new_key(1, number), closing(1, number)).await
        };
        match outcome.await {
            Ok(()) => number += 1,
            Err(StoreError::Unwritable { .. } | StoreError::Unavailable { .. }) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    store.close().await;
    let store = SqliteStore::open(&file).unwrap();
    for number in 1..=10 {
        let name = KeyRef::Name(key_name(1, number));
        let found = store.key(name, VersionChoice::Primary).await.unwrap().unwrap();
        assert_eq!(found.version, Some(new_key(1, number).version));
    }
    let intents = store.intents().await.unwrap().rows;
    assert_eq!(intents.len(), 10);
    assert!(intents.iter().all(|intent| intent.row.applied.is_some()));
    refused
}

async fn store_case(name: &str, fault: &str) {
    if let Some(root) = child_root() {
        assert!(create_through_faults(&root).await > 0, "the fault did not happen");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let wal = root.path().join("kms.db-wal");
    fail_test(name, ROOT, root.path(), &wal, fault);
}

#[tokio::test]
async fn a_store_on_a_full_disk_refuses_until_there_is_room() {
    let name = "a_store_on_a_full_disk_refuses_until_there_is_room";
    store_case(name, "write,pwrite64:error=ENOSPC:when=120..125").await;
}

#[tokio::test]
async fn a_store_on_a_read_only_file_system_refuses_until_it_is_writable() {
    let name = "a_store_on_a_read_only_file_system_refuses_until_it_is_writable";
    store_case(name, "write,pwrite64:error=EROFS:when=120..125").await;
}

#[tokio::test]
async fn a_store_whose_sync_fails_refuses_that_commit_only() {
    let name = "a_store_whose_sync_fails_refuses_that_commit_only";
    store_case(name, "fsync,fdatasync:error=EIO:when=5..6").await;
}

#[tokio::test]
async fn a_store_on_a_failing_disk_refuses_until_it_works() {
    let name = "a_store_on_a_failing_disk_refuses_until_it_works";
    store_case(name, "write,pwrite64:error=EIO:when=130..140").await;
}
