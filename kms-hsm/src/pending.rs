//! The answer to a job, on its way from the HSM's threads to whoever waits for it.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::pin::Pin as StdPin;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use crate::error::HsmError;

/// The answer when a worker was lost together with its job.
const GONE: HsmError = HsmError::CallDeadline;

/// What a job was made of, sent back with its answer and dropped where it was made.
///
/// Memory that one thread takes and another gives back costs both a cache line: on the way of a batch, several an item.
pub(crate) type Spent = Option<Box<dyn Any + Send>>;

struct Given<T> {
    result: Result<T, HsmError>,
    spent: Spent,
}

/// The answer to a job, to be awaited.
pub struct Pending<T>(oneshot::Receiver<Given<T>>);

/// The place to give the answer.
pub(crate) struct To<T>(oneshot::Sender<Given<T>>);

impl<T> Pending<T> {
    /// Makes an answer to be given later, and the place to give it.
    pub(crate) fn channel() -> (To<T>, Self) {
        let (sender, receiver) = oneshot::channel();
        (To(sender), Self(receiver))
    }

    /// Makes an answer that is already there.
    pub fn ready(result: Result<T, HsmError>) -> Self {
        let (to, pending) = Self::channel();
        to.give(result, None);
        pending
    }

    /// Waits on a thread that is not part of a runtime (start-up, tests, tools).
    pub fn wait(self) -> Result<T, HsmError> {
        self.0.blocking_recv().map_or(Err(GONE), |given| given.result)
    }
}

impl<T> To<T> {
    /// Gives the answer; one who no longer waits is no concern.
    pub(crate) fn give(self, result: Result<T, HsmError>, spent: Spent) {
        drop(self.0.send(Given { result, spent }));
    }
}

impl<T> Future for Pending<T> {
    type Output = Result<T, HsmError>;

    fn poll(mut self: StdPin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        StdPin::new(&mut self.0).poll(context).map(|given| match given {
            Ok(Given { result, spent }) => {
                drop(spent);
                result
            }
            Err(_) => Err(GONE),
        })
    }
}

impl<T> fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pending")
    }
}

impl<T> fmt::Debug for To<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("To")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_a_job_was_made_of_is_dropped_by_the_one_who_waits() {
        let made_of = Arc::new(());
        let (to, pending) = Pending::channel();
        to.give(Ok(7), Some(Box::new(Arc::clone(&made_of))));
        assert_eq!(Arc::strong_count(&made_of), 2);
        assert_eq!(pending.wait(), Ok(7));
        assert_eq!(Arc::strong_count(&made_of), 1);
    }

    #[test]
    fn it_is_dropped_too_when_no_one_waits() {
        let made_of = Arc::new(());
        let (to, pending) = Pending::channel();
        drop(pending);
        to.give(Ok(()), Some(Box::new(Arc::clone(&made_of))));
        assert_eq!(Arc::strong_count(&made_of), 1);
    }

    #[test]
    fn a_lost_worker_is_an_answer_not_given_in_time() {
        let (to, pending) = Pending::<()>::channel();
        drop(to);
        assert_eq!(pending.wait(), Err(HsmError::CallDeadline));
    }
}
