//! Sealing and opening a long stream takes a bounded amount of memory. A program of its own, as it measures itself.
#![allow(clippy::unwrap_used, clippy::panic, reason = "test helpers")]

mod backup_support;

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use backup_support::{MemoryKms, key};
use kms_cli::backup::{Recipients, open_stream, seal_stream};

/// How long the stream is: far more than may be held. The code has no notion of the stream's length.
const STREAM_BYTES: u64 = 1024 * 1024 * 1024;
/// What the whole process may have used at its peak; an idle one uses a tenth.
const MAX_RESIDENT_KIB: u64 = 64 * 1024;

/// Counts, and keeps nothing.
struct Count(u64);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn peak_resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_long_stream_is_sealed_and_opened_in_bounded_memory() {
    let kms = MemoryKms::at(1);
    let (sealed, to_open) = UnixStream::pair().unwrap();
    let opener = std::thread::spawn(move || {
        let mut count = Count(0);
        let input = BufReader::new(to_open);
        let opened = open_stream(&MemoryKms::at(1), None, input, &mut count).unwrap();
        assert_eq!(opened.plaintext_bytes, STREAM_BYTES);
        count.0
    });
    let recipients = Recipients::new(key(), Vec::new()).unwrap();
    let sealing =
        seal_stream(&kms, &recipients, io::repeat(b'z').take(STREAM_BYTES), sealed).unwrap();
    assert_eq!(sealing.plaintext_bytes, STREAM_BYTES);
    assert_eq!(opener.join().unwrap(), STREAM_BYTES);
    let peak = peak_resident_kib();
    assert!(peak < MAX_RESIDENT_KIB, "{peak} KiB at the peak");
}
