//! What one durable append costs on this disk, at this hour.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use kms_core::clock::{Clock, SystemClock};

use crate::error::{Error, io};

/// How many appends are measured.
const SAMPLES: usize = 500;
/// Bytes of an append: an audit record.
const RECORD_BYTES: usize = 512;

/// Returns the median of append and fdatasync in this directory.
pub fn fdatasync_p50(directory: &Path) -> Result<Duration, Error> {
    let mut file = tempfile::tempfile_in(directory).map_err(io("make a file"))?;
    let mut spans = Vec::with_capacity(SAMPLES);
    for _ in 0..SAMPLES {
        let start = SystemClock.monotonic();
        file.write_all(&[0x5a; RECORD_BYTES]).map_err(io("append"))?;
        file.sync_data().map_err(io("fdatasync"))?;
        spans.push(SystemClock.monotonic().saturating_duration_since(start));
    }
    spans.sort_unstable();
    spans.get(SAMPLES / 2).copied().ok_or(Error::Bug("no append was measured"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_append_takes_time_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        assert!(fdatasync_p50(directory.path()).unwrap() > Duration::ZERO);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
