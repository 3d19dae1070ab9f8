//! The canary: tells a client's bad input from a device fault when the module's code does not.
//!
//! SoftHSM 2.6.1 answers CKR_GENERAL_ERROR for a wrong tag. If that opened the breaker, any client with permission to
//! unwrap could switch the service off by sending garbage; so the same key's check blob is decrypted on the same
//! session. Gone with SoftHSM 2.7, which answers CKR_ENCRYPTED_DATA_INVALID.

use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;

use crate::error::HsmError;
use crate::pkcs11::ckr::Failure;
use crate::pkcs11::key::KeyState;
use crate::pkcs11::shared::Shared;
use crate::pkcs11::token;

/// What was tried when the ambiguous code came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tried {
    /// C_Encrypt: there is no input that may fail.
    Encrypt,
    /// C_Decrypt: input that does not fit fails.
    Decrypt,
}

/// Settles an ambiguous failure; passes any other on.
///
/// A good canary answers for its key for `budgets.canary`, so that garbage costs the token at most one more decrypt in
/// that time.
pub(crate) fn settle(
    shared: &Shared,
    session: &Session,
    key: &KeyState,
    object: ObjectHandle,
    tried: Tried,
    failure: Failure,
) -> Failure {
    let Failure::Ambiguous(detail) = failure else { return failure };
    let now = shared.now();
    let recently = now.checked_sub(shared.config.budgets.canary);
    if !recently.is_some_and(|since| key.sang_since(since)) {
        match token::check_fits(session, object, &key.source) {
            Ok(true) => key.sang(now),
            Ok(false) | Err(Failure::Ambiguous(_)) => {
                return Failure::Device(format!("{detail}, and so does the key's check blob"));
            }
            Err(other) => return other,
        }
    }
    match tried {
        Tried::Decrypt => Failure::Answer(HsmError::CiphertextInvalid),
        Tried::Encrypt => Failure::Answer(shared.unavailable(&detail)),
    }
}
