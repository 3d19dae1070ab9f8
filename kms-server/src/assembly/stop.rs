//! Stopping, in the order in which things depend on each other.

use std::sync::Arc;
use std::time::Duration;

use kms_hsm::Hsm as _;

use super::open::Core;
use super::start::Running;
use super::steps::{Until, on_a_thread};
use crate::audit::AuditSink as _;
use crate::config::Config;
use crate::transport::Drained;

/// How long the parts may take to close after the drain, all together.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

impl Core {
    /// Stops in the order in which things depend on each other. All steps share one deadline.
    pub(super) async fn stop(&self, config: &Config, running: Running) {
        tracing::info!("stopping: draining");
        let drain = config.limits.drain();
        let now = self.clock.monotonic();
        let drained = Until::after(now, drain);
        let closed = Until::after(now, drain.saturating_add(CLOSE_TIMEOUT));
        running.readiness.drain();
        running.public_trigger.trigger();
        match running.public.await {
            Ok(Drained::Completely) => {}
            Ok(Drained::AtDeadline) | Err(_) => {
                tracing::warn!("the drain was cut off at its deadline");
            }
        }
        running.gateway.tell_last_failures();
        if drained.ends(running.kms.mutations_done()).await.is_none() {
            tracing::warn!("mutations were still running at the deadline of the drain");
        }
        if closed.ends(running.reconciler).await.is_none() {
            tracing::warn!("the reconciler was still running at its deadline");
        }
        match closed.ends(running.kms.drain()).await {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::warn!(%error, "leases or refused calls could not be written");
            }
            None => tracing::warn!("leases or refused calls could not be written in time"),
        }
        match closed.ends(running.refusals.finish()).await {
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::warn!(%error, "refused calls could not be written"),
            None => tracing::warn!("refused calls could not be written in time"),
        }
        running.admin_trigger.trigger();
        // The listener's own drain is bounded; its outcome changes nothing any more.
        let _ = closed.ends(running.admin).await;
        if closed.ends(self.store.close()).await.is_none() {
            tracing::warn!("the store did not close in time");
        }
        let (audit, hsm) = (Arc::clone(&self.audit), Arc::clone(&self.hsm.hsm));
        let kms = running.kms.clone();
        let closing = on_a_thread("close", move || {
            kms.close_journal();
            audit.close();
            hsm.close();
        });
        let ended = match closing {
            Ok(closing) => closed.ends(closing).await.is_some(),
            Err(_) => false,
        };
        if !ended {
            tracing::warn!("the journal, the audit log or the hsm did not close in time");
        }
        // Calls that were cut off run in tasks of their own, and may have failed since.
        running.gateway.tell_last_failures();
    }
}
