//! The echo: one unary call by hand, with the sizes of a Wrap of 32 bytes.
//!
//! A request carries the key's name and 32 bytes, an answer 84 bytes and the version's name: field for field what Wrap
//! carries. The service does nothing else, so what is left is TLS, HTTP/2, protobuf and tonic.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::uri::PathAndQuery;
use kms_cli::bench::Call;
use tonic::body::Body;
use tonic::server::{NamedService, UnaryService};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::Service;

/// Bytes of a request's payload.
pub const REQUEST_BYTES: usize = 32;
/// Bytes of an answer's payload: an envelope of [`REQUEST_BYTES`].
pub const ANSWER_BYTES: usize = REQUEST_BYTES + kms_core::envelope::OVERHEAD_BYTES;
/// The key's name in every request; as long as that of the bench's first key.
pub const KEY: &str = "tenants/dev/keys/bench-0";
/// The version's name in every answer.
const KEY_VERSION: &str = "tenants/dev/keys/bench-0/versions/1";
/// The one method.
const PATH: &str = "/bench.Echo/Echo";

static ANSWER: [u8; ANSWER_BYTES] = [0x5a; ANSWER_BYTES];
static REQUEST: [u8; REQUEST_BYTES] = [0x5a; REQUEST_BYTES];

/// As long as a WrapRequest.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EchoRequest {
    /// The key's name.
    #[prost(string, tag = "1")]
    pub key: String,
    /// The payload.
    #[prost(bytes = "bytes", tag = "2")]
    pub payload: Bytes,
}

/// As long as a WrapResponse.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EchoResponse {
    /// The payload.
    #[prost(bytes = "bytes", tag = "1")]
    pub payload: Bytes,
    /// The version's name.
    #[prost(string, tag = "2")]
    pub key_version: String,
}

/// The service.
#[derive(Clone, Copy, Debug)]
pub struct EchoService;

impl NamedService for EchoService {
    const NAME: &'static str = "bench.Echo";
}

impl UnaryService<EchoRequest> for EchoService {
    type Response = EchoResponse;
    type Future = std::future::Ready<Result<Response<EchoResponse>, Status>>;

    fn call(&mut self, _: Request<EchoRequest>) -> Self::Future {
        let payload = Bytes::from_static(&ANSWER);
        std::future::ready(Ok(Response::new(EchoResponse {
            payload,
            key_version: KEY_VERSION.to_owned(),
        })))
    }
}

impl Service<http::Request<Body>> for EchoService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = *self;
        Box::pin(async move {
            if request.uri().path() != PATH {
                return Ok(Status::unimplemented("only echo").into_http());
            }
            Ok(tonic::server::Grpc::new(ProstCodec::default()).unary(service, request).await)
        })
    }
}

/// Calls the echo.
#[derive(Clone, Debug)]
pub struct EchoCall(tonic::client::Grpc<Channel>);

impl EchoCall {
    /// Calls over this channel.
    pub fn new(channel: Channel) -> Self {
        Self(tonic::client::Grpc::new(channel))
    }
}

impl Call for EchoCall {
    async fn call(&mut self, _: u64) -> Result<u64, String> {
        let message = EchoRequest { key: KEY.to_owned(), payload: Bytes::from_static(&REQUEST) };
        self.0.ready().await.map_err(|error| error.to_string())?;
        let path = PathAndQuery::from_static(PATH);
        let codec = ProstCodec::<EchoRequest, EchoResponse>::default();
        let answer = self.0.unary(Request::new(message), path, codec).await;
        match answer {
            Ok(answer) if answer.get_ref().payload.len() == ANSWER_BYTES => Ok(1),
            Ok(_) => Err("LENGTH".into()),
            Err(status) => Err(format!("{:?}", status.code())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    #[test]
    fn echo_messages_have_the_sizes_of_wrap() {
        let request = EchoRequest { key: KEY.into(), payload: Bytes::from_static(&REQUEST) };
        let wrap = kms_proto::v1::WrapRequest {
            key: KEY.into(),
            plaintext: Bytes::from_static(&REQUEST),
            ..Default::default()
        };
        assert_eq!(request.encoded_len(), wrap.encoded_len());
        let answer =
            EchoResponse { payload: Bytes::from_static(&ANSWER), key_version: KEY_VERSION.into() };
        let wrapped = kms_proto::v1::WrapResponse {
            ciphertext: Bytes::from_static(&ANSWER),
            key_version: KEY_VERSION.into(),
        };
        assert_eq!(answer.encoded_len(), wrapped.encoded_len());
    }
}
