//! Root sets: creation in dev mode, and the pin that every other opening is checked against.

use std::collections::HashMap;
use std::sync::Arc;

use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectHandle};
use kms_core::domain;
use kms_core::id::RootGeneration;
use kms_core::key::CkaId;
use kms_core::root::RootPin;
use kms_core::secret::equal_in_constant_time;

use super::Keeper;
use crate::error::{HsmError, LatchReason};
use crate::pkcs11::ckr::Failure;
use crate::pkcs11::continuous::Continuous;
use crate::pkcs11::durable::sync_tree;
use crate::pkcs11::gate::{Live, Root};
use crate::pkcs11::mechanism::{KWP, WRAPPED_KEY_BYTES};
use crate::pkcs11::template::{self, Role};
use crate::pkcs11::token;

impl Keeper {
    /// Makes both objects of a root set, checks them, and makes them durable. What is half made is destroyed.
    pub(super) fn create_root(&mut self, generation: RootGeneration) -> Result<RootPin, Failure> {
        let wrap_id = self.draw_id()?;
        let mac_id = self.draw_id()?;
        let wrap = self.generate_root(Role::Wrap, wrap_id, generation)?;
        let mac = self
            .generate_root(Role::Mac, mac_id, generation)
            .map_err(|failure| self.undo(&[wrap], failure))?;
        let root = Root { wrap, mac };
        self.finish_root(generation, root, wrap_id, mac_id)
            .map_err(|failure| self.undo(&[wrap, mac], failure))
    }

    fn generate_root(
        &self,
        role: Role,
        id: CkaId,
        generation: RootGeneration,
    ) -> Result<ObjectHandle, Failure> {
        let mechanism = match role {
            Role::Mac => Mechanism::GenericSecretKeyGen,
            Role::Wrap | Role::Key => Mechanism::AesKeyGen,
        };
        let template = template::root(role, id, generation);
        let session = self.session()?;
        let failure = match session.generate_key(&mechanism, &template) {
            Ok(object) => return Ok(object),
            Err(error) => Failure::from(error),
        };
        // Whatever the module said, the object may be there; no one else has its id.
        if matches!(failure, Failure::Answer(_) | Failure::Ambiguous(_)) {
            match session.find_objects(&template::find_root(role, id)) {
                Ok(made) => return Err(self.undo(&made, self.settle_no_room(failure))),
                Err(error) => tracing::error!(%error, "whether half a root was left is not known"),
            }
        }
        Err(self.settle_no_room(failure))
    }

    fn finish_root(
        &self,
        generation: RootGeneration,
        root: Root,
        wrap_id: CkaId,
        mac_id: CkaId,
    ) -> Result<RootPin, Failure> {
        self.read_back(root.wrap, Role::Wrap, Some(wrap_id))?;
        self.read_back(root.mac, Role::Mac, Some(mac_id))?;
        let wrap_check = self.wrap_check(root.wrap)?;
        self.probe_root(root, &wrap_check)?;
        let mac_check = token::mac(self.session()?, root.mac, domain::ROOT_MAC_CHECK)?.0.to_vec();
        if let Some(directory) = &self.shared.config.token_dir {
            sync_tree(directory).map_err(Failure::Answer)?;
        }
        let token_serial = self.serial();
        Ok(RootPin { generation, token_serial, wrap_id, wrap_check, mac_id, mac_check })
    }

    /// Opens root sets in addition to those that are open.
    pub(super) fn open_roots(&mut self, pins: &[RootPin]) -> Result<(), Failure> {
        let serial = self.serial();
        if let Some(pin) = pins.iter().find(|pin| pin.token_serial != serial) {
            let pinned = pin.token_serial.clone();
            return Err(Failure::Latch(LatchReason::OtherToken { found: serial, pinned }));
        }
        let roots = self.find_roots(pins)?;
        self.put_roots(roots)?;
        self.pins.retain(|old| pins.iter().all(|new| new.generation != old.generation));
        self.pins.extend_from_slice(pins);
        self.shared.health.up(!self.pins.is_empty());
        Ok(())
    }

    /// Finds and verifies root sets.
    pub(super) fn find_roots(
        &self,
        pins: &[RootPin],
    ) -> Result<HashMap<RootGeneration, Root>, Failure> {
        let mut roots = HashMap::with_capacity(pins.len());
        for pin in pins {
            let root = Root {
                wrap: self.find_root(Role::Wrap, pin.wrap_id, pin.generation)?,
                mac: self.find_root(Role::Mac, pin.mac_id, pin.generation)?,
            };
            self.verify_seal(root.wrap, Role::Wrap, pin.generation)?;
            self.verify_seal(root.mac, Role::Mac, pin.generation)?;
            self.verify(root, pin)?;
            roots.insert(pin.generation, root);
        }
        Ok(roots)
    }

    /// Puts the handles of root sets in place, beside those of others.
    pub(super) fn put_roots(&self, found: HashMap<RootGeneration, Root>) -> Result<(), Failure> {
        let live = self.live()?;
        let mut roots = live.roots.clone();
        roots.extend(found);
        self.shared.gate.swap(Arc::new(Live { roots, ..live.renewed() }));
        Ok(())
    }

    /// Verifies the roots by the handles in use.
    pub(super) fn verify_open_roots(&self) -> Result<(), Failure> {
        self.pins.iter().try_for_each(|pin| self.verify(self.root(pin.generation)?, pin))
    }

    /// Reads back what a root may be used for: whoever holds the security officer's PIN can have changed it.
    fn verify_seal(
        &self,
        object: ObjectHandle,
        role: Role,
        generation: RootGeneration,
    ) -> Result<(), Failure> {
        let (types, expected) = template::expected_of_pinned(role);
        let found = self.session()?.get_attributes(object, &types)?;
        let missing = expected.iter().find(|attribute| !found.contains(attribute));
        let attribute = match missing {
            Some(attribute) => format!("it lacks {attribute:?}"),
            None if found.contains(&Attribute::Trusted(true)) => "it has Trusted(true)".to_owned(),
            None => return Ok(()),
        };
        let (role, generation) = (role.of_root(), generation.get());
        Err(Failure::Latch(LatchReason::RootNotSealed { role, generation, attribute }))
    }

    fn verify(&self, root: Root, pin: &RootPin) -> Result<(), Failure> {
        let generation = pin.generation.get();
        let changed = |role| Failure::Latch(LatchReason::RootChanged { role, generation });
        if !equal_in_constant_time(&self.wrap_check(root.wrap)?, &pin.wrap_check) {
            return Err(changed("wrap"));
        }
        let mac = token::mac(self.session()?, root.mac, domain::ROOT_MAC_CHECK)?;
        if !equal_in_constant_time(&mac.0, &pin.mac_check) {
            return Err(changed("mac"));
        }
        Ok(())
    }

    /// Finds the one object of a role. None is a latch only when the token itself answers.
    fn find_root(
        &self,
        role: Role,
        id: CkaId,
        generation: RootGeneration,
    ) -> Result<ObjectHandle, Failure> {
        let found = self.session()?.find_objects(&template::find_root(role, id))?;
        let role = role.of_root();
        let generation = generation.get();
        match found.as_slice() {
            [object] => Ok(*object),
            [] => {
                self.token_is_there()?;
                Err(Failure::Latch(LatchReason::RootMissing { role, generation }))
            }
            _ => Err(Failure::Latch(LatchReason::RootChanged { role, generation })),
        }
    }

    /// Computes the check value of a root `wrap`: KWP of a public pattern.
    pub(super) fn wrap_check(&self, wrap: ObjectHandle) -> Result<Vec<u8>, Failure> {
        let session = self.session()?;
        let pattern =
            session.create_object(&template::public_value(domain::ROOT_WRAP_CHECK_PATTERN))?;
        let wrapped = session.wrap_key(&KWP, wrap, pattern);
        let destroyed = session.destroy_object(pattern);
        let wrapped = wrapped?;
        destroyed?;
        if wrapped.len() != WRAPPED_KEY_BYTES {
            return Err(Failure::lie("C_WrapKey gave another length"));
        }
        Ok(wrapped)
    }

    pub(super) fn serial(&self) -> String {
        self.shared.serial.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn draw_id(&self) -> Result<CkaId, Failure> {
        let bytes = token::random(self.session()?, &mut Continuous::default(), 16)?;
        bytes.expose().try_into().map(CkaId).map_err(|_| {
            Failure::Answer(HsmError::Bug { reason: "16 random bytes are not 16 bytes" })
        })
    }

    /// Destroys what a failed job has made, and passes the failure on.
    pub(super) fn undo(&self, objects: &[ObjectHandle], failure: Failure) -> Failure {
        for object in objects {
            if let Some(session) = &self.session
                && let Err(error) = session.destroy_object(*object)
            {
                tracing::error!(%error, "an object of a failed job could not be destroyed");
            }
        }
        failure
    }
}
