//! Negative probes: what a new object must not allow is tried, and must be refused.
//!
//! A probe shows something only when the call would go through without the attribute that forbids it: so what is wrapped
//! may be wrapped, what is decrypted was made under that very key, and a refusal is one by the object or its policy.

use cryptoki::error::Error;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, ObjectHandle};
use cryptoki::session::Session;
use kms_core::domain;
use kms_core::key::CkaId;

use super::Keeper;
use crate::error::HsmError;
use crate::pkcs11::ckr::{Class, Failure, classify, refuses};
use crate::pkcs11::gate::Root;
use crate::pkcs11::mechanism::{KWP, WRAPPED_KEY_BYTES, gcm};
use crate::pkcs11::template::{self, Role};

/// Two AES blocks: input for modes that take whole blocks only.
const BLOCKS: [u8; 32] = [0x5a; 32];

impl Keeper {
    /// Reads an object back and compares it with what was asked for; a token object has an id.
    pub(super) fn read_back(
        &self,
        object: ObjectHandle,
        role: Role,
        id: Option<CkaId>,
    ) -> Result<(), Failure> {
        self.reads_back_as(object, template::expected(role, id))
    }

    /// Reads an object back and compares it with what it must be.
    pub(super) fn reads_back_as(
        &self,
        object: ObjectHandle,
        (types, expected): (Vec<AttributeType>, Vec<Attribute>),
    ) -> Result<(), Failure> {
        let found = self.session()?.get_attributes(object, &types)?;
        for attribute in expected {
            if !found.contains(&attribute) {
                let detail = format!("the token made the object without {attribute:?}");
                return Err(Failure::Answer(HsmError::KeyIntegrity { detail }));
            }
        }
        Ok(())
    }

    /// Tries what a root set must refuse. `wrapped` was wrapped under root `wrap`.
    pub(super) fn probe_root(&self, root: Root, wrapped: &[u8]) -> Result<(), Failure> {
        let session = self.session()?;
        refused("C_WrapKey of root wrap", session.wrap_key(&KWP, root.wrap, root.wrap))?;
        refused("C_WrapKey of root mac", session.wrap_key(&KWP, root.wrap, root.mac))?;
        // The main attack: what comes out of C_WrapKey goes into C_Decrypt, and is a key in the clear.
        decryption_is_refused(session, "root wrap", root.wrap, (&KWP, wrapped))?;
        decryption_is_refused(session, "root wrap", root.wrap, (&Mechanism::AesEcb, &BLOCKS))?;
        decryption_is_refused(session, "root mac", root.mac, (&Mechanism::AesEcb, &BLOCKS))?;
        for (what, key) in [("root wrap", root.wrap), ("root mac", root.mac)] {
            gcm_is_refused(session, what, key)?;
            self.value_is_secret(key)?;
        }
        let mac = session.sign(&Mechanism::Sha256Hmac, root.wrap, b"probe");
        refused("C_Sign with root wrap", mac)?;
        // CKM_AES_CBC wraps without authentication, CKM_AES_KEY_WRAP without the length.
        for mechanism in [Mechanism::AesCbc([0; 16]), Mechanism::AesKeyWrap] {
            self.wrapping_is_refused("root wrap", root.wrap, &mechanism)?;
        }
        self.wrapping_is_refused("root mac", root.mac, &KWP)?;
        unwrapping_is_refused(session, "root mac", root.mac, wrapped)
    }

    /// Tries what a key must refuse.
    pub(super) fn probe_key(&self, root: Root, key: ObjectHandle) -> Result<(), Failure> {
        let session = self.session()?;
        self.value_is_secret(key)?;
        refused("C_WrapKey of a key", session.wrap_key(&KWP, root.wrap, key))?;
        self.wrapping_is_refused("a key", key, &KWP)?;
        unwrapping_is_refused(session, "a key", key, &[0x5a; WRAPPED_KEY_BYTES])?;
        let ecb = session.encrypt(&Mechanism::AesEcb, key, &BLOCKS);
        refused("CKM_AES_ECB with a key", ecb)?;
        decryption_is_refused(session, "a key", key, (&Mechanism::AesEcb, &BLOCKS))?;
        refused("C_Sign with a key", session.sign(&Mechanism::Sha256Hmac, key, b"probe"))
    }

    /// Wraps an object that may be wrapped, whose bytes are public.
    fn wrapping_is_refused(
        &self,
        what: &str,
        by: ObjectHandle,
        mechanism: &Mechanism<'_>,
    ) -> Result<(), Failure> {
        let session = self.session()?;
        let value = template::public_value(domain::ROOT_WRAP_CHECK_PATTERN);
        let value = session.create_object(&value)?;
        let wrapped = session.wrap_key(mechanism, by, value);
        session.destroy_object(value)?;
        refused(&format!("C_WrapKey with {what} and {:?}", mechanism.mechanism_type()), wrapped)
    }

    fn value_is_secret(&self, object: ObjectHandle) -> Result<(), Failure> {
        // cryptoki leaves out what the token refuses to show.
        match self.session()?.get_attributes(object, &[AttributeType::Value]) {
            Ok(found)
                if found.iter().any(|a| matches!(a, Attribute::Value(v) if !v.is_empty())) =>
            {
                Err(permitted("C_GetAttributeValue of CKA_VALUE"))
            }
            Ok(_) => Ok(()),
            Err(error) => refused::<()>("C_GetAttributeValue of CKA_VALUE", Err(error)),
        }
    }
}

fn gcm_is_refused(session: &Session, what: &str, key: ObjectHandle) -> Result<(), Failure> {
    let mut iv = [1; 12];
    let encrypted = session.encrypt(&gcm(&mut iv, b"probe")?, key, b"probe");
    refused(&format!("C_Encrypt with {what}"), encrypted)?;
    let mut iv = [1; 12];
    decryption_is_refused(session, what, key, (&gcm(&mut iv, b"probe")?, &BLOCKS))
}

pub(crate) fn decryption_is_refused(
    session: &Session,
    what: &str,
    key: ObjectHandle,
    (mechanism, input): (&Mechanism<'_>, &[u8]),
) -> Result<(), Failure> {
    let what = format!("C_Decrypt with {what} and {:?}", mechanism.mechanism_type());
    input_was_not_looked_at(&what, session.decrypt(mechanism, key, input).map(drop))
}

fn unwrapping_is_refused(
    session: &Session,
    what: &str,
    by: ObjectHandle,
    wrapped: &[u8],
) -> Result<(), Failure> {
    let unwrapped = session.unwrap_key(&KWP, by, wrapped, &template::unwrapped());
    if let Ok(object) = &unwrapped {
        session.destroy_object(*object)?;
    }
    input_was_not_looked_at(&format!("C_UnwrapKey with {what}"), unwrapped.map(drop))
}

/// Wants a refusal of the call, not of its input: whoever says that the input does not fit has tried it.
fn input_was_not_looked_at(what: &str, result: Result<(), Error>) -> Result<(), Failure> {
    match &result {
        Err(error)
            if matches!(
                classify(error),
                Class::Ciphertext | Class::WrappedKey | Class::Ambiguous
            ) =>
        {
            Err(permitted(what))
        }
        _ => refused(what, result),
    }
}

/// Wants a refusal by the object; passes on what says nothing about permission.
pub(crate) fn refused<T>(what: &str, result: Result<T, Error>) -> Result<(), Failure> {
    match result {
        Ok(_) => Err(permitted(what)),
        Err(error) if refuses(&error) => Ok(()),
        Err(error) => match Failure::from(error) {
            // It is not the caller's fault either: what cannot be shown to be refused is not acknowledged.
            Failure::Answer(_) | Failure::Object(_) => {
                let detail = format!("the token does not say whether it permits {what}");
                tracing::error!(detail, "a negative probe showed nothing");
                Err(Failure::Answer(HsmError::KeyIntegrity { detail }))
            }
            failure => Err(failure),
        },
    }
}

fn permitted(what: &str) -> Failure {
    let detail = format!("the token permits {what}");
    tracing::error!(detail, "a negative probe succeeded");
    Failure::Answer(HsmError::KeyIntegrity { detail })
}
