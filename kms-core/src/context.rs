//! The encryption context: what a ciphertext is bound to besides its key.
//!
//! Bound as AAD, usable in policy. Bytes are taken as given, without normalisation. Format: docs/formats.md,
//! "Canonical context".

use std::collections::BTreeMap;

/// The most pairs a context may have.
pub const MAX_PAIRS: usize = 32;
/// The longest key of a pair, in bytes.
pub const MAX_KEY_BYTES: usize = 128;
/// The longest value of a pair, in bytes.
pub const MAX_VALUE_BYTES: usize = 1024;
/// The most bytes that all keys and values may have together.
pub const MAX_TOTAL_BYTES: usize = 8 * 1024;
/// Keys that start so are reserved for facades and refused from callers.
pub const RESERVED_PREFIX: &str = "kms:";

/// Why pairs are not an encryption context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidContext {
    /// More than [`MAX_PAIRS`].
    #[error("more than 32 pairs")]
    TooManyPairs,
    /// A key is empty or longer than [`MAX_KEY_BYTES`].
    #[error("a key is empty or longer than 128 bytes")]
    KeyLength,
    /// A value is longer than [`MAX_VALUE_BYTES`].
    #[error("a value is longer than 1024 bytes")]
    ValueLength,
    /// Together more than [`MAX_TOTAL_BYTES`].
    #[error("keys and values together are longer than 8192 bytes")]
    TotalLength,
    /// The same key twice.
    #[error("a key is given twice")]
    DuplicateKey,
    /// A key starts with [`RESERVED_PREFIX`].
    #[error("keys starting with `kms:` are reserved")]
    ReservedKey,
}

/// A checked encryption context, sorted by the bytes of its keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncryptionContext(BTreeMap<String, String>);

impl EncryptionContext {
    /// Checks a caller's pairs.
    ///
    /// # Errors
    /// Says which bound is broken; a context at every bound is accepted.
    pub fn from_caller<I>(pairs: I) -> Result<Self, InvalidContext>
    where
        I: IntoIterator<Item = (String, String)>,
    {
        let context = Self::collect(pairs)?;
        if context.0.keys().any(|key| key.starts_with(RESERVED_PREFIX)) {
            return Err(InvalidContext::ReservedKey);
        }
        Ok(context)
    }

    fn collect<I>(pairs: I) -> Result<Self, InvalidContext>
    where
        I: IntoIterator<Item = (String, String)>,
    {
        let mut checked = BTreeMap::new();
        let mut total_bytes = 0_usize;
        for (key, value) in pairs {
            if key.is_empty() || key.len() > MAX_KEY_BYTES {
                return Err(InvalidContext::KeyLength);
            }
            if value.len() > MAX_VALUE_BYTES {
                return Err(InvalidContext::ValueLength);
            }
            total_bytes = total_bytes.saturating_add(key.len()).saturating_add(value.len());
            if total_bytes > MAX_TOTAL_BYTES {
                return Err(InvalidContext::TotalLength);
            }
            if checked.len() == MAX_PAIRS {
                return Err(InvalidContext::TooManyPairs);
            }
            if checked.insert(key, value).is_some() {
                return Err(InvalidContext::DuplicateKey);
            }
        }
        Ok(Self(checked))
    }

    /// Returns whether there is no pair.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Walks the pairs, sorted by key bytes.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Appends the canonical bytes: for each pair in order, key and value, each with its u32 length in front.
    pub fn write_canonical(&self, out: &mut Vec<u8>) {
        for (key, value) in &self.0 {
            write_prefixed(out, key.as_bytes());
            write_prefixed(out, value.as_bytes());
        }
    }

    /// Returns how many bytes [`Self::write_canonical`] appends.
    pub fn canonical_len(&self) -> usize {
        self.0.iter().map(|(key, value)| 8 + key.len() + value.len()).sum()
    }
}

/// Lengths are at most [`MAX_VALUE_BYTES`] here, so the conversion cannot cut.
fn write_prefixed(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(pairs: &[(&str, &str)]) -> Result<EncryptionContext, InvalidContext> {
        EncryptionContext::from_caller(pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())))
    }

    #[test]
    fn pairs_are_sorted_by_key_bytes_and_length_prefixed() {
        let mut out = Vec::new();
        context(&[("b", "2"), ("a", "")]).unwrap().write_canonical(&mut out);
        assert_eq!(out, b"\0\0\0\x01a\0\0\0\0\0\0\0\x01b\0\0\0\x012");
    }

    #[test]
    fn canonical_len_is_the_length_written() {
        let context = context(&[("tenant", "a"), ("path", "/x")]).unwrap();
        let mut out = Vec::new();
        context.write_canonical(&mut out);
        assert_eq!(out.len(), context.canonical_len());
    }

    #[test]
    fn key_of_128_bytes_is_accepted_and_129_refused() {
        assert!(context(&[(&"k".repeat(128), "")]).is_ok());
        assert_eq!(context(&[(&"k".repeat(129), "")]), Err(InvalidContext::KeyLength));
        assert_eq!(context(&[("", "v")]), Err(InvalidContext::KeyLength));
    }

    #[test]
    fn value_of_1024_bytes_is_accepted_and_1025_refused() {
        assert!(context(&[("k", &"v".repeat(1024))]).is_ok());
        assert_eq!(context(&[("k", &"v".repeat(1025))]), Err(InvalidContext::ValueLength));
    }

    #[test]
    fn thirty_two_pairs_are_accepted_and_33_refused() {
        let pairs = |n: u32| (0..n).map(|i| (format!("k{i}"), String::new()));
        assert!(EncryptionContext::from_caller(pairs(32)).is_ok());
        assert_eq!(EncryptionContext::from_caller(pairs(33)), Err(InvalidContext::TooManyPairs));
    }

    #[test]
    fn total_of_8192_bytes_is_accepted_and_8193_refused() {
        let pairs = |last: usize| {
            (0..8).map(move |i| (format!("{i}"), "v".repeat(if i == 7 { last } else { 1023 })))
        };
        assert!(EncryptionContext::from_caller(pairs(1023)).is_ok());
        assert_eq!(EncryptionContext::from_caller(pairs(1024)), Err(InvalidContext::TotalLength));
    }

    #[test]
    fn duplicate_keys_are_refused_even_with_equal_values() {
        assert_eq!(context(&[("a", "1"), ("a", "1")]), Err(InvalidContext::DuplicateKey));
    }

    #[test]
    fn reserved_keys_are_refused_from_callers() {
        assert_eq!(context(&[("kms:tenant", "a")]), Err(InvalidContext::ReservedKey));
        assert!(context(&[("kms", "a")]).is_ok());
    }
}
