//! The output of a run: a partial file with a checkpoint, until it is whole and gets its name.
//!
//! Order: the partial file is synced before a checkpoint speaks of it; the checkpoint that says "complete" is durable
//! before the output gets its name; the checkpoint goes last. So whatever a crash leaves, the next run goes on from it.

use std::fs::{File, Metadata, Permissions};
use std::io::{self, BufReader, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{Context as Digest, SHA256};
use kms_core::clock::{Clock as _, SystemClock};
use rustix::process::geteuid;

use super::batch::Done;
use super::checkpoint::{Arguments, Checkpoint, so_far};
use super::error::RunError;
use super::paths::Paths;
use super::publish::name;
use super::source::Source;
use crate::interrupt::uninterrupted;
use crate::output::Overwrite;

/// A checkpoint is written after so many stretches: with 500 items each, 4,000 are done again at most.
const CHECKPOINT_STRETCHES: u32 = 8;
/// Or after this time, when the HSM is slow.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(2);
/// How much is read at a time to compute a digest.
const READ_BYTES: usize = 1 << 18;

/// What a partial file and its checkpoint begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    /// At the checkpoint, where there is one.
    Anyhow,
    /// At the checkpoint, which must be there.
    Resume,
    /// At the beginning.
    Restart,
}

impl Begin {
    /// Reads `--resume` and `--restart`, of which there is one at most.
    pub(super) const fn of(resume: bool, restart: bool) -> Self {
        match (resume, restart) {
            (true, _) => Self::Resume,
            (_, true) => Self::Restart,
            _ => Self::Anyhow,
        }
    }
}

/// The output of a run.
pub(super) struct Sink {
    paths: Paths,
    partial: File,
    state: Checkpoint,
    input: Digest,
    output: Digest,
    /// Whether an earlier run had begun.
    resumed: bool,
    stretches: u32,
    last: Instant,
}

impl Sink {
    /// Opens the partial file and goes on where the checkpoint says, or begins. In place, the output will be `like` the
    /// input.
    ///
    /// # Errors
    /// [`RunError::CheckpointForeign`] when checkpoint, partial file, input and arguments are not of one run,
    /// [`RunError::CheckpointBroken`], [`RunError::NoCheckpoint`], [`RunError::Busy`], I/O errors.
    pub(super) fn open(
        paths: Paths,
        arguments: &Arguments,
        begin: Begin,
        source: &Source,
        like: Option<&Metadata>,
    ) -> Result<Self, RunError> {
        let foreign =
            |difference| RunError::CheckpointForeign { path: paths.checkpoint.clone(), difference };
        if begin != Begin::Restart {
            // Before anything of the other run is touched.
            let found = paths.read_checkpoint()?;
            if found.is_none() && begin == Begin::Resume {
                return Err(RunError::NoCheckpoint(paths.checkpoint));
            }
            if let Some(difference) = found.and_then(|found| found.arguments.difference(arguments))
            {
                return Err(foreign(difference));
            }
        }
        let partial = paths.open_partial(&source.metadata, like.is_some())?;
        if begin == Begin::Restart {
            paths.remove_checkpoint()?;
        }
        if let Some(like) = like {
            take_group(&partial, like)
                .map_err(RunError::file("set the owner of", &paths.partial))?;
        }
        // After the lock: until now another run may have written it.
        let found = paths.read_checkpoint()?;
        let resumed = found.is_some();
        let state = found.unwrap_or_else(|| Checkpoint::new(arguments.clone()));
        if let Some(difference) = state.arguments.difference(arguments) {
            return Err(foreign(difference));
        }
        let read = File::open(&source.path).map_err(RunError::file("read", &source.path))?;
        let input = digest(read, state.input_offset);
        let input = input.map_err(RunError::file("read", &source.path))?;
        if input.as_ref().map(so_far).as_ref() != Some(&state.input_sha256) {
            return Err(foreign("the input is not what was read then"));
        }
        let output = digest(&partial, state.output_offset);
        let output = output.map_err(RunError::file("read", &paths.partial))?;
        if output.as_ref().map(so_far).as_ref() != Some(&state.output_sha256) {
            return Err(foreign("the partial file is not what was written then"));
        }
        let (Some(input), Some(output)) = (input, output) else {
            return Err(super::paths::bug("a digest that was compared is gone"));
        };
        let mut sink = Self {
            paths,
            partial,
            state,
            input,
            output,
            resumed,
            stretches: 0,
            last: SystemClock.monotonic(),
        };
        sink.cut()?;
        if !resumed {
            sink.checkpoint()?;
        }
        Ok(sink)
    }

    /// Returns how far an earlier run came.
    pub(super) const fn state(&self) -> &Checkpoint {
        &self.state
    }

    /// Says whether an earlier run had begun.
    pub(super) const fn resumed(&self) -> bool {
        self.resumed
    }

    /// Drops what was written after the checkpoint.
    fn cut(&mut self) -> Result<(), RunError> {
        let offset = self.state.output_offset;
        self.partial
            .set_len(offset)
            .and_then(|()| self.partial.seek(SeekFrom::Start(offset)))
            .map(drop)
            .map_err(RunError::file("write", &self.paths.partial))
    }

    /// Writes what a stretch of the input became.
    pub(super) fn write(&mut self, done: Done) -> Result<(), RunError> {
        self.partial
            .write_all(&done.output)
            .map_err(RunError::file("write", &self.paths.partial))?;
        self.input.update(&done.input);
        self.output.update(&done.output);
        (self.state.input_offset, self.state.lines) = done.end;
        self.state.complete = false;
        self.state.output_offset += done.output.len() as u64;
        self.state.tally.add(done.tally);
        self.stretches += 1;
        let late = SystemClock.monotonic().saturating_duration_since(self.last) >= CHECKPOINT_EVERY;
        if self.stretches >= CHECKPOINT_STRETCHES || late { self.checkpoint() } else { Ok(()) }
    }

    /// Makes what was written durable, and then says so.
    pub(super) fn checkpoint(&mut self) -> Result<(), RunError> {
        self.partial.sync_data().map_err(RunError::file("sync", &self.paths.partial))?;
        self.state.input_sha256 = so_far(&self.input);
        self.state.output_sha256 = so_far(&self.output);
        uninterrupted(|| self.paths.write_checkpoint(&self.state))?;
        self.stretches = 0;
        self.last = SystemClock.monotonic();
        Ok(())
    }

    /// Gives the output its name. In place it takes the owner and the permissions of `like`.
    ///
    /// # Errors
    /// `CliError::Exists` when something took the name meanwhile, [`RunError::InputChanged`] when somebody wrote to the
    /// `source`; I/O errors. The next run tries again.
    pub(super) fn publish(
        mut self,
        source: &Source,
        like: Option<&Metadata>,
        overwrite: Overwrite,
    ) -> Result<Checkpoint, RunError> {
        if let Some(like) = like {
            self.resemble(like).map_err(RunError::file("set the owner of", &self.paths.partial))?;
        }
        self.partial.sync_all().map_err(RunError::file("sync", &self.paths.partial))?;
        self.state.complete = true;
        self.checkpoint()?;
        uninterrupted(|| name(&self.paths, source, overwrite))?;
        Ok(self.state)
    }

    fn resemble(&self, like: &Metadata) -> io::Result<()> {
        if self.partial.metadata()?.uid() != like.uid() {
            fchown(&self.partial, Some(like.uid()), None)?;
        }
        // Last: a change of the owner takes away some of them.
        self.partial.set_permissions(Permissions::from_mode(like.mode() & 0o7777))
    }
}

/// Gives a partial file the group of the input, and fails where the owner cannot be given at the end: not only then.
fn take_group(partial: &File, like: &Metadata) -> io::Result<()> {
    let us = geteuid();
    if like.uid() != us.as_raw() && !us.is_root() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    if partial.metadata()?.gid() == like.gid() {
        return Ok(());
    }
    fchown(partial, None, Some(like.gid()))
}

/// Computes the digest of a file's first bytes; `None` when it has fewer.
pub(super) fn digest(file: impl Read, bytes: u64) -> io::Result<Option<Digest>> {
    let mut reader = BufReader::with_capacity(READ_BYTES, file.take(bytes));
    let (mut digest, mut left) = (Digest::new(&SHA256), bytes);
    loop {
        let read = io::BufRead::fill_buf(&mut reader)?;
        let length = read.len();
        if length == 0 {
            return Ok((left == 0).then_some(digest));
        }
        digest.update(read);
        left = left.saturating_sub(length as u64);
        io::BufRead::consume(&mut reader, length);
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::Layout;
    use super::*;

    #[test]
    fn what_is_written_to_the_input_until_the_output_gets_its_name_is_not_lost() {
        let directory = tempfile::tempdir().unwrap();
        let input = directory.path().join("in");
        std::fs::write(&input, "").unwrap();
        let source = Source::find(&input, Layout::Lines).unwrap();
        let arguments = Arguments {
            input: input.display().to_string(),
            key: "k".into(),
            context_sha256: String::new(),
            format: "lines".into(),
            place: String::new(),
        };
        let paths = Paths::of(&input).unwrap();
        let like = Some(&source.metadata);
        let sink = Sink::open(paths.clone(), &arguments, Begin::Anyhow, &source, like).unwrap();
        // All is done, and all that is left is to give the name.
        std::fs::write(&input, "more").unwrap();
        let error = sink.publish(&source, like, Overwrite::Allow).unwrap_err();
        assert!(matches!(error, RunError::InputChanged(_)), "{error}");
        assert_eq!(std::fs::read_to_string(&input).unwrap(), "more");
        // What was done stays for the next run.
        assert!(paths.partial.exists() && paths.read_checkpoint().unwrap().is_some());
    }
}
