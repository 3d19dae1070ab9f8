//! The verbs over files: outputs appear whole or not at all, and every failure is told by its own error.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "test helpers")]

mod backup_support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use backup_support::{KEY, MemoryKms, NATIVE_IDENTITY, key, native_identity, plaintext, seal};
use kms_cli::backup::command::{
    self, AddressArgs, AgeCommand, OpenArgs, ResealArgs, SealArgs, Streams,
};
use kms_cli::backup::{BackupError, Header, SIDE_SUFFIX, reseal_file};
use kms_cli::error::CliError;
use kms_cli::exit::Exit;
use tempfile::TempDir;

fn streams(input: &Path, output: &Path, force: bool) -> Streams {
    Streams { input: Some(input.into()), output: Some(output.into()), force, quiet: true }
}

fn seal_args(input: &Path, output: &Path) -> SealArgs {
    let recipients = vec![native_identity().to_public().to_string()];
    SealArgs { key: KEY.into(), recipients, streams: streams(input, output, false) }
}

fn open_args(input: &Path, output: &Path) -> OpenArgs {
    OpenArgs { key: None, streams: streams(input, output, false) }
}

/// A directory with a plaintext in `plain`, and paths for the rest.
struct Files {
    directory: TempDir,
    plaintext: Vec<u8>,
}

impl Files {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let plaintext = plaintext(200_000);
        std::fs::write(directory.path().join("plain"), &plaintext).unwrap();
        Self { directory, plaintext }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.directory.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn seal(&self, kms: &MemoryKms) -> PathBuf {
        let sealed = self.path("sealed.age");
        command::seal(kms, key(), &seal_args(&self.path("plain"), &sealed)).unwrap();
        sealed
    }
}

fn exit_of(error: BackupError) -> (Exit, String) {
    let error = CliError::from(error);
    (error.exit(), error.reason().to_owned())
}

#[test]
fn a_file_is_sealed_and_opened_by_its_owner_only() {
    let (files, kms) = (Files::new(), MemoryKms::at(3));
    let sealed = files.seal(&kms);
    let opened = command::open(&kms, None, &open_args(&sealed, &files.path("out"))).unwrap();
    assert_eq!(opened.plaintext_bytes, 200_000);
    assert_eq!((opened.key, opened.version.get()), (key(), 3));
    assert_eq!(std::fs::read(files.path("out")).unwrap(), files.plaintext);
    for name in ["sealed.age", "out"] {
        let mode = files.path(name).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    assert_eq!(files.names(), ["out", "plain", "sealed.age"]);
}

#[test]
fn an_existing_output_is_kept_unless_forced() {
    let (files, kms) = (Files::new(), MemoryKms::at(3));
    std::fs::write(files.path("sealed.age"), "before").unwrap();
    let mut args = seal_args(&files.path("plain"), &files.path("sealed.age"));
    let error = command::seal(&kms, key(), &args).unwrap_err();
    assert_eq!(exit_of(error), (Exit::Local, "FILE_EXISTS".into()));
    assert_eq!(std::fs::read(files.path("sealed.age")).unwrap(), b"before");
    assert!(kms.take_calls().is_empty());
    args.streams.force = true;
    command::seal(&kms, key(), &args).unwrap();
    command::open(&kms, None, &open_args(&files.path("sealed.age"), &files.path("out"))).unwrap();
}

#[test]
fn no_output_is_left_by_a_damaged_input() {
    let (files, kms) = (Files::new(), MemoryKms::at(3));
    let sealed = std::fs::read(files.seal(&kms)).unwrap();
    let mut changed = sealed.clone();
    changed[150_000] ^= 1;
    let cases: [(&[u8], Exit, &str); 4] = [
        (&sealed[..150_000], Exit::Integrity, "PAYLOAD_TRUNCATED"),
        (&changed, Exit::Integrity, "PAYLOAD_TAMPERED"),
        (&sealed[..100], Exit::BadInput, "HEADER_TRUNCATED"),
        (b"hello", Exit::BadInput, "NOT_AGE"),
    ];
    for (bytes, exit, expected) in cases {
        std::fs::write(files.path("damaged"), bytes).unwrap();
        let args = open_args(&files.path("damaged"), &files.path("out"));
        let error = command::open(&kms, None, &args).unwrap_err();
        assert_eq!(exit_of(error), (exit, expected.to_owned()));
        assert_eq!(files.names(), ["damaged", "plain", "sealed.age"]);
    }
}

#[test]
fn no_output_is_left_when_the_service_fails() {
    let files = Files::new();
    let kms = MemoryKms { fail_on: Some("wrap"), ..MemoryKms::at(3) };
    let args = seal_args(&files.path("plain"), &files.path("sealed.age"));
    let (exit, reason) = exit_of(command::seal(&kms, key(), &args).unwrap_err());
    assert_eq!((exit, reason.as_str()), (Exit::Precondition, "TEST_UNAVAILABLE"));
    assert_eq!(files.names(), ["plain"]);
}

#[test]
fn a_missing_input_is_told_and_leaves_nothing() {
    let (files, kms) = (Files::new(), MemoryKms::at(3));
    let args = open_args(&files.path("missing"), &files.path("out"));
    let error = command::open(&kms, None, &args).unwrap_err();
    assert_eq!(exit_of(error).0, Exit::Local);
    assert_eq!(files.names(), ["plain"]);
}

#[test]
fn a_device_is_written_to_and_not_replaced() {
    let (files, kms) = (Files::new(), MemoryKms::at(3));
    let null = Path::new("/dev/null");
    command::seal(&kms, key(), &seal_args(&files.path("plain"), null)).unwrap();
    let sealed = files.seal(&kms);
    command::open(&kms, None, &open_args(&sealed, null)).unwrap();
    assert!(!null.metadata().unwrap().is_file());
}

#[test]
fn what_is_no_native_recipient_is_refused_and_not_shown() {
    let (files, kms) = (Files::new(), MemoryKms::at(3));
    for text in [NATIVE_IDENTITY, "age1kms1qqq", ""] {
        let mut args = seal_args(&files.path("plain"), &files.path("sealed.age"));
        args.recipients = vec![text.to_owned()];
        let error = command::seal(&kms, key(), &args).unwrap_err();
        assert!(!error.to_string().contains("SECRET"));
        assert_eq!(exit_of(error), (Exit::Usage, "RECIPIENT".into()));
    }
    assert!(kms.take_calls().is_empty());
}

#[test]
fn an_interrupted_reseal_is_named_as_the_cause_of_a_torn_header() {
    let (files, kms) = (Files::new(), MemoryKms::at(1));
    let sealed = files.seal(&kms);
    let old = std::fs::read(&sealed).unwrap();
    kms.rotate();
    reseal_file(&kms, None, &sealed).unwrap();
    let new = std::fs::read(&sealed).unwrap();
    std::fs::write(files.path(&format!("sealed.age{SIDE_SUFFIX}")), "").unwrap();
    // Within the arguments, the envelope and the MAC; the last byte alone would be no tear.
    let header = Header::read(&mut &new[..]).unwrap().encode().len();
    for cut in [90, 120, 160, header - 20] {
        std::fs::write(&sealed, [&new[..cut], &old[cut..]].concat()).unwrap();
        let args = open_args(&sealed, &files.path("out"));
        let error = command::open(&kms, None, &args).unwrap_err();
        assert!(matches!(error, BackupError::ResealInterrupted), "{cut}: {error:?}");
        assert!(!files.path("out").exists());
    }
}

#[test]
fn a_leftover_side_file_does_not_keep_a_good_file_from_being_opened() {
    let (files, kms) = (Files::new(), MemoryKms::at(1));
    let sealed = files.seal(&kms);
    std::fs::write(files.path(&format!("sealed.age{SIDE_SUFFIX}")), "").unwrap();
    command::open(&kms, None, &open_args(&sealed, &files.path("out"))).unwrap();
}

#[test]
fn nothing_is_sealed_over_a_file_with_a_side_file() {
    let (files, kms) = (Files::new(), MemoryKms::at(1));
    let sealed = files.seal(&kms);
    let before = std::fs::read(&sealed).unwrap();
    let side = files.path(&format!("sealed.age{SIDE_SUFFIX}"));
    std::fs::write(&side, "whatever").unwrap();
    std::os::unix::fs::symlink(&sealed, files.path("link")).unwrap();
    kms.take_calls();
    for out in ["sealed.age", "link"] {
        let mut args = seal_args(&files.path("plain"), &files.path(out));
        args.streams.force = true;
        let error = command::seal(&kms, key(), &args).unwrap_err();
        assert_eq!(exit_of(error), (Exit::Precondition, "SIDE_FILE_LEFT".into()));
    }
    std::fs::remove_file(&sealed).unwrap();
    let args = seal_args(&files.path("plain"), &sealed);
    let error = command::seal(&kms, key(), &args).unwrap_err();
    assert_eq!(exit_of(error), (Exit::Precondition, "SIDE_FILE_LEFT".into()));
    assert!(kms.take_calls().is_empty());
    std::fs::write(&sealed, before).unwrap();
    std::fs::remove_file(&side).unwrap();
    let mut args = seal_args(&files.path("plain"), &sealed);
    args.streams.force = true;
    command::seal(&kms, key(), &args).unwrap();
}

#[test]
fn reseal_reports_each_file_and_goes_on_after_a_failure() {
    let (files, kms) = (Files::new(), MemoryKms::at(1));
    for name in ["a", "b"] {
        std::fs::write(files.path(name), seal(&kms, b"x")).unwrap();
    }
    kms.rotate();
    std::fs::write(files.path("current"), seal(&kms, b"x")).unwrap();
    let names = ["a", "plain", "current", "missing", "b"];
    let args = ResealArgs { key: None, files: names.map(|name| files.path(name)).into() };
    let reports = command::reseal(&kms, None, &args);
    let statuses: Vec<_> = reports.iter().map(|report| report.status).collect();
    assert_eq!(statuses, ["resealed", "failed", "current", "failed", "resealed"]);
    assert_eq!((reports[0].from_version, reports[0].to_version), (Some(1), Some(2)));
    assert_eq!(reports[1].error.as_deref(), Some("not an age file"));
    assert!(reports[1].cause.is_some() && reports[0].cause.is_none());
    let json = serde_json::to_value(&reports[0]).unwrap();
    assert_eq!(json["status"], "resealed");
    assert_eq!(json["key"], KEY);
    assert!(json.get("error").is_none() && json.get("cause").is_none());
}

#[test]
fn recipient_and_identity_are_printed_and_a_bad_context_name_refused() {
    let args = |via: Option<&str>| AddressArgs { key: KEY.into(), via: via.map(Into::into) };
    let recipient = command::age(&AgeCommand::Recipient(args(None)), key()).unwrap();
    assert!(recipient.starts_with("age1kms1"), "{recipient}");
    let identity = command::age(&AgeCommand::Identity(args(Some("prod"))), key()).unwrap();
    assert!(identity.starts_with("AGE-PLUGIN-KMS-1"), "{identity}");
    let error = command::age(&AgeCommand::Identity(args(Some("a/b"))), key()).unwrap_err();
    assert_eq!(exit_of(error), (Exit::Usage, "ADDRESS".into()));
}
