//! How many threads serve requests.

use std::num::NonZero;
use std::thread::available_parallelism;

/// Cores that are left to the threads that are not the runtime's: HSM workers and the writer of the audit log have a third
/// of the work, and a thread that finds its core taken by another is woken for nothing (docs/performance.md).
const CORES_OF_OTHERS: usize = 1;

/// Returns the number of threads that serve requests: as configured, or for 0 one a core but one.
pub fn serving_threads(configured: usize) -> usize {
    count(configured, available_parallelism().map_or(1, NonZero::get))
}

fn count(configured: usize, cores: usize) -> usize {
    match configured {
        0 => cores.saturating_sub(CORES_OF_OTHERS).max(1),
        configured => configured,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_core_is_left_to_others_where_there_are_two() {
        assert_eq!([1, 2, 3, 16].map(|cores| count(0, cores)), [1, 1, 2, 15]);
    }

    #[test]
    fn what_is_configured_is_taken() {
        assert_eq!([1, 2, 256].map(|configured| count(configured, 2)), [1, 2, 256]);
        assert!(serving_threads(0) >= 1);
    }
}
