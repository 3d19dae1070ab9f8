//! What is written: tables for people, stable JSON for scripts, and bytes to files or stdout.
//!
//! A file appears when it is whole and synced ([`pending`]), so that nothing that looks complete is left by a failure.
//! Plaintexts go to a terminal only when `--out -` asks for it.

pub mod alias;
pub mod consumer;
pub mod file;
pub mod history;
pub mod import;
pub mod pending;
pub mod usage;
pub mod view;

pub use file::{FileOutput, OutputError};
pub use pending::{Overwrite, PendingFile};

use std::io::{self, IsTerminal as _, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde::Serialize;
use zeroize::Zeroizing;

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
    print(&json_text(value)?)
}

/// Makes one JSON object and a line end.
pub fn json_text(value: &impl Serialize) -> Result<Zeroizing<Vec<u8>>, CliError> {
    let text =
        serde_json::to_vec_pretty(value).map_err(|_| CliError::Bug("a result has no JSON form"))?;
    let mut text = Zeroizing::new(text);
    text.push(b'\n');
    Ok(text)
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
    /// To a file, mode 0600, or to the pipe or device that is there.
    File {
        /// The file.
        path: PathBuf,
        /// Whether an existing file is replaced.
        overwrite: Overwrite,
    },
}

impl Destination {
    /// Reads `--out` and `--force`. An existing file is refused at once, before anything is asked of a server.
    pub fn new(out: Option<&Path>, force: bool) -> Result<Self, CliError> {
        match out {
            None => Ok(Self::Stdout { asked: false }),
            Some(path) if path == Path::new(STREAM) => Ok(Self::Stdout { asked: true }),
            Some(path) => {
                let overwrite = Overwrite::of(force);
                FileOutput::check(path, overwrite).map_err(at(path))?;
                Ok(Self::File { path: path.into(), overwrite })
            }
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

    /// Returns whether both end up in one file, pipe or device, by whatever names.
    pub fn is_same(&self, other: &Self) -> bool {
        let same = |one: Option<_>, two: Option<_>| one.is_some() && one == two;
        self == other
            || same(self.inode(), other.inode())
            || self.place().is_some_and(|place| other.place() == Some(place))
    }

    /// Returns device and inode of what is there already.
    fn inode(&self) -> Option<(u64, u64)> {
        match self {
            Self::Stdout { .. } => {
                let stat = rustix::fs::fstat(io::stdout()).ok()?;
                Some((stat.st_dev, stat.st_ino))
            }
            Self::File { path, .. } => {
                let metadata = path.metadata().ok()?;
                Some((metadata.dev(), metadata.ino()))
            }
        }
    }

    /// Returns where the file is or will be, links followed.
    fn place(&self) -> Option<PathBuf> {
        let Self::File { path, .. } = self else { return None };
        path.canonicalize().ok().or_else(|| {
            let directory = pending::directory_of(path).canonicalize().ok()?;
            Some(directory.join(path.file_name()?))
        })
    }

    /// Writes all of it, or leaves nothing.
    pub fn write(&self, bytes: &[u8]) -> Result<(), CliError> {
        self.prepare()?.fill(bytes)?.commit()
    }

    /// Begins a file, so that one that cannot be written is known before anything is asked of a server.
    pub fn prepare(&self) -> Result<Prepared<'_>, CliError> {
        let file = match self {
            Self::Stdout { .. } => None,
            Self::File { path, overwrite } => {
                FileOutput::begin(path, *overwrite).map_err(at(path))?
            }
        };
        Ok(Prepared { destination: self, file })
    }

    /// Takes a file away that has appeared here, and is worth nothing without another that has not.
    pub fn withdraw(&self) {
        let Self::File { path, .. } = self else { return };
        // Links lead to the file that was written. One that cannot be removed is left: the error told is the other's.
        if let Ok(path) = path.canonicalize()
            && path.is_file()
        {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// An output that is ready to be written; without a file it is stdout, a pipe or a device.
#[derive(Debug)]
pub struct Prepared<'a> {
    destination: &'a Destination,
    file: Option<FileOutput>,
}

impl<'a> Prepared<'a> {
    /// Writes a file that does not appear yet.
    pub fn fill(mut self, bytes: &'a [u8]) -> Result<Filled<'a>, CliError> {
        if let (Some(file), Destination::File { path, .. }) = (&mut self.file, self.destination) {
            write_all(file, path, bytes)?;
        }
        Ok(Filled { prepared: self, bytes })
    }
}

/// An output of which nothing is left to do but to let it appear.
#[derive(Debug)]
pub struct Filled<'a> {
    prepared: Prepared<'a>,
    bytes: &'a [u8],
}

impl Filled<'_> {
    /// Lets the file appear, or gives the bytes to whoever reads.
    pub fn commit(self) -> Result<(), CliError> {
        let Self { prepared: Prepared { destination, file }, bytes } = self;
        let (path, overwrite) = match destination {
            Destination::Stdout { .. } => return print(bytes),
            Destination::File { path, overwrite } => (path, *overwrite),
        };
        let Some(file) = file else {
            let mut stream = FileOutput::create(path, overwrite).map_err(at(path))?;
            write_all(&mut stream, path, bytes)?;
            return stream.commit().map_err(at(path));
        };
        file.commit().map_err(at(path))
    }
}

fn write_all(output: &mut FileOutput, path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    let written = output.write_all(bytes).and_then(|()| output.flush());
    written.map_err(OutputError::io("write")).map_err(at(path))
}

/// Gives an error its path.
pub(crate) fn at(path: &Path) -> impl Fn(OutputError) -> CliError {
    |error| {
        let failed = |action, cause| CliError::File { action, path: path.into(), cause };
        match error {
            OutputError::Exists => CliError::Exists(path.into()),
            OutputError::NotRegular => {
                failed("write", io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
            }
            OutputError::Io { action: _, source } => failed("write", source),
        }
    }
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
        let raced = Destination::File { path: path.clone(), overwrite: Overwrite::Refuse };
        assert!(matches!(raced.write(b"new"), Err(CliError::Exists(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        Destination::new(Some(&path), true).unwrap().write(b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn one_file_by_two_names_is_the_same_and_two_files_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("sub");
        std::fs::create_dir(&sub).unwrap();
        std::os::unix::fs::symlink(&sub, dir.path().join("sub-link")).unwrap();
        let to = |name: &str| Destination::File {
            path: dir.path().join(name),
            overwrite: Overwrite::Allow,
        };
        // Neither is there yet.
        assert!(to("dk").is_same(&to("sub/../dk")));
        assert!(to("sub/dk").is_same(&to("sub-link/dk")));
        assert!(!to("dk").is_same(&to("sub/dk")));
        assert!(!to("no/dk").is_same(&to("no/other")));
        std::fs::write(dir.path().join("dk"), "").unwrap();
        for (link, hard) in [("soft", false), ("hard", true)] {
            let link = dir.path().join(link);
            if hard {
                std::fs::hard_link(dir.path().join("dk"), link).unwrap();
            } else {
                std::os::unix::fs::symlink("dk", link).unwrap();
            }
        }
        assert!(to("dk").is_same(&to("soft")) && to("dk").is_same(&to("hard")));
        let [asked, unasked] = [true, false].map(|asked| Destination::Stdout { asked });
        assert!(asked.is_same(&unasked) && !asked.is_same(&to("dk")));
    }

    #[test]
    fn a_device_a_pipe_and_a_link_stay_what_they_are() {
        use std::os::unix::fs::FileTypeExt as _;
        let dir = tempfile::tempdir().unwrap();
        let [link, file] = ["link", "file"].map(|name| dir.path().join(name));
        std::fs::write(&file, b"old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        Destination::new(Some(&link), true).unwrap().write(b"new").unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&file).unwrap(), b"new");
        for force in [false, true] {
            let null = Path::new("/dev/null");
            Destination::new(Some(null), force).unwrap().write(b"gone").unwrap();
            assert!(null.metadata().unwrap().file_type().is_char_device());

            let fifo = dir.path().join(format!("fifo-{force}"));
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            let kind = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, mode, 0).unwrap();
            let destination = Destination::new(Some(&fifo), force).unwrap();
            let reader = std::thread::spawn({
                let fifo = fifo.clone();
                move || std::fs::read(fifo).unwrap()
            });
            destination.write(b"through").unwrap();
            assert_eq!(reader.join().unwrap(), b"through");
            assert!(fifo.metadata().unwrap().file_type().is_fifo());
        }
        let directory = Destination::new(Some(dir.path()), true);
        assert!(matches!(directory, Err(CliError::File { .. })));
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
