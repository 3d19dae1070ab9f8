//! The bytes of the audit log: a golden file, an independent verifier, and every single change of a log found.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failure in a test's helper is a failed test"
)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kms_core::audit::{AuditRecord, CounterStamp, Decision, LoggedContext, ManifestStamp, Phase};
use kms_core::id::{IntentId, KeyVersion, Revision};
use kms_server::audit::verify::{VerifyError, verify};
use kms_server::audit::{AuditSink as _, AuditStartError, FileSink, Head, MAX_LINE_BYTES};
use support::samples::record;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/audit.jsonl");
const VERIFIER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/verify_audit.py");

fn log_file(directory: &Path) -> PathBuf {
    directory.join("audit-00000001.jsonl")
}

/// A record in which every field is there.
fn full_record() -> AuditRecord {
    AuditRecord {
        item: Some(3),
        phase: Phase::Outcome,
        intent_id: Some(IntentId::from_bytes([9; 16])),
        context: Some(LoggedContext::Clear([("a\n\"".into(), "\u{e4}\u{0}".into())].into())),
        decision: Decision::Deny { policies: vec![] },
        result: "PERMISSION_DENIED".into(),
        from_version: Some(KeyVersion::FIRST),
        reason: Some("drill".into()),
        manifest: Some(ManifestStamp { revision: Revision::new(7), digest: "00ff".into() }),
        counter: Some(CounterStamp { revision: Revision::new(8), leased: 1 << 32 }),
        count: Some(12),
        ..record(3)
    }
}

fn hashed_record() -> AuditRecord {
    AuditRecord {
        context: Some(LoggedContext::Hashed("00ff".into())),
        decision: Decision::NotReached,
        resource: None,
        key_uid: None,
        key_version: None,
        ..record(2)
    }
}

/// Writes groups of the given sizes and returns the directory and the head.
async fn log_of(groups: Vec<Vec<AuditRecord>>) -> (tempfile::TempDir, Head) {
    let directory = tempfile::tempdir().unwrap();
    let sink = FileSink::open(directory.path()).unwrap();
    for group in groups {
        sink.append(group).await.unwrap();
    }
    sink.close();
    let head = verify(directory.path(), None).unwrap().head;
    (directory, head)
}

async fn golden_log() -> (tempfile::TempDir, Head) {
    log_of(vec![vec![record(1), hashed_record()], vec![full_record()]]).await
}

#[tokio::test]
async fn lines_are_those_of_the_golden_file() {
    let (directory, _) = golden_log().await;
    let written = fs::read_to_string(log_file(directory.path())).unwrap();
    assert_eq!(written, fs::read_to_string(GOLDEN).unwrap());
}

#[tokio::test]
async fn an_independent_verifier_agrees_on_the_head() {
    let (_directory, head) = golden_log().await;
    let output = Command::new("python3").arg(VERIFIER).arg(GOLDEN).output();
    let output = output.expect("python3 is needed: apt-get install python3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let hash = data_encoding::HEXLOWER.encode(&head.hash);
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), format!("3 {hash}"));
}

#[tokio::test]
async fn records_read_back_from_their_lines() {
    let line = fs::read_to_string(GOLDEN).unwrap().lines().last().unwrap().to_owned();
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    let read: AuditRecord = serde_json::from_value(value["entry"]["record"].clone()).unwrap();
    assert_eq!(read, full_record());
}

/// A field that is not in this list was added without the question whether it can hold a secret.
#[test]
fn a_record_has_no_other_fields_than_those_reviewed() {
    let value = serde_json::to_value(full_record()).unwrap();
    let fields: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    let reviewed = [
        "authn_method",
        "context",
        "count",
        "counter",
        "decision",
        "event_id",
        "from_version",
        "hsm_us",
        "intent_id",
        "item",
        "key_uid",
        "key_version",
        "manifest",
        "operation",
        "phase",
        "policy_revision",
        "principal",
        "queue_us",
        "reason",
        "resource",
        "result",
        "source",
        "tenant",
        "time",
    ];
    assert_eq!(fields, reviewed);
}

#[test]
fn a_line_is_as_long_as_documented_at_most() {
    assert_eq!(MAX_LINE_BYTES, 65_535 + 9 + 150);
}

async fn sample_log() -> (tempfile::TempDir, Head, Vec<u8>) {
    let groups = (0..3).map(|group| (group * 2..group * 2 + 2).map(record).collect()).collect();
    let (directory, head) = log_of(groups).await;
    let bytes = fs::read(log_file(directory.path())).unwrap();
    (directory, head, bytes)
}

fn lines(bytes: &[u8]) -> Vec<Vec<u8>> {
    bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
}

#[tokio::test]
async fn every_changed_byte_is_found_offline_and_refuses_the_start() {
    let (directory, _, bytes) = sample_log().await;
    let last_line_feed = bytes.len() - 1;
    for position in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[position] ^= 1 << (position % 8);
        fs::write(log_file(directory.path()), &changed).unwrap();
        assert!(verify(directory.path(), None).is_err(), "{position}");
        // Without its line feed the last line looks like a write that was cut short, and is cut off.
        if position != last_line_feed && position % 7 == 0 {
            let refused = FileSink::open(directory.path());
            assert!(matches!(refused, Err(AuditStartError::Damaged { .. })), "{position}");
        }
    }
}

#[tokio::test]
async fn every_removed_repeated_or_moved_line_is_found() {
    let (directory, head, bytes) = sample_log().await;
    let original = lines(&bytes);
    let count = original.len();
    let mut tampered = Vec::new();
    for at in 0..count {
        let mut removed = original.clone();
        removed.remove(at);
        tampered.push(removed);
        for other in 0..count {
            let mut inserted = original.clone();
            inserted.insert(other, original[at].clone());
            tampered.push(inserted);
            if at != other {
                let mut swapped = original.clone();
                swapped.swap(at, other);
                tampered.push(swapped);
            }
        }
    }
    for lines in tampered {
        fs::write(log_file(directory.path()), lines.concat()).unwrap();
        assert!(verify(directory.path(), Some(head)).is_err());
    }
    fs::write(log_file(directory.path()), bytes).unwrap();
    assert_eq!(verify(directory.path(), Some(head)).unwrap().entries, count as u64);
}

#[tokio::test]
async fn a_cut_at_any_byte_is_found() {
    let (directory, head, bytes) = sample_log().await;
    for length in 0..bytes.len() {
        fs::write(log_file(directory.path()), &bytes[..length]).unwrap();
        assert!(verify(directory.path(), Some(head)).is_err(), "{length}");
        let at_line_end = length == 0 || bytes[length - 1] == b'\n';
        let alone = verify(directory.path(), None);
        assert_eq!(alone.is_ok(), at_line_end, "{length}");
        if !at_line_end {
            assert!(matches!(alone, Err(VerifyError::Torn { .. })), "{length}");
        }
    }
}

#[tokio::test]
async fn a_line_of_another_log_is_found() {
    let (directory, _, bytes) = sample_log().await;
    let (other, _) = log_of(vec![(100..106).map(record).collect()]).await;
    let foreign = lines(&fs::read(log_file(other.path())).unwrap());
    let original = lines(&bytes);
    for at in 0..original.len() {
        let mut mixed = original.clone();
        mixed[at].clone_from(&foreign[at]);
        fs::write(log_file(directory.path()), mixed.concat()).unwrap();
        assert!(verify(directory.path(), None).is_err(), "{at}");
    }
}

#[tokio::test]
async fn a_directory_without_a_log_does_not_verify() {
    let directory = tempfile::tempdir().unwrap();
    assert!(matches!(verify(directory.path(), None), Err(VerifyError::Empty)));
}
