//! `kms hsm doctor`: runs the examination of kms-hsm and draws its table. Needs no server.

use comfy_table::Table;
use kms_core::clock::SystemClock;
use kms_core::secret::Pin;
use kms_hsm::doctor::{DoctorError, Report, TokenSelector, examine};

use super::Session;
use crate::args::tools::{Doctor, HsmCommand};
use crate::client::credentials::FORBIDDEN_KEY_MODE;
use crate::error::CliError;
use crate::exit::Exit;
use crate::input;
use crate::output::{View, plain_table, show};

/// The longest PIN that is read; PKCS#11 tokens take far less.
pub const MAX_PIN_BYTES: usize = 256;

/// Runs one verb.
pub fn run(session: &Session, command: HsmCommand) -> Result<(), CliError> {
    match command {
        HsmCommand::Doctor(args) => doctor(session, &args),
    }
}

fn doctor(session: &Session, args: &Doctor) -> Result<(), CliError> {
    let token = match (&args.token, &args.serial) {
        (_, Some(serial)) => Some(TokenSelector::Serial(serial.clone())),
        (Some(label), None) => Some(TokenSelector::Label(label.clone())),
        (None, None) => None,
    };
    let pin = pin(args)?;
    let report = examine(&args.module, token.as_ref(), &pin, &SystemClock)?;
    show(session.format, &report)?;
    match report.refusal() {
        Some(refusal) => Err(CliError::Token(refusal.to_string())),
        None => Ok(()),
    }
}

/// Reads the PIN; one line end after it does not count.
fn pin(args: &Doctor) -> Result<Pin, CliError> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = &args.pin_file;
    if path != std::path::Path::new(input::STREAM) {
        let failed = |cause| CliError::File { action: "read", path: path.clone(), cause };
        let mode = path.metadata().map_err(failed)?.permissions().mode();
        if mode & FORBIDDEN_KEY_MODE & 0o777 != 0 {
            return Err(CliError::Part {
                exit: Exit::Local,
                reason: "CREDENTIALS",
                message: format!("`{}` is a PIN that others may read", path.display()),
                advice: Some("make it yours alone: chmod 600 FILE".into()),
            });
        }
    }
    let bytes = input::bounded(Some(path), MAX_PIN_BYTES, "PIN")?;
    let text = std::str::from_utf8(&bytes).map_err(|_| CliError::Part {
        exit: Exit::BadInput,
        reason: "PIN",
        message: "the PIN is not UTF-8".into(),
        advice: None,
    })?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    Ok(Pin::new(text.strip_suffix('\r').unwrap_or(text).to_owned()))
}

impl View for Report {
    fn table(&self) -> Table {
        let mut table = plain_table();
        table.set_header(Self::head());
        for row in &self.rows {
            table.add_row(row.cells());
        }
        for latency in &self.latencies {
            let median = format!("{} us", latency.median.as_micros());
            table.add_row([latency.operation, "", "", &median, "median of one session"]);
        }
        for lane in &self.lanes {
            let speed = format!("{}/s", lane.operations_per_second);
            let lanes = format!("{} lanes", lane.lanes);
            table.add_row([&lanes, "", "", &speed, "AES-GCM encryptions of 32 bytes"]);
        }
        let workers = self.recommended_workers.to_string();
        table.add_row(["workers", "", "", &workers, "recommended"]);
        table
    }
}

impl From<DoctorError> for CliError {
    fn from(error: DoctorError) -> Self {
        let message = error.to_string();
        let (exit, reason, advice) = match error {
            DoctorError::ModuleUnusable { .. } => (Exit::Local, "HSM_MODULE", None),
            DoctorError::TokenMissing { .. } => (Exit::NotFound, "TOKEN_NOT_FOUND", None),
            DoctorError::TokenAmbiguous { .. } => {
                (Exit::Usage, "TOKEN_AMBIGUOUS", Some("name it with --serial"))
            }
            DoctorError::PinRefused | DoctorError::PinLocked | DoctorError::PinFinalTry => {
                (Exit::Denied, "PIN_REFUSED", Some("do not try again before the PIN is certain"))
            }
            _ => (Exit::Unsupported, "HSM_CALL", None),
        };
        Self::Part { exit, reason, message, advice: advice.map(Into::into) }
    }
}
