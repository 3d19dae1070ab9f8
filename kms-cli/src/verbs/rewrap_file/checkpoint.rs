//! The checkpoint of a run: how far input and output are done, and of which run that is (docs/formats.md).

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use super::tally::Tally;

/// What stands first in every checkpoint.
const KIND: &str = "kms-rewrap-file";
/// The one format there is.
const FORMAT: u32 = 1;
/// The longest checkpoint: all failures at their longest take a quarter of it.
pub(super) const MAX_CHECKPOINT_BYTES: usize = 1 << 20;

/// What a run was started with. Another one must not go on from its checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Arguments {
    /// The input, as an absolute path.
    pub(super) input: String,
    /// Name of the key.
    pub(super) key: String,
    /// SHA-256 of the canonical encryption context.
    pub(super) context_sha256: String,
    /// `lines`, `jsonl`, `csv`, `csv-without-header`.
    pub(super) format: String,
    /// Field or column.
    pub(super) place: String,
}

impl Arguments {
    /// Says what is not the same.
    pub(super) fn difference(&self, other: &Self) -> Option<&'static str> {
        [
            (self.input != other.input, "it reads another file"),
            (self.key != other.key, "it is for another key"),
            (self.context_sha256 != other.context_sha256, "its --bind is another"),
            (self.format != other.format, "its --format is another"),
            (self.place != other.place, "its --field or --column is another"),
        ]
        .into_iter()
        .find_map(|(differs, what)| differs.then_some(what))
    }
}

/// How far a run is. Invariant: the first `output_offset` bytes of the partial file are what the first `input_offset`
/// bytes of the input became, and both end at the same record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Checkpoint {
    kind: String,
    format: u32,
    /// The run.
    pub(super) arguments: Arguments,
    /// How many bytes of the input are done.
    pub(super) input_offset: u64,
    /// SHA-256 of them.
    pub(super) input_sha256: String,
    /// How many lines they have.
    pub(super) lines: u64,
    /// How many bytes of the output are written and synced.
    pub(super) output_offset: u64,
    /// SHA-256 of them.
    pub(super) output_sha256: String,
    /// True when all is done, and only the name of the output is left to give.
    pub(super) complete: bool,
    /// What was counted.
    pub(super) tally: Tally,
}

impl Checkpoint {
    /// Begins a run.
    pub(super) fn new(arguments: Arguments) -> Self {
        let nothing = sha256_of(b"");
        Self {
            kind: KIND.to_owned(),
            format: FORMAT,
            arguments,
            input_offset: 0,
            input_sha256: nothing.clone(),
            lines: 0,
            output_offset: 0,
            output_sha256: nothing,
            complete: false,
            tally: Tally::default(),
        }
    }

    /// Writes it.
    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self).ok()?;
        text.push(b'\n');
        Some(text)
    }

    /// Reads one.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > MAX_CHECKPOINT_BYTES {
            return Err("it is longer than 1 MiB".into());
        }
        let read: Self = serde_json::from_slice(bytes).map_err(|error| {
            format!("it is not understood at line {}, column {}", error.line(), error.column())
        })?;
        if read.kind != KIND || read.format != FORMAT {
            return Err("its kind or format is another".into());
        }
        Ok(read)
    }
}

/// Returns the SHA-256 of some bytes, in hexadecimal.
pub(super) fn sha256_of(bytes: &[u8]) -> String {
    HEXLOWER.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref())
}

/// Returns what a digest says of all that it was given so far, in hexadecimal.
pub(super) fn so_far(digest: &aws_lc_rs::digest::Context) -> String {
    HEXLOWER.encode(digest.clone().finish().as_ref())
}

#[cfg(test)]
mod tests {
    use super::super::fault::Fault;
    use super::*;

    fn sample() -> Checkpoint {
        let arguments = Arguments {
            input: "/data/secrets.csv".into(),
            key: "tenants/t1/keys/k".into(),
            context_sha256: sha256_of(&[0; 4]),
            format: "csv".into(),
            place: "secret".into(),
        };
        let mut checkpoint = Checkpoint::new(arguments);
        checkpoint.input_offset = 1_000;
        checkpoint.output_offset = 1_001;
        checkpoint.lines = 12;
        let tally = &mut checkpoint.tally;
        (tally.items, tally.rewrapped, tally.current, tally.blank) = (11, 8, 2, 1);
        tally.fail(7, &Fault::NotText);
        checkpoint
    }

    #[test]
    fn the_format_of_a_checkpoint_is_pinned() {
        let text = String::from_utf8(sample().encode().unwrap()).unwrap();
        assert_eq!(text, include_str!("../../../tests/golden/rewrap_checkpoint.json"));
        assert_eq!(Checkpoint::decode(text.as_bytes()).unwrap(), sample());
    }

    #[test]
    fn what_is_no_checkpoint_of_this_release_is_refused() {
        let text = String::from_utf8(sample().encode().unwrap()).unwrap();
        for (from, to) in [
            ("\"format\": 1", "\"format\": 2"),
            (KIND, "other"),
            ("\"lines\"", "\"rows\""),
            ("{", ""),
        ] {
            let changed = text.replacen(from, to, 1);
            assert!(Checkpoint::decode(changed.as_bytes()).is_err(), "{to}");
        }
    }

    #[test]
    fn a_checkpoint_of_1_mib_is_read_and_one_byte_more_refused() {
        let mut text = sample().encode().unwrap();
        text.resize(MAX_CHECKPOINT_BYTES, b' ');
        assert!(Checkpoint::decode(&text).is_ok());
        text.push(b' ');
        assert!(Checkpoint::decode(&text).is_err());
    }

    #[test]
    fn each_argument_that_differs_is_named() {
        let arguments = sample().arguments;
        assert_eq!(arguments.difference(&arguments), None);
        let other = |change: fn(&mut Arguments)| {
            let mut other = arguments.clone();
            change(&mut other);
            arguments.difference(&other)
        };
        assert_eq!(other(|a| a.input.push('x')), Some("it reads another file"));
        assert_eq!(other(|a| a.key.push('x')), Some("it is for another key"));
        assert_eq!(other(|a| a.context_sha256.push('x')), Some("its --bind is another"));
        assert_eq!(other(|a| a.format.push('x')), Some("its --format is another"));
        assert_eq!(other(|a| a.place.push('x')), Some("its --field or --column is another"));
    }
}
