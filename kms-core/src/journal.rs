//! The state journal: what must not come back with an old database (docs/formats.md, "State journal").
//!
//! An entry has a MAC and is linked to all before it, so the last one vouches for the whole; its number and link stand in
//! the token as a mark, so that the file cannot be cut short unseen. Entries only ever move states forward.

use aws_lc_rs::digest::{Context, SHA256};

use crate::canonical::CanonicalWriter;
use crate::clock::Timestamp;
use crate::domain;
use crate::id::{IntentId, KeyUid, KeyVersion, RootGeneration};
use crate::key::RowMac;
use crate::name::TenantName;

/// The first bytes of a journal: magic, format 1, and zeros.
pub const HEADER: &[u8; 32] = b"holdfast state journal\0\0\0\0\0\0\0\0\0\x01";
/// The length of an entry without its tenant.
const FIXED_BYTES: usize = 2 + 8 + 8 + 1 + 4 + 16 + 16 + 4 + 8 + 1 + MAC_BYTES;
/// The shortest entry.
pub const MIN_ENTRY_BYTES: usize = FIXED_BYTES;
/// The longest entry: its tenant has 63 bytes.
pub const MAX_ENTRY_BYTES: usize = FIXED_BYTES + 63;
const MAC_BYTES: usize = 32;
/// The first byte of a mark.
const MARK_FORMAT: u8 = 1;
/// The length of a mark.
pub const MARK_BYTES: usize = 1 + 8 + 4 + 32 + MAC_BYTES;
/// The first count of invocations whose passing is told; below it a restored counter is raised to it.
pub const FIRST_COUNT: u64 = 1 << 20;

/// What all entries up to one come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link(pub [u8; 32]);

impl Link {
    /// Returns the link of a journal without entries.
    pub fn start() -> Self {
        Self(hash(&CanonicalWriter::new(domain::JOURNAL_LINK).bytes(HEADER).finish()))
    }

    /// Returns the link after one more entry.
    #[must_use]
    pub fn after(self, entry: &[u8]) -> Self {
        let input = CanonicalWriter::new(domain::JOURNAL_LINK).bytes(&self.0).bytes(entry);
        Self(hash(&input.finish()))
    }
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    context.update(bytes);
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The material of a version is about to go.
    VersionDestroyed(Subject),
    /// A version is marked COMPROMISED.
    VersionCompromised(Subject),
    /// A whole key is DESTROYED.
    KeyDestroyed {
        /// Whose it is.
        tenant: TenantName,
        /// Which.
        key_uid: KeyUid,
    },
    /// The invocations that are accounted of a version have reached a power of two.
    CountReached {
        /// Which version.
        subject: Subject,
        /// The power of two, from [`FIRST_COUNT`] up.
        count: u64,
    },
    /// What the entries of the same intent tell did not happen.
    Abandoned,
    /// The entries from this number up to this entry are lost, and an operator has accepted that.
    GapAccepted {
        /// The first that is lost.
        from: u64,
    },
    /// The entries from this number up to this entry are lost; the backup that was restored then has what they told.
    GapCovered {
        /// The first that is lost.
        from: u64,
    },
    /// From here on entries are sealed under a newer root.
    RootAdvanced,
}

/// A version of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Whose it is.
    pub tenant: TenantName,
    /// The key.
    pub key_uid: KeyUid,
    /// The version.
    pub version: KeyVersion,
}

/// One entry, without its MAC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// From 1, without gaps but those that a gap entry tells of.
    pub number: u64,
    /// When it was written.
    pub time: Timestamp,
    /// The root that seals it.
    pub generation: RootGeneration,
    /// The mutation that it belongs to; `None` for what is no mutation.
    pub intent: Option<IntentId>,
    /// What happened.
    pub event: Event,
}

/// Why bytes are no entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an entry of the state journal")]
pub struct InvalidEntry;

impl Event {
    const fn kind(&self) -> u8 {
        match self {
            Self::VersionDestroyed(_) => 1,
            Self::VersionCompromised(_) => 2,
            Self::KeyDestroyed { .. } => 3,
            Self::CountReached { .. } => 4,
            Self::Abandoned => 5,
            Self::GapAccepted { .. } => 6,
            Self::GapCovered { .. } => 7,
            Self::RootAdvanced => 8,
        }
    }

    /// Returns the first lost number, when it tells of a gap.
    pub const fn gap_from(&self) -> Option<u64> {
        match self {
            Self::GapAccepted { from } | Self::GapCovered { from } => Some(*from),
            _ => None,
        }
    }

    fn fields(&self) -> (&str, [u8; 16], u32, u64) {
        let of = |subject: &'_ Subject| (*subject.key_uid.as_bytes(), subject.version.get());
        match self {
            Self::VersionDestroyed(subject) | Self::VersionCompromised(subject) => {
                let (uid, version) = of(subject);
                (subject.tenant.id(), uid, version, 0)
            }
            Self::KeyDestroyed { tenant, key_uid } => (tenant.id(), *key_uid.as_bytes(), 0, 0),
            Self::CountReached { subject, count } => {
                let (uid, version) = of(subject);
                (subject.tenant.id(), uid, version, *count)
            }
            Self::GapAccepted { from } | Self::GapCovered { from } => ("", [0; 16], 0, *from),
            Self::Abandoned | Self::RootAdvanced => ("", [0; 16], 0, 0),
        }
    }
}

impl Entry {
    /// Writes the entry as it is stored, but for its MAC.
    pub fn to_bytes(&self) -> Vec<u8> {
        let Self { number, time, generation, intent, event } = self;
        let (tenant, uid, version, value) = event.fields();
        let length = FIXED_BYTES + tenant.len();
        let mut out = Vec::with_capacity(length);
        out.extend_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
        out.extend_from_slice(&number.to_be_bytes());
        out.extend_from_slice(&time.as_unix_ms().to_be_bytes());
        out.push(event.kind());
        out.extend_from_slice(&generation.get().to_be_bytes());
        out.extend_from_slice(&intent.map_or([0; 16], |intent| *intent.as_bytes()));
        out.extend_from_slice(&uid);
        out.extend_from_slice(&version.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
        out.push(u8::try_from(tenant.len()).unwrap_or(u8::MAX));
        out.extend_from_slice(tenant.as_bytes());
        out
    }

    /// Returns the bytes whose MAC ends the entry; `before` is the link of all entries before it.
    pub fn mac_input(&self, before: Link) -> Vec<u8> {
        let input = CanonicalWriter::new(domain::JOURNAL_ENTRY).bytes(&before.0);
        input.bytes(&self.to_bytes()).finish()
    }

    /// Reads one whole entry with its MAC; the MAC is not judged.
    ///
    /// # Errors
    /// [`InvalidEntry`] when a field is out of its bounds, or the same entry would be written otherwise.
    pub fn decode(bytes: &[u8]) -> Result<(Self, RowMac), InvalidEntry> {
        Self::read(bytes)
            .filter(|(entry, _)| bytes.starts_with(&entry.to_bytes()))
            .ok_or(InvalidEntry)
    }

    fn read(bytes: &[u8]) -> Option<(Self, RowMac)> {
        let mut fields = Fields(bytes);
        if usize::from(u16::from_be_bytes(fields.take()?)) != bytes.len() {
            return None;
        }
        let number = u64::from_be_bytes(fields.take()?);
        let time = Timestamp::from_unix_ms(i64::from_be_bytes(fields.take()?));
        let [kind] = fields.take()?;
        let generation = RootGeneration::new(u32::from_be_bytes(fields.take()?))?;
        let intent: [u8; 16] = fields.take()?;
        let key_uid = KeyUid::from_bytes(fields.take()?);
        let version = u32::from_be_bytes(fields.take()?);
        let value = u64::from_be_bytes(fields.take()?);
        let [length] = fields.take()?;
        let tenant = std::str::from_utf8(fields.take_some(length.into())?).ok()?;
        let mac = RowMac(fields.take()?);
        let tenant = || TenantName::from_id(tenant).ok();
        let subject =
            || Some(Subject { tenant: tenant()?, key_uid, version: KeyVersion::new(version)? });
        let event = match kind {
            1 => Event::VersionDestroyed(subject()?),
            2 => Event::VersionCompromised(subject()?),
            3 => Event::KeyDestroyed { tenant: tenant()?, key_uid },
            4 => Event::CountReached { subject: subject()?, count: value },
            5 => Event::Abandoned,
            6 => Event::GapAccepted { from: value },
            7 => Event::GapCovered { from: value },
            8 => Event::RootAdvanced,
            _ => return None,
        };
        let intent = (intent != [0; 16]).then(|| IntentId::from_bytes(intent));
        (fields.0.is_empty() && number > 0)
            .then_some((Self { number, time, generation, intent, event }, mac))
    }
}

struct Fields<'b>(&'b [u8]);

impl<'b> Fields<'b> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }

    fn take_some(&mut self, length: usize) -> Option<&'b [u8]> {
        let (first, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(first)
    }
}

/// How far the journal goes, as the token says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalMark {
    /// The number of the last entry.
    pub number: u64,
    /// The root that seals the mark.
    pub generation: RootGeneration,
    /// The link of all entries up to that.
    pub link: Link,
}

impl JournalMark {
    /// Returns the bytes whose MAC ends the mark.
    pub fn mac_input(&self) -> Vec<u8> {
        let Self { number, generation, link } = self;
        CanonicalWriter::new(domain::JOURNAL_MARK)
            .number(*number)
            .number(generation.get().into())
            .bytes(&link.0)
            .finish()
    }

    /// Writes the mark with its MAC.
    pub fn to_bytes(&self, mac: &RowMac) -> Vec<u8> {
        let mut out = Vec::with_capacity(MARK_BYTES);
        out.push(MARK_FORMAT);
        out.extend_from_slice(&self.number.to_be_bytes());
        out.extend_from_slice(&self.generation.get().to_be_bytes());
        out.extend_from_slice(&self.link.0);
        out.extend_from_slice(&mac.0);
        out
    }

    /// Reads a mark; its MAC is not judged. `None` when it is none of ours.
    pub fn decode(bytes: &[u8]) -> Option<(Self, RowMac)> {
        let mut fields = Fields(bytes);
        if fields.take()? != [MARK_FORMAT] {
            return None;
        }
        let number = u64::from_be_bytes(fields.take()?);
        let generation = RootGeneration::new(u32::from_be_bytes(fields.take()?))?;
        let link = Link(fields.take()?);
        let mac = RowMac(fields.take()?);
        fields.0.is_empty().then_some((Self { number, generation, link }, mac))
    }
}

/// Returns the power of two to tell of when the count of a version goes up, if it passes one.
pub fn reached(before: u64, after: u64) -> Option<u64> {
    let power = |count: u64| count.checked_ilog2().map(|log| 1_u64 << log);
    let reached = power(after)?;
    (reached >= FIRST_COUNT && power(before) < Some(reached)).then_some(reached)
}

/// Returns what a restored counter must be at least, when `known` is the highest that is known of it: the true one may have gone
/// on, as far as the next power of two, without an entry.
pub const fn at_least(known: u64) -> u64 {
    match known.checked_ilog2() {
        Some(log) if known >= FIRST_COUNT => 1_u64 << (log + 1),
        _ => FIRST_COUNT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject() -> Subject {
        Subject {
            tenant: TenantName::from_id("t1").unwrap(),
            key_uid: KeyUid::from_random([1; 16]),
            version: KeyVersion::new(7).unwrap(),
        }
    }

    fn entries() -> Vec<Entry> {
        let key = (subject().tenant, subject().key_uid);
        let events = [
            Event::VersionDestroyed(subject()),
            Event::VersionCompromised(subject()),
            Event::KeyDestroyed { tenant: key.0, key_uid: key.1 },
            Event::CountReached { subject: subject(), count: FIRST_COUNT },
            Event::Abandoned,
            Event::GapAccepted { from: 3 },
            Event::GapCovered { from: 4 },
            Event::RootAdvanced,
        ];
        let entry = |(number, event)| Entry {
            number,
            time: Timestamp::from_unix_ms(-5),
            generation: RootGeneration::FIRST,
            intent: number.is_multiple_of(2).then(|| IntentId::from_bytes([9; 16])),
            event,
        };
        (1..).zip(events).map(entry).collect()
    }

    fn with_mac(entry: &Entry) -> Vec<u8> {
        [entry.to_bytes(), vec![5; 32]].concat()
    }

    #[test]
    fn entries_read_back_and_no_edit_does() {
        for entry in entries() {
            let bytes = with_mac(&entry);
            assert!((MIN_ENTRY_BYTES..=MAX_ENTRY_BYTES).contains(&bytes.len()));
            assert_eq!(Entry::decode(&bytes), Ok((entry.clone(), RowMac([5; 32]))));
            for cut in 0..bytes.len() {
                assert_eq!(Entry::decode(&bytes[..cut]), Err(InvalidEntry), "{cut}");
            }
            for place in 0..entry.to_bytes().len() {
                let mut edited = bytes.clone();
                edited[place] ^= 1;
                let read = Entry::decode(&edited).map(|(read, _)| read);
                assert_ne!(read, Ok(entry.clone()), "byte {place} of {entry:?}");
            }
        }
    }

    #[test]
    fn every_entry_and_place_has_a_mac_input_of_its_own() {
        let mut inputs: Vec<_> =
            entries().iter().map(|entry| entry.mac_input(Link::start())).collect();
        inputs.extend(entries().iter().map(|entry| entry.mac_input(Link([1; 32]))));
        let count = inputs.len();
        inputs.sort();
        inputs.dedup();
        assert_eq!(inputs.len(), count);
    }

    #[test]
    fn a_link_depends_on_every_entry_and_their_order() {
        let [one, two] = [&entries()[0], &entries()[1]].map(with_mac);
        let start = Link::start();
        assert_ne!(start.after(&one).after(&two), start.after(&two).after(&one));
        assert_ne!(start.after(&one), start);
    }

    #[test]
    fn marks_read_back_and_others_are_none() {
        let mark =
            JournalMark { number: 9, generation: RootGeneration::FIRST, link: Link([2; 32]) };
        let bytes = mark.to_bytes(&RowMac([3; 32]));
        assert_eq!(bytes.len(), MARK_BYTES);
        assert_eq!(JournalMark::decode(&bytes), Some((mark, RowMac([3; 32]))));
        for other in [&bytes[1..], &[&bytes[..], &[0]].concat(), b"", b"another's"] {
            assert_eq!(JournalMark::decode(other), None);
        }
        let edits = [
            JournalMark { number: 8, ..mark },
            JournalMark { generation: RootGeneration::new(2).unwrap(), ..mark },
            JournalMark { link: Link([4; 32]), ..mark },
        ];
        for edit in edits {
            assert_ne!(edit.mac_input(), mark.mac_input());
        }
    }

    #[test]
    fn powers_of_two_from_2_to_the_20_are_told_once() {
        let first = FIRST_COUNT;
        assert_eq!(reached(0, first - 1), None);
        assert_eq!(reached(first - 1, first), Some(first));
        assert_eq!(reached(0, first + 5), Some(first));
        assert_eq!(reached(first, 2 * first - 1), None);
        assert_eq!(reached(first, 2 * first), Some(2 * first));
        assert_eq!(reached(first, 8 * first + 1), Some(8 * first));
        assert_eq!(reached(2 * first, first), None, "what is returned passes nothing");
    }

    #[test]
    fn what_is_restored_is_above_all_that_was_not_told() {
        let first = FIRST_COUNT;
        assert_eq!(at_least(0), first);
        assert_eq!(at_least(first - 1), first);
        assert_eq!(at_least(first), 2 * first);
        assert_eq!(at_least(4 * first - 1), 4 * first);
        assert_eq!(at_least(1 << 31), 1 << 32);
    }
}
