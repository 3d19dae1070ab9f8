//! What can go wrong in the HSM layer, by condition.

use std::time::Duration;

use kms_core::fault::{Fault, Retry};

/// An error of the HSM layer. Codes of PKCS#11 stand in the operator's text only.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HsmError {
    /// Tag, AAD or key do not fit: one answer for all three.
    #[error("ciphertext, context and key do not fit together")]
    CiphertextInvalid,
    /// The queue in front of the workers is full.
    #[error("the hsm queue is full")]
    Saturated {
        /// When trying again may help.
        retry_after: Duration,
    },
    /// The deadline passed before a worker took the job: it was not done.
    #[error("the deadline passed before the hsm took the job")]
    QueueDeadline,
    /// The deadline passed while the HSM had the job: the outcome is unknown.
    #[error("the deadline passed while the hsm had the job")]
    CallDeadline,
    /// The device, its module or its login is gone for now; a prober works on it.
    #[error("the hsm is unavailable: {detail}")]
    Unavailable {
        /// For the operator.
        detail: String,
        /// When trying again may help.
        retry_after: Duration,
    },
    /// Latched until an operator acts: PIN refused, other token, root missing or changed.
    #[error("the hsm is latched: {reason}")]
    Latched {
        /// Why.
        reason: LatchReason,
    },
    /// A check value does not fit: the key behind it is not the one recorded.
    #[error("key integrity: {detail}")]
    KeyIntegrity {
        /// For the operator.
        detail: String,
    },
    /// The token object of an `HSM_RESIDENT` key is not there.
    #[error("the token object of the key is missing")]
    ResidentMissing,
    /// The key of an import job is not on the token: one attempt used it up, or it is lost.
    #[error("the key of the import job is not on the token")]
    ImportKeyMissing,
    /// What was to be imported does not open with the key of the import job.
    #[error("the sealed key does not open with the key of the import job")]
    ImportMaterialInvalid,
    /// What was to be imported opens, and is no key of 32 bytes.
    #[error("the sealed key is not 32 bytes")]
    ImportKeyLength,
    /// The check value of an import is not that of the key that was sealed.
    #[error("the check value does not fit the sealed key")]
    ImportCheckMismatch,
    /// The token lacks a mechanism that is needed.
    #[error("the token lacks {mechanism}")]
    MechanismMissing {
        /// Name of the mechanism, `CKM_...`.
        mechanism: &'static str,
    },
    /// The token has no room for another object or session, or most likely has none: see `detail`.
    #[error("the token is full: {detail}")]
    TokenFull {
        /// For the operator.
        detail: String,
    },
    /// The token refuses one job, and goes on with all others: what it would do is against its policy, or the object's.
    #[error("the token refuses it: {detail}")]
    Refused {
        /// For the operator.
        detail: String,
    },
    /// The module did what the standard forbids, or we called it wrongly.
    #[error("bug: {reason}")]
    Bug {
        /// Where it was noticed.
        reason: &'static str,
    },
}

/// Why the HSM layer refuses everything until an operator acts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LatchReason {
    /// The token refused the PIN; it is never tried twice.
    #[error("the token refused the PIN; correct the PIN and restart")]
    PinRefused,
    /// The PIN is locked.
    #[error("the user PIN is locked; the security officer must unlock it")]
    PinLocked,
    /// The token's serial number is not the pinned one.
    #[error("the token has serial `{found}`, pinned is `{pinned}`")]
    OtherToken {
        /// What the token says.
        found: String,
        /// What was pinned.
        pinned: String,
    },
    /// The module is SoftHSM, and nobody says where its files are.
    #[error(
        "the module says that it is `{module}`, which does not sync its files: set hsm.token_dir and restart"
    )]
    TokenDirUnknown {
        /// What it says it is.
        module: String,
    },
    /// A root object is not on the token.
    #[error(
        "root `{role}` of generation {generation} is not on the token: bring back the token's objects, or the database \
         that belongs to this token; a new root opens nothing"
    )]
    RootMissing {
        /// `wrap` or `mac`.
        role: &'static str,
        /// The generation.
        generation: u32,
    },
    /// A root object may be used for more than it is for, or leave the token.
    #[error("root `{role}` of generation {generation} is not sealed: {attribute}")]
    RootNotSealed {
        /// `wrap` or `mac`.
        role: &'static str,
        /// The generation.
        generation: u32,
        /// What it has, or lacks.
        attribute: String,
    },
    /// A root object is there, but its check value is another.
    #[error("root `{role}` of generation {generation} has another check value than pinned")]
    RootChanged {
        /// `wrap` or `mac`.
        role: &'static str,
        /// The generation.
        generation: u32,
    },
}

impl HsmError {
    /// Returns whose fault it is.
    pub const fn fault(&self) -> Fault {
        match self {
            Self::CiphertextInvalid
            | Self::ImportKeyMissing
            | Self::ImportMaterialInvalid
            | Self::ImportKeyLength
            | Self::ImportCheckMismatch => Fault::Caller,
            Self::Saturated { .. }
            | Self::QueueDeadline
            | Self::CallDeadline
            | Self::Unavailable { .. }
            | Self::Latched { .. }
            | Self::KeyIntegrity { .. }
            | Self::ResidentMissing
            | Self::MechanismMissing { .. }
            | Self::TokenFull { .. }
            | Self::Refused { .. } => Fault::Device,
            Self::Bug { .. } => Fault::Bug,
        }
    }

    /// Returns whether the same call may succeed later by itself.
    pub const fn retry(&self) -> Retry {
        match self {
            Self::Saturated { .. }
            | Self::QueueDeadline
            | Self::CallDeadline
            | Self::Unavailable { .. } => Retry::Later,
            Self::CiphertextInvalid
            | Self::ImportKeyMissing
            | Self::ImportMaterialInvalid
            | Self::ImportKeyLength
            | Self::ImportCheckMismatch
            | Self::Latched { .. }
            | Self::KeyIntegrity { .. }
            | Self::ResidentMissing
            | Self::MechanismMissing { .. }
            | Self::TokenFull { .. }
            | Self::Refused { .. }
            | Self::Bug { .. } => Retry::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_error_says_whose_fault_it_is_and_whether_to_try_again() {
        let text = String::new;
        let retry_after = Duration::from_secs(1);
        let reason = LatchReason::PinRefused;
        let table = [
            (HsmError::Saturated { retry_after }, Fault::Device, Retry::Later),
            (HsmError::QueueDeadline, Fault::Device, Retry::Later),
            (HsmError::CallDeadline, Fault::Device, Retry::Later),
            (HsmError::Unavailable { detail: text(), retry_after }, Fault::Device, Retry::Later),
            (HsmError::Latched { reason }, Fault::Device, Retry::Never),
            (HsmError::CiphertextInvalid, Fault::Caller, Retry::Never),
            (HsmError::ImportKeyMissing, Fault::Caller, Retry::Never),
            (HsmError::ImportMaterialInvalid, Fault::Caller, Retry::Never),
            (HsmError::ImportKeyLength, Fault::Caller, Retry::Never),
            (HsmError::ImportCheckMismatch, Fault::Caller, Retry::Never),
            (HsmError::KeyIntegrity { detail: text() }, Fault::Device, Retry::Never),
            (HsmError::ResidentMissing, Fault::Device, Retry::Never),
            (HsmError::MechanismMissing { mechanism: "CKM_X" }, Fault::Device, Retry::Never),
            (HsmError::TokenFull { detail: text() }, Fault::Device, Retry::Never),
            (HsmError::Refused { detail: text() }, Fault::Device, Retry::Never),
            (HsmError::Bug { reason: "x" }, Fault::Bug, Retry::Never),
        ];
        for (error, fault, retry) in table {
            assert_eq!((error.fault(), error.retry()), (fault, retry), "{error:?}");
        }
    }
}
