//! What can go wrong in a use-case, by condition (peers.md 4.12). `transport/status.rs` maps it to gRPC codes.

use std::time::Duration;

use kms_core::clock::Timestamp;
use kms_core::fault::Fault;
use kms_core::id::KeyVersion;
use kms_core::import::ImportMethod;
use kms_core::name::{ConsumerName, ImportJobName, KeyName, VersionName};
use kms_core::state::VersionState;

use super::{AliasError, Full};
use crate::store::MAX_REMEMBERED_REQUESTS;

/// When trying again may help, where the layer below does not say.
pub const RETRY_AFTER: Duration = Duration::from_millis(500);

/// When old requests may have been forgotten: the reconciler looks every minute.
pub const REQUESTS_RETRY_AFTER: Duration = Duration::from_mins(1);

/// An error of the service layer. `Display` is the operator's text; callers get [`ServiceError::public_text`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// A field is outside its bounds.
    #[error("`{field}`: {description}")]
    FieldViolation {
        /// Name of the field on the wire.
        field: &'static str,
        /// What is wrong; safe to show.
        description: String,
    },
    /// The page token is older than its life.
    #[error("the page token has expired")]
    PageTokenExpired,
    /// Tag, context, key or form of the ciphertext do not fit: one answer for all.
    #[error("the ciphertext cannot be opened with this key and context")]
    CiphertextInvalid,
    /// The envelope has a format or suite that this release does not know.
    #[error("{detail}")]
    EnvelopeUnsupported {
        /// Which; safe to show.
        detail: String,
        /// What is not known: `format` or `suite`.
        part: &'static str,
        /// Its number in the envelope.
        number: u8,
    },
    /// Policy denies; or the thing is not there, and the caller may not know.
    #[error("access denied")]
    AccessDenied,
    /// No such key; said only to those who may describe keys of the tenant.
    #[error("no key `{name}`")]
    KeyNotFound {
        /// The name asked for.
        name: KeyName,
    },
    /// No such version; said only to those who may describe keys of the tenant.
    #[error("no key version `{name}`")]
    VersionNotFound {
        /// The name asked for.
        name: VersionName,
    },
    /// The state of the version does not permit this.
    #[error("the key version is {state}, which does not permit this")]
    KeyNotActive {
        /// The state in force.
        state: VersionState,
    },
    /// The state of the version does not lead there.
    #[error("a key version that is {from} cannot become {to}")]
    IllegalTransition {
        /// The state in force.
        from: VersionState,
        /// The state asked for.
        to: VersionState,
    },
    /// The version was used of late: those who used it would lose what it protects.
    #[error(
        "the key version was used last at {last}; it may be destroyed when it was not used for 30 days"
    )]
    RecentlyUsed {
        /// When.
        last: Timestamp,
    },
    /// The primary cannot go without a successor.
    #[error("the key version is the primary; rotate the key first")]
    PrimaryVersion,
    /// Consumers of the key are registered: they would lose what it protects.
    #[error(
        "the key has registered consumers, {count}; remove them when they do not need it any more"
    )]
    ConsumersRegistered {
        /// How many.
        count: u32,
    },
    /// The key has as many consumers as it may have.
    #[error("the key has 1000 consumers, and may have no more")]
    ConsumersFull,
    /// A consumer of this name exists.
    #[error("consumer `{name}` exists")]
    ConsumerExists {
        /// The name.
        name: ConsumerName,
    },
    /// No such consumer; said only to those who may describe keys of the tenant.
    #[error("no consumer `{name}`")]
    ConsumerNotFound {
        /// The name asked for.
        name: ConsumerName,
    },
    /// Something is wrong with an alias.
    #[error(transparent)]
    Alias(#[from] AliasError),
    /// No such import job: it was used, has expired, or never was. Said only to those who may describe
    /// or list import jobs of the tenant.
    #[error("no import job `{name}`: it was used, has expired, or never was; make a new one")]
    ImportJobNotFound {
        /// The name asked for.
        name: ImportJobName,
    },
    /// The import job has expired.
    #[error("the import job expired at {time}; make a new one")]
    ImportJobExpired {
        /// When.
        time: Timestamp,
    },
    /// The private key of the import job is not on the token: an attempt used it up, or it is lost.
    #[error(
        "the key of the import job was used up by an attempt that failed, or is lost; make a new job"
    )]
    ImportJobLost,
    /// The import job was made for another key than now has this name.
    #[error("the import job was made before the key; make a new one")]
    ImportJobTarget,
    /// The tenant has as many import jobs as it may have.
    #[error("the tenant has 20 import jobs, and may have no more; use them, or cancel one")]
    ImportJobsFull,
    /// The configuration does not allow this method.
    #[error(
        "{method} is not allowed here: it takes import.allow_rsa_oaep_sha1 in the server's configuration"
    )]
    ImportMethodRefused {
        /// Which.
        method: ImportMethod,
    },
    /// The sealed key does not open.
    #[error(
        "the sealed key does not open with the key of its import job; seal it again, to a new job"
    )]
    ImportMaterialInvalid,
    /// The sealed key is not 32 bytes.
    #[error("the sealed key is not 32 bytes; seal one that is, to a new job")]
    ImportKeyLength,
    /// The check value is another key's.
    #[error("the check value does not fit the sealed key; seal it again, to a new job")]
    ImportCheckMismatch,
    /// Everybody knows this key.
    #[error("the key is weak: all its bytes are alike")]
    ImportKeyWeak,
    /// The key would live in the token alone, and the caller does not say that he knows it has no backup.
    #[error(
        "an HSM_RESIDENT key has no backup: what it protects is lost with the token; set \
         acknowledge_no_backup, or take HSM_WRAPPED"
    )]
    NoBackupNotAcknowledged,
    /// The key has a staged version, and may have one.
    #[error("the key has a staged version already, {version}; activate or discard it first")]
    VersionStaged {
        /// Its number.
        version: KeyVersion,
    },
    /// The version has used up its invocations.
    #[error("the key version has used up its invocations; rotate the key")]
    KeyExhausted,
    /// The version is over its cryptoperiod, and the key is of HIGH sensitivity.
    #[error("the key version is over its cryptoperiod; rotate the key")]
    CryptoperiodExceeded,
    /// The key is disabled.
    #[error("the key is disabled; enable it to use it")]
    KeyDisabled,
    /// The key is enabled: there is nothing to enable.
    #[error("the key is enabled already")]
    KeyEnabled,
    /// The key is enabled, and is to be destroyed.
    #[error("the key is enabled; disable it before its destruction is scheduled")]
    KeyNotDisabled,
    /// The destruction of the key is not planned: there is nothing to cancel.
    #[error("the destruction of the key is not scheduled")]
    KeyNotScheduled,
    /// The destruction of the whole key is planned.
    #[error("the destruction of the key is scheduled; cancel that first")]
    KeyDestroyScheduled,
    /// The whole key is destroyed, or its versions are being destroyed.
    #[error("the key is destroyed, or its destruction has begun; that cannot be undone")]
    KeyDestroyed,
    /// A backup would be encrypted to a key of this server, or to what is no recipient of age.
    #[error(
        "a backup is encrypted to an X25519 recipient of age (age1...), never to a key of this server: it must open when the server \
         is gone"
    )]
    RecipientRefused,
    /// Another backup is being taken.
    #[error("another backup is being taken")]
    BackupInProgress,
    /// Whoever asked for a backup does not take it any more, or too slowly.
    #[error("the backup was not taken in time")]
    BackupCancelled,
    /// The material of the version may be destroyed already.
    #[error("the destruction of the key version has begun, and may have happened already")]
    DestructionBegun,
    /// The sensitivity of a HIGH key was to be lowered while a destruction waits for those who still want a version.
    #[error(
        "the destruction of version {version} is planned: lowering the sensitivity would end the wait for those who still \
         want it; cancel it first"
    )]
    DestructionPlanned {
        /// Which.
        version: KeyVersion,
    },
    /// A gap in the state journal was accepted, and the key was not rotated since: the version may be COMPROMISED, or used up.
    #[error(
        "protection is disabled until the key is rotated: a gap in the state journal was accepted"
    )]
    ProtectDisabled,
    /// The key has used up its version numbers.
    #[error("the key has used up its version numbers")]
    VersionsExhausted,
    /// The request id was used for another request.
    #[error("the request id was used for another request")]
    RequestIdReused,
    /// The same request is being worked on.
    #[error("the same request is in progress")]
    OperationInProgress,
    /// The key was changed since the revision that the change is based on.
    #[error("the key was changed; read it again")]
    RevisionMismatch,
    /// A key of this name exists.
    #[error("key `{name}` exists")]
    ResourceExists {
        /// The name.
        name: KeyName,
    },
    /// More work than may wait.
    #[error("{full}")]
    HsmSaturated {
        /// What is full.
        full: Full,
        /// When trying again may help.
        retry_after: Duration,
    },
    /// The tenant has made as many changes as are remembered for repeats. Nothing was done.
    #[error("the tenant has made {MAX_REMEMBERED_REQUESTS} changes within 24 hours")]
    RequestsFull,
    /// The HSM is gone for now.
    #[error("the hsm is unavailable: {detail}")]
    HsmUnavailable {
        /// For the operator.
        detail: String,
        /// When trying again may help.
        retry_after: Duration,
    },
    /// The HSM is latched until an operator acts.
    #[error("the hsm is latched: {detail}")]
    HsmLatched {
        /// For the operator.
        detail: String,
    },
    /// The token has no room.
    #[error("the token is full: {detail}")]
    HsmFull {
        /// For the operator.
        detail: String,
    },
    /// The token refuses this job alone; the detail is for the operator.
    #[error("the token refuses it: {0}")]
    HsmRefused(String),
    /// The deadline passed before the HSM took the job: nothing was done.
    #[error("the deadline passed before the hsm took the job")]
    QueueDeadline,
    /// The deadline passed while the HSM had the job: the outcome is unknown.
    #[error("the deadline passed while the hsm had the job")]
    HsmDeadline,
    /// The token lacks a mechanism.
    #[error("the token lacks {mechanism}")]
    MechanismUnsupported {
        /// Name of the mechanism.
        mechanism: &'static str,
    },
    /// The store cannot be read or written, or is saturated. Nothing was changed.
    #[error("the store is unavailable: {detail}")]
    StoreUnavailable {
        /// For the operator.
        detail: String,
    },
    /// The audit log cannot be written, so nothing may happen.
    #[error("the audit log is unavailable: {detail}")]
    AuditUnavailable {
        /// For the operator.
        detail: String,
    },
    /// The state journal cannot be written, so what it must tell of may not happen.
    #[error("the state journal is unavailable: {detail}")]
    JournalUnavailable {
        /// For the operator.
        detail: String,
    },
    /// The change may have happened: its commit is in doubt, or its outcome is not in the log yet. A repeat with the same
    /// request id finds out, and does it when it was not done.
    #[error("the outcome is unknown: {detail}")]
    OutcomeUnknown {
        /// For the operator.
        detail: String,
    },
    /// A row or a key is not the one recorded. Pages operators.
    #[error("key integrity: {detail}")]
    KeyIntegrity {
        /// For the operator.
        detail: String,
    },
    /// A defect of ours.
    #[error("bug: {reason}")]
    Bug {
        /// Where it was noticed.
        reason: &'static str,
    },
}

impl ServiceError {
    /// Returns the reason for programs (`google.rpc.ErrorInfo.reason`) and audit records.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::FieldViolation { .. } => "FIELD_VIOLATION",
            Self::PageTokenExpired => "PAGE_TOKEN_EXPIRED",
            Self::CiphertextInvalid => "CIPHERTEXT_INVALID",
            Self::EnvelopeUnsupported { .. } => "ENVELOPE_UNSUPPORTED",
            Self::AccessDenied => "ACCESS_DENIED",
            Self::KeyNotFound { .. } => "KEY_NOT_FOUND",
            Self::VersionNotFound { .. } => "VERSION_NOT_FOUND",
            Self::KeyNotActive { .. } => "KEY_NOT_ACTIVE",
            Self::IllegalTransition { .. } => "ILLEGAL_TRANSITION",
            Self::RecentlyUsed { .. } => "RECENTLY_USED",
            Self::PrimaryVersion => "PRIMARY_VERSION",
            Self::ConsumersRegistered { .. } => "CONSUMERS_REGISTERED",
            Self::ConsumersFull => "CONSUMERS_FULL",
            Self::ConsumerExists { .. } => "CONSUMER_EXISTS",
            Self::ConsumerNotFound { .. } => "CONSUMER_NOT_FOUND",
            Self::Alias(error) => error.reason(),
            Self::ImportJobNotFound { .. } => "IMPORT_JOB_NOT_FOUND",
            Self::ImportJobExpired { .. } => "IMPORT_JOB_EXPIRED",
            Self::ImportJobLost => "IMPORT_JOB_LOST",
            Self::ImportJobTarget => "IMPORT_JOB_TARGET",
            Self::ImportJobsFull => "IMPORT_JOBS_FULL",
            Self::ImportMethodRefused { .. } => "IMPORT_METHOD_REFUSED",
            Self::ImportMaterialInvalid => "IMPORT_MATERIAL_INVALID",
            Self::ImportKeyLength => "IMPORT_KEY_LENGTH",
            Self::ImportCheckMismatch => "IMPORT_CHECK_MISMATCH",
            Self::ImportKeyWeak => "IMPORT_KEY_WEAK",
            Self::NoBackupNotAcknowledged => "NO_BACKUP_NOT_ACKNOWLEDGED",
            Self::RecipientRefused => "RECIPIENT_REFUSED",
            Self::BackupInProgress => "BACKUP_IN_PROGRESS",
            Self::BackupCancelled => "BACKUP_CANCELLED",
            Self::VersionStaged { .. } => "VERSION_STAGED",
            Self::KeyExhausted => "KEY_EXHAUSTED",
            Self::CryptoperiodExceeded => "CRYPTOPERIOD_EXCEEDED",
            Self::ProtectDisabled => "PROTECT_DISABLED",
            Self::KeyDisabled => "KEY_DISABLED",
            Self::KeyEnabled => "KEY_ENABLED",
            Self::KeyNotDisabled => "KEY_NOT_DISABLED",
            Self::KeyNotScheduled => "KEY_NOT_SCHEDULED",
            Self::KeyDestroyScheduled => "KEY_DESTROY_SCHEDULED",
            Self::KeyDestroyed => "KEY_DESTROYED",
            Self::DestructionBegun => "DESTRUCTION_BEGUN",
            Self::DestructionPlanned { .. } => "DESTRUCTION_PLANNED",
            Self::VersionsExhausted => "VERSIONS_EXHAUSTED",
            Self::RequestIdReused => "REQUEST_ID_REUSED",
            Self::OperationInProgress => "OPERATION_IN_PROGRESS",
            Self::RevisionMismatch => "REVISION_MISMATCH",
            Self::ResourceExists { .. } => "RESOURCE_EXISTS",
            Self::HsmSaturated { .. } => "HSM_SATURATED",
            Self::RequestsFull => "TENANT_QUOTA",
            Self::HsmUnavailable { .. } => "HSM_UNAVAILABLE",
            Self::HsmLatched { .. } => "HSM_LATCHED",
            Self::HsmFull { .. } => "HSM_FULL",
            Self::HsmRefused { .. } => "HSM_REFUSED",
            Self::QueueDeadline => "QUEUE_DEADLINE",
            Self::HsmDeadline => "HSM_DEADLINE",
            Self::MechanismUnsupported { .. } => "MECHANISM_UNSUPPORTED",
            Self::StoreUnavailable { .. } => "STORE_UNAVAILABLE",
            Self::AuditUnavailable { .. } => "AUDIT_UNAVAILABLE",
            Self::JournalUnavailable { .. } => "JOURNAL_UNAVAILABLE",
            Self::OutcomeUnknown { .. } => "OUTCOME_UNKNOWN",
            Self::KeyIntegrity { .. } => "KEY_INTEGRITY",
            Self::Bug { .. } => "INTERNAL",
        }
    }

    /// Returns whose fault it is.
    pub const fn fault(&self) -> Fault {
        match self {
            Self::FieldViolation { .. }
            | Self::PageTokenExpired
            | Self::CiphertextInvalid
            | Self::EnvelopeUnsupported { .. }
            | Self::KeyNotFound { .. }
            | Self::VersionNotFound { .. }
            | Self::KeyNotActive { .. }
            | Self::IllegalTransition { .. }
            | Self::RecentlyUsed { .. }
            | Self::PrimaryVersion
            | Self::ConsumersRegistered { .. }
            | Self::ConsumersFull
            | Self::ConsumerExists { .. }
            | Self::ConsumerNotFound { .. }
            | Self::Alias(_)
            | Self::ImportJobNotFound { .. }
            | Self::ImportJobExpired { .. }
            | Self::ImportJobLost
            | Self::ImportJobTarget
            | Self::ImportJobsFull
            | Self::ImportMethodRefused { .. }
            | Self::ImportMaterialInvalid
            | Self::ImportKeyLength
            | Self::ImportCheckMismatch
            | Self::ImportKeyWeak
            | Self::NoBackupNotAcknowledged
            | Self::RecipientRefused
            | Self::BackupInProgress
            | Self::BackupCancelled
            | Self::VersionStaged { .. }
            | Self::KeyExhausted
            | Self::CryptoperiodExceeded
            | Self::ProtectDisabled
            | Self::KeyDisabled
            | Self::KeyEnabled
            | Self::KeyNotDisabled
            | Self::KeyNotScheduled
            | Self::KeyDestroyScheduled
            | Self::KeyDestroyed
            | Self::DestructionBegun
            | Self::DestructionPlanned { .. }
            | Self::VersionsExhausted
            | Self::RequestIdReused
            | Self::OperationInProgress
            | Self::RevisionMismatch
            | Self::RequestsFull
            | Self::ResourceExists { .. } => Fault::Caller,
            Self::AccessDenied => Fault::Policy,
            Self::HsmSaturated { .. }
            | Self::HsmUnavailable { .. }
            | Self::HsmLatched { .. }
            | Self::HsmFull { .. }
            | Self::HsmRefused { .. }
            | Self::QueueDeadline
            | Self::HsmDeadline
            | Self::MechanismUnsupported { .. } => Fault::Device,
            Self::StoreUnavailable { .. }
            | Self::JournalUnavailable { .. }
            | Self::OutcomeUnknown { .. }
            | Self::KeyIntegrity { .. } => Fault::Store,
            Self::AuditUnavailable { .. } => Fault::Audit,
            Self::Bug { .. } => Fault::Bug,
        }
    }

    /// Returns whether the call was turned away without any effect, for a reason that callers can bring about at will.
    /// Floods of such calls are folded in the audit log.
    pub const fn is_refusal(&self) -> bool {
        match self.fault() {
            Fault::Caller | Fault::Policy => true,
            Fault::Device => matches!(self, Self::HsmSaturated { .. } | Self::QueueDeadline),
            Fault::Store | Fault::Audit | Fault::Bug => false,
        }
    }

    /// Returns when the same request may succeed by itself; `None` when trying again does not help.
    pub const fn retry(&self) -> Option<Duration> {
        match self {
            Self::HsmSaturated { retry_after, .. } | Self::HsmUnavailable { retry_after, .. } => {
                Some(*retry_after)
            }
            Self::RequestsFull => Some(REQUESTS_RETRY_AFTER),
            Self::OperationInProgress
            | Self::QueueDeadline
            | Self::HsmDeadline
            | Self::StoreUnavailable { .. }
            | Self::AuditUnavailable { .. }
            | Self::JournalUnavailable { .. }
            | Self::OutcomeUnknown { .. } => Some(RETRY_AFTER),
            Self::FieldViolation { .. }
            | Self::PageTokenExpired
            | Self::CiphertextInvalid
            | Self::EnvelopeUnsupported { .. }
            | Self::AccessDenied
            | Self::KeyNotFound { .. }
            | Self::VersionNotFound { .. }
            | Self::KeyNotActive { .. }
            | Self::IllegalTransition { .. }
            | Self::RecentlyUsed { .. }
            | Self::PrimaryVersion
            | Self::ConsumersRegistered { .. }
            | Self::ConsumersFull
            | Self::ConsumerExists { .. }
            | Self::ConsumerNotFound { .. }
            | Self::Alias(_)
            | Self::ImportJobNotFound { .. }
            | Self::ImportJobExpired { .. }
            | Self::ImportJobLost
            | Self::ImportJobTarget
            | Self::ImportJobsFull
            | Self::ImportMethodRefused { .. }
            | Self::ImportMaterialInvalid
            | Self::ImportKeyLength
            | Self::ImportCheckMismatch
            | Self::ImportKeyWeak
            | Self::NoBackupNotAcknowledged
            | Self::RecipientRefused
            | Self::BackupInProgress
            | Self::BackupCancelled
            | Self::VersionStaged { .. }
            | Self::KeyExhausted
            | Self::CryptoperiodExceeded
            | Self::ProtectDisabled
            | Self::KeyDisabled
            | Self::KeyEnabled
            | Self::KeyNotDisabled
            | Self::KeyNotScheduled
            | Self::KeyDestroyScheduled
            | Self::KeyDestroyed
            | Self::DestructionBegun
            | Self::DestructionPlanned { .. }
            | Self::VersionsExhausted
            | Self::RequestIdReused
            | Self::RevisionMismatch
            | Self::ResourceExists { .. }
            | Self::HsmLatched { .. }
            | Self::HsmFull { .. }
            | Self::HsmRefused { .. }
            | Self::MechanismUnsupported { .. }
            | Self::KeyIntegrity { .. }
            | Self::Bug { .. } => None,
        }
    }

    /// Makes a [`ServiceError::FieldViolation`].
    pub fn field(field: &'static str, description: impl Into<String>) -> Self {
        Self::FieldViolation { field, description: description.into() }
    }
}
