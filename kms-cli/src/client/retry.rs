//! Bounds every call in time and repeats those that may succeed later.
//!
//! Every call of the contract may be repeated: crypto calls change nothing that a caller sees, and mutations carry a
//! `request_id` that stays the same over repeats (AIP-155).

use std::time::Duration;

use kms_core::clock::{Clock, SystemClock};
use tonic::{Request, Response, Status};

use super::{Client, ClientError, Repeat};
use crate::interrupt::Asked;

/// The most attempts of one call, the first included.
pub const MAX_ATTEMPTS: u32 = 4;
/// The wait before the second attempt when the server names none; doubled for each further one.
pub const FIRST_BACKOFF: Duration = Duration::from_millis(50);
/// The longest wait, whatever the server asks for.
pub const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// Says how long to wait after `attempt` (from 1) failed with `error`; `None` gives up.
pub fn backoff(error: &ClientError, attempt: u32) -> Option<Duration> {
    if attempt >= MAX_ATTEMPTS {
        return None;
    }
    let asked = error.retry_delay()?;
    let own = FIRST_BACKOFF.saturating_mul(1 << attempt.saturating_sub(1).min(8));
    Some(asked.max(own).min(MAX_BACKOFF))
}

/// The failure of the last attempt, and whether any of them may have been made in spite of its own.
struct Failed {
    error: ClientError,
    open: bool,
}

impl Client {
    /// Makes a call, again when that may help, within the context's timeout.
    ///
    /// # Errors
    /// The error of the last attempt; [`ClientError::Timeout`] when the next one would come too late.
    pub async fn call<Q, A, F>(
        &self,
        message: Q,
        send: impl Fn(Request<Q>) -> F,
    ) -> Result<A, ClientError>
    where
        Q: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        self.attempts(message, send).await.map_err(|failed| failed.error)
    }

    /// Makes a call that changes something, as [`Client::call`] does.
    ///
    /// # Errors
    /// As there, and [`ClientError::Unanswered`] when any attempt may have been made in spite of its failure: a later
    /// one that was refused does not tell.
    pub async fn mutate<Q, A, F>(
        &self,
        repeat: Repeat,
        message: Q,
        send: impl Fn(Request<Q>) -> F,
    ) -> Result<A, ClientError>
    where
        Q: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let _asked = Asked::new(repeat);
        self.attempts(message, send).await.map_err(|Failed { error, open }| {
            let cause = Box::new(error);
            if open { ClientError::Unanswered { repeat, cause } } else { *cause }
        })
    }

    async fn attempts<Q, A, F>(
        &self,
        message: Q,
        send: impl Fn(Request<Q>) -> F,
    ) -> Result<A, Failed>
    where
        Q: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let deadline = SystemClock.monotonic() + self.timeout;
        let (mut attempt, mut open) = (1, false);
        loop {
            let left = deadline.saturating_duration_since(SystemClock.monotonic());
            let mut request = Request::new(message.clone());
            request.set_timeout(left);
            let error = match tokio::time::timeout(left, send(request)).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => ClientError::of(&status, &self.server, self.timeout),
                Err(_) => ClientError::Timeout(self.timeout),
            };
            open |= error.leaves_open();
            let left = deadline.saturating_duration_since(SystemClock.monotonic());
            match backoff(&error, attempt) {
                Some(wait) if wait < left => pause(wait).await,
                Some(_) | None => return Err(Failed { error, open }),
            }
            attempt += 1;
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the server asked us to wait; there is no event")]
pub(super) async fn pause(wait: Duration) {
    tokio::time::sleep(wait).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Refusal;

    fn refused(retry_delay: Option<Duration>) -> ClientError {
        let refusal = Refusal { retry_delay, ..Refusal::of(&Status::unavailable("later")) };
        ClientError::Refused(Box::new(refusal))
    }

    #[test]
    fn the_fourth_failure_is_final() {
        let error = refused(Some(Duration::ZERO));
        assert_eq!(backoff(&error, 1), Some(FIRST_BACKOFF));
        assert_eq!(backoff(&error, 3), Some(FIRST_BACKOFF * 4));
        assert_eq!(backoff(&error, 4), None);
    }

    #[test]
    fn the_servers_wait_is_kept_up_to_the_longest() {
        assert_eq!(
            backoff(&refused(Some(Duration::from_secs(2))), 1),
            Some(Duration::from_secs(2))
        );
        assert_eq!(backoff(&refused(Some(MAX_BACKOFF * 2)), 1), Some(MAX_BACKOFF));
    }

    #[test]
    fn what_is_not_retryable_is_not_repeated() {
        assert_eq!(backoff(&refused(None), 1), None);
        assert_eq!(backoff(&ClientError::Timeout(Duration::ZERO), 1), None);
    }
}
