//! A stretch of the file: its bytes, the ciphertexts in it, and what stands in their place afterwards.
//!
//! Invariant: the output of a stretch is its input with the places of rewrapped ciphertexts replaced, and nothing else
//! (`only_the_rewrapped_places_change`).

use std::io::BufRead;

use bytes::Bytes;
use kms_core::context::EncryptionContext;
use kms_core::envelope::{self, Envelope};
use kms_core::name::KeyName;

use super::error::RunError;
use super::record::{Ciphertext, Found, Records};
use super::tally::Tally;
use crate::client::batch::Outcome;
use crate::client::{ClientError, Rewrapped};
use crate::error::CliError;

/// How much a request or its answer may take before no item is added: one more item still fits the message of 4 MiB.
const MAX_MESSAGE_COST: usize = 3 << 20;
/// How many bytes of the file are held for one call before no record is added.
pub(super) const MAX_STRETCH_BYTES: usize = 4 << 20;
/// What the server reckons for an item that it may have to refuse.
const REFUSED_ITEM_BYTES: usize = 1_024;
/// What an answer has beside the ciphertext: two names of versions at their longest, tags, lengths and status.
const ANSWER_BYTES: usize = 2 * 160 + 64;
/// What a pair of the context, or an item, has beside its texts: tags and lengths.
const FRAME_BYTES: usize = 16;

/// How large a call may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The most items.
    items: usize,
    /// What key and context take in each item of a request.
    item_bytes: usize,
}

impl Limits {
    /// Reckons what each item takes.
    pub(super) fn new(items: u16, key: &KeyName, context: &EncryptionContext) -> Self {
        let pairs = context.iter().map(|(key, value)| key.len() + value.len() + FRAME_BYTES);
        let item_bytes = key.to_string().len() + pairs.sum::<usize>() + 2 * FRAME_BYTES;
        Self { items: items.into(), item_bytes }
    }

    fn cost(self, envelope: &[u8]) -> usize {
        let answer = (envelope.len() + ANSWER_BYTES).max(REFUSED_ITEM_BYTES);
        (envelope.len() + self.item_bytes).max(answer)
    }
}

/// A ciphertext to send.
#[derive(Debug)]
struct Item {
    line: u64,
    ciphertext: Ciphertext,
}

/// A stretch of the file.
#[derive(Debug, Default)]
pub(super) struct Batch {
    input: Vec<u8>,
    /// How many bytes and lines of the file end with it.
    end: (u64, u64),
    items: Vec<Item>,
    /// What is known of it before the call.
    tally: Tally,
}

/// What a stretch became.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Done {
    /// Its bytes before.
    pub(super) input: Vec<u8>,
    /// How many bytes and lines of the file end with it.
    pub(super) end: (u64, u64),
    /// Its bytes now.
    pub(super) output: Vec<u8>,
    /// What was counted.
    pub(super) tally: Tally,
}

impl Batch {
    /// Reads the next stretch; `None` at the end of the file.
    ///
    /// # Errors
    /// Those of [`Records::next`], and [`RunError::Item`] unless `keep_going`.
    pub(super) fn read<R: BufRead>(
        records: &mut Records<R>,
        limits: Limits,
        keep_going: bool,
    ) -> Result<Option<Self>, RunError> {
        let (mut batch, mut cost) = (Self::default(), 0);
        while batch.items.len() < limits.items
            && cost < MAX_MESSAGE_COST
            && batch.input.len() < MAX_STRETCH_BYTES
        {
            let Some(record) = records.next(&mut batch.input)? else { break };
            let line = record.line;
            match record.found {
                Ok(Found::ColumnNames) => continue,
                Ok(Found::Blank) => {
                    batch.tally.blank += 1;
                    continue;
                }
                Ok(Found::Ciphertext(ciphertext)) => {
                    cost += limits.cost(&ciphertext.envelope);
                    batch.items.push(Item { line, ciphertext });
                }
                Err(fault) if keep_going => batch.tally.fail(line, &fault),
                Err(fault) => return Err(RunError::Item { line, fault }),
            }
            batch.tally.items += 1;
        }
        batch.end = records.position();
        Ok((!batch.input.is_empty()).then_some(batch))
    }

    /// Returns the envelopes to send, in order.
    pub(super) fn envelopes(&self) -> Vec<Bytes> {
        self.items.iter().map(|item| item.ciphertext.envelope.clone()).collect()
    }

    /// Puts the outcomes in their places.
    ///
    /// # Errors
    /// [`RunError::Item`] for what is not of one item alone, and for everything unless `keep_going`.
    pub(super) fn finish(self, outcomes: Vec<Outcome>, keep_going: bool) -> Result<Done, RunError> {
        let Self { input, end, items, mut tally } = self;
        let mut output = Vec::with_capacity(input.len() + input.len() / 8);
        let mut copied = 0;
        for (Item { line, ciphertext }, outcome) in items.into_iter().zip(outcomes) {
            let rewrapped = match outcome {
                Ok(rewrapped) => rewrapped,
                Err(refusal) => {
                    let fault = super::fault::Fault::Refused(refusal);
                    if !keep_going || !fault.is_of_the_item() {
                        return Err(RunError::Item { line, fault });
                    }
                    tally.fail(line, &fault);
                    continue;
                }
            };
            if !rewrapped.changed {
                tally.current += 1;
                continue;
            }
            check(&ciphertext, &rewrapped)?;
            let place = ciphertext.place;
            output.extend_from_slice(input.get(copied..place.start).unwrap_or_default());
            let quote: &[u8] = if ciphertext.in_json { b"\"" } else { b"" };
            output.extend_from_slice(quote);
            output.extend_from_slice(envelope::to_text(&rewrapped.ciphertext).as_bytes());
            output.extend_from_slice(quote);
            copied = place.end;
            tally.rewrapped += 1;
        }
        output.extend_from_slice(input.get(copied..).unwrap_or_default());
        Ok(Done { input, end, output, tally })
    }
}

/// The old ciphertext is given up for the new one, so that it must at least be one of the same key and length.
fn check(old: &Ciphertext, new: &Rewrapped) -> Result<(), RunError> {
    let told = Envelope::decode(&new.ciphertext).ok().map(|envelope| envelope.header);
    let good = told.is_some_and(|header| {
        header.key_uid == old.header.key_uid
            && header.version == new.key_version.version()
            && header.version != old.header.version
            && new.ciphertext.len() == old.envelope.len()
    });
    if good {
        return Ok(());
    }
    let error = ClientError::Answer("a new ciphertext is not one of the same key and length");
    Err(CliError::Client(error).into())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use kms_core::envelope::{Header, IV_BYTES, Suite};
    use kms_core::id::{KeyUid, KeyVersion};
    use kms_core::name::VersionName;
    use proptest::prelude::*;

    use super::super::jsonl::FieldPath;
    use super::super::layout::Layout;
    use super::*;

    fn key() -> KeyName {
        "tenants/t/keys/k".parse().unwrap()
    }

    fn limits(items: u16) -> Limits {
        Limits::new(items, &key(), &EncryptionContext::from_caller([]).unwrap())
    }

    fn version(number: u32) -> KeyVersion {
        KeyVersion::new(number).unwrap()
    }

    fn envelope(number: u32, length: usize) -> Vec<u8> {
        let key_uid = KeyUid::from_bytes([9; 16]);
        let header = Header { suite: Suite::Aes256Gcm, key_uid, version: version(number) };
        header.seal(&[3; IV_BYTES], &vec![5; length + envelope::TAG_BYTES])
    }

    /// What a server would say: everything goes to version 2.
    fn answer(old: &Bytes) -> Rewrapped {
        let number = Envelope::decode(old).unwrap().header.version;
        let ciphertext = envelope(2, old.len() - envelope::OVERHEAD_BYTES);
        let name = |version| VersionName::new(key(), version);
        Rewrapped {
            ciphertext,
            key_version: name(version(2)),
            previous_key_version: name(number),
            changed: number != version(2),
        }
    }

    /// Rewraps a text in stretches of `items` items; returns the output and what was counted.
    fn rewrapped(text: &str, layout: &Layout, items: u16) -> (String, Tally) {
        let mut records = Records::new(text.as_bytes(), Path::new("f"), layout);
        let (mut output, mut tally, mut end) = (Vec::new(), Tally::default(), 0);
        while let Some(batch) = Batch::read(&mut records, limits(items), true).unwrap() {
            end += batch.input.len() as u64;
            assert_eq!(batch.end.0, end);
            let envelopes = batch.envelopes();
            assert!(envelopes.len() <= usize::from(items));
            let done =
                batch.finish(envelopes.iter().map(|old| Ok(answer(old))).collect(), true).unwrap();
            output.extend_from_slice(&done.output);
            tally.add(done.tally);
        }
        assert_eq!(end, text.len() as u64);
        (String::from_utf8(output).unwrap(), tally)
    }

    /// Something around, or instead of, a ciphertext, with its line end.
    #[derive(Clone, Debug)]
    enum Line {
        Item(u32, usize),
        Other(String),
    }

    fn lines() -> impl Strategy<Value = Vec<(Line, bool)>> {
        let item = (1..4_u32, 1..40_usize).prop_map(|(number, length)| Line::Item(number, length));
        let other = "[ -~é]{0,20}".prop_map(Line::Other);
        proptest::collection::vec((prop_oneof![item, other], any::<bool>()), 0..40)
    }

    fn file(lines: &[(Line, bool)], write: impl Fn(&str) -> String, current: bool) -> String {
        let mut text = String::new();
        for (line, carriage_return) in lines {
            match line {
                Line::Item(number, length) => {
                    let number = if current { 2 } else { *number };
                    text.push_str(&write(&envelope::to_text(&envelope(number, *length))));
                }
                Line::Other(other) => text.push_str(other),
            }
            text.push_str(if *carriage_return { "\r\n" } else { "\n" });
        }
        text
    }

    /// Writes a ciphertext into a line.
    type Write<'w> = &'w dyn Fn(&str) -> String;

    proptest! {
        #[test]
        fn only_the_rewrapped_places_change(lines in lines(), items in 1..6_u16) {
            let path = FieldPath::parse("o.s").unwrap();
            let in_json = |text: &str| format!("{{ \"a\":[1,\"x\"], \"o\" :{{\"s\":\"{text}\"}}}}");
            let csv = Layout::Csv { column: "2".into(), header: false };
            let cases: [(Layout, Write<'_>); 3] = [
                (Layout::Lines, &|text| format!(" {text}\t")),
                (Layout::JsonLines(path), &in_json),
                (csv, &|text| format!("\"a\r\n,\"\"\",\"{text}\",")),
            ];
            for (layout, write) in cases {
                // Quotes would be broken quoting there, which is refused as a whole.
                let unquoted = |(line, end): &(Line, bool)| match line {
                    Line::Other(other) => (Line::Other(other.replace('"', "'")), *end),
                    item @ Line::Item(..) => (item.clone(), *end),
                };
                let lines: Vec<_> = lines.iter().map(unquoted).collect();
                let (output, tally) = rewrapped(&file(&lines, write, false), &layout, items);
                prop_assert_eq!(output, file(&lines, write, true));
                prop_assert_eq!(tally.items, tally.rewrapped + tally.current + tally.failed);
            }
        }
    }

    #[test]
    fn a_new_ciphertext_of_another_key_version_or_length_is_not_taken() {
        let changes: [fn(&mut Rewrapped); 4] = [
            |new| new.ciphertext = envelope(1, 5),
            |new| new.ciphertext = envelope(2, 6),
            |new| new.ciphertext[4] ^= 1,
            |new| new.ciphertext.clear(),
        ];
        let text = envelope::to_text(&envelope(1, 5));
        for change in changes {
            let mut records = Records::new(text.as_bytes(), Path::new("f"), &Layout::Lines);
            let batch = Batch::read(&mut records, limits(1), true).unwrap().unwrap();
            let mut new = answer(&batch.envelopes()[0]);
            change(&mut new);
            assert!(matches!(batch.finish(vec![Ok(new)], true), Err(RunError::Other(_))));
        }
    }

    #[test]
    fn a_stretch_of_lines_without_items_is_bounded() {
        let text = "\n".repeat(MAX_STRETCH_BYTES + 1);
        let mut records = Records::new(text.as_bytes(), Path::new("f"), &Layout::Lines);
        let mut next = || Batch::read(&mut records, limits(1), true).unwrap();
        let lengths = [next(), next()].map(|batch| batch.unwrap().input.len());
        assert_eq!((lengths, next().is_none()), ([MAX_STRETCH_BYTES, 1], true));
    }
}
