//! The listing of everything that looks like a key, so that no object stays on the token unseen.
//!
//! A key file that a crash tore may have lost all but its class: SoftHSM writes attributes in the order of their numbers,
//! and CKA_CLASS is the first. One that a crash left half made says CKA_TOKEN=false, which is where SoftHSM begins. So
//! objects are sought by class alone, and those that are known are left out: residents, roots, and our session objects.

use std::collections::HashSet;

use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use kms_core::key::CkaId;

use super::Keeper;
use crate::hsm::{MAX_IMPORT_KEYS, MAX_STRAYS, Stray, TokenKeys};
use crate::pkcs11::ckr::{Class, Failure, classify};

impl Keeper {
    /// Lists every secret key of the token but the open roots, and every private key, after a new pass.
    pub(super) fn list_token_keys(&mut self) -> Result<TokenKeys, Failure> {
        self.token_is_there()?;
        self.index_residents()?;
        let mut residents: Vec<CkaId> = self.residents.keys().copied().collect();
        residents.sort_unstable();
        let roots = self.live()?;
        let roots = roots.roots.values().flat_map(|root| [root.wrap, root.mac]);
        let known: HashSet<u64> = self
            .residents
            .values()
            .flatten()
            .copied()
            .chain(roots)
            .map(|object| object.handle())
            .collect();
        let class = Attribute::Class(ObjectClass::SECRET_KEY);
        let mut strays = Vec::new();
        for object in self.session()?.find_objects(&[class])? {
            let handle = object.handle();
            if known.contains(&handle) || self.session_objects.contains(&handle) {
                continue;
            }
            if strays.len() == MAX_STRAYS {
                tracing::error!(MAX_STRAYS, "more unknown keys on the token than are listed");
                break;
            }
            strays.extend(self.stray(object)?);
        }
        let mut import_keys = Vec::new();
        let class = Attribute::Class(ObjectClass::PRIVATE_KEY);
        for object in self.session()?.find_objects(&[class])? {
            if import_keys.len() == MAX_IMPORT_KEYS {
                tracing::error!(MAX_IMPORT_KEYS, "more private keys on the token than are listed");
                break;
            }
            let Some(stray) = self.stray(object)? else { continue };
            if let Ok(id) = stray.id.as_slice().try_into() {
                import_keys.push(CkaId(id));
            } else if strays.len() < MAX_STRAYS {
                strays.push(stray);
            } else {
                // Told once: no more of either kind is read.
                tracing::error!(MAX_STRAYS, "more unknown keys on the token than are listed");
                break;
            }
        }
        import_keys.sort_unstable();
        strays.sort_unstable();
        Ok(TokenKeys { residents, import_keys, strays })
    }

    /// Reads what there is to tell it by; `None` when it was destroyed since it was found.
    fn stray(&self, object: ObjectHandle) -> Result<Option<Stray>, Failure> {
        match self.session()?.get_attributes(object, &[AttributeType::Id]) {
            Ok(attributes) => Ok(Some(Stray {
                id: match attributes.into_iter().next() {
                    Some(Attribute::Id(id)) => id,
                    _ => Vec::new(),
                },
            })),
            Err(error) => match classify(&error) {
                Class::ObjectGone => Ok(None),
                // There, but not to be read: that is what a stray is.
                Class::Ambiguous | Class::Bug | Class::Refused => {
                    Ok(Some(Stray { id: Vec::new() }))
                }
                _ => Err(error.into()),
            },
        }
    }
}
