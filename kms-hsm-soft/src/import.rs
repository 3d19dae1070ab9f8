//! Import: key pairs of import jobs, and what is opened with them.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::aead::{self, Nonce};
use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrapPadded as _};
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey,
    PrivateDecryptingKey,
};
use kms_core::import::{IMPORTED_KEY_BYTES, OaepHash, RsaSize};
use kms_hsm::{HsmError, KeyImport};
use zeroize::Zeroizing;

use crate::crypto;
use crate::device::Secret;

const FAILED: HsmError = HsmError::Bug { reason: "aws-lc-rs refused" };

/// How many key pairs of a size a process makes. One takes a second, and tests want hundreds.
const PAIRS: usize = 8;

/// Makes a key pair, or takes the one that was made longest ago again; returns the public key as DER, too.
pub(crate) fn key_pair(size: RsaSize) -> Result<(PrivateDecryptingKey, Vec<u8>), HsmError> {
    static MADE: [Mutex<VecDeque<Vec<u8>>>; 2] = [const { Mutex::new(VecDeque::new()) }; 2];
    let [small, large] = &MADE;
    let (size, made) = match size {
        RsaSize::Bits3072 => (KeySize::Rsa3072, small),
        RsaSize::Bits4096 => (KeySize::Rsa4096, large),
    };
    let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
    let oldest = if made.len() < PAIRS { None } else { made.pop_front() };
    let (private, pair) = if let Some(pair) = oldest {
        (PrivateDecryptingKey::from_pkcs8(&pair).map_err(|_| FAILED)?, pair)
    } else {
        let private = PrivateDecryptingKey::generate(size).map_err(|_| FAILED)?;
        let pair: Pkcs8V1Der<'_> = private.as_der().map_err(|_| FAILED)?;
        let pair = pair.as_ref().to_vec();
        (private, pair)
    };
    made.push_back(pair);
    let public: PublicKeyX509Der<'_> = private.public_key().as_der().map_err(|_| FAILED)?;
    let public = public.as_ref().to_vec();
    Ok((private, public))
}

/// Opens a sealed key and verifies its check value.
pub(crate) fn open(import: &KeyImport, private: PrivateDecryptingKey) -> Result<Secret, HsmError> {
    let length = import.method.sealed_bytes(import.job.size);
    if import.method.hash() != import.job.hash || import.wrapped.len() != length {
        return Err(HsmError::ImportMaterialInvalid);
    }
    let (head, tail) = import
        .wrapped
        .split_at_checked(import.job.size.bytes())
        .ok_or(HsmError::ImportMaterialInvalid)?;
    let opened = oaep(import.job.hash, private, head)?;
    let opened = if import.method.is_two_steps() { kwp(&opened, tail)? } else { opened };
    let secret: [u8; IMPORTED_KEY_BYTES] =
        opened.as_slice().try_into().map_err(|_| HsmError::ImportKeyLength)?;
    let secret = Zeroizing::new(secret);
    let mut nothing = import.check.tag;
    crypto::aead(&secret)?
        .open_in_place(
            Nonce::assume_unique_for_key(import.check.iv),
            aead::Aad::from(&import.check_aad),
            &mut nothing,
        )
        .map_err(|_| HsmError::ImportCheckMismatch)?;
    Ok(secret)
}

fn oaep(
    hash: OaepHash,
    private: PrivateDecryptingKey,
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, HsmError> {
    let algorithm = match hash {
        OaepHash::Sha1 => &OAEP_SHA1_MGF1SHA1,
        OaepHash::Sha256 => &OAEP_SHA256_MGF1SHA256,
    };
    let private = OaepPrivateDecryptingKey::new(private).map_err(|_| FAILED)?;
    let mut opened = Zeroizing::new(vec![0; private.min_output_size()]);
    let length = private
        .decrypt(algorithm, sealed, &mut opened, None)
        .map_err(|_| HsmError::ImportMaterialInvalid)?
        .len();
    opened.truncate(length);
    Ok(opened)
}

fn kwp(kek: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, HsmError> {
    let kek = AesKek::new(&AES_256, kek).map_err(|_| HsmError::ImportMaterialInvalid)?;
    let mut opened = Zeroizing::new(vec![0; sealed.len()]);
    let length = kek
        .unwrap_with_padding(sealed, &mut opened)
        .map_err(|_| HsmError::ImportMaterialInvalid)?
        .len();
    opened.truncate(length);
    Ok(opened)
}
