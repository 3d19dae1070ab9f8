//! grpc.health.v1 on both listeners: "" says that the process lives, the services say that they can serve.

use std::convert::Infallible;
use std::fmt;

use http::{Request, Response};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, StdError};
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::HealthReporter;
use tower::Service;

/// Names of the services whose readiness is told.
pub const READINESS_SERVICES: [&str; 2] = ["kms.v1.CryptoService", "kms.v1.KeyService"];

/// The health service, and the switch for it.
#[derive(Clone)]
pub struct HealthService {
    server: HealthServer<tonic_health::server::HealthService>,
    reporter: HealthReporter,
}

impl HealthService {
    /// Starts as living and not ready.
    pub async fn start() -> Self {
        let reporter = HealthReporter::new();
        let service = tonic_health::server::HealthService::from_health_reporter(reporter.clone());
        let this = Self { server: HealthServer::new(service), reporter };
        this.set_ready(false).await;
        this
    }

    /// Tells whether the services can serve.
    pub async fn set_ready(&self, ready: bool) {
        let status = if ready {
            tonic_health::ServingStatus::Serving
        } else {
            tonic_health::ServingStatus::NotServing
        };
        for service in READINESS_SERVICES {
            self.reporter.set_service_status(service, status).await;
        }
    }

    /// Returns the tonic service, for the routes of the admin listener.
    pub fn server(&self) -> HealthServer<tonic_health::server::HealthService> {
        self.server.clone()
    }
}

impl fmt::Debug for HealthService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HealthService")
    }
}

impl<B> Service<Request<B>> for HealthService
where
    B: hyper::body::Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        self.server.call(request)
    }
}
