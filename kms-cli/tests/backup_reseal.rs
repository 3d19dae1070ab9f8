//! Resealing in place: what changes, what does not, and recovery from a crash at every byte of the write sequence.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "test helpers")]

mod backup_support;

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use backup_support::{
    MemoryKms, OTHER_KEY, key, native_identity, open, plaintext, reason_of, refusal, seal, uid_of,
};
use kms_cli::backup::{
    BackupError, Description, Disk, FileDisk, FileKeyService, FormatError, Header, Outcome,
    PAYLOAD_NONCE_BYTES, Recovery, SIDE_SUFFIX, STANZA_BYTES, ServiceError, Side, Status,
    WrappedFileKey, reseal, reseal_file,
};
use kms_core::id::KeyVersion;
use kms_core::name::KeyName;
use tempfile::TempDir;

const PLAINTEXT: &[u8] = b"what must survive";

/// A sealed file on disk, at version 1 of its key, and a service at version 2.
struct Backup {
    directory: TempDir,
    path: PathBuf,
    kms: MemoryKms,
}

impl Backup {
    fn new() -> Self {
        Self::of(PLAINTEXT)
    }

    fn of(plaintext: &[u8]) -> Self {
        // In memory, as thousands of syncs are made; that they are made is seen below, in the kernel's trace.
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let path = directory.path().join("backup.age");
        let kms = MemoryKms::at(1);
        std::fs::write(&path, seal(&kms, plaintext)).unwrap();
        kms.rotate();
        kms.take_calls();
        Self { directory, path, kms }
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }

    fn side(&self) -> PathBuf {
        self.directory.path().join(format!("backup.age{SIDE_SUFFIX}"))
    }

    fn reseal(&self) -> Result<Outcome, BackupError> {
        reseal_file(&self.kms, None, &self.path)
    }

    fn version(&self) -> u32 {
        version(&self.bytes())
    }

    fn assert_opens(&self) {
        let (result, opened) = open(&self.kms, &self.bytes());
        result.unwrap();
        assert_eq!(opened, PLAINTEXT);
    }
}

fn version(sealed: &[u8]) -> u32 {
    Header::read(&mut &sealed[..]).unwrap().stanza().wrapped().header().version.get()
}

fn header_bytes(sealed: &[u8]) -> usize {
    Header::read(&mut &sealed[..]).unwrap().encode().len()
}

fn resealed(from: u32, to: u32) -> Status {
    let version = |number| KeyVersion::new(number).unwrap();
    Status::Resealed { from: version(from), to: version(to) }
}

/// The side file, the old file and the new file of one reseal that went through.
struct Sequence {
    side: Vec<u8>,
    old: Vec<u8>,
    new: Vec<u8>,
    header_bytes: usize,
}

fn sequence(backup: &Backup) -> Sequence {
    let old = backup.bytes();
    backup.reseal().unwrap();
    let new = backup.bytes();
    let header_bytes = header_bytes(&old);
    let side = Side {
        file_bytes: old.len() as u64,
        payload_nonce: old[header_bytes..header_bytes + PAYLOAD_NONCE_BYTES].try_into().unwrap(),
        old: old[..header_bytes].to_vec(),
        new: new[..header_bytes].to_vec(),
    };
    Sequence { side: side.encode(), old, new, header_bytes }
}

#[test]
fn only_our_stanza_and_the_mac_change() {
    let backup = Backup::new();
    let old = backup.bytes();
    let outcome = backup.reseal().unwrap();
    let expected = Outcome { key: key(), status: resealed(1, 2), recovery: None };
    assert_eq!(outcome, expected);
    let new = backup.bytes();
    assert_eq!(backup.version(), 2);
    assert_eq!(old.len(), new.len());
    let stanza = "age-encryption.org/v1\n".len()..22 + STANZA_BYTES;
    let header = header_bytes(&old);
    let mac = header - 44..header;
    for (at, (before, after)) in old.iter().zip(&new).enumerate() {
        let may_change = stanza.contains(&at) || mac.contains(&at);
        assert!(may_change || before == after, "byte {at} changed");
    }
    assert_eq!(backup.kms.take_calls(), ["describe", "unwrap", "wrap", "unwrap"]);
    assert!(!backup.side().exists());
    backup.assert_opens();
}

#[test]
fn the_native_recipient_still_opens_the_file() {
    let backup = Backup::new();
    backup.reseal().unwrap();
    let bytes = backup.bytes();
    let decryptor = age::Decryptor::new(&bytes[..]).unwrap();
    let identity = native_identity();
    let mut opened = Vec::new();
    decryptor.decrypt(std::iter::once(&identity as _)).unwrap().read_to_end(&mut opened).unwrap();
    assert_eq!(opened, PLAINTEXT);
}

#[test]
fn the_greatest_version_fits_in_place() {
    let backup = Backup::new();
    backup.kms.primary.store(u32::MAX, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(backup.reseal().unwrap().status, resealed(1, u32::MAX));
    backup.assert_opens();
}

#[test]
fn a_current_file_is_not_touched() {
    let backup = Backup::new();
    backup.reseal().unwrap();
    backup.kms.take_calls();
    let (bytes, modified) = (backup.bytes(), backup.path.metadata().unwrap().modified().unwrap());
    let outcome = backup.reseal().unwrap();
    let version = KeyVersion::new(2).unwrap();
    assert_eq!(outcome.status, Status::AlreadyCurrent { version });
    assert_eq!(backup.kms.take_calls(), ["describe"]);
    assert_eq!(backup.bytes(), bytes);
    assert_eq!(backup.path.metadata().unwrap().modified().unwrap(), modified);
}

#[test]
fn every_failing_call_leaves_the_file_as_it_was() {
    for call in ["describe", "unwrap", "wrap"] {
        let mut backup = Backup::new();
        let before = backup.bytes();
        backup.kms.fail_on = Some(call);
        assert_eq!(reason_of(&backup.reseal().unwrap_err()), "TEST_UNAVAILABLE", "{call}");
        assert_eq!(backup.bytes(), before);
        assert!(!backup.side().exists());
    }
}

#[test]
fn a_new_envelope_that_opens_to_something_else_is_not_written() {
    let mut backup = Backup::new();
    backup.kms.forgetful = true;
    let before = backup.bytes();
    let error = backup.reseal().unwrap_err();
    assert!(matches!(error, BackupError::Service(ServiceError::BadAnswer(_))), "{error:?}");
    assert_eq!(backup.bytes(), before);
}

/// Wraps under another key than it is asked for.
struct WrongKey(MemoryKms);

impl FileKeyService for WrongKey {
    fn wrap(
        &self,
        _: &KeyName,
        file_key: &age_core::format::FileKey,
    ) -> Result<WrappedFileKey, ServiceError> {
        self.0.wrap(&OTHER_KEY.parse().unwrap(), file_key)
    }

    fn unwrap(
        &self,
        key: &KeyName,
        wrapped: &WrappedFileKey,
    ) -> Result<age_core::format::FileKey, ServiceError> {
        if wrapped.header().key_uid != uid_of(key) {
            return Err(refusal("CIPHERTEXT_INVALID"));
        }
        self.0.unwrap(key, wrapped)
    }

    fn describe(&self, wrapped: &WrappedFileKey) -> Result<Description, ServiceError> {
        self.0.describe(wrapped)
    }
}

#[test]
fn an_envelope_under_another_key_is_not_written() {
    let backup = Backup::new();
    let before = backup.bytes();
    let error = reseal_file(&WrongKey(MemoryKms::at(2)), None, &backup.path).unwrap_err();
    assert!(matches!(error, BackupError::Service(ServiceError::BadAnswer(_))), "{error:?}");
    assert_eq!(backup.bytes(), before);
}

#[test]
fn a_tampered_header_is_not_given_a_new_mac() {
    let backup = Backup::new();
    let mut bytes = backup.bytes();
    let mac = header_bytes(&bytes) - 10;
    bytes[mac] = if bytes[mac] == b'A' { b'B' } else { b'A' };
    std::fs::write(&backup.path, &bytes).unwrap();
    assert!(matches!(backup.reseal(), Err(BackupError::HeaderTampered)));
    assert_eq!(backup.bytes(), bytes);
    assert!(!backup.kms.take_calls().contains(&"wrap"));
}

#[test]
fn another_key_than_asked_for_is_refused() {
    let backup = Backup::new();
    let other = OTHER_KEY.parse().unwrap();
    let error = reseal_file(&backup.kms, Some(&other), &backup.path).unwrap_err();
    assert!(matches!(error, BackupError::KeyMismatch { .. }), "{error:?}");
    reseal_file(&backup.kms, Some(&key()), &backup.path).unwrap();
}

#[test]
fn a_file_that_ends_with_its_header_is_refused() {
    let backup = Backup::new();
    let bytes = backup.bytes();
    let header = header_bytes(&bytes);
    for length in [header, header + PAYLOAD_NONCE_BYTES - 1] {
        std::fs::write(&backup.path, &bytes[..length]).unwrap();
        let error = backup.reseal().unwrap_err();
        let truncated = BackupError::Format(FormatError::HeaderTruncated).to_string();
        assert_eq!(error.to_string(), truncated);
    }
}

#[test]
fn a_directory_a_device_and_nothing_are_refused() {
    let backup = Backup::new();
    for path in [backup.directory.path(), Path::new("/dev/null")] {
        let error = reseal_file(&backup.kms, None, path).unwrap_err();
        assert!(matches!(error, BackupError::NotRegular), "{error:?}");
    }
    let error = reseal_file(&backup.kms, None, &backup.path.with_extension("no")).unwrap_err();
    assert!(matches!(error, BackupError::Io { .. }), "{error:?}");
}

#[test]
fn a_second_reseal_at_the_same_time_is_refused() {
    let backup = Backup::new();
    let held = FileDisk::open(&backup.path).unwrap();
    assert!(matches!(backup.reseal(), Err(BackupError::Busy)));
    drop(held);
    backup.reseal().unwrap();
}

#[test]
fn a_link_is_followed_and_the_side_file_stands_beside_the_file() {
    let backup = Backup::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let link = elsewhere.path().join("link");
    std::os::unix::fs::symlink(&backup.path, &link).unwrap();
    std::fs::write(backup.side(), b"incomplete").unwrap();
    let outcome = reseal_file(&backup.kms, None, &link).unwrap();
    assert_eq!(outcome.recovery, Some(Recovery::Discarded));
    assert_eq!(backup.version(), 2);
    assert!(link.is_symlink());
}

/// Brings the disk into `file` and `side`, lets a later run recover, and checks that nothing was lost.
fn recover(
    backup: &Backup,
    file: &[u8],
    side: Option<&[u8]>,
    expected: Option<Recovery>,
    what: &str,
) {
    std::fs::write(&backup.path, file).unwrap();
    match side {
        Some(side) => std::fs::write(backup.side(), side).unwrap(),
        None => assert!(!backup.side().exists()),
    }
    let outcome = backup.reseal().unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(outcome.recovery, expected, "{what}");
    assert!(!backup.side().exists(), "{what}");
    assert_eq!(backup.version(), 2, "{what}");
    backup.assert_opens();
}

#[test]
fn every_cut_of_the_write_sequence_is_recovered() {
    let backup = Backup::new();
    let Sequence { side, old, new, header_bytes } = sequence(&backup);
    for written in 0..side.len() {
        let what = format!("side file cut at {written}");
        recover(&backup, &old, Some(&side[..written]), Some(Recovery::Discarded), &what);
    }
    for written in 0..=header_bytes {
        let torn = [&new[..written], &old[written..]].concat();
        let recovery = if torn == old { Recovery::Undone } else { Recovery::Finished };
        recover(&backup, &torn, Some(&side), Some(recovery), &format!("header cut at {written}"));
        let torn = [&old[..written], &new[written..]].concat();
        let recovery = if torn == old { Recovery::Undone } else { Recovery::Finished };
        recover(&backup, &torn, Some(&side), Some(recovery), &format!("tail first, {written}"));
    }
    recover(&backup, &new, None, None, "after the last step");
    recover(&backup, &old, None, None, "before the first step");
}

#[test]
fn sectors_written_in_any_order_are_recovered() {
    let backup = Backup::new();
    let Sequence { side, old, new, header_bytes } = sequence(&backup);
    for pattern in 0..64_usize {
        let mut torn = old.clone();
        for at in 0..header_bytes {
            if pattern >> (at / 80 % 6) & 1 == 1 {
                torn[at] = new[at];
            }
        }
        let recovery = if torn == old { Recovery::Undone } else { Recovery::Finished };
        recover(&backup, &torn, Some(&side), Some(recovery), &format!("pattern {pattern:06b}"));
    }
}

#[test]
fn a_torn_header_is_not_opened_but_finished_without_the_server() {
    let mut backup = Backup::new();
    let Sequence { side, old, new, header_bytes } = sequence(&backup);
    let torn = [&new[..120], &old[120..]].concat();
    assert!(open(&backup.kms, &torn).0.is_err());
    std::fs::write(&backup.path, &torn).unwrap();
    std::fs::write(backup.side(), &side).unwrap();
    backup.kms.fail_on = Some("describe");
    assert_eq!(reason_of(&backup.reseal().unwrap_err()), "TEST_UNAVAILABLE");
    assert_eq!(backup.bytes()[..header_bytes], new[..header_bytes]);
    assert!(!backup.side().exists());
}

#[test]
fn a_side_file_of_another_file_changes_nothing() {
    let backup = Backup::new();
    let Sequence { side, .. } = sequence(&backup);
    let other = seal(&MemoryKms::at(1), b"another backup took the name");
    std::fs::write(&backup.path, &other).unwrap();
    std::fs::write(backup.side(), &side).unwrap();
    assert!(matches!(backup.reseal(), Err(BackupError::SideForeign)));
    assert_eq!(backup.bytes(), other);
    assert_eq!(std::fs::read(backup.side()).unwrap(), side);
}

#[test]
fn a_damaged_side_file_is_kept_while_the_header_does_not_verify() {
    let backup = Backup::new();
    let Sequence { mut side, old, new, .. } = sequence(&backup);
    side[100] ^= 1;
    let torn = [&new[..120], &old[120..]].concat();
    std::fs::write(&backup.path, &torn).unwrap();
    std::fs::write(backup.side(), &side).unwrap();
    backup.reseal().unwrap_err();
    assert_eq!(backup.bytes(), torn);
    assert_eq!(std::fs::read(backup.side()).unwrap(), side);
}

/// What a step of the write sequence does when it is the one that fails.
#[derive(Clone, Copy, Debug)]
enum Failure {
    Before,
    Half,
    After,
}

/// A real disk that notes each step and fails one of them.
struct FailingDisk {
    inner: FileDisk,
    path: PathBuf,
    side: PathBuf,
    steps: RefCell<Vec<&'static str>>,
    failing: Option<(&'static str, Failure)>,
    failed: Cell<bool>,
}

impl FailingDisk {
    fn new(backup: &Backup, failing: Option<(&'static str, Failure)>) -> Self {
        Self {
            inner: FileDisk::open(&backup.path).unwrap(),
            path: backup.path.clone(),
            side: backup.side(),
            steps: RefCell::default(),
            failing,
            failed: Cell::new(false),
        }
    }

    fn step(
        &self,
        name: &'static str,
        whole: impl FnOnce() -> Result<(), BackupError>,
        half: impl FnOnce(),
    ) -> Result<(), BackupError> {
        assert!(!self.failed.get(), "{name} after a failure");
        self.steps.borrow_mut().push(name);
        match self.failing {
            Some((failing, failure)) if failing == name => {
                match failure {
                    Failure::Before => {}
                    Failure::Half => half(),
                    Failure::After => whole()?,
                }
                self.failed.set(true);
                Err(BackupError::Io { action: name, source: io::Error::other("test") })
            }
            _ => whole(),
        }
    }
}

impl Disk for FailingDisk {
    fn file_bytes(&self) -> Result<u64, BackupError> {
        self.inner.file_bytes()
    }

    fn beginning(&self, bytes: usize) -> Result<Vec<u8>, BackupError> {
        self.inner.beginning(bytes)
    }

    fn side(&self) -> Result<Option<Vec<u8>>, BackupError> {
        self.inner.side()
    }

    fn put_side(&self, bytes: &[u8]) -> Result<(), BackupError> {
        let half = || std::fs::write(&self.side, &bytes[..bytes.len() / 2]).unwrap();
        self.step("put_side", || self.inner.put_side(bytes), half)
    }

    fn put_header(&self, bytes: &[u8]) -> Result<(), BackupError> {
        let half = || {
            let file = File::options().write(true).open(&self.path).unwrap();
            file.write_all_at(&bytes[..bytes.len() / 2], 0).unwrap();
        };
        self.step("put_header", || self.inner.put_header(bytes), half)
    }

    fn remove_side(&self) -> Result<(), BackupError> {
        self.step("remove_side", || self.inner.remove_side(), || {})
    }
}

#[test]
fn the_side_file_is_there_before_the_header_is_touched_and_until_it_is_done() {
    let backup = Backup::new();
    let disk = FailingDisk::new(&backup, None);
    reseal(&backup.kms, None, &disk).unwrap();
    assert_eq!(*disk.steps.borrow(), ["put_side", "put_header", "remove_side"]);
}

#[test]
fn every_failing_step_is_recovered_by_a_later_run() {
    for step in ["put_side", "put_header", "remove_side"] {
        for failure in [Failure::Before, Failure::Half, Failure::After] {
            let backup = Backup::new();
            let disk = FailingDisk::new(&backup, Some((step, failure)));
            let error = reseal(&backup.kms, None, &disk).unwrap_err();
            assert!(matches!(error, BackupError::Io { .. }), "{error:?}");
            drop(disk);
            backup.reseal().unwrap_or_else(|error| panic!("{step} {failure:?}: {error}"));
            assert_eq!(backup.version(), 2);
            assert!(!backup.side().exists());
            backup.assert_opens();
        }
    }
}

#[test]
fn a_recovery_that_fails_is_recovered_too() {
    let backup = Backup::new();
    let Sequence { side, old, new, .. } = sequence(&backup);
    for step in ["put_header", "remove_side"] {
        for failure in [Failure::Before, Failure::Half, Failure::After] {
            std::fs::write(&backup.path, [&new[..130], &old[130..]].concat()).unwrap();
            std::fs::write(backup.side(), &side).unwrap();
            let disk = FailingDisk::new(&backup, Some((step, failure)));
            reseal(&backup.kms, None, &disk).unwrap_err();
            drop(disk);
            backup.reseal().unwrap_or_else(|error| panic!("{step} {failure:?}: {error}"));
            backup.assert_opens();
        }
    }
}

#[test]
fn five_gib_cost_no_more_than_a_few_pages() {
    const FILE_BYTES: u64 = 5 * 1024 * 1024 * 1024;
    let backup = Backup::of(&plaintext(100));
    let mut file = File::options().write(true).open(&backup.path).unwrap();
    file.set_len(FILE_BYTES).unwrap();
    file.seek(SeekFrom::End(-3)).unwrap();
    file.write_all(b"end").unwrap();
    drop(file);
    let read_before = bytes_of_this_process("rchar");
    backup.reseal().unwrap();
    let read = bytes_of_this_process("rchar") - read_before;
    assert!(read < 64 * 1024 * 1024, "{read} bytes were read");
    let mut beginning = vec![0; 4096];
    File::open(&backup.path).unwrap().read_exact(&mut beginning).unwrap();
    assert_eq!(version(&beginning), 2);
    assert_eq!(backup.path.metadata().unwrap().len(), FILE_BYTES);
}

/// Reads a counter of /proc/self/io. Other tests of this process count too, so bounds on it are generous.
fn bytes_of_this_process(counter: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(counter)).unwrap();
    line.trim_start_matches([':', ' ']).parse().unwrap()
}

/// Set in the traced child: the file to reseal.
const TRACED_FILE: &str = "HOLDFAST_TRACED_FILE";

/// The order that makes a power cut harmless, as the kernel sees it.
#[test]
fn the_kernel_sees_syncs_before_what_depends_on_them() {
    if let Some(path) = std::env::var_os(TRACED_FILE) {
        reseal_file(&MemoryKms::at(2), None, Path::new(&path)).unwrap();
        return;
    }
    let backup = Backup::new();
    let log = backup.directory.path().join("trace");
    let output = std::process::Command::new("strace")
        .args(["-f", "-y", "-e", "trace=write,pwrite64,fsync,fdatasync,unlink,unlinkat,rename"])
        .arg("-o")
        .arg(&log)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "the_kernel_sees_syncs_before_what_depends_on_them"])
        .env(TRACED_FILE, &backup.path)
        .output()
        .expect("`strace` is needed: apt-get install strace");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(backup.version(), 2);
    let directory = backup.directory.path().display().to_string();
    let trace = std::fs::read_to_string(&log).unwrap();
    let calls: Vec<String> = trace
        .lines()
        .filter(|line| line.contains(&directory))
        .map(|line| {
            let call = line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
            let name = call.split('(').next().unwrap();
            let what = if line.contains(SIDE_SUFFIX) {
                "side"
            } else if line.contains("backup.age") {
                "file"
            } else {
                "directory"
            };
            format!("{name} {what}")
        })
        .collect();
    let expected = [
        "write side",
        "fsync side",
        "fsync directory",
        "pwrite64 file",
        "fdatasync file",
        "unlink side",
        "fsync directory",
    ];
    assert_eq!(calls, expected, "{trace}");
}
