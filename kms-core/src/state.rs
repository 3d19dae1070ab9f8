//! The states of a key version after NIST SP 800-57 Part 1, and the one table of what each permits.
//!
//! Invariant: `permits` is total over state x operation and `can_become` over state x state;
//! `tests/state_matrix.rs` checks both cell by cell against the tables of docs/formats.md.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The state of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum VersionState {
    /// Generated, not yet in use.
    PreActivation,
    /// Protects (when primary) and processes.
    Active,
    /// Neither protects nor processes; can be resumed.
    Suspended,
    /// Processes only.
    Deactivated,
    /// Rewraps only, with permission; irreversible.
    Compromised,
    /// Does nothing; destruction can be cancelled.
    DestroyScheduled,
    /// The live key material is gone; a tombstone stays.
    Destroyed,
}

/// What is asked of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Use {
    /// Wrap, generate a data key, be the target of a rewrap.
    Protect,
    /// Unwrap.
    Process,
    /// Be the source of a rewrap.
    RewrapFrom,
    /// Describe.
    Describe,
}

/// What a state permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Permitted.
    Yes,
    /// Permitted to the primary, or to a pinned version with its own permission.
    PrimaryOrPinned,
    /// Permitted with a permission of its own (`unwrap_compromised`, `rewrap_compromised`), and an alert.
    WithPermission,
    /// Refused.
    No,
    /// Refused, and an alert is raised.
    NoWithAlert,
    /// Metadata only.
    Metadata,
}

impl VersionState {
    /// All states, in the order of the published table.
    pub const ALL: [Self; 7] = [
        Self::PreActivation,
        Self::Active,
        Self::Suspended,
        Self::Deactivated,
        Self::Compromised,
        Self::DestroyScheduled,
        Self::Destroyed,
    ];

    /// Returns what this state permits: the whole matrix of design section 3.
    pub const fn permits(self, operation: Use) -> Verdict {
        use VersionState as S;
        match operation {
            Use::Protect => match self {
                S::Active => Verdict::PrimaryOrPinned,
                S::PreActivation
                | S::Suspended
                | S::Deactivated
                | S::Compromised
                | S::DestroyScheduled
                | S::Destroyed => Verdict::No,
            },
            Use::Process => match self {
                S::Active | S::Deactivated => Verdict::Yes,
                S::Compromised => Verdict::WithPermission,
                S::DestroyScheduled => Verdict::NoWithAlert,
                S::PreActivation | S::Suspended | S::Destroyed => Verdict::No,
            },
            Use::RewrapFrom => match self {
                S::Active | S::Deactivated => Verdict::Yes,
                S::Compromised => Verdict::WithPermission,
                S::PreActivation | S::Suspended | S::DestroyScheduled | S::Destroyed => Verdict::No,
            },
            Use::Describe => match self {
                S::Destroyed => Verdict::Metadata,
                S::PreActivation
                | S::Active
                | S::Suspended
                | S::Deactivated
                | S::Compromised
                | S::DestroyScheduled => Verdict::Yes,
            },
        }
    }

    /// Returns whether a version may go from this state to `next` in one step.
    ///
    /// There is no ACTIVE -> DESTROYED (stricter than SP 800-57); COMPROMISED never goes back to use; a cancelled
    /// destruction returns to the state it came from, which the caller must know (DEACTIVATED or COMPROMISED).
    pub const fn can_become(self, next: Self) -> bool {
        use VersionState as S;
        match (self, next) {
            (S::PreActivation, S::Active | S::Compromised | S::Destroyed)
            | (S::Active, S::Suspended | S::Deactivated | S::Compromised)
            | (S::Suspended, S::Active | S::Deactivated | S::Compromised)
            | (S::Deactivated, S::Compromised | S::DestroyScheduled)
            | (S::Compromised, S::DestroyScheduled)
            | (S::DestroyScheduled, S::Deactivated | S::Compromised | S::Destroyed) => true,
            (
                S::PreActivation
                | S::Active
                | S::Suspended
                | S::Deactivated
                | S::Compromised
                | S::DestroyScheduled
                | S::Destroyed,
                _,
            ) => false,
        }
    }

    /// Returns the states that a version goes through when its whole key is destroyed, in order; each is one step of
    /// [`VersionState::can_become`]. Its key was disabled for the whole window.
    pub const fn to_destroyed(self) -> &'static [Self] {
        use VersionState as S;
        match self {
            S::PreActivation | S::DestroyScheduled => &[S::Destroyed],
            S::Active | S::Suspended => &[S::Deactivated, S::DestroyScheduled, S::Destroyed],
            S::Deactivated | S::Compromised => &[S::DestroyScheduled, S::Destroyed],
            S::Destroyed => &[],
        }
    }

    /// Returns the name used on the wire, in columns and in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PreActivation => "PRE_ACTIVATION",
            Self::Active => "ACTIVE",
            Self::Suspended => "SUSPENDED",
            Self::Deactivated => "DEACTIVATED",
            Self::Compromised => "COMPROMISED",
            Self::DestroyScheduled => "DESTROY_SCHEDULED",
            Self::Destroyed => "DESTROYED",
        }
    }

    /// Reads the name; `None` when it is not a state.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

impl fmt::Display for VersionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
