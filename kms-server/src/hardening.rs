//! What the process keeps from others: core dumps, its memory, and what a panic stumbled over.
//!
//! Called by the binary before anything else. It must never depend on a configuration: there is none yet.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

use crate::telemetry::log;

/// Forbids core dumps: they would hold PIN and data keys.
///
/// # Errors
/// When the system refuses; then the process must not go on.
pub fn forbid_core_dumps() -> io::Result<()> {
    Ok(setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?)
}

/// Hides the memory from other processes of the same user, and from programs that core dumps are piped to, which ignore
/// the limit.
///
/// The kernel then gives `/proc/PID` to root: debuggers and strace of the same user see no memory and no names of files.
/// Dev mode goes without, where the PIN lies beside the token in the user's own directory.
///
/// # Errors
/// When the system refuses; then the process must not go on.
pub fn hide_memory() -> io::Result<()> {
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Has a panic say where it was and nothing else: its text may hold what it stumbled over.
pub fn keep_panics_short() {
    std::panic::set_hook(Box::new(|panic| {
        let told = match panic.location() {
            Some(place) => format!("panic at {place}\n"),
            None => "panic\n".to_owned(),
        };
        log::tell(&told);
    }));
}
