//! The requests of one connection that are in flight: from their headers to the last byte of their answer.
//!
//! A request costs a reference count up and one down. Who waits for the last one looks from time to time, at the end of
//! a connection only.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use hyper::body::{Frame, SizeHint};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::Status;
use tonic::body::Body;

use super::limits::GOAWAY_PATIENCE;

/// Who holds the count without being a request: the connection, and who drives it.
const HOLDERS: usize = 2;

/// Counts requests in flight, and remembers whether there ever was one.
#[derive(Clone, Debug, Default)]
pub(super) struct Requests(Arc<AtomicBool>);

/// Counts as one request while it lives.
struct InFlight(#[expect(dead_code, reason = "its reference is the count")] Arc<AtomicBool>);

impl Requests {
    /// Takes a request in.
    pub(super) fn begin<F>(&self, future: F) -> Asked<F> {
        // Written once, so that requests on other threads do not take the line from each other for it.
        if !self.0.load(Ordering::Relaxed) {
            self.0.store(true, Ordering::Relaxed);
        }
        Asked { future, in_flight: Some(InFlight(Arc::clone(&self.0))) }
    }

    /// Ends after `bound` when no request has come until then; else never.
    pub(super) async fn none_within(&self, bound: Duration) {
        // Nothing is awaited but the time.
        let _ = timeout(bound, std::future::pending::<()>()).await;
        if self.0.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }

    /// Ends when none was in flight at two looks in a row: in between, clients can confirm that they go.
    pub(super) async fn none_left(&self) {
        let mut looks = interval(GOAWAY_PATIENCE);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut quiet = false;
        loop {
            looks.tick().await;
            let none = Arc::strong_count(&self.0) <= HOLDERS;
            if quiet && none {
                return;
            }
            quiet = none;
        }
    }
}

/// A request that is being worked on.
pub(super) struct Asked<F> {
    future: F,
    in_flight: Option<InFlight>,
}

impl<F, E> Future for Asked<F>
where
    F: Future<Output = Result<Response<Body>, E>> + Unpin,
{
    type Output = Result<Response<Answering>, E>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answered = ready!(Pin::new(&mut self.future).poll(context));
        let in_flight = self.in_flight.take();
        Poll::Ready(answered.map(|response| response.map(|body| Answering { body, in_flight })))
    }
}

/// An answer that is being sent.
pub(super) struct Answering {
    body: Body,
    #[expect(dead_code, reason = "counts while the answer is sent")]
    in_flight: Option<InFlight>,
}

impl hyper::body::Body for Answering {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    fn count(requests: &Requests) -> usize {
        Arc::strong_count(&requests.0) - 1
    }

    #[tokio::test]
    async fn a_request_counts_until_its_answer_is_sent() {
        let requests = Requests::default();
        let asked = requests.begin(ready(Ok::<_, ()>(Response::new(Body::empty()))));
        assert_eq!(count(&requests), 1);
        let answer = asked.await.unwrap();
        assert_eq!(count(&requests), 1);
        drop(answer);
        assert_eq!(count(&requests), 0);
    }

    #[tokio::test]
    async fn a_connection_without_a_request_is_noticed_and_one_with_is_not() {
        let requests = Requests::default();
        requests.none_within(Duration::ZERO).await;
        drop(requests.begin(ready(Ok::<_, ()>(Response::new(Body::empty())))));
        let noticed = timeout(Duration::from_millis(1), requests.none_within(Duration::ZERO));
        assert!(noticed.await.is_err());
    }
}
