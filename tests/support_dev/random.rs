//! Randomness that can be had again: the seed is printed.

/// A seeded random source (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// Returns a seed: the one of `HOLDFAST_CRASH_SEED`, or one that differs each time.
    pub fn seed() -> u64 {
        use std::hash::{BuildHasher as _, Hasher as _};
        let given = std::env::var("HOLDFAST_CRASH_SEED").ok();
        given.map_or_else(
            || std::hash::RandomState::new().build_hasher().finish(),
            |text| text.parse().unwrap(),
        )
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        std::iter::repeat_with(|| self.next().to_le_bytes()[0]).take(count).collect()
    }
}
