//! Power loss at every moment: every acknowledged commit and record is there afterwards, and nothing is half done.
//!
//! A child does real work under strace and prints what was acknowledged. From the trace the files are rebuilt as they
//! may be found after the power failed at a given moment (`support/crash.rs`), opened by the real code, and checked.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failure in a test's helper is a failed test"
)]

mod support;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kms_core::id::{KeyVersion, Revision};
use kms_server::audit::verify::verify;
use kms_server::audit::{AuditSink as _, FileSink};
use kms_server::store::sqlite::SqliteStore;
use kms_server::store::{KeyRef, Store as _, VersionChoice};
use support::crash::{History, Loss};
use support::samples::{
    closing, counter, intent, key_name, key_uid, new_key, record, request_id, tenant,
};
use support::strace::{Call, Effect, trace_test};

/// Set in the child: where it works.
const ROOT: &str = "HOLDFAST_POWER_LOSS_ROOT";
/// Moments at which the power fails, each with every kind of loss.
const CUTS: usize = 120;

fn child_root() -> Option<PathBuf> {
    std::env::var_os(ROOT).map(PathBuf::from)
}

/// Tells an acknowledgement in one write.
fn tell(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// A directory in memory where there is one: the images are many and need not last.
fn image_directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// Runs `check` on an image of every kind of loss at up to [`CUTS`] moments.
async fn at_every_cut(history: &History, mut check: impl AsyncFnMut(&Path, usize)) {
    let cuts = history.cuts(CUTS);
    assert!(cuts.len() > CUTS / 2, "the trace is too short to tell anything: {}", cuts.len());
    for cut in cuts {
        for (number, loss) in (1..).zip(Loss::ALL) {
            let image = image_directory();
            history.rebuild(cut, loss, cut as u64 * 8 + number, image.path());
            tell(&format!("power fails at tick {cut}, losing {loss:?}"));
            check(image.path(), cut).await;
        }
    }
}

const TENANTS: u8 = 4;
const KEYS: u8 = 32;

async fn work_on_store(root: &Path) {
    let store = Arc::new(SqliteStore::open(&root.join("kms.db")).unwrap());
    let tasks: Vec<_> = (1..=TENANTS)
        .map(|tenant| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for number in 1..=KEYS {
                    store.open_intent(intent(tenant, number)).await.unwrap();
                    store
                        .create_key(new_key(tenant, number), closing(tenant, number))
                        .await
                        .unwrap();
                    tell(&format!("created {tenant} {number}"));
                    if number % 2 == 0 {
                        store.close_intent(intent(tenant, number).row.id).await.unwrap();
                        tell(&format!("closed {tenant} {number}"));
                    }
                    if number % 4 == 0 {
                        let lease = counter(tenant, number, 1025, 2);
                        let leased =
                            store.update_counters(vec![(Revision::FIRST, lease)]).await.unwrap();
                        assert_eq!(leased, [Ok(())]);
                        tell(&format!("leased {tenant} {number}"));
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    store.close().await;
}

async fn check_store(image: &Path, told: impl Iterator<Item = &str>) {
    let store = SqliteStore::open(&image.join("kms.db")).unwrap();
    let mut created = [0_u8; TENANTS as usize + 1];
    let intents = store.intents().await.unwrap().rows;
    for line in told {
        let words: Vec<&str> = line.split(' ').collect();
        let numbers: Vec<u8> = words[1..].iter().filter_map(|word| word.parse().ok()).collect();
        match (words[0], numbers.as_slice()) {
            ("created", &[tenant, number]) => {
                created[usize::from(tenant)] = created[usize::from(tenant)].max(number);
            }
            ("closed", &[tenant, number]) => {
                let id = intent(tenant, number).row.id;
                assert!(intents.iter().all(|open| open.row.id != id), "a closed intent is back");
            }
            ("leased", &[tenant, number]) => {
                let key_uid = key_uid(tenant, number);
                let stored = store.counter(key_uid, KeyVersion::FIRST).await.unwrap();
                assert_eq!(stored, Some(counter(tenant, number, 1025, 2)));
            }
            _ => {}
        }
    }
    for tenant_number in 1..=TENANTS {
        let keys = store.list_keys(tenant(tenant_number), None, 1000).await.unwrap();
        let there = u8::try_from(keys.len()).unwrap();
        assert!(there >= created[usize::from(tenant_number)], "an acknowledged key is lost");
        let manifest = store.manifest(tenant(tenant_number)).await.unwrap();
        let revision = manifest.map_or(0, |manifest| manifest.row.revision.get());
        assert_eq!(revision, u64::from(there), "a mutation is half done");
        for number in 1..=there {
            let name = KeyRef::Name(key_name(tenant_number, number));
            let found = store.key(name, VersionChoice::Primary).await.unwrap().unwrap();
            assert_eq!(found.key, new_key(tenant_number, number).key);
            assert_eq!(found.version, Some(new_key(tenant_number, number).version));
            let remembered =
                store.request("officer".into(), request_id(tenant_number, number)).await.unwrap();
            assert_eq!(remembered, closing(tenant_number, number).request);
            let applied = closing(tenant_number, number).intent;
            let left = intents.iter().find(|open| open.row.id == applied.row.id);
            // An odd one is never closed; of an even one, the end may have come or not.
            assert!(left.map_or(number % 2 == 0, |left| *left == applied), "{left:?}");
        }
        let next = there + 1;
        if next <= KEYS {
            // The work goes on where it was.
            if !intents.contains(&intent(tenant_number, next)) {
                store.open_intent(intent(tenant_number, next)).await.unwrap();
            }
            let end = closing(tenant_number, next);
            store.create_key(new_key(tenant_number, next), end).await.unwrap();
        }
    }
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_loses_nothing_acknowledged() {
    if let Some(root) = child_root() {
        return work_on_store(&root).await;
    }
    let root = tempfile::tempdir().unwrap();
    let calls = trace_test("the_store_loses_nothing_acknowledged", ROOT, root.path());
    let history = History::new(&calls, root.path(), &["-shm", ".lock"]);
    let told = history.told(usize::MAX).filter(|line| line.starts_with("created ")).count();
    assert_eq!(told, usize::from(TENANTS) * usize::from(KEYS));
    let checkpoints = calls
        .iter()
        .filter(|call| matches!(&call.effect, Effect::Sync { path } if path.ends_with("kms.db")));
    assert!(checkpoints.count() > 1, "the work was too short for a checkpoint");
    at_every_cut(&history, async |image, cut| check_store(image, history.told(cut)).await).await;
}

/// Opens a store, says so, and opens it again.
async fn open_twice(root: &Path) {
    for time in ["made", "opened"] {
        let store = SqliteStore::open(&root.join("kms.db")).unwrap();
        tell(time);
        store.close().await;
        tell("closed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_store_is_on_disk_when_it_is_open() {
    if let Some(root) = child_root() {
        return open_twice(&root).await;
    }
    let root = tempfile::tempdir().unwrap();
    let calls = trace_test("a_new_store_is_on_disk_when_it_is_open", ROOT, root.path());
    let history = History::new(&calls, root.path(), &["-shm", ".lock"]);
    let cuts = history.cuts(usize::MAX);
    let open: Vec<_> =
        cuts.into_iter().filter(|cut| history.told(*cut).any(|line| line == "made")).collect();
    assert!(open.len() > 10, "{open:?}");
    for cut in open {
        for loss in Loss::ALL {
            let image = image_directory();
            history.rebuild(cut, loss, cut as u64, image.path());
            let database = rusqlite::Connection::open(image.path().join("kms.db")).unwrap();
            let sql = "SELECT count(*) FROM migrations";
            let migrations: Result<i64, _> = database.query_row(sql, [], |row| row.get(0));
            assert_eq!(migrations, Ok(1), "at tick {cut}, losing {loss:?}");
        }
    }
}

/// What a killed process had committed and not synced is read by the next one, which may tell of it: so it has to be on
/// disk first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_process_left_is_synced_before_the_store_is_open() {
    if let Some(root) = child_root() {
        let store = SqliteStore::open(&root.join("kms.db")).unwrap();
        tell("open");
        assert_eq!(store.intents().await.unwrap().rows, [intent(1, 1)]);
        return store.close().await;
    }
    let (alive, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = SqliteStore::open(&alive.path().join("kms.db")).unwrap();
    store.open_intent(intent(1, 1)).await.unwrap();
    for name in ["kms.db", "kms.db-wal"] {
        std::fs::copy(alive.path().join(name), killed.path().join(name)).unwrap();
    }
    store.close().await;
    let name = "what_a_killed_process_left_is_synced_before_the_store_is_open";
    let calls = trace_test(name, ROOT, killed.path());
    let told = |call: &Call| matches!(&call.effect, Effect::Told { data } if data == b"open\n");
    let open = calls.iter().find(|call| told(call)).unwrap().start;
    let synced = calls.iter().any(|call| {
        call.done < open
            && matches!(&call.effect, Effect::Sync { path } if path.ends_with("kms.db-wal"))
    });
    assert!(synced, "{calls:?}");
}

/// The control: with the syncs taken out of the trace, the model must find losses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_syncs_the_model_finds_acknowledged_records_lost() {
    if let Some(root) = child_root() {
        return work_on_audit(&root).await;
    }
    let root = tempfile::tempdir().unwrap();
    let name = "without_syncs_the_model_finds_acknowledged_records_lost";
    let mut calls = trace_test(name, ROOT, root.path());
    calls.retain(|call| match &call.effect {
        Effect::Sync { path } => path.is_dir(),
        _ => true,
    });
    let history = History::new(&calls, root.path(), &[".lock"]);
    let image = image_directory();
    history.rebuild(usize::MAX, Loss::Everything, 0, image.path());
    assert_eq!(verify(&image.path().join("audit"), None).unwrap().entries, 0);
    assert!(history.told(usize::MAX).any(|line| line.starts_with("recorded ")));
}

const RECORDS: u64 = 240;
const ROTATE_BYTES: u64 = 40_000;

async fn work_on_audit(root: &Path) {
    let sink = Arc::new(FileSink::open_with(&root.join("audit"), ROTATE_BYTES).unwrap());
    let tasks: Vec<_> = (0..4)
        .map(|task| {
            let sink = Arc::clone(&sink);
            tokio::spawn(async move {
                for first in (0..RECORDS / 4).step_by(3) {
                    let numbers: Vec<u64> = (first..first + 3).map(|n| task * 1000 + n).collect();
                    let records = numbers.iter().map(|number| record(*number)).collect();
                    sink.append(records).await.unwrap();
                    for number in numbers {
                        tell(&format!("recorded {number}"));
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    sink.close();
}

async fn check_audit(image: &Path, told: impl Iterator<Item = &str>) {
    let directory = image.join("audit");
    let sink = FileSink::open_with(&directory, ROTATE_BYTES).unwrap();
    sink.append(vec![record(999_999)]).await.unwrap();
    sink.close();
    let report = verify(&directory, None).unwrap();
    assert_eq!(report.first_seq, Some(1));
    let mut text = String::new();
    for number in 1..=report.files {
        let file = directory.join(format!("audit-{number:08}.jsonl"));
        text.push_str(&std::fs::read_to_string(file).unwrap());
    }
    let there: BTreeSet<&str> = text
        .lines()
        .map(|line| line.split("\"number-").nth(1).unwrap().split('"').next().unwrap())
        .collect();
    assert_eq!(there.len() as u64, report.entries);
    for line in told {
        if let Some(number) = line.strip_prefix("recorded ") {
            assert!(there.contains(number), "acknowledged record {number} is lost");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_audit_log_loses_nothing_acknowledged() {
    if let Some(root) = child_root() {
        return work_on_audit(&root).await;
    }
    let root = tempfile::tempdir().unwrap();
    let calls = trace_test("the_audit_log_loses_nothing_acknowledged", ROOT, root.path());
    let history = History::new(&calls, root.path(), &[".lock"]);
    let told = history.told(usize::MAX).filter(|line| line.starts_with("recorded ")).count();
    assert_eq!(told as u64, RECORDS);
    at_every_cut(&history, async |image, cut| check_audit(image, history.told(cut)).await).await;
}
