//! Canonical bytes: what a MAC or a hash is computed over, unambiguous by construction.
//!
//! Every field is written with its length, so no two different sequences of fields give the same bytes.

/// Writes fields one after another, each with its u32 length in front.
#[derive(Clone, Debug)]
pub struct CanonicalWriter(Vec<u8>);

impl CanonicalWriter {
    /// Starts with a domain-separation string (see [`crate::domain`]), itself length-prefixed.
    pub fn new(domain: &[u8]) -> Self {
        Self(Vec::with_capacity(256)).bytes(domain)
    }

    /// Writes bytes.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    /// Writes text.
    #[must_use]
    pub fn text(self, text: &str) -> Self {
        self.bytes(text.as_bytes())
    }

    /// Writes an unsigned number, 8 bytes big-endian.
    #[must_use]
    pub fn number(self, number: u64) -> Self {
        self.bytes(&number.to_be_bytes())
    }

    /// Writes a signed number, 8 bytes big-endian two's complement.
    #[must_use]
    pub fn signed(self, number: i64) -> Self {
        self.bytes(&number.to_be_bytes())
    }

    /// Writes nothing, or a number: the two differ in length.
    #[must_use]
    pub fn optional(self, number: Option<u64>) -> Self {
        match number {
            Some(number) => self.number(number),
            None => self.bytes(&[]),
        }
    }

    /// Returns the bytes.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moving_a_boundary_changes_the_bytes() {
        let a = CanonicalWriter::new(b"d").text("ab").text("c").finish();
        let b = CanonicalWriter::new(b"d").text("a").text("bc").finish();
        assert_ne!(a, b);
    }

    #[test]
    fn absent_differs_from_zero() {
        let absent = CanonicalWriter::new(b"d").optional(None).finish();
        let zero = CanonicalWriter::new(b"d").optional(Some(0)).finish();
        assert_ne!(absent, zero);
    }
}
