//! The age file around a backup, and to whom it is encrypted.

use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;

use age::stream::StreamWriter;

use super::BackupError;

/// The longest recipient that is read; one of age has 62 bytes.
const MAX_RECIPIENT_BYTES: usize = 128;

/// An X25519 recipient of age. That of a plugin, and so a key of this server, is none.
#[derive(Clone)]
pub struct Recipient(age::x25519::Recipient);

/// A text that is no X25519 recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an X25519 recipient of age")]
pub struct InvalidRecipient;

impl FromStr for Recipient {
    type Err = InvalidRecipient;

    fn from_str(text: &str) -> Result<Self, InvalidRecipient> {
        if text.len() > MAX_RECIPIENT_BYTES {
            return Err(InvalidRecipient);
        }
        text.parse().map(Self).map_err(|_| InvalidRecipient)
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Begins an age file to one recipient. It is whole only when its writer is finished.
///
/// # Errors
/// When it cannot be written.
pub fn encrypting<W: Write>(recipient: &Recipient, out: W) -> io::Result<StreamWriter<W>> {
    let recipients = std::iter::once(&recipient.0 as &dyn age::Recipient);
    let encryptor = age::Encryptor::with_recipients(recipients).map_err(io::Error::other)?;
    encryptor.wrap_output(out)
}

/// What opens a backup: X25519 identities of age.
#[derive(Clone)]
pub struct Identity(Vec<age::x25519::Identity>);

/// The longest file of identities that is read.
const MAX_IDENTITY_BYTES: u64 = 64 << 10;

impl Identity {
    /// Reads a file as `age-keygen` writes it: an identity a line, and comments.
    ///
    /// # Errors
    /// When it cannot be read, or a line is no X25519 identity.
    pub fn read(path: &std::path::Path) -> io::Result<Self> {
        use std::io::Read as _;
        let mut text = zeroize::Zeroizing::new(String::new());
        let file = std::fs::File::open(path)?;
        file.take(MAX_IDENTITY_BYTES).read_to_string(&mut text)?;
        let lines = text.lines().map(str::trim);
        let identities = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let identities: Result<Vec<_>, _> = identities.map(str::parse).collect();
        let wrong = |_| io::Error::other("a line is no X25519 identity of age");
        let identities = identities.map_err(wrong)?;
        if identities.is_empty() {
            return Err(io::Error::other("there is no identity in it"));
        }
        Ok(Self(identities))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.0.len())
    }
}

/// Opens an age file.
///
/// # Errors
/// [`BackupError::Decrypt`] when it is none, or none of the identities opens it.
pub fn decrypting<R: io::BufRead>(
    identity: &Identity,
    from: R,
) -> Result<age::stream::StreamReader<R>, BackupError> {
    let failed = |error: age::DecryptError| BackupError::Decrypt { detail: error.to_string() };
    let decryptor = age::Decryptor::new_buffered(from).map_err(failed)?;
    let identities = identity.0.iter().map(|identity| identity as &dyn age::Identity);
    decryptor.decrypt(identities).map_err(failed)
}
