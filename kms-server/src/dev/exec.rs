//! SoftHSM reads SOFTHSM2_CONF from the environment, which a process cannot set safely for itself: so dev mode executes
//! itself once more with it set.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use super::directory::{DevDirectory, DevError};

/// What SoftHSM reads.
const VARIABLE: &str = "SOFTHSM2_CONF";
const CONFIGURATION: &str = "softhsm2.conf";
/// Directory of the token's files.
pub(super) const TOKENS: &str = "tokens";

/// Returns when SoftHSM will find the configuration of this directory; executes the process again until then.
///
/// The files are made in any case: the variable may have been exported for a directory that was removed since.
/// The content follows from the directory alone, so it does not matter that nobody holds the directory yet.
pub fn enter(directory: &DevDirectory) -> Result<(), DevError> {
    let configuration = directory.join(CONFIGURATION);
    let tokens = directory.join(TOKENS);
    let text = format!(
        "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n\
         slots.removable = false\nslots.mechanisms = ALL\nlibrary.reset_on_fork = false\n",
        tokens.display()
    );
    if std::fs::read(&configuration).ok().as_deref() != Some(text.as_bytes()) {
        directory.put(CONFIGURATION, text.as_bytes())?;
    }
    std::fs::create_dir_all(&tokens).map_err(|cause| DevError::File { path: tokens, cause })?;
    if std::env::var_os(VARIABLE).as_deref() == Some(configuration.as_os_str()) {
        return Ok(());
    }
    let program = std::env::current_exe().map_err(DevError::Exec)?;
    let arguments = std::env::args_os().skip(1);
    Err(again(program.as_os_str(), arguments, &configuration))
}

/// Comes back only when it failed.
fn again(
    program: &OsStr,
    arguments: impl Iterator<Item = std::ffi::OsString>,
    configuration: &std::path::Path,
) -> DevError {
    DevError::Exec(Command::new(program).args(arguments).env(VARIABLE, configuration).exec())
}
