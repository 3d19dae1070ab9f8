//! The prober: one at a time, with a growing pause, until the device is back.

use std::time::{Duration, Instant};

use super::Keeper;
use crate::pkcs11::ckr::Failure;

/// A token that answered a soft probe and fails again within this time is initialised anew; one that holds for this time
/// is trusted again.
const SOFT_PROBE_HOLDS: Duration = Duration::from_secs(10);

impl Keeper {
    /// Connects for the first time.
    pub(super) fn first_connect(&mut self) {
        self.probe_with(Self::connect);
    }

    /// Looks whether the device is back.
    pub(super) fn probe(&mut self) {
        self.probe_at = None;
        if !self.shared.health.is_down() {
            return;
        }
        let now = self.shared.now();
        let soft = self.last_soft.is_none_or(|at| now >= at + SOFT_PROBE_HOLDS);
        if soft && self.session.is_some() {
            self.last_soft = Some(now);
            if self.soft_probe().is_ok() {
                return self.came_up();
            }
        }
        self.probe_with(Self::connect);
    }

    fn probe_with(&mut self, probe: fn(&mut Self) -> Result<(), Failure>) {
        match self.seated(probe) {
            Ok(()) => self.came_up(),
            Err(Failure::Latch(reason)) => {
                self.pin = None;
                self.shared.health.latch(&reason);
            }
            Err(failure) => {
                let detail = failure.detail();
                let at = self.shared.now() + self.pause;
                tracing::warn!(detail, pause = ?self.pause, "the HSM is not back");
                self.shared.health.next_probe(&detail, at);
                self.probe_at = Some(at);
                self.pause = (self.pause * 2).min(self.shared.config.budgets.probe_max);
            }
        }
    }

    /// Asks whether everything is as it was, without giving anything up.
    fn soft_probe(&mut self) -> Result<(), Failure> {
        self.seated(|keeper| {
            keeper.live()?;
            keeper.token_is_there()?;
            let mut bytes = [0; 16];
            keeper.session()?.generate_random_slice(&mut bytes)?;
            keeper.verify_open_roots()
        })
    }

    /// Has the prober look soon: at once when the device has held, else after a pause that grows.
    ///
    /// A device that answers every probe and fails under work would otherwise be initialised anew without end.
    pub(super) fn probe_soon(&mut self) {
        let now = self.shared.now();
        let budgets = self.shared.config.budgets;
        let held = |since: Instant| now.saturating_duration_since(since) >= SOFT_PROBE_HOLDS;
        let pause = if self.up_since.is_none_or(held) {
            self.pause = budgets.probe_first;
            Duration::ZERO
        } else {
            self.pause
        };
        if !pause.is_zero() {
            self.pause = (self.pause * 2).min(budgets.probe_max);
        }
        self.shared.health.probe_at(now + pause);
        self.probe_at = Some(now + pause);
    }

    fn came_up(&mut self) {
        self.probe_at = None;
        self.up_since = Some(self.shared.now());
        self.shared.health.up(!self.pins.is_empty());
        tracing::info!(epoch = self.epoch, "the HSM is connected");
    }
}
