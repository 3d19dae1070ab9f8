//! From the path of a request to its service, and a typed status for what tonic itself refuses.
//!
//! A plain comparison of prefixes: tonic's own router costs a microsecond and boxes each request once more.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use kms_proto::v1::crypto_service_server::{CryptoService as _, CryptoServiceServer};
use kms_proto::v1::key_service_server::KeyServiceServer;
use prost::Message;
use tonic::Code;
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tower::Service;

use super::bounded::BoundedCodec;
use super::gateway::{Gateway, GatewayParts};
use crate::authn::Peer;
use crate::transport::health::HealthService;
use crate::transport::limits::MAX_MESSAGE_BYTES;
use crate::transport::method::Method;
use crate::transport::status;

const CRYPTO_PREFIX: &str = "/kms.v1.CryptoService/";
const KEY_PREFIX: &str = "/kms.v1.KeyService/";
const HEALTH_PREFIX: &str = "/grpc.health.v1.Health/";

/// Everything that the public listener serves.
#[derive(Clone)]
pub struct GrpcService(Arc<Inner>);

struct Inner {
    crypto: CryptoServiceServer<Gateway>,
    key: KeyServiceServer<Gateway>,
    health: HealthService,
    gateway: Gateway,
}

impl GrpcService {
    /// Puts the services together.
    pub fn new(gateway: &Gateway, health: HealthService) -> Self {
        let crypto = CryptoServiceServer::new(gateway.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let key = KeyServiceServer::new(gateway.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Self(Arc::new(Inner { crypto, key, health, gateway: gateway.clone() }))
    }
}

impl fmt::Debug for GrpcService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GrpcService")
    }
}

impl Service<Request<Incoming>> for GrpcService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Answer {
        let path = request.uri().path();
        let method = Method::from_path(path);
        let peer = request.extensions().get::<Arc<Peer>>().cloned();
        let answer: BoxFuture<Response<Body>, Infallible> = if let Some(batch) = Batch::of(method) {
            batch.call(self.0.gateway.clone(), request)
        } else if path.starts_with(CRYPTO_PREFIX) {
            self.0.crypto.clone().call(request)
        } else if path.starts_with(KEY_PREFIX) {
            self.0.key.clone().call(request)
        } else if path.starts_with(HEALTH_PREFIX) {
            self.0.health.clone().call(request)
        } else {
            let status = tonic::Status::new(Code::Unimplemented, "");
            Box::pin(std::future::ready(Ok(status.into_http())))
        };
        Answer {
            answer,
            refusal: Some(Refusal { method, peer, parts: Arc::clone(&self.0.gateway.parts) }),
        }
    }
}

/// Methods whose requests are decoded by [`BoundedCodec`].
#[derive(Clone, Copy)]
enum Batch {
    Wrap,
    Unwrap,
    Rewrap,
    GenerateDataKey,
}

impl Batch {
    const fn of(method: Method) -> Option<Self> {
        match method {
            Method::BatchWrap => Some(Self::Wrap),
            Method::BatchUnwrap => Some(Self::Unwrap),
            Method::BatchRewrap => Some(Self::Rewrap),
            Method::BatchGenerateDataKey => Some(Self::GenerateDataKey),
            _ => None,
        }
    }

    fn call(
        self,
        gateway: Gateway,
        request: Request<Incoming>,
    ) -> BoxFuture<Response<Body>, Infallible> {
        macro_rules! unary {
            ($method:ident) => {
                Box::pin(bounded(request, move |request| {
                    let gateway = gateway.clone();
                    async move { gateway.$method(request).await }
                }))
            };
        }
        match self {
            Self::Wrap => unary!(batch_wrap),
            Self::Unwrap => unary!(batch_unwrap),
            Self::Rewrap => unary!(batch_rewrap),
            Self::GenerateDataKey => unary!(batch_generate_data_key),
        }
    }
}

/// Serves one call as the generated services do, with the bounded codec.
async fn bounded<T, U, F>(
    request: Request<Incoming>,
    method: impl Fn(tonic::Request<U>) -> F,
) -> Result<Response<Body>, Infallible>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
    F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
{
    let mut grpc = tonic::server::Grpc::new(BoundedCodec::<T, U>::default())
        .apply_max_message_size_config(Some(MAX_MESSAGE_BYTES), Some(MAX_MESSAGE_BYTES));
    Ok(grpc.unary(tower::service_fn(method), request).await)
}

/// The answer, typed when it is tonic's own refusal.
pub struct Answer {
    answer: BoxFuture<Response<Body>, Infallible>,
    refusal: Option<Refusal>,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answer")
    }
}

impl Future for Answer {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Ok(response) = ready!(self.answer.as_mut().poll(context));
        let headers = response.headers();
        // Good answers have their status in the trailers; ours have details. What is left is tonic's.
        let Some(code) = headers.get("grpc-status") else { return Poll::Ready(Ok(response)) };
        let code = Code::from_bytes(code.as_bytes());
        if code == Code::Ok || headers.contains_key("grpc-status-details-bin") {
            return Poll::Ready(Ok(response));
        }
        match self.refusal.take() {
            Some(refusal) => Poll::Ready(Ok(refusal.answer(code))),
            None => Poll::Ready(Ok(response)),
        }
    }
}

/// What is needed to refuse well.
struct Refusal {
    method: Method,
    peer: Option<Arc<Peer>>,
    parts: Arc<GatewayParts>,
}

impl Refusal {
    fn answer(&self, code: Code) -> Response<Body> {
        let (status, reason) = status::from_refused(code);
        self.parts.metrics.failed(self.method, reason, Duration::ZERO);
        if let Some(peer) = &self.peer {
            self.parts.refusals.refused(peer.address(), self.method.as_str(), reason);
        }
        status.into_http()
    }
}
