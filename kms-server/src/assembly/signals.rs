//! Signals of the process: to stop, and to read certificates again.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::error::StartError;

/// What a signal asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    Stop,
    Reload,
}

pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    pub(super) fn install() -> Result<Self, StartError> {
        let install = |kind| signal(kind).map_err(StartError::system("install a signal handler"));
        Ok(Self {
            terminate: install(SignalKind::terminate())?,
            interrupt: install(SignalKind::interrupt())?,
            hang_up: install(SignalKind::hangup())?,
        })
    }

    pub(super) async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.terminate.recv() => Wish::Stop,
            _ = self.interrupt.recv() => Wish::Stop,
            _ = self.hang_up.recv() => Wish::Reload,
        }
    }

    /// Waits for a wish to stop; others have nothing to act on then.
    pub(super) async fn stop(&mut self) {
        while self.next().await != Wish::Stop {}
    }
}
