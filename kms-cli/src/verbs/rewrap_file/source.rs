//! The file that is read: opened once to check it and once to work on it.

use std::fs::{File, Metadata};
use std::io::{BufReader, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use super::error::RunError;
use super::layout::Layout;
use super::paths::Identity;
use super::record::Records;

/// How much is read at a time.
const READ_BYTES: usize = 1 << 18;

/// The file that is read.
#[derive(Debug)]
pub(super) struct Source {
    /// Absolute, without links.
    pub(super) path: PathBuf,
    /// What was told of it when the run began.
    pub(super) metadata: Metadata,
    layout: Layout,
}

impl Source {
    /// Finds the file.
    ///
    /// # Errors
    /// [`RunError::NotRegular`] for a pipe or a directory: it is read twice. I/O errors.
    pub(super) fn find(path: &Path, layout: Layout) -> Result<Self, RunError> {
        let failed = |cause| RunError::file("read", path)(cause);
        let absolute = path.canonicalize().map_err(failed)?;
        let metadata = absolute.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(RunError::NotRegular(path.to_path_buf()));
        }
        Ok(Self { path: absolute, metadata, layout })
    }

    /// Returns how ciphertexts stand in it.
    pub(super) const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Reads records from `offset` on, which is behind `lines` lines.
    ///
    /// # Errors
    /// Those of [`Records::next`]: the names of the columns are read again.
    pub(super) fn records(
        &self,
        offset: u64,
        lines: u64,
    ) -> Result<Records<BufReader<File>>, RunError> {
        let failed = |cause| RunError::file("read", &self.path)(cause);
        let mut file = File::open(&self.path).map_err(failed)?;
        let reader = BufReader::with_capacity(READ_BYTES, file.try_clone().map_err(failed)?);
        let mut records = Records::new(reader, &self.path, &self.layout);
        if offset == 0 {
            return Ok(records);
        }
        if matches!(self.layout, Layout::Csv { header: true, .. }) {
            records.next(&mut Vec::new())?;
        }
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        Ok(records.at(BufReader::with_capacity(READ_BYTES, file), offset, lines))
    }

    /// Fails when somebody wrote to the file since the run began: what was written then may be lost in the output.
    pub(super) fn check_unchanged(&self) -> Result<(), RunError> {
        let now = self.path.metadata().map_err(RunError::file("read", &self.path))?;
        if Identity::of(&now) == Identity::of(&self.metadata) {
            return Ok(());
        }
        Err(RunError::InputChanged(self.path.clone()))
    }
}
