//! Import of key material (BYOK): methods, the client's half, and the check value (docs/formats.md, "Import").
//!
//! The client seals its key to the public key of an import job and proves with the check value which key it meant. The HSM
//! opens the one and verifies the other; nobody in between sees the key.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrapPadded as _};
use aws_lc_rs::rand;
use aws_lc_rs::rsa::{
    OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey,
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::canonical::CanonicalWriter;
use crate::domain;
use crate::envelope::{IV_BYTES, Iv, TAG_BYTES};
use crate::id::RequestId;

/// Length of every key that is imported.
pub const IMPORTED_KEY_BYTES: usize = 32;
/// Length of the KWP of such a key: RFC 5649 §3.
pub const KWP_BYTES: usize = 40;
/// Length of a check value: IV and tag.
pub const IMPORT_CHECK_BYTES: usize = IV_BYTES + TAG_BYTES;

/// The hash of RSA-OAEP, and of its MGF1 (RFC 8017 §7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OaepHash {
    /// SHA-1: not broken for OAEP, but on nobody's list any more; all that SoftHSM 2.6.1 has.
    Sha1,
    /// SHA-256.
    Sha256,
}

/// How key material is sealed for an import.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ImportMethod {
    /// RSA-OAEP with SHA-256 of the key.
    RsaOaepSha256,
    /// RSA-OAEP with SHA-1 of the key.
    RsaOaepSha1,
    /// RSA-OAEP with SHA-256 of an AES-256 key, then the KWP of the key under that one.
    RsaOaepSha256AesKwp,
    /// RSA-OAEP with SHA-1 of an AES-256 key, then the KWP of the key under that one.
    RsaOaepSha1AesKwp,
}

impl ImportMethod {
    /// All methods.
    pub const ALL: [Self; 4] = [
        Self::RsaOaepSha256,
        Self::RsaOaepSha1,
        Self::RsaOaepSha256AesKwp,
        Self::RsaOaepSha1AesKwp,
    ];

    /// Returns the name used on the wire, in columns and in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RsaOaepSha256 => "RSA_OAEP_SHA256",
            Self::RsaOaepSha1 => "RSA_OAEP_SHA1",
            Self::RsaOaepSha256AesKwp => "RSA_OAEP_SHA256_AES_KWP",
            Self::RsaOaepSha1AesKwp => "RSA_OAEP_SHA1_AES_KWP",
        }
    }

    /// Reads the name; `None` when it is none of them.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.as_str() == text)
    }

    /// Returns the hash of its RSA-OAEP.
    pub const fn hash(self) -> OaepHash {
        match self {
            Self::RsaOaepSha256 | Self::RsaOaepSha256AesKwp => OaepHash::Sha256,
            Self::RsaOaepSha1 | Self::RsaOaepSha1AesKwp => OaepHash::Sha1,
        }
    }

    /// Returns whether RSA seals an AES key, and that the key.
    pub const fn is_two_steps(self) -> bool {
        match self {
            Self::RsaOaepSha256AesKwp | Self::RsaOaepSha1AesKwp => true,
            Self::RsaOaepSha256 | Self::RsaOaepSha1 => false,
        }
    }

    /// Returns how long a sealed 32-byte key is.
    pub const fn sealed_bytes(self, size: RsaSize) -> usize {
        if self.is_two_steps() { size.bytes() + KWP_BYTES } else { size.bytes() }
    }
}

impl fmt::Display for ImportMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The size of the RSA key of an import job (SP 800-57 Part 1 §5.6.1: 128 bits of strength and more).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RsaSize {
    /// 3072 bits.
    #[default]
    Bits3072,
    /// 4096 bits.
    Bits4096,
}

impl RsaSize {
    /// Both sizes.
    pub const ALL: [Self; 2] = [Self::Bits3072, Self::Bits4096];

    /// Returns the length of the modulus in bits.
    pub const fn bits(self) -> u16 {
        match self {
            Self::Bits3072 => 3072,
            Self::Bits4096 => 4096,
        }
    }

    /// Returns the length of the modulus, and of what is sealed with it, in bytes.
    pub const fn bytes(self) -> usize {
        self.bits() as usize / 8
    }

    /// Returns the size of so many bits.
    pub fn from_bits(bits: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|size| u32::from(size.bits()) == bits)
    }
}

/// The check value of an import: AES-256-GCM of nothing with the key, which is GMAC (SP 800-38D §3), over the name of the job.
///
/// It is what the profile of a key permits, `openssl mac` makes it, and it shows no more of the key than any ciphertext.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImportCheck {
    /// The IV, drawn by the client. One invocation of the key.
    pub iv: Iv,
    /// The tag.
    pub tag: [u8; TAG_BYTES],
}

impl ImportCheck {
    /// Returns what is authenticated: the domain, one space, and the name of the import job.
    pub fn aad(job: &str) -> Vec<u8> {
        [domain::IMPORT_CHECK_AAD, b" ", job.as_bytes()].concat()
    }

    /// Returns the IV for a request: the same for every repeat of it, which is to be the same request, and another for any other
    /// request and any other job. So no key ever makes two check values of one IV.
    pub fn iv(job: &str, request_id: RequestId) -> Iv {
        let input = CanonicalWriter::new(domain::IMPORT_CHECK_IV)
            .bytes(request_id.as_bytes())
            .text(job)
            .finish();
        let mut iv = Iv::default();
        let hash = digest(&SHA256, &input);
        iv.iter_mut().zip(hash.as_ref()).for_each(|(byte, drawn)| *byte = *drawn);
        iv
    }

    /// Computes the check value of a key.
    ///
    /// # Errors
    /// When the library refuses.
    pub fn compute(key: &[u8; IMPORTED_KEY_BYTES], iv: Iv, job: &str) -> Result<Self, SealError> {
        let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| SealError::Refused)?;
        let nonce = Nonce::assume_unique_for_key(iv);
        let tag = LessSafeKey::new(key)
            .seal_in_place_separate_tag(nonce, Aad::from(Self::aad(job)), &mut [])
            .map_err(|_| SealError::Refused)?;
        let tag = tag.as_ref().try_into().map_err(|_| SealError::Refused)?;
        Ok(Self { iv, tag })
    }

    /// Returns whether it is the check value of a key that everybody knows: all bytes alike.
    pub fn is_of_weak_key(&self, job: &str) -> bool {
        (0..=u8::MAX).any(|byte| {
            Self::compute(&[byte; IMPORTED_KEY_BYTES], self.iv, job)
                .is_ok_and(|known| known == *self)
        })
    }

    /// Returns IV, then tag.
    pub fn to_bytes(self) -> [u8; IMPORT_CHECK_BYTES] {
        let mut bytes = [0; IMPORT_CHECK_BYTES];
        let (iv, tag) = bytes.split_at_mut(IV_BYTES);
        iv.copy_from_slice(&self.iv);
        tag.copy_from_slice(&self.tag);
        bytes
    }

    /// Reads IV, then tag; `None` when it is not 28 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (iv, rest) = bytes.split_first_chunk::<IV_BYTES>()?;
        Some(Self { iv: *iv, tag: rest.try_into().ok()? })
    }
}

/// Returns whether a key is one that everybody knows: all bytes alike.
pub fn is_weak(key: &[u8; IMPORTED_KEY_BYTES]) -> bool {
    let [first, rest @ ..] = key;
    // Every byte is looked at, whatever the ones before it say.
    rest.iter().fold(0, |differs, byte| differs | (byte ^ first)) == 0
}

/// Why a key is not sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// All bytes are alike.
    #[error("the key is weak: all its bytes are alike")]
    WeakKey,
    /// The public key is none.
    #[error("the public key of the import job is not an RSA key that can be used")]
    PublicKey,
    /// The library refuses.
    #[error("the cryptographic library refuses")]
    Refused,
}

/// A key, sealed by its owner.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedImport {
    /// The sealed key: [`ImportMethod::sealed_bytes`] long.
    pub wrapped: Vec<u8>,
    /// Its check value.
    pub check: ImportCheck,
}

impl fmt::Debug for SealedImport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedImport({} bytes)", self.wrapped.len())
    }
}

/// The client's half: seals a key to the public key (SubjectPublicKeyInfo, DER) of the job with this name.
///
/// # Errors
/// [`SealError::WeakKey`] before anything is made of it, [`SealError::PublicKey`].
pub fn seal(
    method: ImportMethod,
    public_key: &[u8],
    job: &str,
    key: &[u8; IMPORTED_KEY_BYTES],
) -> Result<SealedImport, SealError> {
    if is_weak(key) {
        return Err(SealError::WeakKey);
    }
    let mut iv = Iv::default();
    rand::fill(&mut iv).map_err(|_| SealError::Refused)?;
    let check = ImportCheck::compute(key, iv, job)?;
    Ok(SealedImport { wrapped: wrap(method, public_key, key)?, check })
}

/// Seals any bytes as [`seal`] does a key, with neither check: for tests of those who open it.
///
/// # Errors
/// As [`seal`].
pub fn wrap(method: ImportMethod, public_key: &[u8], key: &[u8]) -> Result<Vec<u8>, SealError> {
    if !method.is_two_steps() {
        return oaep(method.hash(), public_key, key);
    }
    let mut kek = Zeroizing::new([0; IMPORTED_KEY_BYTES]);
    rand::fill(&mut *kek).map_err(|_| SealError::Refused)?;
    let mut wrapped = oaep(method.hash(), public_key, &*kek)?;
    let kek = AesKek::new(&AES_256, &*kek).map_err(|_| SealError::Refused)?;
    // aws-lc-rs asks for the input's length and 15 bytes more.
    let mut blob = vec![0; key.len() + 15];
    let blob = kek.wrap_with_padding(key, &mut blob).map_err(|_| SealError::Refused)?;
    wrapped.extend_from_slice(blob);
    Ok(wrapped)
}

fn oaep(hash: OaepHash, public_key: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, SealError> {
    let key = PublicEncryptingKey::from_der(public_key).map_err(|_| SealError::PublicKey)?;
    let key = OaepPublicEncryptingKey::new(key).map_err(|_| SealError::PublicKey)?;
    let algorithm = match hash {
        OaepHash::Sha1 => &OAEP_SHA1_MGF1SHA1,
        OaepHash::Sha256 => &OAEP_SHA256_MGF1SHA256,
    };
    let mut sealed = vec![0; key.ciphertext_size()];
    let length =
        key.encrypt(algorithm, plaintext, &mut sealed, None).map_err(|_| SealError::Refused)?.len();
    sealed.truncate(length);
    Ok(sealed)
}

/// Writes an RSA public key as SubjectPublicKeyInfo, DER (RFC 8017 appendix A.1.1, RFC 3279 §2.3.1).
pub fn public_key_der(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    /// rsaEncryption with NULL parameters.
    const ALGORITHM: [u8; 15] =
        [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
    let numbers = [integer(modulus), integer(exponent)].concat();
    let bits = [&[0][..], &value(0x30, &numbers)].concat();
    value(0x30, &[&ALGORITHM[..], &value(0x03, &bits)].concat())
}

/// A number that is never negative: a zero stands before a set top bit, and no other.
fn integer(bytes: &[u8]) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let digits = bytes.get(zeros..).unwrap_or_default();
    let sign: &[u8] = match digits.first() {
        Some(first) if *first < 0x80 => &[],
        Some(_) | None => &[0],
    };
    value(0x02, &[sign, digits].concat())
}

fn value(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let zeros = length.iter().take_while(|byte| **byte == 0).count();
    let digits = length.get(zeros..).unwrap_or_default();
    let head = match *digits {
        [] => vec![tag, 0],
        [short] if short < 0x80 => vec![tag, short],
        // At most eight digits: their count fits beside the bit.
        _ => [&[tag, 0x80 | digits.len().to_le_bytes()[0]][..], digits].concat(),
    };
    [&head, content].concat()
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
    use aws_lc_rs::rsa::{KeySize, OaepPrivateDecryptingKey, PrivateDecryptingKey};

    use super::*;

    const JOB: &str = "tenants/t/keys/k/importJobs/j";

    fn key() -> [u8; 32] {
        std::array::from_fn(|number| u8::try_from(number).unwrap())
    }

    #[test]
    fn a_sealed_key_opens_with_the_private_key_and_has_its_length() {
        let private = PrivateDecryptingKey::generate(KeySize::Rsa3072).unwrap();
        let der: PublicKeyX509Der<'_> = private.public_key().as_der().unwrap();
        let private = OaepPrivateDecryptingKey::new(private).unwrap();
        for method in ImportMethod::ALL {
            let sealed = seal(method, der.as_ref(), JOB, &key()).unwrap();
            assert_eq!(sealed.wrapped.len(), method.sealed_bytes(RsaSize::Bits3072), "{method}");
            let (head, tail) = sealed.wrapped.split_at(RsaSize::Bits3072.bytes());
            let algorithm = match method.hash() {
                OaepHash::Sha1 => &OAEP_SHA1_MGF1SHA1,
                OaepHash::Sha256 => &OAEP_SHA256_MGF1SHA256,
            };
            let mut opened = vec![0; head.len()];
            let opened = private.decrypt(algorithm, head, &mut opened, None).unwrap();
            let mut output = [0; KWP_BYTES];
            let opened = if method.is_two_steps() {
                let kek = AesKek::new(&AES_256, opened).unwrap();
                &*kek.unwrap_with_padding(tail, &mut output).unwrap()
            } else {
                opened
            };
            assert_eq!(opened, key(), "{method}");
        }
    }

    #[test]
    fn a_public_key_is_written_as_others_write_it() {
        let private = PrivateDecryptingKey::generate(KeySize::Rsa4096).unwrap();
        let der: PublicKeyX509Der<'_> = private.public_key().as_der().unwrap();
        // SEQUENCE, algorithm, BIT STRING, SEQUENCE and INTEGER of long lengths, then the sign.
        let start = 4 + 15 + 4 + 1 + 4 + 4 + 1;
        let modulus = &der.as_ref()[start..start + 512];
        assert_eq!(public_key_der(modulus, &[1, 0, 1]), der.as_ref());
        assert_eq!(public_key_der(&[&[0, 0][..], modulus].concat(), &[1, 0, 1]), der.as_ref());
    }

    #[test]
    fn numbers_and_lengths_have_one_form() {
        assert_eq!(integer(&[0x7f]), [2, 1, 0x7f]);
        assert_eq!(integer(&[0x80]), [2, 2, 0, 0x80]);
        assert_eq!(integer(&[0, 0, 1]), [2, 1, 1]);
        assert_eq!(integer(&[]), [2, 1, 0]);
        assert_eq!(value(4, &[]), [4, 0]);
        assert_eq!(value(4, &[7; 127])[..2], [4, 127]);
        assert_eq!(value(4, &[7; 128])[..3], [4, 0x81, 128]);
        assert_eq!(value(4, &[7; 256])[..4], [4, 0x82, 1, 0]);
    }

    #[test]
    fn a_check_value_is_of_one_key_iv_and_job() {
        let check = ImportCheck::compute(&key(), [7; 12], JOB).unwrap();
        assert_eq!(ImportCheck::from_bytes(&check.to_bytes()), Some(check));
        let others = [
            ImportCheck::compute(&[9; 32], [7; 12], JOB),
            ImportCheck::compute(&key(), [8; 12], JOB),
            ImportCheck::compute(&key(), [7; 12], "tenants/t/keys/k/importJobs/i"),
        ];
        for other in others {
            assert_ne!(other.unwrap().tag, check.tag);
        }
        for length in [0, 27, 29] {
            assert_eq!(ImportCheck::from_bytes(&vec![0; length]), None);
        }
    }

    #[test]
    fn an_iv_is_of_one_request_and_job() {
        let id = |byte| RequestId::from_bytes([byte; 16]);
        let iv = ImportCheck::iv(JOB, id(1));
        assert_eq!(data_encoding::HEXLOWER.encode(&iv), "2fa6cb48393cf7938023dfce");
        assert_eq!(iv, ImportCheck::iv(JOB, id(1)));
        assert_ne!(iv, ImportCheck::iv(JOB, id(2)));
        assert_ne!(iv, ImportCheck::iv("tenants/t/keys/k/importJobs/i", id(1)));
    }

    /// The tag by `openssl mac -cipher AES-256-GCM -macopt hexkey:... -macopt hexiv:... GMAC` (OpenSSL 3.0.19).
    #[test]
    fn the_check_value_is_what_openssl_computes() {
        let check = ImportCheck::compute(&key(), [7; 12], JOB).unwrap();
        assert_eq!(data_encoding::HEXLOWER.encode(&check.tag), "5f9493dc5e059255350ec987ee6f813e");
    }

    #[test]
    fn keys_of_equal_bytes_are_weak_and_are_found_out_by_their_check_value() {
        for byte in [0, 1, 0xff] {
            assert!(is_weak(&[byte; 32]));
            let check = ImportCheck::compute(&[byte; 32], [3; 12], JOB).unwrap();
            assert!(check.is_of_weak_key(JOB));
            assert!(!check.is_of_weak_key("tenants/t/keys/k/importJobs/i"));
        }
        let mut last = [7; 32];
        last[31] = 8;
        assert!(!is_weak(&last));
        assert!(!ImportCheck::compute(&last, [3; 12], JOB).unwrap().is_of_weak_key(JOB));
        assert_eq!(seal(ImportMethod::RsaOaepSha256, &[], JOB, &[7; 32]), Err(SealError::WeakKey));
        assert_eq!(seal(ImportMethod::RsaOaepSha256, &[], JOB, &last), Err(SealError::PublicKey));
    }

    #[test]
    fn names_and_sizes_read_back() {
        for method in ImportMethod::ALL {
            assert_eq!(ImportMethod::parse(method.as_str()), Some(method));
        }
        assert_eq!(ImportMethod::parse("RSA_PKCS1"), None);
        for size in RsaSize::ALL {
            assert_eq!(RsaSize::from_bits(size.bits().into()), Some(size));
        }
        assert_eq!(RsaSize::from_bits(2048), None);
    }
}
