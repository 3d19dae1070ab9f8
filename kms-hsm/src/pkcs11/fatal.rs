//! The end of the process, when a call into the module hangs where nothing but a new process helps.
//!
//! It must never be reached by what a client sends, and never call C_Finalize: a live call would meet freed memory. For
//! the same reason nothing of the module runs at the end, neither its destructors nor what it registered with `atexit`.

/// Exit status of the process after a fatal HSM condition (EX_TEMPFAIL: start me again).
pub const EXIT_HSM_HUNG: i32 = 75;

/// Why only a new process helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FatalReason {
    /// A call hung past the drain budget, so that C_Finalize would run under it.
    #[error("a call into the HSM module hangs and blocks its re-initialisation")]
    FinalizeBlocked,
    /// More workers hang than may be written off.
    #[error("more HSM workers hang than may be written off")]
    WorkersHung,
    /// The generation of an RSA key pair hangs: C_Finalize could never run.
    #[error("the generation of an RSA key pair hangs in the HSM module")]
    LaneHung,
    /// The keeper, which no one can replace, hangs.
    #[error("the HSM keeper hangs")]
    KeeperHung,
}

/// Logs the reason and ends the process with [`EXIT_HSM_HUNG`]; the service manager starts it again.
pub fn exit_process(reason: FatalReason) {
    log_fatal(reason);
    exit_at_once(EXIT_HSM_HUNG);
}

/// Ends the process and runs nothing more in it. For a process with a thread in the module: what `std::process::exit` runs,
/// destructors of the module among it, could wait for that thread, or crash it.
pub fn exit_at_once(status: i32) -> ! {
    signal_hook::low_level::exit(status)
}

/// Logs why the process ends, for a hook that does more than [`exit_process`] before it exits.
pub fn log_fatal(reason: FatalReason) {
    tracing::error!(%reason, status = EXIT_HSM_HUNG, "exiting: only a new process can use the HSM again");
}
