//! What waits in the queues: the work, its deadline, and where its answer goes.

use std::time::{Duration, Instant};

use cryptoki::object::ObjectHandle;
use kms_core::id::RootGeneration;
use kms_core::key::{CkaId, RowMac};
use kms_core::root::RootPin;
use kms_core::secret::Plaintext;
use tokio::sync::oneshot;

use crate::error::HsmError;
use crate::hsm::{CryptoOp, Finished, GeneratedKey, HsmKey, KeySource, KeySpec, TokenKeys};

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
    pub(crate) reply: Reply,
    pub(crate) deadline: Instant,
    pub(crate) queued_at: Instant,
    /// Whether it was rescued once; there is no second time.
    pub(crate) retried: bool,
}

impl Job {
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
    DestroyResident(CkaId),
    ListTokenKeys,
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
    TokenKeys(TokenKeys),
    Done,
}

type To<T> = oneshot::Sender<Result<T, HsmError>>;

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
    TokenKeys(To<TokenKeys>),
    Done(To<()>),
}

impl Reply {
    /// Gives the answer; one who no longer waits is no concern.
    pub(crate) fn send(self, result: Result<Answer, HsmError>) {
        match (self, result) {
            (reply, Err(error)) => reply.fail(error),
            (Self::Crypt(to), Ok(Answer::Crypt(answer))) => drop(to.send(Ok(answer))),
            (Self::Batch(to), Ok(Answer::Batch(answer))) => drop(to.send(Ok(answer))),
            (Self::Macs(to), Ok(Answer::Macs(answer))) => drop(to.send(Ok(answer))),
            (Self::Random(to), Ok(Answer::Random(answer))) => drop(to.send(Ok(answer))),
            (Self::Pin(to), Ok(Answer::Pin(answer))) => drop(to.send(Ok(answer))),
            (Self::Generated(to), Ok(Answer::Generated(answer))) => drop(to.send(Ok(*answer))),
            (Self::Key(to), Ok(Answer::Key(answer))) => drop(to.send(Ok(answer))),
            (Self::TokenKeys(to), Ok(Answer::TokenKeys(answer))) => drop(to.send(Ok(answer))),
            (Self::Done(to), Ok(Answer::Done)) => drop(to.send(Ok(()))),
            (reply, Ok(_)) => reply.fail(HsmError::Bug { reason: "an answer of another kind" }),
        }
    }

    /// Gives an error.
    pub(crate) fn fail(self, error: HsmError) {
        match self {
            Self::Crypt(to) => drop(to.send(Err(error))),
            Self::Batch(to) => drop(to.send(Err(error))),
            Self::Macs(to) => drop(to.send(Err(error))),
            Self::Random(to) => drop(to.send(Err(error))),
            Self::Pin(to) => drop(to.send(Err(error))),
            Self::Generated(to) => drop(to.send(Err(error))),
            Self::Key(to) => drop(to.send(Err(error))),
            Self::TokenKeys(to) => drop(to.send(Err(error))),
            Self::Done(to) => drop(to.send(Err(error))),
        }
    }
}

/// When trying again may help after a full queue: a few hundred jobs of a software token.
pub(crate) const SATURATED_RETRY: Duration = Duration::from_millis(20);
