//! A token for dev mode: initialised through the module, so that no PIN stands in anybody's argv.
//!
//! It must never touch a token that it did not make: only an uninitialised slot, or a token with our label that was left
//! without a user PIN by an interrupted start, is taken.

use std::path::Path;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::session::UserType;
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::AuthPin;
use kms_core::secret::Pin;

/// Why there is no dev token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DevTokenError {
    /// The module answered with an error.
    #[error("the PKCS#11 module refused {step}: {detail}")]
    Module {
        /// What was tried.
        step: &'static str,
        /// The code, for the operator.
        detail: String,
    },
    /// The label does not fit into 32 bytes.
    #[error("the token label is longer than 32 bytes")]
    Label,
    /// The module has no slot for a new token.
    #[error("the module has no slot for a new token")]
    NoFreeSlot,
    /// There is more than one token with the label; which one is ours cannot be told.
    #[error("there is more than one token with the label `{label}`")]
    Ambiguous {
        /// The label.
        label: String,
    },
}

/// The longest token label (PKCS#11 v3.1 §3.2, CK_TOKEN_INFO).
pub const MAX_LABEL_BYTES: usize = 32;

/// Makes sure that there is a token with this label and a user PIN, and returns its serial number.
///
/// Safe to repeat: a token that is complete stays as it is, one whose user PIN was never set is completed. Must not run
/// while the module is in use by this process: it initialises and finalises it.
pub fn init_token(
    module: &Path,
    label: &str,
    so_pin: &Pin,
    user_pin: &Pin,
) -> Result<String, DevTokenError> {
    if label.len() > MAX_LABEL_BYTES {
        return Err(DevTokenError::Label);
    }
    let context = Pkcs11::new(module).map_err(failed("loading it"))?;
    context
        .initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))
        .map_err(failed("C_Initialize"))?;
    let serial = ensure(&context, label, &auth(so_pin), &auth(user_pin));
    // The error of the work tells more than that of the end.
    let ended = context.finalize().map_err(failed("C_Finalize"));
    let serial = serial?;
    ended?;
    Ok(serial)
}

fn ensure(
    context: &Pkcs11,
    label: &str,
    so_pin: &AuthPin,
    user_pin: &AuthPin,
) -> Result<String, DevTokenError> {
    let (slot, token) = if let Some(found) = find(context, label)? {
        found
    } else {
        let free = free_slot(context)?.ok_or(DevTokenError::NoFreeSlot)?;
        context.init_token(free, so_pin, label).map_err(failed("C_InitToken"))?;
        // SoftHSM moves a new token to another slot.
        find(context, label)?.ok_or(DevTokenError::NoFreeSlot)?
    };
    if !token.user_pin_initialized() {
        let session = context.open_rw_session(slot).map_err(failed("C_OpenSession"))?;
        session.login(UserType::So, Some(so_pin)).map_err(failed("C_Login"))?;
        session.init_pin(user_pin).map_err(failed("C_InitPIN"))?;
        session.logout().map_err(failed("C_Logout"))?;
    }
    Ok(token.serial_number().trim().to_owned())
}

fn find(context: &Pkcs11, label: &str) -> Result<Option<(Slot, TokenInfo)>, DevTokenError> {
    let mut found = None;
    for slot in context.get_slots_with_token().map_err(failed("C_GetSlotList"))? {
        let token = context.get_token_info(slot).map_err(failed("C_GetTokenInfo"))?;
        if token.token_initialized() && token.label().trim_end() == label {
            if found.is_some() {
                return Err(DevTokenError::Ambiguous { label: label.to_owned() });
            }
            found = Some((slot, token));
        }
    }
    Ok(found)
}

fn free_slot(context: &Pkcs11) -> Result<Option<Slot>, DevTokenError> {
    for slot in context.get_slots_with_token().map_err(failed("C_GetSlotList"))? {
        let token = context.get_token_info(slot).map_err(failed("C_GetTokenInfo"))?;
        if !token.token_initialized() {
            return Ok(Some(slot));
        }
    }
    Ok(None)
}

fn auth(pin: &Pin) -> AuthPin {
    AuthPin::new(pin.expose().into())
}

fn failed<E: std::fmt::Display>(step: &'static str) -> impl FnOnce(E) -> DevTokenError {
    move |error| DevTokenError::Module { step, detail: error.to_string() }
}
