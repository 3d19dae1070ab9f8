//! Negative probes: what a new object must not allow is tried, and must be refused.

use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, ObjectHandle};

use super::Keeper;
use crate::error::HsmError;
use crate::pkcs11::ckr::{Class, Failure, classify};
use crate::pkcs11::gate::Root;
use crate::pkcs11::mechanism::{KWP, gcm};
use crate::pkcs11::template::{self, Role};

impl Keeper {
    /// Reads an object back and compares it with what was asked for.
    pub(super) fn read_back(
        &self,
        object: ObjectHandle,
        role: Role,
        token: bool,
    ) -> Result<(), Failure> {
        let (types, expected) = template::expected(role, token);
        let found = self.session()?.get_attributes(object, &types)?;
        for attribute in expected {
            if !found.contains(&attribute) {
                let detail = format!("the token made the object without {attribute:?}");
                return Err(Failure::Answer(HsmError::KeyIntegrity { detail }));
            }
        }
        Ok(())
    }

    /// Tries what a root set must refuse.
    pub(super) fn probe_root(&self, root: Root) -> Result<(), Failure> {
        let session = self.session()?;
        refused("C_WrapKey of root wrap", session.wrap_key(&KWP, root.wrap, root.wrap))?;
        refused("C_WrapKey of root mac", session.wrap_key(&KWP, root.wrap, root.mac))?;
        self.encryption_is_refused("root wrap", root.wrap)?;
        self.encryption_is_refused("root mac", root.mac)?;
        let mac = session.sign(&Mechanism::Sha256Hmac, root.wrap, b"probe");
        refused("C_Sign with root wrap", mac)?;
        self.value_is_secret(root.wrap)?;
        self.value_is_secret(root.mac)
    }

    /// Tries what a key must refuse.
    pub(super) fn probe_key(&self, root: Root, key: ObjectHandle) -> Result<(), Failure> {
        let session = self.session()?;
        refused("C_WrapKey of a key", session.wrap_key(&KWP, root.wrap, key))?;
        refused("C_WrapKey with a key", session.wrap_key(&KWP, key, key))?;
        let ecb = session.encrypt(&Mechanism::AesEcb, key, &[0; 16]);
        refused("CKM_AES_ECB with a key", ecb)?;
        self.value_is_secret(key)
    }

    fn encryption_is_refused(&self, what: &str, key: ObjectHandle) -> Result<(), Failure> {
        let mut iv = [1; 12];
        let encrypted = self.session()?.encrypt(&gcm(&mut iv, b"probe")?, key, b"probe");
        refused(&format!("C_Encrypt with {what}"), encrypted)
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

/// Wants a refusal; passes on what says nothing about permission.
fn refused<T>(what: &str, result: Result<T, cryptoki::error::Error>) -> Result<(), Failure> {
    match result {
        Ok(_) => Err(permitted(what)),
        Err(error) => match classify(&error) {
            Class::Refused | Class::ObjectGone | Class::Bug => Ok(()),
            _ => Err(error.into()),
        },
    }
}

fn permitted(what: &str) -> Failure {
    let detail = format!("the token permits {what}");
    tracing::error!(detail, "a negative probe succeeded");
    Failure::Answer(HsmError::KeyIntegrity { detail })
}
