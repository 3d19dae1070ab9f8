//! Re-wrapping: a key leaves the blob of one root and enters that of another, inside the token.
//!
//! A root of the profile `locked` gives no extractable object: its C_UnwrapKey refuses the template, or C_WrapKey the object.
//! That is the answer of this job alone (`settle.rs`): the roots, and all that is loaded, work as before.

use cryptoki::object::ObjectHandle;
use kms_core::id::RootGeneration;
use kms_core::key::{Material, WrappedKey};

use super::Keeper;
use crate::error::HsmError;
use crate::hsm::KeySource;
use crate::pkcs11::ckr::{Failure, describe};
use crate::pkcs11::gate::Root;
use crate::pkcs11::mechanism::{KWP, WRAPPED_KEY_BYTES};
use crate::pkcs11::template;

impl Keeper {
    /// Wraps keys under another root; one that is not what its row says stops no other.
    pub(super) fn rewrap_keys(
        &self,
        sources: &[KeySource],
        to: RootGeneration,
    ) -> Result<Vec<Result<WrappedKey, HsmError>>, Failure> {
        let to = self.root(to)?;
        let mut done = Vec::with_capacity(sources.len());
        for source in sources {
            done.push(match self.rewrap_key(source, to) {
                Ok(blob) => Ok(blob),
                Err(Failure::Answer(error @ HsmError::KeyIntegrity { .. })) => Err(error),
                Err(failure) => return Err(failure),
            });
        }
        Ok(done)
    }

    fn rewrap_key(&self, source: &KeySource, to: Root) -> Result<WrappedKey, Failure> {
        let from = self.root(source.generation)?;
        let Material::Wrapped(old) = &source.material else {
            return Err(Failure::Answer(HsmError::Bug { reason: "a resident key has no blob" }));
        };
        let opened = self.unwrap_as(from, old, &template::opened()).map_err(not_as_extractable)?;
        let blob = self
            .check_value_fits(from, opened, source)
            .and_then(|()| Ok(self.session()?.wrap_key(&KWP, to.wrap, opened)?));
        // Invariant: as of a key that is generated, the extractable object does not outlive this job
        // (`a_key_that_a_re_wrap_opened_and_cannot_destroy_ends_with_the_module`).
        self.destroy_or_end(opened)?;
        let blob = blob?;
        if blob.len() != WRAPPED_KEY_BYTES {
            return Err(Failure::lie("C_WrapKey gave another length"));
        }
        let blob = WrappedKey(blob);
        // Invariant: nobody puts a blob in the place of another before it was opened and verified
        // (`a_re_wrap_that_lies_loses_no_key`).
        self.prove_rewrapped(source, to, &blob)?;
        Ok(blob)
    }

    fn prove_rewrapped(
        &self,
        source: &KeySource,
        to: Root,
        blob: &WrappedKey,
    ) -> Result<(), Failure> {
        let lie = |failure: Failure| match failure {
            Failure::Answer(HsmError::KeyIntegrity { .. }) => {
                Failure::lie("a re-wrapped key is another key")
            }
            other => other,
        };
        let object = self.unwrap(to, blob).map_err(lie)?;
        let fits = self.check_value_fits(to, object, source).map_err(lie);
        self.destroy_or_end(object)?;
        fits
    }

    /// Destroys a session object of a job; one that cannot be destroyed dies with the session.
    fn destroy_or_end(&self, object: ObjectHandle) -> Result<(), Failure> {
        let destroyed = self.session()?.destroy_object(object);
        destroyed.map_err(|error| Failure::Module(describe(&error)))
    }
}

/// A template that the token does not take of this root; which code it said is in the log.
fn not_as_extractable(failure: Failure) -> Failure {
    match failure {
        Failure::Answer(HsmError::Bug { .. }) => Failure::Answer(HsmError::Refused {
            detail: "C_UnwrapKey does not open the key as one that can be wrapped again".into(),
        }),
        other => other,
    }
}
