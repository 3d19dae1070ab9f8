//! The index of `HSM_RESIDENT` keys: one pass over the token a connect, never a search for one key.

use cryptoki::object::{Attribute, AttributeType, ObjectHandle};
use kms_core::key::{CkaId, Protection};

use super::Keeper;
use crate::error::HsmError;
use crate::pkcs11::ckr::{Class, Failure, classify};
use crate::pkcs11::durable::sync_tree;
use crate::pkcs11::job::KeeperWork;
use crate::pkcs11::template;

impl Keeper {
    /// Reads the index anew.
    pub(super) fn index_residents(&mut self) -> Result<(), Failure> {
        let (most, mut cut) = (self.shared.config.max_token_keys, false);
        let session = self.session()?;
        let mut objects: Vec<ObjectHandle> = Vec::new();
        for object in session.iter_objects(&template::find_residents())? {
            if objects.len() == most {
                tracing::error!(most, "more AES keys on the token than are looked at");
                cut = true;
                break;
            }
            objects.push(object?);
        }
        let mut index = std::collections::HashMap::new();
        for object in objects {
            match session.get_attributes(object, &[AttributeType::Id]) {
                Ok(attributes) => {
                    if let [Attribute::Id(id)] = attributes.as_slice()
                        && let Ok(id) = id.as_slice().try_into()
                    {
                        index.entry(CkaId(id)).or_insert_with(Vec::new).push(object);
                    }
                }
                // Destroyed by another process since it was found, or torn by a crash.
                Err(error) if classify(&error) == Class::ObjectGone => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.residents = index;
        self.index_is_cut = cut;
        Ok(())
    }

    /// Returns the object of a resident key.
    pub(super) fn resident(&self, id: CkaId) -> Result<ObjectHandle, Failure> {
        match self.residents.get(&id).map(Vec::as_slice) {
            Some([object]) => Ok(*object),
            None | Some([]) => {
                self.token_is_there()?;
                if self.index_is_cut {
                    let most = self.shared.config.max_token_keys;
                    let detail = format!("more than {most} AES keys are on the token");
                    return Err(Failure::Answer(HsmError::TokenFull { detail }));
                }
                Err(Failure::Answer(HsmError::ResidentMissing))
            }
            Some(_) => Err(Failure::Answer(HsmError::KeyIntegrity {
                detail: "two token objects have the key's CKA_ID".into(),
            })),
        }
    }

    /// Refuses a CKA_ID that is taken, and a token that is full.
    pub(super) fn room_for_resident(&self, id: CkaId) -> Result<(), Failure> {
        if self.residents.contains_key(&id) {
            let detail = "a token object with the key's CKA_ID is there already".into();
            return Err(Failure::Answer(HsmError::KeyIntegrity { detail }));
        }
        let most = self.shared.config.max_residents;
        if self.residents.len() >= most {
            let detail = format!("{most} resident keys are the most");
            return Err(Failure::Answer(HsmError::TokenFull { detail }));
        }
        Ok(())
    }

    /// Returns the id of a resident key that this work would make: what has the id afterwards is its own.
    pub(super) fn own_resident(&self, work: &KeeperWork) -> Option<CkaId> {
        let spec = match work {
            KeeperWork::Generate(spec) => spec,
            KeeperWork::Import(import) => &import.spec,
            KeeperWork::CreateRoot(_)
            | KeeperWork::OpenRoots(_)
            | KeeperWork::Load(_)
            | KeeperWork::Rewrap { .. }
            | KeeperWork::DestroyImportKey(_)
            | KeeperWork::DestroyResident(_)
            | KeeperWork::ListTokenKeys
            | KeeperWork::PutMark { .. }
            | KeeperWork::ListMarks => return None,
        };
        let own = spec.protection == Protection::HsmResident
            && !self.residents.contains_key(&spec.resident_id);
        own.then_some(spec.resident_id)
    }

    /// Destroys every object with this id; none is fine, when the token itself answers.
    pub(super) fn destroy_resident(&mut self, id: CkaId) -> Result<(), Failure> {
        self.token_is_there()?;
        // A creation whose answer was lost is not in the index: without a look the object would stay.
        if !self.residents.contains_key(&id) {
            self.index_residents()?;
        }
        let objects = self.residents.get(&id).cloned().unwrap_or_default();
        for object in objects {
            match self.session()?.destroy_object(object) {
                Ok(()) => {}
                Err(error) if classify(&error) == Class::ObjectGone => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.residents.remove(&id);
        // Also when nothing was found: an attempt before this one may have destroyed it and failed here.
        if let Some(directory) = &self.shared.config.token_dir {
            sync_tree(directory).map_err(Failure::Answer)?;
        }
        Ok(())
    }
}
