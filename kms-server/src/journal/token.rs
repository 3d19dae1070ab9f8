//! What the token does for the journal: MACs, and the mark that says how far it goes. Blocks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kms_core::clock::Clock;
use kms_core::id::RootGeneration;
use kms_core::journal::JournalMark;
use kms_core::key::RowMac;
use kms_core::secret::equal_in_constant_time;
use kms_hsm::{Hsm, HsmError, Mark};

/// How long one call may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The token of a journal.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) hsm: Arc<dyn Hsm>,
    pub(super) clock: Arc<dyn Clock>,
    /// Our marks in the token.
    marks: Vec<Mark>,
}

impl Token {
    pub(super) const fn new(hsm: Arc<dyn Hsm>, clock: Arc<dyn Clock>) -> Self {
        Self { hsm, clock, marks: Vec::new() }
    }

    fn deadline(&self) -> Instant {
        self.clock.monotonic() + TIMEOUT
    }

    pub(super) fn mac(
        &self,
        generation: RootGeneration,
        input: Vec<u8>,
    ) -> Result<RowMac, HsmError> {
        let macs = self.hsm.mac(generation, vec![input], self.deadline()).wait()?;
        macs.into_iter().next().ok_or(HsmError::Bug { reason: "the hsm gave no MAC" })
    }

    /// Returns whether a MAC is right; one under a root that is not open is not.
    pub(super) fn verifies(
        &self,
        generation: RootGeneration,
        input: Vec<u8>,
        mac: &RowMac,
        open: &std::ops::RangeInclusive<RootGeneration>,
    ) -> Result<bool, HsmError> {
        if !open.contains(&generation) {
            return Ok(false);
        }
        Ok(equal_in_constant_time(&self.mac(generation, input)?.0, &mac.0))
    }

    /// Reads how far the journal goes. Marks without our MAC are another system's: they neither count nor are touched.
    pub(super) fn read(
        &mut self,
        open: &std::ops::RangeInclusive<RootGeneration>,
    ) -> Result<Option<JournalMark>, HsmError> {
        let mut highest: Option<JournalMark> = None;
        self.marks.clear();
        for mark in self.hsm.marks(self.deadline()).wait()? {
            let Some((read, mac)) = JournalMark::decode(&mark.0) else { continue };
            if !self.verifies(read.generation, read.mac_input(), &mac, open)? {
                continue;
            }
            self.marks.push(mark);
            if highest.is_none_or(|known| known.number <= read.number) {
                highest = Some(read);
            }
        }
        Ok(highest)
    }

    /// Puts a mark in the place of those before it.
    pub(super) fn put(&mut self, mark: &JournalMark) -> Result<(), HsmError> {
        let mac = self.mac(mark.generation, mark.mac_input())?;
        let new = Mark(mark.to_bytes(&mac));
        let replaced: Vec<Mark> = self.marks.iter().filter(|old| **old != new).cloned().collect();
        // Known from now on: whatever the token answers, it may be there.
        if !self.marks.contains(&new) {
            self.marks.push(new.clone());
        }
        self.hsm.put_mark(new.clone(), replaced, self.deadline()).wait()?;
        self.marks = vec![new];
        Ok(())
    }
}
