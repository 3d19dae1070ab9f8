//! Codes, reasons and details of every error, as programs see them.

use ServiceError as E;
use kms_core::clock::Timestamp;
use kms_core::fault::Fault::{self, Audit, Bug, Caller, Device, Policy, Store};
use kms_core::id::KeyVersion;
use kms_core::import::ImportMethod;
use kms_core::state::VersionState;

use super::*;

const ID: &str = "the id of a request";

/// What programs see of a kind of error: reason, code, whose fault, and after how many milliseconds to try again.
type Row = (&'static str, Code, Fault, Option<u64>);

/// Makes `table`, which has one error of every kind: it does not compile when a kind is missing or twice in it.
macro_rules! table {
    ($($kind:ident: $sample:expr => $row:expr,)*) => {
        fn table() -> Vec<(ServiceError, Row)> {
            let each = |sample: &ServiceError| match sample { $(ServiceError::$kind { .. } => stringify!($kind),)* };
            let table = vec![$((stringify!($kind), $sample, $row)),*];
            let check = |(kind, sample, row)| {
                assert_eq!(each(&sample), kind);
                (sample, row)
            };
            table.into_iter().map(check).collect()
        }
    };
}

const CONSUMER: &str = "tenants/t/keys/k/consumers/c";
const IMPORT_JOB: &str = "tenants/t/keys/k/importJobs/j";
const NO_DETAIL: String = String::new();
const SOON: Duration = Duration::from_millis(250);

table! {
    FieldViolation: E::field("key", "odd") => ("FIELD_VIOLATION", Code::InvalidArgument, Caller, None),
    PageTokenExpired: E::PageTokenExpired => ("PAGE_TOKEN_EXPIRED", Code::InvalidArgument, Caller, None),
    CiphertextInvalid: E::CiphertextInvalid => ("CIPHERTEXT_INVALID", Code::InvalidArgument, Caller, None),
    EnvelopeUnsupported: E::EnvelopeUnsupported { detail: NO_DETAIL, part: "suite", number: 9 }
        => ("ENVELOPE_UNSUPPORTED", Code::InvalidArgument, Caller, None),
    AccessDenied: E::AccessDenied => ("ACCESS_DENIED", Code::PermissionDenied, Policy, None),
    KeyNotFound: E::KeyNotFound { name: "tenants/t/keys/k".parse().unwrap() }
        => ("KEY_NOT_FOUND", Code::NotFound, Caller, None),
    VersionNotFound: E::VersionNotFound { name: "tenants/t/keys/k/versions/1".parse().unwrap() }
        => ("VERSION_NOT_FOUND", Code::NotFound, Caller, None),
    KeyNotActive: E::KeyNotActive { state: VersionState::Suspended }
        => ("KEY_NOT_ACTIVE", Code::FailedPrecondition, Caller, None),
    IllegalTransition: E::IllegalTransition { from: VersionState::Active, to: VersionState::DestroyScheduled }
        => ("ILLEGAL_TRANSITION", Code::FailedPrecondition, Caller, None),
    RecentlyUsed: E::RecentlyUsed { last: Timestamp::from_unix_ms(0) }
        => ("RECENTLY_USED", Code::FailedPrecondition, Caller, None),
    PrimaryVersion: E::PrimaryVersion => ("PRIMARY_VERSION", Code::FailedPrecondition, Caller, None),
    VersionStaged: E::VersionStaged { version: KeyVersion::FIRST }
        => ("VERSION_STAGED", Code::FailedPrecondition, Caller, None),
    KeyExhausted: E::KeyExhausted => ("KEY_EXHAUSTED", Code::FailedPrecondition, Caller, None),
    CryptoperiodExceeded: E::CryptoperiodExceeded
        => ("CRYPTOPERIOD_EXCEEDED", Code::FailedPrecondition, Caller, None),
    ProtectDisabled: E::ProtectDisabled => ("PROTECT_DISABLED", Code::FailedPrecondition, Caller, None),
    KeyDisabled: E::KeyDisabled => ("KEY_DISABLED", Code::FailedPrecondition, Caller, None),
    KeyEnabled: E::KeyEnabled => ("KEY_ENABLED", Code::FailedPrecondition, Caller, None),
    KeyNotDisabled: E::KeyNotDisabled => ("KEY_NOT_DISABLED", Code::FailedPrecondition, Caller, None),
    KeyNotScheduled: E::KeyNotScheduled => ("KEY_NOT_SCHEDULED", Code::FailedPrecondition, Caller, None),
    KeyDestroyScheduled: E::KeyDestroyScheduled
        => ("KEY_DESTROY_SCHEDULED", Code::FailedPrecondition, Caller, None),
    KeyDestroyed: E::KeyDestroyed => ("KEY_DESTROYED", Code::FailedPrecondition, Caller, None),
    DestructionBegun: E::DestructionBegun => ("DESTRUCTION_BEGUN", Code::FailedPrecondition, Caller, None),
    DestructionPlanned: E::DestructionPlanned { version: KeyVersion::FIRST }
        => ("DESTRUCTION_PLANNED", Code::FailedPrecondition, Caller, None),
    VersionsExhausted: E::VersionsExhausted => ("VERSIONS_EXHAUSTED", Code::FailedPrecondition, Caller, None),
    RequestIdReused: E::RequestIdReused => ("REQUEST_ID_REUSED", Code::InvalidArgument, Caller, None),
    OperationInProgress: E::OperationInProgress => ("OPERATION_IN_PROGRESS", Code::Aborted, Caller, Some(500)),
    RevisionMismatch: E::RevisionMismatch => ("REVISION_MISMATCH", Code::Aborted, Caller, None),
    ResourceExists: E::ResourceExists { name: "tenants/t/keys/k".parse().unwrap() }
        => ("RESOURCE_EXISTS", Code::AlreadyExists, Caller, None),
    ConsumerExists: E::ConsumerExists { name: CONSUMER.parse().unwrap() }
        => ("CONSUMER_EXISTS", Code::AlreadyExists, Caller, None),
    ConsumerNotFound: E::ConsumerNotFound { name: CONSUMER.parse().unwrap() }
        => ("CONSUMER_NOT_FOUND", Code::NotFound, Caller, None),
    ConsumersRegistered: E::ConsumersRegistered { count: 1 }
        => ("CONSUMERS_REGISTERED", Code::FailedPrecondition, Caller, None),
    ConsumersFull: E::ConsumersFull => ("CONSUMERS_FULL", Code::FailedPrecondition, Caller, None),
    Alias: E::Alias(AliasError::Full) => ("ALIASES_FULL", Code::FailedPrecondition, Caller, None),
    ImportJobNotFound: E::ImportJobNotFound { name: IMPORT_JOB.parse().unwrap() }
        => ("IMPORT_JOB_NOT_FOUND", Code::NotFound, Caller, None),
    ImportJobExpired: E::ImportJobExpired { time: Timestamp::from_unix_ms(0) }
        => ("IMPORT_JOB_EXPIRED", Code::FailedPrecondition, Caller, None),
    ImportJobLost: E::ImportJobLost => ("IMPORT_JOB_LOST", Code::FailedPrecondition, Caller, None),
    ImportJobTarget: E::ImportJobTarget => ("IMPORT_JOB_TARGET", Code::FailedPrecondition, Caller, None),
    ImportJobsFull: E::ImportJobsFull => ("IMPORT_JOBS_FULL", Code::FailedPrecondition, Caller, None),
    ImportMethodRefused: E::ImportMethodRefused { method: ImportMethod::RsaOaepSha1 }
        => ("IMPORT_METHOD_REFUSED", Code::FailedPrecondition, Caller, None),
    ImportMaterialInvalid: E::ImportMaterialInvalid
        => ("IMPORT_MATERIAL_INVALID", Code::InvalidArgument, Caller, None),
    ImportKeyLength: E::ImportKeyLength => ("IMPORT_KEY_LENGTH", Code::InvalidArgument, Caller, None),
    ImportCheckMismatch: E::ImportCheckMismatch
        => ("IMPORT_CHECK_MISMATCH", Code::InvalidArgument, Caller, None),
    ImportKeyWeak: E::ImportKeyWeak => ("IMPORT_KEY_WEAK", Code::InvalidArgument, Caller, None),
    NoBackupNotAcknowledged: E::NoBackupNotAcknowledged
        => ("NO_BACKUP_NOT_ACKNOWLEDGED", Code::InvalidArgument, Caller, None),
    RecipientRefused: E::RecipientRefused => ("RECIPIENT_REFUSED", Code::InvalidArgument, Caller, None),
    BackupInProgress: E::BackupInProgress => ("BACKUP_IN_PROGRESS", Code::Aborted, Caller, None),
    BackupCancelled: E::BackupCancelled => ("BACKUP_CANCELLED", Code::Aborted, Caller, None),
    HsmSaturated: E::HsmSaturated { full: Full::Queue, retry_after: SOON }
        => ("HSM_SATURATED", Code::ResourceExhausted, Device, Some(250)),
    RequestsFull: E::RequestsFull => ("TENANT_QUOTA", Code::ResourceExhausted, Caller, Some(60_000)),
    HsmUnavailable: E::HsmUnavailable { detail: NO_DETAIL, retry_after: SOON }
        => ("HSM_UNAVAILABLE", Code::Unavailable, Device, Some(250)),
    HsmLatched: E::HsmLatched { detail: NO_DETAIL } => ("HSM_LATCHED", Code::Unavailable, Device, None),
    HsmFull: E::HsmFull { detail: NO_DETAIL } => ("HSM_FULL", Code::ResourceExhausted, Device, None),
    HsmRefused: E::HsmRefused(NO_DETAIL) => ("HSM_REFUSED", Code::FailedPrecondition, Device, None),
    QueueDeadline: E::QueueDeadline => ("QUEUE_DEADLINE", Code::DeadlineExceeded, Device, Some(500)),
    HsmDeadline: E::HsmDeadline => ("HSM_DEADLINE", Code::DeadlineExceeded, Device, Some(500)),
    MechanismUnsupported: E::MechanismUnsupported { mechanism: "CKM_X" }
        => ("MECHANISM_UNSUPPORTED", Code::Unimplemented, Device, None),
    StoreUnavailable: E::StoreUnavailable { detail: NO_DETAIL }
        => ("STORE_UNAVAILABLE", Code::Unavailable, Store, Some(500)),
    AuditUnavailable: E::AuditUnavailable { detail: NO_DETAIL }
        => ("AUDIT_UNAVAILABLE", Code::Unavailable, Audit, Some(500)),
    JournalUnavailable: E::JournalUnavailable { detail: NO_DETAIL }
        => ("JOURNAL_UNAVAILABLE", Code::Unavailable, Store, Some(500)),
    OutcomeUnknown: E::OutcomeUnknown { detail: NO_DETAIL }
        => ("OUTCOME_UNKNOWN", Code::Unavailable, Store, Some(500)),
    KeyIntegrity: E::KeyIntegrity { detail: NO_DETAIL } => ("KEY_INTEGRITY", Code::DataLoss, Store, None),
    Bug: E::Bug { reason: "odd" } => ("INTERNAL", Code::Internal, Bug, None),
}

/// Programs hold on to these: a change of one is a change of the API.
#[test]
fn every_kind_of_error_has_its_reason_code_fault_and_retry() {
    for (error, row) in table() {
        let ms = |delay: Duration| u64::try_from(delay.as_millis()).unwrap();
        let (status, item) = (from_service(&error, ID), item(&error));
        let details = status.get_error_details();
        let reason = details.error_info().unwrap().reason.clone();
        let retry = details.retry_info().map(|info| ms(info.retry_delay.unwrap()));
        assert_eq!((&*reason, status.code(), error.fault(), retry), row, "{error:?}");
        assert_eq!((&*item.reason, item.code), (row.0, i32::from(row.1)), "{error:?}");
        assert_eq!(u64::from(item.retry_delay_ms), row.3.unwrap_or(0), "{error:?}");
    }
}

/// The table of the error model: which details come with which code (peers.md 4.12).
#[test]
fn the_details_follow_from_the_code() {
    for (error, _) in table() {
        let status = from_service(&error, ID);
        let (code, details) = (status.code(), status.get_error_details());
        assert_eq!(details.error_info().unwrap().reason, error.reason());
        assert_eq!(details.request_info().unwrap().request_id, ID, "{error:?}");
        assert_eq!(details.retry_info().is_some(), error.retry().is_some(), "{error:?}");
        let violation = matches!(error, ServiceError::FieldViolation { .. });
        assert_eq!(details.bad_request().is_some(), violation, "{error:?}");
        let named = matches!(code, Code::NotFound | Code::AlreadyExists);
        assert_eq!(details.resource_info().is_some(), named, "{error:?}");
        let precondition = code == Code::FailedPrecondition;
        assert_eq!(details.precondition_failure().is_some(), precondition, "{error:?}");
        let quota = code == Code::ResourceExhausted;
        assert_eq!(details.quota_failure().is_some(), quota, "{error:?}");
    }
}

#[test]
fn what_is_wrong_with_an_alias_has_its_code_and_names_what_is_meant() {
    let name = || "tenants/t/aliases/a".parse().unwrap();
    let key = || "tenants/t/keys/k".parse().unwrap();
    let (alias, of_key) = (Some("tenants/t/aliases/a"), Some("tenants/t/keys/k"));
    for (error, reason, code, named) in [
        (AliasError::NotFound { name: name() }, "ALIAS_NOT_FOUND", Code::NotFound, alias),
        (AliasError::Exists { name: name() }, "ALIAS_EXISTS", Code::AlreadyExists, alias),
        (AliasError::Confusable { other: name() }, "ALIAS_CONFUSABLE", Code::AlreadyExists, alias),
        (AliasError::ShadowsKey { key: key() }, "ALIAS_SHADOWS_KEY", Code::AlreadyExists, of_key),
        (AliasError::Full, "ALIASES_FULL", Code::FailedPrecondition, None),
        (AliasError::Target, "ALIAS_TARGET", Code::InvalidArgument, None),
        (AliasError::Unmoved, "ALIAS_UNMOVED", Code::FailedPrecondition, None),
        (AliasError::RevisionMismatch, "REVISION_MISMATCH", Code::Aborted, None),
    ] {
        let status = from_service(&error.into(), ID);
        let details = status.get_error_details();
        assert_eq!((status.code(), details.error_info().unwrap().reason.as_str()), (code, reason));
        let resource = details.resource_info().map(|info| info.resource_name.as_str());
        assert_eq!(resource, named, "{reason}");
        assert!(details.retry_info().is_none());
    }
}

#[test]
fn every_status_carries_domain_and_reason() {
    let status = from_service(&ServiceError::CiphertextInvalid, ID);
    assert_eq!(status.code(), Code::InvalidArgument);
    let details = status.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!((info.domain.as_str(), info.reason.as_str()), (ERROR_DOMAIN, "CIPHERTEXT_INVALID"));
    assert!(details.retry_info().is_none());
}

#[test]
fn an_envelope_that_is_not_supported_names_its_number() {
    let error =
        ServiceError::EnvelopeUnsupported { detail: String::new(), part: "suite", number: 9 };
    let info = from_service(&error, ID).get_details_error_info().unwrap();
    assert_eq!(info.metadata, HashMap::from([("suite".to_owned(), "9".to_owned())]));
}

#[test]
fn retryable_errors_say_when() {
    let retry_after = Duration::from_millis(250);
    let error = ServiceError::HsmSaturated { full: Full::Queue, retry_after };
    let status = from_service(&error, ID);
    assert_eq!(status.code(), Code::ResourceExhausted);
    let delay = status.get_details_retry_info().and_then(|info| info.retry_delay);
    assert_eq!(delay, Some(retry_after));
    assert_eq!(item(&error).retry_delay_ms, 250);
}

#[test]
fn field_violations_name_the_field() {
    let status = from_service(&ServiceError::field("key", "must be a name"), ID);
    let details = status.get_error_details();
    let violation = &details.bad_request().unwrap().field_violations[0];
    assert_eq!(
        (violation.field.as_str(), violation.description.as_str()),
        ("key", "must be a name")
    );
}

#[test]
fn what_is_for_the_operator_does_not_reach_the_caller() {
    let canary = "canary /var/lib/x CKR_DEVICE_ERROR";
    let errors = [
        ServiceError::HsmUnavailable { detail: canary.into(), retry_after: Duration::ZERO },
        ServiceError::HsmLatched { detail: canary.into() },
        ServiceError::HsmFull { detail: canary.into() },
        ServiceError::HsmRefused(canary.into()),
        ServiceError::StoreUnavailable { detail: canary.into() },
        ServiceError::AuditUnavailable { detail: canary.into() },
        ServiceError::JournalUnavailable { detail: canary.into() },
        ServiceError::OutcomeUnknown { detail: canary.into() },
        ServiceError::KeyIntegrity { detail: canary.into() },
        ServiceError::Bug { reason: "canary" },
    ];
    for error in errors {
        let status = from_service(&error, ID);
        let seen = format!("{} {:?} {:?}", status.message(), status.details(), item(&error));
        assert!(!seen.contains("canary"), "{error:?}");
    }
}

#[test]
fn refusals_without_a_use_case_are_typed_too() {
    for (refused, code, reason) in [
        (Refused::Malformed, Code::InvalidArgument, "MALFORMED_REQUEST"),
        (Refused::TooLarge, Code::InvalidArgument, "MESSAGE_TOO_LARGE"),
        (Refused::MethodUnknown, Code::Unimplemented, "METHOD_UNKNOWN"),
        (Refused::EncodingUnknown, Code::Unimplemented, "ENCODING_UNKNOWN"),
        (Refused::ServiceUnknown, Code::NotFound, "SERVICE_UNKNOWN"),
        (Refused::SymbolUnknown, Code::NotFound, "SYMBOL_UNKNOWN"),
        (Refused::Cancelled, Code::Cancelled, "CANCELLED"),
        (Refused::TooLate, Code::DeadlineExceeded, "REQUEST_DEADLINE"),
        (Refused::Saturated, Code::ResourceExhausted, "SERVER_SATURATED"),
        (Refused::NoRandomness, Code::Internal, "INTERNAL"),
    ] {
        let status = from_refused(refused);
        let info = status.get_details_error_info().unwrap();
        assert_eq!((status.code(), info.reason.as_str()), (code, reason));
        assert_eq!(info.domain, ERROR_DOMAIN);
        let retried = status.get_details_retry_info().is_some();
        assert_eq!(retried, refused == Refused::Saturated);
    }
}

#[test]
fn a_bare_status_is_given_its_reason() {
    for (bare, code, reason) in [
        (Code::Internal, Code::Internal, "INTERNAL"),
        (Code::Unknown, Code::Unknown, "INTERNAL"),
        (Code::InvalidArgument, Code::InvalidArgument, "MALFORMED_REQUEST"),
        (Code::OutOfRange, Code::InvalidArgument, "MESSAGE_TOO_LARGE"),
        (Code::Unimplemented, Code::Unimplemented, "ENCODING_UNKNOWN"),
        (Code::NotFound, Code::NotFound, "SYMBOL_UNKNOWN"),
        (Code::Cancelled, Code::Cancelled, "CANCELLED"),
        (Code::DeadlineExceeded, Code::DeadlineExceeded, "REQUEST_DEADLINE"),
        (Code::Unavailable, Code::Unavailable, "INTERNAL"),
    ] {
        let status = from_bare(&Status::new(bare, "canary"));
        let info = status.get_details_error_info().unwrap();
        assert_eq!((status.code(), info.reason.as_str()), (code, reason), "{bare:?}");
        assert_eq!(info.domain, ERROR_DOMAIN);
        assert!(!format!("{status:?}").contains("canary"), "{bare:?}");
    }
}

/// Has one of tonic's own services refuse a body; returns the bare status.
async fn refused_by_tonic(body: &'static [u8], encoding: &'static str) -> Status {
    let (_, mut health) = tonic_health::server::health_reporter();
    let request = http::Request::post("/grpc.health.v1.Health/Check")
        .header("grpc-encoding", encoding)
        .body(tonic::body::Body::new(http_body_util::Full::from(body)))
        .unwrap();
    let answered = tonic::codegen::Service::call(&mut health, request).await.unwrap();
    let bare = Status::from_header_map(answered.headers()).unwrap();
    assert!(bare.details().is_empty());
    bare
}

#[tokio::test]
async fn what_tonic_cannot_decode_is_malformed() {
    let no_text: &[u8] = &[0, 0, 0, 0, 3, 0x0a, 0x01, 0xff];
    let bodies: [&[u8]; 7] = [
        &[0, 0, 0, 0, 1, 0xff], // no protobuf
        no_text,
        &[1, 0, 0, 0, 0], // compressed, but with nothing
        &[7, 0, 0, 0, 0], // no such flag
        &[0, 0, 0, 0, 9], // shorter than it says
        &[0, 0, 0],       // not even a length
        &[],              // no message
    ];
    for body in bodies {
        let bare = refused_by_tonic(body, "identity").await;
        assert_eq!(bare.code(), Code::Internal, "{body:?}");
        let status = from_bare(&bare);
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.reason, "MALFORMED_REQUEST", "{body:?}: {}", bare.message());
    }
}

#[tokio::test]
async fn what_tonic_refuses_by_length_or_encoding_has_codes_of_its_own() {
    let too_large = &[0, 0, 0x40, 0, 1]; // one more than 4 MiB
    for (body, encoding, code, reason) in [
        (&too_large[..], "identity", Code::OutOfRange, "MESSAGE_TOO_LARGE"),
        (&[0, 0, 0, 0, 0], "gzip", Code::Unimplemented, "ENCODING_UNKNOWN"),
    ] {
        let bare = refused_by_tonic(body, encoding).await;
        assert_eq!(bare.code(), code, "{}", bare.message());
        assert_eq!(from_bare(&bare).get_details_error_info().unwrap().reason, reason);
    }
}

#[test]
fn a_missing_principal_is_unauthenticated_with_its_reason() {
    let status = from_unauthenticated(Unauthenticated::Expired);
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(status.get_details_error_info().unwrap().reason, "CERT_EXPIRED");
}
