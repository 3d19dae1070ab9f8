//! `kms seal`, `kms open`, `kms reseal`, `kms age`: contexts and exit codes around [`crate::backup`].

use std::io::Write as _;
use std::path::Path;

use comfy_table::Table;
use kms_core::name::KeyName;
use serde::Serialize;

use super::Session;
use crate::backup::command::{self, AgeCommand, FileReport, OpenArgs, ResealArgs, SealArgs};
use crate::backup::{BackupError, RemoteFileKeys, ServiceError};
use crate::context::ResolvedContext;
use crate::error::CliError;
use crate::exit::Exit;
use crate::input::STREAM;
use crate::output::{Format, View, plain_table, print, show, show_json};

/// Seals.
pub fn seal(session: &Session, args: &SealArgs) -> Result<(), CliError> {
    let context = session.context()?;
    let key = context.key_name(&args.key)?;
    let sealed = command::seal(&connect(&context)?, key.clone(), args)?;
    let facts = StreamView {
        key: key.to_string(),
        version: None,
        plaintext_length_bytes: sealed.plaintext_bytes,
    };
    report(session, &args.streams.output, &facts)
}

/// Opens.
pub fn open(session: &Session, args: &OpenArgs) -> Result<(), CliError> {
    let context = session.context()?;
    let key = key_name(&context, args.key.as_deref())?;
    let opened = command::open(&connect(&context)?, key.as_ref(), args)?;
    let facts = StreamView {
        key: opened.key.to_string(),
        version: Some(opened.version.get()),
        plaintext_length_bytes: opened.plaintext_bytes,
    };
    report(session, &args.streams.output, &facts)
}

/// Reseals each file; ends with the first failure's code after all were tried.
pub fn reseal(session: &Session, args: &ResealArgs) -> Result<(), CliError> {
    let context = session.context()?;
    let key = key_name(&context, args.key.as_deref())?;
    let mut files = command::reseal(&connect(&context)?, key.as_ref(), args);
    let failed = files.iter().filter(|file| file.cause.is_some()).count();
    let first = files.iter_mut().find_map(|file| {
        let cause = file.cause.take()?;
        Some((file.file.clone(), cause))
    });
    let total = files.len();
    show(session.format, &FilesView { files })?;
    let Some((file, cause)) = first else { return Ok(()) };
    let error = CliError::from(cause);
    Err(CliError::Part {
        exit: error.exit(),
        reason: "NOT_RESEALED",
        message: format!("{failed} of {total} files, the first `{file}`: {error}"),
        advice: Some("the others are done; run it again for these".into()),
    })
}

/// Prints a recipient or an identity; needs no server.
pub fn age(session: &Session, command: &AgeCommand) -> Result<(), CliError> {
    let (AgeCommand::Recipient(args) | AgeCommand::Identity(args)) = command;
    // A full name needs no context at all.
    let key = match args.key.parse() {
        Ok(key) => key,
        Err(_) => session.context()?.key_name(&args.key)?,
    };
    let text = command::age(command, key)?;
    match session.format {
        Format::Table => print(format!("{}\n", text.trim_end()).as_bytes()),
        Format::Json => show_json(&serde_json::json!({ "address": text.trim_end() })),
    }
}

fn connect(context: &ResolvedContext) -> Result<RemoteFileKeys, CliError> {
    RemoteFileKeys::connect(context).map_err(|error| BackupError::Service(error).into())
}

fn key_name(context: &ResolvedContext, text: Option<&str>) -> Result<Option<KeyName>, CliError> {
    Ok(text.map(|text| context.key_name(text)).transpose()?)
}

/// What was sealed or opened. It goes to stdout as JSON only when stdout does not carry the data.
#[derive(Clone, Debug, Serialize)]
pub struct StreamView {
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u32>,
    plaintext_length_bytes: u64,
}

fn report(session: &Session, output: &Path, facts: &StreamView) -> Result<(), CliError> {
    if session.format == Format::Json && output != Path::new(STREAM) {
        return show_json(facts);
    }
    let done = format!("{} bytes of plaintext under {}\n", facts.plaintext_length_bytes, facts.key);
    // News for people; that nobody listens is no failure.
    let _ = std::io::stderr().write_all(done.as_bytes());
    Ok(())
}

/// How each file fared.
#[derive(Debug, Serialize)]
pub struct FilesView {
    files: Vec<FileReport>,
}

impl View for FilesView {
    fn table(&self) -> Table {
        let mut table = plain_table();
        table.set_header(["FILE", "STATUS", "KEY", "FROM", "TO", "NOTE"]);
        for file in &self.files {
            let number = |number: Option<u32>| number.map_or_else(String::new, |n| n.to_string());
            table.add_row([
                file.file.clone(),
                file.status.into(),
                file.key.clone().unwrap_or_default(),
                number(file.from_version),
                number(file.to_version),
                file.error.as_deref().or(file.recovery).unwrap_or_default().into(),
            ]);
        }
        table
    }
}

impl From<BackupError> for CliError {
    fn from(error: BackupError) -> Self {
        let message = error.to_string();
        let part = |exit, reason| Self::Part { exit, reason, message, advice: None };
        match error {
            BackupError::Service(ServiceError::Client(error)) => error.into(),
            BackupError::Service(ServiceError::Context(error)) => error.into(),
            BackupError::Service(ServiceError::BadAnswer(_)) => part(Exit::Bug, "ANSWER"),
            BackupError::Service(ServiceError::Bug(_)) | BackupError::Bug(_) => {
                part(Exit::Bug, "BUG")
            }
            BackupError::Format(_) => part(Exit::BadInput, "NOT_A_BACKUP"),
            BackupError::HeaderTampered
            | BackupError::PayloadTruncated { .. }
            | BackupError::PayloadTampered { .. } => part(Exit::Integrity, "BACKUP_INTEGRITY"),
            BackupError::ResealInterrupted | BackupError::SideForeign => {
                part(Exit::Precondition, "RESEAL_INTERRUPTED")
            }
            BackupError::KeyMismatch { .. } => part(Exit::Precondition, "KEY_MISMATCH"),
            BackupError::KeyUnknown => part(Exit::NotFound, "KEY_NOT_FOUND"),
            BackupError::TooManyRecipients { .. }
            | BackupError::InvalidRecipient(_)
            | BackupError::Address(_)
            | BackupError::OutputIsTerminal => part(Exit::Usage, "USAGE"),
            BackupError::OutputExists => part(Exit::Local, "FILE_EXISTS"),
            BackupError::Busy | BackupError::Replaced => part(Exit::Unavailable, "FILE_BUSY"),
            BackupError::Io { source, .. } if source.kind() == std::io::ErrorKind::BrokenPipe => {
                part(Exit::BrokenPipe, "FILE")
            }
            BackupError::NotRegular | BackupError::Io { .. } => part(Exit::Local, "FILE"),
        }
    }
}
