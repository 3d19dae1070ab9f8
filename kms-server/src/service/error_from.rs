//! What an error of a layer below means to a caller: one total map a layer.

use kms_hsm::HsmError;

use super::{AliasError, Full, ServiceError};
use crate::audit::AuditError;
use crate::journal::JournalError;
use crate::keyring::KeyringError;
use crate::store::StoreError;

impl From<HsmError> for ServiceError {
    fn from(error: HsmError) -> Self {
        match error {
            HsmError::CiphertextInvalid => Self::CiphertextInvalid,
            HsmError::Saturated { retry_after } => {
                Self::HsmSaturated { full: Full::Queue, retry_after }
            }
            HsmError::QueueDeadline => Self::QueueDeadline,
            HsmError::CallDeadline => Self::HsmDeadline,
            HsmError::Unavailable { detail, retry_after } => {
                Self::HsmUnavailable { detail, retry_after }
            }
            HsmError::Latched { reason } => Self::HsmLatched { detail: reason.to_string() },
            HsmError::KeyIntegrity { detail } => Self::KeyIntegrity { detail },
            HsmError::ResidentMissing => {
                Self::KeyIntegrity { detail: "the token object of the key is missing".into() }
            }
            HsmError::ImportKeyMissing => Self::ImportJobLost,
            HsmError::ImportMaterialInvalid => Self::ImportMaterialInvalid,
            HsmError::ImportKeyLength => Self::ImportKeyLength,
            HsmError::ImportCheckMismatch => Self::ImportCheckMismatch,
            HsmError::MechanismMissing { mechanism } => Self::MechanismUnsupported { mechanism },
            HsmError::TokenFull { detail } => Self::HsmFull { detail },
            HsmError::Refused { detail } => Self::HsmRefused(detail),
            HsmError::Bug { reason } => Self::Bug { reason },
            // `HsmError` is non-exhaustive: what we do not know is fatal and opaque.
            _ => Self::Bug { reason: "an hsm error that the service does not know" },
        }
    }
}

impl From<StoreError> for ServiceError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::RevisionMismatch => Self::RevisionMismatch,
            StoreError::NameTaken => Self::Bug { reason: "name taken outside of creation" },
            StoreError::RequestIdTaken => Self::OperationInProgress,
            StoreError::RequestsFull => Self::RequestsFull,
            StoreError::NotFound => Self::KeyIntegrity { detail: "a row has vanished".into() },
            StoreError::Damaged { detail } => Self::KeyIntegrity { detail },
            StoreError::Unwritable { detail }
            | StoreError::Unavailable { detail }
            | StoreError::Schema { detail } => Self::StoreUnavailable { detail },
            StoreError::Saturated => {
                Self::StoreUnavailable { detail: "the store queue is full".into() }
            }
        }
    }
}

impl From<AuditError> for ServiceError {
    fn from(error: AuditError) -> Self {
        Self::AuditUnavailable { detail: error.to_string() }
    }
}

impl From<JournalError> for ServiceError {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::Hsm(error) => error.into(),
            other @ (JournalError::Unwritable { .. }
            | JournalError::Saturated
            | JournalError::Closed) => Self::JournalUnavailable { detail: other.to_string() },
        }
    }
}

impl From<KeyringError> for ServiceError {
    fn from(error: KeyringError) -> Self {
        match error {
            KeyringError::KeyNotFound(name) => Self::KeyNotFound { name },
            KeyringError::VersionNotFound(name) => Self::VersionNotFound { name },
            KeyringError::AliasNotFound(name) => Self::Alias(AliasError::NotFound { name }),
            KeyringError::NotPermittedByState(state) => Self::KeyNotActive { state },
            KeyringError::Exhausted => Self::KeyExhausted,
            KeyringError::KeyDisabled => Self::KeyDisabled,
            KeyringError::KeyDestroyScheduled => Self::KeyDestroyScheduled,
            KeyringError::KeyDestroyed => Self::KeyDestroyed,
            KeyringError::CryptoperiodExceeded => Self::CryptoperiodExceeded,
            KeyringError::CiphertextInvalid => Self::CiphertextInvalid,
            KeyringError::Integrity { detail } => Self::KeyIntegrity { detail },
            KeyringError::Hsm(error) => error.into(),
            KeyringError::Store(error) => error.into(),
            KeyringError::Audit(error) => error.into(),
            KeyringError::Journal(error) => error.into(),
            KeyringError::ProtectDisabled => Self::ProtectDisabled,
            KeyringError::Bug { reason } => Self::Bug { reason },
        }
    }
}
