//! An output that has a path: a file that appears when it is whole, or a pipe or device that is written to as it comes.
//!
//! Every verb writes its `--out` through this, so that `--force` means the same everywhere: a regular file is replaced,
//! links are followed, and a pipe or a device stays what it is.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use super::pending::{Overwrite, PendingFile, resolve};

/// Why an output cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// It exists, and overwriting was not asked for.
    #[error("the output exists; --force overwrites it")]
    Exists,
    /// A directory or a block device is there.
    #[error("not a regular file")]
    NotRegular,
    /// The system refused.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl OutputError {
    /// Makes the closure that gives an I/O error its action.
    pub(super) fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }
}

/// Where bytes go.
#[derive(Debug)]
pub enum FileOutput {
    /// To a pipe or a device, at once.
    Stream(File),
    /// Into a file that appears at [`FileOutput::commit`].
    Pending(PendingFile),
}

impl FileOutput {
    /// Says whether [`FileOutput::create`] would work, before anything is asked of a server.
    ///
    /// # Errors
    /// [`OutputError`].
    pub fn check(path: &Path, overwrite: Overwrite) -> Result<(), OutputError> {
        if is_stream(path) { Ok(()) } else { resolve(path, overwrite).map(drop) }
    }

    /// Begins a file at `path`; `None` for a pipe or a device, which may have no reader yet.
    ///
    /// # Errors
    /// [`OutputError`].
    pub fn begin(path: &Path, overwrite: Overwrite) -> Result<Option<Self>, OutputError> {
        if is_stream(path) {
            return Ok(None);
        }
        Ok(Some(Self::Pending(PendingFile::create(path, overwrite)?)))
    }

    /// Opens the pipe or device at `path`, or begins a file there.
    ///
    /// # Errors
    /// [`OutputError`].
    pub fn create(path: &Path, overwrite: Overwrite) -> Result<Self, OutputError> {
        if let Some(file) = Self::begin(path, overwrite)? {
            return Ok(file);
        }
        let stream = File::options().write(true).open(path);
        Ok(Self::Stream(stream.map_err(OutputError::io("open the output"))?))
    }

    /// Lets a file appear, durable; nothing is left to do for a stream.
    ///
    /// # Errors
    /// [`OutputError`]; then there is no file.
    pub fn commit(self) -> Result<(), OutputError> {
        match self {
            Self::Stream(_) => Ok(()),
            Self::Pending(pending) => pending.commit(),
        }
    }
}

/// Pipes and devices such as /dev/null cannot be replaced by a file, so they are written to.
fn is_stream(path: &Path) -> bool {
    let kind = path.metadata().map(|metadata| metadata.file_type());
    kind.is_ok_and(|kind| kind.is_fifo() || kind.is_char_device())
}

impl Write for FileOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stream(file) => file.write(bytes),
            Self::Pending(pending) => pending.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stream(file) => file.flush(),
            Self::Pending(pending) => pending.flush(),
        }
    }
}
