//! The answers of a stream on their way, and behind them how it ended.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::Frame;
use kms_core::id::EventId;
use tokio::sync::mpsc;
use tonic::Status;

use crate::service::ServiceError;
use crate::transport::status;

const NO_END: ServiceError = ServiceError::Bug { reason: "a stream ended and did not say how" };

/// How a stream ended, for its trailers. Not sent behind the answers, which a client may leave untaken.
pub(super) type HowEnded = Arc<OnceLock<Status>>;

/// The answers, and the trailers that say how the stream ended.
pub(super) struct Answers {
    answers: mpsc::Receiver<Bytes>,
    event_id: EventId,
    how: HowEnded,
    ended: bool,
}

impl Answers {
    /// Returns them, and where to say how they ended, before the sender is dropped.
    pub(super) fn new(answers: mpsc::Receiver<Bytes>, event_id: EventId) -> (Self, HowEnded) {
        let how = HowEnded::default();
        (Self { answers, event_id, how: Arc::clone(&how), ended: false }, how)
    }
}

impl hyper::body::Body for Answers {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Some(bytes) = ready!(self.answers.poll_recv(context)) {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        // Nothing is said only by a panic, which is no lateness of the client's.
        let unsaid = || status::from_service(&NO_END, &self.event_id.to_string());
        let status = self.how.get().cloned().unwrap_or_else(unsaid);
        self.ended = true;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tonic::Code;

    use super::*;
    use crate::transport::event_id::new_event_id;
    use crate::transport::status::Refused;

    /// Returns what the client gets of an answer that was sent, and the code at the end.
    async fn told(said: Option<Refused>) -> (Bytes, Code) {
        let (sender, answers) = mpsc::channel(1);
        let (body, how) = Answers::new(answers, new_event_id().unwrap());
        sender.try_send(Bytes::from_static(b"answer")).unwrap();
        if let Some(refused) = said {
            how.set(status::from_refused(refused)).unwrap();
        }
        drop(sender);
        let whole = body.collect().await.unwrap();
        let end = Status::from_header_map(whole.trailers().unwrap()).unwrap();
        (whole.to_bytes(), end.code())
    }

    #[tokio::test]
    async fn the_end_follows_the_answers_whether_they_were_taken_by_then_or_not() {
        let end = told(Some(Refused::Ending)).await;
        assert_eq!(end, (Bytes::from_static(b"answer"), Code::Unavailable));
    }

    #[tokio::test]
    async fn a_stream_that_ends_without_a_word_is_a_bug_of_the_servers() {
        let end = told(None).await;
        assert_eq!(end, (Bytes::from_static(b"answer"), Code::Internal));
    }
}
