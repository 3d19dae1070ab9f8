//! The names of a run's files, and the input that they belong to.
//!
//! Beside the output stand its partial file and its checkpoint. Whoever may write to that directory may have put
//! something there: links are not followed, and what is not a regular file of ours is refused.

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::process::geteuid;

use super::checkpoint::{Checkpoint, MAX_CHECKPOINT_BYTES};
use super::error::RunError;
use crate::output::pending::directory_of;

/// Ends the name of the partial file.
const PARTIAL_SUFFIX: &str = ".kms-rewrap";
/// Ends the name of the checkpoint.
const CHECKPOINT_SUFFIX: &str = ".kms-rewrap.json";
/// Ends the name of the checkpoint that is being written.
const NEXT_SUFFIX: &str = ".kms-rewrap.json.new";
/// Permissions of new files.
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
/// No link is followed, and a pipe does not make us wait.
const SAFE: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// The files of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Paths {
    /// The output; absolute, without links.
    pub(super) target: PathBuf,
    /// What is written until the output is whole.
    pub(super) partial: PathBuf,
    /// The checkpoint.
    pub(super) checkpoint: PathBuf,
    next: PathBuf,
    directory: PathBuf,
}

impl Paths {
    /// Names the files for an output, which need not be there.
    pub(super) fn of(output: &Path) -> Result<Self, RunError> {
        let failed = |cause| RunError::file("create", output)(cause);
        let target = match output.canonicalize() {
            Ok(target) => target,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let name = output.file_name().filter(|_| !output.is_symlink());
                let name = name.ok_or_else(|| RunError::NotRegular(output.to_path_buf()))?;
                directory_of(output).canonicalize().map_err(failed)?.join(name)
            }
            Err(error) => return Err(failed(error)),
        };
        let directory = directory_of(&target).to_path_buf();
        let beside = |suffix: &str| {
            let mut name: OsString = target.clone().into();
            name.push(suffix);
            PathBuf::from(name)
        };
        let (partial, checkpoint) = (beside(PARTIAL_SUFFIX), beside(CHECKPOINT_SUFFIX));
        let next = beside(NEXT_SUFFIX);
        Ok(Self { target, partial, checkpoint, next, directory })
    }

    /// Reads the checkpoint; `None` when there is none.
    pub(super) fn read_checkpoint(&self) -> Result<Option<Checkpoint>, RunError> {
        let path = &self.checkpoint;
        let Some(file) = open(path, OFlags::RDONLY, None)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(MAX_CHECKPOINT_BYTES as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(RunError::file("read", path))?;
        let broken = |cause| RunError::CheckpointBroken { path: path.clone(), cause };
        Checkpoint::decode(&bytes).map(Some).map_err(broken)
    }

    /// Replaces the checkpoint in one step; durable on return.
    pub(super) fn write_checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), RunError> {
        let text = checkpoint.encode().ok_or_else(|| bug("a checkpoint has no JSON form"))?;
        let failed = |cause| RunError::file("write", &self.checkpoint)(cause);
        remove(&self.next)?;
        let mut file = create(&self.next).map_err(failed)?;
        io::Write::write_all(&mut file, &text).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        std::fs::rename(&self.next, &self.checkpoint).map_err(failed)?;
        self.sync_directory()
    }

    /// Removes the checkpoint; durable on return.
    pub(super) fn remove_checkpoint(&self) -> Result<(), RunError> {
        remove(&self.next)?;
        remove(&self.checkpoint)?;
        self.sync_directory()
    }

    /// Says whether a run would write to this file, or remove it, before the output gets its name.
    pub(super) fn are(&self, path: &Path) -> bool {
        [&self.partial, &self.checkpoint, &self.next].iter().any(|ours| ours.as_path() == path)
    }

    /// Takes the partial file's name from an output that has both, and says whether it had.
    ///
    /// A run that is killed while it publishes leaves that: what is written to the partial file then is written to the
    /// output.
    ///
    /// # Errors
    /// [`RunError::Busy`] when a run is publishing it now; I/O errors.
    pub(super) fn remove_published_name(&self) -> Result<bool, RunError> {
        let (Ok(partial), Ok(target)) =
            (self.partial.symlink_metadata(), self.target.symlink_metadata())
        else {
            return Ok(false);
        };
        if file_of(&partial) != file_of(&target) {
            return Ok(false);
        }
        let _locked = self.lock_partial(geteuid().is_root().then(|| target.uid()))?;
        remove(&self.partial)?;
        self.sync_directory()?;
        Ok(true)
    }

    /// Opens the partial file, which is made if need be, and locks it against other runs.
    ///
    /// A file that has further names is somebody's: it loses ours and is not written to. In place root may have given it
    /// to the owner of the input already.
    ///
    /// # Errors
    /// [`RunError::InputIsOurs`] when it is the `source`; [`RunError::OtherOwner`], [`RunError::Busy`]; I/O errors.
    pub(super) fn open_partial(&self, source: &Metadata, in_place: bool) -> Result<File, RunError> {
        let heir = (in_place && geteuid().is_root()).then(|| source.uid());
        for _ in 0..2 {
            let file = self.lock_partial(heir)?;
            let opened = file.metadata().map_err(RunError::file("open", &self.partial))?;
            if file_of(&opened) == file_of(source) {
                return Err(RunError::InputIsOurs(self.partial.clone()));
            }
            if opened.nlink() == 1 {
                return Ok(file);
            }
            remove(&self.partial)?;
        }
        // The new one has a second name already: somebody else is at work here.
        Err(RunError::Busy(self.partial.clone()))
    }

    fn lock_partial(&self, heir: Option<u32>) -> Result<File, RunError> {
        let path = &self.partial;
        let failed = |cause| RunError::file("create", path)(cause);
        let file = match open(path, OFlags::RDWR, heir)? {
            Some(file) => file,
            None => create(path).map_err(failed)?,
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(RunError::Busy(path.clone())),
            Err(std::fs::TryLockError::Error(error)) => return Err(failed(error)),
        }
        // Another run may have published the file that we waited for.
        let named = path.symlink_metadata().map_err(|_| RunError::Busy(path.clone()))?;
        let opened = file.metadata().map_err(failed)?;
        if file_of(&named) != file_of(&opened) {
            return Err(RunError::Busy(path.clone()));
        }
        Ok(file)
    }

    /// Makes names in the directory durable.
    pub(super) fn sync_directory(&self) -> Result<(), RunError> {
        File::open(&self.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(RunError::file("sync", &self.directory))
    }
}

/// Says what a file is, and which state of it: equal only while nobody writes to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    file: (u64, u64),
    bytes: u64,
    modified: (i64, i64),
    /// Also changes when a writer puts the time of modification back, and nobody can set it.
    changed: (i64, i64),
}

impl Identity {
    /// Takes it from a file's metadata.
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            file: file_of(metadata),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Says which file it is, whatever its names.
fn file_of(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Opens a file of ours, or of the `heir` to whom we gave it; `None` when there is none.
fn open(path: &Path, flags: OFlags, heir: Option<u32>) -> Result<Option<File>, RunError> {
    let file = match rustix::fs::open(path, flags | SAFE, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(rustix::io::Errno::LOOP) => return Err(RunError::NotRegular(path.to_path_buf())),
        Err(error) => return Err(RunError::file("open", path)(error.into())),
    };
    let metadata = file.metadata().map_err(RunError::file("open", path))?;
    if !metadata.is_file() {
        return Err(RunError::NotRegular(path.to_path_buf()));
    }
    if metadata.uid() != geteuid().as_raw() && Some(metadata.uid()) != heir {
        return Err(RunError::OtherOwner(path.to_path_buf()));
    }
    Ok(Some(file))
}

/// Creates a file that must not be there.
fn create(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | SAFE;
    Ok(rustix::fs::open(path, flags, FILE_MODE)?.into())
}

fn remove(path: &Path) -> Result<(), RunError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(RunError::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Tells a defect of ours.
pub(super) fn bug(what: &'static str) -> RunError {
    crate::error::CliError::Bug(what).into()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use kms_testkit::deadline::eventually;

    use super::*;

    #[test]
    fn a_change_shows_though_length_and_time_of_modification_are_put_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        let write = |text| {
            std::fs::write(&path, text).unwrap();
            let file = File::options().write(true).open(&path).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
            Identity::of(&file.metadata().unwrap())
        };
        let before = write("a");
        // The clock of the file system has steps of some milliseconds.
        eventually(Duration::from_secs(30), "another time", || write("b") != before);
    }
}
