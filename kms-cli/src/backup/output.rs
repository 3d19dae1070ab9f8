//! Output files that appear whole or not at all: written beside their target, synced, then renamed.
//!
//! Until [`PendingFile::commit`] the target is untouched; a failure removes what was written, and a crash leaves only a
//! file whose name says that it is partial.

use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::disk::sync_directory;
use super::error::BackupError;

/// Ends the name of a file that is still being written.
const PARTIAL_SUFFIX: &str = ".kms-partial";
/// Permissions of a new file: backups and their plaintext are their owner's business.
const MODE: u32 = 0o600;

/// Whether an existing file may be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    /// An existing output is an error.
    Refuse,
    /// An existing regular file is replaced, in one step.
    Allow,
}

/// A file that is being written and has not appeared yet.
#[derive(Debug)]
pub struct PendingFile {
    temporary: NamedTempFile,
    target: PathBuf,
    overwrite: Overwrite,
}

impl PendingFile {
    /// Begins a file that shall appear at `target`.
    ///
    /// # Errors
    /// [`BackupError::OutputExists`] unless overwriting is allowed; [`BackupError::NotRegular`] when what is there is
    /// not a regular file; [`BackupError::Io`].
    pub fn create(target: &Path, overwrite: Overwrite) -> Result<Self, BackupError> {
        // A link is followed, so that the file is replaced and not the link.
        let target = match target.canonicalize() {
            Ok(existing) => {
                if !existing.is_file() {
                    return Err(BackupError::NotRegular);
                }
                if overwrite == Overwrite::Refuse {
                    return Err(BackupError::OutputExists);
                }
                existing
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => target.to_path_buf(),
            Err(error) => return Err(BackupError::io("create the output")(error)),
        };
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(target.file_name().ok_or(BackupError::NotRegular)?);
        let temporary = tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(PARTIAL_SUFFIX)
            .permissions(Permissions::from_mode(MODE))
            .tempfile_in(directory_of(&target))
            .map_err(BackupError::io("create the output"))?;
        Ok(Self { temporary, target, overwrite })
    }

    /// Makes the file durable and lets it appear.
    ///
    /// # Errors
    /// [`BackupError::OutputExists`] when something took the name meanwhile; [`BackupError::Io`].
    pub fn commit(self) -> Result<(), BackupError> {
        let Self { temporary, target, overwrite } = self;
        temporary.as_file().sync_all().map_err(BackupError::io("sync the output"))?;
        let persisted = match overwrite {
            Overwrite::Allow => temporary.persist(&target),
            Overwrite::Refuse => temporary.persist_noclobber(&target),
        };
        persisted.map_err(|failed| match failed.error.kind() {
            io::ErrorKind::AlreadyExists => BackupError::OutputExists,
            _ => BackupError::io("rename the output")(failed.error),
        })?;
        sync_directory(directory_of(&target))
    }
}

impl Write for PendingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.temporary.as_file_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.temporary.as_file_mut().flush()
    }
}

fn directory_of(target: &Path) -> &Path {
    match target.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn the_file_appears_at_commit_with_its_owners_permissions() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("out");
        let mut pending = PendingFile::create(&target, Overwrite::Refuse).unwrap();
        pending.write_all(b"whole").unwrap();
        assert!(!target.exists());
        pending.commit().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"whole");
        assert_eq!(target.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(names(directory.path()), ["out"]);
    }

    #[test]
    fn nothing_is_left_without_a_commit() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("out");
        let mut pending = PendingFile::create(&target, Overwrite::Refuse).unwrap();
        pending.write_all(b"half").unwrap();
        assert!(names(directory.path())[0].ends_with(PARTIAL_SUFFIX));
        drop(pending);
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn an_existing_file_is_refused_or_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("out");
        std::fs::write(&target, "before").unwrap();
        let refused = PendingFile::create(&target, Overwrite::Refuse);
        assert!(matches!(refused, Err(BackupError::OutputExists)));
        let mut pending = PendingFile::create(&target, Overwrite::Allow).unwrap();
        pending.write_all(b"after").unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"before");
        pending.commit().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"after");
    }

    #[test]
    fn a_file_that_appears_meanwhile_is_not_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("out");
        let pending = PendingFile::create(&target, Overwrite::Refuse).unwrap();
        std::fs::write(&target, "other").unwrap();
        assert!(matches!(pending.commit(), Err(BackupError::OutputExists)));
        assert_eq!(names(directory.path()), ["out"]);
        assert_eq!(std::fs::read(&target).unwrap(), b"other");
    }

    #[test]
    fn a_directory_and_a_device_are_refused_and_a_link_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        for target in [directory.path(), Path::new("/dev/null")] {
            let refused = PendingFile::create(target, Overwrite::Allow);
            assert!(matches!(refused, Err(BackupError::NotRegular)));
        }
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        std::fs::write(&file, "before").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let mut pending = PendingFile::create(&link, Overwrite::Allow).unwrap();
        pending.write_all(b"after").unwrap();
        pending.commit().unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&file).unwrap(), b"after");
    }
}
