//! How a version was used: the row of counts and times, and what is added to it.
//!
//! Counts are evidence for retiring a version, not for limits: those are leased before use (`CounterRow`).

use crate::clock::Timestamp;
use crate::id::{KeyUid, KeyVersion, Revision, RootGeneration};
use crate::key::row;

/// A count, and when it first and last grew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How often.
    pub count: u64,
    /// The first and the last time; nothing while the count is 0.
    pub span: Option<(Timestamp, Timestamp)>,
}

impl Tally {
    /// Adds what was counted elsewhere.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let span = match (self.span, other.span) {
            (Some((a, b)), Some((c, d))) => Some((a.min(c), b.max(d))),
            (one, other) => one.or(other),
        };
        Self { count: self.count.saturating_add(other.count), span }
    }

    /// Returns the last time.
    pub fn last(&self) -> Option<Timestamp> {
        self.span.map(|(_, last)| last)
    }
}

/// What a version was used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uses {
    /// Wraps, data keys, and rewraps to it.
    pub protect: Tally,
    /// Unwraps.
    pub process: Tally,
    /// Rewraps from it to another version.
    pub rewrap: Tally,
    /// Attempts that were refused while its key was disabled or its destruction planned.
    pub refused: Tally,
}

impl Uses {
    /// Returns when somebody used it last, or was refused to while it was out of use on purpose.
    pub fn last_wanted(&self) -> Option<Timestamp> {
        self.last().max(self.refused.last())
    }

    /// Returns when it was used last, for whatever; what was refused is no use.
    pub fn last(&self) -> Option<Timestamp> {
        [self.protect, self.process, self.rewrap].iter().filter_map(Tally::last).max()
    }

    /// Adds what was counted elsewhere.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            protect: self.protect.and(other.protect),
            process: self.process.and(other.process),
            rewrap: self.rewrap.and(other.rewrap),
            refused: self.refused.and(other.refused),
        }
    }
}

/// The row of a version's uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageRow {
    /// The key.
    pub key_uid: KeyUid,
    /// The version number.
    pub version: KeyVersion,
    /// What it was used for.
    pub uses: Uses,
    /// Revision of this row.
    pub revision: Revision,
}

impl UsageRow {
    /// Returns the bytes whose MAC is stored beside the row.
    pub fn mac_input(&self, generation: RootGeneration) -> Vec<u8> {
        let Self { key_uid, version, uses, revision } = self;
        let Uses { protect, process, rewrap, refused } = uses;
        let primary_key = [&key_uid.as_bytes()[..], &version.get().to_be_bytes()].concat();
        let out = row("usage", &primary_key, *revision, generation);
        [protect, process, rewrap, refused]
            .into_iter()
            .fold(out, |out, tally| match tally.span {
                Some((first, last)) => {
                    out.number(tally.count).signed(first.as_unix_ms()).signed(last.as_unix_ms())
                }
                None => out.number(tally.count).bytes(&[]).bytes(&[]),
            })
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(count: u64, first: i64, last: i64) -> Tally {
        let span = Some((Timestamp::from_unix_ms(first), Timestamp::from_unix_ms(last)));
        Tally { count, span }
    }

    #[test]
    fn tallies_add_up_and_keep_the_widest_span() {
        assert_eq!(tally(1, 5, 7).and(tally(2, 3, 6)), tally(3, 3, 7));
        assert_eq!(tally(1, 5, 7).and(Tally::default()), tally(1, 5, 7));
        assert_eq!(Tally::default().and(tally(1, 5, 7)), tally(1, 5, 7));
        assert_eq!(Tally::default().and(Tally::default()).last(), None);
        assert_eq!(tally(u64::MAX, 0, 0).and(tally(1, 0, 0)).count, u64::MAX);
    }
}
