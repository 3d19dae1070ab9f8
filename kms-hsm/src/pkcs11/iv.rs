//! IVs from C_GenerateRandom, fetched in blocks, each used once.

use cryptoki::session::Session;
use kms_core::envelope::{IV_BYTES, Iv};

use crate::pkcs11::ckr::Failure;
use crate::pkcs11::continuous::Continuous;

/// IVs of one call: 768 bytes cost SoftHSM little more than 12.
const BLOCK_IVS: usize = 64;

/// A worker's own IVs.
///
/// Continuous test: within a block no IV stands twice, and none is the last one of the block before. A generator that
/// repeats itself is answered with [`Failure::Device`], and the block is thrown away.
#[derive(Debug, Default)]
pub(crate) struct IvPool {
    block: Vec<Iv>,
    last: Option<Iv>,
    /// The test of the other random bytes that this thread draws.
    pub(crate) random: Continuous,
}

impl IvPool {
    /// Takes the next IV, drawing a new block when there is none.
    pub(crate) fn take(&mut self, session: &Session) -> Result<Iv, Failure> {
        if let Some(iv) = self.block.pop() {
            return Ok(iv);
        }
        let mut bytes = [0; BLOCK_IVS * IV_BYTES];
        session.generate_random_slice(&mut bytes)?;
        self.refill(&bytes)
    }

    fn refill(&mut self, bytes: &[u8]) -> Result<Iv, Failure> {
        let block: Vec<Iv> = bytes.as_chunks().0.to_vec();
        let mut sorted = block.clone();
        sorted.sort_unstable();
        let repeats = sorted.windows(2).any(|pair| matches!(pair, [a, b] if a == b));
        let again = self.last.is_some_and(|last| sorted.binary_search(&last).is_ok());
        if repeats || again || sorted.contains(&[0; IV_BYTES]) {
            return Err(Failure::lie("C_GenerateRandom repeats itself"));
        }
        self.block = block;
        self.last = self.block.first().copied();
        self.block.pop().ok_or_else(|| Failure::lie("no IV drawn"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(seed: u8) -> Vec<u8> {
        (0..64).flat_map(|n| [seed, n, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]).collect()
    }

    #[test]
    fn every_iv_of_a_block_is_used_once() {
        let mut pool = IvPool::default();
        let mut seen = vec![pool.refill(&bytes(1)).unwrap()];
        seen.append(&mut pool.block);
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), BLOCK_IVS);
    }

    #[test]
    fn a_generator_that_repeats_itself_is_refused() {
        let mut pool = IvPool::default();
        assert!(pool.refill(&[7; BLOCK_IVS * IV_BYTES]).is_err(), "constant");
        assert!(pool.refill(&bytes(1)).is_ok());
        assert!(pool.refill(&bytes(1)).is_err(), "the same block again");
        assert!(pool.refill(&bytes(2)).is_ok(), "another block");
    }
}
