//! What can go wrong in the keyring, by condition.

use kms_core::fault::{Fault, Retry};
use kms_core::name::{AliasName, KeyName, VersionName};
use kms_core::state::VersionState;
use kms_hsm::HsmError;

use crate::audit::AuditError;
use crate::journal::JournalError;
use crate::store::StoreError;

/// An error of the keyring.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    /// No such key.
    #[error("no key `{0}`")]
    KeyNotFound(KeyName),
    /// No such version.
    #[error("no key version `{0}`")]
    VersionNotFound(VersionName),
    /// No such alias.
    #[error("no alias `{0}`")]
    AliasNotFound(AliasName),
    /// The key is DISABLED.
    #[error("the key is disabled")]
    KeyDisabled,
    /// The destruction of the whole key is planned.
    #[error("the destruction of the key is scheduled")]
    KeyDestroyScheduled,
    /// The key is DESTROYED.
    #[error("the key is destroyed")]
    KeyDestroyed,
    /// The state of the version does not permit the use.
    #[error("the key version is {0}")]
    NotPermittedByState(VersionState),
    /// The version has used up its invocations.
    #[error("the key version has used up its invocations")]
    Exhausted,
    /// The version is over its cryptoperiod, and the key is of HIGH sensitivity.
    #[error("the key version is over its cryptoperiod; rotate the key")]
    CryptoperiodExceeded,
    /// The version was made before a gap in the state journal was accepted.
    #[error(
        "protection is disabled until the key is rotated: a gap in the state journal was accepted"
    )]
    ProtectDisabled,
    /// The envelope is another key's, another version's, or was changed.
    #[error("ciphertext, context and key do not fit together")]
    CiphertextInvalid,
    /// A row or a key is not the one recorded.
    #[error("key integrity: {detail}")]
    Integrity {
        /// For the operator.
        detail: String,
    },
    /// The HSM.
    #[error(transparent)]
    Hsm(#[from] HsmError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The state journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A defect of ours.
    #[error("bug: {reason}")]
    Bug {
        /// Where it was noticed.
        reason: &'static str,
    },
}

impl KeyringError {
    /// Returns whose fault it is.
    pub const fn fault(&self) -> Fault {
        match self {
            Self::KeyNotFound(_)
            | Self::VersionNotFound(_)
            | Self::AliasNotFound(_)
            | Self::KeyDisabled
            | Self::KeyDestroyScheduled
            | Self::KeyDestroyed
            | Self::NotPermittedByState(_)
            | Self::Exhausted
            | Self::CryptoperiodExceeded
            | Self::ProtectDisabled
            | Self::CiphertextInvalid => Fault::Caller,
            Self::Integrity { .. } => Fault::Store,
            Self::Hsm(error) => error.fault(),
            Self::Store(error) => error.fault(),
            Self::Audit(error) => error.fault(),
            Self::Journal(error) => error.fault(),
            Self::Bug { .. } => Fault::Bug,
        }
    }

    /// Returns whether the same call may succeed later by itself.
    pub const fn retry(&self) -> Retry {
        match self {
            Self::Hsm(error) => error.retry(),
            Self::Store(error) => error.retry(),
            Self::Audit(error) => error.retry(),
            Self::Journal(error) => error.retry(),
            Self::KeyNotFound(_)
            | Self::VersionNotFound(_)
            | Self::AliasNotFound(_)
            | Self::KeyDisabled
            | Self::KeyDestroyScheduled
            | Self::KeyDestroyed
            | Self::NotPermittedByState(_)
            | Self::Exhausted
            | Self::CryptoperiodExceeded
            | Self::ProtectDisabled
            | Self::CiphertextInvalid
            | Self::Integrity { .. }
            | Self::Bug { .. } => Retry::Never,
        }
    }
}
