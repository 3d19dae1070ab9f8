//! The continuous test of C_GenerateRandom for what is handed out: data keys and random bytes.
//!
//! Each draw takes one block more than is wanted. Consecutive blocks of a draw must differ, and so must the extra
//! blocks of consecutive draws (after FIPS 140-2 section 4.9.2). Only the extra block is remembered: it is never handed
//! out, so nothing secret stays behind. By chance an honest generator fails once in 2^128 draws.

use zeroize::Zeroizing;

use crate::pkcs11::ckr::Failure;

/// Bytes of a block.
pub(crate) const BLOCK_BYTES: usize = 16;

/// What is remembered of the draw before.
#[derive(Debug, Default)]
pub(crate) struct Continuous {
    extra: Option<[u8; BLOCK_BYTES]>,
}

impl Continuous {
    /// Draws `length` bytes through `draw`, which fills the whole buffer.
    pub(crate) fn draw(
        &mut self,
        length: usize,
        draw: impl FnOnce(&mut [u8]) -> Result<(), Failure>,
    ) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let mut bytes = Zeroizing::new(vec![0; length + BLOCK_BYTES]);
        draw(&mut bytes)?;
        let Some((rest, extra)) = bytes.split_last_chunk::<BLOCK_BYTES>() else {
            return Err(Failure::lie("no random bytes drawn"));
        };
        // From the end, so that the extra block is one of them and the odd bytes at the start are left over.
        let blocks = rest.rchunks_exact(BLOCK_BYTES);
        let before = std::iter::once(extra.as_slice()).chain(blocks.clone());
        let within = before.zip(blocks).any(|(later, earlier)| later == earlier);
        // A module that answers CKR_OK without writing gives zeros, also where one block is all there is.
        let unwritten = bytes.iter().all(|byte| *byte == 0);
        let across = self.extra.replace(*extra) == Some(*extra);
        if within || across || unwritten {
            return Err(Failure::lie("C_GenerateRandom repeats itself"));
        }
        bytes.truncate(length);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Draws `length` bytes from a generator that counts on from `start`.
    fn draw(test: &mut Continuous, length: usize, start: u8) -> Result<Vec<u8>, Failure> {
        let drawn = test.draw(length, |bytes| {
            for (byte, value) in bytes.iter_mut().zip(start..) {
                *byte = value;
            }
            Ok(())
        });
        drawn.map(|bytes| bytes.to_vec())
    }

    #[test]
    fn what_is_wanted_is_handed_out_and_the_extra_block_is_not() {
        for length in [1, 15, 16, 17, 32, 100] {
            let expected: Vec<u8> = (1..).take(length).collect();
            assert_eq!(draw(&mut Continuous::default(), length, 1), Ok(expected));
        }
    }

    #[test]
    fn a_constant_generator_is_refused_at_once() {
        for length in [16, 17, 31, 32, 1024] {
            for value in [0, 0x5a] {
                let drawn = Continuous::default().draw(length, |bytes| {
                    bytes.fill(value);
                    Ok(())
                });
                assert!(drawn.is_err(), "{length} bytes of {value}");
            }
        }
    }

    #[test]
    fn a_generator_that_starts_over_is_refused() {
        let mut test = Continuous::default();
        assert!(draw(&mut test, 32, 1).is_ok());
        assert!(draw(&mut test, 32, 2).is_ok());
        assert!(draw(&mut test, 32, 2).is_err(), "the same draw again");
    }

    #[test]
    fn a_failing_generator_is_passed_on() {
        let failed = Continuous::default().draw(16, |_| Err(Failure::Stale));
        assert_eq!(failed.err(), Some(Failure::Stale));
    }
}
