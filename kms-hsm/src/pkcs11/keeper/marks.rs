//! Marks: private data objects that cannot be changed.
//!
//! C_SetAttributeValue on a failing disk empties the file of an object and says CKR_OK (softhsm.md), so a mark is never
//! changed: a new one is made, made durable and read back, and only then is the one before it destroyed.

use cryptoki::object::{Attribute, AttributeType, ObjectHandle};

use super::Keeper;
use crate::error::HsmError;
use crate::hsm::{MAX_MARKS, Mark};
use crate::pkcs11::ckr::{Class, Failure, classify};
use crate::pkcs11::durable::sync_tree;
use crate::pkcs11::template;

impl Keeper {
    /// Puts a mark in the token, then takes those away that it replaces.
    pub(super) fn put_mark(&self, mark: &Mark, replaced: &[Mark]) -> Result<(), Failure> {
        self.token_is_there()?;
        let there = self.find_marks()?;
        if !there.iter().any(|(_, found)| found == mark) {
            let made = self.session()?.create_object(&template::mark(&mark.0));
            made.map_err(|error| self.settle_no_room(error.into()))?;
        }
        // Also of one that was there: who put it may not have come this far.
        self.sync_marks()?;
        if !self.find_marks()?.iter().any(|(_, found)| found == mark) {
            return Err(Failure::lie("a mark that was made is not there"));
        }
        let mut is_changed = false;
        for (object, found) in there {
            if found != *mark && replaced.contains(&found) {
                match self.session()?.destroy_object(object) {
                    Ok(()) => is_changed = true,
                    Err(error) if classify(&error) == Class::ObjectGone => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        if is_changed { self.sync_marks() } else { Ok(()) }
    }

    /// Lists the marks of the token.
    pub(super) fn list_marks(&self) -> Result<Vec<Mark>, Failure> {
        self.token_is_there()?;
        Ok(self.find_marks()?.into_iter().map(|(_, mark)| mark).collect())
    }

    fn find_marks(&self) -> Result<Vec<(ObjectHandle, Mark)>, Failure> {
        let session = self.session()?;
        let mut marks = Vec::new();
        for object in session.find_objects(&template::find_marks())? {
            if marks.len() == MAX_MARKS {
                // One that is left out might be ours.
                let detail = format!("more than {MAX_MARKS} marks are on the token");
                return Err(Failure::Answer(HsmError::TokenFull { detail }));
            }
            match session.get_attributes(object, &[AttributeType::Value]) {
                Ok(attributes) => {
                    if let [Attribute::Value(value)] = attributes.as_slice() {
                        marks.push((object, Mark(value.clone())));
                    }
                }
                // Destroyed since it was found, or torn by a crash: no mark either way.
                Err(error) => match classify(&error) {
                    Class::ObjectGone | Class::Ambiguous | Class::Refused => {}
                    _ => return Err(error.into()),
                },
            }
        }
        Ok(marks)
    }

    fn sync_marks(&self) -> Result<(), Failure> {
        match &self.shared.config.token_dir {
            Some(directory) => sync_tree(directory).map_err(Failure::Answer),
            None => Ok(()),
        }
    }
}
