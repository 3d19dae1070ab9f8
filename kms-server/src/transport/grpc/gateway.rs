//! What every call needs: an id, a principal, a deadline, a span, a number, and a typed status.
//!
//! The order is fixed: who, then what. A caller without a principal learns nothing about its message.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kms_core::clock::Clock;
use kms_core::fault::Fault;
use kms_core::id::EventId;
use tonic::metadata::AsciiMetadataValue;
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

use super::deadline;
use crate::authn::{Peer, Unauthenticated};
use crate::service::{Kms, RequestContext, ServiceError};
use crate::telemetry::metrics::RequestMetrics;
use crate::transport::event_id::new_event_id;
use crate::transport::method::Method;
use crate::transport::status;

/// Response metadata with the id of the request, as in the audit log.
pub const EVENT_ID_KEY: &str = "holdfast-event-id";

/// Where refusals go that no use-case saw: unauthenticated and undecodable requests. Aggregated, never per request.
pub trait RefusalLog: Send + Sync + fmt::Debug + 'static {
    /// Notes one refusal.
    fn refused(&self, source: SocketAddr, operation: &'static str, reason: &'static str);
}

/// What a gateway is made of.
#[derive(Clone, Debug)]
pub struct GatewayParts {
    /// The use-cases.
    pub kms: Kms,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The longest deadline of a request.
    pub max_request: Duration,
    /// Numbers.
    pub metrics: Arc<RequestMetrics>,
    /// Where refusals go.
    pub refusals: Arc<dyn RefusalLog>,
}

/// The one implementation of both services.
#[derive(Clone, Debug)]
pub struct Gateway {
    pub(super) parts: Arc<GatewayParts>,
}

impl Gateway {
    /// Makes a gateway.
    pub fn new(parts: GatewayParts) -> Self {
        Self { parts: Arc::new(parts) }
    }

    /// Runs a use-case. Dropped when the caller leaves; what must not be then, the service runs to its end by itself.
    pub(super) async fn call<M, R, D, T, F>(
        &self,
        method: Method,
        request: Request<M>,
        decode: impl FnOnce(M) -> Result<D, ServiceError>,
        work: impl FnOnce(Kms, RequestContext, D) -> F,
        encode: impl FnOnce(R) -> T,
    ) -> Result<Response<T>, Status>
    where
        F: Future<Output = Result<R, ServiceError>>,
    {
        let (context, begun) = self.begin(method, &request)?;
        let span = begun.span();
        let outcome = match decode(request.into_inner()) {
            Ok(domain) => {
                let work = work(self.parts.kms.clone(), context, domain);
                work.instrument(span.clone()).await
            }
            Err(error) => {
                Err(self.parts.kms.refuse(&context, error).instrument(span.clone()).await)
            }
        };
        span.in_scope(|| self.finish(&begun, outcome)).map(|response| response.map(encode))
    }

    /// Finds out who calls, and until when.
    fn begin<M>(
        &self,
        method: Method,
        request: &Request<M>,
    ) -> Result<(RequestContext, Begun), Status> {
        let received = self.parts.clock.monotonic();
        let peer = request.extensions().get::<Arc<Peer>>();
        let principal = match peer {
            Some(peer) => peer.authenticate(self.parts.clock.now()),
            None => Err(Unauthenticated::NoCertificate),
        };
        let (peer, principal) = match (peer, principal) {
            (Some(peer), Ok(principal)) => (peer, principal),
            (peer, principal) => {
                let error = principal.err().unwrap_or(Unauthenticated::NoCertificate);
                let source = peer.map_or_else(nowhere, |peer| peer.address());
                self.parts.refusals.refused(source, method.as_str(), error.reason());
                self.parts.metrics.failed(method, error.reason(), Duration::ZERO);
                return Err(status::from_unauthenticated(error));
            }
        };
        let Some(event_id) = new_event_id() else {
            self.parts.metrics.failed(method, "INTERNAL", Duration::ZERO);
            return Err(status::from_service(&ServiceError::Bug { reason: "no randomness" }));
        };
        let wait = deadline::wait_of(request.metadata(), self.parts.max_request);
        let context = RequestContext {
            event_id,
            principal: principal.clone(),
            source: peer.address(),
            deadline: received.checked_add(wait).unwrap_or(received),
            received,
            operation: method.as_str(),
        };
        Ok((context, Begun { method, event_id, received }))
    }

    fn finish<R>(
        &self,
        begun: &Begun,
        outcome: Result<R, ServiceError>,
    ) -> Result<Response<R>, Status> {
        let took = self.parts.clock.monotonic().saturating_duration_since(begun.received);
        let event_id = event_id_value(begun.event_id);
        match outcome {
            Ok(result) => {
                self.parts.metrics.succeeded(begun.method, took);
                let mut response = Response::new(result);
                if let Some(value) = event_id {
                    response.metadata_mut().insert(EVENT_ID_KEY, value);
                }
                Ok(response)
            }
            Err(error) => {
                self.parts.metrics.failed(begun.method, error.reason(), took);
                log(&error);
                let mut status = status::from_service(&error);
                if let Some(value) = event_id {
                    status.metadata_mut().insert(EVENT_ID_KEY, value);
                }
                Err(status)
            }
        }
    }
}

/// What is needed to finish a call.
struct Begun {
    method: Method,
    event_id: EventId,
    received: Instant,
}

impl Begun {
    fn span(&self) -> tracing::Span {
        tracing::info_span!("request", event_id = %self.event_id, method = self.method.as_str())
    }
}

fn event_id_value(event_id: EventId) -> Option<AsciiMetadataValue> {
    AsciiMetadataValue::try_from(event_id.to_string()).ok()
}

/// The source of a request that came through no connection of ours; only tests can make one.
fn nowhere() -> SocketAddr {
    ([0, 0, 0, 0], 0).into()
}

/// Operators read what is theirs to mend; what callers did stands in the audit log.
fn log(error: &ServiceError) {
    match error.fault() {
        Fault::Caller | Fault::Policy => tracing::debug!(reason = error.reason(), "refused"),
        Fault::Device | Fault::Store | Fault::Audit => {
            tracing::warn!(reason = error.reason(), %error, "failed");
        }
        Fault::Bug => tracing::error!(reason = error.reason(), %error, "failed"),
    }
}
