//! What the admin listener answers: `/livez`, `/readyz`, `/metrics`, gRPC health and reflection.

use std::sync::{Arc, OnceLock};

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use kms_core::clock::Clock;
use prometheus_client::registry::Registry;
use tonic::service::Routes;

use super::explain::explain;
use super::metrics::Gauges;
use super::readiness::Readiness;
use crate::authn::{Peer, Unauthenticated};
use crate::telemetry::metrics::RequestMetrics;
use crate::transport::grpc::{Gateway, not_yet};
use crate::transport::health::{CHECK_PATH, HealthService, WATCH_PATH};
use crate::transport::status::{self, Refused};

/// The media type of OpenMetrics text.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const LIVEZ_PATH: &str = "/livez";
const READYZ_PATH: &str = "/readyz";
const METRICS_PATH: &str = "/metrics";
const REFLECTION_PATH: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const BACKUP_PATH: &str = "/kms.v1.AdminService/BackupStore";
/// Everything that is answered. The services would refuse a method that they do not have without an ErrorInfo.
const PATHS: [&str; 7] =
    [LIVEZ_PATH, READYZ_PATH, METRICS_PATH, CHECK_PATH, WATCH_PATH, REFLECTION_PATH, BACKUP_PATH];
/// How the media types of gRPC begin.
const GRPC: &[u8] = b"application/grpc";

/// Who gets an answer.
#[derive(Clone, Debug)]
pub enum Access {
    /// Everybody whom the listener lets in: it has no TLS.
    Everybody,
    /// Who has a certificate that is trusted now and names a principal, by this clock. Asked for every request, as on
    /// the public listener: certificates run out, and lose their trust, while connections are open.
    Authenticated(Arc<dyn Clock>),
}

/// Puts the routes together.
///
/// # Errors
/// Only when the descriptors that were compiled in cannot be read.
pub fn routes(
    health: &HealthService,
    readiness: Arc<Readiness>,
    requests: Arc<RequestMetrics>,
    gauges: Gauges,
    access: Access,
    gateway: Arc<OnceLock<Gateway>>,
) -> Result<Routes, tonic_reflection::server::Error> {
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(kms_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let mut registry = Registry::default();
    registry.register_collector(Box::new(requests));
    registry.register_collector(Box::new(gauges));
    let http = axum::Router::new()
        .route(BACKUP_PATH, post(backup_store).with_state(gateway))
        .route(LIVEZ_PATH, get(async || "ok\n"))
        .route(READYZ_PATH, get(readyz).with_state(readiness))
        .route(METRICS_PATH, get(metrics).with_state(Arc::new(registry)));
    let grpc = Routes::new(health.server()).add_service(reflection).into_axum_router();
    // The layer that is added last is asked first: who, then what.
    let all = http
        .merge(grpc)
        .layer(from_fn(explain))
        .layer(from_fn(refuse_unknown))
        .layer(from_fn_with_state(access, authenticate));
    Ok(Routes::from(all).prepare())
}

async fn authenticate(State(access): State<Access>, request: Request, next: Next) -> Response {
    let clock = match access {
        Access::Everybody => return next.run(request).await,
        Access::Authenticated(clock) => clock,
    };
    let peer = request.extensions().get::<Arc<Peer>>();
    let refused = match peer.map(|peer| peer.authenticate(clock.now()).map(drop)) {
        Some(Ok(())) => return next.run(request).await,
        Some(Err(refused)) => refused,
        None => Unauthenticated::NoCertificate,
    };
    tracing::warn!(reason = refused.reason(), "an admin request was refused");
    if is_grpc(&request) {
        return status::from_unauthenticated(refused).into_http();
    }
    (StatusCode::UNAUTHORIZED, format!("{refused}\n")).into_response()
}

async fn refuse_unknown(request: Request, next: Next) -> Response {
    if PATHS.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    if is_grpc(&request) {
        return status::from_refused(Refused::MethodUnknown).into_http();
    }
    (StatusCode::NOT_FOUND, "no such path\n").into_response()
}

/// Returns whether the caller reads gRPC statuses, and not those of HTTP.
pub(super) fn is_grpc(request: &Request) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.is_some_and(|kind| kind.starts_with(GRPC))
}

/// Whoever calls must be known, so a listener without TLS has nobody who may.
async fn backup_store(State(gateway): State<Arc<OnceLock<Gateway>>>, request: Request) -> Response {
    let response = match gateway.get() {
        Some(gateway) => gateway.backup_store(request).await,
        None => not_yet(),
    };
    response.map(axum::body::Body::new)
}

async fn readyz(State(readiness): State<Arc<Readiness>>) -> Response {
    let report = readiness.report();
    let code = if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    // Flags always serialise; an empty body would still carry the code.
    let body = serde_json::to_string(&report).unwrap_or_default();
    (code, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn metrics(State(registry): State<Arc<Registry>>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
