//! Where PIN and password come from: a file, a descriptor, the systemd credentials directory.
//!
//! They never come from argv or the environment, which other programs can see. The bytes are wiped on every way out; the
//! copy we cannot wipe is the kernel's page cache of the file.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use kms_core::secret::{Password, Pin};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

/// The longest PIN or password: SoftHSM takes 255 bytes, and no password needs more.
pub const MAX_SECRET_BYTES: usize = 255;
/// Where systemd puts credentials.
pub const CREDENTIALS_VARIABLE: &str = "CREDENTIALS_DIRECTORY";

/// Where a secret is, as the configuration says: exactly one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SecretPlace {
    /// A file that only its owner can read.
    File(PathBuf),
    /// A descriptor that the parent process opened.
    Descriptor(u32),
    /// A file of the systemd credentials directory (`LoadCredential=`).
    Credential(String),
}

impl SecretPlace {
    /// Returns where to read it. `credentials` is the value of `$CREDENTIALS_DIRECTORY`.
    ///
    /// # Errors
    /// [`SecretError::NoCredentials`] for a credential when there is no such directory.
    pub fn source(&self, credentials: Option<PathBuf>) -> Result<SecretSource, SecretError> {
        Ok(match self {
            Self::File(path) => SecretSource::File(path.clone()),
            Self::Descriptor(number) => SecretSource::Descriptor(*number),
            Self::Credential(name) => SecretSource::Credential {
                directory: credentials.ok_or(SecretError::NoCredentials)?,
                name: name.clone(),
            },
        })
    }
}

/// Where to read a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// A file that only its owner may read.
    File(PathBuf),
    /// An open descriptor of this process.
    Descriptor(u32),
    /// A systemd credential.
    Credential {
        /// The value of `$CREDENTIALS_DIRECTORY`.
        directory: PathBuf,
        /// Its name there, a plain file name.
        name: String,
    },
}

/// What a secret is called where it is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretKind {
    /// The user PIN of a token.
    Pin,
    /// The password of a database.
    Password,
}

impl fmt::Display for SecretKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pin => "PIN",
            Self::Password => "password",
        })
    }
}

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// The file cannot be read.
    #[error("the {kind} in {place} cannot be read: {source}")]
    Unreadable {
        /// Which secret.
        kind: SecretKind,
        /// Where.
        place: String,
        /// Why.
        source: std::io::Error,
    },
    /// A directory, pipe or device stands in its place.
    #[error("the {kind} file {place} is not a plain file")]
    NotAFile {
        /// Which secret.
        kind: SecretKind,
        /// Where.
        place: String,
    },
    /// Others than its owner may read or write the file.
    #[error(
        "the {kind} file {place} is open to its group or others (mode {mode:04o}); \
         run `chmod 0600 {place}` as its owner"
    )]
    Exposed {
        /// Which secret.
        kind: SecretKind,
        /// Where.
        place: String,
        /// Its permission bits.
        mode: u32,
    },
    /// Nothing in it.
    #[error("the {kind} in {place} is empty")]
    Empty {
        /// Which secret.
        kind: SecretKind,
        /// Where.
        place: String,
    },
    /// Longer than [`MAX_SECRET_BYTES`].
    #[error("the {kind} in {place} is longer than {MAX_SECRET_BYTES} bytes")]
    TooLong {
        /// Which secret.
        kind: SecretKind,
        /// Where.
        place: String,
    },
    /// Not UTF-8, or with a control character.
    #[error("the {kind} in {place} is not text of one line")]
    NotText {
        /// Which secret.
        kind: SecretKind,
        /// Where.
        place: String,
    },
    /// A credential is asked for, and systemd gave none.
    #[error("${CREDENTIALS_VARIABLE} is not set; it comes from systemd")]
    NoCredentials,
}

impl SecretSource {
    /// Reads a PIN and strips one trailing newline.
    pub fn read_pin(&self) -> Result<Pin, SecretError> {
        self.read(SecretKind::Pin).map(|mut text| Pin::new(std::mem::take(&mut *text)))
    }

    /// Reads a password and strips one trailing newline.
    pub fn read_password(&self) -> Result<Password, SecretError> {
        self.read(SecretKind::Password).map(|mut text| Password::new(std::mem::take(&mut *text)))
    }

    /// Reads the text of a secret.
    pub(super) fn read(&self, kind: SecretKind) -> Result<Zeroizing<String>, SecretError> {
        match self {
            Self::File(path) => from_file(kind, path, true),
            Self::Credential { directory, name } => from_file(kind, &directory.join(name), false),
            Self::Descriptor(number) => {
                from_file(kind, Path::new(&format!("/dev/fd/{number}")), false)
            }
        }
    }
}

/// Room for CR, LF and one byte too many, so that the vector never grows and leaves no copy behind.
const ROOM: usize = MAX_SECRET_BYTES + 3;

/// systemd shows the mode of a credential through an ACL mask, so only plain files are checked.
fn from_file(
    kind: SecretKind,
    path: &Path,
    check_mode: bool,
) -> Result<Zeroizing<String>, SecretError> {
    let place = path.display().to_string();
    let unreadable = |source| SecretError::Unreadable { kind, place: place.clone(), source };
    // Asked first: opening a pipe would wait for its writer.
    if check_mode && !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(SecretError::NotAFile { kind, place });
    }
    let file = File::open(path).map_err(unreadable)?;
    if check_mode {
        let mode = file.metadata().map_err(unreadable)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(SecretError::Exposed { kind, place, mode });
        }
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(ROOM));
    let mut buffer = Zeroizing::new([0; ROOM]);
    while bytes.len() < ROOM {
        let room = ROOM - bytes.len();
        let Some(free) = buffer.get_mut(..room) else { break };
        let read = match (&file).read(free) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(unreadable(error)),
        };
        bytes.extend_from_slice(buffer.get(..read).unwrap_or_default());
    }
    parse(kind, bytes, place)
}

fn parse(
    kind: SecretKind,
    mut bytes: Zeroizing<Vec<u8>>,
    place: String,
) -> Result<Zeroizing<String>, SecretError> {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    if bytes.last() == Some(&b'\r') {
        bytes.pop();
    }
    if bytes.is_empty() {
        return Err(SecretError::Empty { kind, place });
    }
    if bytes.len() > MAX_SECRET_BYTES {
        return Err(SecretError::TooLong { kind, place });
    }
    match String::from_utf8(std::mem::take(&mut *bytes)) {
        Ok(text) if !text.chars().any(char::is_control) => Ok(Zeroizing::new(text)),
        Ok(mut text) => {
            text.zeroize();
            Err(SecretError::NotText { kind, place })
        }
        Err(error) => {
            error.into_bytes().zeroize();
            Err(SecretError::NotText { kind, place })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, SecretSource) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pin");
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (directory, SecretSource::File(path))
    }

    fn read(content: &[u8]) -> Result<String, SecretError> {
        let (_directory, source) = file(content, 0o600);
        source.read_pin().map(|pin| pin.expose().to_owned())
    }

    #[test]
    fn one_trailing_newline_is_stripped() {
        for content in [&b"1234"[..], b"1234\n", b"1234\r\n"] {
            assert_eq!(read(content).unwrap(), "1234");
        }
        assert!(matches!(read(b"1234\n\n"), Err(SecretError::NotText { .. })));
        assert_eq!(read(b" 12 34 \n").unwrap(), " 12 34 ", "spaces may be part of a PIN");
    }

    #[test]
    fn a_file_others_may_use_is_refused() {
        for mode in [0o400, 0o600, 0o700] {
            let (_directory, source) = file(b"1234", mode);
            assert_eq!(source.read_pin().unwrap().expose(), "1234", "{mode:o}");
        }
        for mode in [0o640, 0o604, 0o620, 0o610, 0o666] {
            let (_directory, source) = file(b"1234", mode);
            let refused = source.read_pin().unwrap_err();
            assert!(matches!(refused, SecretError::Exposed { .. }), "{mode:o}");
            assert!(refused.to_string().contains(&format!("(mode 0{mode:o}); run `chmod 0600 ")));
        }
    }

    #[test]
    fn a_directory_is_no_pin_file() {
        let directory = tempfile::tempdir().unwrap();
        let source = SecretSource::File(directory.path().to_owned());
        assert!(matches!(source.read_pin(), Err(SecretError::NotAFile { .. })));
    }

    #[test]
    fn length_is_bounded_at_the_limit_and_one_past_it() {
        assert_eq!(read(&[b'1'; MAX_SECRET_BYTES]).unwrap().len(), MAX_SECRET_BYTES);
        assert!(matches!(read(&[b'1'; MAX_SECRET_BYTES + 1]), Err(SecretError::TooLong { .. })));
        assert!(matches!(read(&vec![b'1'; 100_000]), Err(SecretError::TooLong { .. })));
        assert!(matches!(read(b"\n"), Err(SecretError::Empty { .. })));
        assert!(matches!(read(b"\xff\xfe12"), Err(SecretError::NotText { .. })));
    }

    #[test]
    fn a_descriptor_is_read() {
        let (mut writer, reader) = {
            let (reader, writer) = std::io::pipe().unwrap();
            (writer, reader)
        };
        std::io::Write::write_all(&mut writer, b"from-a-pipe\n").unwrap();
        drop(writer);
        let source = SecretSource::Descriptor(reader.as_raw_fd().try_into().unwrap());
        assert_eq!(source.read_pin().unwrap().expose(), "from-a-pipe");
    }

    #[test]
    fn the_systemd_credential_is_read_whatever_mode_its_acl_shows() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["hsm-pin", "another"] {
            let path = directory.path().join(name);
            std::fs::write(&path, format!("of {name}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o440)).unwrap();
            let directory = directory.path().to_owned();
            let source = SecretSource::Credential { directory, name: name.into() };
            assert_eq!(source.read_pin().unwrap().expose(), format!("of {name}"));
        }
    }

    #[test]
    fn a_password_is_read_as_a_pin_is_and_called_by_its_name() {
        let (_directory, source) = file(b" pass word\n", 0o600);
        assert_eq!(source.read_password().unwrap().expose(), " pass word");
        let (_directory, source) = file(b"canary", 0o640);
        let refused = source.read_password().unwrap_err().to_string();
        assert!(refused.starts_with("the password file /") && !refused.contains("canary"));
    }

    #[test]
    fn a_credential_needs_its_directory() {
        let place = SecretPlace::Credential("name".into());
        let refused = place.source(None).unwrap_err();
        assert!(matches!(refused, SecretError::NoCredentials), "{refused}");
        let directory = PathBuf::from("/run/credentials");
        let expected =
            SecretSource::Credential { directory: directory.clone(), name: "name".into() };
        assert_eq!(place.source(Some(directory)).unwrap(), expected);
    }

    #[test]
    fn errors_do_not_hold_the_pin() {
        let text = format!("{:?}", read(b"canary\x01").unwrap_err());
        assert!(!text.contains("canary"));
    }
}
