//! The side file of a reseal: both headers, on disk before the file itself is touched (docs/backup-format.md).
//!
//! Magic 8 | format 1 | header length u32 | file length u64 | payload nonce 16 | old header | new header | SHA-256 of all
//! before. The payload nonce is random for each file, so it tells whether the side file belongs to the file beside it.

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};

use super::header::MAX_HEADER_BYTES;

/// Starts every side file.
const MAGIC: &[u8; 8] = b"KMSRSEAL";
/// The one format there is.
const FORMAT: u8 = 1;
/// Length of the nonce that follows the header of an age file.
pub const PAYLOAD_NONCE_BYTES: usize = 16;
/// Length of everything before the headers.
const FIXED_BYTES: usize = 8 + 1 + 4 + 8 + PAYLOAD_NONCE_BYTES;
/// The longest side file.
pub const MAX_SIDE_BYTES: usize = FIXED_BYTES + 2 * MAX_HEADER_BYTES + SHA256_OUTPUT_LEN;

/// What a side file holds. Invariant: both headers have the same length (`decode` refuses anything else).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    /// Length of the whole backup in bytes.
    pub file_bytes: u64,
    /// The 16 bytes after the header, which no reseal changes.
    pub payload_nonce: [u8; PAYLOAD_NONCE_BYTES],
    /// The header as it was.
    pub old: Vec<u8>,
    /// The header as it shall be.
    pub new: Vec<u8>,
}

/// How the header on disk relates to the two of the side file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Still the old one: nothing was written.
    Untouched,
    /// Some bytes old, some new: the overwriting was torn.
    Torn,
    /// The new one: only tidying up is left.
    Written,
    /// Neither: this is not the file that the side file was made for.
    Foreign,
}

impl Side {
    /// Writes the side file.
    pub fn encode(&self) -> Vec<u8> {
        let header_bytes = u32::try_from(self.old.len()).unwrap_or(u32::MAX);
        let mut bytes = MAGIC.to_vec();
        bytes.push(FORMAT);
        bytes.extend_from_slice(&header_bytes.to_be_bytes());
        bytes.extend_from_slice(&self.file_bytes.to_be_bytes());
        bytes.extend_from_slice(&self.payload_nonce);
        bytes.extend_from_slice(&self.old);
        bytes.extend_from_slice(&self.new);
        let checksum = digest(&SHA256, &bytes);
        bytes.extend_from_slice(checksum.as_ref());
        bytes
    }

    /// Reads a side file; `None` when it was not completely written, or is none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (content, checksum) = bytes.split_last_chunk::<SHA256_OUTPUT_LEN>()?;
        if digest(&SHA256, content).as_ref() != checksum {
            return None;
        }
        let (format, rest) = content.strip_prefix(MAGIC)?.split_first()?;
        let (header_bytes, rest) = rest.split_first_chunk()?;
        let (file_bytes, rest) = rest.split_first_chunk()?;
        let (payload_nonce, rest) = rest.split_first_chunk()?;
        let header_bytes = usize::try_from(u32::from_be_bytes(*header_bytes)).ok()?;
        let (old, new) = rest.split_at_checked(header_bytes)?;
        if *format != FORMAT || new.len() != header_bytes || header_bytes > MAX_HEADER_BYTES {
            return None;
        }
        Some(Self {
            file_bytes: u64::from_be_bytes(*file_bytes),
            payload_nonce: *payload_nonce,
            old: old.to_vec(),
            new: new.to_vec(),
        })
    }

    /// Compares the file's beginning with both headers. A torn write leaves each byte old or new, in any mix.
    pub(super) fn progress(&self, file_bytes: u64, beginning: &[u8]) -> Progress {
        let Some((header, nonce)) = beginning.split_at_checked(self.old.len()) else {
            return Progress::Foreign;
        };
        if file_bytes != self.file_bytes || nonce != self.payload_nonce {
            return Progress::Foreign;
        }
        let mixed = |(at, (old, new)): (&u8, (&u8, &u8))| at == old || at == new;
        if header == self.new {
            Progress::Written
        } else if header == self.old {
            Progress::Untouched
        } else if header.iter().zip(self.old.iter().zip(&self.new)).all(mixed) {
            Progress::Torn
        } else {
            Progress::Foreign
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(header_bytes: usize) -> Side {
        Side {
            file_bytes: 1000,
            payload_nonce: [9; PAYLOAD_NONCE_BYTES],
            old: vec![b'o'; header_bytes],
            new: vec![b'n'; header_bytes],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(Side::decode(&side(40).encode()), Some(side(40)));
    }

    #[test]
    fn the_longest_header_fits_and_one_byte_more_does_not() {
        let longest = side(MAX_HEADER_BYTES).encode();
        assert_eq!(longest.len(), MAX_SIDE_BYTES);
        assert!(Side::decode(&longest).is_some());
        assert_eq!(Side::decode(&side(MAX_HEADER_BYTES + 1).encode()), None);
    }

    #[test]
    fn every_truncation_and_bit_flip_is_refused() {
        let bytes = side(40).encode();
        for length in 0..bytes.len() {
            assert_eq!(Side::decode(&bytes[..length]), None, "{length}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Side::decode(&flipped), None, "{bit}");
        }
    }

    #[test]
    fn progress_tells_old_new_torn_and_foreign() {
        let side = side(4);
        let beginning = |header: &[u8; 4]| [&header[..], &[9; PAYLOAD_NONCE_BYTES]].concat();
        assert_eq!(side.progress(1000, &beginning(b"oooo")), Progress::Untouched);
        assert_eq!(side.progress(1000, &beginning(b"nnnn")), Progress::Written);
        assert_eq!(side.progress(1000, &beginning(b"onon")), Progress::Torn);
        assert_eq!(side.progress(1000, &beginning(b"onox")), Progress::Foreign);
        assert_eq!(side.progress(1001, &beginning(b"oooo")), Progress::Foreign);
        let mut other_payload = beginning(b"oooo");
        other_payload[19] ^= 1;
        assert_eq!(side.progress(1000, &other_payload), Progress::Foreign);
        assert_eq!(side.progress(1000, b"oo"), Progress::Foreign);
    }
}
