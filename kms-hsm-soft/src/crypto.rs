//! AES-256-GCM, AES-KWP, HMAC-SHA-256 and randomness, by aws-lc-rs.

use aws_lc_rs::aead::{self, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrapPadded as _};
use aws_lc_rs::{hmac, rand};
use kms_core::envelope::{Aad, Iv, TAG_BYTES};
use kms_core::secret::Plaintext;
use kms_hsm::{HsmError, Sealed};
use zeroize::{Zeroize as _, Zeroizing};

use crate::device::Secret;

/// Length of the KWP of a 32-byte key: RFC 5649 §3.
const WRAPPED_KEY_BYTES: usize = 40;

const FAILED: HsmError = HsmError::Bug { reason: "aws-lc-rs refused" };

pub(crate) fn fill(bytes: &mut [u8]) -> Result<(), HsmError> {
    rand::fill(bytes).map_err(|_| FAILED)
}

pub(crate) fn secret() -> Result<Secret, HsmError> {
    let mut secret = Zeroizing::new([0; 32]);
    fill(&mut *secret)?;
    Ok(secret)
}

pub(crate) fn aead(secret: &Secret) -> Result<LessSafeKey, HsmError> {
    let key = UnboundKey::new(&aead::AES_256_GCM, &secret[..]).map_err(|_| FAILED)?;
    Ok(LessSafeKey::new(key))
}

pub(crate) fn encrypt(
    key: &LessSafeKey,
    aad: &mut Aad,
    plaintext: &[u8],
) -> Result<(Iv, Sealed), HsmError> {
    let mut iv = Iv::default();
    fill(&mut iv)?;
    let mut buffer = Vec::with_capacity(plaintext.len() + TAG_BYTES);
    buffer.extend_from_slice(plaintext);
    let sealed = key.seal_in_place_append_tag(
        Nonce::assume_unique_for_key(iv),
        aead::Aad::from(aad.with_iv(&iv)),
        &mut buffer,
    );
    if sealed.is_err() {
        buffer.zeroize();
        return Err(FAILED);
    }
    Ok((iv, Sealed::from_vec(buffer)))
}

pub(crate) fn decrypt(
    key: &LessSafeKey,
    aad: &mut Aad,
    iv: &Iv,
    ciphertext_and_tag: &[u8],
) -> Result<Plaintext, HsmError> {
    let mut buffer = Zeroizing::new(ciphertext_and_tag.to_vec());
    let nonce = Nonce::assume_unique_for_key(*iv);
    let length = key
        .open_in_place(nonce, aead::Aad::from(aad.with_iv(iv)), &mut buffer)
        .map_err(|_| HsmError::CiphertextInvalid)?
        .len();
    buffer.truncate(length);
    Ok(Plaintext::new(std::mem::take(&mut *buffer)))
}

/// RFC 5649.
pub(crate) fn wrap(kek: &Secret, key: &[u8; 32]) -> Result<Vec<u8>, HsmError> {
    let kek = AesKek::new(&AES_256, &kek[..]).map_err(|_| FAILED)?;
    // aws-lc-rs asks for the input's length and 15 bytes more.
    let mut output = [0; 32 + 15];
    let wrapped = kek.wrap_with_padding(key, &mut output).map_err(|_| FAILED)?;
    Ok(wrapped.to_vec())
}

/// The inverse.
pub(crate) fn unwrap(kek: &Secret, blob: &[u8]) -> Result<Secret, HsmError> {
    let broken = || HsmError::KeyIntegrity { detail: "the wrapped key does not unwrap".into() };
    if blob.len() != WRAPPED_KEY_BYTES {
        return Err(broken());
    }
    let kek = AesKek::new(&AES_256, &kek[..]).map_err(|_| FAILED)?;
    let mut output = Zeroizing::new([0; WRAPPED_KEY_BYTES]);
    let key = kek.unwrap_with_padding(blob, &mut *output).map_err(|_| broken())?;
    Ok(Zeroizing::new((&*key).try_into().map_err(|_| broken())?))
}

pub(crate) fn mac_key(secret: &Secret) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &secret[..])
}

pub(crate) fn mac(key: &hmac::Key, input: &[u8]) -> Result<[u8; 32], HsmError> {
    hmac::sign(key, input).as_ref().try_into().map_err(|_| FAILED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapping_is_rfc_5649_and_deterministic() {
        let (kek, key) = (Zeroizing::new([1; 32]), [2; 32]);
        let blob = wrap(&kek, &key).unwrap();
        assert_eq!(blob.len(), WRAPPED_KEY_BYTES);
        assert_eq!(wrap(&kek, &key).unwrap(), blob);
        assert_eq!(*unwrap(&kek, &blob).unwrap(), key);
        assert!(unwrap(&Zeroizing::new([3; 32]), &blob).is_err());
    }
}
