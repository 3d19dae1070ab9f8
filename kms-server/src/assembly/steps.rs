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

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use kms_core::clock::{Clock as _, SystemClock};

    use super::*;

    #[tokio::test]
    async fn steps_share_one_deadline_and_what_is_over_still_counts() {
        let shared = Until::after(SystemClock.monotonic(), Duration::from_millis(20));
        assert_eq!(shared.ends(async { 1 }).await, Some(1));
        assert_eq!(shared.ends(pending::<()>()).await, None);
        // The next one gets no time of its own: it is given up at the first look.
        let mut next = pin!(shared.ends(pending::<()>()));
        let looked = next.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(looked, Poll::Ready(None));
        assert_eq!(shared.ends(async { 2 }).await, Some(2));
    }
}
