//! Ties the verbs of backups to the command line: the context, the connection, the report, the exit code.

use std::io::ErrorKind;
use std::path::Path;

use comfy_table::Table;
use serde::Serialize;

use super::command::{
    self, AddressArgs, AgeCommand, FileReport, OpenArgs, ResealArgs, SealArgs, Streams,
};
use super::error::{BackupError, FormatError, ServiceError};
use super::lazy::LazyFileKeys;
use super::remote::RemoteFileKeys;
use crate::context::ResolvedContext;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Format, View, plain_table, print, show, show_json};
use crate::verbs::Session;

/// `kms seal`.
pub fn seal(session: &Session, args: &SealArgs) -> Result<(), CliError> {
    let context = session.context()?;
    let key = context.key_name(&args.key)?;
    let service = connect(&context)?;
    let sealed = command::seal(&service, key.clone(), args)
        .map_err(|error| with_file(error, &args.streams))?;
    let view = StreamView {
        key_version: format!("{key}/versions/{}", sealed.version.get()),
        plaintext_length_bytes: sealed.plaintext_bytes,
    };
    report(session, &args.streams, &view)
}

/// `kms open`.
pub fn open(session: &Session, args: &OpenArgs) -> Result<(), CliError> {
    let context = session.context()?;
    let key = args.key.as_deref().map(|key| context.key_name(key)).transpose()?;
    let service = connect(&context)?;
    let opened = command::open(&service, key.as_ref(), args)
        .map_err(|error| with_file(error, &args.streams))?;
    let view = StreamView {
        key_version: format!("{}/versions/{}", opened.key, opened.version.get()),
        plaintext_length_bytes: opened.plaintext_bytes,
    };
    report(session, &args.streams, &view)
}

/// `kms reseal`: tries and reports every file, then ends with the first failure's code. An interrupted earlier run is
/// finished or undone before the server is asked for anything.
pub fn reseal(session: &Session, args: &ResealArgs) -> Result<(), CliError> {
    let context = session.context()?;
    let key = args.key.as_deref().map(|key| context.key_name(key)).transpose()?;
    let service = LazyFileKeys::new(&context);
    let mut files = command::reseal(&service, key.as_ref(), args);
    let (total, failed) = (files.len(), files.iter().filter(|file| file.cause.is_some()).count());
    let first = files.iter_mut().find_map(|file| Some((file.file.clone(), file.cause.take()?)));
    show(session.format, &ResealView { files })?;
    let Some((file, cause)) = first else { return Ok(()) };
    let error = CliError::from(cause);
    let advice = match error.advice() {
        Some(advice) => Some(advice.into_owned()),
        None if failed < total => Some("the others are done; run it again for these".into()),
        None => None,
    };
    Err(CliError::Part {
        exit: error.exit(),
        reason: "NOT_RESEALED",
        message: format!("{failed} of {total} files, the first `{file}`: {error}"),
        advice,
    })
}

/// `kms age`: needs no server, and no context but for a bare key id.
pub fn age(session: &Session, command: &AgeCommand) -> Result<(), CliError> {
    let (AgeCommand::Recipient(AddressArgs { key, .. })
    | AgeCommand::Identity(AddressArgs { key, .. })) = command;
    let key = match key.parse() {
        Ok(key) => key,
        Err(_) => session.context()?.key_name(key)?,
    };
    let address = command::age(command, key)?;
    match session.format {
        Format::Table => print(format!("{address}\n").as_bytes()),
        Format::Json => show_json(&serde_json::json!({ "address": address })),
    }
}

fn connect(context: &ResolvedContext) -> Result<RemoteFileKeys, CliError> {
    RemoteFileKeys::connect(context).map_err(|error| BackupError::Service(error).into())
}

/// Says which file an error is about, where it is a file and not standard input or output.
fn with_file(error: BackupError, streams: &Streams) -> CliError {
    let (input, output) =
        (Streams::file(streams.input.as_ref()), Streams::file(streams.output.as_ref()));
    let path = match &error {
        BackupError::Format(_)
        | BackupError::HeaderTampered
        | BackupError::ResealInterrupted
        | BackupError::PayloadTruncated { .. }
        | BackupError::PayloadTampered { .. }
        | BackupError::KeyMismatch { .. }
        | BackupError::KeyUnknown
        | BackupError::KeyHidden => input,
        BackupError::OutputExists | BackupError::SideLeft | BackupError::NotRegular => output,
        BackupError::Io { action, .. } => {
            if action.starts_with("read") || action.ends_with("input") { input } else { output }
        }
        BackupError::Service(_)
        | BackupError::TooManyRecipients { .. }
        | BackupError::InvalidRecipient
        | BackupError::Address(_)
        | BackupError::SealedToTerminal
        | BackupError::PlaintextToTerminal
        | BackupError::NothingPiped
        | BackupError::Busy
        | BackupError::Replaced
        | BackupError::SideForeign
        | BackupError::Bug(_) => None,
    };
    let Some(path) = path.map(Path::to_path_buf) else { return error.into() };
    match CliError::from(error) {
        CliError::Part { reason: "FILE_EXISTS", .. } => CliError::Exists(path),
        CliError::Part { exit, reason, message, advice } => {
            let message = format!("`{}`: {message}", path.display());
            CliError::Part { exit, reason, message, advice }
        }
        // A reader that went away has an exit code of its own.
        CliError::Stream { action, cause } if cause.kind() != ErrorKind::BrokenPipe => {
            CliError::File { action, path, cause }
        }
        error => error,
    }
}

fn report(session: &Session, streams: &Streams, view: &StreamView) -> Result<(), CliError> {
    if streams.to_file() { show(session.format, view) } else { Ok(()) }
}

/// What `seal` and `open` report when standard output is free.
#[derive(Debug, Serialize)]
struct StreamView {
    key_version: String,
    plaintext_length_bytes: u64,
}

impl View for StreamView {
    fn table(&self) -> Table {
        let mut table = plain_table();
        table.add_row(vec!["Key version".to_owned(), self.key_version.clone()]);
        table.add_row(vec!["Plaintext bytes".to_owned(), self.plaintext_length_bytes.to_string()]);
        table
    }
}

/// What `reseal` reports.
#[derive(Debug, Serialize)]
struct ResealView {
    files: Vec<FileReport>,
}

impl View for ResealView {
    fn table(&self) -> Table {
        let mut table = plain_table();
        table.set_header(vec!["FILE", "STATUS", "VERSION", "NOTE"]);
        for file in &self.files {
            let version = match (file.from_version, file.to_version) {
                (Some(from), Some(to)) if from != to => format!("{from} -> {to}"),
                (_, Some(to)) => to.to_string(),
                (_, None) => String::new(),
            };
            let recovery = file.recovery.map(|what| format!("interrupted run {what}"));
            let notes: Vec<_> = recovery.into_iter().chain(file.error.clone()).collect();
            let note = notes.join("; ");
            table.add_row(vec![file.file.clone(), file.status.to_owned(), version, note]);
        }
        table
    }
}

impl From<BackupError> for CliError {
    fn from(error: BackupError) -> Self {
        let (exit, reason, advice) = match error {
            BackupError::Service(error) => return error.into(),
            BackupError::SealedToTerminal => {
                return Self::Terminal("a sealed file is binary: use --out FILE or a pipe");
            }
            BackupError::PlaintextToTerminal => {
                return Self::Terminal(
                    "a plaintext is not shown on a terminal: use --out FILE, a pipe, or --out -",
                );
            }
            BackupError::NothingPiped => {
                return Self::Terminal(
                    "nothing is piped in: use --in FILE, or --in - to type it (it is shown)",
                );
            }
            BackupError::Io { action, source } => return Self::Stream { action, cause: source },
            BackupError::Bug(what) => return Self::Bug(what),
            BackupError::Format(error) => {
                let (reason, advice) = of_format(error);
                (Exit::BadInput, reason, advice)
            }
            BackupError::HeaderTampered => (Exit::Integrity, "HEADER_TAMPERED", None),
            BackupError::PayloadTruncated { .. } => (Exit::Integrity, "PAYLOAD_TRUNCATED", None),
            BackupError::PayloadTampered { .. } => (Exit::Integrity, "PAYLOAD_TAMPERED", None),
            BackupError::ResealInterrupted => (
                Exit::Precondition,
                "RESEAL_INTERRUPTED",
                Some("run `kms reseal FILE`, then open it"),
            ),
            BackupError::KeyMismatch { .. } => (Exit::BadInput, "KEY_MISMATCH", None),
            BackupError::KeyUnknown => (Exit::NotFound, "KEY_UNKNOWN", None),
            BackupError::KeyHidden => (
                Exit::Denied,
                "ACCESS_DENIED",
                Some("name it with --key, or ask for the permission `describe_ciphertext`"),
            ),
            BackupError::TooManyRecipients { .. } | BackupError::InvalidRecipient => {
                (Exit::Usage, "RECIPIENT", None)
            }
            BackupError::Address(_) => (Exit::Usage, "ADDRESS", None),
            BackupError::OutputExists => {
                (Exit::Local, "FILE_EXISTS", Some("use --force to replace it"))
            }
            BackupError::NotRegular => (Exit::Local, "FILE", Some("name a file")),
            BackupError::Busy => (Exit::Unavailable, "RESEAL_BUSY", Some("try again later")),
            BackupError::Replaced => (Exit::Precondition, "FILE_REPLACED", Some("try again")),
            BackupError::SideLeft => (
                Exit::Precondition,
                "SIDE_FILE_LEFT",
                Some("run `kms reseal FILE` first; if that backup is gone, remove the side file"),
            ),
            BackupError::SideForeign => (
                Exit::Precondition,
                "SIDE_FILE_FOREIGN",
                Some("see docs/backup-format.md, \"Recovery by hand\""),
            ),
        };
        Self::Part { exit, reason, message: error.to_string(), advice: advice.map(str::to_owned) }
    }
}

impl From<ServiceError> for CliError {
    fn from(error: ServiceError) -> Self {
        match error {
            ServiceError::Client(error) => Self::Client(error),
            ServiceError::Context(error) => Self::Context(error),
            ServiceError::BadAnswer(what) | ServiceError::Bug(what) => Self::Bug(what),
        }
    }
}

/// Returns the reason and the advice for a file that is not a backup that we can read.
const fn of_format(error: FormatError) -> (&'static str, Option<&'static str>) {
    match error {
        FormatError::NotAge => ("NOT_AGE", None),
        FormatError::Armored => ("AGE_ARMORED", Some("decode it: see docs/backup-format.md")),
        FormatError::UnsupportedAgeVersion => ("AGE_VERSION", None),
        FormatError::HeaderTooLong => ("HEADER_TOO_LONG", None),
        FormatError::HeaderTruncated => ("HEADER_TRUNCATED", None),
        FormatError::HeaderMalformed { .. } => ("HEADER_MALFORMED", None),
        FormatError::NoKmsStanza => {
            ("NO_KMS_STANZA", Some("use `age -d` with the identity it was made for"))
        }
        FormatError::SeveralKmsStanzas { .. } => {
            ("SEVERAL_KMS_STANZAS", Some("use `age -d` with age-plugin-kms and one key's identity"))
        }
        FormatError::UnsupportedStanza => {
            ("STANZA_UNSUPPORTED", Some("a newer release wrote it: update this one"))
        }
        FormatError::StanzaMalformed => ("STANZA_MALFORMED", None),
        FormatError::StanzaMismatch => ("STANZA_MISMATCH", None),
        FormatError::Envelope(_) => ("STANZA_ENVELOPE", None),
    }
}
