//! Opening the module, choosing the token, and the one login.

use std::path::Path;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::AuthPin;
use kms_core::secret::Pin;

use crate::doctor::DoctorError;
use crate::doctor::report::{ModuleFacts, TokenFacts};
use crate::pkcs11::TokenSelector;

/// An initialised module.
pub(super) struct Opened {
    context: Pkcs11,
}

impl Opened {
    /// Loads and initialises the module.
    pub(super) fn open(module: &Path) -> Result<Self, DoctorError> {
        let unusable = |error: Error| DoctorError::ModuleUnusable {
            module: module.display().to_string(),
            detail: code(&error),
        };
        let context = Pkcs11::new(module).map_err(unusable)?;
        let arguments = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
        context.initialize(arguments).map_err(unusable)?;
        Ok(Self { context })
    }

    /// Ends the module's work in this process.
    pub(super) fn finalize(self) {
        if let Err(error) = self.context.finalize() {
            tracing::warn!(code = code(&error), "C_Finalize failed");
        }
    }

    /// Returns what the module says of itself.
    pub(super) fn facts(&self) -> Result<ModuleFacts, DoctorError> {
        let info =
            self.context.get_library_info().map_err(|error| call_failed("C_GetInfo", &error))?;
        Ok(ModuleFacts {
            description: info.library_description().trim_end().to_owned(),
            manufacturer: info.manufacturer_id().trim_end().to_owned(),
            version: info.library_version().to_string(),
            cryptoki: info.cryptoki_version().to_string(),
        })
    }

    /// Finds the one token that fits.
    pub(super) fn select(&self, wanted: Option<&TokenSelector>) -> Result<Slot, DoctorError> {
        let slots = self.context.get_slots_with_initialized_token();
        let slots = slots.map_err(|error| call_failed("C_GetSlotList", &error))?;
        let mut present = Vec::new();
        let mut fitting = Vec::new();
        for slot in slots {
            let info = self.token_info(slot)?;
            let name = format!("`{}` serial {}", info.label().trim_end(), serial(&info));
            if fits(&info, wanted) {
                fitting.push((slot, name.clone()));
            }
            present.push(name);
        }
        match fitting.as_slice() {
            [(slot, _)] => Ok(*slot),
            [] if present.is_empty() => Err(DoctorError::TokenMissing { present: "none".into() }),
            [] => Err(DoctorError::TokenMissing { present: present.join(", ") }),
            several => {
                let names: Vec<_> = several.iter().map(|(_, name)| name.clone()).collect();
                Err(DoctorError::TokenAmbiguous { present: names.join(", ") })
            }
        }
    }

    /// Opens a session and logs in: one attempt, and none when it could be the last.
    pub(super) fn log_in(
        &self,
        slot: Slot,
        pin: &Pin,
    ) -> Result<(Session, TokenFacts), DoctorError> {
        let info = self.token_info(slot)?;
        if info.user_pin_locked() {
            return Err(DoctorError::PinLocked);
        }
        if info.user_pin_final_try() {
            return Err(DoctorError::PinFinalTry);
        }
        let session = self.session(slot)?;
        // cryptoki wipes its copy.
        let pin = AuthPin::from(pin.expose().to_owned());
        session.login(UserType::User, Some(&pin)).map_err(|error| match error {
            Error::Pkcs11(
                RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange,
                _,
            ) => DoctorError::PinRefused,
            Error::Pkcs11(RvError::PinLocked, _) => DoctorError::PinLocked,
            other => call_failed("C_Login", &other),
        })?;
        let facts = TokenFacts {
            label: info.label().trim_end().to_owned(),
            serial: serial(&info),
            manufacturer: info.manufacturer_id().trim_end().to_owned(),
            model: info.model().trim_end().to_owned(),
            firmware: info.firmware_version().to_string(),
        };
        Ok((session, facts))
    }

    /// Opens another session. It shares the login.
    pub(super) fn session(&self, slot: Slot) -> Result<Session, DoctorError> {
        let session = self.context.open_rw_session(slot);
        session.map_err(|error| call_failed("C_OpenSession", &error))
    }

    /// Returns what the token says of itself.
    pub(super) fn token_info(&self, slot: Slot) -> Result<TokenInfo, DoctorError> {
        let info = self.context.get_token_info(slot);
        info.map_err(|error| call_failed("C_GetTokenInfo", &error))
    }
}

fn fits(info: &TokenInfo, wanted: Option<&TokenSelector>) -> bool {
    match wanted {
        None => true,
        Some(TokenSelector::Serial(wanted)) => serial(info) == wanted.trim(),
        Some(TokenSelector::Label(wanted)) => info.label().trim_end() == wanted.trim_end(),
    }
}

fn serial(info: &TokenInfo) -> String {
    info.serial_number().trim().to_owned()
}

/// Makes the error of a call without which nothing can be examined.
pub(super) fn call_failed(call: &'static str, error: &Error) -> DoctorError {
    DoctorError::Call { call, code: code(error) }
}

/// Returns the code as the standard writes it, or cryptoki's own words for an error of its own.
pub(super) fn code(error: &Error) -> String {
    match error {
        Error::Pkcs11(RvError::VendorDefined(value), _) => format!("vendor code {value:#x}"),
        Error::Pkcs11(RvError::UnknownErrorCode(value), _) => format!("unknown code {value:#x}"),
        Error::Pkcs11(code, _) => {
            // `GeneralError` is cryptoki's name for CKR_GENERAL_ERROR, and so are all others.
            let mut name = String::from("CKR");
            for letter in format!("{code:?}").chars() {
                if letter.is_ascii_uppercase() {
                    name.push('_');
                }
                name.push(letter.to_ascii_uppercase());
            }
            name
        }
        other => other.to_string().replace('\n', " "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cryptoki::context::Function;

    #[test]
    fn codes_are_named_as_in_the_standard() {
        for (error, name) in [
            (RvError::GeneralError, "CKR_GENERAL_ERROR"),
            (RvError::EncryptedDataLenRange, "CKR_ENCRYPTED_DATA_LEN_RANGE"),
            (RvError::VendorDefined(0x8000_0001), "vendor code 0x80000001"),
            (RvError::UnknownErrorCode(0x7f), "unknown code 0x7f"),
        ] {
            assert_eq!(code(&Error::Pkcs11(error, Function::Decrypt)), name);
        }
    }
}
