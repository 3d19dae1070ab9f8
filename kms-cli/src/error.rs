//! The one error of the command line: what is printed, and how the process ends.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::path::PathBuf;

use kms_core::context::InvalidContext;
use kms_core::envelope::InvalidEnvelope;
use serde_json::json;

use crate::client::connector::ConnectFailure;
use crate::client::credentials::CredentialsError;
use crate::client::{ClientError, Refusal, Repeat};
use crate::context::ContextError;
use crate::exit::Exit;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Arguments that clap accepts and we do not.
    #[error("{0}")]
    Usage(String),
    /// The context.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// The connection or the server.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The encryption context given by `--bind`.
    #[error("the encryption context is refused: {0}")]
    Bind(#[from] InvalidContext),
    /// The input is no envelope.
    #[error("{0}")]
    Envelope(#[from] InvalidEnvelope),
    /// The input has a length that no server takes.
    #[error("the {what} is {}; it must have 1 to {max} bytes", if *length == 0 { "empty" } else { "longer" })]
    Length {
        /// What it is.
        what: &'static str,
        /// Its length, or one more than the longest.
        length: usize,
        /// The longest that is accepted.
        max: usize,
    },
    /// A file cannot be read or written.
    #[error("cannot {action} `{}`: {cause}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        cause: std::io::Error,
    },
    /// A file is there already.
    #[error("`{}` exists already", .0.display())]
    Exists(PathBuf),
    /// stdin or stdout fails.
    #[error("cannot {action}: {cause}")]
    Stream {
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        cause: std::io::Error,
    },
    /// A secret would be shown on, or typed into, a terminal.
    #[error("{0}")]
    Terminal(&'static str),
    /// The server is reached and says it does not serve.
    #[error("not serving: {0}")]
    NotServing(String),
    /// The token lacks what Holdfast needs.
    #[error("{0}")]
    Token(String),
    /// A part of the command failed with its own text and end (backups).
    #[error("{message}")]
    Part {
        /// How the process ends.
        exit: Exit,
        /// The reason, in the style of a server's.
        reason: &'static str,
        /// The text for people.
        message: String,
        /// What to do, when there is something to do.
        advice: Option<String>,
    },
    /// SIGINT or SIGTERM; perhaps in the middle of a change.
    #[error("interrupted{}", if .0.is_some() { "; the change may have been made" } else { "" })]
    Interrupted(Option<Repeat>),
    /// A defect.
    #[error("{0}")]
    Bug(&'static str),
}

impl CliError {
    /// Says how the process ends.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) | Self::Terminal(_) => Exit::Usage,
            Self::Context(error) => match error {
                ContextError::Unknown { .. } => Exit::NotFound,
                ContextError::Exists(_) => Exit::Precondition,
                ContextError::Key(_)
                | ContextError::Alias(_)
                | ContextError::KeyWithVersion(_)
                | ContextError::VersionMissing(_)
                | ContextError::Version(_)
                | ContextError::Tenant(_)
                | ContextError::Name(_)
                | ContextError::Missing { .. }
                | ContextError::Server { .. } => Exit::Usage,
                ContextError::File { .. }
                | ContextError::NoFile(_)
                | ContextError::Parse { .. }
                | ContextError::TooLong(_)
                | ContextError::NoHome => Exit::Local,
            },
            Self::Client(error) => match error.failure() {
                ClientError::Credentials(_) => Exit::Local,
                ClientError::Connect { .. } => Exit::Connection,
                ClientError::Timeout(_) => Exit::Unavailable,
                ClientError::Refused(refusal) => Exit::of_refusal(&refusal.reason, refusal.code),
                ClientError::Answer(_) | ClientError::Bug(_) | ClientError::Unanswered { .. } => {
                    Exit::Bug
                }
            },
            Self::Bind(_) | Self::Envelope(_) | Self::Length { .. } => Exit::BadInput,
            Self::Stream { cause, .. } if cause.kind() == std::io::ErrorKind::BrokenPipe => {
                Exit::BrokenPipe
            }
            Self::File { .. } | Self::Exists(_) | Self::Stream { .. } => Exit::Local,
            Self::NotServing(_) => Exit::Unavailable,
            Self::Token(_) => Exit::Unsupported,
            Self::Part { exit, .. } => *exit,
            Self::Interrupted(_) => Exit::Interrupted,
            Self::Bug(_) => Exit::Bug,
        }
    }

    /// Returns the reason, for programs: the server's own where it gave one.
    pub fn reason(&self) -> &str {
        match self {
            Self::Usage(_) => "USAGE",
            Self::Context(
                ContextError::Key(_)
                | ContextError::Alias(_)
                | ContextError::KeyWithVersion(_)
                | ContextError::VersionMissing(_)
                | ContextError::Version(_),
            ) => "KEY_NAME",
            Self::Context(_) => "CONTEXT",
            Self::Client(error) => match error.failure() {
                ClientError::Credentials(_) => "CREDENTIALS",
                ClientError::Connect { failure, .. } => match failure {
                    ConnectFailure::Network(_) | ConnectFailure::Timeout(_) => "UNREACHABLE",
                    ConnectFailure::ServerCertificate(_)
                    | ConnectFailure::ServerCertificateTime(_) => "SERVER_CERTIFICATE",
                    ConnectFailure::ClientCertificate(_) => "CLIENT_CERTIFICATE",
                    ConnectFailure::Tls(_) | ConnectFailure::NotHttp2 => "TLS",
                },
                ClientError::Timeout(_) => "TIMEOUT",
                ClientError::Refused(refusal) if refusal.reason.is_empty() => {
                    refusal.code.description()
                }
                ClientError::Refused(refusal) => &refusal.reason,
                ClientError::Answer(_) => "ANSWER",
                ClientError::Bug(_) | ClientError::Unanswered { .. } => "BUG",
            },
            Self::Bind(_) => "FIELD_VIOLATION",
            Self::Envelope(InvalidEnvelope::Malformed) => "CIPHERTEXT_INVALID",
            Self::Envelope(_) => "ENVELOPE_UNSUPPORTED",
            Self::Length { .. } => "LENGTH",
            Self::File { .. } | Self::Stream { .. } => "FILE",
            Self::Exists(_) => "FILE_EXISTS",
            Self::Terminal(_) => "TERMINAL",
            Self::NotServing(_) => "NOT_SERVING",
            Self::Token(_) => "MECHANISM_UNSUPPORTED",
            Self::Part { reason, .. } => reason,
            Self::Interrupted(_) => "INTERRUPTED",
            Self::Bug(_) => "BUG",
        }
    }

    /// Says what to do about it, where there is something to do.
    pub fn advice(&self) -> Option<Cow<'_, str>> {
        if let Some(repeat) = self.repeat() {
            return Some(Cow::Owned(format!(
                "repeat the command with {repeat}: within 24 hours the server makes the change once"
            )));
        }
        self.plain_advice().map(Cow::Borrowed)
    }

    /// Returns how to repeat a command whose change may have been made.
    fn repeat(&self) -> Option<Repeat> {
        match self {
            Self::Client(ClientError::Unanswered { repeat, .. }) => Some(*repeat),
            Self::Interrupted(repeat) => *repeat,
            _ => None,
        }
    }

    fn plain_advice(&self) -> Option<&str> {
        Some(match self {
            Self::File { cause, .. }
            | Self::Context(ContextError::File { cause, .. })
            | Self::Client(ClientError::Credentials(CredentialsError::Read { cause, .. })) => {
                file_advice(cause)
            }
            Self::Context(error) => match error {
                ContextError::Unknown { .. } => "see `kms context list`",
                ContextError::Missing { .. } | ContextError::NoFile(_) => {
                    "add a context: `kms context add NAME --server URL --ca FILE --cert FILE \
                     --key-file FILE --tenant T`"
                }
                _ => return None,
            },
            Self::Client(error) => return client_advice(error),
            Self::Envelope(InvalidEnvelope::Malformed) => {
                "give what `kms wrap` wrote, binary or `hfenv1:` text, unchanged"
            }
            Self::Envelope(_) => "a newer release wrote it: update this one",
            Self::Exists(_) => "use --force to replace it",
            Self::Part { advice, .. } => return advice.as_deref(),
            Self::NotServing(_) => "ask the operators; `/readyz` on the admin listener says why",
            Self::Token(_) => "use another token, or another version of its module",
            _ => return None,
        })
    }

    /// Writes what is printed: for people, or as one JSON object.
    pub fn text(&self, as_json: bool) -> String {
        let refusal = match self {
            Self::Client(error) => match error.failure() {
                ClientError::Refused(refusal) => Some(refusal),
                _ => None,
            },
            _ => None,
        };
        let repeat = self.repeat();
        let event_id = refusal.and_then(|refusal| refusal.event_id.as_deref());
        if as_json {
            let error = json!({ "error": {
                "reason": self.reason(), "message": self.to_string(), "advice": self.advice(),
                "exit_code": self.exit().code(), "event_id": event_id,
                "violations": refusal.map(|refusal| violations(refusal)).unwrap_or_default(),
                "request_id": repeat.map(|repeat| repeat.request_id.to_string()),
                "revision": repeat.and_then(|repeat| repeat.revision),
            }});
            return format!("{error}\n");
        }
        let message = crate::terminal::one_line(&self.to_string());
        let mut text = format!("error: {}: {message}\n", self.reason());
        let untold = |(field, description): &&(String, String)| {
            !(message.contains(field.as_str()) && message.contains(description.as_str()))
        };
        let violations = refusal.iter().flat_map(|refusal| &refusal.violations);
        for (field, description) in violations.filter(untold) {
            let _ = writeln!(text, "  field `{field}`: {description}");
        }
        if let Some(advice) = self.advice() {
            let _ = writeln!(text, "  {advice}");
        }
        if let Some(event_id) = event_id {
            // Not always in the audit log: it may be what cannot be written.
            let _ = writeln!(text, "  event id: {event_id}");
        }
        text
    }
}

fn violations(refusal: &Refusal) -> Vec<serde_json::Value> {
    let each = refusal.violations.iter();
    each.map(|(field, text)| json!({ "field": field, "description": text })).collect()
}

fn client_advice(error: &ClientError) -> Option<&'static str> {
    Some(match error.failure() {
        ClientError::Credentials(CredentialsError::KeyMode { .. }) => {
            "make it yours alone: chmod 600 FILE; if others could read it, replace the key"
        }
        ClientError::Connect { failure, .. } => match failure {
            ConnectFailure::Network(_) | ConnectFailure::Timeout(_) => {
                "is the server running and not full, and the address right? see `kms context show`"
            }
            ConnectFailure::ServerCertificate(_) => {
                "this is another server, or `ca` of the context is another CA"
            }
            ConnectFailure::ServerCertificateTime(_) => {
                "ask the operators of the server to renew it; is the clock of this machine right?"
            }
            ConnectFailure::ClientCertificate(_) => {
                "is the client certificate from the server's CA, and still valid?"
            }
            ConnectFailure::Tls(_) | ConnectFailure::NotHttp2 => {
                "does a Holdfast server listen there? it speaks TLS 1.3 only"
            }
        },
        ClientError::Timeout(_) => "try again, or give it longer with --timeout",
        ClientError::Refused(refusal) => return refusal_advice(refusal),
        ClientError::Credentials(_)
        | ClientError::Unanswered { .. }
        | ClientError::Answer(_)
        | ClientError::Bug(_) => return None,
    })
}

/// What a reason asks for, and where that is nothing of its own, what its kind does.
fn refusal_advice(refusal: &Refusal) -> Option<&'static str> {
    Some(match refusal.reason.as_str() {
        "CERT_NAMES_NOBODY" => {
            "ask for a client certificate with one SPIFFE URI SAN, or one DNS SAN"
        }
        "CIPHERTEXT_INVALID" => {
            "another key, another --bind, or a changed ciphertext: the server cannot say which"
        }
        "REQUEST_ID_REUSED" => {
            "the id was used for another request: repeat that one word for word, its --revision \
             included, or leave --request-id out"
        }
        "IMPORT_JOB_NOT_FOUND"
        | "IMPORT_JOB_EXPIRED"
        | "IMPORT_JOB_LOST"
        | "IMPORT_JOB_TARGET"
        | "IMPORT_MATERIAL_INVALID"
        | "IMPORT_KEY_LENGTH"
        | "IMPORT_CHECK_MISMATCH" => "make a new job: `kms import-job create KEY`",
        "IMPORT_JOBS_FULL" => "see `kms import-job list`",
        "IMPORT_METHOD_REFUSED" => "take another method, or ask the operators of the server",
        "HSM_LATCHED" => {
            "the server's HSM is latched: its operators must act; retrying does not help"
        }
        "HSM_FULL" => "the server's HSM is full: its operators must act; retrying does not help",
        "HSM_REFUSED" => {
            "tell the operators of the server: their HSM refuses it by a policy of its own"
        }
        _ => match Exit::of_refusal(&refusal.reason, refusal.code) {
            Exit::Denied => "ask who administers the tenant for this permission",
            Exit::NotFound => "see `kms key list` and `kms key versions KEY`",
            Exit::Precondition => "see `kms key describe KEY` and `kms key versions KEY`",
            Exit::Unavailable => "try again later",
            Exit::Integrity => "stop, and tell the operators of the server",
            _ => return None,
        },
    })
}

/// What the system's answer about a file asks for.
fn file_advice(cause: &std::io::Error) -> &'static str {
    use std::io::ErrorKind as Kind;
    match cause.kind() {
        Kind::NotFound | Kind::NotADirectory => "is the path right, and its directory there?",
        Kind::PermissionDenied => "are the file and its directory yours to use?",
        Kind::ReadOnlyFilesystem => "give a place that can be written",
        Kind::StorageFull | Kind::QuotaExceeded => "make room, or give another place",
        Kind::IsADirectory | Kind::InvalidInput => "name a file, or a pipe or device",
        Kind::InvalidData => "is it the right file?",
        _ => "can the file be used otherwise? look at its disk",
    }
}
