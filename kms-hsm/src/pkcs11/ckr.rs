//! The one place that decides what a return code of PKCS#11 means for us.
//!
//! Invariant: [`classify_rv`] is a total `match` without a wildcard, so a code that cryptoki learns to name has to be
//! classified before we compile. It must never decide on an ambiguous code: those go to the canary (`canary.rs`).

use cryptoki::error::{Error, RvError};

use crate::error::{HsmError, LatchReason};

/// What a code means, whatever the call was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// The session is lost or stuck in an operation: discard it, open another, retry once.
    SessionLost,
    /// The login is lost: one re-login, by the keeper.
    LoginLost,
    /// The login is there already: success, when it was C_Login.
    LoggedIn,
    /// The PIN is refused: latch, never retry.
    PinRefused,
    /// The PIN is locked: latch, never retry.
    PinLocked,
    /// The module lost its state: C_Initialize is needed.
    ModuleLost,
    /// The device is gone or broken: breaker.
    Device,
    /// Says nothing: device fault or bad input. Only a canary can tell.
    Ambiguous,
    /// The handle names nothing, or not what we loaded: resolve it again, once.
    ObjectGone,
    /// Tag, AAD or key do not fit.
    Ciphertext,
    /// The blob is not a key wrapped under this root.
    WrappedKey,
    /// No room for another object or session.
    Full,
    /// The token refuses by policy of the object: what a negative probe wants to see.
    Refused,
    /// We called it wrongly, or the module breaks the standard.
    Bug,
}

/// What a call of the module came to, when it did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The answer is final: hand it to the caller.
    Answer(HsmError),
    /// See [`Class::SessionLost`].
    Session(String),
    /// See [`Class::LoginLost`].
    Login(String),
    /// See [`Class::ObjectGone`] and [`Class::Refused`]: what was loaded is not what is there.
    Object(String),
    /// A key's handle is of another epoch; the module was not asked.
    Stale,
    /// See [`Class::Ambiguous`].
    Ambiguous(String),
    /// See [`Class::ModuleLost`].
    Module(String),
    /// See [`Class::Device`].
    Device(String),
    /// Until an operator acts.
    Latch(LatchReason),
}

impl Failure {
    /// Makes the failure of output that no honest module gives: wrong lengths, repeated randomness.
    pub(crate) fn lie(what: &str) -> Self {
        Self::Device(format!("the module lies: {what}"))
    }

    /// Makes of the failure to connect what it is for everyone: no single job's answer, but a device that is not there.
    pub(crate) fn of_connection(self) -> Self {
        match self {
            Self::Latch(reason) => Self::Latch(reason),
            other => Self::Device(other.detail()),
        }
    }

    /// Returns the text for the operator.
    pub(crate) fn detail(&self) -> String {
        match self {
            Self::Answer(error) => error.to_string(),
            Self::Session(detail)
            | Self::Login(detail)
            | Self::Object(detail)
            | Self::Ambiguous(detail)
            | Self::Module(detail)
            | Self::Device(detail) => detail.clone(),
            Self::Stale => "the handle of the key is stale".into(),
            Self::Latch(reason) => reason.to_string(),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let detail = describe(&error);
        match classify(&error) {
            Class::SessionLost => Self::Session(detail),
            Class::LoginLost => Self::Login(detail),
            Class::ModuleLost => Self::Module(detail),
            Class::Device => Self::Device(detail),
            Class::Ambiguous => Self::Ambiguous(detail),
            Class::ObjectGone | Class::Refused => Self::Object(detail),
            Class::PinRefused => Self::Latch(LatchReason::PinRefused),
            Class::PinLocked => Self::Latch(LatchReason::PinLocked),
            Class::Ciphertext => Self::Answer(HsmError::CiphertextInvalid),
            Class::WrappedKey => Self::Answer(HsmError::KeyIntegrity { detail }),
            Class::Full => Self::Answer(HsmError::TokenFull { detail }),
            // A wrong call: the template or the module is not what we think.
            Class::Bug | Class::LoggedIn => {
                tracing::error!(detail, "the module answered what it must not");
                Self::Answer(HsmError::Bug { reason: "unexpected PKCS#11 return code" })
            }
        }
    }
}

/// Writes function and code by name, and nothing of the arguments.
pub(crate) fn describe(error: &Error) -> String {
    match error {
        Error::Pkcs11(code, function) => format!("C_{function:?}: {code:?}"),
        other => other.to_string(),
    }
}

/// Returns whether an error says that the object or its policy does not allow the call.
///
/// Only then has a negative probe shown anything: a call that the module does not have, or whose arguments it dislikes,
/// says nothing of the object.
pub(crate) fn refuses(error: &Error) -> bool {
    matches!(error, Error::Pkcs11(code, _) if classify_rv(*code) == Class::Refused
    || matches!(
        code,
        // The key is of another kind than the mechanism wants; an attribute cannot be set.
        RvError::KeyTypeInconsistent
            | RvError::WrappingKeyTypeInconsistent
            | RvError::UnwrappingKeyTypeInconsistent
            | RvError::AttributeReadOnly
    ))
}

/// Classifies an error of cryptoki.
pub(crate) fn classify(error: &Error) -> Class {
    match error {
        Error::Pkcs11(code, _) => classify_rv(*code),
        Error::LibraryLoading(_) | Error::MissingSymbol(_) => Class::Device,
        Error::NotSupported
        | Error::TryFromInt(_)
        | Error::TryFromSlice(_)
        | Error::ParseInt(_)
        | Error::Utf8(_)
        | Error::NulError(_)
        | Error::NullFunctionPointer
        | Error::InvalidValue
        | Error::PinNotSet => Class::Bug,
    }
}

/// Classifies a return code: the table of reference/faults.md 3.1.
pub(crate) const fn classify_rv(code: RvError) -> Class {
    match code {
        // OPERATION_*: an earlier call was cut off; closing the session is the cure (softhsm.md).
        RvError::SessionHandleInvalid
        | RvError::SessionClosed
        | RvError::OperationActive
        | RvError::OperationNotInitialized => Class::SessionLost,

        RvError::UserNotLoggedIn => Class::LoginLost,
        RvError::UserAlreadyLoggedIn => Class::LoggedIn,

        RvError::PinIncorrect
        | RvError::PinInvalid
        | RvError::PinLenRange
        | RvError::PinExpired => Class::PinRefused,
        RvError::PinLocked => Class::PinLocked,

        RvError::CryptokiNotInitialized => Class::ModuleLost,

        // USER_PIN_NOT_INITIALIZED: the token is being set up; no PIN was compared, so none was refused.
        RvError::DeviceError
        | RvError::UserPinNotInitialized
        | RvError::DeviceRemoved
        | RvError::TokenNotPresent
        | RvError::TokenNotRecognized
        | RvError::SlotIdInvalid
        | RvError::HostMemory
        | RvError::FunctionCanceled
        | RvError::Cancel
        | RvError::FipsSelfTestFailed
        | RvError::LibraryLoadFailed
        | RvError::MutexBad
        | RvError::MutexNotLocked
        | RvError::RandomNoRng
        | RvError::UserAnotherAlreadyLoggedIn
        | RvError::UserTooManyTypes => Class::Device,

        // SoftHSM 2.6.1 says GENERAL_ERROR for a wrong tag. Vendor codes can mean anything.
        RvError::GeneralError
        | RvError::FunctionFailed
        | RvError::VendorDefined(_)
        | RvError::UnknownErrorCode(_) => Class::Ambiguous,

        // The last four are what SoftHSM says of a handle whose object was replaced or destroyed in mid-air.
        RvError::ObjectHandleInvalid
        | RvError::KeyHandleInvalid
        | RvError::WrappingKeyHandleInvalid
        | RvError::UnwrappingKeyHandleInvalid
        | RvError::KeyTypeInconsistent
        | RvError::KeySizeRange
        | RvError::WrappingKeyTypeInconsistent
        | RvError::UnwrappingKeyTypeInconsistent => Class::ObjectGone,

        RvError::EncryptedDataInvalid | RvError::EncryptedDataLenRange => Class::Ciphertext,
        RvError::WrappedKeyInvalid | RvError::WrappedKeyLenRange => Class::WrappedKey,
        RvError::DeviceMemory | RvError::SessionCount => Class::Full,

        RvError::AttributeSensitive
        | RvError::KeyUnextractable
        | RvError::KeyNotWrappable
        | RvError::KeyFunctionNotPermitted
        | RvError::ActionProhibited
        | RvError::MechanismInvalid
        | RvError::InformationSensitive => Class::Refused,

        RvError::ArgumentsBad
        | RvError::NoEvent
        | RvError::NeedToCreateThreads
        | RvError::CantLock
        | RvError::AttributeReadOnly
        | RvError::AttributeTypeInvalid
        | RvError::AttributeValueInvalid
        | RvError::DataInvalid
        | RvError::DataLenRange
        | RvError::FunctionNotParallel
        | RvError::FunctionNotSupported
        | RvError::CurveNotSupported
        | RvError::KeyNotNeeded
        | RvError::KeyChanged
        | RvError::KeyNeeded
        | RvError::KeyIndigestible
        | RvError::MechanismParamInvalid
        | RvError::SessionParallelNotSupported
        | RvError::SessionReadOnly
        | RvError::SessionExists
        | RvError::SessionReadOnlyExists
        | RvError::SessionReadWriteSoExists
        | RvError::SignatureInvalid
        | RvError::SignatureLenRange
        | RvError::TemplateIncomplete
        | RvError::TemplateInconsistent
        | RvError::TokenWriteProtected
        | RvError::UnwrappingKeySizeRange
        | RvError::WrappingKeySizeRange
        | RvError::UserTypeInvalid
        | RvError::RandomSeedNotSupported
        | RvError::DomainParamsInvalid
        | RvError::BufferTooSmall
        | RvError::SavedStateInvalid
        | RvError::StateUnsaveable
        | RvError::CryptokiAlreadyInitialized
        | RvError::NewPinMode
        | RvError::NextOtp
        | RvError::ExceededMaxIterations
        | RvError::PinTooWeak
        | RvError::PublicKeyInvalid
        | RvError::FunctionRejected => Class::Bug,
    }
}

#[cfg(test)]
mod tests {
    use cryptoki::context::Function;

    use super::*;

    #[test]
    fn only_what_the_object_does_not_allow_is_a_refusal() {
        let error = |code| Error::Pkcs11(code, Function::WrapKey);
        for code in [
            RvError::KeyFunctionNotPermitted,
            RvError::KeyUnextractable,
            RvError::KeyNotWrappable,
            RvError::MechanismInvalid,
            RvError::AttributeSensitive,
            RvError::AttributeReadOnly,
            RvError::ActionProhibited,
            RvError::KeyTypeInconsistent,
        ] {
            assert!(refuses(&error(code)), "{code:?}");
        }
        for code in [
            RvError::FunctionNotSupported,
            RvError::ArgumentsBad,
            RvError::MechanismParamInvalid,
            RvError::BufferTooSmall,
            RvError::OperationNotInitialized,
            RvError::ObjectHandleInvalid,
            RvError::KeyHandleInvalid,
            RvError::WrappingKeyHandleInvalid,
            RvError::EncryptedDataInvalid,
            RvError::WrappedKeyInvalid,
            RvError::GeneralError,
            RvError::DeviceError,
        ] {
            assert!(!refuses(&error(code)), "{code:?}");
        }
        assert!(!refuses(&Error::NotSupported));
    }

    #[test]
    fn the_rows_of_the_fault_table_are_classified_as_written() {
        let table = [
            (RvError::SessionHandleInvalid, Class::SessionLost),
            (RvError::SessionClosed, Class::SessionLost),
            (RvError::OperationActive, Class::SessionLost),
            (RvError::UserNotLoggedIn, Class::LoginLost),
            (RvError::UserAlreadyLoggedIn, Class::LoggedIn),
            (RvError::PinIncorrect, Class::PinRefused),
            (RvError::PinLocked, Class::PinLocked),
            (RvError::UserPinNotInitialized, Class::Device),
            (RvError::DeviceError, Class::Device),
            (RvError::DeviceRemoved, Class::Device),
            (RvError::TokenNotPresent, Class::Device),
            (RvError::GeneralError, Class::Ambiguous),
            (RvError::ObjectHandleInvalid, Class::ObjectGone),
            (RvError::CryptokiNotInitialized, Class::ModuleLost),
        ];
        for (code, class) in table {
            assert_eq!(classify_rv(code), class, "{code:?}");
        }
    }

    #[test]
    fn a_refused_pin_latches_and_is_no_device_failure() {
        let refused = Error::Pkcs11(RvError::PinIncorrect, Function::Login);
        assert_eq!(Failure::from(refused), Failure::Latch(LatchReason::PinRefused));
    }

    #[test]
    fn a_detail_names_function_and_code_only() {
        let error = Error::Pkcs11(RvError::GeneralError, Function::Decrypt);
        assert_eq!(describe(&error), "C_Decrypt: GeneralError");
    }
}
