//! Steps of start and end: on threads of their own when they block, and within a deadline that they share.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::timeout_at;

use super::error::StartError;

/// A deadline that steps share.
#[derive(Clone, Copy)]
pub(super) struct Until(tokio::time::Instant);

impl Until {
    pub(super) fn after(now: Instant, span: Duration) -> Self {
        Self(now.checked_add(span).unwrap_or(now).into())
    }

    /// Awaits a step; `None` when it is not over by then.
    pub(super) async fn ends<T>(self, step: impl Future<Output = T>) -> Option<T> {
        timeout_at(self.0, step).await.ok()
    }
}

/// Runs what blocks on a thread of its own. An error of the receiver means that it panicked.
pub(super) fn on_a_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<oneshot::Receiver<T>, StartError> {
    let (done, result) = oneshot::channel();
    std::thread::Builder::new()
        .name(name.to_owned())
        // Nobody may wait any more: then the process is about to end.
        .spawn(move || drop(done.send(work())))
        .map_err(StartError::system("start a thread"))?;
    Ok(result)
}
