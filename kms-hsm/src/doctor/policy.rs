//! What the token enforces: attributes are worth what their breach costs, so each is breached.

use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType};
use cryptoki::session::Session;

use crate::doctor::crypto::{encrypt, gcm_key};
use crate::doctor::probe::{Finding, Probe, Seen, Throwaway, Trial, refused};
use crate::doctor::report::Need;
use crate::doctor::wrap::{wrappable_key, wrapping_key};

/// Tries each attribute that section 2 of the design leans on.
pub(super) fn templates(probe: &mut Probe<'_>) {
    let needed = |what, good, bad| Trial { what, need: Need::Needed, good, bad };
    let optional = |what, good, bad| Trial { what, need: Need::Optional, good, bad };
    probe.attempt(
        needed("SENSITIVE", "key bytes cannot be read", "key bytes can be read"),
        sensitive,
    );
    probe.attempt(
        needed("EXTRACTABLE=false", "sealed keys stay inside", "sealed keys can be wrapped out"),
        not_extractable,
    );
    probe.attempt(
        needed(
            "EXTRACTABLE cannot be set again",
            "sealing is for ever",
            "sealing can be undone by whoever holds the PIN",
        ),
        sealed_for_ever,
    );
    probe.attempt(
        needed(
            "ALLOWED_MECHANISMS",
            "keys serve one mechanism",
            "a key could be used with another mechanism, and leak",
        ),
        allowed_mechanisms,
    );
    probe.attempt(
        needed(
            "ENCRYPT and DECRYPT absent",
            "a wrapping key cannot decrypt what it wrapped",
            "a wrapping key could decrypt the keys that it wraps",
        ),
        usage,
    );
    probe.attempt(
        optional(
            "MODIFIABLE=false",
            "usages cannot be added later",
            "usages could be added later by whoever holds the PIN",
        ),
        not_modifiable,
    );
    probe.attempt(
        optional(
            "WRAP_WITH_TRUSTED",
            "a key can be kept from all but trusted wrapping keys",
            "backups cannot be limited to trusted wrapping keys",
        ),
        wrap_with_trusted,
    );
}

fn sensitive(session: &Session) -> Seen {
    let key = Throwaway::aes(session, &gcm_key())?;
    match session.get_attributes(key.handle, &[AttributeType::Value]) {
        Ok(found) if found.iter().any(|one| matches!(one, Attribute::Value(_))) => {
            Err(Finding::wrong("CKA_VALUE can be read"))
        }
        // cryptoki leaves out what it may not read.
        Ok(_) => Ok("CKA_VALUE is not given".into()),
        Err(error) => refused::<()>(Err(error), ""),
    }
}

fn not_extractable(session: &Session) -> Seen {
    let by = Throwaway::aes(session, &wrapping_key())?;
    let key = Throwaway::aes(session, &gcm_key())?;
    let wrapped = session.wrap_key(&Mechanism::AesKeyWrapPad, by.handle, key.handle);
    refused(wrapped, "it can be wrapped")
}

fn sealed_for_ever(session: &Session) -> Seen {
    let key = Throwaway::aes(session, &wrappable_key())?;
    session.update_attributes(key.handle, &[Attribute::Extractable(false)])?;
    let undone = session.update_attributes(key.handle, &[Attribute::Extractable(true)]);
    refused(undone, "it can be set again")
}

fn allowed_mechanisms(session: &Session) -> Seen {
    let key = Throwaway::aes(session, &gcm_key())?;
    encrypt(session, key.handle, &mut [1; 12])?;
    let other = session.encrypt(&Mechanism::AesCbc([0; 16]), key.handle, &[0; 16]);
    refused(other, "CBC with a key for GCM only")
}

fn usage(session: &Session) -> Seen {
    let mut template = vec![Attribute::Encrypt(false), Attribute::Decrypt(false)];
    template.extend([Attribute::Wrap(true), Attribute::Unwrap(true)]);
    template.push(Attribute::Extractable(false));
    let key = Throwaway::aes(session, &template)?;
    refused(encrypt(session, key.handle, &mut [1; 12]), "it encrypts all the same")?;
    // The attack itself: what C_WrapKey gave, into C_Decrypt; and the block cipher of which KWP can be made by hand.
    let other = Throwaway::aes(session, &wrappable_key())?;
    let wrapped = session.wrap_key(&Mechanism::AesKeyWrapPad, key.handle, other.handle)?;
    for (mechanism, input) in
        [(Mechanism::AesKeyWrapPad, wrapped.as_slice()), (Mechanism::AesEcb, &[0; 16])]
    {
        refused(session.decrypt(&mechanism, key.handle, input), "it decrypts all the same")?;
    }
    Ok("refused: C_Encrypt, C_Decrypt of a wrapped key and of a block".into())
}

fn not_modifiable(session: &Session) -> Seen {
    let mut template = vec![Attribute::Encrypt(false), Attribute::Modifiable(false)];
    template.push(Attribute::AllowedMechanisms(vec![MechanismType::AES_GCM]));
    let key = Throwaway::aes(session, &template)?;
    let added = session.update_attributes(key.handle, &[Attribute::Encrypt(true)]);
    refused(added, "ENCRYPT can be added")
}

fn wrap_with_trusted(session: &Session) -> Seen {
    let by = Throwaway::aes(session, &wrapping_key())?;
    let mut template = wrappable_key().to_vec();
    template.push(Attribute::WrapWithTrusted(true));
    let key = Throwaway::aes(session, &template)?;
    let wrapped = session.wrap_key(&Mechanism::AesKeyWrapPad, by.handle, key.handle);
    refused(wrapped, "an untrusted key wraps it")
}
