//! Waiting for an event, with a deadline: never for a time.

use std::sync::mpsc;
use std::time::Duration;

/// How often a condition that announces itself by nothing is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Waits on this thread until `happened`, at most `limit`; then fails, naming `what` was awaited.
pub fn eventually(limit: Duration, what: &str, mut happened: impl FnMut() -> bool) {
    let end = now() + limit;
    // Nobody sends: receiving with a time limit is how a thread of ours waits.
    let (_keep, never) = mpsc::channel::<()>();
    while !happened() {
        assert!(now() < end, "{what} did not happen within {limit:?}");
        let _ = never.recv_timeout(LOOK_EVERY);
    }
}

/// Awaits `future`, at most `limit`; then fails, naming `what` was awaited.
pub async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> T {
    let value = tokio::time::timeout(limit, future).await;
    value.unwrap_or_else(|_| panic!("{what} did not happen within {limit:?}"))
}

#[expect(clippy::disallowed_methods, reason = "test support measures real time")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_ends_the_wait() {
        let mut looks = 0;
        eventually(Duration::from_secs(10), "the third look", || {
            looks += 1;
            looks == 3
        });
        assert_eq!(looks, 3);
    }

    #[test]
    #[should_panic(expected = "a miracle did not happen within 5ms")]
    fn the_deadline_ends_the_wait() {
        eventually(Duration::from_millis(5), "a miracle", || false);
    }
}
