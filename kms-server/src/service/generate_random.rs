//! GenerateRandom: bytes from the HSM's generator.

use kms_core::name::TenantName;
use kms_core::secret::Plaintext;
use kms_hsm::hsm::MAX_RANDOM_BYTES;

use super::kms::{Inner, Kms};
use super::trail::Trail;
use super::{RequestContext, ServiceError};
use crate::authz::{self, Target};

impl Kms {
    /// Draws 1 to 1,024 random bytes.
    ///
    /// # Errors
    /// `FIELD_VIOLATION`, `ACCESS_DENIED`, and what the HSM cannot do.
    pub async fn generate_random(
        &self,
        request: &RequestContext,
        tenant: &TenantName,
        length_bytes: usize,
    ) -> Result<Plaintext, ServiceError> {
        let inner = &*self.inner;
        let mut trail = Trail::tenant(tenant);
        let result = inner.random(request, tenant, length_bytes, &mut trail).await;
        inner.record(request, trail, result).await
    }
}

impl Inner {
    async fn random(
        &self,
        request: &RequestContext,
        tenant: &TenantName,
        length_bytes: usize,
        trail: &mut Trail,
    ) -> Result<Plaintext, ServiceError> {
        self.permit::<authz::GenerateRandom>(request, Target::tenant(tenant), trail)?;
        if !(1..=MAX_RANDOM_BYTES).contains(&length_bytes) {
            let text = format!("must be 1 to {MAX_RANDOM_BYTES}");
            return Err(ServiceError::field("length_bytes", text));
        }
        let start = self.clock.monotonic();
        let drawn = self.hsm.random(length_bytes, request.deadline).await;
        trail.timing = self.timing_since(start);
        drawn.map_err(|error| self.device(error))
    }
}
