//! The files of an audit directory: their names, modes and order.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// A file is closed and the next one begun when it has grown to this: verified in about 0.3 s where a start finds no mark.
pub const ROTATE_BYTES: u64 = 64 << 20;
/// The last file number; names have eight digits. At 64 MiB a file this is 6 EiB.
pub const MAX_FILE_NUMBER: u32 = 99_999_999;

const PREFIX: &str = "audit-";
const ENDING: &str = ".jsonl";

/// One file of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LogFile {
    /// Its number, from 1.
    pub(super) number: u32,
    /// Where it is.
    pub(super) path: PathBuf,
}

impl LogFile {
    /// Names the file of a number.
    pub(super) fn new(directory: &Path, number: u32) -> Self {
        Self { number, path: directory.join(format!("{PREFIX}{number:08}{ENDING}")) }
    }

    /// Names the file after this one; `None` when the numbers are used up.
    pub(super) fn next(&self) -> Option<Self> {
        let number = self.number.checked_add(1).filter(|number| *number <= MAX_FILE_NUMBER)?;
        Some(Self::new(self.path.parent()?, number))
    }

    /// Returns the bare file name.
    pub(super) fn name(&self) -> String {
        format!("{PREFIX}{:08}{ENDING}", self.number)
    }

    /// Names the summary of all files before this one.
    pub(super) fn summary(&self) -> PathBuf {
        self.path.with_extension("past")
    }

    /// Names the mark in this file.
    pub(super) fn mark(&self) -> PathBuf {
        self.path.with_extension("mark")
    }

    /// Creates the file, empty, 0600, and makes its name durable.
    pub(super) fn create(&self) -> io::Result<File> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.path)?;
        file.sync_all()?;
        if let Some(directory) = self.path.parent() {
            sync_directory(directory)?;
        }
        Ok(file)
    }

    /// Opens the file for reading and writing.
    pub(super) fn open(&self) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(&self.path)
    }
}

/// Lists the files of a log in order. Names that are not of this form are left alone.
pub(super) fn list(directory: &Path) -> io::Result<Vec<LogFile>> {
    let mut files = Vec::new();
    for item in std::fs::read_dir(directory)? {
        let name = item?.file_name();
        if let Some(number) = name.to_str().and_then(parse) {
            files.push(LogFile::new(directory, number));
        }
    }
    files.sort_by_key(|file| file.number);
    Ok(files)
}

/// Makes the directory, 0700, when it is missing.
pub(super) fn make_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    DirBuilder::new().mode(0o700).create(directory)?;
    match directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => sync_directory(parent),
        None => sync_directory(Path::new(".")),
    }
}

pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn parse(name: &str) -> Option<u32> {
    let digits = name.strip_prefix(PREFIX)?.strip_suffix(ENDING)?;
    let in_form = digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_digit());
    in_form.then(|| digits.parse().ok()).flatten().filter(|number| *number > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_others_are_left_alone() {
        assert_eq!(parse("audit-00000012.jsonl"), Some(12));
        for name in
            ["audit-12.jsonl", "audit-00000000.jsonl", "audit-0000001x.jsonl", "audit.lock", ""]
        {
            assert_eq!(parse(name), None, "{name}");
        }
    }

    #[test]
    fn the_last_number_has_no_next() {
        assert!(LogFile::new(Path::new("d"), MAX_FILE_NUMBER - 1).next().is_some());
        assert_eq!(LogFile::new(Path::new("d"), MAX_FILE_NUMBER).next(), None);
    }
}
