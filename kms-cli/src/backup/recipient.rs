//! The text a person gives to `age`: recipients `age1kms1…` and identities `AGE-PLUGIN-KMS-1…`.
//!
//! Both are Bech32 around the same bytes: a key's name and, when wanted, the name of a context of the CLI's
//! configuration (docs/backup-format.md, "Recipients and identities"). Neither is a secret, and neither carries a server
//! address: where to connect is decided by the reader's own configuration only.

use std::fmt;

use bech32::{Bech32, Hrp};
use kms_core::name::KeyName;

/// The name of the plugin, as `age` looks it up on the path.
pub(super) const PLUGIN_NAME: &str = "kms";
/// The longest name of a context, in bytes.
pub(super) const MAX_CONTEXT_BYTES: usize = 63;
/// The human-readable part of a recipient.
const RECIPIENT_HRP: &str = "age1kms";
/// The human-readable part of an identity; written in capitals.
const IDENTITY_HRP: &str = "age-plugin-kms-";
/// The one format of the bytes.
const FORMAT: u8 = 1;

/// Why a text or its bytes are no recipient or identity of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// Not Bech32, or with a wrong checksum.
    #[error("not a Bech32 text with a correct checksum")]
    Bech32,
    /// Bech32, but neither `age1kms1…` nor `AGE-PLUGIN-KMS-1…`.
    #[error("neither `age1kms1…` nor `AGE-PLUGIN-KMS-1…`")]
    OtherKind,
    /// A format that this release does not know.
    #[error("its format is not supported, only 1 is")]
    UnsupportedFormat,
    /// The bytes do not hold a key name and a context name.
    #[error("it holds no valid key name")]
    Malformed,
    /// The name of the context is empty, too long or has other characters than letters, digits, `-`, `_`, `.`.
    #[error("a context name must be 1 to 63 of a-z, A-Z, 0-9, `-`, `_`, `.`")]
    ContextName,
}

/// Which key to use, through which context of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    key: KeyName,
    context: Option<String>,
}

impl Address {
    /// Joins a key and the name of a context; without one the configuration's current context is used.
    ///
    /// # Errors
    /// [`InvalidAddress::ContextName`].
    pub fn new(key: KeyName, context: Option<String>) -> Result<Self, InvalidAddress> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let valid = |name: &String| {
            (1..=MAX_CONTEXT_BYTES).contains(&name.len()) && name.bytes().all(allowed)
        };
        if !context.as_ref().is_none_or(valid) {
            return Err(InvalidAddress::ContextName);
        }
        Ok(Self { key, context })
    }

    /// Returns the key.
    pub const fn key(&self) -> &KeyName {
        &self.key
    }

    /// Returns the name of the context, when one is fixed.
    pub fn context(&self) -> Option<&str> {
        self.context.as_deref()
    }

    /// Writes `age1kms1…`.
    ///
    /// # Errors
    /// None in practice: the longest address fits (`the_longest_address_is_written_and_read`).
    pub fn to_recipient(&self) -> Result<String, InvalidAddress> {
        let hrp = Hrp::parse(RECIPIENT_HRP).map_err(|_| InvalidAddress::Bech32)?;
        bech32::encode_lower::<Bech32>(hrp, &self.to_bytes()).map_err(|_| InvalidAddress::Bech32)
    }

    /// Writes `AGE-PLUGIN-KMS-1…`.
    ///
    /// # Errors
    /// None in practice, as above.
    pub fn to_identity(&self) -> Result<String, InvalidAddress> {
        let hrp = Hrp::parse(IDENTITY_HRP).map_err(|_| InvalidAddress::Bech32)?;
        bech32::encode_upper::<Bech32>(hrp, &self.to_bytes()).map_err(|_| InvalidAddress::Bech32)
    }

    /// Reads either text.
    ///
    /// # Errors
    /// [`InvalidAddress`] says what it is instead.
    pub fn parse(text: &str) -> Result<Self, InvalidAddress> {
        let (hrp, bytes) = bech32::decode(text).map_err(|_| InvalidAddress::Bech32)?;
        // `bech32::decode` takes Bech32m too, which age does not know.
        let is_bech32 = bech32::primitives::decode::CheckedHrpstring::new::<Bech32>(text).is_ok();
        let hrp = hrp.to_lowercase();
        if !is_bech32 {
            return Err(InvalidAddress::Bech32);
        }
        if hrp != RECIPIENT_HRP && hrp != IDENTITY_HRP {
            return Err(InvalidAddress::OtherKind);
        }
        Self::from_bytes(&bytes)
    }

    /// Returns the bytes inside the text: format, key name and context name, each with its length in front.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![FORMAT];
        for part in [self.key.to_string(), self.context.clone().unwrap_or_default()] {
            // Both are shorter than 256 bytes by their types.
            bytes.push(u8::try_from(part.len()).unwrap_or(u8::MAX));
            bytes.extend_from_slice(part.as_bytes());
        }
        bytes
    }

    /// Reads what [`Self::to_bytes`] wrote; nothing may follow.
    ///
    /// # Errors
    /// [`InvalidAddress`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidAddress> {
        let (format, rest) = bytes.split_first().ok_or(InvalidAddress::Malformed)?;
        if *format != FORMAT {
            return Err(InvalidAddress::UnsupportedFormat);
        }
        let (key, rest) = read_part(rest).ok_or(InvalidAddress::Malformed)?;
        let (context, rest) = read_part(rest).ok_or(InvalidAddress::Malformed)?;
        if !rest.is_empty() {
            return Err(InvalidAddress::Malformed);
        }
        let key = key.parse().map_err(|_| InvalidAddress::Malformed)?;
        Self::new(key, (!context.is_empty()).then(|| context.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.context {
            Some(context) => write!(f, "{} through context {context}", self.key),
            None => fmt::Display::fmt(&self.key, f),
        }
    }
}

fn read_part(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_first()?;
    let (part, rest) = rest.split_at_checked(usize::from(*length))?;
    Some((std::str::from_utf8(part).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bech32::Bech32m;

    fn address(context: Option<&str>) -> Address {
        Address::new("tenants/acme/keys/backup".parse().unwrap(), context.map(Into::into)).unwrap()
    }

    #[test]
    fn recipient_and_identity_are_pinned() {
        let recipient = address(None).to_recipient().unwrap();
        assert_eq!(recipient, "age1kms1qyv8getwv9h8gue0v93k6ef0ddjhjue0vfskx6m4wqqq6zz8qr");
        let identity = address(None).to_identity().unwrap();
        assert!(identity.starts_with("AGE-PLUGIN-KMS-1"), "{identity}");
        assert_eq!(Address::parse(&identity), Ok(address(None)));
        assert_eq!(Address::parse(&recipient), Ok(address(None)));
    }

    #[test]
    fn the_context_name_is_carried() {
        let written = address(Some("prod.eu-1")).to_identity().unwrap();
        assert_eq!(Address::parse(&written).unwrap().context(), Some("prod.eu-1"));
    }

    #[test]
    fn the_longest_address_is_written_and_read() {
        let key = format!("tenants/{}/keys/{}", "t".repeat(63), "k".repeat(63)).parse().unwrap();
        let longest = Address::new(key, Some("c".repeat(MAX_CONTEXT_BYTES))).unwrap();
        for text in [longest.to_recipient().unwrap(), longest.to_identity().unwrap()] {
            assert_eq!(Address::parse(&text).as_ref(), Ok(&longest));
        }
    }

    #[test]
    fn a_context_name_of_64_bytes_or_with_a_slash_is_refused() {
        for name in ["c".repeat(MAX_CONTEXT_BYTES + 1), "a/b".into(), "..\u{e9}".into(), " ".into()]
        {
            let refused = Address::new(address(None).key, Some(name));
            assert_eq!(refused, Err(InvalidAddress::ContextName));
        }
    }

    #[test]
    fn a_wrong_checksum_and_another_kind_are_refused() {
        let mut recipient = address(None).to_recipient().unwrap();
        let last = if recipient.ends_with('q') { 'p' } else { 'q' };
        recipient.pop();
        recipient.push(last);
        assert_eq!(Address::parse(&recipient), Err(InvalidAddress::Bech32));
        let native = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";
        assert_eq!(Address::parse(native), Err(InvalidAddress::OtherKind));
    }

    #[test]
    fn bech32m_is_refused() {
        let hrp = Hrp::parse(RECIPIENT_HRP).unwrap();
        let text = bech32::encode_lower::<Bech32m>(hrp, &address(None).to_bytes()).unwrap();
        assert_eq!(Address::parse(&text), Err(InvalidAddress::Bech32));
    }

    #[test]
    fn every_truncation_and_a_trailing_byte_are_refused() {
        let bytes = address(Some("prod")).to_bytes();
        for length in 0..bytes.len() {
            assert!(Address::from_bytes(&bytes[..length]).is_err(), "{length}");
        }
        let longer = [&bytes[..], b"x"].concat();
        assert_eq!(Address::from_bytes(&longer), Err(InvalidAddress::Malformed));
    }

    #[test]
    fn another_format_is_refused() {
        let mut bytes = address(None).to_bytes();
        bytes[0] = 2;
        assert_eq!(Address::from_bytes(&bytes), Err(InvalidAddress::UnsupportedFormat));
    }
}
