//! Keys: generation, loading, self-test.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectHandle};
use kms_core::key::{CheckBlob, Material, Protection, WrappedKey};

use super::Keeper;
use crate::error::HsmError;
use crate::hsm::{GeneratedKey, HsmKey, KeySource, KeySpec};
use crate::pkcs11::ckr::{Failure, describe};
use crate::pkcs11::durable::sync_tree;
use crate::pkcs11::gate::Root;
use crate::pkcs11::key::{Handle, KeyState};
use crate::pkcs11::mechanism::{KWP, WRAPPED_KEY_BYTES};
use crate::pkcs11::template::{self, Role};
use crate::pkcs11::token;

impl Keeper {
    /// Generates the key of a version, tests it, and returns it loaded.
    pub(super) fn generate(&mut self, spec: &KeySpec) -> Result<GeneratedKey, Failure> {
        self.room_for_key()?;
        let root = self.root(spec.generation)?;
        let (wrapped, object) = match spec.protection {
            Protection::HsmWrapped => {
                let (blob, object) = self.generate_wrapped(root)?;
                (Some(blob), object)
            }
            Protection::HsmResident => (None, self.generate_resident(spec)?),
        };
        let token_object = wrapped.is_none();
        let check = match self.test_new_key(spec, root, object, token_object) {
            Ok(check) => check,
            Err(failure) if token_object => return Err(self.undo_resident(spec, failure)),
            Err(failure) => return Err(self.undo(&[object], failure)),
        };
        let material =
            wrapped.clone().map_or(Material::Resident(spec.resident_id), Material::Wrapped);
        let KeySpec { key_uid, version, generation, .. } = *spec;
        let source = KeySource { key_uid, version, generation, material, check: check.clone() };
        let key = self.loaded(source, Handle { epoch: self.epoch, object });
        Ok(GeneratedKey { wrapped, check, key })
    }

    /// Makes an extractable session object, wraps it, destroys it, and unwraps it not extractable.
    fn generate_wrapped(&self, root: Root) -> Result<(WrappedKey, ObjectHandle), Failure> {
        let session = self.session()?;
        let nascent = session.generate_key(&Mechanism::AesKeyGen, &template::nascent());
        let nascent = nascent.map_err(Failure::from)?;
        let blob = session.wrap_key(&KWP, root.wrap, nascent);
        // Invariant: the extractable object does not outlive this job. One that cannot be destroyed dies with its session,
        // so the module is initialised anew (test `an_extractable_key_that_cannot_be_destroyed_ends_with_the_module`).
        if let Err(error) = session.destroy_object(nascent) {
            return Err(Failure::Module(describe(&error)));
        }
        let blob = blob?;
        if blob.len() != WRAPPED_KEY_BYTES {
            return Err(Failure::lie("C_WrapKey gave another length"));
        }
        let object = session.unwrap_key(&KWP, root.wrap, &blob, &template::unwrapped())?;
        Ok((WrappedKey(blob), object))
    }

    fn generate_resident(&mut self, spec: &KeySpec) -> Result<ObjectHandle, Failure> {
        self.room_for_resident(spec.resident_id)?;
        let template = template::resident(spec.resident_id);
        let made = self.session()?.generate_key(&Mechanism::AesKeyGen, &template);
        let object = match made.map_err(|error| self.settle_no_room(error.into())) {
            Ok(object) => object,
            // Whatever the module said, the object may be there.
            Err(failure @ Failure::Answer(_)) => return Err(self.undo_resident(spec, failure)),
            Err(failure) => return Err(failure),
        };
        // In the index from birth on: what cannot be undone must be found by whoever destroys it later.
        self.residents.insert(spec.resident_id, vec![object]);
        Ok(object)
    }

    /// Destroys a resident key that failed its tests, and passes the failure on.
    pub(super) fn undo_resident(&mut self, spec: &KeySpec, failure: Failure) -> Failure {
        if let Err(error) = self.destroy_resident(spec.resident_id) {
            let detail = error.detail();
            tracing::error!(detail, "a resident key of a failed job could not be destroyed");
        }
        failure
    }

    /// Reads back, probes, makes durable, and makes the check blob, which is decrypted again.
    fn test_new_key(
        &mut self,
        spec: &KeySpec,
        root: Root,
        object: ObjectHandle,
        token_object: bool,
    ) -> Result<CheckBlob, Failure> {
        self.read_back(object, Role::Key, token_object.then_some(spec.resident_id))?;
        self.prove_new_key(spec, root, object, token_object)
    }

    /// The same of an object that was read back.
    pub(super) fn prove_new_key(
        &mut self,
        spec: &KeySpec,
        root: Root,
        object: ObjectHandle,
        token_object: bool,
    ) -> Result<CheckBlob, Failure> {
        self.probe_key(root, object)?;
        let mut aad = CheckBlob::aad(spec.key_uid, spec.version);
        let session =
            self.session.as_ref().ok_or_else(|| Failure::Device("not connected".into()))?;
        let (iv, ciphertext_and_tag) =
            token::encrypt(session, &mut self.ivs, object, &mut aad, CheckBlob::PATTERN)?;
        let check = CheckBlob { iv, ciphertext_and_tag: ciphertext_and_tag.into_vec() };
        let KeySpec { key_uid, version, generation, resident_id, .. } = *spec;
        let material = Material::Resident(resident_id);
        let source = KeySource { key_uid, version, generation, material, check };
        if !token::check_fits(session, object, &source)? {
            return Err(Failure::lie("a new key does not decrypt what it encrypted"));
        }
        if token_object && let Some(directory) = &self.shared.config.token_dir {
            sync_tree(directory).map_err(Failure::Answer)?;
        }
        Ok(source.check)
    }

    /// Loads a key and verifies its check value.
    pub(super) fn load(&mut self, source: &KeySource) -> Result<HsmKey, Failure> {
        self.room_for_key()?;
        let handle = self.resolve_key(source)?;
        Ok(self.loaded(source.clone(), handle))
    }

    /// Returns a verified object for a key, in the present epoch.
    pub(super) fn resolve_key(&self, source: &KeySource) -> Result<Handle, Failure> {
        let root = self.root(source.generation)?;
        let (object, own) = match &source.material {
            Material::Wrapped(blob) => (self.unwrap(root, blob)?, true),
            Material::Resident(id) => (self.resident(*id)?, false),
        };
        match self.check_value_fits(root, object, source) {
            Ok(()) => Ok(Handle { epoch: self.epoch, object }),
            Err(failure) => Err(if own { self.undo(&[object], failure) } else { failure }),
        }
    }

    /// Verifies the check value of an object.
    pub(super) fn check_value_fits(
        &self,
        root: Root,
        object: ObjectHandle,
        source: &KeySource,
    ) -> Result<(), Failure> {
        let fits = match token::check_fits(self.session()?, object, source) {
            // SoftHSM says CKR_GENERAL_ERROR for a tag that does not fit: the root decides.
            Err(Failure::Ambiguous(detail)) => self.root_sings(root, detail).map(|()| false),
            other => other,
        };
        if fits? {
            return Ok(());
        }
        let detail = "the check value does not fit the key".into();
        Err(Failure::Answer(HsmError::KeyIntegrity { detail }))
    }

    pub(super) fn unwrap(&self, root: Root, blob: &WrappedKey) -> Result<ObjectHandle, Failure> {
        self.unwrap_as(root, blob, &template::unwrapped())
    }

    /// Opens a blob as an object of this template.
    pub(super) fn unwrap_as(
        &self,
        root: Root,
        blob: &WrappedKey,
        template: &[Attribute],
    ) -> Result<ObjectHandle, Failure> {
        let broken =
            |detail: &str| Failure::Answer(HsmError::KeyIntegrity { detail: detail.into() });
        if blob.0.len() != WRAPPED_KEY_BYTES {
            return Err(broken("the wrapped key has another length"));
        }
        self.shared.unwrapped.fetch_add(1, Ordering::Relaxed);
        match self.session()?.unwrap_key(&KWP, root.wrap, &blob.0, template) {
            Ok(object) => Ok(object),
            Err(error) => match Failure::from(error) {
                // SoftHSM says CKR_GENERAL_ERROR for a blob that does not unwrap: the root decides.
                Failure::Ambiguous(detail) => {
                    self.root_sings(root, detail)?;
                    Err(broken("the wrapped key does not unwrap"))
                }
                other => Err(other),
            },
        }
    }

    /// The canary of the keeper: a root that still wraps means that the input was at fault.
    pub(super) fn root_sings(&self, root: Root, detail: String) -> Result<(), Failure> {
        match self.wrap_check(root.wrap) {
            Ok(_) => Ok(()),
            Err(Failure::Ambiguous(_)) => Err(Failure::Device(detail)),
            Err(other) => Err(other),
        }
    }

    pub(super) fn loaded(&mut self, source: KeySource, handle: Handle) -> HsmKey {
        self.note_session_object(&source, handle);
        let keeper = Arc::clone(&self.shared.keeper);
        let loaded = Arc::clone(&self.shared.loaded);
        HsmKey::new(Arc::new(KeyState::new(source, handle, keeper, loaded)))
    }

    /// Notes the object of a key that is loaded, when it is a session object.
    pub(super) fn note_session_object(&mut self, source: &KeySource, handle: Handle) {
        if matches!(source.material, Material::Wrapped(_)) {
            self.session_objects.insert(handle.object.handle());
        }
    }

    pub(super) fn room_for_key(&self) -> Result<(), Failure> {
        let most = self.shared.config.max_loaded_keys;
        if self.shared.loaded.load(Ordering::Acquire) < most {
            return Ok(());
        }
        let detail = format!("{most} keys are loaded, which is the most");
        Err(Failure::Answer(HsmError::TokenFull { detail }))
    }
}
