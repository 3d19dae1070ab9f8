//! Single operations on one session: what goes in is checked by the callers, what comes out is checked here.
//!
//! It must never trust a length or an IV that the module gives back.

use cryptoki::error::Error;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;
use kms_core::envelope::{Aad, Iv, TAG_BYTES};
use kms_core::import::ImportCheck;
use kms_core::key::{CheckBlob, RowMac};
use kms_core::secret::{Plaintext, equal_in_constant_time};

use crate::error::HsmError;
use crate::hsm::{KeySource, Sealed};
use crate::pkcs11::ckr::Failure;
use crate::pkcs11::continuous::Continuous;
use crate::pkcs11::iv::IvPool;
use crate::pkcs11::mechanism::gcm;

/// Encrypts with an IV of the pool.
pub(crate) fn encrypt(
    session: &Session,
    ivs: &mut IvPool,
    key: ObjectHandle,
    aad: &mut Aad,
    plaintext: &[u8],
) -> Result<(Iv, Sealed), Failure> {
    let iv = ivs.take(session)?;
    // A module in FIPS mode may draw its own IV and write it back; our AAD holds the one we drew.
    let mut written = iv;
    let ciphertext_and_tag =
        session.encrypt(&gcm(&mut written, aad.with_iv(&iv))?, key, plaintext)?;
    if written != iv || ciphertext_and_tag.len() != plaintext.len() + TAG_BYTES {
        return Err(Failure::lie("C_Encrypt gave another IV or length"));
    }
    Ok((iv, Sealed::from_vec(ciphertext_and_tag)))
}

/// Decrypts. A wrong tag may come as [`Failure::Ambiguous`]: the caller asks the canary.
pub(crate) fn decrypt(
    session: &Session,
    key: ObjectHandle,
    aad: &mut Aad,
    iv: &Iv,
    ciphertext_and_tag: &[u8],
) -> Result<Plaintext, Failure> {
    let Some(length) = ciphertext_and_tag.len().checked_sub(TAG_BYTES) else {
        return Err(Failure::Answer(HsmError::CiphertextInvalid));
    };
    let mut written = *iv;
    let plaintext = session.decrypt(&gcm(&mut written, aad.with_iv(iv))?, key, ciphertext_and_tag);
    let plaintext = Plaintext::new(plaintext?);
    if plaintext.len() != length {
        return Err(Failure::lie("C_Decrypt gave another length"));
    }
    Ok(plaintext)
}

/// Draws random bytes, and refuses a generator that repeats itself.
pub(crate) fn random(
    session: &Session,
    test: &mut Continuous,
    length: usize,
) -> Result<Plaintext, Failure> {
    let mut bytes = test.draw(length, |bytes| Ok(session.generate_random_slice(bytes)?))?;
    Ok(Plaintext::new(std::mem::take(&mut *bytes)))
}

/// Computes an HMAC-SHA-256.
pub(crate) fn mac(session: &Session, key: ObjectHandle, input: &[u8]) -> Result<RowMac, Failure> {
    let mac = session.sign(&Mechanism::Sha256Hmac, key, input)?;
    mac.try_into().map(RowMac).map_err(|_| Failure::lie("C_Sign gave another length"))
}

/// Verifies the client's check value of an import. The inner error is the module's own, to be judged by whoever knows the key.
pub(crate) fn verify_import_check(
    session: &Session,
    key: ObjectHandle,
    check: &ImportCheck,
    aad: &[u8],
) -> Result<Result<(), Error>, Failure> {
    let mut iv = check.iv;
    match session.decrypt(&gcm(&mut iv, aad)?, key, &check.tag) {
        Ok(nothing) if nothing.is_empty() => Ok(Ok(())),
        Ok(_) => Err(Failure::lie("C_Decrypt gave another length")),
        Err(error) => Ok(Err(error)),
    }
}

/// Verifies the check blob of a key with a key object: the canary, and the end of every load.
///
/// Returns whether it fits. [`Failure::Ambiguous`] is an answer of "no" of a module that says so for a wrong tag.
pub(crate) fn check_fits(
    session: &Session,
    key: ObjectHandle,
    source: &KeySource,
) -> Result<bool, Failure> {
    let mut aad = CheckBlob::aad(source.key_uid, source.version);
    let CheckBlob { iv, ciphertext_and_tag } = &source.check;
    match decrypt(session, key, &mut aad, iv, ciphertext_and_tag) {
        Ok(pattern) => Ok(equal_in_constant_time(pattern.expose(), CheckBlob::PATTERN)),
        Err(Failure::Answer(HsmError::CiphertextInvalid)) => Ok(false),
        Err(failure) => Err(failure),
    }
}
