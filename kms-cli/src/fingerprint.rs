//! The fingerprint by which people compare a public key that came by another way: the SHA-256 of its SubjectPublicKeyInfo (DER).
//!
//! It is what `sha256sum` says of the file that `--public-key-out` writes. Public keys are no secrets; nothing here is.

use std::fmt;

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};

/// The fingerprint of a public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; SHA256_OUTPUT_LEN]);

impl Fingerprint {
    /// Computes that of a public key, SubjectPublicKeyInfo as DER.
    pub fn of(public_key: &[u8]) -> Self {
        let mut bytes = [0; SHA256_OUTPUT_LEN];
        bytes.copy_from_slice(digest(&SHA256, public_key).as_ref());
        Self(bytes)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

/// Reads a fingerprint: 64 hexadecimal digits, of either case.
///
/// # Errors
/// The text for whoever typed it.
pub fn fingerprint(text: &str) -> Result<Fingerprint, String> {
    let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok();
    let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
    bytes.map(Fingerprint).ok_or_else(|| "it must be 64 hexadecimal digits".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-2, appendix B.1.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_fingerprint_is_read_in_either_case_and_written_in_lower() {
        assert_eq!(Fingerprint::of(b"abc").to_string(), ABC);
        assert_eq!(fingerprint(ABC), Ok(Fingerprint::of(b"abc")));
        assert_eq!(fingerprint(&ABC.to_uppercase()), Ok(Fingerprint::of(b"abc")));
    }

    #[test]
    fn what_is_no_fingerprint_is_refused() {
        let short = [1, 2].map(|by| ABC.split_at(by).1);
        for wrong in ["", short[0], short[1], &format!("{ABC}0"), &format!("{ABC}00")] {
            assert!(fingerprint(wrong).is_err(), "{wrong}");
        }
        assert!(fingerprint(&ABC.replace('b', "g")).is_err());
    }
}
