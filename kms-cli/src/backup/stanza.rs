//! Our recipient stanza: `-> kms 1 <key uid> <version>` and an envelope in base64, always [`STANZA_BYTES`] long.
//!
//! The fixed width is what lets `reseal` rewrite a header in place whatever the key or version becomes. The arguments
//! repeat what the envelope's header says, for people and for `age-plugin-kms`; where they differ the stanza is refused.

use age_core::format::Stanza;
use data_encoding::BASE64_NOPAD;

use super::error::FormatError;
use super::service::WrappedFileKey;

/// The tag of our stanza.
pub(super) const TAG: &str = "kms";
/// The one version of our stanza.
pub(super) const STANZA_VERSION: &str = "1";
/// Length of a full body line, fixed by the age format.
pub(super) const BODY_LINE_BYTES: usize = 64;
/// Length of the whole stanza with its line ends: 57 for the first line, 65 and 28 for the body.
pub const STANZA_BYTES: usize = 57 + 65 + 28;

/// A stanza of ours; nothing in it is authenticated yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KmsStanza {
    wrapped: WrappedFileKey,
}

impl KmsStanza {
    /// Makes a stanza around a wrapped file key.
    pub const fn new(wrapped: WrappedFileKey) -> Self {
        Self { wrapped }
    }

    /// Reads the arguments after the tag, and the decoded body.
    ///
    /// # Errors
    /// [`FormatError::UnsupportedStanza`] for a newer version, [`FormatError::StanzaMismatch`] when arguments and
    /// envelope differ, else [`FormatError::StanzaMalformed`] or [`FormatError::Envelope`].
    pub fn from_parts<S: AsRef<str>>(args: &[S], body: &[u8]) -> Result<Self, FormatError> {
        let (version, rest) = args.split_first().ok_or(FormatError::StanzaMalformed)?;
        if version.as_ref() != STANZA_VERSION {
            return Err(FormatError::UnsupportedStanza);
        }
        let [key_uid, key_version] = rest else { return Err(FormatError::StanzaMalformed) };
        let stanza = Self::new(WrappedFileKey::new(body)?);
        let [_, expected_uid, expected_version] = stanza.args();
        if key_uid.as_ref() != expected_uid || key_version.as_ref() != expected_version {
            return Err(FormatError::StanzaMismatch);
        }
        Ok(stanza)
    }

    /// Returns the wrapped file key.
    pub const fn wrapped(&self) -> &WrappedFileKey {
        &self.wrapped
    }

    /// Returns the arguments after the tag: stanza version, key uid, key version padded to 10 digits.
    pub fn args(&self) -> [String; 3] {
        let header = self.wrapped.header();
        let version = format!("{:010}", header.version.get());
        [STANZA_VERSION.to_owned(), header.key_uid.to_string(), version]
    }

    /// Writes the stanza as it stands in a header.
    pub fn encode(&self) -> Vec<u8> {
        let mut text = format!("-> {TAG} {}\n", self.args().join(" "));
        let body = BASE64_NOPAD.encode(self.wrapped.as_bytes());
        for line in body.as_bytes().chunks(BODY_LINE_BYTES) {
            text.push_str(&String::from_utf8_lossy(line));
            text.push('\n');
        }
        text.into_bytes()
    }

    /// Returns the stanza as age's crates pass it.
    pub fn to_age(&self) -> Stanza {
        let args = self.args().into();
        Stanza { tag: TAG.to_owned(), args, body: self.wrapped.as_bytes().to_vec() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kms_core::envelope::{Header, InvalidEnvelope, Suite};
    use kms_core::id::{KeyUid, KeyVersion};

    fn stanza(version: u32) -> KmsStanza {
        let header = Header {
            suite: Suite::Aes256Gcm,
            key_uid: KeyUid::from_bytes([0xab; 16]),
            version: KeyVersion::new(version).unwrap(),
        };
        KmsStanza::new(WrappedFileKey::new(&header.seal(&[1; 12], &[2; 32])).unwrap())
    }

    #[test]
    fn the_width_is_the_same_for_the_least_and_the_greatest_version() {
        assert_eq!(stanza(1).encode().len(), STANZA_BYTES);
        assert_eq!(stanza(u32::MAX).encode().len(), STANZA_BYTES);
    }

    #[test]
    fn the_bytes_are_those_of_the_documentation() {
        let golden = "-> kms 1 abababab-abab-abab-abab-abababababab 0000000003\n\
            S1cBAaurq6urq6urq6urq6urq6sAAAADAQEBAQEBAQEBAQEBAgICAgICAgICAgIC\n\
            AgICAgICAgICAgICAgICAgICAgI\n";
        assert_eq!(String::from_utf8(stanza(3).encode()).unwrap(), golden);
    }

    #[test]
    fn the_age_form_is_read_back() {
        let age = stanza(9).to_age();
        assert_eq!(KmsStanza::from_parts(&age.args, &age.body), Ok(stanza(9)));
    }

    #[test]
    fn another_stanza_version_is_refused() {
        let age = stanza(9).to_age();
        let args = ["2", age.args[1].as_str(), age.args[2].as_str()];
        let refused = KmsStanza::from_parts(&args, &age.body);
        assert_eq!(refused, Err(FormatError::UnsupportedStanza));
        assert_eq!(KmsStanza::from_parts(&["2"], &age.body), Err(FormatError::UnsupportedStanza));
    }

    #[test]
    fn missing_or_extra_arguments_are_refused() {
        let age = stanza(9).to_age();
        let mut extra = age.args.clone();
        extra.push("x".into());
        for args in [&age.args[..0], &age.args[..2], &extra[..]] {
            let refused = KmsStanza::from_parts(args, &age.body);
            assert_eq!(refused, Err(FormatError::StanzaMalformed));
        }
    }

    #[test]
    fn arguments_that_differ_from_the_envelope_are_refused() {
        let age = stanza(9).to_age();
        let other_uid = "00000000-0000-0000-0000-000000000000".to_owned();
        for args in [
            ["1".to_owned(), other_uid, age.args[2].clone()],
            ["1".to_owned(), age.args[1].clone(), "0000000008".to_owned()],
            ["1".to_owned(), age.args[1].clone(), "9".to_owned()],
            ["1".to_owned(), age.args[1].to_uppercase(), age.args[2].clone()],
        ] {
            let refused = KmsStanza::from_parts(&args, &age.body);
            assert_eq!(refused, Err(FormatError::StanzaMismatch));
        }
    }

    #[test]
    fn a_body_without_an_envelope_is_refused() {
        let mut age = stanza(9).to_age();
        age.body[0] ^= 1;
        let refused = KmsStanza::from_parts(&age.args, &age.body);
        assert_eq!(refused, Err(FormatError::Envelope(InvalidEnvelope::Malformed)));
    }
}
