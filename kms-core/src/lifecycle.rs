//! What happens to a version after its creation: the moves between states, planned destruction, and the history row.
//!
//! Invariant: every move that [`Transition::leads`] allows is one that [`VersionState::can_become`] allows
//! (`tests/state_matrix.rs` checks move x state).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::id::{KeyUid, KeyVersion, Revision, RootGeneration};
use crate::key::row;
use crate::state::VersionState;

/// The shortest time between a destruction's scheduling and the destruction: time for those who still use it to notice.
pub const MIN_DESTRUCTION_WINDOW: Duration = Duration::from_hours(7 * 24);
/// The longest: what is not destroyed within a year is not meant.
pub const MAX_DESTRUCTION_WINDOW: Duration = Duration::from_hours(365 * 24);
/// The window when none is asked for.
pub const DEFAULT_DESTRUCTION_WINDOW: Duration = Duration::from_hours(30 * 24);
/// The furthest that the activation of a staged version may be planned ahead: what is staged for longer is not meant.
pub const MAX_ACTIVATION_DELAY: Duration = Duration::from_hours(3653 * 24);
/// The longest text of what changed about a key: all fields and labels, old and new, escaped.
pub const MAX_HISTORY_DETAIL_BYTES: usize = 256 << 10;

/// A move of a version from one state to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transition {
    /// Puts a staged version into use, as the primary.
    Activate,
    /// Gives a staged version up: it was never used, so its material goes at once.
    Discard,
    /// Takes it out of use for a while.
    Suspend,
    /// Puts a suspended one back.
    Resume,
    /// Ends protection; processing goes on.
    Deactivate,
    /// Says that its material is known to others.
    Compromise,
    /// Plans its destruction.
    ScheduleDestruction,
    /// Gives the plan up.
    CancelDestruction,
    /// Destroys its material.
    Destroy,
}

impl Transition {
    /// All moves.
    pub const ALL: [Self; 9] = [
        Self::Activate,
        Self::Discard,
        Self::Suspend,
        Self::Resume,
        Self::Deactivate,
        Self::Compromise,
        Self::ScheduleDestruction,
        Self::CancelDestruction,
        Self::Destroy,
    ];

    /// Returns where the move leads from a state, `None` when it may not be made. A cancelled destruction leads back to
    /// where the version came from.
    pub const fn leads(
        self,
        from: VersionState,
        destruction: Option<Destruction>,
    ) -> Option<VersionState> {
        use VersionState as S;
        match (self, from) {
            (Self::Activate, S::PreActivation) | (Self::Resume, S::Suspended) => Some(S::Active),
            (Self::Suspend, S::Active) => Some(S::Suspended),
            (Self::Deactivate, S::Active | S::Suspended) => Some(S::Deactivated),
            (Self::Compromise, S::PreActivation | S::Active | S::Suspended | S::Deactivated) => {
                Some(S::Compromised)
            }
            (Self::ScheduleDestruction, S::Deactivated | S::Compromised) => {
                Some(S::DestroyScheduled)
            }
            (Self::CancelDestruction, S::DestroyScheduled) => match destruction {
                Some(Destruction { returns_to, .. }) => Some(returns_to),
                None => None,
            },
            (Self::Discard, S::PreActivation) | (Self::Destroy, S::DestroyScheduled) => {
                Some(S::Destroyed)
            }
            (
                Self::Activate
                | Self::Discard
                | Self::Suspend
                | Self::Resume
                | Self::Deactivate
                | Self::Compromise
                | Self::ScheduleDestruction
                | Self::CancelDestruction
                | Self::Destroy,
                _,
            ) => None,
        }
    }

    /// Returns the state that the move is meant to lead to; for messages.
    pub const fn aims_at(self) -> VersionState {
        match self {
            Self::Suspend => VersionState::Suspended,
            Self::Activate | Self::Resume => VersionState::Active,
            Self::Deactivate | Self::CancelDestruction => VersionState::Deactivated,
            Self::Compromise => VersionState::Compromised,
            Self::ScheduleDestruction => VersionState::DestroyScheduled,
            Self::Discard | Self::Destroy => VersionState::Destroyed,
        }
    }
}

/// A planned destruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destruction {
    /// From when on the material may be destroyed.
    pub time: Timestamp,
    /// The state that cancelling leads back to.
    pub returns_to: VersionState,
    /// Whether it is made although consumers of the key are registered.
    pub despite_consumers: bool,
    /// Whether it is made although the version was wanted of late: of a key of HIGH sensitivity, later attempts do not hold it.
    pub despite_recent_use: bool,
}

/// The planned destruction of a whole key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyDestruction {
    /// From when on its versions may be destroyed.
    pub time: Timestamp,
    /// Whether it is made although consumers of the key are registered.
    pub despite_consumers: bool,
    /// Whether it is made although the key was wanted of late: of a key of HIGH sensitivity, later attempts do not hold it.
    pub despite_recent_use: bool,
    /// Whether versions are being destroyed: from then on there is no way back.
    pub begun: bool,
}

/// Rotation by period: each version gives way to a new one when it is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// How long a version is the primary, in whole seconds.
    pub period: Duration,
    /// When the present one gives way.
    pub due: Timestamp,
}

/// The most that a rotation comes early, so that keys that were made together are not all due together.
pub const MAX_ROTATION_JITTER: Duration = Duration::from_hours(24);

impl Rotation {
    /// Plans the end of a version that became the primary at `since`: early by up to a tenth of the period, and a day at
    /// most, never late. The same key and version give the same time.
    pub fn plan(period: Duration, since: Timestamp, key_uid: KeyUid, version: KeyVersion) -> Self {
        let most = (period / 10).min(MAX_ROTATION_JITTER).as_millis().max(1);
        let (first, second) = key_uid.as_bytes().split_at(8);
        let fold = |bytes: &[u8]| bytes.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        // The uid is random; the version is spread by a large odd number, so that a key's own rotations vary.
        let mixed = (fold(first) ^ fold(second))
            .wrapping_add(u64::from(version.get()).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let early = Duration::from_millis(u64::try_from(u128::from(mixed) % most).unwrap_or(0));
        Self { period, due: since.after(period.saturating_sub(early)) }
    }
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HistoryChange {
    /// The state of a version; from nothing when it was generated.
    State {
        /// Which version.
        version: KeyVersion,
        /// The state before.
        from: Option<VersionState>,
        /// The state after.
        to: VersionState,
    },
    /// What is said about the key: a JSON object of field to `[old, new]`.
    Fields {
        /// The object.
        detail: String,
    },
}

/// One entry of a key's history; written with the change, and never changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryRow {
    /// The key.
    pub key_uid: KeyUid,
    /// What changed.
    pub change: HistoryChange,
    /// The revision of the version's or key's row before; 0 when there was none.
    pub old_revision: Revision,
    /// The revision after.
    pub revision: Revision,
    /// When.
    pub time: Timestamp,
    /// Who.
    pub actor: String,
    /// Why, as was said; may be empty where a reason may be left out.
    pub reason: String,
}

impl HistoryRow {
    /// Returns the number of the version; 0 for an entry about the key.
    pub const fn version_number(&self) -> u32 {
        match &self.change {
            HistoryChange::State { version, .. } => version.get(),
            HistoryChange::Fields { .. } => 0,
        }
    }

    /// Returns the bytes whose MAC is stored beside the row.
    pub fn mac_input(&self, generation: RootGeneration) -> Vec<u8> {
        let Self { key_uid, change, old_revision, revision, time, actor, reason } = self;
        let primary_key = [&key_uid.as_bytes()[..], &self.version_number().to_be_bytes()].concat();
        let out = row("history", &primary_key, *revision, generation)
            .number(old_revision.get())
            .signed(time.as_unix_ms())
            .text(actor)
            .text(reason);
        match change {
            HistoryChange::State { version: _, from, to } => {
                out.text("state").text(from.map_or("", VersionState::as_str)).text(to.as_str())
            }
            HistoryChange::Fields { detail } => out.text("fields").text(detail),
        }
        .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_is_early_within_its_bounds_and_never_late() {
        let since = Timestamp::from_unix_ms(1_700_000_000_000);
        let version = |number| KeyVersion::new(number).unwrap_or(KeyVersion::FIRST);
        for period in [Duration::from_hours(1), Duration::from_hours(90 * 24)] {
            let earliest =
                since.after(period.saturating_sub((period / 10).min(MAX_ROTATION_JITTER)));
            let mut seen = std::collections::BTreeSet::new();
            for number in 0..=255_u8 {
                let uid = KeyUid::from_random([number; 16].map(|byte| byte.wrapping_mul(37)));
                let due = Rotation::plan(period, since, uid, version(u32::from(number) + 1)).due;
                assert!(due > earliest && due <= since.after(period), "{period:?} {number}");
                seen.insert(due);
            }
            assert!(seen.len() > 200, "spread: {}", seen.len());
        }
    }
}
