//! The messages of a stream: one after the other, each whole, none larger than it may be.
//!
//! What is held is one message that is not whole yet, and one frame; what else the client sent waits in HTTP/2, whose window
//! bounds it.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame};
use tokio::time::timeout;

use super::arrive::{PREFIX_BYTES, whole};
use crate::transport::limits::MAX_STREAM_ITEM_BYTES;
use crate::transport::status::Refused;

/// What there is next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A message.
    Message(Bytes),
    /// Nothing has come yet, and nobody wanted to wait.
    NotYet,
    /// The client has sent all.
    End,
}

/// Reads the messages of a body.
#[derive(Debug)]
pub(super) struct Messages<B> {
    body: B,
    buffer: BytesMut,
    ended: bool,
}

impl<B: Body<Data = Bytes> + Unpin> Messages<B> {
    pub(super) fn new(body: B) -> Self {
        Self { body, buffer: BytesMut::new(), ended: false }
    }

    /// Returns the next message; waits for it at most `wait`, and not at all when there is none.
    ///
    /// # Errors
    /// [`Refused::TooLate`], [`Refused::TooLarge`], [`Refused::Malformed`], [`Refused::Cancelled`].
    pub(super) async fn next(&mut self, wait: Option<Duration>) -> Result<Next, Refused> {
        loop {
            if let Some(message) = self.split()? {
                return Ok(Next::Message(message));
            }
            if self.ended {
                let all = self.buffer.is_empty();
                return if all { Ok(Next::End) } else { Err(Refused::Malformed) };
            }
            let mut frame = self.body.frame();
            // What is there already costs no timer.
            let first_look =
                poll_fn(|context| Poll::Ready(Pin::new(&mut frame).poll(context))).await;
            let next = match (first_look, wait) {
                (Poll::Ready(next), _) => next,
                (Poll::Pending, None) => return Ok(Next::NotYet),
                (Poll::Pending, Some(wait)) => {
                    timeout(wait, frame).await.map_err(|_| Refused::TooLate)?
                }
            };
            match next.transpose().map_err(|_| Refused::Cancelled)?.map(Frame::into_data) {
                Some(Ok(data)) => self.buffer.extend_from_slice(&data),
                // Trailers end a request; what they say is for nobody here.
                Some(Err(_)) | None => self.ended = true,
            }
        }
    }

    fn split(&mut self) -> Result<Option<Bytes>, Refused> {
        let Some(length) = whole(&self.buffer, MAX_STREAM_ITEM_BYTES)? else { return Ok(None) };
        if self.buffer.len() < length {
            return Ok(None);
        }
        let mut message = self.buffer.split_to(length).freeze();
        message.advance(PREFIX_BYTES);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;
    use http_body_util::StreamBody;

    use super::*;

    fn messages(pieces: &[&[u8]]) -> Messages<impl Body<Data = Bytes> + Unpin> {
        let pieces: Vec<_> = pieces.iter().map(|piece| Bytes::copy_from_slice(piece)).collect();
        let frames = pieces.into_iter().map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
        Messages::new(StreamBody::new(stream::iter(frames)))
    }

    fn message(bytes: &'static [u8]) -> Next {
        Next::Message(Bytes::from_static(bytes))
    }

    const NOW: Option<Duration> = None;

    #[tokio::test]
    async fn messages_are_told_apart_however_they_are_cut() {
        let mut cut = messages(&[&[0, 0, 0], &[0, 2, 7], &[8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 9]]);
        assert_eq!(cut.next(NOW).await, Ok(message(&[7, 8])));
        assert_eq!(cut.next(NOW).await, Ok(message(&[])));
        assert_eq!(cut.next(NOW).await, Ok(message(&[9])));
        assert_eq!(cut.next(NOW).await, Ok(Next::End));
    }

    #[tokio::test]
    async fn a_message_that_is_cut_short_or_compressed_is_malformed() {
        for bytes in [&[0, 0, 0, 0, 2, 7][..], &[0], &[1, 0, 0, 0, 1, 7]] {
            assert_eq!(messages(&[bytes]).next(NOW).await, Err(Refused::Malformed));
        }
    }

    #[tokio::test]
    async fn a_message_at_the_bound_is_read_and_one_past_it_refused_by_its_prefix() {
        let most = u32::try_from(MAX_STREAM_ITEM_BYTES).unwrap();
        let prefix = |length: u32| [&[0][..], &length.to_be_bytes()].concat();
        let whole = [prefix(most), vec![7; MAX_STREAM_ITEM_BYTES]].concat();
        let Ok(Next::Message(message)) = messages(&[&whole]).next(NOW).await else { panic!() };
        assert_eq!(message.len(), MAX_STREAM_ITEM_BYTES);
        let refused = messages(&[&prefix(most + 1)]).next(NOW).await;
        assert_eq!(refused, Err(Refused::TooLarge));
    }

    #[tokio::test]
    async fn a_client_that_is_silent_is_not_awaited_for_ever() {
        let silent = stream::pending::<Result<Frame<Bytes>, Infallible>>();
        let mut silent = Messages::new(StreamBody::new(silent));
        assert_eq!(silent.next(NOW).await, Ok(Next::NotYet));
        assert_eq!(silent.next(Some(Duration::from_millis(1))).await, Err(Refused::TooLate));
    }
}
