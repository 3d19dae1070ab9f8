//! The verbs `seal`, `open`, `reseal` and `age`: their arguments, their files, their reports.
//!
//! Plaintext and backups go through files or standard streams, never through arguments. A file output appears when it is
//! whole; standard output is written as chunks verify, and a failure after that shows in the exit code.

use std::fs::File;
use std::io::{self, BufReader, IsTerminal as _, Read};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use kms_core::name::KeyName;
use serde::Serialize;

use super::disk::{FileDisk, side_path};
use super::error::BackupError;
use super::open::{Opened, open_stream};
use super::progress::Progress;
use super::recipient::Address;
use super::reseal::{Outcome, Recovery, Status, recover, reseal as reseal_disk};
use super::seal::{BUFFER_BYTES, Recipients, Sealed, seal_stream};
use super::service::FileKeyService;
use crate::input::STREAM;
use crate::output::{FileOutput, Overwrite};
use crate::terminal::harmless;

/// Where a backup comes from and goes to.
#[derive(Args, Clone, Debug)]
pub struct Streams {
    /// Read from FILE [default: stdin, also `-`]
    #[arg(long = "in", value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Write to FILE, which appears when it is whole [default: stdout, also `-`]
    #[arg(long = "out", value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Replace an existing output file
    #[arg(long)]
    pub force: bool,
    /// Show no progress bar
    #[arg(long)]
    pub quiet: bool,
}

impl Streams {
    /// Returns the file that is meant; `None` for a standard stream.
    pub(super) fn file(path: Option<&PathBuf>) -> Option<&Path> {
        path.map(PathBuf::as_path).filter(|path| *path != Path::new(STREAM))
    }

    /// Returns whether the output goes to a file, so that standard output is free for a report.
    pub fn to_file(&self) -> bool {
        Self::file(self.output.as_ref()).is_some()
    }
}

/// Seals a stream into a standard age file that the KMS can open.
#[derive(Args, Clone, Debug)]
pub struct SealArgs {
    /// The key that wraps the file key: an id, or a full name
    #[arg(long, value_name = "KEY")]
    pub key: String,
    /// A native age recipient that can open the file without the KMS; may be repeated
    #[arg(long = "recipient", short = 'r', value_name = "AGE1...")]
    pub recipients: Vec<String>,
    /// Where from and where to.
    #[command(flatten)]
    pub streams: Streams,
}

/// Opens a sealed file; every byte that is written has been verified.
#[derive(Args, Clone, Debug)]
pub struct OpenArgs {
    /// The key that the file must be sealed with [default: the one that it names]
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// Where from and where to.
    #[command(flatten)]
    pub streams: Streams,
}

/// Moves sealed files to their key's current version, in place; the payload is not touched.
#[derive(Args, Clone, Debug)]
pub struct ResealArgs {
    /// The key that the files must be sealed with [default: the one that each names]
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// The sealed files
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

/// Recipients and identities for stock `age` with age-plugin-kms.
#[derive(Subcommand, Clone, Debug)]
pub enum AgeCommand {
    /// Print the recipient of a key (age1kms1...), for `age -r`
    Recipient(AddressArgs),
    /// Print the identity of a key (AGE-PLUGIN-KMS-1...), for `age -d -i`; it is no secret
    Identity(AddressArgs),
}

/// Which key an address names.
#[derive(Args, Clone, Debug)]
pub struct AddressArgs {
    /// The key: an id, or a full name
    #[arg(long, value_name = "KEY")]
    pub key: String,
    /// Context that the plugin shall use [default: the current one of whoever runs `age`]
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
/// Those of [`seal_stream`] and [`FileOutput`]; no output file appears then. [`BackupError::SideLeft`] when the output
/// has the side file of an interrupted reseal beside it.
pub fn seal(
    service: &dyn FileKeyService,
    key: KeyName,
    args: &SealArgs,
) -> Result<Sealed, BackupError> {
    let recipients = Recipients::new(key, native_recipients(&args.recipients)?)?;
    let input = Input::open(&args.streams)?;
    check_side(Streams::file(args.streams.output.as_ref()))?;
    let mut output = create_output(&args.streams, Content::Sealed)?;
    let sealed = seal_stream(service, &recipients, input.progress(&args.streams), &mut output)?;
    output.commit()?;
    Ok(sealed)
}

/// Runs `open`.
///
/// # Errors
/// Those of [`open_stream`] and [`FileOutput`]; no output file appears then. [`BackupError::ResealInterrupted`] when a
/// broken header is explained by a side file.
pub fn open(
    service: &dyn FileKeyService,
    key: Option<&KeyName>,
    args: &OpenArgs,
) -> Result<Opened, BackupError> {
    let streams = &args.streams;
    let input = Input::open(streams)?;
    let mut output = create_output(streams, Content::Plaintext)?;
    let buffered = BufReader::with_capacity(BUFFER_BYTES, input.progress(streams));
    let opened = open_stream(service, key, buffered, &mut output)
        .map_err(|error| explain(error, Streams::file(streams.input.as_ref())))?;
    output.commit()?;
    Ok(opened)
}

/// Runs `reseal`: every file is tried, whatever happens to the others.
pub fn reseal(
    service: &dyn FileKeyService,
    key: Option<&KeyName>,
    args: &ResealArgs,
) -> Vec<FileReport> {
    args.files.iter().map(|file| reseal_one(service, key, file)).collect()
}

/// What an interrupted run left is told apart from what comes after, which needs the server.
fn reseal_one(service: &dyn FileKeyService, key: Option<&KeyName>, file: &Path) -> FileReport {
    let recovered = FileDisk::open(file).and_then(|disk| Ok((recover(&disk)?, disk)));
    match recovered {
        Ok((recovery, disk)) => report(file, recovery, reseal_disk(service, key, &disk)),
        Err(error) => report(file, None, Err(error)),
    }
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

fn report(
    file: &Path,
    recovered: Option<Recovery>,
    outcome: Result<Outcome, BackupError>,
) -> FileReport {
    let file = harmless(&file.display().to_string());
    let empty = FileReport {
        file,
        status: "failed",
        key: None,
        from_version: None,
        to_version: None,
        recovery: recovered.map(recovery_word),
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
    let recovery = recovery.or(recovered).map(recovery_word);
    let (from_version, to_version) = (Some(from.get()), Some(to.get()));
    FileReport { status, key: Some(key.to_string()), from_version, to_version, recovery, ..empty }
}

const fn recovery_word(recovery: Recovery) -> &'static str {
    match recovery {
        Recovery::Finished => "finished",
        Recovery::Undone => "undone",
        Recovery::Discarded => "discarded",
    }
}

fn native_recipients(texts: &[String]) -> Result<Vec<age::x25519::Recipient>, BackupError> {
    // The text is not shown: it may be an age secret key, given by mistake.
    let parse = |text: &String| text.parse().map_err(|_| BackupError::InvalidRecipient);
    texts.iter().map(parse).collect()
}

/// Whoever seals over a backup, or in its place, must not leave the side file of that backup beside the new one: the next
/// reseal would take it for the new one's, and refuse.
fn check_side(output: Option<&Path>) -> Result<(), BackupError> {
    let Some(output) = output else { return Ok(()) };
    let output = output.canonicalize().unwrap_or_else(|_| output.to_path_buf());
    if side_path(&output).symlink_metadata().is_ok() { Err(BackupError::SideLeft) } else { Ok(()) }
}

/// A header that does not hold together, beside a side file, is most likely torn.
fn explain(error: BackupError, input: Option<&Path>) -> BackupError {
    let of_header = match &error {
        BackupError::HeaderTampered | BackupError::Format(_) => true,
        BackupError::Service(error) => error.is_invalid_ciphertext(),
        _ => false,
    };
    let input = input.and_then(|input| input.canonicalize().ok());
    if of_header && input.is_some_and(|input| side_path(&input).exists()) {
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
        let file = match Streams::file(streams.input.as_ref()) {
            Some(path) => File::open(path),
            None if streams.input.is_none() && io::stdin().is_terminal() => {
                return Err(BackupError::NothingPiped);
            }
            // The descriptor itself: std's buffer would only add a copy.
            None => io::stdin().as_fd().try_clone_to_owned().map(File::from),
        };
        let file = file.map_err(BackupError::io("open the input"))?;
        let metadata = file.metadata().map_err(BackupError::io("open the input"))?;
        let bytes = metadata.is_file().then_some(metadata.len());
        Ok(Self { file, bytes })
    }

    fn progress(self, streams: &Streams) -> impl Read {
        // On a terminal that shows the output, a bar would stand in the middle of it.
        let shown = Streams::file(streams.output.as_ref()).is_none() && io::stdout().is_terminal();
        Progress::new(self.file, self.bytes, streams.quiet || shown)
    }
}

/// What an output holds.
#[derive(Clone, Copy)]
enum Content {
    Sealed,
    Plaintext,
}

impl Content {
    /// Refuses to show binary, or a plaintext that was not asked for, on a terminal.
    const fn check_terminal(self, asked: bool) -> Result<(), BackupError> {
        match self {
            Self::Sealed => Err(BackupError::SealedToTerminal),
            Self::Plaintext if !asked => Err(BackupError::PlaintextToTerminal),
            Self::Plaintext => Ok(()),
        }
    }
}

/// Opens the output. Standard output's descriptor itself: std's buffer would only add a copy.
fn create_output(streams: &Streams, content: Content) -> Result<FileOutput, BackupError> {
    if let Some(path) = Streams::file(streams.output.as_ref()) {
        return Ok(FileOutput::create(path, Overwrite::of(streams.force))?);
    }
    let stdout = io::stdout();
    if stdout.is_terminal() {
        content.check_terminal(streams.output.is_some())?;
    }
    let stream = stdout.as_fd().try_clone_to_owned();
    Ok(FileOutput::Stream(stream.map_err(BackupError::io("open the output"))?.into()))
}
