//! Root rollover: when a newer root set is pinned, every row is sealed under it, and every blob wrapped under it, while
//! requests are served (docs/adr/0026-root-rollover.md).
//!
//! Tenant by tenant, key by key, some rows at a time: read in the tenant's turn, verified, sealed anew, and put in the place
//! of what was read, with the manifest, as one mutation with intent and outcome. Nothing of what is left to do is
//! remembered: it is what the rows say. It must never make a row genuine that is not.

mod batch;
mod change;
mod pace;
mod progress;

use std::sync::Arc;
use std::time::Duration;

use kms_core::name::TenantName;
use tokio::sync::watch;

pub use self::change::RootChangeError;
use self::pace::{MAX_HALVINGS, Pace};
pub(super) use self::progress::Progress;
pub use self::progress::{RolloverState, RootRollover};
use super::kms::{Inner, Kms};
use super::reconcile::stopped;
use super::{MAX_PAGE_SIZE, ServiceError};
use crate::store::ListPosition;

/// When a pass is tried again that failed, or left something; twice as long after each that sealed nothing.
const FIRST_RETRY: Duration = Duration::from_secs(10);
/// The longest: a pass looks at all keys, and raises an alert for each row that it cannot seal.
const LAST_RETRY: Duration = Duration::from_mins(10);

/// How far a pass came that was broken off: the next one goes on there.
#[derive(Debug, Default)]
pub struct Reached {
    /// The last tenant that was walked to its end.
    tenant: Option<TenantName>,
    /// The last key of the tenant after it.
    key: Option<ListPosition>,
    /// How often the step was halved because its time was over before its end.
    halvings: u32,
}

impl Reached {
    /// Halves the step when that is what the error calls for.
    fn broken_off(&mut self, error: ServiceError) -> ServiceError {
        if matches!(error, ServiceError::QueueDeadline | ServiceError::HsmDeadline) {
            self.halvings = (self.halvings + 1).min(MAX_HALVINGS);
        }
        error
    }
}

impl Kms {
    /// Seals everything under the newest root, until nothing is left, or `stop` says true.
    pub async fn roll_over_root(&self, mut stop: watch::Receiver<bool>) {
        let inner = &self.inner;
        let config = inner.keyring.config();
        if config.oldest == config.generation {
            return;
        }
        tracing::info!(
            from = config.oldest.get(),
            to = config.generation.get(),
            "rows are sealed under the newest root"
        );
        let mut retry = FIRST_RETRY;
        let mut reached = Reached::default();
        if let Ok(left) = inner.store.old_counts(config.generation).await {
            inner.root_rollover.counted(left);
        }
        loop {
            let before = self.root_rollover().rows;
            // Not dropped when the server ends: a step that has begun must not be left half done.
            match inner.root_pass(&mut reached, stop.clone()).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    inner.root_rollover.waits(&error.to_string());
                    tracing::warn!(%error, "the root rollover waits, and is tried again");
                }
            }
            if self.root_rollover().rows > before {
                retry = FIRST_RETRY;
            }
            if tokio::time::timeout(retry, stopped(&mut stop)).await.is_ok() {
                return;
            }
            retry = (retry * 2).min(LAST_RETRY);
        }
    }

    /// Makes one pass over all rows; returns whether nothing is left under an older root.
    ///
    /// # Errors
    /// What keeps the whole pass from going on; what was done stays done.
    pub async fn root_pass(&self) -> Result<bool, ServiceError> {
        self.root_pass_from(&mut Reached::default()).await
    }

    /// Makes one pass over the rows behind `reached`, which is left where the pass is broken off.
    ///
    /// # Errors
    /// As [`Kms::root_pass`].
    pub async fn root_pass_from(&self, reached: &mut Reached) -> Result<bool, ServiceError> {
        let (_going_on, stop) = watch::channel(false);
        self.inner.root_pass(reached, stop).await
    }

    /// Tells how far the root rollover is.
    pub fn root_rollover(&self) -> RootRollover {
        self.inner.root_rollover.now(self.inner.keyring.config())
    }
}

impl Inner {
    async fn root_pass(
        self: &Arc<Self>,
        reached: &mut Reached,
        stop: watch::Receiver<bool>,
    ) -> Result<bool, ServiceError> {
        // Invariant: no row is touched of a database that may not be the right one (as of the reconciler).
        if self.is_doubtful.load(std::sync::atomic::Ordering::Acquire) {
            return Err(ServiceError::StoreUnavailable {
                detail: "the database is not compared with the log".into(),
            });
        }
        self.root_rollover.begins(reached.tenant.is_some() || reached.key.is_some());
        let mut steps = Pace::new(self, reached.halvings, stop);
        loop {
            let page = self.store.list_manifests(reached.tenant.clone(), MAX_PAGE_SIZE).await;
            let page = self.keyring.stored(page)?;
            if page.is_empty() {
                break;
            }
            for manifest in page {
                let tenant = manifest.row.tenant;
                match self.reseal_tenant(&tenant, &mut reached.key, &mut steps).await {
                    Ok(()) => {}
                    // Told of already; it holds up no other tenant.
                    Err(ServiceError::KeyIntegrity { .. }) => self.root_rollover.looked_at(0, 1),
                    Err(error) => return Err(reached.broken_off(error)),
                }
                if steps.is_stopped() {
                    return Ok(false);
                }
                (reached.tenant, reached.key) = (Some(tenant), None);
            }
        }
        self.reseal_requests(&mut steps).await?;
        *reached = Reached { halvings: reached.halvings, ..Reached::default() };
        let left = self.store.old_counts(self.keyring.config().generation).await?;
        let is_done = self.root_rollover.ends(left);
        if is_done {
            let status = self.root_rollover.now(self.keyring.config());
            tracing::info!(
                generation = status.generation.get(),
                rows = status.rows,
                keys_rewrapped = status.rewrapped,
                "nothing depends on an older root any more: it can be retired"
            );
        } else {
            tracing::warn!(left = left.total(), "rows are left under an older root");
        }
        Ok(is_done)
    }
}
