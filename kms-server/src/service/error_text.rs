//! What callers read of an error.

use super::ServiceError;

impl ServiceError {
    /// Returns the text for the caller; where the fault is ours or a device's, it is opaque.
    pub fn public_text(&self) -> String {
        match self {
            Self::HsmUnavailable { .. } | Self::HsmLatched { .. } | Self::HsmFull { .. } => {
                "the hsm is unavailable".into()
            }
            Self::HsmRefused { .. } => "the hsm refuses this operation".into(),
            Self::StoreUnavailable { .. } => "the store is unavailable".into(),
            Self::AuditUnavailable { .. } => "the audit log is unavailable".into(),
            Self::JournalUnavailable { .. } => "the state journal is unavailable".into(),
            Self::OutcomeUnknown { .. } => {
                "the change may have happened; repeat it with the same request_id".into()
            }
            Self::KeyIntegrity { .. } => "the key failed its integrity check".into(),
            Self::Bug { .. } => "internal error".into(),
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
            | Self::OperationInProgress
            | Self::RevisionMismatch
            | Self::ResourceExists { .. }
            | Self::HsmSaturated { .. }
            | Self::RequestsFull
            | Self::QueueDeadline
            | Self::HsmDeadline
            | Self::MechanismUnsupported { .. } => self.to_string(),
        }
    }
}
