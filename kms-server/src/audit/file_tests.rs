//! Tests of the file sink: the suite; and what only files have: restarts, torn ends, rotation, files that go away, the
//! length of a line.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use kms_core::audit::{AuditRecord, ManifestStamp, Phase};
use kms_core::id::{IntentId, Revision};

use super::mark::MARK_BYTES;
use super::sample::record;
use super::suite::{Bench, sink_suite};
use super::verify::verify;
use super::{AuditError, AuditSink, AuditStartError, FileSink, Head, LineFault, MAX_ENTRY_BYTES};

fn directory() -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("audit");
    (root, path)
}

/// For the suite: what is kept is what the log shows when its chain is verified.
struct OnDisk {
    root: tempfile::TempDir,
    path: PathBuf,
    sink: FileSink,
}

impl OnDisk {
    fn new() -> Self {
        let (root, path) = directory();
        let sink = FileSink::open(&path).unwrap();
        Self { root, path, sink }
    }
}

impl Bench for OnDisk {
    fn sink(&self) -> &dyn AuditSink {
        &self.sink
    }

    fn kept(&self) -> Vec<AuditRecord> {
        let text = fs::read_to_string(first_file(&self.path)).unwrap();
        let record = |line: &str| {
            let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
            serde_json::from_value(line["entry"]["record"].take()).unwrap()
        };
        let kept: Vec<AuditRecord> = text.lines().map(record).collect();
        assert_eq!(verify(&self.path, None).unwrap().entries, kept.len() as u64);
        kept
    }

    fn fail(&self, failing: bool) {
        let (file, aside) = (first_file(&self.path), self.root.path().join("aside"));
        let moved = if failing { fs::rename(file, aside) } else { fs::rename(aside, file) };
        moved.unwrap();
    }
}

sink_suite!(OnDisk::new());

fn first_file(directory: &Path) -> PathBuf {
    directory.join("audit-00000001.jsonl")
}

/// Writes `count` records, each in a group of its own.
async fn write(directory: &Path, count: u64) -> Head {
    let sink = FileSink::open(directory).unwrap();
    for number in 0..count {
        sink.append(vec![record(number)]).await.unwrap();
    }
    sink.close();
    verify(directory, None).unwrap().head
}

fn damaged(refused: AuditStartError) -> (u64, LineFault) {
    match refused {
        AuditStartError::Damaged { line, fault, .. } => (line, fault),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn records_are_chained_in_order_and_the_chain_goes_on_after_a_restart() {
    let (_root, path) = directory();
    write(&path, 3).await;
    write(&path, 2).await;
    let report = verify(&path, None).unwrap();
    assert_eq!((report.files, report.entries, report.first_seq), (1, 5, Some(1)));
    assert_eq!(report.head.seq, 5);
}

#[tokio::test]
async fn directory_and_files_are_for_the_owner_alone() {
    let (_root, path) = directory();
    write(&path, 1).await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&first_file(&path)), 0o600);
    assert_eq!(mode(&path.join("audit.lock")), 0o600);
}

#[tokio::test]
async fn a_second_process_is_refused_until_the_first_closes() {
    let (_root, path) = directory();
    let sink = FileSink::open(&path).unwrap();
    assert!(matches!(FileSink::open(&path), Err(AuditStartError::Held)));
    sink.close();
    FileSink::open(&path).unwrap();
}

#[tokio::test]
async fn a_torn_last_line_is_cut_off_at_every_length() {
    let (_root, path) = directory();
    let head = write(&path, 2).await;
    let whole = fs::read(first_file(&path)).unwrap();
    let second = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for torn in 1..whole.len() - second {
        let mut bytes = whole.clone();
        bytes.extend_from_slice(&whole[second..second + torn]);
        fs::write(first_file(&path), &bytes).unwrap();
        FileSink::open(&path).unwrap().close();
        assert_eq!(fs::read(first_file(&path)).unwrap(), whole, "{torn}");
    }
    assert_eq!(verify(&path, Some(head)).unwrap().entries, 2);
}

#[tokio::test]
async fn lost_sectors_of_the_last_group_are_cut_off() {
    let (_root, path) = directory();
    let head = write(&path, 2).await;
    let durable = fs::metadata(first_file(&path)).unwrap().len();
    let sink = FileSink::open(&path).unwrap();
    sink.append((0..20).map(record).collect()).await.unwrap();
    sink.close();
    let whole = fs::read(first_file(&path)).unwrap();
    let first_sector = usize::try_from(durable).unwrap().div_ceil(512);
    for sector in first_sector..whole.len() / 512 {
        let mut bytes = whole.clone();
        bytes[sector * 512..(sector + 1) * 512].fill(0);
        fs::write(first_file(&path), &bytes).unwrap();
        FileSink::open(&path).unwrap().close();
        let report = verify(&path, None).unwrap();
        assert!(report.head.seq >= head.seq && report.head.seq < 22, "{report:?}");
    }
}

#[tokio::test]
async fn a_lost_sector_before_a_later_group_is_damage_and_nothing_is_cut() {
    let (_root, path) = directory();
    write(&path, 12).await;
    let mut bytes = fs::read(first_file(&path)).unwrap();
    bytes[1024..1536].fill(0);
    fs::write(first_file(&path), &bytes).unwrap();
    assert!(matches!(FileSink::open(&path), Err(AuditStartError::Damaged { .. })));
    assert_eq!(fs::read(first_file(&path)).unwrap(), bytes);
}

#[tokio::test]
async fn an_edited_line_refuses_the_start_and_says_where() {
    let (_root, path) = directory();
    write(&path, 5).await;
    let text = fs::read_to_string(first_file(&path)).unwrap();
    for number in 1..=5 {
        let edited: String = text
            .lines()
            .enumerate()
            .map(|(index, line)| {
                let line = if index + 1 == number { line.replace("OK", "NO") } else { line.into() };
                line + "\n"
            })
            .collect();
        fs::write(first_file(&path), edited).unwrap();
        let found = damaged(FileSink::open(&path).unwrap_err());
        assert_eq!(found, (number as u64, LineFault::Hash));
    }
}

#[tokio::test]
async fn foreign_bytes_after_the_last_line_refuse_the_start() {
    let (_root, path) = directory();
    write(&path, 1).await;
    let mut file = fs::OpenOptions::new().append(true).open(first_file(&path)).unwrap();
    file.write_all(b"{\"note\":\"hello\"}\n").unwrap();
    assert_eq!(damaged(FileSink::open(&path).unwrap_err()), (2, LineFault::Shape));
}

#[tokio::test]
async fn the_chain_goes_on_in_the_next_file() {
    let (_root, path) = directory();
    let sink = FileSink::open_with(&path, 1000).unwrap();
    for number in 0..10 {
        sink.append(vec![record(number)]).await.unwrap();
    }
    sink.close();
    let report = verify(&path, None).unwrap();
    assert_eq!(report.entries, 10);
    assert!(report.files >= 3, "{report:?}");
    write(&path, 1).await;
    assert_eq!(verify(&path, None).unwrap().entries, 11);
}

#[tokio::test]
async fn a_new_file_without_lines_continues_the_one_before() {
    let (_root, path) = directory();
    write(&path, 2).await;
    fs::write(path.join("audit-00000002.jsonl"), b"").unwrap();
    let head = write(&path, 1).await;
    assert_eq!(head.seq, 3);
    assert_eq!(verify(&path, None).unwrap().files, 2);
}

#[tokio::test]
async fn a_missing_file_in_the_middle_refuses_the_start() {
    let (_root, path) = directory();
    let sink = FileSink::open_with(&path, 500).unwrap();
    for number in 0..6 {
        sink.append(vec![record(number)]).await.unwrap();
    }
    sink.close();
    fs::remove_file(path.join("audit-00000002.jsonl")).unwrap();
    assert!(matches!(
        FileSink::open(&path),
        Err(AuditStartError::Gap { file }) if file == "audit-00000002.jsonl"
    ));
}

#[tokio::test]
async fn oldest_files_can_be_moved_away() {
    let (_root, path) = directory();
    let sink = FileSink::open_with(&path, 500).unwrap();
    for number in 0..6 {
        sink.append(vec![record(number)]).await.unwrap();
    }
    sink.close();
    fs::remove_file(first_file(&path)).unwrap();
    write(&path, 1).await;
    let report = verify(&path, None).unwrap();
    assert!(report.first_seq > Some(1) && report.head.seq == 7, "{report:?}");
}

#[tokio::test]
async fn a_deleted_file_refuses_and_a_file_put_back_recovers() {
    let (root, path) = directory();
    let sink = FileSink::open(&path).unwrap();
    sink.append(vec![record(1)]).await.unwrap();
    let aside = root.path().join("aside");
    fs::rename(first_file(&path), &aside).unwrap();
    let refused = sink.append(vec![record(2)]).await;
    assert!(matches!(refused, Err(AuditError::Unwritable { .. })));
    assert!(!sink.healthy());
    fs::rename(&aside, first_file(&path)).unwrap();
    sink.append(vec![record(3)]).await.unwrap();
    assert!(sink.healthy());
    sink.close();
    assert_eq!(verify(&path, None).unwrap().entries, 2);
}

#[tokio::test]
async fn a_file_cut_or_replaced_by_someone_else_is_refused() {
    let (_root, path) = directory();
    let sink = FileSink::open(&path).unwrap();
    sink.append(vec![record(1)]).await.unwrap();
    let bytes = fs::read(first_file(&path)).unwrap();
    let file = fs::OpenOptions::new().write(true).open(first_file(&path)).unwrap();
    file.set_len(10).unwrap();
    assert!(sink.append(vec![record(2)]).await.is_err());
    file.write_all_at(&bytes[10..], 10).unwrap();
    sink.append(vec![record(3)]).await.unwrap();
    fs::remove_file(first_file(&path)).unwrap();
    fs::write(first_file(&path), &bytes).unwrap();
    assert!(sink.append(vec![record(4)]).await.is_err());
}

#[tokio::test]
async fn an_entry_just_under_64_kib_is_written_and_a_longer_one_refused_alone() {
    let (_root, path) = directory();
    let sink = FileSink::open(&path).unwrap();
    let mut large = record(1);
    large.operation = "".into();
    let base =
        serde_json::to_vec(&large).unwrap().len() + "{\"seq\":1,\"group\":1,\"record\":}".len();
    large.operation = "x".repeat(MAX_ENTRY_BYTES - 1 - base).into();
    sink.append(vec![large.clone()]).await.unwrap();
    large.operation = "x".repeat(MAX_ENTRY_BYTES - base).into();
    let (refused, accepted) = (sink.append(vec![record(2), large]), sink.append(vec![record(3)]));
    assert!(matches!(refused.await, Err(AuditError::Unwritable { .. })));
    accepted.await.unwrap();
    sink.close();
    assert_eq!(verify(&path, None).unwrap().entries, 2);
}

/// Intents 1 to `count`; each but the last has its outcome, at once.
async fn mutate(sink: &FileSink, count: u8) {
    for number in 1..=count {
        let id = Some(IntentId::from_bytes([number; 16]));
        let intent = AuditRecord { phase: Phase::Intent, intent_id: id, ..record(1) };
        sink.append(vec![intent.clone()]).await.unwrap();
        if number < count {
            let revision = Revision::new(number.into());
            let manifest = Some(ManifestStamp { revision, digest: format!("digest-{number}") });
            let outcome = AuditRecord { phase: Phase::Outcome, manifest, ..intent };
            sink.append(vec![outcome]).await.unwrap();
        }
    }
}

#[tokio::test]
async fn the_past_is_known_after_a_restart_with_or_without_its_summary() {
    let (_root, path) = directory();
    let sink = FileSink::open_with(&path, 1000).unwrap();
    mutate(&sink, 9).await;
    let past = sink.past();
    sink.close();
    assert!(past.awaits_outcome(IntentId::from_bytes([9; 16])));
    assert!(!past.awaits_outcome(IntentId::from_bytes([8; 16])));
    assert_eq!(past.stamps()["t1"].revision, Revision::new(8));
    let summaries = || {
        let names = fs::read_dir(&path).unwrap().map(|item| item.unwrap().path());
        names.filter(|path| path.extension().is_some_and(|end| end == "past")).collect::<Vec<_>>()
    };
    assert_eq!(summaries().len(), 1, "one for the last file");
    let other = FileSink::open_with(&path, 1000).unwrap();
    assert_eq!(other.past(), past);
    other.close();
    for spoil in [
        |path: &Path| fs::write(path, b"{}").unwrap(),
        |path: &Path| fs::remove_file(path).unwrap(),
    ] {
        spoil(&summaries()[0]);
        let sink = FileSink::open_with(&path, 1000).unwrap();
        assert_eq!(sink.past(), past);
        sink.close();
    }
    verify(&path, None).unwrap();
}

/// A start reads older files only where their summary is lost. What they say in front of the damage counts.
#[tokio::test]
async fn a_damaged_older_file_raises_an_alert_and_does_not_keep_the_log_from_opening() {
    let (_root, path) = directory();
    let sink = FileSink::open_with(&path, 1000).unwrap();
    mutate(&sink, 9).await;
    sink.close();
    for file in fs::read_dir(&path).unwrap().map(|item| item.unwrap().path()) {
        if file.extension().is_some_and(|end| end == "past") {
            fs::remove_file(file).unwrap();
        }
    }
    let opened = || {
        let lines = Lines::default();
        let subscriber = tracing_subscriber::fmt().with_writer(lines.clone()).with_ansi(false);
        tracing::subscriber::with_default(subscriber.finish(), || {
            FileSink::open_with(&path, 1000).unwrap().close();
        });
        lines.text()
    };
    let told = opened();
    assert!(told.contains("summary of the older audit files is lost"), "{told}");
    assert!(!told.contains("alert="), "{told}");
    let first = fs::read(first_file(&path)).unwrap();
    fs::write(first_file(&path), &first[..first.len() - 5]).unwrap();
    let told = opened();
    let alert = told.lines().find(|line| line.contains("alert=\"audit_file_damaged\""));
    assert!(alert.is_some_and(|line| line.contains("audit-00000001.jsonl")), "{told}");
}

/// Log lines, kept.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl tracing_subscriber::fmt::MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn a_record_that_is_too_long_does_not_make_a_log_that_failed_healthy() {
    let (_root, path) = directory();
    let sink = FileSink::open(&path).unwrap();
    fs::rename(first_file(&path), path.join("away")).unwrap();
    assert!(sink.append(vec![record(1)]).await.is_err());
    // Nothing waits behind it, so its group writes nothing.
    let long = AuditRecord { operation: "x".repeat(MAX_ENTRY_BYTES).into(), ..record(2) };
    assert!(sink.append(vec![long]).await.is_err());
    // Its answer may come before its group is over; the writer's end does not.
    sink.close();
    assert!(!sink.healthy(), "nothing was written since");
}

/// Writes lines until the file has so many bytes, an intent and its outcome now and then.
async fn grow(sink: &FileSink, path: &Path, bytes: u64) {
    let mut number = 0_u8;
    while fs::metadata(first_file(path)).unwrap().len() < bytes {
        sink.append(vec![record(1); 500]).await.unwrap();
        number = number.wrapping_add(1);
        let id = Some(IntentId::from_bytes([number; 16]));
        let intent = AuditRecord { phase: Phase::Intent, intent_id: id, ..record(1) };
        sink.append(vec![intent]).await.unwrap();
    }
}

/// Spoils one byte of a file.
fn spoil(file: &Path, at: u64) {
    let file = fs::OpenOptions::new().write(true).open(file).unwrap();
    file.write_all_at(b"\x01", at).unwrap();
}

#[tokio::test]
async fn a_start_reads_from_the_mark_on_and_verifies_all_of_the_last_mebibyte() {
    let (_root, path) = directory();
    let sink = FileSink::open(&path).unwrap();
    let mark = first_file(&path).with_extension("mark");
    grow(&sink, &path, 3 * MARK_BYTES / 2).await;
    assert!(!mark.exists(), "the first is written with the second");
    grow(&sink, &path, 7 * MARK_BYTES / 2).await;
    let past = sink.past();
    sink.close();
    assert!(!past.awaits_outcome(IntentId::from_bytes([0; 16])));
    assert!(past.awaits_outcome(IntentId::from_bytes([1; 16])));
    let content: serde_json::Value = serde_json::from_slice(&fs::read(&mark).unwrap()).unwrap();
    let (place, lines) = (content["bytes"].as_u64().unwrap(), content["lines"].as_u64().unwrap());
    let text = fs::read(first_file(&path)).unwrap();
    let before = &text[..usize::try_from(place).unwrap()];
    assert_eq!(before.split_inclusive(|byte| *byte == b'\n').count() as u64, lines);
    assert!(text.len() as u64 - place >= MARK_BYTES);
    let again = FileSink::open(&path).unwrap();
    assert_eq!(again.past(), past);
    again.append(vec![record(1)]).await.unwrap();
    again.close();
    verify(&path, None).unwrap();

    spoil(&first_file(&path), place + 100);
    let damaged = FileSink::open(&path).unwrap_err();
    let AuditStartError::Damaged { line, .. } = damaged else { panic!("{damaged:?}") };
    assert_eq!(line, lines + 1, "lines count from the start of the file");
    fs::write(first_file(&path), &text).unwrap();

    // What is before the mark a start takes as read; whoever verifies reads it.
    spoil(&first_file(&path), 100);
    FileSink::open(&path).unwrap().close();
    verify(&path, None).unwrap_err();
}

#[tokio::test]
async fn a_mark_that_does_not_fit_is_not_used() {
    let (_root, path) = directory();
    let sink = FileSink::open(&path).unwrap();
    grow(&sink, &path, 5 * MARK_BYTES / 2).await;
    let past = sink.past();
    sink.close();
    let mark = first_file(&path).with_extension("mark");
    let good = fs::read(&mark).unwrap();
    spoil(&first_file(&path), 100);
    let change = |field: &str, value: serde_json::Value| {
        let mut content: serde_json::Value = serde_json::from_slice(&good).unwrap();
        content[field] = value;
        serde_json::to_vec(&content).unwrap()
    };
    let content: serde_json::Value = serde_json::from_slice(&good).unwrap();
    let (bytes, seq) = (content["bytes"].as_u64().unwrap(), content["seq"].as_u64().unwrap());
    for spoiled in [
        Vec::new(),
        vec![0; good.len()],
        good[..good.len() / 2].to_vec(),
        change("bytes", (bytes + 1).into()),
        change("bytes", (1_u64 << 40).into()),
        change("seq", (seq + 1).into()),
        change("hash", "00".repeat(32).into()),
    ] {
        fs::write(&mark, &spoiled).unwrap();
        let found = FileSink::open(&path).unwrap_err();
        assert!(matches!(found, AuditStartError::Damaged { line: 1, .. }), "{found:?}");
    }
    fs::write(&mark, &good).unwrap();
    let sink = FileSink::open(&path).unwrap();
    assert_eq!(sink.past(), past);
    sink.close();
}

#[tokio::test]
async fn a_torn_end_behind_a_mark_is_cut_off_and_the_log_goes_on() {
    let (_root, path) = directory();
    let sink = FileSink::open(&path).unwrap();
    grow(&sink, &path, 5 * MARK_BYTES / 2).await;
    sink.close();
    let whole = fs::metadata(first_file(&path)).unwrap().len();
    let mut file = fs::OpenOptions::new().append(true).open(first_file(&path)).unwrap();
    file.write_all(b"{\"entry\":{\"seq\"").unwrap();
    let sink = FileSink::open(&path).unwrap();
    assert_eq!(fs::metadata(first_file(&path)).unwrap().len(), whole);
    grow(&sink, &path, 6 * MARK_BYTES).await;
    sink.close();
    verify(&path, None).unwrap();
    FileSink::open(&path).unwrap().close();
}

#[tokio::test]
async fn a_file_that_is_full_takes_its_mark_along() {
    let (_root, path) = directory();
    let sink = FileSink::open_with(&path, 5 * MARK_BYTES / 2).unwrap();
    grow(&sink, &path, 5 * MARK_BYTES / 2).await;
    sink.append(vec![record(1)]).await.unwrap();
    let past = sink.past();
    sink.close();
    let marks = || {
        let names = fs::read_dir(&path).unwrap().map(|item| item.unwrap().path());
        names.filter(|path| path.extension().is_some_and(|end| end == "mark")).count()
    };
    assert_eq!(marks(), 0);
    let sink = FileSink::open(&path).unwrap();
    assert_eq!(sink.past(), past);
    sink.close();
    verify(&path, None).unwrap();
}
