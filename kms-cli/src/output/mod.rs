//! What is written: tables for people, stable JSON for scripts, and bytes to files or stdout.
//!
//! A file is written beside its name and renamed when it is whole and synced, so that nothing that looks complete is
//! left by a failure. Plaintexts go to a terminal only when `--out -` asks for it.

pub mod view;

use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde::Serialize;

use crate::error::CliError;
use crate::input::STREAM;

/// How results are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Tables for people; may change between releases.
    #[default]
    Table,
    /// One JSON object, whose fields are only ever added to.
    Json,
}

/// A result that can be shown both ways.
pub trait View: Serialize {
    /// Draws it for people.
    fn table(&self) -> Table;
}

/// Shows a result on stdout.
pub fn show(format: Format, view: &impl View) -> Result<(), CliError> {
    match format {
        Format::Json => show_json(view),
        Format::Table => print(format!("{}\n", view.table().trim_fmt()).as_bytes()),
    }
}

/// Writes one JSON object and a line end to stdout.
pub fn show_json(value: &impl Serialize) -> Result<(), CliError> {
    let text =
        serde_json::to_vec_pretty(value).map_err(|_| CliError::Bug("a result has no JSON form"))?;
    let mut text = zeroize::Zeroizing::new(text);
    text.push(b'\n');
    print(&text)
}

/// Writes to stdout and flushes, so that a failure is seen.
pub fn print(bytes: &[u8]) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    written.map_err(|cause| CliError::Stream { action: "write to standard output", cause })
}

/// Makes an empty table in our style.
pub fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table
}

/// Where bytes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To stdout; `asked` when `-` was given.
    Stdout {
        /// True when the caller wrote `--out -`.
        asked: bool,
    },
    /// To a file, mode 0600; an existing one is replaced only with `force`.
    File {
        /// The file.
        path: PathBuf,
        /// True to replace an existing file.
        force: bool,
    },
}

impl Destination {
    /// Reads `--out` and `--force`. An existing file is refused at once, before anything is asked of a server.
    pub fn new(out: Option<&Path>, force: bool) -> Result<Self, CliError> {
        match out {
            None => Ok(Self::Stdout { asked: false }),
            Some(path) if path == Path::new(STREAM) => Ok(Self::Stdout { asked: true }),
            Some(path) if !force && path.symlink_metadata().is_ok() => {
                Err(CliError::Exists(path.into()))
            }
            Some(path) => Ok(Self::File { path: path.into(), force }),
        }
    }

    /// Returns whether it is a terminal.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Stdout { .. }) && io::stdout().is_terminal()
    }

    /// Refuses to show a secret on a terminal that was not asked for.
    pub fn check_secret(&self) -> Result<(), CliError> {
        match self {
            Self::Stdout { asked: false } if self.is_terminal() => Err(CliError::Terminal(
                "a plaintext is not shown on a terminal: use --out FILE, a pipe, or --out -",
            )),
            Self::Stdout { .. } | Self::File { .. } => Ok(()),
        }
    }

    /// Writes all of it, or leaves nothing.
    pub fn write(&self, bytes: &[u8]) -> Result<(), CliError> {
        match self {
            Self::Stdout { .. } => print(bytes),
            Self::File { path, force } => write_file(path, bytes, *force),
        }
    }
}

fn write_file(path: &Path, bytes: &[u8], force: bool) -> Result<(), CliError> {
    let failed = |cause| CliError::File { action: "write", path: path.into(), cause };
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // Mode 0600 from the start: tempfile makes it so.
    let mut side =
        tempfile::Builder::new().prefix(".kms-").tempfile_in(directory).map_err(failed)?;
    side.write_all(bytes).map_err(failed)?;
    side.as_file().sync_all().map_err(failed)?;
    if force {
        side.persist(path).map_err(|error| failed(error.error))?;
    } else if let Err(error) = side.persist_noclobber(path) {
        if error.error.kind() == io::ErrorKind::AlreadyExists {
            return Err(CliError::Exists(path.into()));
        }
        return Err(failed(error.error));
    }
    std::fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_file_is_written_whole_and_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        Destination::new(Some(&path), false).unwrap().write(b"secret").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"secret");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_existing_file_is_kept_unless_forced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        std::fs::write(&path, b"old").unwrap();
        assert!(matches!(Destination::new(Some(&path), false), Err(CliError::Exists(_))));
        let raced = Destination::File { path: path.clone(), force: false };
        assert!(matches!(raced.write(b"new"), Err(CliError::Exists(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        Destination::new(Some(&path), true).unwrap().write(b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_that_is_not_there_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("no/out");
        let destination = Destination::new(Some(&path), false).unwrap();
        assert!(matches!(destination.write(b"x"), Err(CliError::File { .. })));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
