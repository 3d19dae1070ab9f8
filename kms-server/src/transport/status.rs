//! The only map from errors to gRPC codes.
//!
//! Every error carries `google.rpc.ErrorInfo`, and RequestInfo once the request has an id; what else it carries follows
//! from its code: RetryInfo, BadRequest, ResourceInfo, PreconditionFailure, QuotaFailure. Nothing here adds to the
//! caller's text what the service did not clear for callers.

use std::collections::HashMap;
use std::time::Duration;

use kms_proto::v1::ItemStatus;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::authn::Unauthenticated;
use crate::service::{AliasError, Full, RETRY_AFTER, ServiceError};

/// The domain of every `google.rpc.ErrorInfo`.
pub const ERROR_DOMAIN: &str = "holdfast.dev";
/// All that callers are told of an error of the server's own.
const INTERNAL_TEXT: &str = "internal error";

/// Why a request was refused before any use-case saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The message is not protobuf of its type, has text that is not UTF-8, or is not one message.
    Malformed,
    /// The message is larger than the limit.
    TooLarge,
    /// There is no such method.
    MethodUnknown,
    /// The message is compressed.
    EncodingUnknown,
    /// Health was asked of a service that is not here.
    ServiceUnknown,
    /// Reflection was asked for a symbol or a file that is not described.
    SymbolUnknown,
    /// The client took its request back, or cut it short.
    Cancelled,
    /// The message was not there by the deadline of the request. Nothing was done.
    TooLate,
    /// Large requests take all the memory that they may. Nothing was done.
    Saturated,
    /// The connection ends, by age or because the server stops; a stream goes on in another one.
    Ending,
    /// The system gives no randomness.
    NoRandomness,
}

impl Refused {
    /// Returns the reason for programs and audit records.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Malformed => "MALFORMED_REQUEST",
            Self::TooLarge => "MESSAGE_TOO_LARGE",
            Self::MethodUnknown => "METHOD_UNKNOWN",
            Self::EncodingUnknown => "ENCODING_UNKNOWN",
            Self::ServiceUnknown => "SERVICE_UNKNOWN",
            Self::SymbolUnknown => "SYMBOL_UNKNOWN",
            Self::Cancelled => "CANCELLED",
            Self::TooLate => "REQUEST_DEADLINE",
            Self::Saturated => "SERVER_SATURATED",
            Self::Ending => "CONNECTION_ENDING",
            Self::NoRandomness => "INTERNAL",
        }
    }
}

/// Returns the gRPC code of an error.
pub const fn code(error: &ServiceError) -> Code {
    match error {
        ServiceError::FieldViolation { .. }
        | ServiceError::PageTokenExpired
        | ServiceError::CiphertextInvalid
        | ServiceError::EnvelopeUnsupported { .. }
        | ServiceError::ImportMaterialInvalid
        | ServiceError::ImportKeyLength
        | ServiceError::ImportCheckMismatch
        | ServiceError::ImportKeyWeak
        | ServiceError::NoBackupNotAcknowledged
        | ServiceError::RecipientRefused
        | ServiceError::RequestIdReused => Code::InvalidArgument,
        ServiceError::Alias(error) => of_alias(error),
        ServiceError::AccessDenied => Code::PermissionDenied,
        ServiceError::KeyNotFound { .. }
        | ServiceError::VersionNotFound { .. }
        | ServiceError::ConsumerNotFound { .. }
        | ServiceError::ImportJobNotFound { .. } => Code::NotFound,
        ServiceError::KeyNotActive { .. }
        | ServiceError::IllegalTransition { .. }
        | ServiceError::RecentlyUsed { .. }
        | ServiceError::PrimaryVersion
        | ServiceError::ConsumersRegistered { .. }
        | ServiceError::ConsumersFull
        | ServiceError::ImportJobExpired { .. }
        | ServiceError::ImportJobLost
        | ServiceError::ImportJobTarget
        | ServiceError::ImportJobsFull
        | ServiceError::ImportMethodRefused { .. }
        | ServiceError::VersionStaged { .. }
        | ServiceError::KeyExhausted
        | ServiceError::CryptoperiodExceeded
        | ServiceError::ProtectDisabled
        | ServiceError::KeyDisabled
        | ServiceError::KeyEnabled
        | ServiceError::KeyNotDisabled
        | ServiceError::KeyNotScheduled
        | ServiceError::KeyDestroyScheduled
        | ServiceError::KeyDestroyed
        | ServiceError::DestructionBegun
        | ServiceError::DestructionPlanned { .. }
        | ServiceError::VersionsExhausted
        | ServiceError::HsmRefused { .. } => Code::FailedPrecondition,
        ServiceError::OperationInProgress
        | ServiceError::BackupInProgress
        | ServiceError::BackupCancelled
        | ServiceError::RevisionMismatch => Code::Aborted,
        ServiceError::ResourceExists { .. } | ServiceError::ConsumerExists { .. } => {
            Code::AlreadyExists
        }
        ServiceError::HsmSaturated { .. }
        | ServiceError::HsmFull { .. }
        | ServiceError::RequestsFull => Code::ResourceExhausted,
        ServiceError::HsmUnavailable { .. }
        | ServiceError::HsmLatched { .. }
        | ServiceError::StoreUnavailable { .. }
        | ServiceError::AuditUnavailable { .. }
        | ServiceError::JournalUnavailable { .. }
        | ServiceError::OutcomeUnknown { .. } => Code::Unavailable,
        ServiceError::QueueDeadline | ServiceError::HsmDeadline => Code::DeadlineExceeded,
        ServiceError::MechanismUnsupported { .. } => Code::Unimplemented,
        ServiceError::KeyIntegrity { .. } => Code::DataLoss,
        ServiceError::Bug { .. } => Code::Internal,
    }
}

const fn of_alias(error: &AliasError) -> Code {
    match error {
        AliasError::NotFound { .. } => Code::NotFound,
        AliasError::Exists { .. }
        | AliasError::Confusable { .. }
        | AliasError::ShadowsKey { .. } => Code::AlreadyExists,
        AliasError::Target => Code::InvalidArgument,
        AliasError::Full | AliasError::Unmoved => Code::FailedPrecondition,
        AliasError::RevisionMismatch => Code::Aborted,
    }
}

/// Makes the status of a failed call. `request_id` is the id of its audit records.
pub fn from_service(error: &ServiceError, request_id: &str) -> Status {
    let mut details = details(error.reason(), facts(error));
    details.set_request_info(request_id, "");
    if let Some(delay) = error.retry() {
        details.set_retry_info(Some(delay));
    }
    let (reason, text) = (error.reason(), error.public_text());
    if let ServiceError::FieldViolation { field, description } = error {
        details.add_bad_request_violation(*field, description.as_str());
    }
    match code(error) {
        Code::FailedPrecondition => {
            details.add_precondition_failure_violation(reason, "", text.as_str());
        }
        Code::ResourceExhausted => {
            details.add_quota_failure_violation(quota(error), text.as_str());
        }
        _ => {}
    }
    if let Some((kind, name)) = resource(error) {
        details.set_resource_info(kind, name, "", text.as_str());
    }
    Status::with_error_details(code(error), text, details)
}

/// Returns whose share is used up.
const fn quota(error: &ServiceError) -> &'static str {
    match error {
        ServiceError::RequestsFull
        | ServiceError::HsmSaturated { full: Full::ChangesOfTenant, .. } => "tenant",
        _ => "hsm",
    }
}

/// Returns kind and name of what is missing, or there already.
fn resource(error: &ServiceError) -> Option<(&'static str, String)> {
    match error {
        ServiceError::KeyNotFound { name } | ServiceError::ResourceExists { name } => {
            Some(("kms.v1.Key", name.to_string()))
        }
        ServiceError::VersionNotFound { name } => Some(("kms.v1.KeyVersion", name.to_string())),
        ServiceError::ConsumerNotFound { name } | ServiceError::ConsumerExists { name } => {
            Some(("kms.v1.Consumer", name.to_string()))
        }
        ServiceError::Alias(
            AliasError::NotFound { name }
            | AliasError::Exists { name }
            | AliasError::Confusable { other: name },
        ) => Some(("kms.v1.Alias", name.to_string())),
        ServiceError::Alias(AliasError::ShadowsKey { key }) => {
            Some(("kms.v1.Key", key.to_string()))
        }
        ServiceError::ImportJobNotFound { name } => Some(("kms.v1.ImportJob", name.to_string())),
        _ => None,
    }
}

/// Makes the status of a batch item that failed.
pub fn item(error: &ServiceError) -> ItemStatus {
    ItemStatus {
        code: code(error).into(),
        message: error.public_text(),
        reason: error.reason().to_owned(),
        retry_delay_ms: error.retry().map_or(0, whole_ms),
    }
}

/// Makes the status of a batch item that succeeded.
pub fn item_ok() -> ItemStatus {
    ItemStatus { code: Code::Ok.into(), ..ItemStatus::default() }
}

/// Makes the status of a call without a principal.
pub fn from_unauthenticated(error: Unauthenticated) -> Status {
    let details = details(error.reason(), HashMap::new());
    Status::with_error_details(Code::Unauthenticated, error.to_string(), details)
}

/// Makes the status of a request that no use-case saw.
pub fn from_refused(refused: Refused) -> Status {
    let (code, text) = match refused {
        Refused::Malformed => (Code::InvalidArgument, "the request cannot be decoded"),
        Refused::TooLarge => (
            Code::InvalidArgument,
            "the request is larger than 4 MiB, or an item of a stream than 128 KiB",
        ),
        Refused::MethodUnknown => (Code::Unimplemented, "no such method"),
        Refused::EncodingUnknown => (Code::Unimplemented, "no such encoding"),
        Refused::ServiceUnknown => (Code::NotFound, "no such service"),
        Refused::SymbolUnknown => (Code::NotFound, "no such symbol or file"),
        Refused::Cancelled => (Code::Cancelled, "the request was cut short"),
        Refused::TooLate => (Code::DeadlineExceeded, "the request did not arrive in time"),
        Refused::Saturated => (Code::ResourceExhausted, "too many large requests at a time"),
        Refused::Ending => (Code::Unavailable, "the connection ends; go on in another one"),
        Refused::NoRandomness => (Code::Internal, INTERNAL_TEXT),
    };
    let mut details = details(refused.reason(), HashMap::new());
    if matches!(refused, Refused::Saturated | Refused::Ending) {
        details.set_retry_info(Some(RETRY_AFTER));
    }
    if refused == Refused::Saturated {
        details.add_quota_failure_violation("memory for requests", text);
    }
    Status::with_error_details(code, text, details)
}

/// How the texts begin with which tonic refuses what it cannot decode. It calls that an internal error, and nothing but the
/// text tells it from others; `what_tonic_cannot_decode_is_malformed` asks tonic for each.
const UNDECODABLE: [&str; 4] = [
    "failed to decode Protobuf message",
    "protocol error: received message with",
    "Unexpected EOF decoding stream",
    "Missing request message",
];

/// Makes the status of a request that tonic, or one of its services, refused without saying more than a code. Its text is
/// not passed on: it was not cleared for callers.
pub fn from_bare(bare: &Status) -> Status {
    let undecodable = || UNDECODABLE.iter().any(|text| bare.message().starts_with(text));
    match bare.code() {
        Code::Internal if undecodable() => from_refused(Refused::Malformed),
        Code::InvalidArgument => from_refused(Refused::Malformed),
        Code::OutOfRange => from_refused(Refused::TooLarge),
        Code::Unimplemented => from_refused(Refused::EncodingUnknown),
        Code::NotFound => from_refused(Refused::SymbolUnknown),
        Code::Cancelled => from_refused(Refused::Cancelled),
        Code::DeadlineExceeded => from_refused(Refused::TooLate),
        code => {
            let details = details("INTERNAL", HashMap::new());
            Status::with_error_details(code, INTERNAL_TEXT, details)
        }
    }
}

/// What a program may want to know beside the reason.
fn facts(error: &ServiceError) -> HashMap<String, String> {
    let fact = |name: &str, value: String| HashMap::from([(name.to_owned(), value)]);
    match error {
        ServiceError::KeyNotActive { state } => fact("state", state.to_string()),
        ServiceError::ImportJobExpired { time } => fact("expire_time", time.to_string()),
        ServiceError::RecentlyUsed { last } => fact("last_use_time", last.to_string()),
        ServiceError::IllegalTransition { from, to } => HashMap::from([
            ("state".to_owned(), from.to_string()),
            ("target_state".to_owned(), to.to_string()),
        ]),
        ServiceError::EnvelopeUnsupported { part, number, .. } => fact(part, number.to_string()),
        ServiceError::MechanismUnsupported { mechanism } => {
            fact("mechanism", (*mechanism).to_owned())
        }
        _ => HashMap::new(),
    }
}

fn details(reason: &str, facts: HashMap<String, String>) -> ErrorDetails {
    ErrorDetails::with_error_info(reason, ERROR_DOMAIN, facts)
}

/// Rounds up: a client that waits too short asks twice.
fn whole_ms(delay: Duration) -> u32 {
    u32::try_from(delay.as_millis()).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
