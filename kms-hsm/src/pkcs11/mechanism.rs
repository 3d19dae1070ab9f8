//! The mechanisms we use, by the names that cryptoki has for them.
//!
//! AES-KWP (RFC 5649) is mechanism 0x210B of PKCS#11 v3.1; SoftHSM 2.6.1 has it as 0x210A (CKM_AES_KEY_WRAP_PAD), with
//! the same bytes for 32-byte keys. cryptoki 0.12.1 can name 0x210A only: `MechanismType` refuses numbers it has no
//! name for below CKM_VENDOR_DEFINED. TODO when cryptoki names CKM_AES_KEY_WRAP_KWP: prefer it where the token has it.

use cryptoki::context::Pkcs11;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::slot::Slot;
use kms_core::envelope::{Iv, TAG_BYTES};
use kms_core::import::OaepHash;

use crate::error::HsmError;
use crate::pkcs11::ckr::Failure;

/// What wraps keys.
pub(crate) const KWP: Mechanism<'static> = Mechanism::AesKeyWrapPad;
/// The only mechanism a root `wrap` allows.
pub(crate) const KWP_TYPE: MechanismType = MechanismType::AES_KEY_WRAP_PAD;
/// Length of the KWP of a 32-byte key: RFC 5649 §3.
pub(crate) const WRAPPED_KEY_BYTES: usize = 40;

/// What the provider cannot do without.
const NEEDED: [(MechanismType, &str); 5] = [
    (MechanismType::AES_KEY_GEN, "CKM_AES_KEY_GEN"),
    (MechanismType::AES_GCM, "CKM_AES_GCM"),
    (MechanismType::AES_KEY_WRAP_PAD, "CKM_AES_KEY_WRAP_PAD"),
    (MechanismType::GENERIC_SECRET_KEY_GEN, "CKM_GENERIC_SECRET_KEY_GEN"),
    (MechanismType::SHA256_HMAC, "CKM_SHA256_HMAC"),
];

/// Refuses a token that lacks a mechanism.
pub(crate) fn check(context: &Pkcs11, slot: Slot) -> Result<(), Failure> {
    let there = context.get_mechanism_list(slot)?;
    for (mechanism, name) in NEEDED {
        if !there.contains(&mechanism) {
            return Err(Failure::Answer(HsmError::MechanismMissing { mechanism: name }));
        }
    }
    Ok(())
}

/// Makes the mechanism of an import: no label, MGF1 with the same hash.
pub(crate) fn oaep(hash: OaepHash) -> Mechanism<'static> {
    let (hash, mask) = match hash {
        OaepHash::Sha1 => (MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
        OaepHash::Sha256 => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
    };
    Mechanism::RsaPkcsOaep(PkcsOaepParams::new(hash, mask, PkcsOaepSource::empty()))
}

/// Names the mechanism of an import, for those whose token lacks it.
pub(crate) const fn oaep_name(hash: OaepHash) -> &'static str {
    match hash {
        OaepHash::Sha1 => "CKM_RSA_PKCS_OAEP with SHA-1",
        OaepHash::Sha256 => "CKM_RSA_PKCS_OAEP with SHA-256",
    }
}

/// Makes the parameters of one AES-GCM invocation: 96-bit IV, 128-bit tag.
pub(crate) fn gcm<'a>(iv: &'a mut Iv, aad: &'a [u8]) -> Result<Mechanism<'a>, Failure> {
    const TAG_BITS: u64 = TAG_BYTES as u64 * 8;
    Ok(Mechanism::AesGcm(GcmParams::new(iv, aad, TAG_BITS.into())?))
}
