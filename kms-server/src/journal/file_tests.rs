//! The journal on a software token: what it refuses, what a crash leaves of it, and gaps.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kms_core::clock::{Clock as _, ManualClock, Timestamp};
use kms_core::id::{KeyUid, KeyVersion, RootGeneration};
use kms_core::journal::Subject;
use kms_core::name::TenantName;
use kms_hsm::{Hsm, Mark};
use kms_hsm_soft::{SoftDevice, SoftToken};

use super::*;

const ONE: RootGeneration = RootGeneration::FIRST;
const HEADER_BYTES: u64 = kms_core::journal::HEADER.len() as u64;

/// A token and a file.
struct World {
    directory: tempfile::TempDir,
    hsm: Arc<dyn Hsm>,
    clock: Arc<ManualClock>,
}

impl World {
    fn new() -> Self {
        let clock = Arc::new(ManualClock::new(Timestamp::from_unix_ms(1_700_000_000_000)));
        let directory = tempfile::tempdir().unwrap();
        let hsm: Arc<dyn Hsm> = Arc::new(SoftToken::new(SoftDevice::new("soft-1"), clock.clone()));
        let world = Self { directory, hsm, clock };
        world.make_root(ONE);
        world
    }

    fn make_root(&self, generation: RootGeneration) {
        let deadline = self.clock.monotonic() + Duration::from_secs(10);
        let pin = self.hsm.create_root(generation, deadline).wait().unwrap();
        self.hsm.open_roots(vec![pin], deadline).wait().unwrap();
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("journal")
    }

    fn opening(&self) -> Opening {
        Opening {
            path: self.path(),
            hsm: Arc::clone(&self.hsm),
            clock: self.clock.clone(),
            generations: ONE..=ONE,
            accept: None,
            covered: None,
        }
    }

    fn open(&self) -> FileJournal {
        FileJournal::open(self.opening()).unwrap()
    }

    /// Opens it, writes so many entries, and closes it.
    fn write(&self, count: u32) {
        let journal = self.open();
        for number in 1..=count {
            append(&journal, number).unwrap().settle();
        }
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.path()).unwrap()
    }

    fn put(&self, bytes: &[u8]) {
        std::fs::write(self.path(), bytes).unwrap();
    }

    fn marks(&self) -> Vec<Mark> {
        self.hsm.marks(self.clock.monotonic() + Duration::from_secs(10)).wait().unwrap()
    }

    fn entries(&self) -> Vec<(u64, Event)> {
        let mut entries = Vec::new();
        read_entries(&self.path(), |entry| entries.push((entry.number, entry.event.clone())))
            .unwrap();
        entries
    }

    /// Where entries end: the header's end first.
    fn ends(&self) -> Vec<usize> {
        let bytes = self.bytes();
        let mut ends = vec![usize::try_from(HEADER_BYTES).unwrap()];
        while let Some(prefix) =
            bytes.get(ends[ends.len() - 1]..).and_then(|rest| rest.first_chunk())
        {
            ends.push(ends[ends.len() - 1] + usize::from(u16::from_be_bytes(*prefix)));
        }
        ends
    }
}

fn event(version: u32) -> Event {
    Event::VersionCompromised(Subject {
        tenant: TenantName::from_id("t").unwrap(),
        key_uid: KeyUid::from_random([1; 16]),
        version: KeyVersion::new(version).unwrap(),
    })
}

fn append(journal: &FileJournal, version: u32) -> Result<Held, JournalError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(journal.append(None, event(version)))
}

fn gap(text: &str) -> Gap {
    text.parse().unwrap()
}

#[test]
fn entries_are_there_after_a_restart_and_the_token_has_one_mark() {
    let world = World::new();
    assert_eq!(world.open().progress().last(), 0);
    assert_eq!(world.marks(), [], "nothing to cover");
    world.write(3);
    let journal = world.open();
    assert_eq!((journal.progress().last(), journal.fence(), journal.healthy()), (3, None, true));
    assert_eq!(
        world.entries(),
        (1..=3).map(|number| (number.into(), event(number))).collect::<Vec<_>>()
    );
    assert_eq!(world.marks().len(), 1);
    assert_eq!(append(&journal, 4).unwrap().number(), 4);
}

#[test]
fn a_journal_that_lacks_what_the_token_knows_is_refused_and_says_what() {
    let world = World::new();
    world.write(3);
    let (whole, ends) = (world.bytes(), world.ends());
    for (kept, missing) in [(0, "1-3"), (1, "2-3"), (2, "3-3")] {
        world.put(&whole[..ends[kept]]);
        let refused = FileJournal::open(world.opening());
        assert!(
            matches!(refused, Err(JournalStartError::Missing { gap: found, .. }) if found == gap(missing)),
            "{kept}: {refused:?}"
        );
        assert_eq!(world.bytes(), whole[..ends[kept]], "nothing is changed");
    }
    std::fs::remove_file(world.path()).unwrap();
    let refused = FileJournal::open(world.opening());
    assert!(
        matches!(refused, Err(JournalStartError::Missing { gap: found, .. }) if found == gap("1-3"))
    );
    assert!(!world.path().exists(), "none is begun");
    world.put(&whole);
    assert_eq!(world.open().progress().last(), 3);
}

#[test]
fn what_the_token_has_marked_cannot_be_edited_anywhere() {
    let world = World::new();
    world.write(2);
    let whole = world.bytes();
    for place in 0..whole.len() {
        let mut edited = whole.clone();
        edited[place] ^= 1;
        world.put(&edited);
        let refused = FileJournal::open(world.opening());
        assert!(
            matches!(
                refused,
                Err(JournalStartError::Damaged { .. } | JournalStartError::Missing { .. })
            ),
            "byte {place}: {refused:?}"
        );
    }
}

#[test]
fn another_tokens_journal_is_refused() {
    let (world, other) = (World::new(), World::new());
    world.write(2);
    other.write(2);
    world.put(&other.bytes());
    assert!(matches!(FileJournal::open(world.opening()), Err(JournalStartError::Damaged { .. })));
    // One whose entries go on where ours end.
    let _ = std::fs::remove_file(world.path());
    let fresh = World::new();
    fresh.put(&other.bytes());
    assert!(matches!(FileJournal::open(fresh.opening()), Err(JournalStartError::Damaged { .. })));
}

#[test]
fn a_torn_end_is_cut_only_where_the_token_does_not_cover_it() {
    let world = World::new();
    world.write(2);
    let marked = world.marks();
    world.write(1);
    let (whole, ends) = (world.bytes(), world.ends());
    // As if the machine had died before the third was marked.
    let deadline = world.clock.monotonic() + Duration::from_secs(10);
    let third = world.marks();
    world.hsm.put_mark(marked[0].clone(), third, deadline).wait().unwrap();
    for end in ends[2] + 1..ends[3] {
        world.put(&whole[..end]);
        let journal = world.open();
        assert_eq!(journal.progress().last(), 2, "{end}");
        drop(journal);
        assert_eq!(world.bytes(), whole[..ends[2]]);
    }
    // Zeros where its last sector was.
    let zeros = [&whole[..ends[3] - 20], &[0; 20][..]].concat();
    world.put(&zeros);
    assert_eq!(world.open().progress().last(), 2);
    // More than one entry is no torn end.
    world.put(&[&whole[..ends[2]], &[0; 200][..]].concat());
    assert!(matches!(FileJournal::open(world.opening()), Err(JournalStartError::Damaged { .. })));
    // The whole entry is kept, and marked.
    world.put(&whole);
    assert_eq!(world.open().progress().last(), 3);
    world.put(&whole[..ends[2]]);
    assert!(matches!(FileJournal::open(world.opening()), Err(JournalStartError::Missing { .. })));
}

#[test]
fn a_gap_is_accepted_by_its_numbers_only_and_fences_what_was_made_before() {
    let world = World::new();
    world.write(3);
    let (whole, ends) = (world.bytes(), world.ends());
    world.put(&whole[..ends[1]]);
    let accepting = |text| Opening { accept: Some(gap(text)), ..world.opening() };
    for other in ["1-3", "2-2", "2-4", "3-3"] {
        let refused = FileJournal::open(accepting(other));
        assert!(matches!(refused, Err(JournalStartError::OtherGap { .. })), "{other}: {refused:?}");
    }
    let journal = FileJournal::open(accepting("2-3")).unwrap();
    assert_eq!((journal.progress().last(), journal.fence()), (4, Some(world.clock.now())));
    drop(journal);
    world.clock.advance(Duration::from_secs(1));
    // It stays, and is not asked for again.
    let journal = world.open();
    assert_eq!(
        journal.fence().map(|fence| fence.after(Duration::from_secs(1))),
        Some(world.clock.now())
    );
    assert_eq!(append(&journal, 9).unwrap().number(), 5);
    drop(journal);
    assert_eq!(world.entries()[1], (4, Event::GapAccepted { from: 2 }));
    assert_eq!(FileJournal::open(accepting("2-3")).unwrap().progress().last(), 5, "not needed");
    // A file that is gone altogether.
    std::fs::remove_file(world.path()).unwrap();
    assert_eq!(FileJournal::open(accepting("1-5")).unwrap().progress().last(), 6);
    assert_eq!(world.entries(), [(6, Event::GapAccepted { from: 1 })]);
}

#[test]
fn a_backup_covers_what_it_has_and_an_older_gap_must_be_accepted_again() {
    let world = World::new();
    world.write(3);
    let (whole, ends) = (world.bytes(), world.ends());
    let restoring = |covered, accept: Option<&str>| Opening {
        covered: Some(covered),
        accept: accept.map(gap),
        ..world.opening()
    };
    world.put(&whole[..ends[1]]);
    let refused = FileJournal::open(restoring(2, None));
    assert!(
        matches!(refused, Err(JournalStartError::Missing { gap: found, .. }) if found == gap("2-3"))
    );
    let journal = FileJournal::open(restoring(3, None)).unwrap();
    assert_eq!((journal.progress().last(), journal.fence()), (4, None));
    drop(journal);
    assert_eq!(world.entries()[1], (4, Event::GapCovered { from: 2 }));
    assert_eq!(world.open().progress().last(), 4, "a start asks for nothing");
    // An older backup does not know of the lost ones.
    let refused = FileJournal::open(restoring(2, None));
    assert!(
        matches!(refused, Err(JournalStartError::Missing { gap: found, .. }) if found == gap("2-3"))
    );
    let journal = FileJournal::open(restoring(2, Some("2-3"))).unwrap();
    assert_eq!((journal.progress().last(), journal.fence()), (5, Some(world.clock.now())));
    drop(journal);
    assert_eq!(world.open().progress().last(), 5, "one that skips nothing reads back");
    assert!(FileJournal::open(restoring(3, None)).is_ok());
}

#[test]
fn a_newer_root_vouches_for_all_of_it_from_the_next_start_on() {
    let world = World::new();
    world.write(2);
    let two = RootGeneration::new(2).unwrap();
    world.make_root(two);
    let both = Opening { generations: ONE..=two, ..world.opening() };
    let journal = FileJournal::open(both.clone()).unwrap();
    assert_eq!(journal.progress().last(), 3);
    drop(journal);
    assert_eq!(world.entries()[2], (3, Event::RootAdvanced));
    assert_eq!(FileJournal::open(both).unwrap().progress().last(), 3, "once");
    let newer = Opening { generations: two..=two, ..world.opening() };
    assert_eq!(FileJournal::open(newer).unwrap().progress().last(), 3, "the older is not needed");
}

#[test]
fn nothing_is_acknowledged_that_the_token_does_not_cover() {
    let world = World::new();
    let journal = world.open();
    append(&journal, 1).unwrap().settle();
    world.hsm.close();
    assert!(matches!(append(&journal, 2), Err(JournalError::Hsm(_))));
    assert!(!journal.healthy());
    assert_eq!(journal.progress().last(), 1);
    journal.close();
    assert_eq!(append(&journal, 3).unwrap_err(), JournalError::Closed);
}

#[test]
fn marks_of_another_system_neither_count_nor_go() {
    let world = World::new();
    let deadline = world.clock.monotonic() + Duration::from_secs(10);
    let other = kms_core::journal::JournalMark {
        number: 99,
        generation: ONE,
        link: kms_core::journal::Link([7; 32]),
    };
    let other = Mark(other.to_bytes(&kms_core::key::RowMac([7; 32])));
    let odd = Mark(b"odd".to_vec());
    for mark in [&other, &odd] {
        world.hsm.put_mark(mark.clone(), Vec::new(), deadline).wait().unwrap();
    }
    world.write(2);
    let marks = world.marks();
    assert!(marks.contains(&other) && marks.contains(&odd));
    assert_eq!(marks.len(), 3);
}
