//! grpc.health.v1: is the server up, and does it serve.

use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::{Client, ClientError};

/// The service whose status is the server's readiness: HSM, store and audit.
pub const READINESS_SERVICE: &str = "kms.v1.CryptoService";

/// What the server says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Health {
    /// True when the process answers.
    pub live: bool,
    /// True when HSM, store and audit are ready.
    pub ready: bool,
}

impl Client {
    /// Asks for liveness and readiness.
    pub async fn health(&self) -> Result<Health, ClientError> {
        Ok(Health {
            live: self.is_serving("").await?,
            ready: self.is_serving(READINESS_SERVICE).await?,
        })
    }

    async fn is_serving(&self, service: &str) -> Result<bool, ClientError> {
        let request = HealthCheckRequest { service: service.to_owned() };
        let send = |request| async { HealthClient::new(self.channel()).check(request).await };
        let HealthCheckResponse { status } = self.call(request, send).await?;
        Ok(status == i32::from(ServingStatus::Serving))
    }
}
