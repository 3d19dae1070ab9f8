//! What waits in the queues: the work, its deadline, and where its answer goes.

use std::time::{Duration, Instant};

use cryptoki::object::ObjectHandle;
use kms_core::id::RootGeneration;
use kms_core::key::{CkaId, RowMac, WrappedKey};
use kms_core::root::RootPin;
use kms_core::secret::Plaintext;

use crate::error::HsmError;
use crate::hsm::{
    CryptoOp, Finished, GeneratedKey, HsmKey, KeyImport, KeySource, KeySpec, Mark, TokenKeys,
};
use crate::pending::{Spent, To};

/// Work for a worker.
#[derive(Debug)]
pub(crate) enum Work {
    /// One operation.
    Crypt(CryptoOp),
    /// Many operations; those in `done` are not done again when the job is retried.
    Batch { operations: Vec<CryptoOp>, done: Vec<Result<Finished, HsmError>> },
    /// HMACs under a root.
    Mac { generation: RootGeneration, inputs: Vec<Vec<u8>> },
    /// Random bytes.
    Random(usize),
}

/// A job for the workers.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) work: Work,
    /// Where the answer goes; taken while a seat answers for the job.
    pub(crate) reply: Option<Reply>,
    pub(crate) deadline: Instant,
    pub(crate) queued_at: Instant,
    /// Whether it was rescued once; there is no second time.
    pub(crate) retried: bool,
}

impl Job {
    /// Answers with an error.
    pub(crate) fn fail(mut self: Box<Self>, error: HsmError) {
        if let Some(reply) = self.reply.take() {
            reply.send(Err(error), Some(self));
        }
    }

    /// Returns the answer when its deadline has passed: what was tried before may be done in part.
    pub(crate) const fn expired(&self) -> HsmError {
        if self.retried { HsmError::CallDeadline } else { HsmError::QueueDeadline }
    }
}

/// What the workers take from their queue.
#[derive(Debug)]
pub(crate) enum Ticket {
    /// A job.
    Job(Box<Job>),
    /// The one who takes it ends.
    Stop,
}

/// Work for the keeper.
#[derive(Debug)]
pub(crate) enum KeeperWork {
    CreateRoot(RootGeneration),
    OpenRoots(Vec<RootPin>),
    Generate(KeySpec),
    Load(KeySource),
    Rewrap { sources: Vec<KeySource>, to: RootGeneration },
    Import(Box<KeyImport>),
    DestroyImportKey(CkaId),
    DestroyResident(CkaId),
    ListTokenKeys,
    PutMark { mark: Mark, replaced: Vec<Mark> },
    ListMarks,
}

/// Why a worker hands a job to the keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// A key's handle is of another epoch.
    StaleKey,
    /// The token does not know a handle of this epoch.
    ObjectGone,
    /// The login is lost.
    LoginLost,
}

/// What the keeper takes from its queue.
#[derive(Debug)]
pub(crate) enum KeeperMessage {
    /// Work that someone waits for.
    Job { work: KeeperWork, reply: Reply, deadline: Instant },
    /// A worker's job that needs the keeper's help, and the count of logins it was tried in.
    Rescue { job: Box<Job>, cause: Cause, login: u64 },
    /// The last user of a session object is gone.
    Release { epoch: u64, object: ObjectHandle },
    /// A worker opened the breaker.
    Trouble,
    /// Close everything and say so.
    Close(crossbeam_channel::Sender<()>),
}

/// The result of any job.
#[derive(Debug)]
pub(crate) enum Answer {
    Crypt(Finished),
    Batch(Vec<Result<Finished, HsmError>>),
    Macs(Vec<RowMac>),
    Random(Plaintext),
    Pin(RootPin),
    Generated(Box<GeneratedKey>),
    Key(HsmKey),
    Rewrapped(Vec<Result<WrappedKey, HsmError>>),
    TokenKeys(TokenKeys),
    PublicKey(Vec<u8>),
    Marks(Vec<Mark>),
    Done,
}

/// Where the answer goes. It is given once: by the worker, or by the watchdog when the deadline passes.
#[derive(Debug)]
pub(crate) enum Reply {
    Crypt(To<Finished>),
    Batch(To<Vec<Result<Finished, HsmError>>>),
    Macs(To<Vec<RowMac>>),
    Random(To<Plaintext>),
    Pin(To<RootPin>),
    Generated(To<GeneratedKey>),
    Key(To<HsmKey>),
    Rewrapped(To<Vec<Result<WrappedKey, HsmError>>>),
    TokenKeys(To<TokenKeys>),
    PublicKey(To<Vec<u8>>),
    Marks(To<Vec<Mark>>),
    Done(To<()>),
}

impl Reply {
    /// Gives the answer, and back with it what the job was made of; one who no longer waits is no concern.
    pub(crate) fn send(self, result: Result<Answer, HsmError>, spent: Spent) {
        match (self, result) {
            (reply, Err(error)) => reply.give_error(error, spent),
            (Self::Crypt(to), Ok(Answer::Crypt(answer))) => to.give(Ok(answer), spent),
            (Self::Batch(to), Ok(Answer::Batch(answer))) => to.give(Ok(answer), spent),
            (Self::Macs(to), Ok(Answer::Macs(answer))) => to.give(Ok(answer), spent),
            (Self::Random(to), Ok(Answer::Random(answer))) => to.give(Ok(answer), spent),
            (Self::Pin(to), Ok(Answer::Pin(answer))) => to.give(Ok(answer), spent),
            (Self::Generated(to), Ok(Answer::Generated(answer))) => to.give(Ok(*answer), spent),
            (Self::Key(to), Ok(Answer::Key(answer))) => to.give(Ok(answer), spent),
            (Self::Rewrapped(to), Ok(Answer::Rewrapped(answer))) => to.give(Ok(answer), spent),
            (Self::TokenKeys(to), Ok(Answer::TokenKeys(answer))) => to.give(Ok(answer), spent),
            (Self::PublicKey(to), Ok(Answer::PublicKey(answer))) => to.give(Ok(answer), spent),
            (Self::Marks(to), Ok(Answer::Marks(answer))) => to.give(Ok(answer), spent),
            (Self::Done(to), Ok(Answer::Done)) => to.give(Ok(()), spent),
            (reply, Ok(_)) => {
                reply.give_error(HsmError::Bug { reason: "an answer of another kind" }, spent);
            }
        }
    }

    /// Gives an error.
    pub(crate) fn fail(self, error: HsmError) {
        self.give_error(error, None);
    }

    fn give_error(self, error: HsmError, spent: Spent) {
        match self {
            Self::Crypt(to) => to.give(Err(error), spent),
            Self::Batch(to) => to.give(Err(error), spent),
            Self::Macs(to) => to.give(Err(error), spent),
            Self::Random(to) => to.give(Err(error), spent),
            Self::Pin(to) => to.give(Err(error), spent),
            Self::Generated(to) => to.give(Err(error), spent),
            Self::Key(to) => to.give(Err(error), spent),
            Self::Rewrapped(to) => to.give(Err(error), spent),
            Self::TokenKeys(to) => to.give(Err(error), spent),
            Self::PublicKey(to) => to.give(Err(error), spent),
            Self::Marks(to) => to.give(Err(error), spent),
            Self::Done(to) => to.give(Err(error), spent),
        }
    }
}

/// When trying again may help after a full queue: a few hundred jobs of a software token.
pub(crate) const SATURATED_RETRY: Duration = Duration::from_millis(20);
