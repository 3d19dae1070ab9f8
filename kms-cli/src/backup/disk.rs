//! The file under reseal and its side file, and the order in which they become durable.
//!
//! Invariant: the side file and its directory entry are synced before the first byte of the file is overwritten, and
//! the file is synced before the side file is removed (`every_cut_of_the_write_sequence_is_recovered` in
//! `tests/backup_reseal.rs`). The trait exists so that tests can fail each step.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::error::BackupError;
use super::side::MAX_SIDE_BYTES;

/// Follows the file's name in that of its side file.
pub const SIDE_SUFFIX: &str = ".kms-reseal";
/// Permissions of a side file: it holds no secret, but nobody else has business with it.
const SIDE_MODE: u32 = 0o600;
/// A link is not followed, and a pipe does not make us wait: whoever may write to the directory may have put one there.
const SIDE_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// What a reseal does to the disk, each method one durable step.
pub trait Disk {
    /// Returns the length of the backup.
    ///
    /// # Errors
    /// [`BackupError::Io`].
    fn file_bytes(&self) -> Result<u64, BackupError>;

    /// Reads the first `bytes` of the backup, fewer when it is shorter.
    ///
    /// # Errors
    /// [`BackupError::Io`].
    fn beginning(&self, bytes: usize) -> Result<Vec<u8>, BackupError>;

    /// Reads the side file, at most one byte more than [`MAX_SIDE_BYTES`]; `None` when there is none.
    ///
    /// # Errors
    /// [`BackupError::SideForeign`] for a link, a pipe, a device, or somebody else's file; [`BackupError::Io`].
    fn side(&self) -> Result<Option<Vec<u8>>, BackupError>;

    /// Creates the side file; it and its directory entry are durable on return.
    ///
    /// # Errors
    /// [`BackupError::Io`], also when there is one already.
    fn put_side(&self, bytes: &[u8]) -> Result<(), BackupError>;

    /// Overwrites the beginning of the backup; durable on return.
    ///
    /// # Errors
    /// [`BackupError::Io`]; any part may have been written then.
    fn put_header(&self, bytes: &[u8]) -> Result<(), BackupError>;

    /// Removes the side file; durable on return.
    ///
    /// # Errors
    /// [`BackupError::Io`].
    fn remove_side(&self) -> Result<(), BackupError>;
}

/// A backup on a file system, locked for as long as this value lives.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
    directory: PathBuf,
    side: PathBuf,
}

impl FileDisk {
    /// Opens a backup for resealing and locks it against other reseals. Symbolic links are followed.
    ///
    /// # Errors
    /// [`BackupError::Busy`] when another reseal holds it, [`BackupError::Replaced`] when another file took its name
    /// meanwhile, [`BackupError::NotRegular`], [`BackupError::Io`].
    pub fn open(path: &Path) -> Result<Self, BackupError> {
        let path = path.canonicalize().map_err(BackupError::io("open the file"))?;
        let kind = path.metadata().map_err(BackupError::io("open the file"))?;
        if !kind.is_file() {
            return Err(BackupError::NotRegular);
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(BackupError::io("open the file for writing"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(BackupError::Busy),
            Err(TryLockError::Error(error)) => return Err(BackupError::io("lock the file")(error)),
        }
        let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        let opened = file.metadata().map(identity).map_err(BackupError::io("open the file"))?;
        let named = path.metadata().map(identity).map_err(BackupError::io("open the file"))?;
        if opened != named {
            return Err(BackupError::Replaced);
        }
        let directory = path.parent().unwrap_or(Path::new("/")).to_path_buf();
        Ok(Self { file, directory, side: side_path(&path) })
    }

    fn sync_directory(&self) -> Result<(), BackupError> {
        sync_directory(&self.directory)
    }
}

/// Returns the path of a file's side file.
pub(super) fn side_path(path: &Path) -> PathBuf {
    let mut side = path.as_os_str().to_owned();
    side.push(SIDE_SUFFIX);
    side.into()
}

/// Makes names in a directory durable.
pub(super) fn sync_directory(directory: &Path) -> Result<(), BackupError> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(BackupError::io("sync the directory"))
}

/// Creates the side file; where it cannot be written whole, as on a full disk, nothing is left of it. The backup was not
/// touched then, so a side file would only be a riddle.
fn create_whole(
    side: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), BackupError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(SIDE_MODE)
        .open(side)
        .map_err(BackupError::io("create the side file"))?;
    write(&mut file).map_err(|error| {
        // The next run drops what is left.
        let _ = std::fs::remove_file(side);
        BackupError::io("write the side file")(error)
    })
}

impl Disk for FileDisk {
    fn file_bytes(&self) -> Result<u64, BackupError> {
        let metadata = self.file.metadata().map_err(BackupError::io("read the file's length"))?;
        Ok(metadata.len())
    }

    fn beginning(&self, bytes: usize) -> Result<Vec<u8>, BackupError> {
        let mut beginning = vec![0; bytes];
        let mut length = 0;
        while let Some(rest) = beginning.get_mut(length..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, length as u64) {
                Ok(0) => break,
                Ok(more) => length += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(BackupError::io("read the header")(error)),
            }
        }
        beginning.truncate(length);
        Ok(beginning)
    }

    fn side(&self) -> Result<Option<Vec<u8>>, BackupError> {
        let opened = rustix::fs::open(&self.side, SIDE_FLAGS, Mode::empty());
        let file = match opened {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(BackupError::SideForeign),
            Err(error) => return Err(BackupError::io("open the side file")(error.into())),
        };
        let metadata = file.metadata().map_err(BackupError::io("open the side file"))?;
        let owner = self.file.metadata().map_err(BackupError::io("open the file"))?.uid();
        let owners = [geteuid().as_raw(), owner];
        if !metadata.is_file() || !owners.contains(&metadata.uid()) {
            return Err(BackupError::SideForeign);
        }
        let mut bytes = Vec::new();
        file.take(MAX_SIDE_BYTES as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(BackupError::io("read the side file"))?;
        Ok(Some(bytes))
    }

    fn put_side(&self, bytes: &[u8]) -> Result<(), BackupError> {
        create_whole(&self.side, |side| side.write_all(bytes).and_then(|()| side.sync_all()))?;
        self.sync_directory()
    }

    fn put_header(&self, bytes: &[u8]) -> Result<(), BackupError> {
        self.file
            .write_all_at(bytes, 0)
            .and_then(|()| self.file.sync_data())
            .map_err(BackupError::io("write the header"))
    }

    fn remove_side(&self) -> Result<(), BackupError> {
        std::fs::remove_file(&self.side).map_err(BackupError::io("remove the side file"))?;
        self.sync_directory()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_file_that_cannot_be_written_whole_is_not_left_behind() {
        let directory = tempfile::tempdir().unwrap();
        let side = directory.path().join("backup.kms-reseal");
        let failed = create_whole(&side, |file| {
            file.write_all(b"KMSR")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert!(matches!(failed, Err(BackupError::Io { action: "write the side file", .. })));
        assert!(!side.exists());
        create_whole(&side, |file| file.write_all(b"whole")).unwrap();
        let again = create_whole(&side, |_| Ok(()));
        assert!(matches!(again, Err(BackupError::Io { action: "create the side file", .. })));
        assert_eq!(std::fs::read(&side).unwrap(), b"whole", "what is there is another's");
    }
}
