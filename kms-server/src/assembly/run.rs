//! The life of the process, from configuration to exit.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kms_core::clock::{Clock as _, SystemClock};
use kms_hsm::Hsm as _;
use kms_hsm::pkcs11::Pkcs11Hsm;

use super::error::StartError;
use super::open::Core;
use super::ready::ReadyFile;
use super::signals::Signals;
use super::steps::{Until, on_a_thread};
use super::threads::serving_threads;
use crate::audit::AcceptCode;
use crate::config::{Config, Problem, check};
use crate::journal::Gap;

/// Stack of a thread that serves requests: handlers are shallow, buffers are on the heap.
const WORKER_STACK_BYTES: usize = 2 * 1024 * 1024;
/// How long the HSM may take to close, or to log in first, when the process is to end at once.
const HSM_CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What differs between a server and a dev server.
pub struct Mode {
    /// Whether the first root set is made when there is none. Dev mode only.
    pub create_roots: bool,
    /// The code of the database that is accepted though it is not the one that the audit log has last seen.
    pub accept_restored_store: Option<AcceptCode>,
    /// The gap in the state journal that is accepted.
    pub accept_journal_gap: Option<Gap>,
    /// A file to write when ready.
    pub ready_file: Option<ReadyFile>,
    /// Told the addresses of both listeners, gRPC first, when ready; before the ready file is written.
    pub on_ready: Box<dyn Fn(SocketAddr, SocketAddr) -> io::Result<()>>,
}

impl fmt::Debug for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mode").field("create_roots", &self.create_roots).finish_non_exhaustive()
    }
}

/// How a server ended that was told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// After a drain, or before it served.
    Orderly,
    /// Told a second time, before the drain was over.
    AtOnce,
}

/// Runs the server until SIGTERM or SIGINT. Blocks.
pub fn run(config: &Config, mode: &Mode, started: Instant) -> Result<Ended, StartError> {
    let (tolerable, wrong): (Vec<_>, Vec<_>) =
        check(config, SystemClock.now()).into_iter().partition(Problem::is_tolerable);
    if !wrong.is_empty() {
        return Err(StartError::Config(wrong));
    }
    for problem in tolerable {
        warn_of_dates(problem.key, &problem.cause);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(serving_threads(config.limits.worker_threads))
        .thread_name("serve")
        .thread_stack_size(WORKER_STACK_BYTES)
        .max_blocking_threads(1)
        .enable_all()
        .build()
        .map_err(StartError::system("start the threads"))?;
    let ended = runtime.block_on(async {
        // First of all: a signal must not kill a process that is logging in to its token.
        let mut signals = Signals::install()?;
        let opening = Core::open(config);
        tokio::pin!(opening);
        let core = tokio::select! {
            core = &mut opening => core?,
            // Certificates are read after this, so there is nothing to read again.
            () = signals.stop() => {
                let patience = Until::after(SystemClock.monotonic(), HSM_CLOSE_TIMEOUT);
                if let Some(Ok(core)) = patience.ends(opening).await {
                    close_hsm(core.hsm.hsm).await;
                }
                tracing::info!("stopped");
                return Ok(Ended::Orderly);
            }
        };
        let hsm = Arc::clone(&core.hsm.hsm);
        let ended = core.live(config, mode, started, signals).await;
        close_hsm(hsm).await;
        match &ended {
            Ok(Ended::Orderly) => tracing::info!("stopped"),
            Ok(Ended::AtOnce) => tracing::warn!("ended at once: the drain was not finished"),
            Err(_) => {}
        }
        ended
    });
    // What still runs was given its time, or belongs to a start that was cut short.
    runtime.shutdown_background();
    ended
}

/// Closes the HSM however the server ends; when it is closed already, nothing happens. One that does not close in time may
/// leave threads inside the module: `main` ends the process without running anything of it.
pub(super) async fn close_hsm(hsm: Arc<Pkcs11Hsm>) {
    let patience = Until::after(SystemClock.monotonic(), HSM_CLOSE_TIMEOUT);
    let closed = match on_a_thread("hsm-close", move || hsm.close()) {
        Ok(closing) => patience.ends(closing).await.is_some(),
        Err(_) => false,
    };
    if !closed {
        tracing::warn!("the hsm did not close in time");
    }
}

pub(super) fn warn_of_dates(key: &'static str, problem: &dyn fmt::Display) {
    tracing::warn!(alert = "certificate_dates", "{key}: {problem}");
}
