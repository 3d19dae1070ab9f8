//! Counter rows: read and verified, sealed and written.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use kms_core::clock::Clock;
use kms_core::id::RootGeneration;
use kms_core::key::{CounterRow, Sealed};
use kms_core::secret::equal_in_constant_time;
use kms_hsm::Hsm;

use super::lease::Id;
use super::plan::Plan;
use super::{Counters, KeyringError};
use crate::store::{Store, StoreError};

/// Where counter rows come from and go to.
#[derive(Debug)]
pub(super) struct CounterRows {
    pub(super) hsm: Arc<dyn Hsm>,
    pub(super) store: Arc<dyn Store>,
    pub(super) clock: Arc<dyn Clock>,
    /// Those that are open; the last seals what is written.
    pub(super) generations: RangeInclusive<RootGeneration>,
    pub(super) timeout: Duration,
    pub(super) counters: Arc<Counters>,
}

impl CounterRows {
    /// Raises the alert and makes the error.
    pub(super) fn integrity(&self, detail: String) -> KeyringError {
        tracing::error!(alert = "key_integrity", detail, "a counter failed its integrity check");
        self.counters.integrity_failures.increment();
        KeyringError::Integrity { detail }
    }

    /// Reads a row and verifies its MAC.
    pub(super) async fn read(&self, id: Id) -> Result<CounterRow, KeyringError> {
        let (uid, version) = id;
        let sealed = match self.store.counter(uid, version).await {
            Err(StoreError::Damaged { detail }) => return Err(self.integrity(detail)),
            other => other?,
        };
        let Some(Sealed { row, mac, generation }) = sealed else {
            let detail = format!("the counter of key {uid} version {version} is gone");
            return Err(self.integrity(detail));
        };
        let own = (row.key_uid, row.version) == id && self.generations.contains(&generation);
        let deadline = self.clock.monotonic() + self.timeout;
        let input = row.mac_input(generation);
        let macs =
            if own { self.hsm.mac(generation, vec![input], deadline).await? } else { Vec::new() };
        if !macs.first().is_some_and(|made| equal_in_constant_time(&made.0, &mac.0)) {
            let detail = format!("the counter of key {uid} version {version} was edited");
            return Err(self.integrity(detail));
        }
        Ok(row)
    }

    /// Seals and writes the rows of plans in one commit, each at its expected revision; one result each.
    pub(super) async fn write(
        &self,
        plans: &[Plan],
    ) -> Result<Vec<Result<(), StoreError>>, KeyringError> {
        if plans.is_empty() {
            return Ok(Vec::new());
        }
        let deadline = self.clock.monotonic() + self.timeout;
        let generation = *self.generations.end();
        let inputs = plans.iter().map(|plan| plan.row.mac_input(generation)).collect();
        let macs = self.hsm.mac(generation, inputs, deadline).await?;
        if macs.len() != plans.len() {
            return Err(KeyringError::Bug { reason: "the hsm gave another number of MACs" });
        }
        let changes = plans
            .iter()
            .zip(macs)
            .map(|(plan, mac)| (plan.expected, Sealed { row: plan.row.clone(), mac, generation }));
        self.counters.lease_writes.increment();
        Ok(self.store.update_counters(changes.collect()).await?)
    }
}
