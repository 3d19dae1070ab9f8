//! The lines of the log on their way to standard error: a bounded queue, and the one thread that writes.
//!
//! Whoever reads standard error may stop reading: a stuck journal, a pager, a terminal on hold. Then lines are dropped and
//! counted, and nobody who logs waits. Not tracing-appender: it bounds lines and not bytes, a panic or an exit outside
//! `main` cannot wait for its last lines, and when its queue is full at the end it prints, which waits for the same reader.

use std::io::{self, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// The most bytes that wait: some thousand lines, more than a reader who is only slow leaves unread.
pub const MAX_QUEUED_BYTES: usize = 1024 * 1024;
/// The most bytes that debug and trace lines fill, so that they never keep out what an operator must know.
pub const MAX_DETAIL_BYTES: usize = MAX_QUEUED_BYTES / 2;
/// What a buffer keeps when it is empty again.
const KEPT_BYTES: usize = 64 * 1024;

/// Lines that wait to be written.
#[derive(Debug)]
pub struct Lines {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    queued: Vec<u8>,
    /// How many bytes were ever queued.
    accepted: u64,
    /// How many of them were handed to the system, or could not be.
    written: u64,
    /// Lines dropped since that was said last.
    unsaid: u64,
    dropped: u64,
}

impl Lines {
    /// Makes an empty queue.
    pub const fn new() -> Self {
        let state = State { queued: Vec::new(), accepted: 0, written: 0, unsaid: 0, dropped: 0 };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Queues a line, its end included, or drops it when more than `most` bytes would wait. Never waits for the writer.
    pub fn push(&self, line: &[u8], most: usize) {
        let mut state = self.state();
        if state.queued.len().saturating_add(line.len()) > most {
            state.unsaid = state.unsaid.saturating_add(1);
            state.dropped = state.dropped.saturating_add(1);
            return;
        }
        state.queued.extend_from_slice(line);
        state.accepted = state.accepted.saturating_add(line.len() as u64);
        self.changed.notify_all();
    }

    /// Returns how many lines were lost.
    pub fn dropped(&self) -> u64 {
        self.state().dropped
    }

    /// Waits until every line that was queued before is written. Returns whether it is, within twice `limit`.
    pub fn finish(&self, limit: Duration) -> bool {
        // Twice: that lines were dropped is said behind those that were queued.
        self.await_written(limit) && self.await_written(limit)
    }

    fn await_written(&self, limit: Duration) -> bool {
        let state = self.state();
        let end = state.accepted;
        let waited = self.changed.wait_timeout_while(state, limit, |state| state.written < end);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Writes lines for ever, in their order. `told` is to log how many were dropped, when `out` takes lines again.
    pub fn write_to(&self, mut out: impl Write, told: impl Fn(u64)) {
        let mut lines = Vec::new();
        loop {
            let dropped = self.take(&mut lines);
            if dropped > 0 {
                told(dropped);
            }
            let lost = match out.write_all(&lines) {
                Ok(()) => 0,
                // Nobody can read them any more. Counted, but not said: that would be the next line to be lost.
                Err(_) => lines.split_inclusive(|byte| *byte == b'\n').count() as u64,
            };
            let mut state = self.state();
            state.dropped = state.dropped.saturating_add(lost);
            state.written = state.written.saturating_add(lines.len() as u64);
            self.changed.notify_all();
        }
    }

    /// Waits for lines and swaps them for the empty buffer; returns how many were dropped behind them.
    fn take(&self, lines: &mut Vec<u8>) -> u64 {
        lines.clear();
        lines.shrink_to(KEPT_BYTES);
        let waited = self.changed.wait_while(self.state(), |state| state.queued.is_empty());
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut state.queued, lines);
        std::mem::take(&mut state.unsaid)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Lines {
    fn default() -> Self {
        Self::new()
    }
}

/// Makes writers of whole lines, each with the room that its level has.
impl<'a> MakeWriter<'a> for &'static Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { lines: self, most: MAX_QUEUED_BYTES }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Line {
        let most = if *event.level() > Level::INFO { MAX_DETAIL_BYTES } else { MAX_QUEUED_BYTES };
        Line { lines: self, most }
    }
}

/// Takes whole lines, one a call.
#[derive(Debug)]
pub struct Line {
    lines: &'static Lines,
    most: usize,
}

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.lines.push(line, self.most);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(20);

    /// A reader that takes what is written when the test does.
    struct Reader(SyncSender<Vec<u8>>);

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Starts a writer whose reader has not begun to read.
    fn started() -> (&'static Lines, Receiver<Vec<u8>>) {
        let lines: &'static Lines = Box::leak(Box::default());
        let (sender, reader) = sync_channel(0);
        std::thread::spawn(move || {
            lines.write_to(Reader(sender), |dropped| {
                lines.push(format!("dropped {dropped}\n").as_bytes(), MAX_QUEUED_BYTES);
            });
        });
        (lines, reader)
    }

    /// Reads on until all is written; returns it.
    fn read(lines: &'static Lines, reader: &Receiver<Vec<u8>>) -> String {
        let mut read = Vec::new();
        kms_testkit::deadline::eventually(LIMIT, "the lines to be written", || {
            read.extend(reader.try_iter().flatten());
            lines.finish(Duration::ZERO)
        });
        String::from_utf8(read).unwrap()
    }

    /// Waits until the thread holds what was queued, and waits for its reader.
    fn await_taken(lines: &'static Lines) {
        kms_testkit::deadline::eventually(LIMIT, "the lines to be taken", || {
            lines.state().queued.is_empty()
        });
    }

    #[test]
    fn lines_come_in_order_and_the_end_waits_for_them() {
        let (lines, reader) = started();
        let expected: String =
            (0..1000).flat_map(|number: u32| [number.to_string(), "\n".to_owned()]).collect();
        for line in expected.split_inclusive('\n') {
            lines.push(line.as_bytes(), MAX_QUEUED_BYTES);
        }
        assert!(!lines.finish(SHORT), "nobody reads");
        assert_eq!(read(lines, &reader), expected);
        assert_eq!(lines.dropped(), 0);
    }

    #[test]
    fn a_full_queue_drops_lines_and_says_how_many_when_they_are_read_again() {
        let (lines, reader) = started();
        lines.push(b"first\n", MAX_QUEUED_BYTES);
        await_taken(lines);
        let full = [&vec![b'x'; MAX_QUEUED_BYTES - 1][..], b"\n"].concat();
        lines.push(&full, MAX_QUEUED_BYTES);
        assert_eq!(lines.dropped(), 0, "it is just full");
        for _ in 0..3 {
            lines.push(b"\n", MAX_QUEUED_BYTES);
        }
        assert_eq!(lines.dropped(), 3);
        let read = read(lines, &reader);
        let ends: Vec<_> =
            read.split_inclusive('\n').map(|line| line.split_at(line.len() - 2).1).collect();
        assert_eq!(ends, ["t\n", "x\n", "3\n"]);
        assert!(read.ends_with("\ndropped 3\n"));
        lines.push(b"again\n", MAX_QUEUED_BYTES);
        assert_eq!(reader.recv_timeout(LIMIT).unwrap(), b"again\n");
    }

    #[test]
    fn details_leave_room_for_what_an_operator_must_know() {
        let (lines, _reader) = started();
        lines.push(b"first\n", MAX_QUEUED_BYTES);
        await_taken(lines);
        lines.push(&vec![b'x'; MAX_DETAIL_BYTES], MAX_DETAIL_BYTES);
        lines.push(b"\n", MAX_DETAIL_BYTES);
        assert_eq!(lines.dropped(), 1);
        lines.push(b"\n", MAX_QUEUED_BYTES);
        assert_eq!(lines.dropped(), 1);
    }

    #[test]
    fn lines_that_nobody_can_read_any_more_are_counted_and_keep_nobody() {
        let (lines, reader) = started();
        drop(reader);
        lines.push(b"one\ntwo\n", MAX_QUEUED_BYTES);
        assert!(lines.finish(LIMIT));
        assert_eq!(lines.dropped(), 2);
    }
}
