//! Types of secrets: they wipe on drop, and neither print nor compare in variable time.

use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// A plaintext or a data key in the clear.
///
/// Wiped when dropped. Copies we cannot wipe: the buffers of TLS and HTTP/2 below us, and what the caller keeps.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Plaintext(Vec<u8>);

impl Plaintext {
    /// Takes ownership of the bytes; the vector must not have been grown after it held the secret.
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// Lends the bytes.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Hands the bytes over to one who wipes them.
    pub fn into_zeroizing(mut self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(std::mem::take(&mut self.0))
    }

    /// Returns the length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Plaintext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plaintext({} bytes)", self.0.len())
    }
}

impl PartialEq for Plaintext {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Plaintext {}

/// The user PIN of a token.
///
/// Wiped when dropped. Copies we cannot wipe: the module's own, while it is logged in.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Pin(String);

impl Pin {
    /// Takes ownership of the text.
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// Lends the text.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pin(redacted)")
    }
}

/// The password of a database.
///
/// Wiped when dropped. Copies we cannot wipe: those of the driver, which proves it at every connection.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Password(String);

impl Password {
    /// Takes ownership of the text; it must not have been grown after it held the secret.
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// Lends the text.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Password({} bytes)", self.0.len())
    }
}

impl PartialEq for Password {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for Password {}

/// Compares two MACs or tags in constant time.
pub fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_type_and_length_only() {
        assert_eq!(format!("{:?}", Plaintext::new(b"canary".to_vec())), "Plaintext(6 bytes)");
        assert_eq!(format!("{:?}", Pin::new("canary".into())), "Pin(redacted)");
        assert_eq!(format!("{:?}", Password::new("canary".into())), "Password(6 bytes)");
    }

    #[test]
    fn passwords_are_equal_when_every_byte_is() {
        let password = |text: &str| Password::new(text.to_owned());
        assert_eq!(password("canary"), password("canary"));
        assert_ne!(password("canary"), password("canarz"));
        assert_ne!(password("canary"), password("canary "));
    }

    /// Reads what stands at an address of this process, whoever it belongs to by now.
    #[cfg(target_os = "linux")]
    fn memory_at(address: usize, length: usize) -> Vec<u8> {
        use std::os::unix::fs::FileExt as _;
        let mut bytes = vec![0; length];
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        memory.read_exact_at(&mut bytes, address as u64).unwrap();
        bytes
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_secret_that_is_dropped_is_wiped() {
        const CANARY: &str = "canary-b1f7e2c4-";
        let (plaintext, pin, password) = (
            Plaintext::new(CANARY.repeat(64).into()),
            Pin::new(CANARY.repeat(64)),
            Password::new(CANARY.repeat(64)),
        );
        let length = plaintext.len();
        let addresses = [
            plaintext.expose().as_ptr().addr(),
            pin.expose().as_ptr().addr(),
            password.expose().as_ptr().addr(),
        ];
        assert!(
            addresses
                .map(|at| memory_at(at, length))
                .iter()
                .all(|bytes| { bytes == CANARY.repeat(64).as_bytes() })
        );
        drop((plaintext, pin, password));
        for address in addresses {
            let left = memory_at(address, length);
            let found = left.windows(CANARY.len()).any(|window| window == CANARY.as_bytes());
            assert!(!found, "it is still there");
        }
    }

    #[test]
    fn comparison_sees_every_byte_and_the_length() {
        assert!(equal_in_constant_time(b"ab", b"ab"));
        assert!(!equal_in_constant_time(b"ab", b"ac"));
        assert!(!equal_in_constant_time(b"ab", b"abc"));
    }
}
