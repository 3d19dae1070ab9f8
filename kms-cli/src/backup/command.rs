//! The verbs `seal`, `open`, `reseal` and `age`: their arguments, their files, their reports.
//!
//! Plaintext and backups go through files or standard streams, never through arguments. A file output appears when it is
//! whole; standard output is written as chunks verify, and a failure after that shows in the exit code.

use std::fs::File;
use std::io::{self, BufReader, IsTerminal as _, Read, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use kms_core::name::KeyName;
use serde::Serialize;

use super::disk::side_path;
use super::error::BackupError;
use super::open::{Opened, open_stream};
use super::output::{Overwrite, PendingFile};
use super::progress::Progress;
use super::recipient::Address;
use super::reseal::{Outcome, Recovery, Status, reseal_file};
use super::seal::{BUFFER_BYTES, Recipients, Sealed, seal_stream};
use super::service::FileKeyService;
use crate::terminal::harmless;

/// Names a standard stream.
const STREAM: &str = "-";

/// Where a backup comes from and goes to.
#[derive(Args, Clone, Debug)]
pub struct Streams {
    /// Read from FILE, `-` for standard input.
    #[arg(long = "in", value_name = "FILE", default_value = STREAM)]
    pub input: PathBuf,
    /// Write to FILE, `-` for standard output. The file appears when it is whole.
    #[arg(long = "out", short = 'o', value_name = "FILE", default_value = STREAM)]
    pub output: PathBuf,
    /// Replace an existing output file.
    #[arg(long, short)]
    pub force: bool,
    /// Show no progress bar.
    #[arg(long, short)]
    pub quiet: bool,
}

/// Seals a stream into a standard age file that the KMS can open.
#[derive(Args, Clone, Debug)]
pub struct SealArgs {
    /// The key that wraps the file key: an id, or `tenants/T/keys/K`.
    #[arg(long, value_name = "KEY")]
    pub key: String,
    /// A native age recipient (`age1…`) that can open the file without the KMS; may be repeated.
    #[arg(long = "recipient", short, value_name = "AGE1…")]
    pub recipients: Vec<String>,
    /// Input and output.
    #[command(flatten)]
    pub streams: Streams,
}

/// Opens a sealed file; every byte that is written has been verified.
#[derive(Args, Clone, Debug)]
pub struct OpenArgs {
    /// The key that the file must be sealed with; without it, the key that the file names.
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// Input and output.
    #[command(flatten)]
    pub streams: Streams,
}

/// Moves sealed files to their key's current version, in place; the payload is not touched.
#[derive(Args, Clone, Debug)]
pub struct ResealArgs {
    /// The key that the files must be sealed with; without it, the key that each file names.
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// The sealed files.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

/// Recipients and identities for stock `age` with age-plugin-kms.
#[derive(Subcommand, Clone, Debug)]
pub enum AgeCommand {
    /// Print the recipient (`age1kms1…`) of a key, for `age -r`.
    Recipient(AddressArgs),
    /// Print the identity (`AGE-PLUGIN-KMS-1…`) of a key, for `age -d -i`. It is not a secret.
    Identity(AddressArgs),
}

/// Which key an address names.
#[derive(Args, Clone, Debug)]
pub struct AddressArgs {
    /// The key: an id, or `tenants/T/keys/K`.
    #[arg(long, value_name = "KEY")]
    pub key: String,
    /// Fix the context that the plugin uses; without it, the current one of whoever runs `age`.
    #[arg(long, value_name = "CONTEXT")]
    pub via: Option<String>,
}

/// How one file fared in `reseal`.
#[derive(Debug, Serialize)]
pub struct FileReport {
    /// The file, as it was given.
    pub file: String,
    /// `resealed`, `current` or `failed`.
    pub status: &'static str,
    /// The key's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The version before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_version: Option<u32>,
    /// The version now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_version: Option<u32>,
    /// `finished`, `undone` or `discarded`: what was done about an interrupted earlier run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery: Option<&'static str>,
    /// What went wrong, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What went wrong, for the exit code.
    #[serde(skip)]
    pub cause: Option<BackupError>,
}

/// Runs `seal`.
///
/// # Errors
/// Those of [`seal_stream`] and [`PendingFile`]; no output file appears then.
pub fn seal(
    service: &dyn FileKeyService,
    key: KeyName,
    args: &SealArgs,
) -> Result<Sealed, BackupError> {
    let recipients = Recipients::new(key, native_recipients(&args.recipients)?)?;
    let input = Input::open(&args.streams)?;
    let mut output = Output::create(&args.streams, Binary::Yes)?;
    let sealed = seal_stream(service, &recipients, input.progress(&args.streams), &mut output)?;
    output.commit()?;
    Ok(sealed)
}

/// Runs `open`.
///
/// # Errors
/// Those of [`open_stream`] and [`PendingFile`]; no output file appears then. [`BackupError::ResealInterrupted`] when a
/// broken header is explained by a side file.
pub fn open(
    service: &dyn FileKeyService,
    key: Option<&KeyName>,
    args: &OpenArgs,
) -> Result<Opened, BackupError> {
    let streams = &args.streams;
    let input = Input::open(streams)?;
    let mut output = Output::create(streams, Binary::Perhaps)?;
    let buffered = BufReader::with_capacity(BUFFER_BYTES, input.progress(streams));
    let opened = open_stream(service, key, buffered, &mut output)
        .map_err(|error| explain(error, &streams.input))?;
    output.commit()?;
    Ok(opened)
}

/// Runs `reseal`: every file is tried, whatever happens to the others.
pub fn reseal(
    service: &dyn FileKeyService,
    key: Option<&KeyName>,
    args: &ResealArgs,
) -> Vec<FileReport> {
    args.files.iter().map(|file| report(file, reseal_file(service, key, file))).collect()
}

/// Runs `age recipient` and `age identity`: returns the text to print. Needs no server.
///
/// # Errors
/// [`BackupError::Address`].
pub fn age(command: &AgeCommand, key: KeyName) -> Result<String, BackupError> {
    let (AgeCommand::Recipient(args) | AgeCommand::Identity(args)) = command;
    let address = Address::new(key, args.via.clone())?;
    Ok(match command {
        AgeCommand::Recipient(_) => address.to_recipient()?,
        AgeCommand::Identity(_) => address.to_identity()?,
    })
}

fn report(file: &Path, outcome: Result<Outcome, BackupError>) -> FileReport {
    let file = harmless(&file.display().to_string());
    let empty = FileReport {
        file,
        status: "failed",
        key: None,
        from_version: None,
        to_version: None,
        recovery: None,
        error: None,
        cause: None,
    };
    let Outcome { key, status, recovery } = match outcome {
        Ok(outcome) => outcome,
        Err(error) => {
            let text = Some(error.to_string());
            return FileReport { error: text, cause: Some(error), ..empty };
        }
    };
    let (status, from, to) = match status {
        Status::Resealed { from, to } => ("resealed", from, to),
        Status::AlreadyCurrent { version } => ("current", version, version),
    };
    let recovery = recovery.map(|recovery| match recovery {
        Recovery::Finished => "finished",
        Recovery::Undone => "undone",
        Recovery::Discarded => "discarded",
    });
    let (from_version, to_version) = (Some(from.get()), Some(to.get()));
    FileReport { status, key: Some(key.to_string()), from_version, to_version, recovery, ..empty }
}

fn native_recipients(texts: &[String]) -> Result<Vec<age::x25519::Recipient>, BackupError> {
    let parse =
        |text: &String| text.parse().map_err(|_| BackupError::InvalidRecipient(harmless(text)));
    texts.iter().map(parse).collect()
}

/// A header that does not verify beside a side file is most likely torn.
fn explain(error: BackupError, input: &Path) -> BackupError {
    let of_header = matches!(error, BackupError::HeaderTampered | BackupError::Format(_));
    if of_header && input != Path::new(STREAM) && side_path(input).exists() {
        return BackupError::ResealInterrupted;
    }
    error
}

/// An input and its length, where that is known.
struct Input {
    file: File,
    bytes: Option<u64>,
}

impl Input {
    fn open(streams: &Streams) -> Result<Self, BackupError> {
        let file = if streams.input == Path::new(STREAM) {
            // The descriptor itself: std's buffer would only add a copy.
            io::stdin().as_fd().try_clone_to_owned().map(File::from)
        } else {
            File::open(&streams.input)
        };
        let file = file.map_err(BackupError::io("open the input"))?;
        let metadata = file.metadata().map_err(BackupError::io("open the input"))?;
        let bytes = metadata.is_file().then_some(metadata.len());
        Ok(Self { file, bytes })
    }

    fn progress(self, streams: &Streams) -> impl Read {
        Progress::new(self.file, self.bytes, streams.quiet)
    }
}

/// Whether an output is certainly binary.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Binary {
    Yes,
    Perhaps,
}

/// Where output goes: at once, or into a file that appears when it is whole.
enum Output {
    Stream(File),
    Pending(PendingFile),
}

impl Output {
    fn create(streams: &Streams, binary: Binary) -> Result<Self, BackupError> {
        let path = streams.output.as_path();
        if path == Path::new(STREAM) {
            let stdout = io::stdout();
            if binary == Binary::Yes && stdout.is_terminal() {
                return Err(BackupError::OutputIsTerminal);
            }
            let stream = stdout.as_fd().try_clone_to_owned();
            return Ok(Self::Stream(stream.map_err(BackupError::io("open the output"))?.into()));
        }
        // Pipes and devices such as /dev/null cannot be replaced by a file, so they are written to.
        let kind = path.metadata().map(|metadata| metadata.file_type());
        if kind.is_ok_and(|kind| kind.is_fifo() || kind.is_char_device()) {
            let stream = File::options().write(true).open(path);
            return Ok(Self::Stream(stream.map_err(BackupError::io("open the output"))?));
        }
        let overwrite = if streams.force { Overwrite::Allow } else { Overwrite::Refuse };
        Ok(Self::Pending(PendingFile::create(path, overwrite)?))
    }

    fn commit(self) -> Result<(), BackupError> {
        match self {
            Self::Stream(_) => Ok(()),
            Self::Pending(pending) => pending.commit(),
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stream(file) => file.write(bytes),
            Self::Pending(pending) => pending.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stream(file) => file.flush(),
            Self::Pending(pending) => pending.flush(),
        }
    }
}
