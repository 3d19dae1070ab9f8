//! The directory of dev mode: who may see it, who holds it, and how files get into it.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use kms_hsm::dev::DevTokenError;

use super::pki::PkiError;
use crate::config::ConfigError;

/// Why dev mode does not start.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// Another process holds the directory.
    #[error("{0} is held by another process; stop that server, or choose another --dir")]
    Held(PathBuf),
    /// Others than the owner may use the directory.
    #[error(
        "{0} must belong to you and be closed to others: `chmod 700` it, or choose another --dir"
    )]
    Exposed(PathBuf),
    /// The path cannot be written into a configuration of SoftHSM.
    #[error(
        "the directory's path must be plain text without line breaks, `#` and `=`: SoftHSM cannot read it"
    )]
    Path,
    /// A file cannot be read or written.
    #[error("{path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// How PostgreSQL is reached cannot be read.
    #[error(transparent)]
    Postgres(#[from] ConfigError),
    /// There is no SoftHSM.
    #[error("no SoftHSM module found; run `softhsm/install.sh`, or name one with --module")]
    NoModule,
    /// The token cannot be made.
    #[error(transparent)]
    Token(#[from] DevTokenError),
    /// Certificates cannot be made.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The system gives no randomness.
    #[error("the system gives no randomness")]
    Randomness,
    /// The process could not be started again with SoftHSM's configuration in its environment.
    #[error("cannot execute itself again: {0}")]
    Exec(io::Error),
}

/// The directory, open to its owner only.
#[derive(Clone, Debug)]
pub struct DevDirectory(PathBuf);

impl DevDirectory {
    /// Takes the directory; makes it (0700) when there is none.
    pub fn open(path: &Path) -> Result<Self, DevError> {
        let failed = |cause| DevError::File { path: path.to_owned(), cause };
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|cause| match cause.kind() {
            io::ErrorKind::AlreadyExists => failed(io::ErrorKind::NotADirectory.into()),
            _ => failed(cause),
        })?;
        let path = path.canonicalize().map_err(failed)?;
        let metadata = path.metadata().map_err(failed)?;
        let owner = rustix::process::geteuid().as_raw();
        if metadata.mode() & 0o077 != 0 || metadata.uid() != owner {
            return Err(DevError::Exposed(path));
        }
        // SoftHSM takes what follows as a comment, or as nothing at all: it would look elsewhere.
        let misread = |character: char| character.is_control() || matches!(character, '#' | '=');
        if path.to_str().is_none_or(|text| text.chars().any(misread)) {
            return Err(DevError::Path);
        }
        Ok(Self(path))
    }

    /// Returns the path of something in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Returns its own path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Holds the directory for this process, as long as the answer lives.
    pub fn hold(&self) -> Result<File, DevError> {
        let path = self.join("lock");
        let failed = |cause| DevError::File { path: path.clone(), cause };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(DevError::Held(self.0.clone())),
            Err(TryLockError::Error(cause)) => Err(failed(cause)),
        }
    }

    /// Puts a file (0600) in its place whole and durable: after a crash the old one or the new one is there.
    pub fn put(&self, name: &str, content: &[u8]) -> Result<(), DevError> {
        let path = self.join(name);
        let side = self.join(&format!("{name}.tmp"));
        let written = write_synced(&side, content)
            .and_then(|()| std::fs::rename(&side, &path))
            .and_then(|()| File::open(path.parent().unwrap_or(&self.0))?.sync_all());
        written.map_err(|cause| DevError::File { path, cause })
    }
}

fn write_synced(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file =
        OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_path_that_softhsm_would_misread_is_refused_and_a_file_is_no_directory() {
        let parent = tempfile::tempdir().unwrap();
        for name in ["a#b", "a=b", "a\nb"] {
            let refused = DevDirectory::open(&parent.path().join(name));
            assert!(matches!(refused, Err(DevError::Path)), "{name}");
        }
        assert!(DevDirectory::open(&parent.path().join("a 'b\" c")).is_ok());
        let file = parent.path().join("file");
        std::fs::write(&file, "").unwrap();
        let refused = DevDirectory::open(&file).map(drop).unwrap_err().to_string();
        assert!(refused.ends_with("file: not a directory"), "{refused}");
    }

    #[test]
    fn a_new_directory_is_closed_to_others() {
        let parent = tempfile::tempdir().unwrap();
        let directory = DevDirectory::open(&parent.path().join("a/b")).unwrap();
        assert_eq!(directory.path().metadata().unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_directory_that_others_may_enter_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("open");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o710)).unwrap();
        assert!(matches!(DevDirectory::open(&path), Err(DevError::Exposed(_))));
    }

    #[test]
    fn one_holder_at_a_time() {
        let parent = tempfile::tempdir().unwrap();
        let directory = DevDirectory::open(&parent.path().join("d")).unwrap();
        let held = directory.hold().unwrap();
        assert!(matches!(directory.hold(), Err(DevError::Held(_))));
        drop(held);
        assert!(directory.hold().is_ok());
    }

    #[test]
    fn files_are_for_their_owner_only() {
        let parent = tempfile::tempdir().unwrap();
        let directory = DevDirectory::open(&parent.path().join("d")).unwrap();
        directory.put("f", b"1").unwrap();
        directory.put("f", b"2").unwrap();
        assert_eq!(std::fs::read(directory.join("f")).unwrap(), b"2");
        assert_eq!(directory.join("f").metadata().unwrap().mode() & 0o777, 0o600);
        assert!(!directory.join("f.tmp").exists());
    }
}
