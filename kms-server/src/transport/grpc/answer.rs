//! The answer to a request: one message, then the trailers that say that all went well.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, Response};
use hyper::body::Frame;
use prost::Message;
use tonic::Status;
use tonic::body::Body;

use crate::transport::limits::MAX_MESSAGE_BYTES;

/// Flag and length before a gRPC message.
const PREFIX_BYTES: usize = 5;
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const OK: HeaderValue = HeaderValue::from_static("0");

/// Makes the answer; `None` when the message is larger than a message may be.
pub(super) fn with(message: &impl Message) -> Option<Response<Body>> {
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + message.encoded_len());
    frame(message, &mut bytes)?;
    let body = Unary { message: Some(bytes.freeze()), ended: false };
    Some(streaming(Body::new(body)))
}

/// Appends a message with its prefix; `None` when it is larger than a message may be.
pub(super) fn frame(message: &impl Message, bytes: &mut BytesMut) -> Option<()> {
    let length = message.encoded_len();
    let prefix = u32::try_from(length).ok().filter(|_| length <= MAX_MESSAGE_BYTES)?;
    bytes.reserve(PREFIX_BYTES + length);
    bytes.put_u8(0);
    bytes.put_u32(prefix);
    message.encode(bytes).ok()
}

/// Makes the answer of a body that frames its messages itself.
pub(super) fn streaming(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    response
}

/// A message and the trailers.
struct Unary {
    message: Option<Bytes>,
    ended: bool,
}

impl hyper::body::Body for Unary {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(message) = self.message.take() {
            return Poll::Ready(Some(Ok(Frame::data(message))));
        }
        if std::mem::replace(&mut self.ended, true) {
            return Poll::Ready(None);
        }
        let trailers = HeaderMap::from_iter([(GRPC_STATUS, OK)]);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use kms_proto::v1::GenerateRandomResponse;

    use super::*;

    fn random(bytes: usize) -> GenerateRandomResponse {
        GenerateRandomResponse { random: vec![7; bytes].into() }
    }

    #[tokio::test]
    async fn a_message_is_framed_and_followed_by_its_status() {
        let response = with(&random(3)).unwrap();
        assert_eq!(response.headers()[CONTENT_TYPE], "application/grpc");
        let whole = response.into_body().collect().await.unwrap();
        assert_eq!(whole.trailers().unwrap()[GRPC_STATUS], "0");
        assert_eq!(whole.to_bytes()[..], [0, 0, 0, 0, 5, 0x0a, 3, 7, 7, 7]);
    }

    #[test]
    fn a_message_at_the_bound_is_sent_and_one_past_it_is_not() {
        // A key of one byte and a length of four.
        assert!(with(&random(MAX_MESSAGE_BYTES - 5)).is_some());
        assert!(with(&random(MAX_MESSAGE_BYTES - 4)).is_none());
    }
}
