//! The file sink: a thread that writes all records that wait, syncs once, and then answers them all.
//!
//! Invariant: an answer is given only after the fdatasync that covers its lines; `kms-server/tests/power_loss.rs`
//! reads it off the system calls.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use kms_core::audit::{AuditRecord, ManifestStamp};
use tokio::sync::oneshot;

use super::chain::append_line;
use super::files::ROTATE_BYTES;
use super::log::{AuditStartError, Log};
use super::{Appended, AuditError, AuditSink, Past};

/// Calls of `append` that may wait; more are refused with `Saturated`.
pub const QUEUE: usize = 8192;
/// Records that may wait, over all calls: a few seconds' worth.
pub const MAX_WAITING_RECORDS: usize = 65_536;
/// Bytes of the records that may wait, over all calls, as [`AuditRecord::estimated_bytes`] tells them: as many records as may
/// wait when they have no contexts to speak of, and fewer that have.
pub const MAX_WAITING_BYTES: usize = 64 << 20;
/// A group is closed when its lines have grown to this: bounds the latency of one write.
const MAX_GROUP_BYTES: usize = 1 << 20;
/// The buffer is given back after a group that was larger than this.
const KEPT_BUFFER_BYTES: usize = 4 << 20;
/// How often an idle writer looks whether its file is still there, and a failed one whether writing works again.
const LOOK_EVERY: Duration = Duration::from_secs(1);

type Answer = oneshot::Sender<Result<(), AuditError>>;

struct Waiting {
    records: Vec<AuditRecord>,
    size: Size,
    answer: Answer,
}

/// What records take of the room for those that wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    records: usize,
    bytes: usize,
}

impl Size {
    pub(super) fn of(records: &[AuditRecord]) -> Self {
        let bytes = records.iter().map(AuditRecord::estimated_bytes).sum();
        Self { records: records.len(), bytes }
    }

    /// Returns whether there is room for so much in all.
    pub(super) const fn fits(self) -> bool {
        self.records <= MAX_WAITING_RECORDS && self.bytes <= MAX_WAITING_BYTES
    }
}

/// A sink that appends to a directory of files.
pub struct FileSink {
    directory: PathBuf,
    queue: RwLock<Option<Sender<Waiting>>>,
    state: Arc<State>,
    past: Arc<Mutex<Past>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct State {
    healthy: AtomicBool,
    waiting_records: AtomicUsize,
    waiting_bytes: AtomicUsize,
}

impl State {
    /// Takes room; says whether there is as much. Either way it is to be given back.
    fn enter(&self, size: Size) -> bool {
        let records = self.waiting_records.fetch_add(size.records, Ordering::AcqRel);
        let bytes = self.waiting_bytes.fetch_add(size.bytes, Ordering::AcqRel);
        let records = records.saturating_add(size.records);
        Size { records, bytes: bytes.saturating_add(size.bytes) }.fits()
    }

    fn leave(&self, size: Size) {
        self.waiting_records.fetch_sub(size.records, Ordering::AcqRel);
        self.waiting_bytes.fetch_sub(size.bytes, Ordering::AcqRel);
    }
}

impl FileSink {
    /// Opens the log in `directory`, making it when there is none. Blocks: call it before serving.
    ///
    /// # Errors
    /// [`AuditStartError::Damaged`] and [`AuditStartError::Gap`] when the chain is broken: the server must not start.
    pub fn open(directory: &Path) -> Result<Self, AuditStartError> {
        Self::open_with(directory, ROTATE_BYTES)
    }

    /// Like [`FileSink::open`], beginning a new file at another size.
    pub fn open_with(directory: &Path, rotate_bytes: u64) -> Result<Self, AuditStartError> {
        let log = Log::open(directory, rotate_bytes)?;
        let past = log.past();
        let (sender, receiver) = bounded(QUEUE);
        let state = Arc::new(State {
            healthy: AtomicBool::new(true),
            waiting_records: AtomicUsize::new(0),
            waiting_bytes: AtomicUsize::new(0),
        });
        let mut writer = Writer { log, state: Arc::clone(&state), lines: Vec::new() };
        let thread = thread::Builder::new()
            .name("audit-write".into())
            .spawn(move || writer.serve(&receiver))
            .map_err(|error| AuditStartError::Io { what: "start the writer thread", error })?;
        Ok(Self {
            directory: directory.to_owned(),
            queue: RwLock::new(Some(sender)),
            state,
            past,
            writer: Mutex::new(Some(thread)),
        })
    }
}

impl AuditSink for FileSink {
    fn append(&self, records: Vec<AuditRecord>) -> Appended {
        let size = Size::of(&records);
        let (answer, appended) = Appended::channel();
        let refusal = if self.state.enter(size) {
            let queue = self.queue.read().unwrap_or_else(PoisonError::into_inner);
            match queue.as_ref().map(|queue| queue.try_send(Waiting { records, size, answer })) {
                Some(Ok(())) => None,
                Some(Err(TrySendError::Full(_))) => Some(AuditError::Saturated),
                Some(Err(TrySendError::Disconnected(_))) | None => Some(AuditError::Closed),
            }
        } else {
            Some(AuditError::Saturated)
        };
        match refusal {
            None => appended,
            Some(error) => {
                self.state.leave(size);
                Appended::ready(Err(error))
            }
        }
    }

    fn healthy(&self) -> bool {
        self.state.healthy.load(Ordering::Acquire)
    }

    fn past(&self) -> Past {
        self.past.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn last_manifest(&self, tenant: &str) -> Option<ManifestStamp> {
        // Asked at every mutation: no copy of all tenants.
        let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        past.stamps().get(tenant).cloned()
    }

    /// Blocks until the last group is durable or refused.
    fn close(&self) {
        drop(self.queue.write().unwrap_or_else(PoisonError::into_inner).take());
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            // A writer that panicked has answered nobody: its callers see `Closed`.
            let _ = writer.join();
        }
    }
}

impl fmt::Debug for FileSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileSink")
            .field("directory", &self.directory)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

struct Writer {
    log: Log,
    state: Arc<State>,
    lines: Vec<u8>,
}

impl Writer {
    /// Serves until all senders are gone and the queue is empty.
    fn serve(&mut self, queue: &Receiver<Waiting>) {
        loop {
            match queue.recv_timeout(LOOK_EVERY) {
                Ok(first) => self.write_group(first, queue),
                Err(RecvTimeoutError::Timeout) => {
                    let looked = self.log.mend();
                    self.note(looked.as_ref().err());
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn write_group(&mut self, first: Waiting, queue: &Receiver<Waiting>) {
        self.lines.clear();
        let mut head = self.log.head();
        let group = head.seq.saturating_add(1);
        let (mut answers, mut heeded) = (Vec::new(), Vec::new());
        let mut next = Some(first);
        while let Some(Waiting { records, size, answer }) = next {
            self.state.leave(size);
            let (call_start, call_head, call_heeded) = (self.lines.len(), head, heeded.len());
            let appended = records.into_iter().try_for_each(|record| {
                head = append_line(&mut self.lines, head, group, &record)?;
                if Past::heeds(&record) {
                    heeded.push(record);
                }
                Ok(())
            });
            match appended {
                Ok(()) => answers.push(answer),
                Err(error @ super::chain::EntryTooLong) => {
                    self.lines.truncate(call_start);
                    heeded.truncate(call_heeded);
                    head = call_head;
                    give(answer, Err(AuditError::Unwritable { detail: error.to_string() }));
                }
            }
            let has_room = self.lines.len() < MAX_GROUP_BYTES;
            next = has_room.then(|| queue.try_recv().ok()).flatten();
        }
        // Records that are too long were refused one by one, and calls without any lose nothing: nothing to write tells
        // nothing of the log.
        if self.lines.is_empty() {
            return answers.into_iter().for_each(|answer| give(answer, Ok(())));
        }
        let written = self.log.append(&self.lines, head, &heeded);
        self.note(written.as_ref().err());
        let outcome = written.map_err(|error| AuditError::Unwritable { detail: error.to_string() });
        for answer in answers {
            give(answer, outcome.clone());
        }
        self.lines.shrink_to(KEPT_BUFFER_BYTES);
    }

    /// Keeps `healthy` and says once when it changes.
    fn note(&self, error: Option<&std::io::Error>) {
        let was_healthy = self.state.healthy.swap(error.is_none(), Ordering::AcqRel);
        match error {
            Some(error) if was_healthy => {
                tracing::error!(%error, "the audit log cannot be written; operations are refused");
            }
            None if !was_healthy => tracing::info!("the audit log can be written again"),
            _ => {}
        }
    }
}

fn give(answer: Answer, outcome: Result<(), AuditError>) {
    // A caller that no longer waits does not want its answer.
    let _ = answer.send(outcome);
}

#[cfg(test)]
mod tests {
    use kms_core::audit::Phase;

    use super::super::sample::record;
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);
    const APPENDS: u64 = 100;

    /// Returns the group of each line that is in the log.
    fn groups(file: &Path) -> Vec<u64> {
        let text = std::fs::read_to_string(file).unwrap();
        let group = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["entry"]["group"].as_u64().unwrap()
        };
        text.lines().map(group).collect()
    }

    /// A group is written at once and synced once.
    #[tokio::test]
    async fn appends_that_wait_while_a_group_is_written_are_the_next_group() {
        let directory = tempfile::tempdir().unwrap();
        let sink = FileSink::open(&directory.path().join("audit")).unwrap();
        let file = directory.path().join("audit/audit-00000001.jsonl");
        let mut waiting = vec![];
        {
            // The writer takes note of an intent before it ends the group, and waits here.
            let _noting = sink.past.lock().unwrap();
            let intent = AuditRecord { phase: Phase::Intent, ..record(0) };
            waiting.push(sink.append(vec![intent]));
            kms_testkit::deadline::eventually(LIMIT, "the first group", || {
                std::fs::read(&file).unwrap().ends_with(b"\n")
            });
            waiting.extend((1..=APPENDS).map(|number| sink.append(vec![record(number)])));
            assert_eq!(groups(&file), [1], "nothing is written while a group is");
        }
        for appended in waiting {
            appended.await.unwrap();
        }
        let mut expected = vec![2; 1 + usize::try_from(APPENDS).unwrap()];
        expected[0] = 1;
        assert_eq!(groups(&file), expected);
        sink.close();
    }
}
