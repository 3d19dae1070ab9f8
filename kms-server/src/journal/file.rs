//! The file of the journal, and the thread that writes it: one entry after another, each synced, then marked in the token.
//!
//! Invariant: an entry is answered only when file and token have it; a later entry is never before an earlier one in either.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::{self, JoinHandle};

use async_trait::async_trait;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use kms_core::clock::{Clock, Timestamp};
use kms_core::id::{IntentId, RootGeneration};
use kms_core::journal::{Entry, Event, HEADER, JournalMark, Link, MAX_ENTRY_BYTES};
use kms_hsm::Hsm;
use tokio::sync::oneshot;

use super::scan::{Scan, scan};
use super::token::Token;
use super::{Gap, Held, Journal, JournalError, JournalStartError, Progress};

/// Entries that may wait: each takes some ten milliseconds, and those who wait for more had better hear so.
pub const MAX_WAITING: usize = 1024;

type Answer = oneshot::Sender<Result<Held, JournalError>>;

struct Waiting {
    intent: Option<IntentId>,
    event: Event,
    answer: Answer,
}

/// Where a journal is, and with what it is opened.
#[derive(Clone, Debug)]
pub struct Opening {
    /// The file.
    pub path: PathBuf,
    /// The token, with its roots open.
    pub hsm: Arc<dyn Hsm>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The roots that are open; the last seals what is written.
    pub generations: RangeInclusive<RootGeneration>,
    /// The gap that an operator accepts.
    pub accept: Option<Gap>,
    /// Of a backup that is restored: the number up to which it has what the entries told. What was lost before it, and accepted,
    /// has to be accepted again when that is in none of the two.
    pub covered: Option<u64>,
}

/// A journal in a file.
pub struct FileJournal {
    queue: RwLock<Option<Sender<Waiting>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    progress: Arc<Progress>,
    healthy: Arc<AtomicBool>,
    fence: Option<Timestamp>,
    path: PathBuf,
}

impl FileJournal {
    /// Opens a journal, making it when neither file nor token has one. Blocks, on a thread that is not part of a runtime.
    ///
    /// # Errors
    /// [`JournalStartError::Missing`] and [`JournalStartError::Damaged`] when it is not all that the token knows of.
    pub fn open(opening: Opening) -> Result<Self, JournalStartError> {
        let path = opening.path.clone();
        let opened = Writer::open(opening)?;
        let (sender, receiver) = bounded(MAX_WAITING);
        let (progress, healthy) = (Arc::clone(&opened.progress), Arc::clone(&opened.healthy));
        let fence = opened.fence;
        let mut writer = opened;
        let thread = thread::Builder::new()
            .name("journal-write".into())
            .spawn(move || writer.serve(&receiver))
            .map_err(|cause| io_error("start the thread of", &path)(cause))?;
        Ok(Self {
            queue: RwLock::new(Some(sender)),
            writer: Mutex::new(Some(thread)),
            progress,
            healthy,
            fence,
            path,
        })
    }
}

#[async_trait]
impl Journal for FileJournal {
    async fn append(&self, intent: Option<IntentId>, event: Event) -> Result<Held, JournalError> {
        let (answer, answered) = oneshot::channel();
        let sent = {
            let queue = self.queue.read().unwrap_or_else(PoisonError::into_inner);
            queue.as_ref().map(|queue| queue.try_send(Waiting { intent, event, answer }))
        };
        match sent {
            Some(Ok(())) => answered.await.unwrap_or(Err(JournalError::Closed)),
            Some(Err(TrySendError::Full(_))) => Err(JournalError::Saturated),
            Some(Err(TrySendError::Disconnected(_))) | None => Err(JournalError::Closed),
        }
    }

    fn fence(&self) -> Option<Timestamp> {
        self.fence
    }

    fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    fn healthy(&self) -> bool {
        self.healthy.load(Ordering::Acquire)
    }

    /// Blocks until the last entry is written or refused.
    fn close(&self) {
        drop(self.queue.write().unwrap_or_else(PoisonError::into_inner).take());
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            // Of one that panicked, those who wait see `Closed`.
            let _ = writer.join();
        }
    }
}

impl Drop for FileJournal {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for FileJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileJournal").field("path", &self.path).finish_non_exhaustive()
    }
}

fn io_error<'p>(
    what: &'static str,
    path: &'p Path,
) -> impl FnOnce(io::Error) -> JournalStartError + use<'p> {
    move |cause| JournalStartError::Io { what, path: path.to_owned(), cause }
}

struct Writer {
    file: File,
    token: Token,
    generation: RootGeneration,
    link: Link,
    number: u64,
    end: u64,
    /// Whether what the file holds is not known any more: after a failed sync it may hold anything.
    is_broken: bool,
    progress: Arc<Progress>,
    healthy: Arc<AtomicBool>,
    fence: Option<Timestamp>,
}

impl Writer {
    fn open(opening: Opening) -> Result<Self, JournalStartError> {
        let Opening { path, hsm, clock, generations, accept, covered } = opening;
        let mut token = Token::new(hsm, clock);
        let mark = token.read(&generations)?;
        let marked = mark.map_or(0, |mark| mark.number);
        let may_begin = marked == 0 || accept.is_some() || covered.is_some();
        let Some(file) = open_file(&path, may_begin)? else {
            let gap = Gap::new(1, marked).ok_or_else(|| damaged(&path, "it is not there"))?;
            return Err(JournalStartError::Missing { path, gap });
        };
        let mut found = scan(&file, marked, |_| ()).map_err(io_error("read", &path))?;
        if !found.has_header {
            if found.length >= HEADER.len() as u64 || marked > 0 && found.length > 0 {
                return Err(damaged(&path, "it does not begin as one"));
            }
            begin(&file, &path)?;
            found = scan(&file, marked, |_| ()).map_err(io_error("read", &path))?;
        }
        found = cut(&file, &path, &token, &generations, marked, found)?;
        if let Some(mark) = mark
            && found.last_number() >= mark.number
            && found.asked != Some(mark.link)
        {
            return Err(damaged(&path, "its entries are not those that the token has marked"));
        }
        let mut writer = Self {
            file,
            token,
            generation: *generations.end(),
            link: found.link(),
            number: found.last_number(),
            end: found.end,
            is_broken: false,
            progress: Arc::default(),
            healthy: Arc::new(AtomicBool::new(true)),
            fence: found.fence,
        };
        let sealed = found.last.as_ref().map(|last| last.entry.generation);
        writer.close_gap(&path, &found, marked, accept, covered)?;
        if writer.number > 0 && sealed.is_some_and(|sealed| sealed < writer.generation) {
            // What only an older root vouches for would be lost with it.
            writer.put(None, Event::RootAdvanced).map_err(|error| start_error(&path, error))?;
        }
        // After a crash the token may be one behind; and a token that was replaced knows nothing yet.
        if writer.number > marked || mark.is_some_and(|mark| mark.generation < writer.generation) {
            writer.mark().map_err(JournalStartError::Hsm)?;
        }
        writer.progress = Arc::new(Progress::new(writer.number));
        Ok(writer)
    }

    /// Tells of entries that are missing by one that takes their place, when that is accepted, or the database has what they told.
    fn close_gap(
        &mut self,
        path: &Path,
        found: &Scan,
        marked: u64,
        accept: Option<Gap>,
        covered: Option<u64>,
    ) -> Result<(), JournalStartError> {
        let missing = Gap::new(found.last_number().saturating_add(1), marked);
        let unknown = union(covered, &found.gaps, missing);
        let event = match (unknown, accept) {
            (None, accept) => {
                if let Some(accepted) = accept {
                    tracing::warn!(%accepted, "--accept-journal-gap accepted nothing: nothing is missing");
                }
                match missing {
                    None => return Ok(()),
                    Some(gap) => Event::GapCovered { from: gap.from() },
                }
            }
            (Some(gap), None) => {
                return Err(JournalStartError::Missing { path: path.to_owned(), gap });
            }
            (Some(gap), Some(accepted)) if gap == accepted => {
                Event::GapAccepted { from: gap.from() }
            }
            (Some(missing), Some(accepted)) => {
                return Err(JournalStartError::OtherGap { accepted, missing });
            }
        };
        let is_accepted = matches!(event, Event::GapAccepted { .. });
        self.number = self.number.max(marked);
        self.put(None, event).map_err(|error| start_error(path, error))?;
        if is_accepted {
            self.fence = Some(self.token.clock.now());
        }
        Ok(())
    }

    fn serve(&mut self, queue: &Receiver<Waiting>) {
        while let Ok(Waiting { intent, event, answer }) = queue.recv() {
            let written = self.put(intent, event).and_then(|()| self.mark().map_err(Into::into));
            let is_healthy = written.is_ok();
            if self.healthy.swap(is_healthy, Ordering::AcqRel) != is_healthy {
                match &written {
                    Ok(()) => tracing::info!("the state journal can be written again"),
                    Err(error) => tracing::error!(%error, "the state journal cannot be written"),
                }
            }
            let (number, progress) = (self.number, Arc::clone(&self.progress));
            let answered = written.map(|()| {
                progress.begin(number);
                Held { number, progress }
            });
            if let Err(Ok(held)) = answer.send(answered) {
                // Nobody waits any more: nobody makes the change.
                held.settle();
            }
        }
    }

    /// Writes an entry and syncs it.
    fn put(&mut self, intent: Option<IntentId>, event: Event) -> Result<(), JournalError> {
        if self.is_broken {
            let detail =
                "an earlier write failed; what the file holds is read at the next start".into();
            return Err(JournalError::Unwritable { detail });
        }
        let entry = Entry {
            number: self.number.saturating_add(1),
            time: self.token.clock.now(),
            generation: self.generation,
            intent,
            event,
        };
        let mac = self.token.mac(self.generation, entry.mac_input(self.link))?;
        let mut bytes = entry.to_bytes();
        bytes.extend_from_slice(&mac.0);
        let written = self.file.write_all_at(&bytes, self.end);
        if let Err(error) = written {
            // What is half there is written over by the next entry, or cut by the next start; it is longer than neither.
            let _ = self.file.set_len(self.end);
            return Err(JournalError::Unwritable { detail: error.to_string() });
        }
        if let Err(error) = self.file.sync_data() {
            // The kernel forgets what it could not write: a later sync that succeeds says nothing of it.
            self.is_broken = true;
            return Err(JournalError::Unwritable { detail: error.to_string() });
        }
        self.link = self.link.after(&bytes);
        self.number = entry.number;
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// Has the token say how far the journal goes.
    fn mark(&mut self) -> Result<(), kms_hsm::HsmError> {
        let (number, generation, link) = (self.number, self.generation, self.link);
        self.token.put(&JournalMark { number, generation, link })
    }
}

fn start_error(path: &Path, error: JournalError) -> JournalStartError {
    match error {
        JournalError::Hsm(error) => JournalStartError::Hsm(error),
        other => io_error("write", path)(io::Error::other(other)),
    }
}

fn damaged(path: &Path, detail: &str) -> JournalStartError {
    JournalStartError::Damaged { path: path.to_owned(), detail: detail.to_owned() }
}

/// Opens the file, and makes it where it may be made; `None` when it is not there.
fn open_file(path: &Path, may_begin: bool) -> Result<Option<File>, JournalStartError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(may_begin).truncate(false).mode(0o600);
    match options.open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !may_begin => Ok(None),
        Err(error) => Err(io_error("open", path)(error)),
    }
}

/// Returns from where to where entries are missing whose tale is in no database that is there. A running one has what earlier
/// gaps lost; of a backup that is restored it is known how far it goes.
fn union(covered: Option<u64>, earlier: &[Gap], missing: Option<Gap>) -> Option<Gap> {
    let known = covered.unwrap_or(0);
    let earlier = earlier.iter().copied().filter(|_| covered.is_some());
    let mut unknown = earlier.chain(missing).filter(|gap| gap.to() > known);
    let first = unknown.next()?;
    Gap::new(first.from(), unknown.next_back().map_or(first.to(), Gap::to))
}

/// Makes an empty journal, with its name.
fn begin(file: &File, path: &Path) -> Result<(), JournalStartError> {
    let begun = || {
        file.set_len(0)?;
        file.write_all_at(HEADER, 0)?;
        file.sync_all()?;
        match path.parent() {
            Some(directory) if !directory.as_os_str().is_empty() => {
                File::open(directory)?.sync_all()
            }
            Some(_) | None => File::open(".")?.sync_all(),
        }
    };
    begun().map_err(io_error("begin", path))
}

/// Cuts off what a crash has torn, and returns what is left, verified. Only what the token has not marked can be torn: it is one
/// entry at most.
fn cut(
    file: &File,
    path: &Path,
    token: &Token,
    open: &RangeInclusive<RootGeneration>,
    marked: u64,
    found: Scan,
) -> Result<Scan, JournalStartError> {
    let genuine = |found: &Scan| match &found.last {
        None => Ok(true),
        Some(last) => {
            let input = last.entry.mac_input(last.before);
            token.verifies(last.entry.generation, input, &last.mac, open)
        }
    };
    let end = match &found.last {
        Some(last) if !genuine(&found)? => {
            if last.entry.number <= marked || found.length != last.end {
                return Err(damaged(path, "the MAC of its last entry is wrong"));
            }
            last.start
        }
        _ => found.end,
    };
    if end == found.length {
        return Ok(found);
    }
    let is_covered = found.last_number() < marked;
    if is_covered || found.length.saturating_sub(end) > MAX_ENTRY_BYTES as u64 {
        return Err(damaged(path, &format!("entries do not go on at byte {end}")));
    }
    tracing::warn!(
        bytes = found.length - end,
        "cut off what a crash has torn of the state journal"
    );
    let shortened = || {
        file.set_len(end)?;
        file.sync_all()
    };
    shortened().map_err(io_error("shorten", path))?;
    let left = scan(file, marked, |_| ()).map_err(io_error("read", path))?;
    if genuine(&left)? {
        Ok(left)
    } else {
        Err(damaged(path, "the MAC of its last entry is wrong"))
    }
}
