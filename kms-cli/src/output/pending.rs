//! Output files that appear whole or not at all: written without a name, synced, then linked or renamed into place.
//!
//! Until [`PendingFile::commit`] the target is untouched. A failure, Ctrl-C or kill leaves nothing: the file has no name
//! yet (O_TMPFILE). Where there are no such files, a failure or a signal removes it ([`crate::interrupt`]), and a crash
//! leaves a file whose name says that it is partial.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, linkat};
#[cfg(target_os = "linux")]
use rustix::fs::{Mode, OFlags};
use tempfile::TempPath;

use super::file::OutputError;
use crate::interrupt::{create_partial, uninterrupted};

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

impl Overwrite {
    /// Reads `--force`.
    pub const fn of(force: bool) -> Self {
        if force { Self::Allow } else { Self::Refuse }
    }
}

/// A file that is being written and has not appeared yet.
#[derive(Debug)]
pub struct PendingFile {
    file: File,
    /// `None` while the file has no name at all.
    partial: Option<TempPath>,
    target: PathBuf,
    overwrite: Overwrite,
}

impl PendingFile {
    /// Begins a file that shall appear at `target`.
    ///
    /// # Errors
    /// [`OutputError::Exists`] unless overwriting is allowed; [`OutputError::NotRegular`] when what is there is
    /// not a regular file; [`OutputError::Io`].
    pub fn create(target: &Path, overwrite: Overwrite) -> Result<Self, OutputError> {
        let target = resolve(target, overwrite)?;
        let Some(file) = unnamed(directory_of(&target)) else {
            return Self::create_named(target, overwrite);
        };
        Ok(Self { file, partial: None, target, overwrite })
    }

    /// As above, for file systems without unnamed files.
    fn create_named(target: PathBuf, overwrite: Overwrite) -> Result<Self, OutputError> {
        let mut builder = builder(&target)?;
        builder.permissions(Permissions::from_mode(MODE));
        let named = create_partial(|| builder.tempfile_in(directory_of(&target)));
        let named = named.map_err(without_path).map_err(OutputError::io("create the output"))?;
        let (file, partial) = named.into_parts();
        Ok(Self { file, partial: Some(partial), target, overwrite })
    }

    /// Makes the file durable and lets it appear.
    ///
    /// # Errors
    /// [`OutputError::Exists`] when something took the name meanwhile; [`OutputError::Io`].
    pub fn commit(self) -> Result<(), OutputError> {
        let Self { file, partial, target, overwrite } = self;
        file.sync_all().map_err(OutputError::io("sync the output"))?;
        let builder = builder(&target)?;
        let appeared = uninterrupted(|| match (partial, overwrite) {
            (None, Overwrite::Refuse) => link(&file, &target),
            (None, Overwrite::Allow) => {
                // A link cannot replace a file, so the file gets a partial name for the time of a rename.
                let named = builder.make_in(directory_of(&target), |at| link(&file, at));
                named.and_then(|named| Ok(named.into_temp_path().persist(&target)?))
            }
            (Some(partial), Overwrite::Refuse) => {
                partial.persist_noclobber(&target).map_err(io::Error::from)
            }
            (Some(partial), Overwrite::Allow) => partial.persist(&target).map_err(io::Error::from),
        });
        appeared.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => OutputError::Exists,
            _ => OutputError::io("rename the output")(without_path(error)),
        })?;
        File::open(directory_of(&target))
            .and_then(|directory| directory.sync_all())
            .map_err(OutputError::io("sync the directory"))
    }
}

impl Write for PendingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Follows links, so that a file is replaced and not the link, and looks at what is there.
pub(crate) fn resolve(target: &Path, overwrite: Overwrite) -> Result<PathBuf, OutputError> {
    match target.canonicalize() {
        Ok(existing) if !existing.is_file() => Err(OutputError::NotRegular),
        Ok(_) if overwrite == Overwrite::Refuse => Err(OutputError::Exists),
        Ok(existing) => Ok(existing),
        // A link that leads nowhere: replacing it, or making what it names, would both be a guess.
        Err(error) if target.is_symlink() && error.kind() == io::ErrorKind::NotFound => {
            let text = "it is a link that leads nowhere: make what it names, or remove it";
            let error = io::Error::new(io::ErrorKind::NotFound, text);
            Err(OutputError::io("create the output")(error))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(target.to_path_buf()),
        Err(error) => Err(OutputError::io("create the output")(error)),
    }
}

/// Creates a file without a name, where that is possible and can be undone.
#[cfg(target_os = "linux")]
fn unnamed(directory: &Path) -> Option<File> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(directory, flags, Mode::from_raw_mode(MODE)).ok()?);
    descriptor(&file).exists().then_some(file)
}

/// Only Linux has files without a name.
#[cfg(not(target_os = "linux"))]
fn unnamed(_: &Path) -> Option<File> {
    None
}

/// Gives an unnamed file a name; one that is taken is an error.
fn link(file: &File, at: &Path) -> io::Result<()> {
    Ok(linkat(CWD, descriptor(file), CWD, at, AtFlags::SYMLINK_FOLLOW)?)
}

/// The way to an open file that linkat(2) documents for this.
fn descriptor(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Takes the name of a temporary file, which tempfile appends, out of an error: its reader knows the output's name.
pub(crate) fn without_path(error: io::Error) -> io::Error {
    match error.to_string().split_once(" at path \"") {
        Some((text, _)) => io::Error::new(error.kind(), text.to_owned()),
        None => error,
    }
}

fn builder(target: &Path) -> Result<tempfile::Builder<'static, 'static>, OutputError> {
    target.file_name().ok_or(OutputError::NotRegular)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(".").suffix(PARTIAL_SUFFIX);
    Ok(builder)
}

/// Returns the directory that a file stands in.
pub(crate) fn directory_of(target: &Path) -> &Path {
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
        // Not even while it is written: nobody has to tidy up after a kill.
        assert!(names(directory.path()).is_empty());
        drop(pending);
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn without_unnamed_files_a_partial_name_is_used_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("out");
        let create = |overwrite| PendingFile::create_named(target.clone(), overwrite).unwrap();
        let pending = create(Overwrite::Refuse);
        assert!(names(directory.path())[0].ends_with(PARTIAL_SUFFIX));
        drop(pending);
        assert!(names(directory.path()).is_empty());
        create(Overwrite::Refuse).commit().unwrap();
        assert_eq!(target.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(create(Overwrite::Refuse).commit(), Err(OutputError::Exists)));
        let mut pending = create(Overwrite::Allow);
        pending.write_all(b"after").unwrap();
        pending.commit().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"after");
        assert_eq!(names(directory.path()), ["out"]);
    }

    #[test]
    fn an_error_does_not_name_the_partial_file() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("no/out");
        let failed = PendingFile::create_named(target, Overwrite::Refuse).unwrap_err().to_string();
        assert_eq!(failed, "cannot create the output: No such file or directory (os error 2)");
        let own = without_path(io::Error::other("own"));
        assert_eq!(own.to_string(), "own");
    }

    #[test]
    fn a_name_without_a_directory_is_in_the_current_one() {
        assert_eq!(directory_of(Path::new("out")), Path::new("."));
        assert_eq!(directory_of(Path::new("/out")), Path::new("/"));
    }

    #[test]
    fn an_existing_file_is_refused_or_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("out");
        std::fs::write(&target, "before").unwrap();
        let refused = PendingFile::create(&target, Overwrite::Refuse);
        assert!(matches!(refused, Err(OutputError::Exists)));
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
        assert!(matches!(pending.commit(), Err(OutputError::Exists)));
        assert_eq!(names(directory.path()), ["out"]);
        assert_eq!(std::fs::read(&target).unwrap(), b"other");
    }

    #[test]
    fn a_link_that_leads_nowhere_is_left_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        for overwrite in [Overwrite::Refuse, Overwrite::Allow] {
            let refused = PendingFile::create(&link, overwrite).unwrap_err().to_string();
            assert!(refused.contains("a link that leads nowhere"), "{refused}");
        }
        assert_eq!(names(directory.path()), ["link"]);
    }

    #[test]
    fn a_directory_and_a_device_are_refused_and_a_link_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        for target in [directory.path(), Path::new("/dev/null")] {
            let refused = PendingFile::create(target, Overwrite::Allow);
            assert!(matches!(refused, Err(OutputError::NotRegular)));
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
