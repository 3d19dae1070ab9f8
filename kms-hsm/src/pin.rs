//! Where the user PIN comes from: a file, a descriptor, the systemd credentials directory.
//!
//! It never comes from argv or the environment, which other programs can see. The bytes are wiped on every way out; the
//! copy we cannot wipe is the kernel's page cache of the file.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use kms_core::secret::Pin;
use zeroize::{Zeroize as _, Zeroizing};

/// The longest PIN: SoftHSM takes 255 bytes.
pub const MAX_PIN_BYTES: usize = 255;

/// Where to read the PIN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PinSource {
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

/// Why there is no PIN.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    /// The file cannot be read.
    #[error("the PIN in {place} cannot be read: {source}")]
    Unreadable {
        /// Where.
        place: String,
        /// Why.
        source: std::io::Error,
    },
    /// A directory, pipe or device stands in its place.
    #[error("the PIN file {place} is not a plain file")]
    NotAFile {
        /// Where.
        place: String,
    },
    /// Others than its owner may read or write the file.
    #[error(
        "the PIN file {place} is open to its group or others (mode {mode:04o}); \
         run `chmod 0600 {place}` as its owner"
    )]
    Exposed {
        /// Where.
        place: String,
        /// Its permission bits.
        mode: u32,
    },
    /// Nothing in it.
    #[error("the PIN in {place} is empty")]
    Empty {
        /// Where.
        place: String,
    },
    /// Longer than [`MAX_PIN_BYTES`].
    #[error("the PIN in {place} is longer than {MAX_PIN_BYTES} bytes")]
    TooLong {
        /// Where.
        place: String,
    },
    /// Not UTF-8, or with a control character.
    #[error("the PIN in {place} is not text of one line")]
    NotText {
        /// Where.
        place: String,
    },
}

impl PinSource {
    /// Reads the PIN and strips one trailing newline.
    pub fn read(&self) -> Result<Pin, PinError> {
        match self {
            Self::File(path) => from_file(path, true),
            Self::Credential { directory, name } => from_file(&directory.join(name), false),
            Self::Descriptor(number) => from_file(Path::new(&format!("/dev/fd/{number}")), false),
        }
    }
}

/// Room for CR, LF and one byte too many, so that the vector never grows and leaves no copy behind.
const ROOM: usize = MAX_PIN_BYTES + 3;

/// systemd shows the mode of a credential through an ACL mask, so only plain files are checked.
fn from_file(path: &Path, check_mode: bool) -> Result<Pin, PinError> {
    let place = path.display().to_string();
    let unreadable = |source| PinError::Unreadable { place: place.clone(), source };
    // Asked first: opening a pipe would wait for its writer.
    if check_mode && !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(PinError::NotAFile { place });
    }
    let file = File::open(path).map_err(unreadable)?;
    if check_mode {
        let mode = file.metadata().map_err(unreadable)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(PinError::Exposed { place, mode });
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
    parse(bytes, place)
}

fn parse(mut bytes: Zeroizing<Vec<u8>>, place: String) -> Result<Pin, PinError> {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    if bytes.last() == Some(&b'\r') {
        bytes.pop();
    }
    if bytes.is_empty() {
        return Err(PinError::Empty { place });
    }
    if bytes.len() > MAX_PIN_BYTES {
        return Err(PinError::TooLong { place });
    }
    match String::from_utf8(std::mem::take(&mut *bytes)) {
        Ok(text) if !text.chars().any(char::is_control) => Ok(Pin::new(text)),
        Ok(mut text) => {
            text.zeroize();
            Err(PinError::NotText { place })
        }
        Err(error) => {
            error.into_bytes().zeroize();
            Err(PinError::NotText { place })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, PinSource) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pin");
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (directory, PinSource::File(path))
    }

    fn read(content: &[u8]) -> Result<String, PinError> {
        let (_directory, source) = file(content, 0o600);
        source.read().map(|pin| pin.expose().to_owned())
    }

    #[test]
    fn one_trailing_newline_is_stripped() {
        for content in [&b"1234"[..], b"1234\n", b"1234\r\n"] {
            assert_eq!(read(content).unwrap(), "1234");
        }
        assert!(matches!(read(b"1234\n\n"), Err(PinError::NotText { .. })));
        assert_eq!(read(b" 12 34 \n").unwrap(), " 12 34 ", "spaces may be part of a PIN");
    }

    #[test]
    fn a_file_others_may_use_is_refused() {
        for mode in [0o400, 0o600, 0o700] {
            let (_directory, source) = file(b"1234", mode);
            assert_eq!(source.read().unwrap().expose(), "1234", "{mode:o}");
        }
        for mode in [0o640, 0o604, 0o620, 0o610, 0o666] {
            let (_directory, source) = file(b"1234", mode);
            let refused = source.read().unwrap_err();
            assert!(matches!(refused, PinError::Exposed { .. }), "{mode:o}");
            assert!(refused.to_string().contains(&format!("(mode 0{mode:o}); run `chmod 0600 ")));
        }
    }

    #[test]
    fn a_directory_is_no_pin_file() {
        let directory = tempfile::tempdir().unwrap();
        let source = PinSource::File(directory.path().to_owned());
        assert!(matches!(source.read(), Err(PinError::NotAFile { .. })));
    }

    #[test]
    fn length_is_bounded_at_the_limit_and_one_past_it() {
        assert_eq!(read(&[b'1'; MAX_PIN_BYTES]).unwrap().len(), MAX_PIN_BYTES);
        assert!(matches!(read(&[b'1'; MAX_PIN_BYTES + 1]), Err(PinError::TooLong { .. })));
        assert!(matches!(read(&vec![b'1'; 100_000]), Err(PinError::TooLong { .. })));
        assert!(matches!(read(b"\n"), Err(PinError::Empty { .. })));
        assert!(matches!(read(b"\xff\xfe12"), Err(PinError::NotText { .. })));
    }

    #[test]
    fn a_descriptor_is_read() {
        let (mut writer, reader) = {
            let (reader, writer) = std::io::pipe().unwrap();
            (writer, reader)
        };
        std::io::Write::write_all(&mut writer, b"from-a-pipe\n").unwrap();
        drop(writer);
        let source = PinSource::Descriptor(reader.as_raw_fd().try_into().unwrap());
        assert_eq!(source.read().unwrap().expose(), "from-a-pipe");
    }

    #[test]
    fn the_systemd_credential_is_read_whatever_mode_its_acl_shows() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["hsm-pin", "another"] {
            let path = directory.path().join(name);
            std::fs::write(&path, format!("of {name}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o440)).unwrap();
            let directory = directory.path().to_owned();
            let source = PinSource::Credential { directory, name: name.into() };
            assert_eq!(source.read().unwrap().expose(), format!("of {name}"));
        }
    }

    #[test]
    fn errors_do_not_hold_the_pin() {
        let text = format!("{:?}", read(b"canary\x01").unwrap_err());
        assert!(!text.contains("canary"));
    }
}
