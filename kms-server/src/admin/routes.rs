//! What the admin listener answers: `/livez`, `/readyz`, `/metrics`, gRPC health and reflection.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;
use tonic::service::Routes;

use super::metrics::Gauges;
use super::readiness::Readiness;
use crate::telemetry::metrics::RequestMetrics;
use crate::transport::health::HealthService;

/// The media type of OpenMetrics text.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Puts the routes together.
///
/// # Errors
/// Only when the descriptors that were compiled in cannot be read.
pub fn routes(
    health: &HealthService,
    readiness: Arc<Readiness>,
    requests: Arc<RequestMetrics>,
    gauges: Gauges,
) -> Result<Routes, tonic_reflection::server::Error> {
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(kms_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let mut registry = Registry::default();
    registry.register_collector(Box::new(requests));
    registry.register_collector(Box::new(gauges));
    let http = axum::Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz).with_state(readiness))
        .route("/metrics", get(metrics).with_state(Arc::new(registry)));
    let grpc = Routes::new(health.server()).add_service(reflection).into_axum_router();
    Ok(Routes::from(http.merge(grpc)).prepare())
}

async fn readyz(State(readiness): State<Arc<Readiness>>) -> Response {
    let report = readiness.report();
    let code = if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    // Five flags always serialise; an empty body would still carry the code.
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
