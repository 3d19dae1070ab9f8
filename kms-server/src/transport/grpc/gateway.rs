//! What every call needs: a principal, the message, an id, a deadline, a span, a number, and a typed status.
//!
//! The order is fixed: who, then what. A caller without a principal is answered before a byte of its message is read.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use hyper::body::Incoming;
use kms_core::clock::Clock;
use kms_core::fault::Fault;
use kms_core::id::EventId;
use prost::Message;
use tonic::Status;
use tonic::body::Body;
use tracing::Instrument as _;

use super::arrive::{self, Arrived, Budget, Charge};
use super::bounds::NotDecoded;
use super::failures::{FailureLog, Line};
use super::{answer, deadline};
use crate::authn::{Peer, Principal, Unauthenticated};
use crate::service::{Kms, RequestContext, ServiceError};
use crate::telemetry::metrics::RequestMetrics;
use crate::transport::event_id::new_event_id;
use crate::transport::limits::BODY_BUDGET_BYTES;
use crate::transport::method::Method;
use crate::transport::recheck::Trust;
use crate::transport::status::{self, Refused};

/// Response metadata with the id of the request, as in the audit log.
pub const EVENT_ID_KEY: HeaderName = HeaderName::from_static("holdfast-event-id");

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

/// Takes calls in: what all of them share.
#[derive(Clone, Debug)]
pub struct Gateway(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    parts: GatewayParts,
    budget: Budget,
    failures: FailureLog,
}

impl Gateway {
    /// Makes a gateway.
    pub fn new(parts: GatewayParts) -> Self {
        let budget = Budget::new(BODY_BUDGET_BYTES);
        Self(Arc::new(Inner { parts, budget, failures: FailureLog::default() }))
    }

    /// Tells of the failures that were only counted, in windows that are over. To be asked every second or so.
    pub fn tell_counted_failures(&self) {
        let inner = &self.0;
        inner.failures.tick(inner.parts.clock.monotonic()).into_iter().for_each(tell_counted);
    }

    /// The same of all windows, when nothing is served any more. Each is told once, however often this is called.
    pub fn tell_last_failures(&self) {
        self.0.failures.drain().into_iter().for_each(tell_counted);
    }

    /// Finds out who calls. Asked when the headers are there: certificates run out while connections are open.
    ///
    /// # Errors
    /// What to answer to a caller without a principal, whose message is left unread.
    pub(super) fn admit<B>(&self, method: Method, request: &Request<B>) -> Result<Call, Status> {
        let parts = &self.0.parts;
        let received = parts.clock.monotonic();
        let peer = request.extensions().get::<Arc<Peer>>();
        let admitted = match peer {
            Some(peer) => peer.authenticate(parts.clock.now()).map(|principal| (peer, principal)),
            None => Err(Unauthenticated::NoCertificate),
        };
        match admitted {
            Ok((peer, principal)) => Ok(Call {
                gateway: self.clone(),
                method,
                principal: principal.clone(),
                source: peer.address(),
                received,
            }),
            Err(error) => {
                let source = peer.map_or_else(nowhere, |peer| peer.address());
                parts.refusals.refused(source, method.as_str(), error.reason());
                parts.metrics.failed(method, error.reason(), Duration::ZERO);
                Err(status::from_unauthenticated(error))
            }
        }
    }
}

/// A call whose caller is known.
#[derive(Debug)]
pub(super) struct Call {
    gateway: Gateway,
    method: Method,
    principal: Principal,
    source: SocketAddr,
    received: Instant,
}

impl Call {
    /// Runs a use-case. Dropped when the caller leaves; what must not be then, the service runs to its end by itself.
    pub(super) async fn run<R, D, T, F>(
        self,
        request: Request<Incoming>,
        decode: impl FnOnce(Bytes) -> Result<D, NotDecoded>,
        work: impl FnOnce(Kms, RequestContext, D) -> F,
        encode: impl FnOnce(R) -> T,
    ) -> Response<Body>
    where
        T: Message,
        F: Future<Output = Result<R, ServiceError>>,
    {
        let (begun, _charge) = match self.begin(request, decode).await {
            Ok(begun) => begun,
            Err(refused) => return self.refuse(refused),
        };
        let Begun { context, decoded, event_id } = begun;
        let answering = async {
            let kms = &self.gateway.0.parts.kms;
            let outcome = match decoded {
                Ok(domain) => work(kms.clone(), context, domain).await,
                Err(error) => Err(kms.refuse(&context, error).await),
            };
            self.finish(event_id, outcome, encode)
        };
        answering.instrument(self.span(event_id)).await
    }

    /// Reads the message.
    pub(super) async fn message<B: hyper::body::Body<Data = Bytes> + Unpin>(
        &self,
        request: Request<B>,
    ) -> Result<(Arrived<'_>, Instant), Refused> {
        let (head, body) = request.into_parts();
        let deadline = self.deadline(&head.headers)?;
        drop(head);
        let left = || self.left(deadline);
        Ok((arrive::message(body, &self.gateway.0.budget, left).await?, deadline))
    }

    /// Says until when all must be done, by the headers.
    fn deadline(&self, headers: &HeaderMap) -> Result<Instant, Refused> {
        if headers.get(ENCODING).is_some_and(|encoding| encoding != "identity") {
            return Err(Refused::EncodingUnknown);
        }
        let wait = deadline::wait_of(headers, self.gateway.0.parts.max_request);
        Ok(self.received.checked_add(wait).unwrap_or(self.received))
    }

    /// Says how long it is until then.
    pub(super) fn left(&self, deadline: Instant) -> Duration {
        deadline.saturating_duration_since(self.gateway.0.parts.clock.monotonic())
    }

    /// Gives a stream its id, the deadline of its first step, and the end that its client wants for all of it.
    pub(super) fn open(
        &self,
        headers: &HeaderMap,
    ) -> Result<(RequestContext, Option<Instant>), Refused> {
        let deadline = self.deadline(headers)?;
        let end = deadline::asked(headers).and_then(|wait| self.received.checked_add(wait));
        let context = self.context(new_event_id().ok_or(Refused::NoRandomness)?, deadline);
        Ok((context, end))
    }

    /// Returns the deadline of a stream's next step: as for a call, and not after the end of the whole.
    pub(super) fn step(&self, end: Option<Instant>) -> Instant {
        let parts = &self.gateway.0.parts;
        let now = parts.clock.monotonic();
        let step = now.checked_add(parts.max_request).unwrap_or(now);
        end.map_or(step, |end| end.min(step))
    }

    /// Takes from the memory for requests what a stream needs.
    pub(super) fn charge(&self, bytes: usize) -> Result<Charge<'_>, Refused> {
        Charge::of(&self.gateway.0.budget, bytes)
    }

    /// Asks again who calls: a stream may last longer than its client is trusted.
    pub(super) fn still(&self, trust: Option<&Trust>) -> Result<(), Ended> {
        let now = self.gateway.0.parts.clock.now();
        let trust = trust.ok_or(Unauthenticated::NoCertificate);
        trust.and_then(|trust| trust.still(now)).map_err(Ended::Nobody)
    }

    /// Lends the use-cases.
    pub(super) fn kms(&self) -> &Kms {
        &self.gateway.0.parts.kms
    }

    /// Counts and logs how a stream ended, and says it to the caller.
    pub(super) fn ended(&self, event_id: EventId, outcome: Result<(), Ended>) -> Status {
        let parts = &self.gateway.0.parts;
        let took = parts.clock.monotonic().saturating_duration_since(self.received);
        match outcome {
            Ok(()) => {
                parts.metrics.succeeded(self.method, took);
                Status::ok("")
            }
            Err(Ended::Failed(error)) => {
                parts.metrics.failed(self.method, error.reason(), took);
                self.log(&error);
                status::from_service(&error, &event_id.to_string())
            }
            Err(Ended::Refused(refused)) => {
                self.note(refused.reason());
                status::from_refused(refused)
            }
            Err(Ended::Nobody(error)) => {
                self.note(error.reason());
                status::from_unauthenticated(error)
            }
        }
    }

    pub(super) fn context(&self, event_id: EventId, deadline: Instant) -> RequestContext {
        RequestContext {
            event_id,
            principal: self.principal.clone(),
            source: self.source,
            deadline,
            received: self.received,
            operation: self.method.as_str(),
            items_before: 0,
        }
    }

    /// Reads and decodes the message, and gives the request its id.
    async fn begin<D>(
        &self,
        request: Request<Incoming>,
        decode: impl FnOnce(Bytes) -> Result<D, NotDecoded>,
    ) -> Result<(Begun<D>, Charge<'_>), Refused> {
        let (Arrived { message, charge }, deadline) = self.message(request).await?;
        let decoded = match decode(message) {
            Ok(domain) => Ok(domain),
            Err(NotDecoded::Refused(error)) => Err(error),
            Err(NotDecoded::Malformed) => return Err(Refused::Malformed),
        };
        let event_id = new_event_id().ok_or(Refused::NoRandomness)?;
        let context = self.context(event_id, deadline);
        Ok((Begun { context, decoded, event_id }, charge))
    }

    pub(super) fn span(&self, event_id: EventId) -> tracing::Span {
        // Of the highest level, so that failures carry the id whatever is worth a line.
        tracing::error_span!("request", %event_id, method = self.method.as_str())
    }

    fn finish<R, T: Message>(
        &self,
        event_id: EventId,
        outcome: Result<R, ServiceError>,
        encode: impl FnOnce(R) -> T,
    ) -> Response<Body> {
        let parts = &self.gateway.0.parts;
        let took = parts.clock.monotonic().saturating_duration_since(self.received);
        let too_large = ServiceError::Bug { reason: "an answer is larger than a message may be" };
        let answered = outcome.and_then(|result| answer::with(&encode(result)).ok_or(too_large));
        let id = event_id.to_string();
        let mut response = match answered {
            Ok(response) => {
                parts.metrics.succeeded(self.method, took);
                response
            }
            Err(error) => {
                parts.metrics.failed(self.method, error.reason(), took);
                self.log(&error);
                status::from_service(&error, &id).into_http()
            }
        };
        if let Ok(value) = HeaderValue::try_from(id) {
            response.headers_mut().insert(EVENT_ID_KEY, value);
        }
        response
    }

    /// Answers a call that no use-case saw, and notes it.
    pub(super) fn refuse(&self, refused: Refused) -> Response<Body> {
        self.note(refused.reason());
        status::from_refused(refused).into_http()
    }

    /// Operators read what is theirs to mend; what callers did stands in the audit log.
    fn log(&self, error: &ServiceError) {
        let reason = error.reason();
        match error.fault() {
            Fault::Caller | Fault::Policy => tracing::debug!(reason, "refused"),
            Fault::Device | Fault::Store | Fault::Audit => {
                let inner = &self.gateway.0;
                match inner.failures.note(reason, inner.parts.clock.monotonic()) {
                    Line::Count => return tracing::debug!(reason, %error, "failed"),
                    Line::Tell { counted: 0 } => {}
                    Line::Tell { counted } => tell_counted((reason, counted)),
                }
                tracing::warn!(reason, %error, "failed");
            }
            Fault::Bug => tracing::error!(reason, %error, "failed"),
        }
    }

    fn note(&self, reason: &'static str) {
        let parts = &self.gateway.0.parts;
        parts.metrics.failed(self.method, reason, Duration::ZERO);
        parts.refusals.refused(self.source, self.method.as_str(), reason);
    }
}

/// Why a stream ended before its client ended it.
#[derive(Debug)]
pub(super) enum Ended {
    /// By what came, or did not come.
    Refused(Refused),
    /// By its client, who is not trusted any more.
    Nobody(Unauthenticated),
    /// By what the service said of all items.
    Failed(ServiceError),
}

fn tell_counted((reason, counted): (&'static str, u64)) {
    tracing::warn!(reason, counted, "more failed than were told");
}

/// The header that names a compression; there is none that we know.
const ENCODING: &str = "grpc-encoding";

/// A request with its id, decoded or with the error to be recorded.
struct Begun<D> {
    context: RequestContext,
    decoded: Result<D, ServiceError>,
    event_id: EventId,
}

/// The source of a request that came through no connection of ours; only tests can make one.
fn nowhere() -> SocketAddr {
    ([0, 0, 0, 0], 0).into()
}
