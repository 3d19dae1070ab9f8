//! The context file, `$XDG_CONFIG_HOME/holdfast/cli.toml`: `current`, and `[contexts.NAME]`.
//!
//! ```toml
//! current = "prod"
//!
//! [contexts.prod]
//! server = "https://kms.example:8443"
//! ca = "/etc/holdfast/ca.pem"
//! cert = "/etc/holdfast/client.pem"
//! key = "/etc/holdfast/client.key"
//! tenant = "payments"
//! ```
//!
//! It holds no secret: `key` says where the private key stands. Relative paths count from the directory of the file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{ContextError, ServerAddress};

/// The longest context file that is read: thousands of contexts.
pub const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// The longest name of a context.
pub const MAX_NAME_BYTES: usize = 63;

/// One named context.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// The server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerAddress>,
    /// PEM file of the CAs that may have signed the server's certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// PEM file of the client's certificate chain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// PEM file of the client's private key, mode 0600.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// The tenant that bare key ids belong to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
}

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContextFile {
    /// Name of the context that is used when none is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// The contexts by name.
    #[serde(default)]
    pub contexts: BTreeMap<String, Context>,
}

impl ContextFile {
    /// Reads the file; one that is not there is an empty one.
    pub fn load(path: &Path) -> Result<Self, ContextError> {
        Ok(Self::read(path)?.unwrap_or_default())
    }

    /// Reads the file; `None` when it is not there.
    pub fn read(path: &Path) -> Result<Option<Self>, ContextError> {
        let failed = |cause| ContextError::File { action: "read", path: path.to_path_buf(), cause };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(failed(cause)),
        };
        let mut text = String::new();
        file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(ContextError::TooLong(path.to_path_buf()));
        }
        let wrong = |cause| ContextError::Parse { path: path.to_path_buf(), cause };
        let parsed =
            toml::from_str::<Self>(&text).map_err(|cause| wrong(with_line(&text, &cause)))?;
        for name in parsed.contexts.keys() {
            check_name(name).map_err(|cause| wrong(cause.to_string()))?;
        }
        Ok(Some(parsed))
    }

    /// Replaces the file as a whole, so that a crash leaves the old or the new one.
    pub fn save(&self, path: &Path) -> Result<(), ContextError> {
        let failed =
            |cause| ContextError::File { action: "write", path: path.to_path_buf(), cause };
        let text = toml::to_string(self).map_err(|cause| failed(io::Error::other(cause)))?;
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        std::fs::create_dir_all(directory).map_err(failed)?;
        let mut side = tempfile::NamedTempFile::new_in(directory)
            .map_err(crate::output::pending::without_path)
            .map_err(failed)?;
        side.write_all(text.as_bytes()).map_err(failed)?;
        side.as_file().sync_all().map_err(failed)?;
        side.persist(path).map_err(|error| failed(error.error))?;
        Ok(())
    }

    /// Adds a context; the first one becomes the current one.
    pub fn add(&mut self, name: &str, context: Context) -> Result<(), ContextError> {
        check_name(name)?;
        if self.contexts.contains_key(name) {
            return Err(ContextError::Exists(name.to_owned()));
        }
        if self.contexts.is_empty() {
            self.current = Some(name.to_owned());
        }
        self.contexts.insert(name.to_owned(), context);
        Ok(())
    }
}

/// Says where in the text an error is. The line itself is not shown.
fn with_line(text: &str, error: &toml::de::Error) -> String {
    let message = crate::terminal::one_line(error.message());
    match error.span().and_then(|span| text.get(..span.start)) {
        Some(before) => format!("line {}: {message}", before.matches('\n').count() + 1),
        None => message,
    }
}

/// Checks the name of a context.
pub fn check_name(name: &str) -> Result<(), ContextError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.bytes().all(allowed) {
        return Err(ContextError::Name(crate::terminal::harmless(name)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cli.toml");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn a_file_reads_back_as_it_was_saved() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/cli.toml");
        let mut file = ContextFile::default();
        let context =
            Context { server: Some("https://a:1".parse().unwrap()), ..Context::default() };
        file.add("prod", context).unwrap();
        file.save(&path).unwrap();
        assert_eq!(ContextFile::load(&path).unwrap(), file);
        assert_eq!(file.current.as_deref(), Some("prod"));
    }

    #[test]
    fn a_missing_file_is_empty_and_unknown_fields_are_refused() {
        let (dir, path) = saved("[contexts.a]\nserver = \"https://a:1\"\npassword = \"x\"\n");
        assert!(matches!(ContextFile::load(&path), Err(ContextError::Parse { .. })));
        assert_eq!(ContextFile::load(&dir.path().join("no")).unwrap(), ContextFile::default());
    }

    #[test]
    fn what_is_wrong_in_a_file_has_its_line() {
        for (text, line, what) in [
            ("[contexts.a]\nserver = \"https://a:1\"\npassword = \"x\"\n", 3, "`password`"),
            ("[contexts.a]\nserver = \"http://a:1\"\n", 2, "only https is spoken"),
            ("current = \"a\n", 1, "string"),
            ("\n\ncontexts = 7", 3, "integer `7`"),
        ] {
            let (_dir, path) = saved(text);
            let error = ContextFile::load(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("file: line {line}: ")), "{error}");
            assert!(error.contains(what), "{error}");
        }
        let (_dir, path) = saved("[contexts.\"a b\"]\n");
        assert!(matches!(ContextFile::load(&path), Err(ContextError::Parse { .. })));
    }

    #[test]
    fn a_file_of_1_mib_is_read_and_one_byte_more_refused() {
        let filler = |bytes: u64| "#".repeat(usize::try_from(bytes).unwrap());
        let (_dir, path) = saved(&filler(MAX_FILE_BYTES));
        assert!(ContextFile::load(&path).is_ok());
        let (_dir, path) = saved(&filler(MAX_FILE_BYTES + 1));
        assert!(matches!(ContextFile::load(&path), Err(ContextError::TooLong(_))));
    }

    #[test]
    fn a_name_of_63_bytes_is_accepted_and_64_or_odd_ones_refused() {
        assert!(check_name(&"a".repeat(63)).is_ok());
        for name in ["", "a b", "a/b", "\u{1b}", &"a".repeat(64)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_second_context_of_the_same_name_is_refused() {
        let mut file = ContextFile::default();
        file.add("a", Context::default()).unwrap();
        assert!(matches!(file.add("a", Context::default()), Err(ContextError::Exists(_))));
    }
}
