//! grpc.health.v1 on both listeners: "" says that the process lives, the services say that they can serve.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::{Stream, StreamExt as _, TakeUntil};
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_health::server::{HealthReporter, WatchStream};

use super::shutdown::Shutdown;
use super::status::{Refused, from_refused};

/// Names of the services whose readiness is told.
pub const READINESS_SERVICES: [&str; 2] = ["kms.v1.CryptoService", "kms.v1.KeyService"];
/// Path of the method that tells once.
pub const CHECK_PATH: &str = "/grpc.health.v1.Health/Check";
/// Path of the method that tells every change.
pub const WATCH_PATH: &str = "/grpc.health.v1.Health/Watch";

/// In a request that may last, such as one to [`WATCH_PATH`]: raised when its connection is told to end.
pub type Ending = Shutdown;

/// The health service, and the switch for it.
#[derive(Clone)]
pub struct HealthService {
    service: Arc<tonic_health::server::HealthService>,
    reporter: HealthReporter,
}

impl HealthService {
    /// Starts as living and not ready.
    pub async fn start() -> Self {
        let reporter = HealthReporter::new();
        let service = tonic_health::server::HealthService::from_health_reporter(reporter.clone());
        let this = Self { service: Arc::new(service), reporter };
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
    pub fn server(&self) -> HealthServer<Self> {
        HealthServer::new(self.clone())
    }
}

impl fmt::Debug for HealthService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HealthService")
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.service.check(request).await.map_err(typed)
    }

    type WatchStream = Changes;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Changes>, Status> {
        let ending = request.extensions().get::<Ending>().cloned();
        let changes = self.service.watch(request).await.map_err(typed)?;
        let end = async move {
            match ending {
                Some(mut ending) => ending.triggered().await,
                None => std::future::pending().await,
            }
        };
        Ok(changes.map(|changes| Changes(changes.take_until(end.boxed()))))
    }
}

/// Gives tonic's own refusal the details that every error of ours has.
fn typed(status: Status) -> Status {
    match status.code() {
        Code::NotFound => from_refused(Refused::ServiceUnknown),
        _ => status,
    }
}

/// The changes of a service's health, until the connection is told to end: a stream that stays would hold up every
/// drain.
pub struct Changes(TakeUntil<WatchStream, BoxFuture<'static, ()>>);

impl Stream for Changes {
    type Item = Result<HealthCheckResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(context)
    }
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Changes")
    }
}
