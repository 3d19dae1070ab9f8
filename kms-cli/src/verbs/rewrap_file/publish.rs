//! The last steps of a run: the output gets its name, and the files beside it go; and what a crash between them left.

use std::fs::File;
use std::io;
use std::path::Path;

use super::checkpoint::{Arguments, Checkpoint, so_far};
use super::error::RunError;
use super::paths::Paths;
use super::sink::digest;
use super::source::Source;
use crate::error::CliError;
use crate::output::Overwrite;

/// What an earlier run left.
pub(super) enum Left {
    /// Nothing, or what is not finished, or not this run's.
    Work,
    /// A run that a crash cut when its output had its name: it is ended now, and this is what it did.
    Finished(Box<Checkpoint>),
    /// The same, but the input is not what that run read: it is ended now, and says nothing of this input.
    Stale,
}

/// Ends a run that a crash cut after all was written and before the checkpoint was gone.
///
/// In place the input is the output by then. What is in it now may be under an old version again, so it is done once more.
pub(super) fn finished(
    paths: &Paths,
    arguments: &Arguments,
    source: &Source,
) -> Result<Left, RunError> {
    let Some(state) = paths.read_checkpoint()? else { return Ok(Left::Work) };
    if !state.complete || state.arguments.difference(arguments).is_some() {
        return Ok(Left::Work);
    }
    // With a partial file the output has no name yet, or is not of this run.
    if paths.partial.symlink_metadata().is_ok()
        || !is_whole(&paths.target, state.output_offset, &state.output_sha256)?
    {
        return Ok(Left::Work);
    }
    let in_place = paths.target == source.path;
    let outdated = in_place || !is_whole(&source.path, state.input_offset, &state.input_sha256)?;
    tidy(paths)?;
    Ok(if outdated { Left::Stale } else { Left::Finished(Box::new(state)) })
}

/// Says whether a file has this length and this digest; one that is not there has not.
fn is_whole(path: &Path, bytes: u64, sha256: &str) -> Result<bool, RunError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(RunError::file("read", path)(error)),
    };
    let failed = |cause| RunError::file("read", path)(cause);
    if file.metadata().map_err(failed)?.len() != bytes {
        return Ok(false);
    }
    Ok(digest(file, bytes).map_err(failed)?.is_some_and(|read| so_far(&read) == sha256))
}

/// Gives the partial file the output's name, and removes the checkpoint; each step durable before the next.
pub(super) fn name(paths: &Paths, source: &Source, overwrite: Overwrite) -> Result<(), RunError> {
    // Here, because syncing a large output takes long: in place, what is written after this is lost.
    source.check_unchanged()?;
    let named = match overwrite {
        Overwrite::Allow => std::fs::rename(&paths.partial, &paths.target),
        // A rename would replace what somebody put there meanwhile.
        Overwrite::Refuse => std::fs::hard_link(&paths.partial, &paths.target),
    };
    named.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => CliError::Exists(paths.target.clone()).into(),
        _ => RunError::file("rename", &paths.partial)(error),
    })?;
    paths.sync_directory()?;
    tidy(paths)
}

fn tidy(paths: &Paths) -> Result<(), RunError> {
    match std::fs::remove_file(&paths.partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(RunError::file("remove", &paths.partial)(error));
        }
        _ => {}
    }
    paths.remove_checkpoint()
}
