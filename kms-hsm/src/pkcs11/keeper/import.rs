//! Import: a sealed key is opened with the key of an import job, verified, and becomes a key like any other.
//!
//! Between the two it is an extractable session object that exists only inside this job, as a key that is generated is.
//! SoftHSM 2.6.1 pads wrong lengths and accepts them in silence: the KWP of a 32-byte key is 40 bytes, and of the lengths
//! that are padded to that, none can compute a check value.

use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectHandle};
use kms_core::key::{CkaId, Material, Protection, WrappedKey};

use super::Keeper;
use crate::error::HsmError;
use crate::hsm::{GeneratedKey, KeyImport, KeySource, KeySpec};
use crate::pkcs11::ckr::{Class, Failure, classify, describe};
use crate::pkcs11::durable::sync_tree;
use crate::pkcs11::gate::Root;
use crate::pkcs11::key::Handle;
use crate::pkcs11::mechanism::{KWP, WRAPPED_KEY_BYTES, oaep};
use crate::pkcs11::template::{self, Role};
use crate::pkcs11::token;

/// No key of this many bytes, or none that works.
const LENGTH: Failure = Failure::Answer(HsmError::ImportKeyLength);

impl Keeper {
    /// Imports a key, and uses the key of its job up.
    pub(super) fn import(&mut self, import: &KeyImport) -> Result<GeneratedKey, Failure> {
        self.room_for_key()?;
        let root = self.root(import.spec.generation)?;
        if import.spec.protection == Protection::HsmResident {
            self.room_for_resident(import.spec.resident_id)?;
        }
        let private = self.import_private(import.job.id)?;
        let imported = self.import_with(import, root, private);
        // Invariant: one attempt. Whoever could try again and again would have an oracle of the private key
        // (`an_import_key_is_used_up_by_what_does_not_open`).
        let used_up = match &imported {
            Ok(_) => true,
            Err(Failure::Answer(error)) => matches!(
                error,
                HsmError::ImportMaterialInvalid
                    | HsmError::ImportKeyLength
                    | HsmError::ImportCheckMismatch
            ),
            Err(_) => false,
        };
        if used_up && let Err(failure) = self.destroy_import_key(import.job.id) {
            if let (Ok(_), Protection::HsmResident) = (&imported, import.spec.protection) {
                return Err(self.undo_resident(&import.spec, failure));
            }
            // The session object of a wrapped key goes with what is dropped here.
            return Err(failure);
        }
        imported
    }

    fn import_with(
        &mut self,
        import: &KeyImport,
        root: Root,
        private: ObjectHandle,
    ) -> Result<GeneratedKey, Failure> {
        let opened = self.open_sealed(import, root, private)?;
        let blob = self.rewrap_opened(import, root, opened);
        // Invariant: as of a key that is generated, the extractable object does not outlive this job.
        if let Err(error) = self.session()?.destroy_object(opened) {
            return Err(Failure::Module(describe(&error)));
        }
        let blob = WrappedKey(blob?);
        let KeySpec { key_uid, version, generation, protection, resident_id } = import.spec;
        let token_object = protection == Protection::HsmResident;
        let object = if token_object {
            self.unwrap_resident(&import.spec, root, &blob)?
        } else {
            self.unwrap(root, &blob)?
        };
        let check = match self.prove_imported(import, root, object, token_object) {
            Ok(check) => check,
            Err(failure) if token_object => {
                return Err(self.undo_resident(&import.spec, failure));
            }
            Err(failure) => return Err(self.undo(&[object], failure)),
        };
        let (material, wrapped) = if token_object {
            (Material::Resident(resident_id), None)
        } else {
            (Material::Wrapped(blob.clone()), Some(blob))
        };
        let source = KeySource { key_uid, version, generation, material, check: check.clone() };
        let key = self.loaded(source, Handle { epoch: self.epoch, object });
        Ok(GeneratedKey { wrapped, check, key })
    }

    /// Opens a sealed key: in one step, or in two.
    fn open_sealed(
        &self,
        import: &KeyImport,
        root: Root,
        private: ObjectHandle,
    ) -> Result<ObjectHandle, Failure> {
        let mechanism = oaep(import.job.hash);
        let length = import.method.sealed_bytes(import.job.size);
        if import.method.hash() != import.job.hash || import.wrapped.len() != length {
            return Err(Failure::Answer(HsmError::ImportMaterialInvalid));
        }
        let whole = &template::opened();
        let last = (whole.as_slice(), HsmError::ImportKeyLength);
        if !import.method.is_two_steps() {
            return self.open_by(root, (private, &mechanism), &import.wrapped, last);
        }
        let (head, tail) = import.wrapped.split_at(import.job.size.bytes());
        let kek = &template::import_kek();
        let step = (kek.as_slice(), HsmError::ImportMaterialInvalid);
        let kek = self.open_by(root, (private, &mechanism), head, step)?;
        let opened = self.open_by(root, (kek, &KWP), tail, last);
        match (opened, self.session()?.destroy_object(kek)) {
            (opened, Ok(())) => opened,
            // Both die with the session.
            (_, Err(error)) => Err(Failure::Module(describe(&error))),
        }
    }

    /// Opens what the caller sealed; `of` is what is wrong with it when the token says that the length is.
    fn open_by(
        &self,
        root: Root,
        (key, mechanism): (ObjectHandle, &Mechanism<'_>),
        sealed: &[u8],
        (template, of): (&[Attribute], HsmError),
    ) -> Result<ObjectHandle, Failure> {
        let opened = self.session()?.unwrap_key(mechanism, key, sealed, template);
        opened.map_err(|error| match error {
            Error::Pkcs11(RvError::KeySizeRange, _) => self.of_input(error, root, of),
            _ => self.of_input(error, root, HsmError::ImportMaterialInvalid),
        })
    }

    /// Verifies an opened key and wraps it under the root.
    fn rewrap_opened(
        &self,
        import: &KeyImport,
        root: Root,
        opened: ObjectHandle,
    ) -> Result<Vec<u8>, Failure> {
        let blob = match self.session()?.wrap_key(&KWP, root.wrap, opened) {
            Ok(blob) if blob.len() == WRAPPED_KEY_BYTES => blob,
            Ok(_) => return Err(LENGTH),
            // SoftHSM, of a key of no bytes at all.
            Err(error) => return Err(self.of_input(error, root, HsmError::ImportKeyLength)),
        };
        self.check_fits_import(import, opened, root)?;
        Ok(blob)
    }

    fn check_fits_import(
        &self,
        import: &KeyImport,
        key: ObjectHandle,
        root: Root,
    ) -> Result<(), Failure> {
        let checked =
            token::verify_import_check(self.session()?, key, &import.check, &import.check_aad)?;
        checked.map_err(|error| match classify(&error) {
            Class::Ciphertext | Class::Ambiguous => {
                self.of_input(error, root, HsmError::ImportCheckMismatch)
            }
            // Of a length that is no AES key's: softhsm.md, and KEY_SIZE_RANGE elsewhere.
            _ => self.of_input(error, root, HsmError::ImportKeyLength),
        })
    }

    /// Settles what the token says once it has looked at the caller's bytes: its own trouble, or theirs.
    ///
    /// Invariant: no code that a caller's bytes can bring about opens the breaker, or leaves the job to be tried again
    /// (`no_code_of_a_token_that_saw_the_input_is_anyone_elses_or_leaves_the_job`). Tokens differ in what they say of a
    /// length or a template; as long as token and root answer, it is of the input.
    fn of_input(&self, error: Error, root: Root, of: HsmError) -> Failure {
        match classify(&error) {
            Class::SessionLost
            | Class::LoginLost
            | Class::PinRefused
            | Class::PinLocked
            | Class::ModuleLost
            | Class::Device
            | Class::Full => error.into(),
            Class::Ciphertext | Class::WrappedKey => Failure::Answer(of),
            // SoftHSM says CKR_GENERAL_ERROR for what does not open, and finds out that an AES key between the steps is none
            // when it is used.
            Class::Ambiguous
            | Class::ObjectGone
            | Class::Refused
            | Class::Bug
            | Class::LoggedIn => {
                let detail = describe(&error);
                let answers = self.token_is_there();
                match answers.and_then(|()| self.root_sings(root, detail.clone())) {
                    Ok(()) => {
                        tracing::warn!(detail, "the token refused what an import brought");
                        Failure::Answer(of)
                    }
                    Err(failure) => failure,
                }
            }
        }
    }

    fn unwrap_resident(
        &mut self,
        spec: &KeySpec,
        root: Root,
        blob: &WrappedKey,
    ) -> Result<ObjectHandle, Failure> {
        let template = template::imported_resident(spec.resident_id);
        let made = self.session()?.unwrap_key(&KWP, root.wrap, &blob.0, &template);
        let object = match made.map_err(|error: Error| self.settle_no_room(error.into())) {
            Ok(object) => object,
            // Whatever the module said, the object may be there.
            Err(failure @ Failure::Answer(_)) => return Err(self.undo_resident(spec, failure)),
            Err(failure) => return Err(failure),
        };
        self.residents.insert(spec.resident_id, vec![object]);
        Ok(object)
    }

    fn prove_imported(
        &mut self,
        import: &KeyImport,
        root: Root,
        object: ObjectHandle,
        token_object: bool,
    ) -> Result<kms_core::key::CheckBlob, Failure> {
        if token_object {
            self.reads_back_as(
                object,
                template::expected_imported_resident(import.spec.resident_id),
            )?;
        } else {
            self.read_back(object, Role::Key, None)?;
        }
        match self.check_fits_import(import, object, root) {
            Err(Failure::Answer(_)) => {
                return Err(Failure::lie("a re-wrapped key is another key"));
            }
            other => other?,
        }
        self.prove_new_key(&import.spec, root, object, token_object)
    }

    /// Returns the private key of an import job.
    fn import_private(&self, id: CkaId) -> Result<ObjectHandle, Failure> {
        let found = self.session()?.find_objects(&template::find_import_private(id))?;
        match found.as_slice() {
            [object] => Ok(*object),
            [] => {
                self.token_is_there()?;
                Err(Failure::Answer(HsmError::ImportKeyMissing))
            }
            _ => Err(Failure::Answer(HsmError::KeyIntegrity {
                detail: "two private keys have the CKA_ID of an import job".into(),
            })),
        }
    }

    /// Destroys the private key of an import job; none is fine, when the token itself answers.
    pub(super) fn destroy_import_key(&self, id: CkaId) -> Result<(), Failure> {
        self.token_is_there()?;
        let session = self.session()?;
        for object in session.find_objects(&template::find_import_private(id))? {
            match session.destroy_object(object) {
                Ok(()) => {}
                Err(error) if classify(&error) == Class::ObjectGone => {}
                Err(error) => return Err(error.into()),
            }
        }
        match &self.shared.config.token_dir {
            Some(directory) => sync_tree(directory).map_err(Failure::Answer),
            None => Ok(()),
        }
    }
}
