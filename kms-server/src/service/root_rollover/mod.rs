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
use self::pace::Pace;
pub(super) use self::progress::Progress;
pub use self::progress::{RolloverState, RootRollover};
use super::kms::{Inner, Kms};
use super::reconcile::stopped;
use super::{MAX_PAGE_SIZE, ServiceError};

/// When a pass is tried again that failed, or left something; twice as long after each that sealed nothing.
const FIRST_RETRY: Duration = Duration::from_secs(10);
/// The longest: a pass looks at all keys, and raises an alert for each row that it cannot seal.
const LAST_RETRY: Duration = Duration::from_mins(10);

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
        loop {
            let before = self.root_rollover().rows;
            // Not dropped when the server ends: a step that has begun must not be left half done.
            match inner.root_pass(stop.clone()).await {
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
        let (_going_on, stop) = watch::channel(false);
        self.inner.root_pass(stop).await
    }

    /// Tells how far the root rollover is.
    pub fn root_rollover(&self) -> RootRollover {
        self.inner.root_rollover.now(self.inner.keyring.config())
    }
}

impl Inner {
    async fn root_pass(
        self: &Arc<Self>,
        stop: watch::Receiver<bool>,
    ) -> Result<bool, ServiceError> {
        // Invariant: no row is touched of a database that may not be the right one (as of the reconciler).
        if self.is_doubtful.load(std::sync::atomic::Ordering::Acquire) {
            return Err(ServiceError::StoreUnavailable {
                detail: "the database is not compared with the log".into(),
            });
        }
        self.root_rollover.begins();
        let mut steps = Pace::new(self, stop);
        let mut after: Option<TenantName> = None;
        loop {
            let page = self.store.list_manifests(after, MAX_PAGE_SIZE).await;
            let page = self.keyring.stored(page)?;
            let Some(last) = page.last() else { break };
            after = Some(last.row.tenant.clone());
            for manifest in &page {
                self.reseal_tenant(&manifest.row.tenant, &mut steps).await?;
                if steps.is_stopped() {
                    return Ok(false);
                }
            }
        }
        self.reseal_requests(&mut steps).await?;
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
