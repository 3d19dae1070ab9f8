//! How far the root rollover is, for operators and metrics.

use std::sync::{Mutex, MutexGuard, PoisonError};

use kms_core::id::RootGeneration;

use crate::keyring::KeyringConfig;
use crate::store::OldCounts;

/// Where a root rollover stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RolloverState {
    /// There is one root.
    #[default]
    NotNeeded,
    /// Rows are being sealed.
    Running,
    /// A pass failed, or left something; another follows.
    Waiting,
    /// Nothing depends on an older root any more.
    Complete,
}

impl RolloverState {
    /// Returns the name used in answers and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotNeeded => "NOT_NEEDED",
            Self::Running => "RUNNING",
            Self::Waiting => "WAITING",
            Self::Complete => "COMPLETE",
        }
    }
}

/// How far a root rollover is. Numbers are of this process; after a restart they begin at 0, and what was done is not done again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootRollover {
    /// The generation that seals what is written.
    pub generation: RootGeneration,
    /// The oldest that is open.
    pub oldest: RootGeneration,
    /// Where it stands.
    pub state: RolloverState,
    /// Keys that were looked at in this pass.
    pub keys: u64,
    /// Rows sealed anew.
    pub rows: u64,
    /// Key versions among them that were wrapped anew.
    pub rewrapped: u64,
    /// Rows of this pass that could not be: edited or damaged.
    pub failed: u64,
    /// What was left when it was last counted: at the start, and at the end of each pass.
    pub left: OldCounts,
    /// Rows that are left by that count and what was sealed since.
    pub remaining: u64,
    /// Why it waits.
    pub detail: String,
}

/// The numbers behind [`RootRollover`].
#[derive(Debug, Default)]
pub(in crate::service) struct Progress(Mutex<Numbers>);

#[derive(Clone, Debug, Default)]
struct Numbers {
    state: RolloverState,
    keys: u64,
    rows: u64,
    rewrapped: u64,
    failed: u64,
    left: OldCounts,
    remaining: u64,
    detail: String,
}

impl Progress {
    fn lock(&self) -> MutexGuard<'_, Numbers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self, config: &KeyringConfig) -> RootRollover {
        let Numbers { state, keys, rows, rewrapped, failed, left, remaining, detail } =
            self.lock().clone();
        let (generation, oldest) = (config.generation, config.oldest);
        // Told from the start on: before the first pass begins there is something to do, too.
        let state = match state {
            RolloverState::NotNeeded if oldest < generation => RolloverState::Running,
            other => other,
        };
        RootRollover {
            generation,
            oldest,
            state,
            keys,
            rows,
            rewrapped,
            failed,
            left,
            remaining,
            detail,
        }
    }

    /// All rows were counted.
    pub(super) fn counted(&self, left: OldCounts) {
        let mut numbers = self.lock();
        (numbers.left, numbers.remaining) = (left, left.total());
    }

    /// A pass begins, or goes on where the last was broken off.
    pub(super) fn begins(&self, goes_on: bool) {
        let mut numbers = self.lock();
        if !goes_on {
            (numbers.keys, numbers.failed) = (0, 0);
        }
        numbers.state = RolloverState::Running;
        numbers.detail.clear();
    }

    pub(super) fn looked_at(&self, keys: u32, failed: usize) {
        let mut numbers = self.lock();
        numbers.keys += u64::from(keys);
        numbers.failed += failed as u64;
    }

    pub(super) fn sealed(&self, rows: u64, rewrapped: u64) {
        let mut numbers = self.lock();
        numbers.rows += rows;
        numbers.rewrapped += rewrapped;
        numbers.remaining = numbers.remaining.saturating_sub(rows);
    }

    /// A pass cannot go on.
    pub(super) fn waits(&self, detail: &str) {
        let mut numbers = self.lock();
        numbers.state = RolloverState::Waiting;
        detail.clone_into(&mut numbers.detail);
    }

    /// A pass came to its end; returns whether nothing is left.
    pub(super) fn ends(&self, left: OldCounts) -> bool {
        self.counted(left);
        let mut numbers = self.lock();
        let is_done = left.total() == 0;
        numbers.state = if is_done { RolloverState::Complete } else { RolloverState::Waiting };
        if !is_done {
            numbers.detail = format!("{} rows are left under an older root", left.total());
        }
        is_done
    }
}
